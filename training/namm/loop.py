"""The evolution: ask, evaluate, tell, write down; validate the mean now and then."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text import prose as text
from namm_transfer.evals.tasks.text.families import make_prompt
from namm_transfer.files import write_atomic
from namm_transfer.namm import FEATURES, NAMM, RECENCY, SHAPES, SIZE
from namm_transfer.training.namm import fitness as scoring
from namm_transfer.training.namm import plot
from namm_transfer.training.namm.cmaes import Search, SearchOptions
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.fitness import Scores
from namm_transfer.training.namm.learning import Learning
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.progress import progress
from namm_transfer.training.namm.state import FIELDS, State
from namm_transfer.training.namm.statistics import Moments
from namm_transfer.training.namm.whitening import through

LEARNED = (
    "model",
    "families",
    "statistics_prompts",
    "validation_tokens",
    "update_interval",
    "selection",
    "attention_dtype",
)
"""What decides the learned start, besides the `learn_...` fields."""

CURRICULUM = ("learn_steps", "learn_tokens", "learn_intervals")
"""What may differ from sitting to sitting while learning goes on."""

_BIASES = (-4.0, 4.0)  # between which the output bias is moved to hold `held`; scores differ by about 1.5
_HALVINGS = 8
_SEARCHED = 10**6  # number of the first quiz of the search; those before are learned from

_CARD = """---
license: apache-2.0
library_name: namm-transfer
---
# A NAMM evolved on text

`evolution.jsonl` has one line a generation: fitness and validation are scores against the full cache on the same
prompts. The weights are the search's mean with the best validation. Made by `evals/evolve.py --seed {seed}` with

