"""KV heads of one layer that are stored together: the kept tokens only, with positions and the policy's state of each.

The storage is dense, (batch, kv_heads, tokens, head_dim). Where sequences or heads hold different numbers of tokens,
the older end is filled with holes, which positions mark as -1 and attention masks. A policy that judges head by head
gets a group for each, so that a head which keeps little takes little.
"""

import torch
from torch import Tensor

from namm_transfer.cache.storage import TokenStorage, newest_last
from namm_transfer.policy import EvictionPolicy, LayerView

_STATE = "state."


class HeadGroup:
    """Some KV heads of a layer.

    Args:
        heads: which ones of the layer.
        keys, values: (batch, kv_heads of the layer, any, width), whose dtypes, device and widths are taken.
        policy: whose state is kept beside each token.
    """

    def __init__(self, heads: slice, keys: Tensor, values: Tensor, policy: EvictionPolicy) -> None:
        self.heads = heads
        self.policy = policy
        self.holes = False
        batch, count = keys[:, heads].shape[:2]
        tensors = {
            "keys": keys.new_empty(batch, count, 0, keys.shape[-1]),
            "values": values.new_empty(batch, count, 0, values.shape[-1]),
            "positions": torch.empty(batch, count, 0, dtype=torch.int32, device=keys.device),
        }
        state = policy.state(batch, count, 0, keys.device)
        self.storage = TokenStorage(tensors | {_STATE + name: tensor for name, tensor in state.items()}, 0)

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
        """Original positions, (batch, heads, stored) int32; -1 marks a hole."""
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
        """Tokens stored, holes included."""
        return self.storage.length

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, holes: bool) -> None:
        """Store the layer's next block, of which these heads take theirs.

        Args:
            keys, values: (batch, kv_heads of the layer, new, width).
            positions: (batch, new) int32, -1 behind the end of a shorter sequence.
            holes: whether there is any -1.
        """
        self.holes |= holes
        own = {"keys": keys[:, self.heads], "values": values[:, self.heads]}
        self.storage.append(positions.shape[-1], own | {"positions": positions[:, None]})

    def observe(self, rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """Show the policy rows over the first ``rows.shape[-1]`` stored tokens; newer ones get none of it."""
        views = self._state(rows.shape[-1])
        state = dict(views)
        self.policy.observe(state, rows, clock, sizes)
        for name, tensor in state.items():
            if tensor is not views.get(name):
                self.storage.put(_STATE + name, tensor)
        for name in views.keys() - state.keys():
            self.storage.drop(_STATE + name)

    def view(self, layer: int, layers: int, rows: list[int], seen: list[int], update: int) -> LayerView:
        """What the policy is to judge: these rows of the batch, which have seen so many tokens."""
        everything = len(rows) == len(self.positions)
        pick = (lambda t: t) if everything else (lambda t: t[rows])
        return LayerView(
            layer=layer,
            layers=layers,
            keys=pick(self.keys),
            values=pick(self.values),
            positions=pick(self.positions),
            state={name: pick(tensor) for name, tensor in self.state.items()},
            seen=seen,
            update=update,
            head=self.heads.start,
        )

    def keep(self, chosen: Tensor) -> None:
        """Keep the marked tokens, (batch, heads, stored) bool, in order; shorter rows get holes at the older end."""
        counts = chosen.sum(-1)
        least, most = counts.aminmax()
        width, self.holes = int(most), bool(least != most)
        if width == self.stored and not self.holes:
            return
        self.storage.compact(newest_last(chosen, width))
        if self.holes:
            hole = torch.arange(width, device=counts.device) < width - counts[..., None]
            self.positions.masked_fill_(hole, -1)
