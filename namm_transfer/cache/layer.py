"""One layer of a `MemoryCache`: what its heads keep, how far each sequence is, and when the policy acts.

The protocol of a forward call is explained in `namm_transfer.cache`.
"""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from namm_transfer.cache.device import on_device
from namm_transfer.cache.guard import guarded
from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.masks import ColumnCount
from namm_transfer.cache.pages import Arrangement, Chosen, Layout, like_lengths
from namm_transfer.cache.report import Sequence
from namm_transfer.errors import NammTransferError, UnservedAttribute
from namm_transfer.policy import EvictionPolicy

PAGED_QUERIES = 16
"""Calls of so many tokens attend to pages; longer ones are faster over dense groups."""
_SPARE = 80
"""Tokens of a layer in pages for one token of room beside them."""


class ModuleReference(weakref.ref[nn.Module]):
    """A weak reference that copies share and that pickle leaves out, since a module belongs to its process."""

    def __deepcopy__(self, memo: dict[int, object]) -> "ModuleReference":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@dataclass(eq=False)
class Handover:
    """Keys and values that a layer has given to the model and that the memory attention has not taken yet."""

    layer: "MemoryLayer"
    keys: Tensor
    """(batch, kv_heads, new, head_dim)."""
    values: Tensor
    """(batch, kv_heads, new, value_dim)."""


