"""Attention and statistics on a GPU: which calls the Triton kernels serve, and their launches.

Nothing here waits for the device, except for the first step after pages have been laid out. Lengths are integers on the
host and, beside them, tensors on the device.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log2
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from namm_transfer import kernel_choice
from namm_transfer.policy import EvictionPolicy
from namm_transfer.spectrogram import DECAY, HOP, hann_dft
from namm_transfer.statistics import QuerySum, Spectrum

PRODUCTS = "tf32x3"
"""Precision of float32 products in spectra: three products of the matrix units, which keep nearly all of float32's
digits and on an H200 take 0.6 of the time of ``"ieee"``."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 256
_PROGRAMS = 512
"""Programs that fill a GPU; a call with fewer blocks of queries divides its tokens among more."""
_LEAST_SPLIT = 256
"""Tokens of a part that is worth a program of its own."""


@dataclass(frozen=True)
class Spans:
    """Places of a layer's KV heads in a storage: each has some rows that follow each other."""

    heads: Tensor
    """(heads,) int64: the KV heads."""
    first: Tensor
    """(heads,) int64: the first row of each."""
    rows: Tensor
    """(heads,) int64: the number of its rows."""
    most: int
    """The largest number of rows."""

    @classmethod
    def dense(cls, heads: Tensor) -> "Spans":
        """One row for each head."""
        return cls(heads, torch.arange(len(heads), device=heads.device), torch.ones_like(heads), 1)

    @classmethod
    def paged(cls, owners: Tensor, kv_heads: int) -> "Spans":
        """Pages in the order of their heads, (pages,) int64. Waits for the device."""
        heads = torch.arange(kv_heads, device=owners.device)
        first = torch.searchsorted(owners, heads)
        rows = torch.searchsorted(owners, heads, right=True) - first
        return cls(heads, first, rows, int(rows.max()))


@dataclass(frozen=True)
class Part:
    """Stored tokens that queries attend to."""

    keys: Tensor
    """(batch, rows, width, head_dim)."""
    values: Tensor
    """(batch, rows, width, value_dim)."""
    positions: Tensor
    """(batch, rows, width) int32; -1 in padding slots."""
    spans: Spans
    own: int
    """Newest slots of each row that are the queries' own, or 0 where all are older than the queries."""

    @property
    def longest(self) -> int:
        """Slots of the head that has most."""
        return self.spans.most * self.keys.shape[2]


@dataclass(frozen=True)
class Block:
    """A block of queries."""

    queries: Tensor
    """(batch, query_heads, new, head_dim)."""
    seen: list[int]
    """Real tokens that each sequence had processed before."""
    lengths: list[int]
    """Real queries of each sequence."""
    kv_heads: int
    scaling: float
    window: int | None
    """Sliding window in tokens."""

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.queries.shape[1] // self.kv_heads


