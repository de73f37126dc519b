"""The mask function of "memory": it hands on what was asked for, since only the attention function sees the cache."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from namm_transfer.errors import NammTransferError


@dataclass
class Tokens:
    """Where a call's real tokens are."""

    counts: list[int]
    """Real tokens of each sequence in this call."""
    index: Tensor | None
    """(batch, columns): columns of the real tokens first, in order; None if there is no padding in the call."""


class MemoryMask:
    """What the mask function was asked for: the attention function alone knows whether there is a MemoryCache."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def to(self, *args: Any, **kwargs: Any) -> "MemoryMask":
        """Moved like a tensor, for models spread over devices."""
        moved = {k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        device = torch.empty(0, device=self.arguments["device"]).to(*args, **kwargs).device
        return MemoryMask(moved | {"device": device})

    @cached_property
    def ordinary(self) -> Tensor | None:
        """The mask transformers' own SDPA path would have made."""
        return sdpa_mask(**self.arguments)

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


def _same(a: Any, b: Any) -> bool:
    """Whether two mask functions are the same code over the same closed-over values."""
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


def memory_mask(**arguments: Any) -> MemoryMask:
    """The mask function registered as "memory"."""
    return MemoryMask(arguments)
