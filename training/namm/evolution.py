"""Making a NAMM on text: the learned start, then CMA-ES (ask, evaluate, tell, write down), validating the mean."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text import prose
from namm_transfer.evals.tasks.text.families import make_prompt
from namm_transfer.files import write_atomic
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.scorers import FEATURES, SCORERS
from namm_transfer.training.loop import check_identity, progress_bar
from namm_transfer.training.namm import fitness, plot
from namm_transfer.training.namm.cmaes import Search
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.fitness import Scores
from namm_transfer.training.namm.learning import METRICS, Learning, distinct, saved_start
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt
from namm_transfer.training.namm.state import FIELDS, State
from namm_transfer.training.namm.whitening import unwhiten

LEARNED = ("model", "families", "statistics_prompts", "validation_tokens", "update_interval", "selection")
"""Fields that decide the learned start, besides `attention_dtype` and the `learn_...` fields."""

MAY_CHANGE = ("learn_steps", "learn_tokens", "learn_intervals", "learn_batch")
"""Fields that may differ from one run to the next while learning goes on."""

_NOT_IDENTITY = ("generations", "kept_share")  # where to stop, and the size of what comes out
_BIASES = (-4.0, 4.0)  # between which the output bias is moved; scores differ by about 1.5
_HALVINGS = 8
_SEARCHED = 10**6  # number of the first multi-question prompt of the search; those before are learned from

_CARD = """---
license: apache-2.0
library_name: namm-transfer
---
# A NAMM made on text

{how} The weights are the search's mean with the best validation; `evolution.jsonl` has one line a generation, with
scores relative to the full cache on the same prompts. Made by `evals/evolve.py --seed {seed}` with

