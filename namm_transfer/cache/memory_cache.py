"""MemoryCache: a transformers cache that a policy keeps small."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from namm_transfer.cache.layer import MemoryLayer, opened_layer
from namm_transfer.cache.report import MemoryReport
from namm_transfer.errors import NammTransferError
from namm_transfer.policy import EvictionPolicy

_SERVED_LAYERS = ("full_attention", "sliding_attention")


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
        layers = text.num_hidden_layers
        super().__init__(layers=[MemoryLayer(policy, index, layers) for index in range(layers)])

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
            bytes=sum(layer.bytes for layer in layers),
        )
