"""Tensors that share a token axis: appended to and compacted in place, with a little room to grow.

While autograd records, nothing is written in place, since a backward pass will read what attention saw; every change
makes new tensors instead.
"""

import copy
import ctypes
import sys

import torch
from torch import Tensor

_SPARE = 40
"""Stored tokens for one token of room: 2.5 %, so that decoding copies everything once in 40 tokens."""
_SPARE_WHILE_GROWING = 2
"""Stored tokens for one token of room within a call that still reads tokens. Memory that grows in small steps
never fits into what it just left, so that a process would end up holding twice what it uses."""
_WORTH_TRIMMING = 16 << 20
"""Bytes of a layer's tokens above which handing freed pages back costs less than holding them."""


def token_axis(name: str) -> int:
    """Keys and values have their width last, everything else the token."""
    return -2 if name in ("keys", "values") else -1


def newest_last(chosen: Tensor, width: int) -> Tensor:
    """Indices, (..., width), of the marked tokens in (..., tokens) bool, in order.

    Where fewer than ``width`` are marked, unmarked ones stand in front.
    """
    return chosen.to(torch.uint8).argsort(dim=-1, stable=True)[..., chosen.shape[-1] - width :]


def _trim() -> None:
    """Hand freed memory back to the system: glibc keeps the pages that lie below a tensor that stays."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class TokenStorage:
    """Named tensors, each (batch, kv_heads, ..., tokens) or, keys and values, (batch, kv_heads, tokens, width).

    Args:
        tensors: what is stored to begin with; all of one length.
        length: tokens in them.
    """

    def __init__(self, tensors: dict[str, Tensor], length: int) -> None:
        self.length = length
        self.room = length
        self.spare: int | None = None
        """Tokens of room to grow, where that is not to follow from the length."""
        self._growing = False
        self._recording = False
        self._tensors = tensors

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    @property
    def requires_grad(self) -> bool:
        """True if a stored tensor has a gradient history."""
        return any(tensor.requires_grad for tensor in self._tensors.values())

    @property
    def recording(self) -> bool:
        """True if autograd records the current call."""
        return self._recording

    @property
    def _allowance(self) -> int:
        return self.length // _SPARE if self.spare is None else self.spare

    def record(self, recording: bool) -> None:
        """Say whether autograd records the call that begins: if so, nothing is written in place from here on."""
        if (self._recording and not recording) or self._tensors["keys"].is_inference():
            self._renew()
        self._recording = recording

    @torch.inference_mode(False)
    def _renew(self) -> None:
        """Leave the tensors to a backward pass that may need them, or to inference mode, and go on with copies."""
        self._tensors = {name: self.view(name).detach().clone() for name in self._tensors}
        self.room = self.length

    @torch.inference_mode(False)
    def to(self, device: torch.device) -> None:
        """Move the tensors to another device."""
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}

    @property
    def bytes(self) -> int:
        """Bytes really held, the room to grow included."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())

    def view(self, name: str, tokens: int | None = None) -> Tensor:
        """A tensor's stored tokens, or its first ``tokens``, as a view that can be read and written."""
        return self._tensors[name].narrow(token_axis(name), 0, self.length if tokens is None else tokens)

    def put(self, name: str, values: Tensor) -> None:
        """Overwrite a tensor's first tokens; a new name is zero beyond them."""
        if name not in self._tensors:
            self._tensors[name] = self._allocate(name, values).zero_()
        self.view(name, values.shape[token_axis(name)]).copy_(values)

    def drop(self, name: str) -> None:
        """Delete a tensor."""
        del self._tensors[name]

    def append(self, new: int, tensors: dict[str, Tensor]) -> None:
        """Store ``new`` tokens behind the others; what is not in ``tensors`` gets zeros."""
        if self._recording:
            for name in self._tensors:
                old, axis = self.view(name), token_axis(name)
                shape = [*old.shape]
                shape[axis] = new
                more = tensors[name].to(old.dtype).expand(shape) if name in tensors else old.new_zeros(shape)
                self._tensors[name] = torch.cat([old, more], dim=axis)
            self.length = self.room = self.length + new
            return
        if self.length + new > self.room:
            spare = self.length // _SPARE_WHILE_GROWING if self._growing else self._allowance
            self._resize(self.length + new + spare)
            self._growing = True
        for name, tensor in self._tensors.items():
            place = tensor.narrow(token_axis(name), self.length, new)
            if name in tensors:
                place.copy_(tensors[name])
            else:
                place.zero_()
        self.length += new

    def compact(self, index: Tensor) -> None:
        """Keep the tokens that ``index``, (batch, kv_heads, kept), names, in its order."""
        if self._tensors["keys"].is_inference():  # a compiled graph has made it
            self._renew()
        batch, heads, kept = index.shape
        first = torch.arange(batch * heads, device=index.device).view(batch, heads, 1) * self.room
        flat = (index + first).flatten()
        for name, tensor in self._tensors.items():
            if token_axis(name) == -2:
                chosen = tensor.view(-1, tensor.shape[-1])[flat].view(batch, heads, kept, tensor.shape[-1])
            else:
                middle = tensor.shape[2:-1]
                where = index.view(batch, heads, *(1 for _ in middle), kept).expand(batch, heads, *middle, kept)
                chosen = tensor.gather(-1, where)
            if self._recording:
                self._tensors[name] = chosen
            else:
                self.view(name, kept).copy_(chosen)
        self.length = kept
        self.room = kept if self._recording else self.room

    @torch.inference_mode(False)
    def select_rows(self, rows: Tensor) -> None:
        """Put sequences of the batch in another order, leave some out or repeat some."""
        self._tensors = {name: self.view(name).index_select(0, rows) for name in self._tensors}
        self.room = self.length

    @torch.inference_mode(False)
    def __deepcopy__(self, memo: dict[int, object]) -> "TokenStorage":
        twin = copy.copy(self)
        twin._tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        return twin

    def __getstate__(self) -> dict[str, object]:
        """For pickle: the stored tokens alone, without room to grow and without gradient history."""
        tensors = {name: self.view(name).detach().clone() for name in self._tensors}
        return vars(self) | {"_tensors": tensors, "room": self.length, "_recording": False}

    def fit(self) -> None:
        """End a call: give back the room that decoding does not need."""
        self._growing = False
        if self.room > self.length + self._allowance:
            self._resize(self.length)
            self.trim()

    def trim(self) -> None:
        """Hand back memory that larger tensors than these have left, if it is worth the time."""
        if torch.compiler.is_compiling():  # which knows neither storages nor C functions
            return
        if self._tensors["keys"].device.type == "cpu" and self.bytes > _WORTH_TRIMMING:
            _trim()

    def _resize(self, room: int) -> None:
        self.room = room
        for name in self._tensors:
            old = self.view(name)
            self._tensors[name] = self._allocate(name, old)
            self.view(name).copy_(old)

    def _allocate(self, name: str, like: Tensor) -> Tensor:
        shape = list(like.shape)
        shape[token_axis(name)] = self.room
        with torch.inference_mode(False):  # as in all that makes tensors here: a cache may be used on outside of it
            return torch.empty(shape, dtype=like.dtype, device=like.device)