```json
{config}
```
"""


def learned_by(config: EvolutionConfig) -> list[str]:
    """Fields that have to stay as they are while learning goes on."""
    return [n for n in vars(config) if n in LEARNED or (n.startswith("learn_") and n not in CURRICULUM)]


def start_vector(kind: str) -> np.ndarray:
    """(4172,) float64 that needs no learning; see `EvolutionConfig.start`."""
    vector = np.zeros(SIZE)
    if kind == "attention":
        first = SIZE - 1 - SHAPES["output.weight"][0]
        vector[first + RECENCY : SIZE - 1] = 1.0
    return vector


def _raised(namm: NAMM, bias: float) -> NAMM:
    """A copy whose scores are higher by this much."""
    raised = copy.deepcopy(namm)
    raised.output.bias.data.add_(bias)
    return raised


class Evolution:
    """One evolution of a NAMM on text.

    Args:
        adapter: the base model.
        config: what to do.
        seed: of the search and of the prompts.
        out: folder of everything written: the NAMM with the best validation (`model.safetensors`, `config.json`),
            `evolution.jsonl`, `plot.svg`, and in `state/` what is needed to go on.
        resume: go on from the state in `out`.
        accelerator: the processes that share the work.
    """

    def __init__(
        self,
        adapter: CausalLMAdapter,
        config: EvolutionConfig,
        *,
        seed: int,
        out: Path,
        resume: bool,
        accelerator: Accelerator,
    ) -> None:
        self.adapter, self.config, self.seed, self.out, self.accelerator = adapter, config, seed, out, accelerator
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
        """The solution so far, (4172,) float64."""
        return self._whole(self.search.mean[None])[0]

    def run(self) -> NAMM:
        """Evolve up to the last generation; the NAMM with the best validation."""
        config, search = self.config, self.search
        bar = tqdm(
            total=config.generations,
            initial=search.generation,
            unit="generation",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        with bar:
            while search.generation < config.generations:
                scores = self._generation()
                fitness = scores.fitness(config)
                search.tell(fitness)
                due = search.generation % config.validation_every == 0 or search.generation == config.generations
                self._record(scores, self.validate(self.mean) if due else None)
                validation, signal = np.nanmax(self.state.log[:, 2]), self.state.log[-1, 5]
                bar.set_postfix(fitness=f"{fitness.mean():.3f}", best=f"{validation:.3f}", signal=f"{signal:.2f}")
                bar.update()
        namm = self.best() if config.held is None else self._sized(self.best(), config.held)
        self._publish(namm)
        return namm

    def best(self) -> NAMM:
        """The mean with the best validation, as a NAMM."""
        statistics = self.statistics
        return NAMM.from_vector(self.state.best, mean=statistics.mean, var=statistics.var, **self.config.memory)

    def validate(self, vector: np.ndarray) -> Scores:
        """Scores of one vector on the held-out prompts."""
        config = self.config
        prompts = self._prompts("validation", config.families, config.validation_prompts, 0, config.validation_tokens)
        bar = self._bar(len(prompts), "validation")
        with bar:
            return scoring.evaluate(
                self.adapter, prompts, vector[None], self.statistics, config, self.accelerator, bar.update
            )

    def _sized(self, namm: NAMM, share: float) -> NAMM:
        """With the output bias, found by bisection, at which validation prompts hold this share or a little less."""
        config, (low, high) = self.config, _BIASES
        longest = (max(config.validation_tokens),)
        prompts = self._prompts("validation", config.families, config.validation_prompts, 0, longest)
        with progress(self.accelerator, "size", _HALVINGS) as bar:
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                much = scoring.held(self.adapter, prompts, _raised(namm, middle), self.accelerator) > share
                low, high = (low, middle) if much else (middle, high)
                bar.update()
        return _raised(namm, low)

    def _generation(self) -> Scores:
        """Scores of the members of this generation."""
        config, number = self.config, self.search.generation
        quizzes = self._quizzes(number)
        bar = self._bar(len(quizzes) * -(-config.members // config.batch), f"generation {number + 1}")
        with bar:
            return scoring.evaluate(
                self.adapter,
                quizzes,
                self._whole(self.search.ask()),
                self.statistics,
                config,
                self.accelerator,
                bar.update,
            )

    def _quizzes(self, generation: int) -> list[Quiz]:
        """What the members of this generation are scored on: quizzes not learned from, or prompts of the families."""
        config = self.config
        if not config.quizzes:
            return self._prompts("train", config.active(generation), config.prompts, generation, config.tokens)
        numbers = range(generation * config.quizzes, (generation + 1) * config.quizzes)
        lengths = config.tokens
        return [Quiz.make(self.adapter, self.seed, _SEARCHED + n, lengths[n % len(lengths)]) for n in numbers]

    def _prompts(
        self, split: text.Split, families: Sequence[str], each: int, generation: int, tokens: Sequence[int]
    ) -> list[Quiz]:
        numbers = range(generation * each, (generation + 1) * each)
        prompts = [
            make_prompt(f, split, self.seed, n, tokens=tokens[n % len(tokens)], count=self.adapter.count)
            for f in families
            for n in numbers
        ]
        return [Quiz.of(self.adapter, prompt) for prompt in prompts]

    def _bar(self, total: int, what: str) -> tqdm:
        """Of work that the processes share."""
        return progress(self.accelerator, what, total // self.accelerator.num_processes)

    def _settings(self, fields: Collection[str] | None = None) -> str:
        """What decides a result, as JSON: the seed, the text, the model's arithmetic and these fields of the
        configuration (default: all but where to stop and the size of what comes out, which may change from sitting to
        sitting)."""
        config = json.loads(self.config.to_json())
        for name in ("generations", "held"):
            config.pop(name)
        used = {"config": {k: v for k, v in config.items() if fields is None or k in fields}, "seed": self.seed}
        used |= {"text": text.fingerprint(), "cma": version("cma"), "dtype": str(self.adapter.model.dtype)}
        return json.dumps(used, sort_keys=True)

    def _begin(self) -> State:
        config = self.config
        prompts = self._prompts("train", config.families, config.statistics_prompts, 10**6, config.validation_tokens)
        bar = self._bar(len(prompts), "statistics")
        with bar:
            moments = scoring.estimate_statistics(self.adapter, prompts, config, self.accelerator, bar.update)
        start, matrix, lessons = self._start(moments)
        self.search = self._search(start)
        self.state = State(
            settings=self._settings(),
            statistics=moments.to_row().numpy(),
            start=start,
            matrix=matrix,
            lessons=lessons,
            history=self.search.history,
            mean=start,
            log=np.zeros((0, len(FIELDS))),
            best=start,
            best_generation=np.array([0]),
        )
        self._record(None, self.validate(self.mean))
        return self.state

    def _search(self, start: np.ndarray) -> Search:
        config = self.config
        return Search(
            start[-config.dimensions :], SearchOptions(config.members, config.sigma, config.diagonal), self.seed
        )

    def _whole(self, found: np.ndarray) -> np.ndarray:
        """Flat vectors from what is searched for: (n, dimensions) -> (n, 4172)."""
        rest, matrix = self.state.start[: SIZE - self.config.dimensions], torch.tensor(self.state.matrix).double()
        return np.stack([through(torch.tensor(np.concatenate([rest, some])), matrix).numpy() for some in found])

    def _start(self, statistics: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`start`, `matrix` and `lessons` of the state."""
        config = self.config
        if config.start != "learned":
            return start_vector(config.start), np.eye(FEATURES, dtype=np.float32), np.zeros((0, 3), dtype=np.float32)
        learning = Learning(
            self.adapter,
            config,
            statistics,
            start_vector("attention"),
            seed=self.seed,
            path=self._learning_path,
            settings=self._settings(learned_by(config)),
            accelerator=self.accelerator,
        )
        vector, matrix = learning.run()
        return vector.double().cpu().numpy(), matrix.cpu().numpy(), learning.log.numpy()

    def _resume(self) -> State:
        state = State.read(self._state_path)
        if state.settings != self._settings():
            raise NammTransferError(
                f"{self._state_path} was made with other settings: {state.settings}; these are {self._settings()}"
            )
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
        """One more line of the log, the start's where there are no members; on disk when this returns."""
        state, search, config = self.state, self.search, self.config
        fitness = validation = signal = kept = float("nan")
        if validated is not None:
            validation, kept = validated.fitness(config)[0], validated.kept.mean()
        if members is not None:
            fitness, signal, kept = members.fitness(config).mean(), members.signal(config), members.kept.mean()
        improved = validated is not None and not (state.log[:, 2] >= validation).any()
        if improved:
            state.best, state.best_generation = self.mean, np.array([search.generation])
        state.history, state.mean = search.history, self.mean
        state.log = np.vstack([state.log, [search.generation, fitness, validation, kept, search.sigma, signal]])
        if self.accelerator.is_main_process:
            state.write(self._state_path)
            write_atomic(self.out / "evolution.jsonl", state.jsonl())
        if validated is not None:
            self._publish(self.best())
        self.accelerator.wait_for_everyone()

    def _publish(self, namm: NAMM) -> None:
        """This NAMM and the picture."""
        if self.accelerator.is_main_process:
            card = self.out / "README.md"
            if not card.exists():  # save_pretrained would write one that says nothing
                config = json.dumps(json.loads(self.config.to_json()), indent=2)
                write_atomic(card, _CARD.format(seed=self.seed, config=config))
            namm.save_pretrained(self.out)
            write_atomic(self.out / "plot.svg", plot.draw(self.state.log, self.state.lessons))
