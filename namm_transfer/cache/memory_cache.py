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
from namm_transfer.cache.layer import MemoryLayer, refuse_to_crop
from namm_transfer.cache.masks import models_of
from namm_transfer.cache.report import MemoryReport
from namm_transfer.errors import NammTransferError
from namm_transfer.policy import EvictionPolicy

_SERVED_LAYERS = ("full_attention", "sliding_attention")


class MemoryCache(Cache):
    """A key/value cache that a policy keeps small; give it to a model as its cache (``past_key_values``).

    Args:
        config: the model's configuration (of a composite model, its text decoder's is used); the model must have been
            loaded with ``attn_implementation="memory"``.
        policy: an `EvictionPolicy`, for example a `NAMM` or ``policies.make("h2o:keep=0.5")``.

    Raises:
        NammTransferError: an argument is something else, or the model cannot be served exactly.
    """

    layers: list[MemoryLayer]  # type: ignore[assignment]

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
        layers = text.num_hidden_layers
        super().__init__(layers=[MemoryLayer(policy, index, layers) for index in range(layers)])

    # -- one forward call --------------------------------------------------------------------------------------------

    @torch.compiler.disable
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand a layer its new keys and values; see `MemoryLayer.update`."""
        if layer_idx >= len(self.layers):
            raise NammTransferError(
                f"layer {layer_idx} of a cache made for {len(self.layers)} layers: one MemoryCache serves one model"
            )
        self._refuse_recomputation()
        layer, before = self.layers[layer_idx], self.layers[layer_idx - 1]
        ahead = self.layers[0].columns - layer.columns
        if layer.handover or before.handover or ahead != (key_states.shape[2] if layer_idx else 0):
            raise NammTransferError(
                f"layer {layer_idx} is not where the layers before it are: an error ended an earlier call in "
                "mid-forward, or no memory attention read the keys of a layer (load the model with "
                'attn_implementation="memory"); make a new MemoryCache or reset() this one'
            )
        return layer.update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding and evicted tokens included; positions come from it."""
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
        refuse_to_crop(self.policy)
        super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Called by transformers (5.24) where tokens will be taken back; refused if the policy evicts."""
        refuse_to_crop(self.policy)

    def freeze(self) -> None:
        """Evict nothing from now on: what is held stays, and so does everything that is read later.

        Questions about a text or a video that was compressed before they were known are answered from frozen copies.
        """
        for layer in self.layers:
            layer.is_frozen = True

    # -- what is in it -----------------------------------------------------------------------------------------------

    def positions(self, layer: int) -> Tensor:
        """Original positions of the kept tokens, (batch, kv_heads, kept) int64 ascending; -1 where a row is shorter."""
        if not self.layers[layer].is_initialized:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return self.layers[layer].positions.long()

    def kept_share(self) -> list[float]:
        """Tokens held now over tokens seen, mean over layers and KV heads, for each sequence. Needs no device work."""
        per_layer = [[s.held / max(s.seen, 1) for s in layer.sequences] for layer in self.layers]
        return [sum(column) / len(column) for column in zip(*per_layer, strict=True)]

    def report(self) -> MemoryReport:
        """Report the tokens kept, the tokens seen and the bytes they take."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        if not layers:
            raise NammTransferError("the cache is empty: nothing has gone through the model yet")
        return MemoryReport(
            kept=torch.stack([(layer.positions >= 0).sum(-1).cpu() for layer in layers]),
            seen=layers[0].seen,
            peak=[[s.peak for s in layer.sequences] for layer in layers],
            history=[[s.history[:] for s in layer.sequences] for layer in layers],
            sizes=[[s.sizes[:] for s in layer.sequences] for layer in layers],
            bytes=sum(layer.bytes for layer in layers),
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, identity: Mapping[str, str] | None = None) -> None:
        """Write the cache to a safetensors file, so that a compressed prefix can be used again in another process.

        Args:
            identity: what else `load` shall compare, for example digests of the model's weights and of what was read.

        Raises:
            NammTransferError: the cache is empty or in the middle of a call, or the file cannot be written.
        """
        saved.write(path, self.layers, self._model, self.policy, identity or {})

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
            device: where its tensors shall lie; each layer moves to its model's device when it is used.
            identity: what it must have been saved with; by default this is not compared.

        Raises:
            NammTransferError: no such file, another model's shape, another policy or another identity.
        """
        cache = cls(config, policy=policy)
        saved.read(path, cache.layers, cache._model, policy, torch.device(device), identity)
        return cache

    # -- what a cache of transformers can do and this one cannot -----------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NammTransferError(
            "a MemoryCache holds attention layers only, each head with tokens of its own: it has no recurrent, "
            "convolution or indexer state, is not offloaded, and cannot be read as (keys, values) pairs; use "
            ".positions(layer) or .report()"
        )

    __iter__ = __getitem__ = offload = prefetch = _refuse
    get_conv_state = update_conv_state = get_recurrent_state = update_recurrent_state = _refuse
    has_previous_state = update_indexer = _refuse


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
    kinds = set(getattr(text, "layer_types", None) or ()) - set(_SERVED_LAYERS)
    if kinds:
        raise NammTransferError(f"{text.model_type}: layers of type {', '.join(sorted(kinds))} are not served")
    return text


def _backward_pass() -> int:
    """Number of the backward pass that is running; -1 outside of one."""
    return torch._C._current_graph_task_id()
