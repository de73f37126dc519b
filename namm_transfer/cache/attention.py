"""The attention implementation "memory": SDPA for everybody, and, given a `MemoryCache`, attention that feeds the
cache's policy block by block and lets it evict between blocks.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from namm_transfer.cache.blocks import attend_and_evict
from namm_transfer.cache.guard import GuardedTensor, opened
from namm_transfer.cache.layer import Handover, MemoryLayer, ModuleReference
from namm_transfer.cache.masks import MemoryMask, memory_mask, runs_under_sdpa
from namm_transfer.errors import NammTransferError

NAME = "memory"
_CAPS = ("softcap", "soft_cap", "logit_cap", "s_aux", "sink", "bias", "alibi")
_CHANGES_ATTENTION = (*_CAPS, "head_mask", "indices", "block", "chunk", "window", "output_attentions")
"""Parts of the names of arguments that change what attention computes, or ask for what it does not return."""
_NOT_FOR_ATTENTION = {"position_ids", "token_type_ids", "mm_token_type_ids", "input_ids", "inputs_embeds", "cache"}
_NOT_FOR_ATTENTION |= {"cache_position", "past_key_values", "position_embeddings", "attention_mask", "logits_to_keep"}
_NOT_FOR_ATTENTION |= {"labels", "shift_labels", "num_items_in_batch"}
"""Arguments, some of them tensors, that models pass down to their attention and that it does not look at."""
_SDPA_TAKES = {*inspect.signature(sdpa_attention_forward).parameters} - {"kwargs"}
_SDPA_IGNORES = {"output_attentions", "sliding_window", "cu_seq_lens_q", "cu_seq_lens_k"}
_STANDARD = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "sliding_window", "is_causal"}


def memory_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MemoryMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered as "memory".

    Args:
        query: (batch, query_heads, new, head_dim).
        key, value: (batch, kv_heads, new or all, head_dim).
        attention_mask: what `memory_mask` returned; without a MemoryCache also whatever SDPA takes.

    Returns:
        (batch, new, query_heads, value_dim) and None, as transformers expects.

    Raises:
        NammTransferError: the model asks for something that cannot be served exactly.
    """
    guards = isinstance(key, GuardedTensor) or isinstance(value, GuardedTensor)
    if guards or isinstance(attention_mask, MemoryMask):
        return _with_memory_cache(module, query, key, value, attention_mask, scaling, dropout, kwargs), None
    _refuse_unserved(module, kwargs, _SDPA_TAKES | _SDPA_IGNORES)
    if isinstance(attention_mask, GuardedTensor):
        attention_mask = opened(attention_mask)
    config = getattr(module, "config", None)
    if attention_mask is None and config is not None and not runs_under_sdpa(type(config)):
        kwargs["is_causal"] = False  # such a model's own attention masks nothing that its mask does not
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _refuse_unserved(module: nn.Module, arguments: dict[str, Any], served: set[str]) -> None:
    """Refuse arguments that may change what attention computes.

    Models pass all sorts of things down to their attention, most of which it never looks at. What is unset, a flag, a
    count or a name is ignored, unless it is known to change attention or the model's own eager attention takes it.
    Everything else (tensors, numbers with a fraction) is refused, unless it is known not to be meant for attention.
    """
    for name, value in arguments.items():
        if value is None or value is False or name in served or name in _NOT_FOR_ATTENTION:
            continue
        ignored = isinstance(value, bool | int | str) and not _eager_takes(type(module), name)
        if not ignored or any(part in name for part in _CHANGES_ATTENTION):
            raise NammTransferError(
                f'{type(module).__name__} asks for {name}, which attn_implementation="memory" does not serve'
            )


@torch.compiler.assume_constant_result
def _eager_takes(module_class: type, name: str) -> bool:
    """Return True if the eager attention in a model's own file takes an unusual argument of this name."""
    eager = getattr(sys.modules.get(module_class.__module__), "eager_attention_forward", None)
    return eager is not None and name not in _STANDARD and name in inspect.signature(eager).parameters


@torch.compiler.disable
def _with_memory_cache(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float | None,
    dropout: float,
    arguments: dict[str, Any],
) -> Tensor:
    """Attention output under a `MemoryCache`, (batch, new, query_heads, value_dim)."""
    handover = _handover_of(key, value)
    if handover is None:
        raise NammTransferError(
            f"{type(module).__name__} attends to other keys than it gave the MemoryCache (rebuilt, repeated, shared "
            "between layers, or not cached at all, as under gradient checkpointing): this cannot be served"
        )
    layer = handover.layer
    try:
        mask = _checked(layer, module, query, handover, mask, dropout, arguments)
        tokens, window = mask.tokens, mask.window
    except NammTransferError:
        layer.handover = None  # nothing has been stored, so the cache can be used on
        raise
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend_and_evict(layer, tokens, window, query, handover.keys, handover.values, scaling)
    layer.close(mask.padding, query.shape[2])
    return output.transpose(1, 2).contiguous()


def _handover_of(*tensors: Tensor) -> Handover | None:
    """The layer's handover that the tensors belong to; None if they do not all belong to one that is still open."""
    first = tensors[0].owner if isinstance(tensors[0], GuardedTensor) else None
    same = all(isinstance(tensor, GuardedTensor) and tensor.owner is first for tensor in tensors)
    return first if same and isinstance(first, Handover) and first.layer.handover is first else None


def _checked(
    layer: MemoryLayer,
    module: nn.Module,
    query: Tensor,
    handover: Handover,
    mask: Any,
    dropout: float,
    arguments: dict[str, Any],
) -> MemoryMask:
    """The call's mask; refuse what would be served wrongly."""
    name = type(module).__name__
    is_causal = arguments.pop("is_causal", None)
    arguments.pop("sliding_window", None)  # the mask says it
    _refuse_unserved(module, arguments, set())
    if dropout:
        raise NammTransferError(f"{name} asks for attention dropout {dropout} with a MemoryCache: call model.eval()")
    if not isinstance(mask, MemoryMask):
        kind = f"a mask of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else "no causal mask"
        raise NammTransferError(f"{name} came with {kind}: expected the model's own mask from a 2-D attention_mask")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NammTransferError(f"{name} is not causal: not served with a MemoryCache")
    if query.shape[2] != handover.keys.shape[2] or query.shape[1] % layer.kv_heads:
        raise NammTransferError(
            f"{name}: queries {tuple(query.shape)} do not fit keys {tuple(handover.keys.shape)}: not served"
        )
    if layer.reader is not None and layer.reader() is not module:
        raise NammTransferError("this MemoryCache has been used with another model: make a new one or reset() it")
    layer.reader = ModuleReference(module)
    if layer.columns and layer.index == 0:
        _check_history(layer, mask)
    return mask


def _check_history(layer: MemoryLayer, mask: MemoryMask) -> None:
    """The mask over past columns must be what it was: padding was not stored then, and what was stored stays."""
    before, now = layer.padding, mask.padding
    if before is None and (now is None or bool(now[:, : layer.columns].all())):
        return
    if before is None or now is None or not torch.equal(before.to(now.device), now[:, : layer.columns]):
        raise NammTransferError(
            f"attention_mask differs from what it was for the {layer.columns} columns already seen: "
            "pass it in full, padding included, with every call"
        )


def register(attention: Callable[..., Any] = memory_attention, mask: Callable[..., Any] = memory_mask) -> None:
    """Make "memory" known to transformers; nothing else changes."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
