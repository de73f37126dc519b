"""One layer of a `MemoryCache`: the kept tokens only, with their positions and the policy's state of each.

The storage is dense, (batch, kv_heads, tokens, head_dim). Where sequences or heads hold different numbers of tokens,
the older end is filled with holes, which positions mark as -1 and attention masks.
"""

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from namm_transfer.errors import NammTransferError
from namm_transfer.memory_report import Sequence
from namm_transfer.policy import EvictionPolicy, LayerView
from namm_transfer.storage import TokenStorage

_STATE = "state."
_THREAD = threading.local()


def opened_layer() -> "MemoryLayer | None":
    """The layer of this thread that has been given keys and still waits for its attention."""
    reference = getattr(_THREAD, "opened", None)
    return reference() if reference is not None else None


class MemoryLayer(CacheLayerMixin):
    """One layer's kept keys and values, their positions, and the policy's state of each token."""

    is_sliding = False

    def __init__(self, policy: EvictionPolicy, index: int) -> None:  # the base's would set keys and values
        self.policy = policy
        self.index = index
        self.is_croppable = not policy.evicts
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        nothing = dict.fromkeys(("keys", "values", "positions"), torch.empty(0, 0, 0, 0))
        self.storage = TokenStorage(nothing, 0)
        self.is_initialized = False
        self.columns = 0
        self.padding: Tensor | None = None
        self.sequences: list[Sequence] = []
        self.holes = False
        self.spoiled = False
        self.pending: tuple[Tensor, Tensor] | None = None
        self.owner: weakref.ref[Any] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, heads, widths, dtype and device from the first keys and values."""
        batch, heads = key_states.shape[:2]
        self.dtype, self.device = key_states.dtype, key_states.device
        tensors = {
            "keys": key_states.new_empty(batch, heads, 0, key_states.shape[-1]),
            "values": value_states.new_empty(batch, heads, 0, value_states.shape[-1]),
            "positions": torch.empty(batch, heads, 0, dtype=torch.int32, device=self.device),
        }
        state = self.policy.state(batch, heads, 0, self.device)
        self.storage = TokenStorage(tensors | {_STATE + name: tensor for name, tensor in state.items()}, 0)
        self.sequences = [Sequence() for _ in range(batch)]
        self.is_initialized = True

    # -- one forward call: update() opens the layer, the memory attention closes it ----------------------------------

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take a call's new keys and values, (batch, kv_heads, new, head_dim); returned as they are.

        They reach the cache in the memory attention, which finds this layer by the returned key tensor.
        """
        waiting = self if self.pending is not None else opened_layer()
        if waiting is self or (waiting is not None and waiting.index < self.index):
            waiting.release()
            raise NammTransferError(
                f"layer {waiting.index} of a MemoryCache was given keys that no memory attention read: load the model "
                'with attn_implementation="memory" (a model whose attention does its own thing cannot be served; a '
                "cache left by an error in mid-forward cannot be used on)"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        expected = (*self.keys.shape[:2], self.keys.shape[-1])
        if (*key_states.shape[:2], key_states.shape[-1]) != expected or key_states.dtype != self.dtype:
            raise NammTransferError(
                f"layer {self.index} holds {self.dtype} (batch, kv_heads, head_dim) {expected} and was given "
                f"{key_states.dtype} {(*key_states.shape[:2], key_states.shape[-1])}: one MemoryCache serves one model "
                "and one batch; make a new one or reset() it"
            )
        self.pending = (key_states, value_states)
        key_states.memory_layer = self  # type: ignore[attr-defined]
        _THREAD.opened = weakref.ref(self)
        return key_states, value_states

    def release(self) -> None:
        """The layer no longer waits for its attention."""
        self.pending = None
        _THREAD.opened = None

    def close(self, padding: Tensor | None, new: int) -> None:
        """The call's attention is done: count its columns."""
        self.columns += new
        self.padding = padding
        self.spoiled = False
        self.storage.fit()
        self.release()

    # -- storage -----------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> list[int]:
        """Real tokens each sequence has processed."""
        return [sequence.clock for sequence in self.sequences]

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        """(batch, kv_heads, stored, head_dim)."""
        return self.storage.view("keys")

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """(batch, kv_heads, stored, value_dim)."""
        return self.storage.view("values")

    @property
    def positions(self) -> Tensor:
        """Original positions, (batch, kv_heads, stored) int32; -1 marks a hole."""
        return self.storage.view("positions")

    @property
    def state(self) -> dict[str, Tensor]:
        """The policy's state of each token, (batch, kv_heads, ..., stored)."""
        return self._state(self.stored)

    def _state(self, tokens: int) -> dict[str, Tensor]:
        names = [name for name in self.storage.names if name.startswith(_STATE)]
        return {name.removeprefix(_STATE): self.storage.view(name, tokens) for name in names}

    @property
    def stored(self) -> int:
        """Tokens stored, holes included."""
        return self.storage.length

    def append(self, keys: Tensor, values: Tensor, sizes: list[int]) -> None:
        """Store the next block; of sequence b the first ``sizes[b]`` tokens are real, the rest become holes."""
        heads, new = keys.shape[1:3]
        offsets = torch.arange(new, dtype=torch.int32, device=self.device)
        start = torch.tensor(self.clock, dtype=torch.int32, device=self.device)[:, None]
        positions = start + offsets
        if min(sizes) < new:
            lengths = torch.tensor(sizes, device=self.device)[:, None]
            positions = positions.masked_fill(offsets >= lengths, -1)
            self.holes = True
        positions = positions[:, None].expand(-1, heads, -1)
        self.storage.append(new, {"keys": keys, "values": values, "positions": positions})

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

    def advance(self, sizes: list[int]) -> None:
        """Count the block's real tokens; the holes of shorter sequences move from behind them to the older end."""
        for sequence, size in zip(self.sequences, sizes, strict=True):
            sequence.clock += size
            sequence.held += size
            sequence.peak = max(sequence.peak, sequence.held)
        if min(sizes) < max(sizes):
            self._gather(self.positions >= 0)

    def evict(self) -> None:
        """Let the policy act on the sequences whose clock stands at an update."""
        interval = self.policy.update_interval
        due = [
            b
            for b, sequence in enumerate(self.sequences)
            if sequence.clock % interval == 0 and len(sequence.history) < sequence.clock // interval
        ]
        if not due:
            return
        keep = self.positions >= 0
        for update in sorted({len(self.sequences[b].history) for b in due}):
            rows = [b for b in due if len(self.sequences[b].history) == update]
            keep[rows] &= self.policy.select(self._view(rows, update))
        self._gather(keep)
        for b, held in zip(due, keep[due].sum(-1).float().mean(-1).tolist(), strict=True):
            self.sequences[b].held = held
            self.sequences[b].history.append(held)

    def _view(self, rows: list[int], update: int) -> LayerView:
        everything = len(rows) == len(self.sequences)
        pick = (lambda t: t) if everything else (lambda t: t[rows])
        return LayerView(
            layer=self.index,
            keys=pick(self.keys),
            positions=pick(self.positions),
            state={name: pick(tensor) for name, tensor in self.state.items()},
            seen=[self.sequences[b].clock for b in rows],
            update=update,
        )

    def _gather(self, keep: Tensor) -> None:
        """Keep the marked tokens in order, for real; shorter heads get holes at the older end."""
        counts = keep.sum(-1)
        least, most = counts.aminmax()
        width, self.holes = int(most), bool(least != most)
        if width == self.stored and not self.holes:
            return
        index = keep.to(torch.uint8).argsort(dim=-1, stable=True)[..., keep.shape[-1] - width :]
        self.storage.compact(index)
        if self.holes:
            hole = torch.arange(width, device=self.device) < width - counts[..., None]
            self.positions.masked_fill_(hole, -1)

    # -- what transformers asks of a cache layer ---------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Columns seen, padding and evicted tokens included; positions come from it."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Mask columns: all seen and the new ones; the memory attention maps them to what is stored."""
        return self.columns + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.11

    def _select_rows(self, rows: Tensor) -> None:
        if not self.is_initialized:
            return
        rows = rows.to(self.device)
        self.storage.select_rows(rows)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)
        self.sequences = [copy.deepcopy(self.sequences[b]) for b in rows.tolist()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the batch in another order, state and all (beam search)."""
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows of the batch."""
        self._select_rows(torch.arange(len(self.sequences))[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        self._select_rows(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest columns: minus their number or, as older transformers say, the length to come down to."""
        target = self.columns + tokens_to_remove if tokens_to_remove < 0 else tokens_to_remove
        if not self.is_initialized or tokens_to_remove == 0 or target >= self.columns:
            return
        target = max(target, 0)
        if self.padding is None:
            lengths = [target] * len(self.sequences)
        else:
            self.padding = self.padding[:, :target]
            lengths = self.padding.sum(-1).tolist()
        for sequence, length in zip(self.sequences, lengths, strict=True):
            sequence.clock, sequence.held = length, length
        self.columns = target
        limit = torch.tensor(lengths, device=self.device)[:, None, None]
        self._gather((self.positions >= 0) & (self.positions < limit))
