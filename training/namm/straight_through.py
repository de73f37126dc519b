"""Attention under a NAMM that really evicts, with a straight-through gradient for the evictions.

The forward pass computes what the live cache computes: a token stays or is evicted. The backward pass treats it as
partly kept (straight-through estimator, Bengio et al. 2013, arXiv 1308.3432). So for every layer, head, token and
update the gradient says how the loss would differ had the token been kept, or not; the number of kept tokens has a
gradient too. The network reads what any NAMM reads: attention of the past.

Prompts of one update interval can go through together, as the rows of a batch that is padded on the right: a row's
updates end with its real tokens, so each is computed as if alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

from namm_transfer import spectrogram
from namm_transfer.cache.storage import newest_last
from namm_transfer.namm import NAMM
from namm_transfer.spectrogram import BINS, HOP
from namm_transfer.training.namm.causal import causal_only

NAME = "straight-through"
_LEAST_REST = 0.02  # a token with nearly all of the attention is taken to leave at least this to the others
_LARGEST = 30.0  # exponent from which on an evicted token would have all of the attention, to the last bit of float32
_NEWEST = 100.0  # score of the newest token, which always stays


@dataclass
class StraightThrough:
    """One forward pass over a batch of prompts: the NAMM that evicts, and how much of the cache it keeps.

    The model is called with ``straight_through=`` this object and without a cache.
    """

    namm: NAMM
    """The NAMM, which selects by its threshold, by head or by layer as its `selection` says."""
    update_interval: int
    lengths: Sequence[int]
    """Number of real tokens of each row; padding is on the right."""
    temperature: float
    """Width around the threshold, in units of the score, within which tokens have a notable gradient."""
    noise: float = 0.0
    """Scale of the logistic noise on scores, which shows tokens near the threshold both kept and evicted."""
    generators: Sequence[torch.Generator] | None = None
    """Random generator of each row's noise."""
    kept_shares: list[Tensor] = field(default_factory=list)
    """For each layer, the share of its tokens that each row keeps at its end, (rows,), with a gradient."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute the attention output of one layer, (rows, query_heads, tokens, value_dim)."""
        rows, heads, tokens = key.shape[:3]
        lengths = torch.tensor(self.lengths, device=key.device)
        stay = key.new_ones(rows, heads, 0, dtype=torch.float32)
        state = {"spectrum": stay.new_zeros(rows, heads, BINS, 0), "tail": stay.new_zeros(rows, heads, HOP, 0)}
        outputs, kept = [], torch.zeros(rows, device=key.device)
        for start in range(0, tokens, self.update_interval):
            end = min(start + self.update_interval, tokens)
            stay = pad(stay, (0, end - start), value=1.0)
            state = {name: pad(tensor, (0, end - start)) for name, tensor in state.items()}
            weights, output = _attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end], stay, scaling)
            outputs.append(output)
            kept = kept + (lengths - start).clamp(0, end - start)
            reached = [length >= end for length in self.lengths]
            if end - start == self.update_interval and any(reached):
                spectrogram.observe(state, weights, [start] * rows, [end - start] * rows)
                stayed, counts = self._update(state["spectrum"], stay, reached)
                due = lengths >= end
                stay, kept = torch.where(due[:, None, None], stayed, stay), torch.where(due, counts, kept)
        self.kept_shares.append(kept / lengths)
        return torch.cat(outputs, 2)

    def _update(self, spectrum: Tensor, stay: Tensor, reached: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Choose the tokens that stay, (rows, heads, tokens) of 0 and 1, and their number per head, (rows,)."""
        namm, places, alive = self.namm, torch.arange(stay.shape[-1], device=stay.device), stay > 0
        # As in the live cache: kept tokens only, a shorter head's padding slots in front, where they touch no score.
        order = newest_last(alive, int(alive.sum(-1).max()))
        seen = spectrum.gather(-1, order[:, :, None].expand(-1, -1, BINS, -1))
        real = alive.gather(-1, order)
        # Computed again in the backward pass, so that the network's hidden layers are not kept for every update.
        held: Tensor = checkpoint(namm.score_held, seen, order, real, use_reentrant=False, preserve_rng_state=False)
        scores = torch.zeros_like(stay).scatter(-1, order, held)
        scores = scores.masked_fill(places == len(places) - 1, _NEWEST)
        margin = scores - _edge(scores.detach(), alive) if namm.selection == "layer" else scores
        if self.noise:
            margin = margin + self.noise * self._draw(scores, reached)
        left = alive & (margin >= 0)
        # What was evicted earlier keeps the gradient of that update and gets none from this one.
        stay = torch.where(alive, stay * left + _only_gradient((margin / self.temperature).sigmoid()), stay)
        counts = left.sum(-1) + _only_gradient(((scores / self.temperature).sigmoid() * alive).sum(-1))
        return stay, counts.amax(-1) if namm.selection == "layer" else counts.mean(-1)

    def _draw(self, like: Tensor, reached: Sequence[bool]) -> Tensor:
        """Draw logistic noise, each row's from its own generator; none for rows that have ended, which would draw more
        than they do alone."""
        noise = torch.zeros_like(like)
        for row, generator in enumerate(self.generators or [None] * len(like)):
            if reached[row]:
                drawn = torch.rand(like[row].shape, generator=generator, device=like.device)
                noise[row] = drawn.clamp_(1e-6, 1 - 1e-6).logit_()
        return noise


def _only_gradient(value: Tensor) -> Tensor:
    """Return 0 with the gradient of `value`."""
    return value - value.detach()


def _edge(scores: Tensor, alive: Tensor) -> Tensor:
    """Compute the score from which a head's tokens stay under selection by layer, (rows, heads, 1).

    It is 0 in the head that keeps most. The others keep as many tokens as that one, so theirs lies between the last
    token that is filled up and the first that is not.
    """
    passing = ((scores >= 0) & alive).sum(-1, keepdim=True)
    most = passing.amax(1, keepdim=True)
    ranked = pad(scores.masked_fill(~alive, -inf), (0, 1), value=-inf).sort(-1, descending=True).values.clamp(-1e4, 1e4)
    beside = torch.cat([most - 1, most], -1).expand(-1, scores.shape[1], -1)
    return ranked.gather(-1, beside).mean(-1, keepdim=True).masked_fill(passing == most, 0.0)


class _Attention(torch.autograd.Function):
    """Attention to the tokens that stay; in the backward pass `stay` gets the change of the loss per token kept.

    It moves the output away from a kept token's value when the token goes, and towards an evicted one's when it comes
    back. Every array of the size of the attention is written as few times as possible, which is what a step costs, and
    none is kept for the backward pass, which computes the attention again: memory grows with the tokens, not with their
    square.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, stay: Tensor, scaling: float, new: int
    ) -> tuple[Tensor, Tensor]:
        """Return the output, (rows, kv_heads, groups * new, value_dim), and weights, the mean over the groups.

        Args:
            query: (rows, kv_heads, groups * new, key_dim), the newest `new` tokens.
            key, value: (rows, kv_heads, tokens, dim).
            stay: (rows, kv_heads, tokens) float32, 0 for tokens that were evicted.
        """
        alive = (stay > 0)[:, :, None]
        scores = _causal_scores(query, key, scaling, new)
        total = scores.masked_fill(~alive, -inf).logsumexp(-1, keepdim=True)
        weights = _ratio(scores, total) * alive
        output = weights.to(value.dtype) @ value
        mean = weights.unflatten(2, (-1, new)).mean(2)
        ctx.save_for_backward(query, key, value, alive, total, output)
        ctx.scaling, ctx.new = scaling, new
        ctx.mark_non_differentiable(mean)
        return output, mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        query, key, value, alive, total, output = ctx.saved_tensors
        ratio = _ratio(_causal_scores(query, key, ctx.scaling, ctx.new), total)
        gain = (gradient @ value.transpose(-1, -2)).float()
        gain.sub_((gradient * output).sum(-1, keepdim=True))
        for_stay = None
        if ctx.needs_input_grad[3]:
            sign = torch.where(alive, -1.0, 1.0)
            shares = ratio / (ratio * sign).add_(1).clamp_min_(_LEAST_REST)
            for_stay = shares.mul_(gain).sum(-2)
        weights = ratio * alive
        scores = gain.mul_(weights).mul_(ctx.scaling).to(query.dtype)
        for_value = weights.to(value.dtype).transpose(-1, -2) @ gradient
        return scores @ key, scores.transpose(-1, -2) @ query, for_value, for_stay, None, None


