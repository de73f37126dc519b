"""Attention under a NAMM that really evicts, with a gradient that says what the evicted would have been worth.

The forward pass is what the live cache computes: a token stays or is gone, and the others share its attention. The
backward pass pretends that it stayed in part (a straight-through estimator, Bengio et al. 2013, arXiv 1308.3432). For
every layer, head, token and update at once it tells what the answer would have gained had the token been held, and had
it not; so does the number of tokens held. The network reads what any NAMM reads: the past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from namm_transfer import spectrogram
from namm_transfer.cache.storage import newest_last
from namm_transfer.namm import NAMM
from namm_transfer.spectrogram import BINS, HOP

NAME = "evicting"
_ALONE = 0.02  # a token with nearly all of the attention is taken to leave at least this to the others
_NEWEST = 100.0  # score of the newest token, which always stays


@dataclass
class Evicting:
    """One prompt's passage through a model: the NAMM that evicts, and what became of the cache.

    The model is called with ``evicting=`` this object, at batch 1.
    """

    namm: NAMM
    """Selects by its threshold, in heads or layers as its `selection` says."""
    update_interval: int
    temperature: float
    """How far from the threshold, in units of the score, a token's gradient still counts."""
    noise: float = 0.0
    """Scale of the logistic noise on scores, so that tokens near the threshold are seen both kept and lost."""
    generator: torch.Generator | None = None
    """Of the noise."""
    held: list[Tensor] = field(default_factory=list)
    """For each layer, the share of its tokens that it holds at the end, with a gradient: a scalar."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention output of one layer, (1, query_heads, tokens, value_dim)."""
        heads, tokens = key.shape[1:3]
        stay = key.new_ones(1, heads, 0, dtype=torch.float32)
        state = {"spectrum": stay.new_zeros(1, heads, BINS, 0), "tail": stay.new_zeros(1, heads, HOP, 0)}
        outputs, count = [], torch.zeros((), device=key.device)
        for start in range(0, tokens, self.update_interval):
            end = min(start + self.update_interval, tokens)
            stay = pad(stay, (0, end - start), value=1.0)
            state = {name: pad(tensor, (0, end - start)) for name, tensor in state.items()}
            rows, output = _attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], stay, scaling)
            outputs.append(output)
            count = count + (end - start)
            if end - start == self.update_interval:
                spectrogram.observe(state, rows, [start], [end - start])
                stay, count = self._update(state["spectrum"], stay)
        self.held.append(count / tokens)
        return torch.cat(outputs, 2)

    def _update(self, spectrum: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens stay, (1, heads, tokens) of 0 and 1, and how many of a head; both with a gradient."""
        namm, places, alive = self.namm, torch.arange(stay.shape[-1], device=stay.device), stay > 0
        # As in the live cache: the living only, a shorter head's holes in front, where they touch no other score.
        order = newest_last(alive, int(alive.sum(-1).max()))
        seen = spectrum.gather(-1, order[:, :, None].expand(-1, -1, BINS, -1))
        scores = torch.zeros_like(stay).scatter(-1, order, namm.score(namm.features(seen, order)))
        scores = scores.masked_fill(places == len(places) - 1, _NEWEST)
        margin = scores - _edge(scores.detach(), alive) if namm.selection == "layer" else scores
        if self.noise:
            uniform = torch.rand(scores.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6)
            margin = margin + self.noise * uniform.logit().to(margin.device)
        left = alive & (margin >= 0)
        # What was evicted earlier keeps the gradient of that update, and has none of this.
        stay = torch.where(alive, stay * left + _only_gradient((margin / self.temperature).sigmoid()), stay)
        counts = left.sum(-1) + _only_gradient(((scores / self.temperature).sigmoid() * alive).sum(-1))
        return stay, counts.max() if namm.selection == "layer" else counts.mean()


def _only_gradient(value: Tensor) -> Tensor:
    """0, with the gradient of `value`."""
    return value - value.detach()


def _edge(scores: Tensor, alive: Tensor) -> Tensor:
    """Score from which a head's tokens stay, (1, heads, 1): 0 in the layer's most generous head; the others keep as
    many as that, so theirs lies between the last token that is filled up and the first that is not."""
    passing = ((scores >= 0) & alive).sum(-1, keepdim=True)
    most = int(passing.max())
    best = pad(scores.masked_fill(~alive, -inf), (0, 1), value=-inf).topk(most + 1).values.clamp(-1e4, 1e4)
    return best[..., -2:].mean(-1, keepdim=True).masked_fill(passing == most, 0.0)


class _Worth(torch.autograd.Function):
    """The output as it is. Backward, the gradient of `stay`: what the output's move by these shares, (1, kv_heads,
    rows, tokens), of the way to a token does."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, stay: Tensor, shares: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(output, shares, value)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (output, shares, value) = gradients, ctx.saved_tensors
        gain = gradient @ value.transpose(-1, -2) - (gradient * output).sum(-1, keepdim=True)
        return gradient, (gain.float() * shares).sum(-2), None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, stay: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Rows for the spectrogram, (1, kv_heads, queries, tokens) without gradient, and the output of the last queries."""
    _, heads, new, width = query.shape
    kv_heads, tokens = key.shape[1:3]
    packed = query.reshape(1, kv_heads, heads // kv_heads * new, width)
    scores = (packed @ key.transpose(-1, -2)).float().view(1, kv_heads, -1, new, tokens) * scaling
    future = torch.ones(new, tokens, dtype=torch.bool, device=key.device).triu(tokens - new + 1)
    alive = (stay > 0)[:, :, None, None]
    held = scores.masked_fill(~alive | future, -inf)
    weights = held.softmax(-1)
    output = weights.to(value.dtype).view(1, kv_heads, -1, tokens) @ value
    if stay.requires_grad:
        with torch.no_grad():
            # How far the output moves: from a held token when it goes, to an evicted one when it is given its share.
            away = weights / (1 - weights).clamp_min(_ALONE)
            back = (scores - held.logsumexp(-1, keepdim=True)).sigmoid().masked_fill(future, 0.0)
            shares = torch.where(alive, away, back).view(1, kv_heads, -1, tokens)
        output = _Worth.apply(output, stay, shares, value.detach())
    return weights.detach().mean(2), output.view(1, heads, new, -1)


def evicting_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function registered as "evicting"; shapes as transformers has them."""
    return kwargs["evicting"].attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, evicting_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
