"""Importance of KV heads, learned for all heads of a model together.

Heads make up for each other, so importance measured one head at a time (`importance.py`) misjudges them. Here each head
has a gate: open, it reads everything; closed, it is a streaming head, which reads the first and the newest tokens only.
Gates open and close at random around their values while the model answers multi-question prompts, and Adam moves the
values (compare DuoAttention, Xiao et al. 2024, arXiv 2410.10819).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.training.loop import Loop, warm_up_cosine
from namm_transfer.training.namm.causal import causal_only
from namm_transfer.training.namm.importance import RECENT, SINKS
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood

NAME = "gated"
_FIRST = 5 * 10**5  # number of the first prompt: neither learning nor the search uses it
_RATE, _WARM_UP, _FLOOR, _CLIP = 0.15, 5, 0.1, 1.0
_NOISE = (0.55, 0.05)  # scale of the logistic noise on gates at the first and the last step
_PENALTY, _PENALTY_RATE, _STIFFNESS = 2.0, 0.1, 30.0  # of open gates, as the kept share's in `learning.py`
_PROSE, _PROSE_WEIGHT = 48, 0.2
_SAVE_EVERY = 2


@dataclass
class Gating:
    """One forward pass of one prompt; the model is called with ``gating=`` this object and without a cache."""

    opened: Tensor
    """(layers, kv_heads) bool: the heads that read everything."""
    gates: Tensor
    """(layers, kv_heads): receives the gradient, as if the outputs were mixed in this proportion."""
    update_interval: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute the attention output of one layer, (1, query_heads, tokens, value_dim)."""
        place = torch.arange(query.shape[2], device=query.device)
        updated = (place // self.update_interval * self.update_interval)[:, None]
        stays = (place < SINKS) | (place >= updated - RECENT)
        shape: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
        all_read = scaled_dot_product_attention(query, key, value, is_causal=True, **shape)
        few_read = scaled_dot_product_attention(query, key, value, attn_mask=stays & (place <= place[:, None]), **shape)
        output: Tensor = _Choice.apply(all_read, few_read, self.opened[layer], self.gates[layer])
        return output


class _Choice(torch.autograd.Function):
    """Takes one of two outputs for each KV head; a gate's gradient is that of the way from one to the other."""

    @staticmethod
    def forward(ctx: Any, all_read: Tensor, few_read: Tensor, opened: Tensor, gates: Tensor) -> Tensor:
        chosen = opened.repeat_interleave(all_read.shape[1] // len(opened))[None, :, None, None]
        ctx.save_for_backward(all_read, few_read, chosen)
        ctx.kv_heads = len(opened)
        return torch.where(chosen, all_read, few_read)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        (gradient,), (all_read, few_read, chosen) = gradients, ctx.saved_tensors
        way = (gradient.float() * (all_read.float() - few_read.float())).sum((0, 2, 3))
        return (
            torch.where(chosen, gradient, 0),
            torch.where(chosen, 0, gradient),
            None,
            way.view(ctx.kv_heads, -1).sum(-1),
        )


def gated_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention; registered with transformers as "gated", with its shapes."""
    layer: Any = module.layer_idx
    return kwargs["gating"].attend(layer, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, gated_attention)
AttentionMaskInterface.register(NAME, causal_only)


class Gates(nn.Module):
    """The value of each head's gate; it is open from 0 on."""

    def __init__(self, layers: int, kv_heads: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(layers, kv_heads))


def learn_gates(
    adapter: CausalLMAdapter,
    *,
    share: float,
    steps: int,
    tokens: tuple[int, ...],
    intervals: tuple[int, ...],
    seed: int,
    path: Path,
    identity: Mapping[str, Any],
    accelerator: Accelerator,
) -> Tensor:
    """Learn which heads need their cache; a run that was killed goes on from the checkpoint in `path`.

    Args:
        share: share of the heads that is to be open.
        steps: steps of Adam, each on one prompt.
        tokens, intervals: lengths of prompts and update intervals, of which each step draws one.
        identity: all that decides the result.

    Returns:
        (layers, kv_heads) float32 on the CPU, the higher the more a head needs its cache.

    Raises:
        NammTransferError: the checkpoint was made with another identity.
    """
    model: Any = adapter.model
    config = model.config.get_text_config()
    gates = Gates(config.num_hidden_layers, config.num_key_value_heads).to(adapter.device)

    def penalty(step: int) -> float:
        if not step:
            return _PENALTY
        _, _, opened, before = loop.log[step - 1].tolist()
        return max(0.0, before + _PENALTY_RATE * (opened - share))

    def loss(step: int, part: int) -> tuple[Tensor, list[float]]:
        rng, done, price = random.Random(f"{seed}/gates {step}"), step / steps, penalty(step)
        prompt, interval = (
            MultiQuestionPrompt.make(adapter, seed, _FIRST + step, rng.choice(tokens)),
            rng.choice(intervals),
        )
        uniform = torch.rand(gates.values.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63)))
        scale = _NOISE[0] + (_NOISE[1] - _NOISE[0]) * done
        noisy = gates.values + scale * uniform.clamp(1e-4, 1 - 1e-4).logit().to(adapter.device)
        opened = noisy >= 0
        places = range(interval, prompt.text - 1)
        beside = sorted(rng.sample(places, min(_PROSE, len(places))))
        gating = Gating(opened, noisy.sigmoid(), interval)
        answers, prose = likelihood(model, [prompt], [beside], gating=gating, use_cache=False)
        held = float(opened.float().mean())
        size = (price + _STIFFNESS * (held - share)) * gates.values.sigmoid().mean()
        return size - answers[0] - _PROSE_WEIGHT * prose[0], [float(answers[0].detach()), held, price]

    loop = Loop(
        gates,
        torch.optim.Adam([gates.values], lr=_RATE, betas=(0.9, 0.98)),
        loss,
        steps,
        schedule=warm_up_cosine(steps, _WARM_UP, _FLOOR),
        accelerator=accelerator,
        path=path,
        identity=identity,
        metrics=("answers", "open", "penalty"),
        clip=_CLIP,
        save_every=_SAVE_EVERY,
        label="gates of heads",
    )
    model.requires_grad_(False)
    model.set_attn_implementation(NAME)
    try:
        loop.run()
    finally:
        model.set_attn_implementation("memory")
    return gates.values.detach().cpu()
