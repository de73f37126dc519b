"""Rows of tokens that are stored together: positions and the policy's state beside keys and values, kept tokens only.

The storage is dense, (batch, rows, tokens, head_dim). A row is a KV head or, in `pages`, a part of one. Where sequences
or heads hold different numbers of tokens, the older end is filled with padding slots, which positions mark as -1 and
attention masks.
"""

import torch
from torch import Tensor

from namm_transfer.cache.device import Block, Part, Spans, fold, on_device
from namm_transfer.cache.storage import TokenStorage, newest_last
from namm_transfer.policy import EvictionPolicy, LayerView
from namm_transfer.spectrogram import HOP
from namm_transfer.statistics import Spectrum

_STATE = "state."


class HeadGroup:
    """Some KV heads of a layer, or their pages.

    Args:
        heads: (rows,) int64, the KV head of each row; ascending if these are all of the layer's heads.
        storage: tensors ``keys``, ``values``, ``positions`` and the policy's state, named ``state.*``.
        padding_slots: whether any position is -1.
    """

    def __init__(self, heads: Tensor, storage: TokenStorage, padding_slots: bool = False) -> None:
        self.heads = heads
        self.storage = storage
        self.padding_slots = padding_slots
        self._spans: Spans | None = None

    @classmethod
    def empty(cls, heads: Tensor, keys: Tensor, values: Tensor, policy: EvictionPolicy) -> "HeadGroup":
        """A group without tokens.

        Args:
            heads: (rows,) int64.
            keys, values: (batch, any, any, width), whose batch size, dtypes, device and widths are taken.
            policy: whose state will be kept beside each token.
        """
        batch, count = len(keys), len(heads)
        tensors = {
            "keys": keys.new_empty(batch, count, 0, keys.shape[-1]),
            "values": values.new_empty(batch, count, 0, values.shape[-1]),
            "positions": torch.empty(batch, count, 0, dtype=torch.int32, device=keys.device),
        }
        state = policy.state(batch, count, 0, keys.device)
        storage = TokenStorage(tensors | {_STATE + name: tensor for name, tensor in state.items()}, 0)
        return cls(heads, storage)

    @property
    def keys(self) -> Tensor:
        """(batch, heads, stored, head_dim)."""
        return self.storage.view("keys")

    @property
    def values(self) -> Tensor:
        """(batch, heads, stored, value_dim)."""
        return self.storage.view("values")

    @property
    def positions(self) -> Tensor:
        """Original positions, (batch, heads, stored) int32; -1 marks a padding slot."""
        return self.storage.view("positions")

    @property
    def state(self) -> dict[str, Tensor]:
        """The policy's state of each token, (batch, heads, ..., stored)."""
        return self._state(self.stored)

    def _state(self, tokens: int) -> dict[str, Tensor]:
        names = [name for name in self.storage.names if name.startswith(_STATE)]
        return {name.removeprefix(_STATE): self.storage.view(name, tokens) for name in names}

    @property
    def stored(self) -> int:
        """Tokens stored, padding slots included."""
        return self.storage.length

    @property
    def token_bytes(self) -> int:
        """Bytes of a stored token of one row, or of a padding slot."""
        views = (self.storage.view(name) for name in self.storage.names)
        return sum(view.nbytes for view in views) // max(1, self.positions.numel())

    def to(self, device: torch.device) -> None:
        """Move the group to another device."""
        self.heads, self._spans = self.heads.to(device), None
        self.storage.to(device)

    def own(self, tensor: Tensor) -> Tensor:
        """These heads' part of (batch, kv_heads of the layer, ...)."""
        return tensor if len(self.heads) == tensor.shape[1] else tensor.index_select(1, self.heads)

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, padding_slots: bool) -> None:
        """Store the layer's next block, of which these heads take theirs.

        Args:
            keys, values: (batch, kv_heads of the layer, new, width).
            positions: (batch, new) int32, -1 behind the end of a shorter sequence.
            padding_slots: whether there is any -1.
        """
        self.padding_slots |= padding_slots
        own = {"keys": self.own(keys), "values": self.own(values)}
        self.storage.append(positions.shape[-1], own | {"positions": positions[:, None]})

    def observe(
        self, policy: EvictionPolicy, weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Show the policy attention weights over the oldest ``weights.shape[-1]`` stored tokens."""
        views = self._state(weights.shape[-1])
        state = dict(views)
        policy.observe(state, weights, tokens_seen, query_lengths)
        for name, tensor in state.items():
            if tensor is not views.get(name):
                self.storage.put(_STATE + name, tensor)
        for name in views.keys() - state.keys():
            self.storage.drop(_STATE + name)

    def part(self, kv_heads: int, own: int) -> Part:
        """The stored tokens as a GPU's kernels take them; the newest ``own`` of each row are the queries' own, and
        without any the rows are pages of a layer of so many KV heads."""
        if self._spans is None:
            self._spans = Spans.dense(self.heads) if own else Spans.paged(self.heads, kv_heads)
        return Part(self.keys, self.values, self.positions, self._spans, own)

    def fold(self, policy: EvictionPolicy, block: Block, lse: Tensor, part: Part) -> None:
        """Fold attention weights into the policy's state without writing them: `observe` on a GPU."""
        statistic = policy.computed_statistic
        assert statistic is not None, "`device.serves` asks for one"
        inside = False
        if isinstance(statistic, Spectrum):
            inside = any((seen + length) % HOP for seen, length in zip(block.seen, block.lengths, strict=True))
            if inside and "pending" not in self.state:
                self.storage.put(_STATE + "pending", torch.zeros_like(self.state["tail"]))
        fold(statistic, self.state, block, lse, part, policy.attention_dtype)
        if not inside and "pending" in self.state:
            self.storage.drop(_STATE + "pending")

    def view(self, layer: int, layers: int, rows: list[int], seen: list[int], update: int, by_head: bool) -> LayerView:
        """Return the policy's view of these rows of the batch, which have seen so many tokens."""
        batch, heads = len(rows), len(self.heads)

        def shown(tensor: Tensor) -> Tensor:
            some = tensor if batch == len(tensor) else tensor[rows]
            return some.flatten(0, 1).unsqueeze(1) if by_head else some

        return LayerView(
            layer=layer,
            layers=layers,
            heads=shown(self.heads.expand(len(self.positions), heads)),
            keys=shown(self.keys),
            values=shown(self.values),
            positions=shown(self.positions),
            state={name: shown(tensor) for name, tensor in self.state.items()},
            seen=[s for s in seen for _ in range(heads)] if by_head else seen,
            update=update,
        )

    def keep(self, chosen: Tensor, sizes: list[list[int]] | None = None) -> None:
        """Keep the marked tokens, (batch, heads, stored) bool, in order; shorter rows get padding slots in front.

        Args:
            sizes: number of marked tokens by sequence and head; without it, the device is asked.
        """
        counts = [count for row in (chosen.sum(-1).tolist() if sizes is None else sizes) for count in row]
        width = max(counts)
        self.padding_slots = min(counts) < width
        if width == self.stored and not self.padding_slots:
            return
        self.storage.compact(newest_last(chosen, width))
        if self.padding_slots:
            held = on_device(counts, chosen.device).view(*chosen.shape[:2], 1)
            unused = torch.arange(width, device=chosen.device) < width - held
            self.positions.masked_fill_(unused, -1)
