"""Everything that decides how a NAMM is made on text; the defaults are those of the shipped `namm-text`.

A NAMM is first learned by gradient through its own evictions (fields `learn_...`), then searched with CMA-ES. The
published method skips the first stage: `start = "zero"`, `dimensions = 4172`, `selection = "layer"`, `penalty = 0`,
`sigma = 0.065` and `members = 32` come nearest to it; its tasks are not among the ones here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text.families import FAMILIES, TRAINED
from namm_transfer.policy import check_interval
from namm_transfer.scorers import check_pooled_tokens, scorer
from namm_transfer.spectrogram import HOP

_SHORT = 100  # tokens by which a multi-question prompt may miss the length asked for, its questions included


@dataclass(frozen=True)
class EvolutionConfig:
    """Configuration of the learning and the search of a NAMM, besides the seed."""

    model: str = "smollm2"
    """Base model: a folder, a hub id, a .gguf file, or smollm2."""

    learn_also: tuple[str, ...] = ()
    """More base models, given as `model` is, that statistics, importance, distillation and learning take in turn with
    it; one that is named twice has twice the steps. The search and its validation use `model` alone."""

    scorer: Literal["published", "deep"] = "published"
    """Form of the scoring network: the paper's, or this project's with a hidden layer (`namm_transfer.scorers`)."""

    pooled_tokens: int | None = None
    """With the deep form, describe a head that holds more tokens than this by its newest ones."""

    families: tuple[str, ...] = TRAINED
    """Task families of the prompts that members of the search are scored on."""

    prompts: int = 4
    """Prompts of each family in a generation, the same for all members and new in every generation."""

    multi_question_prompts: int = 0
    """Score members on this many texts with up to five questions each instead of prompts of the families: more answers
    for the same reading. Validation stays on prompts of the families."""

    tokens: tuple[int, ...] = (420, 580, 740)
    """Lengths in tokens of the prompts that members are scored on, taken in turn."""

    update_interval: int = 128
    """Tokens between updates of the cache. What comes before the first update is read once for all members."""

    selection: Literal["head", "layer"] = "head"
    """head: each KV head keeps the tokens that score above zero. layer: each keeps as many tokens as the head of its
    layer that keeps most, as published."""

    penalty: float = 1.0
    """Subtracted from the fitness for a cache of full size, in proportion for a smaller one."""

    members: int = 12
    """Population size of CMA-ES."""

    sigma: float = 0.03
    """Initial step size of CMA-ES. One that is too small shows in evolution.jsonl as a `signal` near 0: members differ
    less than chance makes them differ."""

    start: Literal["zero", "learned"] = "learned"
    """learned: the search starts from a NAMM learned by gradient through its evictions. zero: from zeros, as
    published."""

    learn_importance_prompts: int = 8
    """Multi-question prompts on which the importance of each KV head is measured."""

    learn_gate_steps: int = 0
    """Steps in which it is learned, for all heads of a model together, which of them need their cache. 0 measures the
    importance of each head by itself instead."""

    learn_from: str = ""
    """Learning goes on from this saved NAMM, a folder or a name of NAMM.from_pretrained, and keeps its statistics: none
    are estimated, no importance is measured and nothing is distilled. Empty: it starts from the distillation."""

    learn_important_heads: int = 30
    """Number of KV heads, the most important ones, that keep everything in the rule that is distilled first; as large a
    share of the heads of each model in `learn_also`."""

    learn_random_rule: bool = False
    """Observe prompts for the distillation while heads drawn at random keep everything, new ones for each prompt,
    instead of the important ones. Then no head gives itself away by what it has lost."""

    learn_distillation_prompts: int = 64
    """Multi-question prompts that the distillation observes, an equal part of them on each base model."""

    learn_distillation_steps: int = 1500
    """Steps of that distillation, a few a second."""

    learn_steps: int = 1500
    """Steps of gradient descent through the evictions, seconds each. Before the search has begun, this may be raised,
    and the lengths and intervals changed: --resume then goes on along the longer learning-rate schedule."""

    learn_rate: float = 2e-3
    """Peak learning rate of Adam in these steps; it falls to a twentieth by the end."""

    learn_prompts: int = 2
    """Multi-question prompts in a step. Processes share them."""

    learn_batch: int = 1
    """Number of these prompts in one forward pass; larger batches use a GPU better and change rounding only."""

    learn_tokens: tuple[int, ...] = (420, 560, 680, 800, 960)
    """Lengths in tokens of these prompts; each step draws one."""

    learn_intervals: tuple[int, ...] = (64, 128, 128, 128, 256)
    """Update intervals; each step draws one."""

    learn_kept_share: float = 0.5
    """Mean share of the tokens that is to be kept when a prompt has been read."""

    learn_penalty: float = 3.0
    """Subtracted for a cache of full size in the first step, in proportion for a smaller one; later steps follow
    `learn_kept_share`."""

    kept_share: float = 0.48
    """Share of the tokens that the finished NAMM keeps of the longest validation prompts; its output bias is moved
    until it does. 0 leaves the bias as the search found it."""

    dimensions: int = 26
    """Number of parameters that the search changes, counted from the end of the flat vector: 26 are the output layer,
    76 with the bias before it, 4172 all; of the deep form 65 and 14753. After a learned start they are whitened:
    ordinary tokens differ equally in all directions."""

    generations: int = 150
    """Generations after which the search stops; 0 ships the learned start."""

    statistics_prompts: int = 4
    """Prompts of each family for the normalisation statistics."""

    validation_prompts: int = 6
    """Held-out prompts of each family, always the same."""

    validation_tokens: tuple[int, ...] = (560, 950)
    """Lengths in tokens of the prompts for validation and statistics, taken in turn."""

    validation_every: int = 5
    """Generations from one validation of the mean to the next."""

    attention_dtype: str = "bfloat16"
    """Dtype to which attention weights are rounded before the spectrogram; the published runs used bfloat16."""

    batch: int = 12
    """Number of members in one forward pass. Another number may change the last bits of a score."""

    def __post_init__(self) -> None:
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown or not self.families:
            raise NammTransferError(f"families {list(self.families)}: expected some of {', '.join(FAMILIES)}")
        if self.members < 2:
            raise NammTransferError(f"members={self.members}: expected 2 or more")
        for name in ("sigma", "learn_rate"):
            if not 0 < getattr(self, name) < inf:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected a positive number")
        for name in ("penalty", "learn_penalty"):
            if not 0 <= getattr(self, name) < inf:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected 0 or a positive number")
        counts: tuple[str, ...] = (
            "prompts",
            "statistics_prompts",
            "validation_prompts",
            "validation_every",
            "batch",
        )
        counts += ("learn_steps", "learn_prompts", "learn_batch", "learn_importance_prompts", "learn_important_heads")
        for name in (*counts, "learn_distillation_prompts", "learn_distillation_steps"):
            if getattr(self, name) < 1:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.learn_prompts % self.learn_batch:
            raise NammTransferError(
                f"learn_batch={self.learn_batch}: expected a divisor of learn_prompts={self.learn_prompts}"
            )
        for name in ("multi_question_prompts", "generations", "learn_gate_steps"):
            if getattr(self, name) < 0:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected 0 or more")
        for name in ("kept_share", "learn_kept_share"):
            if not 0 <= getattr(self, name) < 1:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected a share from 0 to below 1")
        check_pooled_tokens(self.pooled_tokens, self.scorer)
        size = scorer(self.scorer).size
        if not 1 <= self.dimensions <= size:
            raise NammTransferError(f"dimensions={self.dimensions}: expected 1 to {size}")
        self._check_lengths()

    def _check_lengths(self) -> None:
        for name in ("tokens", "validation_tokens", "learn_tokens", "learn_intervals"):
            if not getattr(self, name):
                raise NammTransferError(f"{name} is empty: expected one length or more")
        for interval in (self.update_interval, *self.learn_intervals):
            check_interval(interval, HOP)
        if min(self.learn_tokens) <= max(self.learn_intervals) + _SHORT:
            raise NammTransferError(
                f"learn_tokens={self.learn_tokens}: expected each to exceed the longest of learn_intervals="
                f"{self.learn_intervals} by more than {_SHORT}, since nothing is evicted from a shorter prompt"
            )
        if min([*self.tokens, *self.validation_tokens]) <= self.update_interval:
            raise NammTransferError(
                f"tokens {self.tokens} and {self.validation_tokens}: expected prompts longer than update_interval="
                f"{self.update_interval}, since nothing is evicted from a shorter one"
            )

    @property
    def memory(self) -> dict[str, Any]:
        """Return the constructor options of the NAMM during training and search."""
        names = ("update_interval", "selection", "attention_dtype", "scorer", "pooled_tokens")
        return {name: getattr(self, name) for name in names}

    def stated(self) -> dict[str, Any]:
        """Return the fields by name, without those that older states do not have while they have their defaults."""
        added = ["learn_also", "scorer", "learn_gate_steps", "learn_random_rule", "learn_distillation_prompts"]
        added += ["learn_from", "learn_penalty", "pooled_tokens"]
        defaults = {field.name: field.default for field in dataclasses.fields(EvolutionConfig)}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(EvolutionConfig)}
        return {name: value for name, value in fields.items() if name not in added or value != defaults[name]}
