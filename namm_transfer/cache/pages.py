"""The layout of KV heads that keep different numbers of tokens, and the one gather that brings them there.

There are two layouts. While a prompt is read, heads of like length lie in a few dense groups, padded at the older end:
long blocks of queries are fastest so. Between calls, and while single tokens are decoded, the tokens that stood there
at the last update lie in pages of a few tokens, each page of one head, so that almost nothing is padding and a step
attends to all heads at once however long they are; the tokens since then are equally many in all heads, and dense.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_transfer.cache.device import on_device
from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.storage import TokenStorage, token_axis

_LIKE = 0.6
"""Heads lie in one group while the shortest has at least this share of the longest one's tokens ..."""
_GROUPS = 4
"""... and the last of so many groups takes all that are shorter."""
_PAGE_TOKENS = (64, 32, 16, 8, 4, 2, 1)
_WASTE = 64
"""Pages take as many tokens as go with one byte of padding and page numbers in so many."""


@dataclass(frozen=True)
class Layout:
    """Rows of slots to be filled with tokens, newest last; a head has one row, or several that follow each other."""

    heads: list[int]
    """The KV head of each row."""
    back: list[int]
    """Slots of the head from the beginning of each row to its newest token."""
    width: int
    """Slots of a row."""

    @classmethod
    def dense(cls, heads: list[int], width: int) -> "Layout":
        """One row for each head."""
        return cls(heads, [width] * len(heads), width)

    @classmethod
    def paged(cls, counts: list[int], token_bytes: int) -> "Layout":
        """Pages for heads of these numbers of tokens, as large as the waste allows."""
        for width in _PAGE_TOKENS:
            pages = [-(-count // width) for count in counts]
            waste = (sum(pages) * width - sum(counts)) * token_bytes + 8 * sum(pages)
            if waste * _WASTE <= sum(counts) * token_bytes:
                break
        heads = [head for head, number in enumerate(pages) for _ in range(number)]
        back = [page * width for number in pages for page in range(number, 0, -1)]
        return cls(heads, back, width)


def like_lengths(counts: list[int]) -> list[Layout]:
    """A few dense groups of heads of like numbers of tokens."""
    groups: list[list[int]] = []
    for head in sorted(range(len(counts)), key=lambda h: -counts[h]):
        if groups and (len(groups) == _GROUPS or counts[head] >= _LIKE * counts[groups[-1][0]]):
            groups[-1].append(head)
        else:
            groups.append([head])
    return [Layout.dense(sorted(heads), counts[heads[0]]) for heads in groups]


@dataclass(frozen=True)
class Chosen:
    """The tokens of a layer that stay."""

    marks: list[Tensor]
    """For each group, (batch, rows, stored) bool."""
    counts: Tensor
    """(batch, kv_heads) int64: their number."""
    sizes: list[list[int]]
    """`counts` on the host."""

    @classmethod
    def of(cls, groups: list[HeadGroup], kv_heads: int, marks: list[Tensor] | None = None) -> "Chosen":
        """Count the marked tokens of groups or pages, by default all tokens. Waits for the device."""
        marks = [group.positions >= 0 for group in groups] if marks is None else marks
        counts = torch.zeros(len(marks[0]), kv_heads, dtype=torch.int64, device=marks[0].device)
        for some, group in zip(marks, groups, strict=True):
            counts.index_add_(1, group.heads, some.sum(-1))
        return cls(marks, counts, counts.tolist())


class Arrangement:
    """Chosen tokens of a layer in the order of their heads and positions, ready to be laid out anew.

    Args:
        groups: where the tokens are.
        chosen: which of them to take.
    """

    def __init__(self, groups: list[HeadGroup], chosen: Chosen) -> None:
        self.groups, self.chosen = groups, chosen
        positions = torch.cat([group.positions.flatten(1) for group in groups], 1)
        take = torch.cat([some.flatten(1) for some in chosen.marks], 1)
        heads = torch.cat([group.heads.repeat_interleave(group.stored) for group in groups])
        place = ((heads << 32) + positions).masked_fill_(~take, torch.iinfo(torch.int64).max)
        self.order = place.argsort(-1)
        """(batch, slots) int64: the chosen slots first, by head and position."""

    @property
    def longest(self) -> list[int]:
        """Chosen tokens of each head, in the sequence that has most."""
        return [max(sizes) for sizes in zip(*self.chosen.sizes, strict=True)]

    def _slots(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return for each slot of a layout, (batch, rows, width), which slot its token comes from, counted through all
        sequences, and whether there is one."""
        counts, device = self.chosen.counts, self.order.device
        heads, back = (on_device(numbers, device, torch.int64) for numbers in (layout.heads, layout.back))
        rank = (counts[:, heads] - back)[..., None] + torch.arange(layout.width, device=device)
        first = (counts.cumsum(-1) - counts)[:, heads, None]
        slots = self.order.shape[1]
        index = (first + rank.clamp_min(0)).clamp_max(slots - 1)
        source = self.order.gather(1, index.flatten(1))
        if len(source) > 1:
            source += slots * torch.arange(len(source), device=device)[:, None]
        return source.view_as(rank), rank >= 0

    def positions(self, layout: Layout) -> Tensor:
        """The tokens' original positions in a layout, (batch, rows, width) int32; -1 in padding slots."""
        index, real = self._slots(layout)
        return self._gather("positions", index).masked_fill_(~real, -1)

    @torch.inference_mode(False)
    def laid_out(self, layout: Layout) -> HeadGroup:
        """The tokens in a layout, with everything that is stored of them."""
        index, real = self._slots(layout)
        names = dict.fromkeys(name for group in self.groups for name in group.storage.names)
        tensors = {name: self._gather(name, index) for name in names}
        tensors["positions"].masked_fill_(~real, -1)
        storage = TokenStorage(tensors, layout.width)
        storage.record(self.groups[0].storage.recording)
        rows = list(zip(layout.heads, layout.back, strict=True))
        padded = any(sizes[head] < back for sizes in self.chosen.sizes for head, back in rows)
        return HeadGroup(on_device(layout.heads, index.device, torch.int64), storage, padded)

    def _gather(self, name: str, index: Tensor) -> Tensor:
        """A tensor's tokens, by the slots of all sequences that they come from."""
        axis = token_axis(name)
        parts = [part.movedim(axis, 2).flatten(1, 2) for part in self._parts(name)]
        flat = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(0, 1)
        return flat.index_select(0, index.flatten()).unflatten(0, index.shape).movedim(2, axis).contiguous()

    def _parts(self, name: str) -> list[Tensor]:
        """A tensor's part in each group; zeros where a group has none, since its policy has not made any yet."""
        there = next(group.storage.view(name) for group in self.groups if name in group.storage.names)
        return [
            group.storage.view(name)
            if name in group.storage.names
            else there.new_zeros(*group.positions.shape[:2], *there.shape[2:-1], group.stored)
            for group in self.groups
        ]
