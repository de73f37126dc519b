"""MemoryCache: a transformers cache whose layers hold the kept tokens only, with their positions and policy state.

The storage is dense, (batch, kv_heads, tokens, head_dim). Where sequences or heads hold different numbers of tokens,
the older end is filled with holes, which positions mark as -1 and attention masks.
"""

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from namm_transfer.errors import NammTransferError
from namm_transfer.memory_report import MemoryReport, Sequence
from namm_transfer.policy import EvictionPolicy, LayerView

_SERVED_LAYERS = ("full_attention", "sliding_attention")
_THREAD = threading.local()


def opened_layer() -> "MemoryLayer | None":
    """The layer of this thread that has been given keys and still waits for its attention."""
    reference = getattr(_THREAD, "opened", None)
    return reference() if reference is not None else None


class MemoryLayer(CacheLayerMixin):
    """One layer's kept keys and values, their positions, and the policy's state of each token."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, policy: EvictionPolicy, index: int) -> None:
        super().__init__()
        self.policy = policy
        self.index = index
        self.is_croppable = not policy.evicts
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        self.keys = self.values = torch.empty(0)
        self.is_initialized = False
        self.columns = 0
        self.padding: Tensor | None = None
        self.sequences: list[Sequence] = []
        self.state: dict[str, Tensor] = {}
        self.holes = False
        self.spoiled = False
        self.pending: tuple[Tensor, Tensor] | None = None
        self.owner: weakref.ref[Any] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, heads, widths, dtype and device from the first keys and values."""
        batch, heads = key_states.shape[:2]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.positions = torch.empty(batch, heads, 0, dtype=torch.int32, device=self.device)
        self.state = self.policy.state(batch, heads, 0, self.device)
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
        self.release()

    # -- storage -----------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> list[int]:
        """Real tokens each sequence has processed."""
        return [sequence.clock for sequence in self.sequences]

    @property
    def stored(self) -> int:
        """Tokens the storage has room for, holes included."""
        return self.positions.shape[-1]

    def append(self, keys: Tensor, values: Tensor, sizes: list[int]) -> None:
        """Store the next block; of sequence b the first ``sizes[b]`` tokens are real, the rest become holes."""
        batch, heads, new, _ = keys.shape
        offsets = torch.arange(new, dtype=torch.int32, device=self.device)
        start = torch.tensor(self.clock, dtype=torch.int32, device=self.device)[:, None]
        positions = start + offsets
        if min(sizes) < new:
            lengths = torch.tensor(sizes, device=self.device)[:, None]
            positions = positions.masked_fill(offsets >= lengths, -1)
            self.holes = True
        self.keys = torch.cat([self.keys, keys], dim=-2)
        self.values = torch.cat([self.values, values], dim=-2)
        self.positions = torch.cat([self.positions, positions[:, None].expand(-1, heads, -1)], dim=-1)
        fresh = self.policy.state(batch, heads, new, self.device)
        for name, old in self.state.items():
            block = fresh[name] if name in fresh else old.new_zeros(*old.shape[:-1], new)
            self.state[name] = torch.cat([old, block], dim=-1)

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
        batch, heads, tokens = keep.shape
        offset = torch.arange(batch * heads, device=self.device).view(batch, heads, 1) * tokens
        flat = (index + offset).flatten()
        self.keys, self.values = (
            tensor.reshape(-1, tensor.shape[-1])[flat].view(batch, heads, width, tensor.shape[-1])
            for tensor in (self.keys, self.values)
        )
        self.positions = self.positions.gather(-1, index)
        if self.holes:
            hole = torch.arange(width, device=self.device) < width - counts[..., None]
            self.positions = self.positions.masked_fill(hole, -1)
        for name, tensor in self.state.items():
            middle = tensor.shape[2:-1]
            where = index.view(batch, heads, *(1 for _ in middle), width).expand(batch, heads, *middle, width)
            self.state[name] = tensor.gather(-1, where)

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
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        self.positions = self.positions.index_select(0, rows)
        self.state = {name: tensor.index_select(0, rows) for name, tensor in self.state.items()}
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