def _causal_scores(query: Tensor, key: Tensor, scaling: float, new: int) -> Tensor:
    """Compute the scores of the newest `new` queries, minus infinity for keys after them; float32."""
    scores = (query @ key.transpose(-1, -2)).float().mul_(scaling)
    future = torch.ones(new, new, dtype=torch.bool, device=key.device).triu(1)
    scores[..., -new:].unflatten(2, (-1, new)).masked_fill_(future, -inf)
    return scores


def _ratio(scores: Tensor, total: Tensor) -> Tensor:
    """Compute each token's attention in units of that of all that stay, in place of the scores."""
    return scores.sub_(total).clamp_max_(_LARGEST).exp_()


def _attend(query: Tensor, key: Tensor, value: Tensor, stay: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Compute the attention of the newest `queries` tokens to the tokens that stay.

    Returns:
        Weights for the spectrogram, means over a KV head's queries, (rows, kv_heads, queries, tokens) without gradient;
        the output, (rows, query_heads, queries, value_dim).
    """
    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    packed = query.reshape(rows, kv_heads, heads // kv_heads * new, width)
    output, weights = _Attention.apply(packed, key, value, stay, scaling, new)
    return weights, output.view(rows, heads, new, -1)


def straight_through_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention; registered with transformers as "straight-through", with its shapes."""
    output = kwargs["straight_through"].attend(query, key, value, scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, straight_through_attention)
AttentionMaskInterface.register(NAME, causal_only)
