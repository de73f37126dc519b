"""The mask function of "memory": SDPA's mask, except under a `MemoryCache`, where only a description of it is made.

A mask function is not told which cache it works for. A `MemoryCache` therefore answers the question for the number of
columns with a `ColumnCount`, an integer that says where it comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from namm_transfer.cache.guard import guarded
from namm_transfer.errors import NammTransferError, UnservedAttribute

if TYPE_CHECKING:
    from namm_transfer.cache.memory_cache import MemoryCache


class ColumnCount(int):
    """Columns of the attention mask, seen and new, as counted by a `MemoryCache`."""


@dataclass
class TracedCount:
    """Columns of the attention mask of a call that torch.compile traces, which cannot trace subclasses of integers."""

    cache: MemoryCache
    columns: int


@dataclass
class Tokens:
    """The places of the real tokens of a call, padding left out."""

    counts: list[int]
    """Real tokens of each sequence in this call."""
    index: Tensor | None
    """(batch, columns): columns of the real tokens first, in order; None if there is no padding in the call."""


class MemoryMask:
    """The arguments of the mask function under a `MemoryCache`; the memory attention makes its masks from it.

    It is no tensor, since each layer and head holds other tokens; a model that uses it as one gets a
    `NammTransferError`.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def to(self, *args: Any, **kwargs: Any) -> MemoryMask:
        """Moved like a tensor, for models spread over devices."""
        moved = {k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        device = torch.empty(0, device=self.arguments["device"]).to(*args, **kwargs).device
        return MemoryMask(moved | {"device": device})

    @cached_property
    def padding(self) -> Tensor | None:
        """(batch, columns seen) bool, False at padding; None if there is none."""
        mask = self.arguments["attention_mask"]
        if mask is None:
            return None
        if mask.shape[-1] != self.arguments["kv_length"]:
            raise NammTransferError(
                f"attention_mask has {mask.shape[-1]} columns; expected {self.arguments['kv_length']}, "
                "those in the cache and the new ones"
            )
        return None if bool(mask.all()) else mask.bool()

    @cached_property
    def tokens(self) -> Tokens:
        """The call's real tokens."""
        batch, new = self.arguments["batch_size"], self.arguments["q_length"]
        if self.padding is None or bool((real := self.padding[:, -new:]).all()):
            return Tokens([new] * batch, None)
        return Tokens(real.sum(-1).tolist(), (~real).to(torch.uint8).argsort(dim=-1, stable=True))

    @cached_property
    def window(self) -> int | None:
        """The sliding window in tokens, or None for plain causal attention; anything else is refused."""
        function, size = self.arguments["mask_function"], self.arguments.get("local_size")
        if function is causal_mask_function:
            return None
        if size is None or not _same(function, sliding_window_causal_mask_function(size)):
            raise NammTransferError("the mask is neither causal nor a causal sliding window: it cannot be served")
        if size >= self.arguments["kv_length"]:
            return None
        if self.padding is not None:
            starts = self.padding.int().diff(dim=-1, prepend=self.padding.new_zeros(len(self.padding), 1).int()) > 0
            if bool((starts.sum(-1) > 1).any()):
                raise NammTransferError("padding between tokens under a sliding window cannot be served: pad left")
        return size

    def __getattr__(self, name: str) -> NoReturn:
        raise UnservedAttribute(_mask_used(name))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Refuse torch functions that are given the mask."""
        raise NammTransferError(_mask_used(getattr(func, "__name__", str(func))))


def _mask_used(name: str) -> str:
    return (
        f"the model uses its attention mask by itself ({name!r}): a model whose attention is not the one that "
        "transformers dispatches by name cannot be served with a MemoryCache"
    )


def _refusing(name: str) -> Callable[..., NoReturn]:
    def operator(self: MemoryMask, *args: Any) -> NoReturn:
        raise NammTransferError(_mask_used(name))

    return operator


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_OTHERS = ("invert", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem", "len", "iter", "bool")
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *_OTHERS):
    setattr(MemoryMask, f"__{_name}__", _refusing(f"__{_name}__"))


def _same(a: Any, b: Any) -> bool:
    """Return True if two mask functions are the same code over the same closed-over values."""
    if not callable(a) or not callable(b):
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(_same, a, b))
        return type(a) is type(b) and isinstance(a, int) and a == b
    if a is b:
        return True
    if getattr(a, "__code__", a) is not getattr(b, "__code__", b):
        return False
    cells = zip(a.__closure__ or (), b.__closure__ or (), strict=True)
    return all(_same(x.cell_contents, y.cell_contents) for x, y in cells)


def models_of(config_class: type) -> list[type[PreTrainedModel]]:
    """The model classes that a configuration's own file of models defines; none where it has not been imported."""
    name = config_class.__module__.replace("configuration_", "modeling_")
    models = [
        some
        for some in vars(sys.modules.get(name, object)).values()
        if isinstance(some, type) and issubclass(some, PreTrainedModel) and some.__module__ == name
    ]
    return [some for some in models if getattr(some, "config_class", None) is config_class] or models


_RUNS_UNDER_SDPA: dict[type, bool] = {}


@torch.compiler.assume_constant_result
def runs_under_sdpa(config_class: type) -> bool:
    """Return True if transformers runs the models of a configuration under SDPA, as far as can be told."""
    if config_class not in _RUNS_UNDER_SDPA:
        models = models_of(config_class)
        _RUNS_UNDER_SDPA[config_class] = bool(models) and all(some._supports_sdpa for some in models)
    return _RUNS_UNDER_SDPA[config_class]


def memory_mask(**arguments: Any) -> MemoryMask | Tensor | None:
    """The mask function registered as "memory", with the arguments of transformers' mask functions.

    Returns:
        Under a `MemoryCache` a `MemoryMask`; otherwise what SDPA gets. Models that transformers does not run under SDPA
        rely on more than SDPA promises, so they always get the whole mask, (batch, 1, queries, columns) bool, and only
        the memory attention may read it: their own code takes a mask for one to be added.
    """
    count = arguments["kv_length"]
    if isinstance(count, TracedCount):
        arguments["kv_length"] = count.columns
        if arguments["attention_mask"] is not None or not count.cache.give_all():
            return MemoryMask(arguments)
    elif isinstance(count, ColumnCount):
        return MemoryMask(arguments)
    config = arguments.get("config")
    if config is None or runs_under_sdpa(type(config)):
        return sdpa_mask(**arguments)
    mask = sdpa_mask(**arguments | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    refusal = (
        f'a model of type {config.model_type!r} reads its mask by itself, which attn_implementation="memory" cannot '
        'serve: load it with "eager"'
    )
    return None if mask is None else guarded(mask, None, refusal)
