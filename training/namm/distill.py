"""Distillation of a rule into a first NAMM: important heads keep everything, the others sinks and recent tokens.

A NAMM has no parameter for a layer or a head, but attention looks different in heads that reach far back. In minutes,
gradient descent fits the network to the rule, reading spectra recorded while the rule evicts. Learning through the
network's own evictions (`learning.py`) goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import softplus

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.policy import LayerView
from namm_transfer.scorers import SCORERS
from namm_transfer.training.loop import Loop
from namm_transfer.training.namm.fitness import stacked_namm
from namm_transfer.training.namm.importance import RetrievalHeads, most_important
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt
from namm_transfer.training.namm.whitening import unwhiten

_RATE = {"published": 1e-2, "deep": 3e-3}  # peak learning rate of Adam
_WARM_UP = 50  # steps
_CAP = 0.4  # largest importance of a head: one head would outweigh all others together
_ALWAYS_WEIGHT = 0.3  # weight of the tokens that every head keeps


@dataclass(frozen=True)
class Observation:
    """Inputs of a NAMM recorded from one layer at one update."""

    layer: int
    seen: int
    """Real tokens processed."""
    spectrum: Tensor
    """Spectra, (kv_heads, 17, tokens) float16."""
    positions: Tensor
    """Original positions, (kv_heads, tokens) int32; -1 for padding slots."""
    always: Tensor
    """Mark sinks and recent tokens, which every head keeps: (kv_heads, tokens) bool."""


class RuleRecorder(NAMM):
    """Evicts as `RetrievalHeads` does and records the inputs of a NAMM."""

    def __init__(self, retrieval: Tensor, update_interval: int) -> None:
        super().__init__(update_interval)
        self.rule = RetrievalHeads(retrieval, update_interval)
        self.observations: list[Observation] = []

    def select(self, view: LayerView) -> Tensor:
        """Keep the tokens that the rule keeps, and record the observation."""
        spectrum = view.state["spectrum"][0].half().cpu()
        always = self.rule.streaming.select(view)[0].cpu()
        found = Observation(view.layer, view.seen[0], spectrum, view.positions[0].cpu().clone(), always)
        self.observations.append(found)
        return self.rule.select(view)


@torch.no_grad()  # not inference mode: the observations take part in gradients later
def observe(
    adapter: CausalLMAdapter, prompt: MultiQuestionPrompt, retrieval: Tensor, update_interval: int
) -> list[Observation]:
    """Record observations of all layers and updates while one prompt is read under the rule."""
    recorder = RuleRecorder(retrieval, update_interval)
    adapter.model(prompt.tokens[None], **{CACHE: adapter.memory(recorder)}, logits_to_keep=1)
    return recorder.observations


class Distillation:
    """Logistic regression of "this token stays" on observations, weighted by what a mistake costs.

    A token of a head of importance w stays with weight w and goes with the weight of the penalty, which lies between
    the importance of the last head that keeps everything and that of the next.

    Args:
        importance: (layers, kv_heads), from `measure_importance` or `learn_gates`.
        count: how many heads keep everything.
        gates: whether the importance is the values of gates, which then are what a head's tokens should score.

    Raises:
        NammTransferError: `count` is not between 1 and the number of heads.
    """

    def __init__(self, importance: Tensor, count: int, gates: bool = False) -> None:
        self.retrieval = most_important(importance, count)
        if gates:
            self._stays, self._weight = importance.sigmoid(), torch.ones_like(importance)
            return
        ranked = importance.flatten().sort(descending=True).values
        self.penalty = float(ranked[count - 1 : count + 1].mean().clamp_min(1e-4))
        capped = importance.clamp(0, _CAP)
        self._stays = capped / (capped + self.penalty)
        self._weight = capped.clamp_min(self.penalty)
        self._weight = self._weight / self._weight.mean()

    def loss(self, namm: NAMM, found: Observation) -> Tensor:
        """Compute the weighted cross-entropy of one observation, a scalar with a gradient."""
        real, stays = found.positions >= 0, self._stays[found.layer][:, None]
        features = namm.features(found.spectrum.float()[None], found.positions[None].clamp_min(0))
        scores = namm.score(features, real[None])[0]
        wrong = stays * softplus(-scores) + (1 - stays) * softplus(scores)
        chosen = _mean(wrong, real & ~found.always) * self._weight[found.layer]
        return (chosen + _ALWAYS_WEIGHT * _mean(softplus(-scores), found.always)).mean()


def fit(
    parts: Sequence[tuple[Distillation, Sequence[Observation]]],
    start: Tensor,
    matrix: Tensor,
    statistics: Moments,
    *,
    steps: int,
    seed: int,
    accelerator: Accelerator,
    scorer: str = "published",
    pooled_tokens: int | None = None,
) -> Tensor:
    """Fit whitened parameters from `start`, (size,) float32 on the CPU; see `whitening.unwhiten`.

    Args:
        parts: the rule of each base model with observations of it. A step takes one of every layer of one model, the
            models in turn.
        scorer: the form of the scoring network.
        pooled_tokens: as for `NAMM`.
    """
    rng, vector = random.Random(seed), nn.Parameter(start.clone())
    models = [
        (rule, [[o for o in observations if o.layer == layer] for layer in range(len(rule.retrieval))])
        for rule, observations in parts
    ]

    def loss(step: int, part: int) -> tuple[Tensor, list[float]]:
        flat = unwhiten(vector, matrix, SCORERS[scorer])[None]
        namm = stacked_namm(flat, statistics, scorer=scorer, pooled_tokens=pooled_tokens)
        rule, by_layer = models[step % len(models)]
        return torch.stack([rule.loss(namm, rng.choice(some)) for some in by_layer]).mean(), []

    Loop(
        nn.ParameterList([vector]),
        torch.optim.Adam([vector], lr=_RATE[scorer], betas=(0.9, 0.98)),
        loss,
        steps,
        schedule=lambda step: min(1, (step + 1) / _WARM_UP) * (1 - step / steps),
        accelerator=accelerator,
        label="distillation",
    ).run()
    return vector.detach()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Average over the chosen tokens of each head, (kv_heads,); 0 where there are none."""
    return (values * where).sum(-1) / where.sum(-1).clamp_min(1)