```json
{config}
```
"""
_HOW = {
    "learned": "Learned by gradient through its own evictions, then searched with CMA-ES.",
    "zero": "Evolved with CMA-ES, from zeros.",
}


def learned_by(config: EvolutionConfig) -> list[str]:
    """Return the fields of the configuration that must not change when learning continues."""
    fixed = (*LEARNED, "attention_dtype", "scorer", "pooled_tokens")
    return [n for n in config.stated() if n in fixed or (n.startswith("learn_") and n not in MAY_CHANGE)]


class Evolution:
    """One run that makes a NAMM on text.

    Args:
        adapters: the base model, and those of `learn_also` in the configuration, in their order; the same object for
            the same model.
        config: how to make it.
        seed: seed of the search and of the prompts.
        out: folder of everything written: the NAMM with the best validation (`model.safetensors`, `config.json`),
            `evolution.jsonl`, `plot.svg`, and in `state/` what is needed to go on.
        resume: go on from the state in `out`.
        accelerator: the processes that share the work.

    Raises:
        NammTransferError: `out` holds a state and `resume` is off, or that state cannot be continued under `config`.
    """

    def __init__(
        self,
        adapters: Sequence[CausalLMAdapter],
        config: EvolutionConfig,
        *,
        seed: int,
        out: Path,
        resume: bool,
        accelerator: Accelerator,
    ) -> None:
        self.adapters, self.adapter, self.config, self.seed = adapters, adapters[0], config, seed
        self.out, self.accelerator = out, accelerator
        self.form = SCORERS[config.scorer]
        begun = [path for path in (self._state_path, self._learning_path) if path.exists()]
        if begun and not resume:
            raise NammTransferError(f"{begun[0]} exists: go on from it with --resume, or give another --out")
        self.state = self._resume() if resume and begun != [self._learning_path] else self._begin()

    @property
    def _state_path(self) -> Path:
        return self.out / "state" / "state.safetensors"

    @property
    def _learning_path(self) -> Path:
        return self.out / "state" / "learning.safetensors"

    @property
    def statistics(self) -> Moments:
        """The frozen normalisation statistics."""
        row = self.state.statistics
        return Moments(float(row[0]), torch.tensor(row[1:18]), torch.tensor(row[18:]))

    @property
    def mean(self) -> np.ndarray:
        """The flat vector of the search's mean, (size,) float64."""
        return self._flat(self.search.mean[None])[0]

    def run(self) -> NAMM:
        """Search up to the last generation.

        Returns:
            The NAMM with the best validation, its output bias moved to the kept share asked for.
        """
        config, search = self.config, self.search
        with progress_bar(self.accelerator, "search", config.generations, search.generation) as bar:
            while search.generation < config.generations:
                scores = self._generation()
                search.tell(scores.fitness(config.penalty))
                due = search.generation % config.validation_every == 0 or search.generation == config.generations
                self._record(scores, self.validate(self.mean) if due else None)
                _, mean, *_, signal = self.state.log[-1]
                best = np.nanmax(self.state.log[:, 2])
                bar.set_postfix(fitness=f"{mean:.3f}", best=f"{best:.3f}", signal=f"{signal:.2f}")
                bar.update()
        namm = self.best()
        if config.kept_share:
            namm = self._sized(namm, config.kept_share)
        self._publish(namm)
        return namm

    def best(self) -> NAMM:
        """Return the mean with the best validation as a NAMM."""
        statistics = self.statistics
        return NAMM.from_vector(self.state.best, mean=statistics.mean, var=statistics.var, **self.config.memory)

    def validate(self, vector: np.ndarray) -> Scores:
        """Score one vector, (size,), on the validation prompts."""
        prompts = self._prompts("validation", self.config.validation_prompts, 0, self.config.validation_tokens)
        return self._evaluate(prompts, vector[None], "validation")

    def _generation(self) -> Scores:
        """Score the members of this generation on prompts that the learned start does not use."""
        config, number = self.config, self.search.generation
        if config.multi_question_prompts:
            first, lengths = number * config.multi_question_prompts, config.tokens
            numbers = range(first, first + config.multi_question_prompts)
            make = MultiQuestionPrompt.make
            prompts = [make(self.adapter, self.seed, _SEARCHED + n, lengths[n % len(lengths)]) for n in numbers]
        else:
            prompts = self._prompts("train", config.prompts, number, config.tokens)
        return self._evaluate(prompts, self._flat(self.search.ask()), f"generation {number + 1}")

    def _evaluate(self, prompts: Sequence[MultiQuestionPrompt], vectors: np.ndarray, what: str) -> Scores:
        config, jobs = self.config, len(prompts) * -(-len(vectors) // self.config.batch)
        with progress_bar(self.accelerator, what, jobs // self.accelerator.num_processes) as bar:
            return fitness.evaluate(
                self.adapter, prompts, vectors, self.statistics, config, self.accelerator, bar.update
            )

    def _prompts(
        self,
        split: prose.Split,
        each: int,
        generation: int,
        tokens: Sequence[int],
        adapter: CausalLMAdapter | None = None,
    ) -> list[MultiQuestionPrompt]:
        """Make `each` prompts of every family, with the lengths `tokens` in turn, in tokens of the base model or of
        another `adapter`."""
        adapter = adapter or self.adapter
        prompts = [
            make_prompt(family, split, self.seed, n, tokens=tokens[n % len(tokens)], count=adapter.count)
            for family in self.config.families
            for n in range(generation * each, (generation + 1) * each)
        ]
        return [MultiQuestionPrompt.of(adapter, prompt) for prompt in prompts]

    def _sized(self, namm: NAMM, share: float) -> NAMM:
        """Return a copy whose output bias, found by bisection, makes it keep this share of the longest validation
        prompts, or a little less."""
        low, high = _BIASES
        longest = (max(self.config.validation_tokens),)
        prompts = self._prompts("validation", self.config.validation_prompts, 0, longest)
        with progress_bar(self.accelerator, "size", _HALVINGS) as bar:
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                kept = fitness.kept_share(self.adapter, prompts, _raised(namm, middle), self.accelerator)
                low, high = (low, middle) if kept > share else (middle, high)
                bar.update()
        return _raised(namm, low)

    def _identity(self, fields: Collection[str] | None = None) -> dict[str, Any]:
        """Return all that decides a result: the seed, the text, the model's arithmetic and these fields of the
        configuration (all but `_NOT_IDENTITY` by default)."""
        used = {name: value for name, value in self.config.stated().items() if name not in _NOT_IDENTITY}
        used = {name: value for name, value in used.items() if fields is None or name in fields}
        used |= {"seed": self.seed, "text": prose.fingerprint(), "dtype": str(self.adapter.model.dtype)}
        return used if fields is not None else used | {"cma": version("cma")}

    def _begin(self) -> State:
        moments = self._moments()
        start, matrix, log = self._start(moments)
        self.search = self._search(start)
        self.state = State(
            identity=self._identity(),
            statistics=moments.to_row().numpy(),
            start=start,
            matrix=matrix,
            learning=log,
            history=self.search.history,
            mean=start,
            log=np.zeros((0, len(FIELDS))),
            best=start,
            best_generation=np.array([0]),
        )
        self._record(None, self.validate(self.mean))
        return self.state

    def _moments(self) -> Moments:
        """Estimate the normalisation statistics on all base models, or take those of the NAMM to go on from."""
        config = self.config
        if config.learn_from:
            namm = saved_start(config)
            return Moments(1.0, namm.mean.double(), namm.var.double())
        moments = Moments()
        for adapter in distinct(self.adapters):
            prompts = self._prompts("train", config.statistics_prompts, 10**6, config.validation_tokens, adapter)
            with progress_bar(self.accelerator, "statistics", len(prompts) // self.accelerator.num_processes) as bar:
                moments.merge(fitness.estimate_statistics(adapter, prompts, config, self.accelerator, bar.update))
        return moments

    def _search(self, start: np.ndarray) -> Search:
        config = self.config
        return Search(start[-config.dimensions :], members=config.members, sigma=config.sigma, seed=self.seed)

    def _flat(self, found: np.ndarray) -> np.ndarray:
        """Make flat vectors from the searched parameters: (n, dimensions) -> (n, size)."""
        rest, matrix = self.state.start[: -self.config.dimensions], torch.tensor(self.state.matrix).double()
        whitened = (torch.tensor(np.concatenate([rest, some])) for some in found)
        return np.stack([unwhiten(vector, matrix, self.form).numpy() for vector in whitened])

    def _start(self, statistics: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute `start`, `matrix` and `learning` of the state."""
        if self.config.start == "zero":
            return (
                np.zeros(self.form.size),
                np.eye(FEATURES, dtype=np.float32),
                np.zeros((0, len(METRICS)), dtype=np.float32),
            )
        learning = Learning(
            self.adapters,
            self.config,
            statistics,
            seed=self.seed,
            path=self._learning_path,
            identity=self._identity(learned_by(self.config)),
            accelerator=self.accelerator,
        )
        vector, matrix = learning.run()
        return vector.double().cpu().numpy(), matrix.cpu().numpy(), learning.loop.log[:, 1:].numpy()

    def _resume(self) -> State:
        state = State.read(self._state_path)
        check_identity(self._state_path, state.identity, self._identity())
        self.search = self._search(state.start)
        self.search.replay(state.history)
        self.state = state
        if not np.allclose(self.mean, state.mean, rtol=1e-9, atol=1e-12):
            raise NammTransferError(
                f"{self._state_path}: the search cannot be replayed here (another pycma or numpy?); largest difference "
                f"{np.abs(self.mean - state.mean).max():g}"
            )
        return state

    def _record(self, members: Scores | None, validated: Scores | None) -> None:
        """Append a line to the log and write it to disk; without members, it is the line of the start."""
        state, search, penalty = self.state, self.search, self.config.penalty
        fitness_mean = validation = signal = kept = float("nan")
        if validated is not None:
            validation, kept = validated.fitness(penalty)[0], validated.kept.mean()
        if members is not None:
            fitness_mean, signal = members.fitness(penalty).mean(), members.signal(penalty)
            kept = members.kept.mean()
        improved = validated is not None and not (state.log[:, 2] >= validation).any()
        if improved:
            state.best, state.best_generation = self.mean, np.array([search.generation])
        state.history, state.mean = search.history, self.mean
        state.log = np.vstack([state.log, [search.generation, fitness_mean, validation, kept, search.sigma, signal]])
        if self.accelerator.is_main_process:
            state.write(self._state_path)
            write_atomic(self.out / "evolution.jsonl", state.jsonl())
        if validated is not None:
            self._publish(self.best())
        self.accelerator.wait_for_everyone()

    def _publish(self, namm: NAMM) -> None:
        """Write this NAMM and the figure."""
        if self.accelerator.is_main_process:
            card = self.out / "README.md"
            if not card.exists():  # save_pretrained would write an empty one
                config = json.dumps(dataclasses.asdict(self.config), indent=2, sort_keys=True)
                write_atomic(card, _CARD.format(how=_HOW[self.config.start], seed=self.seed, config=config))
            namm.save_pretrained(self.out)
            write_atomic(self.out / "plot.svg", plot.draw(self.state.log, self.state.learning))


def _raised(namm: NAMM, bias: float) -> NAMM:
    """Return a copy whose scores are higher by this much."""
    raised = copy.deepcopy(namm)
    raised.output.bias.data.add_(bias)
    return raised
