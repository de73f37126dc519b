"""The layout of KV heads that keep different numbers of tokens, and the one gather that brings them there.

There are two layouts. While a prompt is read, heads of like length lie in a few dense groups, padded at the older end:
long blocks of queries are fastest so. Between calls, and while single tokens are decoded, the tokens that stood there
at the last update lie in pages of a few tokens, each page of one head, so that almost nothing is padding and a step
attends to all heads at once however long they are; the tokens since then are equally many in all heads, and dense.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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

    heads: Tensor
    """(rows,) int64: the KV head of each row."""
    back: Tensor
    """(rows,) int64: slots of the head from the beginning of the row to its newest token."""
    width: int
    """Slots of a row."""

    @classmethod
    def dense(cls, heads: list[int], width: int, device: torch.device) -> "Layout":
        """One row for each head."""
        index = torch.tensor(heads, device=device)
        return cls(index, torch.full_like(index, width), width)

    @classmethod
    def paged(cls, counts: list[int], token_bytes: int, device: torch.device) -> "Layout":
        """Pages for heads of these numbers of tokens, as large as the waste allows."""
        for width in _PAGE_TOKENS:
            pages = [-(-count // width) for count in counts]
            waste = (sum(pages) * width - sum(counts)) * token_bytes + 8 * sum(pages)
            if waste * _WASTE <= sum(counts) * token_bytes:
                break
        heads = [head for head, number in enumerate(pages) for _ in range(number)]
        back = [page * width for number in pages for page in range(number, 0, -1)]
        return cls(torch.tensor(heads, device=device), torch.tensor(back, device=device), width)


def like_lengths(counts: list[int], device: torch.device) -> list[Layout]:
    """A few dense groups of heads of like numbers of tokens."""
    groups: list[list[int]] = []
    for head in sorted(range(len(counts)), key=lambda h: -counts[h]):
        if groups and (len(groups) == _GROUPS or counts[head] >= _LIKE * counts[groups[-1][0]]):
            groups[-1].append(head)
        else:
            groups.append([head])
    return [Layout.dense(sorted(heads), counts[heads[0]], device) for heads in groups]


class Arrangement:
    """Chosen tokens of a layer in the order of their heads and positions, ready to be laid out anew.

    Args:
        groups: where the tokens are.
        chosen: for each group, which of its slots to take, (batch, rows, stored) bool; None: all tokens.
        kv_heads: number of KV heads of the layer.
    """

    def __init__(self, groups: list[HeadGroup], chosen: list[Tensor] | None, kv_heads: int) -> None:
        self.groups = groups
        positions = torch.cat([group.positions.flatten(1) for group in groups], 1)
        take = positions >= 0 if chosen is None else torch.cat([some.flatten(1) for some in chosen], 1)
        heads = torch.cat([group.heads.repeat_interleave(group.stored) for group in groups])
        place = ((heads << 32) + positions).masked_fill(~take, torch.iinfo(torch.int64).max)
        self.order = place.argsort(-1)
        """(batch, slots) int64: the chosen slots first, by head and position."""
        self.counts = torch.zeros(len(positions), kv_heads, dtype=torch.int64, device=heads.device)
        """(batch, kv_heads) int64: chosen tokens."""
        self.counts.index_add_(1, heads, take.long())
        self.longest: list[int] = self.counts.amax(0).tolist()
        """Chosen tokens of each head, in the sequence that has most."""

    def _slots(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return for each slot of a layout, (batch, rows, width), the slot its token comes from and if there is one."""
        rank = (self.counts[:, layout.heads] - layout.back)[..., None] + torch.arange(
            layout.width, device=layout.heads.device
        )
        first = (self.counts.cumsum(-1) - self.counts)[:, layout.heads, None]
        index = (first + rank.clamp_min(0)).clamp_max(self.order.shape[1] - 1)
        return self.order.gather(1, index.flatten(1)).view_as(rank), rank >= 0

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
        return HeadGroup(layout.heads.clone(), storage, padding_slots=not bool(real.all()))

    def _gather(self, name: str, index: Tensor) -> Tensor:
        """A tensor's tokens, by the slots they come from."""
        axis = token_axis(name)
        flat = torch.cat([part.movedim(axis, 2).flatten(1, 2) for part in self._parts(name)], 1)
        first = torch.arange(len(flat), device=flat.device)[:, None, None] * flat.shape[1]
        taken = flat.flatten(0, 1).index_select(0, (first + index).flatten())
        return taken.view(*index.shape, *flat.shape[2:]).movedim(2, axis).contiguous()

    def _parts(self, name: str) -> list[Tensor]:
        """A tensor's part in each group; zeros where a group has none, since its policy has not made any yet."""
        there = next(group.storage.view(name) for group in self.groups if name in group.storage.names)
        return [
            group.storage.view(name)
            if name in group.storage.names
            else there.new_zeros(*group.positions.shape[:2], *there.shape[2:-1], group.stored)
            for group in self.groups
        ]
