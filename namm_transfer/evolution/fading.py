"""Attention under a memory that lets tokens fade instead of dropping them, so that a NAMM can be learned by gradient.

What a NAMM evicts is gone, and no gradient tells what it would have been worth. Here each update multiplies the
attention to a token by the share of it that stays, between 0 and 1. The gradient of the answer's likelihood with
respect to those shares then says, for every layer, head, token and update at once, what keeping a little more would
have won; the number of tokens held has a gradient in the same way. The network reads what any NAMM reads: the past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad
from transformers import AttentionInterface, AttentionMaskInterface

from namm_transfer import spectrogram
from namm_transfer.namm import NAMM
from namm_transfer.spectrogram import BINS, HOP

NAME = "fading"
_FLOOR = -12.0  # no update multiplies attention to a token by less than e to this


@dataclass
class Fading:
    """One prompt's passage through a model: the NAMM whose updates fade tokens, and what became of the cache.

    The model is called with ``fading=`` this object, at batch 1.
    """

    namm: NAMM
    update_interval: int
    temperature: float
    """Width of the soft edge between kept and lost, in units of the score."""
    noise: float = 0.0
    """Scale of the logistic noise on scores, so that tokens near the threshold are seen both kept and lost."""
    generator: torch.Generator | None = None
    """Of the noise."""
    held: list[Tensor] = field(default_factory=list)
    """For each layer, the share of its tokens that it holds at the end, differentiable: a scalar."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention output of one layer, (1, query_heads, tokens, value_dim)."""
        heads, tokens = key.shape[1:3]
        fade = key.new_zeros(1, heads, 0, dtype=torch.float32)
        alive = fade.bool()
        state = {"spectrum": fade.new_zeros(1, heads, BINS, 0), "tail": fade.new_zeros(1, heads, HOP, 0)}
        outputs, count = [], torch.zeros((), device=key.device)
        for start in range(0, tokens, self.update_interval):
            end = min(start + self.update_interval, tokens)
            fade, alive = pad(fade, (0, end - start)), pad(alive, (0, end - start), value=True)
            state = {name: pad(tensor, (0, end - start)) for name, tensor in state.items()}
            rows, output = _attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], fade, scaling)
            outputs.append(output)
            count = count + (end - start)
            if end - start == self.update_interval:
                spectrogram.observe(state, rows, [start], [end - start])
                fade, alive, count = self._update(state["spectrum"], fade, alive)
        self.held.append(count / tokens)
        return torch.cat(outputs, 2)

    def _update(self, spectrum: Tensor, fade: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of each token, (1, heads, tokens): its log, whether that counts as held, and how many are."""
        namm, places = self.namm, torch.arange(fade.shape[-1], device=fade.device)
        scores = namm.score(namm.features(spectrum, places.expand_as(fade)), alive)
        scores = scores.masked_fill(places == len(places) - 1, inf)  # the newest always stays
        margin = scores - _edge(scores.detach(), alive)
        if self.noise:
            uniform = torch.rand(scores.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6)
            margin = margin + self.noise * uniform.logit().to(margin.device)
        left = logsigmoid(margin / self.temperature).clamp_min(_FLOOR)
        counts = ((scores / self.temperature).sigmoid() * alive).sum(-1)
        return fade + left, alive & (margin >= 0), counts.max()


def _edge(scores: Tensor, alive: Tensor) -> Tensor:
    """Score from which a head's tokens stay, (1, heads, 1): 0 in the layer's most generous head; the others keep as
    many as that, so theirs lies between the last token that is filled up and the first that is not."""
    passing = ((scores >= 0) & alive).sum(-1, keepdim=True)
    most = int(passing.max())
    best = pad(scores.masked_fill(~alive, -inf), (0, 1), value=-inf).topk(most + 1).values.clamp(-1e4, 1e4)
    return best[..., -2:].mean(-1, keepdim=True).masked_fill(passing == most, 0.0)


def _attend(query: Tensor, key: Tensor, value: Tensor, fade: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Rows for the spectrogram, (1, kv_heads, queries, tokens) without gradient, and the output of the last queries."""
    _, heads, new, width = query.shape
    kv_heads, tokens = key.shape[1:3]
    packed = query.reshape(1, kv_heads, heads // kv_heads * new, width)
    scores = (packed @ key.transpose(-1, -2)).float().view(1, kv_heads, -1, new, tokens) * scaling
    future = torch.ones(new, tokens, dtype=torch.bool, device=key.device).triu(tokens - new + 1)
    weights = (scores + fade[:, :, None, None]).masked_fill(future, -inf).softmax(-1)
    mixed = weights.to(value.dtype).view(1, kv_heads, -1, tokens) @ value
    return weights.detach().mean(2), mixed.view(1, heads, new, -1)


def fading_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function registered as "fading"; shapes as transformers has them."""
    return kwargs["fading"].attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, fading_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
