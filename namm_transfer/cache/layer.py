"""One layer of a `MemoryCache`: what its heads keep, how far each sequence is, and when the policy acts."""

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.report import Sequence
from namm_transfer.errors import NammTransferError
from namm_transfer.policy import EvictionPolicy

_THREAD = threading.local()


def opened_layer() -> "MemoryLayer | None":
    """The layer of this thread that has been given keys and still waits for its attention."""
    reference = getattr(_THREAD, "opened", None)
    return reference() if reference is not None else None


class MemoryLayer(CacheLayerMixin):
    """One layer's kept keys and values, their positions, and the policy's state of each token, in groups of heads."""

    is_sliding = False
    keys = values = None  # they are in the groups

    def __init__(self, policy: EvictionPolicy, index: int, layers: int) -> None:  # the base's would set keys and values
        self.policy = policy
        self.index = index
        self.layers = layers
        self.is_croppable = not policy.evicts
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        if opened_layer() is self:  # something ended a call between the keys and their attention
            self.release()
        self.groups: list[HeadGroup] = []
        self.is_initialized = False
        self.columns = 0
        self.padding: Tensor | None = None
        self.sequences: list[Sequence] = []
        self.spoiled = False
        self.pending: tuple[Tensor, Tensor] | None = None
        self.owner: weakref.ref[Any] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, heads, widths, dtype and device from the first keys and values."""
        batch, heads, _, self.width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        together = 1 if self.policy.by_head else heads
        slices = [slice(first, first + together) for first in range(0, heads, together)]
        self.groups = [HeadGroup(some, key_states, value_states, self.policy) for some in slices]
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
        expected = (len(self.sequences), self.groups[-1].heads.stop, self.width)
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
        for group in self.groups:
            group.storage.fit()
        self.release()

    # -- storage -----------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> list[int]:
        """Real tokens each sequence has processed."""
        return [sequence.clock for sequence in self.sequences]

    @property
    def positions(self) -> Tensor:
        """Original positions, (batch, kv_heads, stored) int32; -1 where a head or a sequence holds fewer."""
        most = max(group.stored for group in self.groups)
        return torch.cat([pad(group.positions, (most - group.stored, 0), value=-1) for group in self.groups], 1)

    @property
    def bytes(self) -> int:
        """What is really held, holes and the room to grow included."""
        return sum(group.storage.bytes for group in self.groups)

    def append(self, keys: Tensor, values: Tensor, sizes: list[int]) -> None:
        """Store the next block; of sequence b the first ``sizes[b]`` tokens are real, the rest become holes."""
        new = keys.shape[2]
        offsets = torch.arange(new, dtype=torch.int32, device=self.device)
        start = torch.tensor(self.clock, dtype=torch.int32, device=self.device)[:, None]
        positions, holes = start + offsets, min(sizes) < new
        if holes:
            lengths = torch.tensor(sizes, device=self.device)[:, None]
            positions = positions.masked_fill(offsets >= lengths, -1)
        for group in self.groups:
            group.append(keys, values, positions, holes)

    def advance(self, sizes: list[int]) -> None:
        """Count the block's real tokens; the holes of shorter sequences move from behind them to the older end."""
        for sequence, size in zip(self.sequences, sizes, strict=True):
            sequence.clock += size
            sequence.held += size
            sequence.peak = max(sequence.peak, sequence.held)
        if min(sizes) < max(sizes):
            for group in self.groups:
                group.keep(group.positions >= 0)

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
        counts = torch.cat([self._cut(group, due)[due] for group in self.groups], 1)
        for b, held in zip(due, counts.float().mean(-1).tolist(), strict=True):
            self.sequences[b].held = held
            self.sequences[b].history.append(held)

    def _cut(self, group: HeadGroup, due: list[int]) -> Tensor:
        """Let the policy act on a group; what is left, (batch, heads of the group)."""
        chosen = group.positions >= 0
        for update in sorted({len(self.sequences[b].history) for b in due}):
            rows = [b for b in due if len(self.sequences[b].history) == update]
            seen = [self.sequences[b].clock for b in rows]
            chosen[rows] &= self.policy.decide(group.view(self.index, self.layers, rows, seen, update))
        group.keep(chosen)
        return chosen.sum(-1)

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
        for group in self.groups:
            group.storage.select_rows(rows)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)
        self.sequences = [copy.deepcopy(self.sequences[b]) for b in rows.tolist()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the batch in another order, state and all (beam search)."""
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows of the batch."""
        if self.is_initialized:
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
            self.padding = None if min(lengths) == target else self.padding
        for sequence, length in zip(self.sequences, lengths, strict=True):
            sequence.clock, sequence.held = length, length
        self.columns = target
        limit = torch.tensor(lengths, device=self.device)[:, None, None]
        for group in self.groups:
            group.keep((group.positions >= 0) & (group.positions < limit))
