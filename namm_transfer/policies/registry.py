"""The names of the policies and the command line's notation for them."""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from namm_transfer.errors import NammTransferError
from namm_transfer.namm import NAMM
from namm_transfer.policies.rules import H2O, TOVA, FullCache, L2Norm, RandomEviction, SnapKV, Streaming
from namm_transfer.policy import EvictionPolicy


def _namm(
    path: str = "namm-text",
    selection: str | None = None,
    keep: float | None = None,
    budget: int | None = None,
    match: str | None = None,
    threshold: float | None = None,
    attention_dtype: str | None = None,
    update_interval: int | None = None,
) -> EvictionPolicy:
    """A NAMM from a folder, a hub id or the name of a shipped one; what is given overrides its configuration."""
    given = {key: value for key, value in locals().items() if value is not None and key != "path"}
    return NAMM.from_pretrained(path, **given)


REGISTRY: dict[str, Callable[..., EvictionPolicy]] = {
    "full": FullCache,
    "streaming": Streaming,
    "h2o": H2O,
    "l2": L2Norm,
    "tova": TOVA,
    "snapkv": SnapKV,
    "random": RandomEviction,
    "namm": _namm,
}


@dataclass(frozen=True)
class PolicySpec:
    """A policy as the command line names it, parsed once: nothing further on reads the text."""

    text: str
    """As given, for example ``h2o:keep=0.5``; the name of the policy in reports."""
    name: str
    """Name in the registry, for example ``h2o``."""
    options: dict[str, Any]
    """Keyword arguments of the policy, each of the type its signature asks for."""

    def make(self, update_interval: int | None = None) -> EvictionPolicy:
        """Build the policy; ``update_interval`` holds unless the options have one of their own."""
        default = {} if update_interval is None else {"update_interval": update_interval}
        return REGISTRY[self.name](**default | self.options)


def parse(spec: str) -> PolicySpec:
    """Read the command line's notation, ``name`` or ``name:key=value,...``.

    Raises:
        NammTransferError: unknown name or key, a key that stands twice, or a value of the wrong type.
    """
    name, _, rest = spec.strip().partition(":")
    if name not in REGISTRY:
        raise NammTransferError(f"unknown policy {name!r} in {spec!r}: expected one of {', '.join(REGISTRY)}")
    keys = {key: _parser(parameter) for key, parameter in inspect.signature(REGISTRY[name]).parameters.items()}
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key not in keys:
            raise NammTransferError(f"unknown key {key!r} in {spec!r}: expected key=value with {', '.join(keys)}")
        if key in options:
            raise NammTransferError(f"{key!r} stands twice in {spec!r}: expected each key once")
        try:
            options[key] = keys[key](value)
        except ValueError:
            raise NammTransferError(f"{key}={value!r} in {spec!r}: expected {keys[key].__name__}") from None
    return PolicySpec(spec, name, options)


def make(spec: str, *, update_interval: int | None = None) -> EvictionPolicy:
    """Build a policy from the command line's notation.

    Args:
        spec: for example ``h2o:keep=0.5``, ``streaming:sinks=4,window=252``, ``namm:path=assets/namm-text,keep=0.5``,
            ``h2o:match=namm``.
        update_interval: overrides the policy's own; a key ``update_interval`` in ``spec`` wins.

    Raises:
        NammTransferError: unknown name or key, or a value the policy refuses.
    """
    return parse(spec).make(update_interval)


def _parser(parameter: inspect.Parameter) -> type:
    """int, float or str: what a parameter annotated ``kind`` or ``kind | None`` is read as."""
    kinds = [kind for kind in get_args(parameter.annotation) if kind is not types.NoneType]
    return kinds[0] if kinds else parameter.annotation
