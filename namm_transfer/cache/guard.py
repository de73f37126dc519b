"""Tensors that only the memory attention may read: what makes a model that cannot be served exactly raise an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError

_DESCRIBES = {"size", "dim", "stride", "numel", "__len__", "__repr__", "is_contiguous", "is_floating_point"}
"""Functions that tell a tensor's shape or dtype; properties do as well."""
_KEEPS_VALUES = {"contiguous", "to"}
"""Functions that usually return the very same numbers; a conversion to another dtype or device is refused."""
_ASKED_BY_COMPILE = {"_base", "_is_view", "is_conj", "is_neg", "storage_offset", "untyped_storage"}
"""Attributes that torch.compile reads of a tensor before it traces code that gets it."""


class GuardedTensor(Tensor):
    """A tensor that raises a `NammTransferError` when anything but `opened` reads its numbers.

    The keys and values that a `MemoryCache` hands to a model are the call's new ones only, and a bool mask means
    something else to each attention implementation. A model that lets any other code than the memory attention at them
    would compute something wrong without a word, so every operation on them is an error. Shape, dtype and device can
    be read.
    """

    owner: Any
    """Facts that travel with a tensor to the memory attention."""
    refusal: str
    """Text of the error, which says what to do."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Answer questions about the shape; refuse everything else before it is computed."""
        name = getattr(func, "__name__", str(func))
        is_property = name == "__get__"
        if is_property:
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        first = args[0] if args else None
        if isinstance(first, cls) and (is_property or name in _DESCRIBES | _KEEPS_VALUES | _ASKED_BY_COMPILE):
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
                if not isinstance(result, Tensor) or result is first or name in _ASKED_BY_COMPILE:
                    return result
                if name in _KEEPS_VALUES and (result.dtype, result.device) == (first.dtype, first.device):
                    return guarded(opened(result), first.owner, first.refusal)
        guard = next(leaf for leaf in _flat((args, kwargs)) if isinstance(leaf, cls))
        raise NammTransferError(f"{guard.refusal} (read by {name!r})")


def _flat(value: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, list | tuple) else [value]


def guarded(tensor: Tensor, owner: Any, refusal: str) -> GuardedTensor:
    """A guarded alias of a tensor, with its gradient history."""
    with torch._C.DisableTorchFunctionSubclass():
        alias = tensor.as_subclass(GuardedTensor)
    alias.owner, alias.refusal = owner, refusal
    return alias


def opened(tensor: Tensor) -> Tensor:
    """The plain tensor behind a guarded one."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)
