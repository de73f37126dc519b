"""MemoryCache: a transformers cache that a policy keeps small."""

import inspect
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from namm_transfer.cache import saved
from namm_transfer.cache.hybrid import ATTENTION, BOTH, RecurrentStates, layer_kinds
from namm_transfer.cache.layer import MemoryLayer, refuse_to_crop
from namm_transfer.cache.masks import TracedCount, models_of
from namm_transfer.cache.report import MemoryReport
from namm_transfer.errors import NammTransferError
from namm_transfer.policy import EvictionPolicy


class MemoryCache(Cache):
    """A key/value cache that a policy keeps small; give it to a model as its cache (``past_key_values``).

    Args:
        config: the model's configuration (of a composite model, its text decoder's is used); the model must have been
            loaded with ``attn_implementation="memory"``.
        policy: an `EvictionPolicy`, for example a `NAMM` or ``policies.make("h2o:keep=0.5")``.

    Raises:
        NammTransferError: an argument is something else, or the model cannot be served exactly.
    """

    attention_layers: list[MemoryLayer]
    """The layers with keys and values, which the policy keeps small; layers are counted among these. In a hybrid model
    they are fewer than `layers`, which also contains transformers' cache layers for linear attention and the like."""

    def __init__(self, config: PreTrainedConfig, *, policy: EvictionPolicy) -> None:
        text = _served_config(config)
        if not isinstance(policy, EvictionPolicy):
            raise NammTransferError(f"policy={policy!r}: expected an EvictionPolicy, for example policies.make('h2o')")
        if policy.match is not None:
            raise NammTransferError(
                f"match={policy.match!r} is not resolved: an evaluator does it, or policies.with_schedule(policy, ...)"
            )
        self.policy = policy
        self._model = saved.describe_model(text)
        self._backward = _backward_pass()  # in which the cache was made; calls must be in the same
        kinds = layer_kinds(text)
        places = [index for index, kind in enumerate(kinds) if kind in (*ATTENTION, *BOTH)]
        self.attention_layers = [MemoryLayer(policy, number, len(places)) for number in range(len(places))]
        self._states = RecurrentStates(kinds, dict(zip(places, self.attention_layers, strict=True)))
        self._gives_all = False  # see give_all
        super().__init__(layers=self._states.beside_attention())

    # -- one forward call --------------------------------------------------------------------------------------------

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[Any, int]:
        """Mask columns, all seen and the new ones, and their offset 0; the count says that a `MemoryCache` asked."""
        self._gives_all = False
        if torch.compiler.is_compiling():
            return TracedCount(self, self.attention_layers[0].columns + query_length), 0
        return super().get_mask_sizes(query_length, layer_idx)

    def give_all(self) -> bool:
        """Give the model all keys and values in a call without padding that torch.compile traces, if that is exact.

        Returns:
            True if nothing is evicted, nobody looks at attention weights and autograd does not record.
        """
        policy = self.policy
        watched = policy.evicts or policy.needs_attention or policy.by_head or torch.is_grad_enabled()
        self._gives_all = not watched and not self._states.layers and self.attention_layers[0].padding is None
        return self._gives_all

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand a layer its new keys and values; see `MemoryLayer.update` and, if it gives all, `MemoryLayer.extend`."""
        if not self._gives_all:
            return self._hand_over(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self._next_layer(key_states, layer_idx)
        self._gives_all = layer is not self.attention_layers[-1]
        return layer.extend(key_states, value_states)

    @torch.compiler.disable
    def _hand_over(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._refuse_recomputation()
        return self._next_layer(key_states, layer_idx).update(key_states, value_states, *args, **kwargs)

    def _next_layer(self, key_states: Tensor, layer_idx: int) -> MemoryLayer:
        """The layer that these new keys are for; refuse them if it is not its turn."""
        if layer_idx >= len(self.layers):
            raise NammTransferError(
                f"layer {layer_idx} of a cache made for {len(self.layers)} layers: one MemoryCache serves one model"
            )
        layer = self.layers[layer_idx]
        if not isinstance(layer, MemoryLayer):
            raise NammTransferError(
                f"layer {layer_idx} of this MemoryCache has no keys: one MemoryCache serves one model"
            )
        if self._states.layers:
            self._states.check_turn(layer_idx, layer.calls)
            if torch.is_grad_enabled() and key_states.requires_grad:
                raise NammTransferError(
                    "a MemoryCache of a model with recurrent layers gives no gradients, since their states are written "
                    "in place: use torch.no_grad()"
                )
        before, first = self.attention_layers[layer.index - 1], self.attention_layers[0]
        ahead = first.columns - layer.columns
        if layer.handover or before.handover or ahead != (key_states.shape[2] if layer.index else 0):
            raise NammTransferError(
                f"layer {layer_idx} is not where the layers before it are: an error ended an earlier call in "
                "mid-forward, or no memory attention read the keys of a layer (load the model with "
                'attn_implementation="memory"); make a new MemoryCache or reset() this one'
            )
        return layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding and evicted tokens included; positions come from it."""
        if not torch.compiler.is_compiling():
            self._refuse_recomputation()
        return super().get_seq_length(layer_idx)

    def _refuse_recomputation(self) -> None:
        if _backward_pass() != self._backward:
            raise NammTransferError(
                "a backward pass computes activations again (gradient checkpointing), which would put the same tokens "
                "into this MemoryCache twice: make the cache inside of the checkpointed function"
            )

    # -- rows and columns --------------------------------------------------------------------------------------------

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest columns, exactly; refused, before anything is lost, if the policy evicts.

        Raises:
            NammTransferError: the policy evicts (so assisted decoding cannot be used with it).
        """
        self._refuse_rollback()
        super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Called by transformers (5.24) where tokens will be taken back; refused if they cannot be."""
        self._refuse_rollback()

    def _refuse_rollback(self) -> None:
        refuse_to_crop(self.policy)
        if self._states.layers:
            raise NammTransferError(
                "a MemoryCache of a model with recurrent layers cannot be cropped, since their states cannot be taken "
                "back; assisted decoding and rollback need a model of attention layers"
            )

    @property
    def is_croppable(self) -> bool:
        """True if tokens can be taken back."""
        return not self._states.layers and not self.policy.evicts

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows of the batch in another order, state and all (beam search)."""
        rows = torch.as_tensor(beam_idx)
        for layer in self.attention_layers:
            layer.select_rows(rows)
        self._states.select_rows(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch: indices, or a bool mask."""
        if sequences := self.attention_layers[0].sequences:
            self.reorder_cache(torch.arange(len(sequences))[torch.as_tensor(indices).cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        self.reorder_cache(torch.arange(len(self.attention_layers[0].sequences)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        for layer in self.attention_layers:
            layer.reset()
        self._states.reset()
        self._gives_all = False
        self.layers = self._states.beside_attention()

    def freeze(self) -> None:
        """Evict nothing from now on: what is held stays, and so does everything that is read later.

        Questions about a text or a video that was compressed before they were known are answered from frozen copies.
        """
        for layer in self.attention_layers:
            layer.is_frozen = True

    # -- what is in it -----------------------------------------------------------------------------------------------

    def positions(self, layer: int) -> Tensor:
        """Original positions of the kept tokens, (batch, kv_heads, kept) int64 ascending; -1 where a row is shorter."""
        if not self.attention_layers[layer].is_initialized:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return self.attention_layers[layer].positions.long()

    def kept_share(self) -> list[float]:
        """Tokens held now over tokens seen, mean over layers and KV heads, for each sequence. Needs no device work."""
        per_layer = [[s.held / max(s.seen, 1) for s in layer.sequences] for layer in self.attention_layers]
        return [sum(column) / len(column) for column in zip(*per_layer, strict=True)]

    def report(self) -> MemoryReport:
        """Report the tokens kept, the tokens seen and the bytes they take."""
        layers = [layer for layer in self.attention_layers if layer.is_initialized]
        if not layers:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return MemoryReport(
            kept=torch.stack([(layer.positions >= 0).sum(-1).cpu() for layer in layers]),
            seen=layers[0].seen,
            peak=[[float(s.peak) for s in layer.sequences] for layer in layers],
            history=[[s.history[:] for s in layer.sequences] for layer in layers],
            sizes=[[s.sizes[:] for s in layer.sequences] for layer in layers],
            bytes=sum(layer.bytes for layer in layers) + self._states.bytes,
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, identity: Mapping[str, str] | None = None) -> None:
        """Write the cache to a safetensors file, so that a compressed prefix can be used again in another process.

        Args:
            identity: what else `load` shall compare, for example digests of the model's weights and of what was read.

        Raises:
            NammTransferError: the cache is empty or in the middle of a call, or the file cannot be written.
        """
        saved.write(path, self.attention_layers, self._model, self.policy, identity or {}, self._states.tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config: PreTrainedConfig,
        *,
        policy: EvictionPolicy,
        device: str | torch.device = "cpu",
        identity: Mapping[str, str] | None = None,
    ) -> "MemoryCache":
        """Read a cache that `save` wrote; it goes on exactly as the original would.

        Args:
            config: the configuration of the model that filled the cache.
            policy: the policy it was filled under, with the same options and weights.
            device: where its tensors shall lie; attention layers move to their model's device when they are used, the
                states of recurrent layers do not.
            identity: what it must have been saved with; by default this is not compared.

        Raises:
            NammTransferError: no such file, another model's shape, another policy or another identity.
        """
        cache = cls(config, policy=policy)
        states = saved.read(path, cache.attention_layers, cache._model, policy, torch.device(device), identity)
        cache._states.restore(states, len(cache.attention_layers[0].sequences))
        return cache

    # -- recurrent layers of a hybrid model --------------------------------------------------------------------------

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return a layer's convolution state, None before its first call; every call of such a layer begins with it."""
        layer = self._states[layer_idx]
        self._states.begin(layer_idx)
        return layer.conv_states[state_idx] if layer.has_previous_state[state_idx] else None

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Give a layer its new convolution inputs; see `transformers.cache_utils.LinearAttentionLayer`."""
        return self._states.store_convolution(layer_idx, conv_states, state_idx=state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return a layer's recurrent state, None before its first call."""
        layer = self._states[layer_idx]
        return layer.recurrent_states[state_idx] if layer.has_previous_state[state_idx] else None

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Give a layer its new recurrent state."""
        return self._states.store_recurrent(layer_idx, recurrent_states, state_idx=state_idx, **kwargs)

    # -- what a cache of transformers can do and this one cannot -----------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NammTransferError(
            "a MemoryCache holds attention layers, each head with tokens of its own, and states of recurrent layers "
            "in a hybrid model: it has no indexer state, is not offloaded, and cannot be read as (keys, values) pairs; "
            "use .positions(layer) or .report()"
        )

    __iter__ = __getitem__ = offload = prefetch = has_previous_state = update_indexer = _refuse


def _served_config(config: Any) -> PreTrainedConfig:
    """The text decoder's configuration; refuse what is none, or what cannot be served exactly."""
    if not isinstance(config, PreTrainedConfig):
        hint = ", its .config" if isinstance(getattr(config, "config", None), PreTrainedConfig) else ""
        raise NammTransferError(
            f"config is {type(config).__name__}: expected the configuration of a model{hint}, a PreTrainedConfig"
        )
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise NammTransferError(
            f"{config.model_type}: num_hidden_layers is {layers!r}; expected the configuration of a decoder-only "
            "transformer"
        )
    crossing = [name for name in vars(text) if "cross_attention" in name and getattr(text, name)]
    if getattr(config, "is_encoder_decoder", False) or crossing:
        raise NammTransferError(f"{text.model_type}: encoder-decoder models and cross-attention are not served")
    models = models_of(type(text))
    if models and not any(
        {"cache", "past_key_values"} & inspect.signature(some.forward).parameters.keys() for some in models
    ):
        raise NammTransferError(f"{text.model_type}: models of this type take no key/value cache")
    implementation = getattr(text, "_attn_implementation", None)
    if implementation not in (None, "memory"):
        raise NammTransferError(
            f"the model's attention implementation is {implementation!r}: load it with "
            'attn_implementation="memory" or call model.set_attn_implementation("memory")'
        )
    return text


def _backward_pass() -> int:
    """Number of the backward pass that is running; -1 outside of one."""
    return torch._C._current_graph_task_id()