def serves(policy: EvictionPolicy, query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Return True if the kernels can take these tensors' attention and what the policy wants to know of it.

    Raises:
        NammTransferError: the environment asks for kernels that do not exist.
    """
    if not kernel_choice.serves(query):
        return False
    fits = query.dtype == keys.dtype == values.dtype and query.dtype in _DTYPES
    known = not policy.needs_attention or policy.computed_statistic is not None
    return fits and known and max(query.shape[-1], values.shape[-1]) <= _WIDEST


def _kernels() -> ModuleType:
    """The kernels, imported when they are first used: Triton exists for few platforms."""
    from namm_transfer.cache import triton_kernels

    return triton_kernels


def on_device(numbers: list[int], device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    """Integers from the host as a tensor, without waiting for the device."""
    if len(set(numbers)) == 1:
        return torch.full((len(numbers),), numbers[0], dtype=dtype, device=device)
    pinned = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


def _width(dim: int) -> int:
    """Columns of a tile: a power of two, and what a matrix unit takes at least."""
    return max(16, 1 << (dim - 1).bit_length())


def _tile(tensor: Tensor) -> int:
    """Tokens in a tile, so that keys, values and scores fit the fast memory of a multiprocessor."""
    row = _width(tensor.shape[-1]) * tensor.element_size()
    return 64 if row <= 256 and tensor.element_size() == 2 else 32 if row <= 512 else 16


def attend(block: Block, parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Causal attention of a block of queries over stored tokens, in one softmax.

    Args:
        parts: parts that hold different KV heads, or all heads' older and newer tokens.

    Returns:
        The output, (batch, query_heads, new, value_dim), zero for a query that sees nothing, and the base-2 logarithm
        of each softmax sum, (batch, query_heads, new) float32.
    """
    kernels, query = _kernels(), block.queries
    batch, heads, new, dim = query.shape
    value_dim = parts[0].values.shape[-1]
    rows = block.group * new
    tile = _tile(query)
    block_m = min(tile, max(16, 1 << (rows - 1).bit_length()))
    blocks = -(-rows // block_m)
    programs = blocks * batch * block.kv_heads
    counts = [max(1, min(-(-part.longest // _LEAST_SPLIT), -(-_PROGRAMS // programs))) for part in parts]
    together = len(parts) > 1 and len(parts[0].spans.heads) == block.kv_heads
    splits = sum(counts) if together else max(counts)
    out, lse = query.new_empty(batch, heads, new, value_dim), query.new_empty(batch, heads, new, dtype=torch.float32)
    partial, partial_lse = out, lse
    if splits > 1:
        partial = torch.empty(batch, heads, new, splits, value_dim, dtype=torch.float32, device=query.device)
        partial_lse = torch.full((batch, heads, new, splits), -torch.inf, device=query.device)
    seen = on_device(block.seen, query.device)
    offset = 0
    with torch.cuda.device_of(query):
        for part, count in zip(parts, counts, strict=True):
            per_split = -(-part.longest // (count * tile)) * tile
            kernels.attend[(blocks, batch * len(part.spans.heads), count)](
                query, part.keys, part.values, part.positions, partial, partial_lse,
                part.spans.heads, part.spans.first, part.spans.rows, seen,
                *query.stride()[:3], *part.keys.stride()[:3], *part.values.stride()[:3], *part.positions.stride()[:2],
                len(part.spans.heads), block.kv_heads, new, part.keys.shape[2], part.own, block.window or 0,
                per_split, splits, offset, block.scaling * log2(torch.e),
                GROUP=block.group, D=dim, DV=value_dim, BLOCK_D=_width(dim), BLOCK_DV=_width(value_dim),
                BLOCK_M=block_m, BLOCK_N=tile, TILE=_tile_dtype(query), WINDOWED=block.window is not None,
            )  # fmt: skip
            offset += count if together else 0
        if splits > 1:
            kernels.combine[(batch * heads * new,)](
                partial, partial_lse, out, lse, splits,
                DV=value_dim, BLOCK_DV=_width(value_dim), BLOCK_S=1 << (splits - 1).bit_length(),
            )  # fmt: skip
    return out, lse


def fold(
    statistic: QuerySum | Spectrum, state: dict[str, Tensor], block: Block, lse: Tensor, part: Part, rounding: str
) -> None:
    """Fold the attention weights of a block over a part into the policy's state of its tokens, in place.

    Args:
        state: the part's state, each (batch, rows, ..., width); for a `Spectrum` with ``pending`` if any sequence
            stands inside a hop before the block or after it.
        lse: what `attend` returned.
        rounding: the dtype that weights are rounded to.
    """
    device = block.queries.device
    seen = on_device(block.seen, device)
    spans, tile = part.spans, _tile(block.queries)
    grid = (-(-part.longest // tile), len(block.seen) * len(spans.heads))
    where = (spans.heads, spans.first, spans.rows, seen)
    strides = (*block.queries.stride()[:3], *part.keys.stride()[:3], *part.positions.stride()[:2])
    sizes = (len(spans.heads), block.kv_heads, block.queries.shape[2], part.keys.shape[2], part.own, block.window or 0)
    dim = block.queries.shape[-1]
    constants: dict[str, Any] = dict(GROUP=block.group, D=dim, BLOCK_D=_width(dim), BLOCK_N=tile)
    constants |= dict(
        TILE=_tile_dtype(block.queries), WINDOWED=block.window is not None, ROUNDED=_triton_dtype(rounding)
    )
    inputs = (block.queries, part.keys, part.positions, lse)
    scale = block.scaling * log2(torch.e)
    with torch.cuda.device_of(block.queries):
        if isinstance(statistic, QuerySum):
            first, anew = zip(*map(statistic.part, block.seen, block.lengths), strict=True)
            restart = [int(again and length > 0) for again, length in zip(anew, block.lengths, strict=True)]
            ranges = (on_device(numbers, device) for numbers in (list(first), block.lengths, restart))
            total = state[statistic.name]
            _kernels().fold_sum[grid](
                *inputs, total, *where, *ranges, *strides, *total.stride()[:2], *sizes, scale, BLOCK_Q=16, **constants
            )
            return
        spectrum, tail, pending = state["spectrum"], state["tail"], state.get("pending")
        third = tail if pending is None else pending
        _kernels().fold_spectrum[grid](
            *inputs, spectrum, tail, third, _interleaved_dft(device), *where, on_device(block.lengths, device),
            *strides, *spectrum.stride()[:3], *tail.stride()[:3], *third.stride()[:3], *sizes, scale,
            PENDING=pending is not None, DECAY=DECAY, PRODUCTS=PRODUCTS, **constants,
        )  # fmt: skip


def _tile_dtype(tensor: Tensor) -> Any:
    """The dtype that tiles are multiplied in; the interpreter, which takes CPU tensors, cannot multiply bfloat16."""
    return _triton_dtype("float32" if tensor.device.type == "cpu" else str(tensor.dtype).removeprefix("torch."))


def _triton_dtype(name: str) -> Any:
    import triton.language as tl

    return getattr(tl, name)


@lru_cache(maxsize=8)
def _interleaved_dft(device: torch.device) -> Tensor:
    """`hann_dft` transposed, (32, 32): columns are cosine and sine of each bin in turn, bin 16 in place of sine 0."""
    rows = hann_dft(torch.device("cpu"))
    columns = [0, HOP] + [row for frequency in range(1, HOP) for row in (frequency, HOP + frequency)]
    return rows[columns].T.contiguous().to(device)
