"""The policies by name, and the command line's notation for them."""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from namm_transfer import plugins
from namm_transfer.errors import NammTransferError
from namm_transfer.namm import NAMM
from namm_transfer.policies.full import FullCache
from namm_transfer.policies.h2o import H2O
from namm_transfer.policies.infinipot import InfiniPotV
from namm_transfer.policies.keydiff import KeyDiff
from namm_transfer.policies.leverage import Leverage
from namm_transfer.policies.norms import L2Norm, ValueNorm
from namm_transfer.policies.random_eviction import RandomEviction
from namm_transfer.policies.recent import Recent, Streaming
from namm_transfer.policies.snapkv import SnapKV
from namm_transfer.policies.tova import TOVA
from namm_transfer.policy import EvictionPolicy
from namm_transfer.selection import Protection

GROUP = "namm_transfer.policies"
"""Entry-point group in which other packages declare their policies: name -> class."""


def _namm(
    path: str = "namm-text",
    selection: str | None = None,
    keep: float | None = None,
    budget: int | None = None,
    match: str | None = None,
    threshold: float | None = None,
    attention_dtype: str | None = None,
    pooled_tokens: int | None = None,
    keydiff: float | None = None,
    protect: str | None = None,
    update_interval: int | None = None,
) -> EvictionPolicy:
    """Load a NAMM from a folder, a hub id or the name of a shipped one; options override its configuration."""
    given = {key: value for key, value in locals().items() if value is not None and key != "path"}
    return NAMM.from_pretrained(path, **given)


_RULES = (
    FullCache, Recent, Streaming, H2O, L2Norm, ValueNorm, InfiniPotV, KeyDiff, Leverage, TOVA, SnapKV, RandomEviction,
)  # fmt: skip

REGISTRY: dict[str, Callable[..., EvictionPolicy]] = {rule.name: rule for rule in _RULES} | {NAMM.name: _namm}
"""The built-in policies by name; those of other packages are found by `names` and `parse`."""


def names() -> list[str]:
    """List all names that `parse` and `make` know: the built-in policies, then those of other installed packages."""
    return plugins.names(GROUP, REGISTRY)


def option_names(name: str) -> list[str]:
    """List all keys that `parse` accepts for the policy of that name.

    Raises:
        NammTransferError: unknown name.
    """
    return [*dict.fromkeys([*_parameters(_factory(name)), "protect"])]


@dataclass(frozen=True)
class PolicySpec:
    """A policy specification of the command line in parsed form, so that no later code parses the text."""

    text: str
    """The specification as given, for example ``h2o:keep=0.5``; the name of the policy in reports."""
    name: str
    """Name in the registry, for example ``h2o``."""
    options: dict[str, Any]
    """Keyword arguments of the policy, each of the type its signature asks for."""

    def make(self, update_interval: int | None = None) -> EvictionPolicy:
        """Build the policy; ``update_interval`` applies unless the options set their own."""
        factory = _factory(self.name)
        default = {} if update_interval is None else {"update_interval": update_interval}
        options = default | self.options
        own = _parameters(factory)
        policy = factory(**{key: value for key, value in options.items() if key in own})
        if "protect" in options and "protect" not in own:  # the one option that a policy need not know
            Protection.parse(options["protect"])
            policy.protect = options["protect"]
        return policy


def parse(spec: str) -> PolicySpec:
    """Read the command line's notation, ``name`` or ``name:key=value,...``.

    Raises:
        NammTransferError: unknown name or key, a key that stands twice or is missing, or a value of the wrong type.
    """
    name, _, rest = spec.strip().partition(":")
    parameters = _parameters(_factory(name))
    readers = {key: _reader(parameter) for key, parameter in parameters.items()} | {"protect": str}
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key not in readers:
            raise NammTransferError(f"unknown key {key!r} in {spec!r}: expected key=value with {', '.join(readers)}")
        if key in options:
            raise NammTransferError(f"{key!r} stands twice in {spec!r}: expected each key once")
        try:
            options[key] = readers[key](value)
        except (ValueError, KeyError):
            raise NammTransferError(f"{key}={value!r} in {spec!r}: expected {readers[key].__name__}") from None
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise NammTransferError(f"{spec!r} lacks {', '.join(f'{key}=' for key in missing)}")
    return PolicySpec(spec, name, options)


def make(spec: str, *, update_interval: int | None = None) -> EvictionPolicy:
    """Build a policy from the command line's notation.

    Args:
        spec: for example ``h2o:keep=0.5``, ``streaming:sinks=4,window=252``, ``namm:path=assets/namm-text,keep=0.5``,
            ``h2o:match=namm`` or ``l2:budget=256,protect=4:64``.
        update_interval: overrides the policy's own; a key ``update_interval`` in ``spec`` wins.

    Raises:
        NammTransferError: unknown name or key, or a value the policy refuses.
    """
    return parse(spec).make(update_interval)


def _factory(name: str) -> Callable[..., EvictionPolicy]:
    """Find a policy's class (or, of a NAMM, the function that loads it); a class without a name of its own gets it."""
    factory = plugins.find("policy", name, GROUP, REGISTRY)
    if factory is _namm:
        return _namm
    if not isinstance(factory, type) or not issubclass(factory, EvictionPolicy):
        raise NammTransferError(f"policy {name!r} is {factory!r}: expected a subclass of EvictionPolicy")
    if "update_interval" not in _parameters(factory):
        raise NammTransferError(f"policy {name!r} is {factory!r}: expected a class that takes update_interval")
    if "name" not in vars(factory):
        factory.name = name
    if factory.name != name:
        raise NammTransferError(f"policy {name!r} is {factory!r}, which names itself {factory.name!r}")
    return factory


def _parameters(factory: Callable[..., EvictionPolicy]) -> dict[str, inspect.Parameter]:
    """Return the named options of a policy with their annotations resolved."""
    try:
        found = inspect.signature(factory, eval_str=True).parameters
    except Exception as error:  # annotations are somebody else's code
        raise NammTransferError(f"the options of {factory!r} cannot be read: {error}") from error
    return {key: p for key, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _reader(parameter: inspect.Parameter) -> Callable[[str], Any]:
    """Return the function that reads an option's text as its annotated type: int, float, bool or str."""
    kinds = [kind for kind in get_args(parameter.annotation) if kind is not types.NoneType] or [parameter.annotation]
    if kinds[0] not in (int, float, bool, str):
        return _unreadable
    return _boolean if kinds[0] is bool else kinds[0]


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _unreadable(text: str) -> Any:
    raise ValueError(text)


_boolean.__name__ = "true or false"
_unreadable.__name__ = "an option that can be written as text; this one is for Python only"