class MemoryLayer(CacheLayerMixin):
    """One layer's kept keys and values, their positions, and the policy's state of each token.

    All heads lie in one group, unless the policy judges them one by one: see `namm_transfer.cache.pages`.
    """

    is_sliding = False

    def __init__(self, policy: EvictionPolicy, index: int, layers: int) -> None:  # the base's would set keys and values
        self.policy = policy
        self.index = index
        self.layers = layers
        self.on_update: Any = None  # a function that is called with the layer after each update, see History
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        self.groups: list[HeadGroup] = []
        self.paged = False
        """True if the first group holds pages of the tokens kept at the last update, the second one newer tokens."""
        self.uneven = False
        """True if heads may hold different numbers of tokens."""
        self.is_initialized = False
        self.columns = 0
        self.calls = 0  # that went through this layer
        self.padding: Tensor | None = None
        self.sequences: list[Sequence] = []
        self.handover: Handover | None = None
        self.reader: ModuleReference | None = None
        """The attention module that reads this layer."""
        self.is_frozen = False  # see MemoryCache.freeze

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, heads, widths, dtype and device from the first keys and values."""
        with torch.inference_mode(False):
            heads = torch.arange(key_states.shape[1], device=key_states.device)
        group = HeadGroup.empty(heads, key_states, value_states, self.policy)
        self.restore([group], [Sequence() for _ in range(len(key_states))], paged=False)
        self.uneven = False

    def restore(self, groups: list[HeadGroup], sequences: list[Sequence], *, paged: bool) -> None:
        """Take stored heads and the counts of their sequences."""
        self.groups, self.sequences, self.paged, self.uneven = groups, sequences, paged, self.policy.by_head
        self.width, self.dtype, self.device = groups[0].keys.shape[-1], groups[0].keys.dtype, groups[0].keys.device
        self.kv_heads = sum(len(group.heads) for group in (groups[1:] if paged else groups))
        self.is_initialized = True

    # -- one forward call: update() opens it, the memory attention closes it -----------------------------------------

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take a call's new keys and values, (batch, kv_heads, new, head_dim), and return them guarded.

        They are stored by the memory attention, which finds this layer through the guarded tensors.
        """
        self._expect(key_states, value_states)
        self.handover = Handover(self, key_states, value_states)
        refusal = (
            f"layer {self.index} of a MemoryCache gave out keys and values that no memory attention read, but other "
            'code: load the model with attn_implementation="memory"; a model that attends to other keys than it cached '
            "(rebuilt, repeated or shared between layers) cannot be served"
        )
        return guarded(key_states, self.handover, refusal), guarded(value_states, self.handover, refusal)

    def _expect(self, key_states: Tensor, value_states: Tensor) -> None:
        """Refuse keys of another shape or dtype than the stored ones; the first ones decide what is stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        expected = (len(self.sequences), self.kv_heads, self.width)
        if (*key_states.shape[:2], key_states.shape[-1]) != expected or key_states.dtype != self.dtype:
            raise NammTransferError(
                f"layer {self.index} holds {self.dtype} (batch, kv_heads, head_dim) {expected} and was given "
                f"{key_states.dtype} {(*key_states.shape[:2], key_states.shape[-1])}: one MemoryCache serves one model "
                "and one batch; make a new one or reset() it"
            )
        if key_states.device != self.device:  # a loaded cache meets its model
            self.device = key_states.device
            for group in self.groups:
                group.to(self.device)

    def extend(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Store a call's keys and values at once and return all of the layer, (batch, kv_heads, stored, width)."""
        self._expect(key_states, value_states)
        batch, new, group = len(self.sequences), key_states.shape[2], self.groups[0]
        positions = torch.arange(self.columns, self.columns + new, dtype=torch.int32, device=self.device)
        group.append(key_states, value_states, positions.expand(batch, new), padding_slots=False)
        self.advance([new] * batch)
        self.close(None, new)
        return group.keys, group.values

    def close(self, padding: Tensor | None, new: int) -> None:
        """End the call, whose attention is done: count its columns."""
        self.columns += new
        self.calls += 1
        self.padding = padding
        self.pack()
        for group in self.groups:
            group.storage.fit()
        self.handover = None

    # -- storage -----------------------------------------------------------------------------------------------------

    @property
    def seen(self) -> list[int]:
        """Real tokens each sequence has processed."""
        return [sequence.seen for sequence in self.sequences]

    @property
    def positions(self) -> Tensor:
        """Original positions, (batch, kv_heads, tokens) int32 ascending; -1 where a head of a sequence holds fewer."""
        found = self._arrangement()
        return found.positions(Layout.dense(list(range(self.kv_heads)), max(found.longest)))

    @property
    def bytes(self) -> int:
        """Bytes really held, padding slots and the room to grow included."""
        return sum(group.storage.bytes for group in self.groups)

    def record(self, *tensors: Tensor) -> bool:
        """Begin a call with these queries, keys and values: find out whether autograd records it."""
        recording = torch.is_grad_enabled() and (
            any(tensor.requires_grad for tensor in tensors) or any(g.storage.requires_grad for g in self.groups)
        )
        for group in self.groups:
            group.storage.record(recording)
        if self.paged and (recording or tensors[0].shape[2] > PAGED_QUERIES):
            self._lay_out()
        return recording

    def _arrangement(self, chosen: Chosen | None = None) -> Arrangement:
        """The chosen tokens, by default all, ready to be laid out anew."""
        return Arrangement(self.groups, chosen or Chosen.of(self.groups, self.kv_heads))

    def _lay_out(self, chosen: Chosen | None = None) -> None:
        """Bring the chosen tokens, by default all, into dense groups of heads of like length."""
        found = self._arrangement(chosen)
        self.groups = [found.laid_out(layout) for layout in like_lengths(found.longest)]
        self.paged, self.uneven = False, len(set(found.longest)) > 1

    def pack(self) -> None:
        """Bring heads of different lengths into pages, unless autograd records."""
        if not self.uneven or self.paged or self.groups[0].storage.recording:
            return
        found = self._arrangement()
        self.uneven = len(set(found.longest)) > 1
        if self.uneven:
            layout = Layout.paged(found.longest, self.groups[0].token_bytes)
            pages = found.laid_out(layout)
            with torch.inference_mode(False):
                heads = torch.arange(self.kv_heads, device=self.device)
            recent = HeadGroup.empty(heads, pages.keys, pages.values, self.policy)
            recent.storage.spare = sum(found.longest) // (_SPARE * self.kv_heads)
            self.groups, self.paged = [pages, recent], True
            pages.storage.trim()

    @property
    def growing(self) -> list[HeadGroup]:
        """The groups that new tokens go to."""
        return self.groups[1:] if self.paged else self.groups

    def append(self, keys: Tensor, values: Tensor, lengths: list[int]) -> None:
        """Store the next block; of sequence b the first ``lengths[b]`` tokens are real, the rest are padding slots."""
        new = keys.shape[2]
        offsets = torch.arange(new, dtype=torch.int32, device=self.device)
        positions, padding_slots = on_device(self.seen, self.device)[:, None] + offsets, min(lengths) < new
        if padding_slots:
            positions = positions.masked_fill(offsets >= on_device(lengths, self.device)[:, None], -1)
        for group in self.growing:
            group.append(keys, values, positions, padding_slots)

    def advance(self, lengths: list[int]) -> None:
        """Count the block's real tokens; padding slots of shorter sequences move from behind them to the older end."""
        for sequence, length in zip(self.sequences, lengths, strict=True):
            sequence.seen += length
            sequence.held += length
            sequence.peak = max(sequence.peak, sequence.held)
        if min(lengths) < max(lengths):
            for group in self.growing:
                group.keep(group.positions >= 0)

    def evict(self, window: int | None = None) -> None:
        """Let the policy act on the sequences that have seen a multiple of its update interval.

        Args:
            window: the layer's sliding window in tokens, or None. Tokens that have left it, which no later query can
                see, go before the policy is asked.
        """
        if self.is_frozen:
            return
        interval = self.policy.update_interval
        due = [
            b
            for b, sequence in enumerate(self.sequences)
            if sequence.seen % interval == 0 and len(sequence.history) < sequence.seen // interval
        ]
        if not due:
            return
        if self.paged:
            self._lay_out()
        if window is not None:
            self._leave_window(due, window)
        chosen = Chosen.of(self.groups, self.kv_heads, [self._chosen(group, due) for group in self.groups])
        for b in due:
            sizes = chosen.sizes[b]
            self.sequences[b].note(sizes, float(torch.tensor(sizes, dtype=torch.float32).mean()))
        if self.policy.by_head:
            self._lay_out(chosen)
        else:
            self.groups[0].keep(chosen.marks[0], chosen.sizes)
        if self.on_update is not None:
            self.on_update(self)

    def _leave_window(self, due: list[int], window: int) -> None:
        """Remove what lies so far back in these sequences that no later query sees it; the newest token stays."""
        gone = [max(s.seen - max(window, 2), -1) if b in due else -1 for b, s in enumerate(self.sequences)]
        if max(gone) >= 0:
            last = on_device(gone, self.device)[:, None, None]
            for group in self.groups:
                group.keep(group.positions > last)

    def _chosen(self, group: HeadGroup, due: list[int]) -> Tensor:
        """The tokens of a group that stay, (batch, heads of the group, stored) bool, after the policy has acted."""
        chosen = group.positions >= 0
        for update in sorted({len(self.sequences[b].history) for b in due}):
            rows = [b for b in due if len(self.sequences[b].history) == update]
            seen = [self.sequences[b].seen for b in rows]
            view = group.view(self.index, self.layers, rows, seen, update, self.policy.by_head)
            with torch.no_grad():
                stay = self.policy.decide(view).reshape(len(rows), *chosen.shape[1:])
                if len(rows) == len(chosen):
                    return chosen & stay
                chosen[rows] &= stay
        return chosen

    # -- what transformers asks of a cache layer ---------------------------------------------------------------------

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        """Not served: heads and sequences hold different numbers of tokens."""
        raise UnservedAttribute(
            "a layer of a MemoryCache has no tensor of keys or of values, since its heads hold different tokens: use "
            "MemoryCache.positions or .report; a model that reads its cache by itself cannot be served"
        )

    values = keys

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """True if tokens can be taken back, which needs a policy that evicts none."""
        return not self.policy.evicts

    @property
    def batch_size(self) -> int:
        """Sequences in the batch; none before the first call."""
        if not self.is_initialized:
            raise UnservedAttribute("the cache is empty: nothing has gone through the model yet")
        return len(self.sequences)

    def get_seq_length(self) -> int:
        """Columns seen, padding and evicted tokens included; positions come from it."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Mask columns, all seen and the new ones, and their offset 0; the count says that a `MemoryCache` asked."""
        return ColumnCount(self.columns + query_length), 0

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.11

    def offload(self) -> None:
        """Not served."""
        raise NammTransferError("a MemoryCache cannot be offloaded: its policy keeps it small instead")

    prefetch = offload

    def select_rows(self, rows: Tensor) -> None:
        """Put these rows of the batch, (rows,) int64, in the place of the present ones, state and all."""
        if not self.is_initialized:
            return
        rows = rows.to(self.device)
        for group in self.groups:
            group.storage.select_rows(rows)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows.to(self.padding.device))
        self.sequences = [copy.deepcopy(self.sequences[b]) for b in rows.tolist()]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest columns: minus their number or, as older transformers say, the length to come down to.

        Raises:
            NammTransferError: the policy evicts.
        """
        refuse_to_crop(self.policy)
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
            sequence.seen, sequence.held = length, length
        self.columns = target
        limit = torch.tensor(lengths, device=self.device)[:, None, None]
        for group in self.groups:
            group.keep((group.positions >= 0) & (group.positions < limit))


def refuse_to_crop(policy: EvictionPolicy) -> None:
    """Raise a `NammTransferError` if tokens of a cache under this policy cannot be taken back."""
    if policy.evicts:
        raise NammTransferError(
            f"a cache under {type(policy).__name__} cannot be cropped, since evicted tokens do not come back; "
            "assisted decoding and rollback need the full policy"
        )
