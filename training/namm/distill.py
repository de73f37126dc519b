"""A first NAMM that tells heads apart: fitted to keep all of the heads whose cache is worth most, and little of others.

A NAMM has no parameter for a layer or a head, but attention looks different where it reaches far back. This fits the
network, by gradient and in minutes, to decide by looks what `heads.py` measured; learning through eviction
(`learning.py`) goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.policy import LayerView
from namm_transfer.training.namm.importance import WholeHeads, worthiest
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.whitening import gradient, through

_RATE, _WARM_UP = 1e-2, 50  # of Adam, in steps
_CAP = 0.4  # of a head's worth: one head in all weighs more than the rest together, and is soon right
_ALWAYS_WEIGHT = 0.3  # of the tokens that every head keeps


@dataclass(frozen=True)
class Seen:
    """What a NAMM saw of one layer at one update, and had to decide on."""

    layer: int
    seen: int
    """Real tokens processed."""
    spectrum: Tensor
    """(kv_heads, 17, tokens) float16"""
    positions: Tensor
    """(kv_heads, tokens) int32, -1 for holes"""
    always: Tensor
    """(kv_heads, tokens) bool: the sinks and recent tokens that every head keeps"""


class Watcher(NAMM):
    """Evicts as `WholeHeads` does and remembers what a NAMM would have seen."""

    def __init__(self, whole: Tensor, update_interval: int) -> None:
        super().__init__(update_interval)
        self.rule = WholeHeads(whole, update_interval)
        self.seen: list[Seen] = []

    def select(self, view: LayerView) -> Tensor:
        """As the rule does."""
        spectrum = view.state["spectrum"][0].half().cpu()
        always = self.rule.little.select(view)[0].cpu()
        self.seen.append(Seen(view.layer, view.seen[0], spectrum, view.positions[0].cpu().clone(), always))
        return self.rule.select(view)


@torch.no_grad()  # not inference mode: what is seen takes part in gradients later
def watch(adapter: CausalLMAdapter, quiz: Quiz, whole: Tensor, update_interval: int) -> list[Seen]:
    """All layers and updates of one quiz, read while the heads in `whole` keep everything."""
    watcher = Watcher(whole, update_interval)
    adapter.model(quiz.tokens[None], **{CACHE: adapter.memory(watcher)}, logits_to_keep=1)
    return watcher.seen


class Imitation:
    """Logistic regression of "keep" on what was seen, weighted by what a mistake costs.

    A token of a head that is worth w is kept for w and dropped for the price, which lies between the worth of the last
    head that keeps everything and that of the next.

    Args:
        worth: (layers, kv_heads), from `heads.worth`.
        whole: how many heads keep everything.

    Raises:
        NammTransferError: `whole` is not between 1 and the number of heads.
    """

    def __init__(self, worth: Tensor, whole: int) -> None:
        self.whole = worthiest(worth, whole)
        ranked = worth.flatten().sort(descending=True).values
        self.price = float(ranked[whole - 1 : whole + 1].mean().clamp_min(1e-4))
        capped = worth.clamp(0, _CAP)
        self._keep = capped / (capped + self.price)
        self._weight = capped.clamp_min(self.price)
        self._weight = self._weight / self._weight.mean()

    def loss(self, namm: NAMM, seen: Seen) -> Tensor:
        """A scalar, with a gradient."""
        real, keep = seen.positions >= 0, self._keep[seen.layer][:, None]
        features = namm.features(seen.spectrum.float()[None], seen.positions[None].clamp_min(0))
        scores = namm.score(features, real[None])[0]
        wrong = keep * softplus(-scores) + (1 - keep) * softplus(scores)
        open_to_choice = _mean(wrong, real & ~seen.always) * self._weight[seen.layer]
        return (open_to_choice + _ALWAYS_WEIGHT * _mean(softplus(-scores), seen.always)).mean()

    def fit(
        self,
        seen: Sequence[Seen],
        start: Tensor,
        matrix: Tensor,
        statistics: Moments,
        *,
        steps: int,
        seed: int,
        tick: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """The fitted vector, (4172,) float32, read `through` the matrix as `start` is; on the CPU."""
        rng, vector = random.Random(seed), start.clone().requires_grad_(True)
        by_layer = [[s for s in seen if s.layer == layer] for layer in range(len(self.whole))]
        optimizer = torch.optim.Adam([vector], betas=(0.9, 0.98))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _RATE * min(1, (step + 1) / _WARM_UP) * (1 - step / steps)
            namm = NAMM.from_vector(through(vector.detach(), matrix), mean=statistics.mean, var=statistics.var)
            namm.requires_grad_(True)
            loss = torch.stack([self.loss(namm, rng.choice(some)) for some in by_layer]).mean()
            vector.grad = gradient(loss, namm, matrix)
            optimizer.step()
            tick()
        return vector.detach()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Over the tokens of each head, (kv_heads,); 0 with none."""
    return (values * where).sum(-1) / where.sum(-1).clamp_min(1)
