"""What an evolution is made of, and the presets: `cpu` for a laptop over several sittings, `paper` as published."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text.families import FAMILIES, TRAINED
from namm_transfer.namm import SIZE
from namm_transfer.policy import check_interval
from namm_transfer.spectrogram import HOP

_SHORT = 100  # tokens that a quiz may lack of the length it was asked for, its questions included


@dataclass(frozen=True)
class EvolutionConfig:
    """Everything that decides an evolution besides its seed."""

    model: str = "smollm2"
    """Base model: folder, hub id, .gguf file, or smollm2."""

    families: tuple[str, ...] = TRAINED
    """Task families of the fitness."""

    introduced: tuple[int, ...] = (0,) * len(TRAINED)
    """Generation from which each family takes part: the incremental schedule."""

    prompts: int = 4
    """Prompts of each family a generation, the same for all members, new ones every generation."""

    quizzes: int = 0
    """Quizzes (texts with up to five questions) a generation instead of prompts of the families: more answers from as
    much reading. Validation stays on prompts."""

    tokens: tuple[int, ...] = (420, 580, 740)
    """Lengths of the prompts or quizzes in tokens, taken in turn."""

    update_interval: int = 128
    """Tokens between updates; what all members share of a prompt is its first update interval."""

    keep: float | None = None
    """Share of the tokens kept during evolution, the top scores; None evolves with the threshold, as published."""

    selection: Literal["head", "layer"] = "head"
    """By threshold, every head keeps what passes (head), or as many as the most generous of its layer (layer, as
    published)."""

    fitness: Literal["logprob", "exact"] = "logprob"
    """logprob: mean log-probability of the answer minus the full cache's on the same prompt, mean over prompts, then
    families. exact: share of exact answers over the full cache's on the same prompts (a ratio of means), mean over
    families, as published."""

    price: float = 0.0
    """Subtracted from the fitness for each unit of kept share above `allowed`."""

    allowed: float = 0.0
    """Mean kept share that costs nothing."""

    members: int = 12
    """Population size."""

    sigma: float = 0.1
    """Initial step size. Too small a one shows in evolution.jsonl as a `signal` near 0: the members differ by less than
    the draw of quizzes makes of them."""

    diagonal: bool = False
    """Only the diagonal of the covariance matrix is adapted (separable CMA-ES)."""

    start: Literal["zero", "attention", "learned"] = "learned"
    """zero: all parameters 0, as published. attention: the output weights of the 17 spectral features are 1, so that
    the search starts from a rule that keeps what has received the most attention. learned: by gradient descent through
    the evictions; see `namm_transfer.training.namm.learning`."""

    learn_measured: int = 8
    """Quizzes (texts with up to five questions) on which it is measured what each head's cache is worth."""

    learn_heads: int = 30
    """How many KV heads keep everything in what the learned start imitates first."""

    learn_imitation: int = 1500
    """Steps of that imitation, a few a second."""

    learn_steps: int = 1500
    """Steps of gradient descent through the evictions, seconds each. Raised, before the search has begun, it lets
    learning go on where it stood, with the rates that the longer schedule has there; on quizzes of other lengths and
    intervals, if these have changed."""

    learn_rate: float = 2e-3
    """Adam's step size in them at its largest; it falls to a twentieth by the end."""

    learn_quizzes: int = 2
    """Quizzes a step."""

    learn_tokens: tuple[int, ...] = (420, 560, 680, 800, 960)
    """Lengths of the quizzes; each step draws one."""

    learn_intervals: tuple[int, ...] = (64, 128, 128, 128, 256)
    """Update intervals; each step draws one."""

    learn_held: float = 0.5
    """Mean share of the tokens that is to be held when a quiz has been read."""

    held: float | None = None
    """Share of the tokens that validation prompts of the greatest length hold under the NAMM that comes out: its output
    bias is moved until they do. None leaves the size to the evolution."""

    dimensions: int = 26
    """How many parameters the search changes, counted from the end of the flat vector: 26 are the output layer, 76 with
    the bias before it, 4172 all. Fewer need fewer evaluations. After a learned start, they are coordinates in which
    ordinary tokens differ equally in all directions."""

    generations: int = 150
    """Where to stop."""

    statistics_prompts: int = 4
    """Prompts of each family for the normalisation statistics."""

    validation_prompts: int = 6
    """Held-out prompts of each family, always the same."""

    validation_tokens: tuple[int, ...] = (560, 950)
    """Lengths of the validation prompts, and of those for the statistics, in tokens."""

    validation_every: int = 5
    """Generations from one validation of the mean to the next."""

    attention_dtype: str = "float32"
    """What attention rows are rounded to; the published runs used bfloat16."""

    batch: int = 12
    """Members that go through the model together. Another number may change the last bits of a score."""

    def __post_init__(self) -> None:
        unknown = [f for f in self.families if f not in FAMILIES]
        if unknown or not self.families:
            raise NammTransferError(f"families {list(self.families)}: expected some of {', '.join(FAMILIES)}")
        if len(self.introduced) != len(self.families) or 0 not in self.introduced:
            raise NammTransferError(
                f"introduced={self.introduced}: expected one generation for each of the {len(self.families)} families, "
                "one of them 0"
            )
        if self.members < 2 or not self.sigma > 0:
            raise NammTransferError(f"members={self.members}, sigma={self.sigma}: expected 2 or more, and above 0")
        counts = ("prompts", "generations", "statistics_prompts", "validation_prompts", "validation_every", "batch")
        for name in (*counts, "learn_steps", "learn_quizzes", "learn_measured", "learn_heads", "learn_imitation"):
            if getattr(self, name) < 1:
                raise NammTransferError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.quizzes < 0 or (self.quizzes and len(set(self.introduced)) > 1):
            raise NammTransferError(
                f"quizzes={self.quizzes}: expected 0 or more, and 0 where families come in one after another "
                f"(introduced={self.introduced})"
            )
        if self.held is not None and (self.keep is not None or not 0 < self.held < 1):
            raise NammTransferError(f"held={self.held}: expected a share between 0 and 1, and no keep={self.keep}")
        if not 1 <= self.dimensions <= SIZE:
            raise NammTransferError(f"dimensions={self.dimensions}: expected 1 to {SIZE}")
        for name in ("tokens", "validation_tokens", "learn_tokens", "learn_intervals"):
            if not getattr(self, name):
                raise NammTransferError(f"{name} is empty: expected one length or more")
        for interval in (self.update_interval, *self.learn_intervals):
            check_interval(interval, HOP)
        if min(self.learn_tokens) <= max(self.learn_intervals) + _SHORT:
            raise NammTransferError(
                f"learn_tokens={self.learn_tokens}: expected all of them above every one of learn_intervals="
                f"{self.learn_intervals} by more than {_SHORT}, which a quiz may lack, or nothing is ever evicted"
            )
        if min([*self.tokens, *self.validation_tokens]) <= self.update_interval:
            raise NammTransferError(
                f"tokens {self.tokens} and {self.validation_tokens}: prompts have to be longer than update_interval="
                f"{self.update_interval}, or nothing is ever evicted"
            )

    def active(self, generation: int) -> list[str]:
        """Families that take part in a generation."""
        return [f for f, since in zip(self.families, self.introduced, strict=True) if since <= generation]

    @property
    def memory(self) -> dict[str, Any]:
        """Options of the NAMM while it evolves."""
        return {
            "update_interval": self.update_interval,
            "keep": self.keep,
            "selection": self.selection,
            "attention_dtype": self.attention_dtype,
        }

    def to_json(self) -> str:
        """One line that says everything."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


PRESETS: dict[str, EvolutionConfig] = {
    "cpu": EvolutionConfig(price=1.0, sigma=0.03, held=0.48, attention_dtype="bfloat16"),
    # Spec sections 9 and 10, on the families here: three stages, 64 prompts a task, threshold, ratio to the full cache.
    # pycma's own rates differ from the published ones in the fifth digit.
    "paper": EvolutionConfig(
        families=("retrieval", "lookup", "continuation"),
        introduced=(0, 100, 200),
        prompts=64,
        tokens=(3000,),
        update_interval=512,
        selection="layer",
        fitness="exact",
        members=32,
        sigma=0.065,
        dimensions=SIZE,
        start="zero",
        generations=1000,
        statistics_prompts=200,
        validation_prompts=64,
        validation_tokens=(3000,),
        validation_every=10,
        attention_dtype="bfloat16",
    ),
}