class MemoryCache(Cache):
    """A key/value cache that a policy keeps small; give it to a model as ``past_key_values``.

    Args:
        config: the model's configuration (of a composite model, its text decoder's is used); the model must have been
            loaded with ``attn_implementation="memory"``.
        policy: an `EvictionPolicy`, for example a `NAMM` or ``policies.make("h2o:keep=0.5")``.

    Raises:
        NammTransferError: the model cannot be served exactly, or ``policy`` is none.
    """

    layers: list[MemoryLayer]  # type: ignore[assignment]

    def __init__(self, config: PreTrainedConfig, *, policy: EvictionPolicy) -> None:
        text = config.get_text_config(decoder=True)
        if not isinstance(policy, EvictionPolicy):
            raise NammTransferError(f"policy={policy!r}: expected an EvictionPolicy, for example policies.make('h2o')")
        if policy.match is not None:
            raise NammTransferError(
                f"match={policy.match!r} is not resolved: an evaluator does it, or policies.with_schedule(policy, ...)"
            )
        if getattr(config, "is_encoder_decoder", False) or getattr(text, "add_cross_attention", False):
            raise NammTransferError(f"{text.model_type}: encoder-decoder models and cross-attention are not served")
        implementation = getattr(text, "_attn_implementation", None)
        if implementation not in (None, "memory"):
            raise NammTransferError(
                f"the model's attention implementation is {implementation!r}: load it with "
                'attn_implementation="memory" or call model.set_attn_implementation("memory")'
            )
        kinds = set(getattr(text, "layer_types", None) or ()) - set(_SERVED_LAYERS)
        if kinds:
            raise NammTransferError(f"{text.model_type}: layers of type {', '.join(sorted(kinds))} are not served")
        self.policy = policy
        super().__init__(layers=[MemoryLayer(policy, index) for index in range(text.num_hidden_layers)])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand a layer its new keys and values; see `MemoryLayer.update`."""
        if layer_idx >= len(self.layers):
            raise NammTransferError(
                f"layer {layer_idx} of a cache made for {len(self.layers)} layers: one MemoryCache serves one model"
            )
        ahead = self.layers[0].columns - self.layers[layer_idx].columns
        out_of_step = opened_layer() is None and ahead != (key_states.shape[2] if layer_idx else 0)
        if self.layers[layer_idx].spoiled or out_of_step:
            raise NammTransferError(
                "an error ended an earlier call in mid-forward: make a new MemoryCache or reset() it"
            )
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest columns, exactly; refused, before anything is lost, if the policy evicts.

        Raises:
            NammTransferError: the policy evicts (so assisted decoding cannot be used with it).
        """
        if self.policy.evicts:
            raise NammTransferError(
                f"a cache under {type(self.policy).__name__} cannot be cropped, since evicted tokens do not come back; "
                "assisted decoding and rollback need the full policy"
            )
        super().crop(tokens_to_remove)

    def positions(self, layer: int) -> Tensor:
        """Original positions of the kept tokens, (batch, kv_heads, kept) int64 ascending; -1 where a row is shorter."""
        if not self.layers[layer].is_initialized:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return self.layers[layer].positions.long()

    def kept_share(self) -> list[float]:
        """Tokens held now over tokens seen, mean over layers and KV heads, for each sequence. Needs no device work."""
        per_layer = [[s.held / max(s.clock, 1) for s in layer.sequences] for layer in self.layers]
        return [sum(column) / len(column) for column in zip(*per_layer, strict=True)]

    def report(self) -> MemoryReport:
        """What is kept, what was seen and what it takes."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        if not layers:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return MemoryReport(
            kept=torch.stack([(layer.positions >= 0).sum(-1).cpu() for layer in layers]),
            seen=layers[0].clock,
            peak=[[s.peak for s in layer.sequences] for layer in layers],
            history=[[s.history[:] for s in layer.sequences] for layer in layers],
            bytes=sum(_bytes(layer) for layer in layers),
        )


def _bytes(layer: MemoryLayer) -> int:
    tensors = [layer.keys, layer.values, layer.positions, *layer.state.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
