"""A start vector learned by gradient: quizzes about texts that are read under a memory which lets tokens fade.

CMA-ES in 4,172 dimensions learns little from each costly answer. Under a memory that fades (`fading.py`) one backward
pass through the frozen language model tells how every number of the scoring network should change to make the answers
likelier and the cache smaller. Adam follows that, and CMA-ES goes on from there. This is ours, not the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.errors import NammTransferError
from namm_transfer.evolution import fading
from namm_transfer.evolution.config import EvolutionConfig
from namm_transfer.evolution.statistics import Spectra
from namm_transfer.evolution.tasks import make_quiz
from namm_transfer.files import write_atomic
from namm_transfer.moments import Moments
from namm_transfer.namm import FEATURES, NAMM, RECENCY, SHAPES, SIZE

_RATE = 3e-3
_WARM_UP = 20  # steps
_TEMPERATURE = (0.5, 0.15)  # first and last step: in the end a token is nearly kept or nearly gone
_NOISE = (0.5, 0.1)
_PRICE, _PRICE_RATE = 3.0, 0.1  # of a cache of full size, and how fast it follows what is held too much
_STIFFNESS = 15.0  # of the quadratic term beside the price, which keeps the size from swinging
_PROSE = 48  # tokens of each text, drawn at random, whose likelihood counts beside the answers'
_PROSE_WEIGHT = 0.2
_LONGEST = 1.0  # a quiz's gradient is shortened to this norm: now and then one is a hundred times as long
_SPREAD = 1.5  # median distance of the first scores from their median, in units of the score
_RIDGE = 0.01
_SAVE_EVERY = 10  # steps


@dataclass(frozen=True)
class Quiz:
    """A text and several questions in a row, in tokens."""

    tokens: Tensor
    """(length,) int64"""
    text: int
    """Tokens before the first answer."""
    answers: tuple[slice, ...]
    """Where the answers stand in `tokens`."""

    @classmethod
    def encode(cls, adapter: CausalLMAdapter, parts: Sequence[tuple[str, str]]) -> Quiz:
        """From (text, answer) of each question in turn."""
        texts = [text for part in parts for text in part]
        pieces = [
            adapter.tokenizer(text, add_special_tokens=number == 0, return_tensors="pt").input_ids[0].long()
            for number, text in enumerate(texts)
        ]
        ends = list(accumulate(len(piece) for piece in pieces))
        spans = tuple(slice(*span) for span in zip(ends[::2], ends[1::2], strict=True))
        return cls(torch.cat(pieces).to(adapter.device), ends[0], spans)


def through(vector: Tensor, matrix: Tensor) -> Tensor:
    """The flat vector, (4172,), with the weights that read features multiplied from the left by `matrix`, (25, 25)."""
    changed, reading = vector.clone(), SHAPES["attention_in.weight"]
    changed[: reading[0] * reading[1]] = (matrix @ vector[: reading[0] * reading[1]].view(reading)).flatten()
    changed[-1 - FEATURES : -1] = matrix @ vector[-1 - FEATURES : -1]
    return changed


def whitening(spectra: Sequence[Tensor], statistics: Moments) -> Tensor:
    """(25, 25): in which coordinates to learn, so that ordinary tokens differ equally in all directions.

    The statistics of section 4 are those of sinks; beside them all other tokens are nearly the same.

    Args:
        spectra: of full caches, each (heads, 17, tokens).
    """
    tokens = torch.cat([s.float().transpose(1, 2).flatten(0, 1) for s in spectra])
    normalised = ((tokens - statistics.mean) / statistics.var.sqrt().clamp_min(1e-7)).float().clamp(-3, 3)
    values, vectors = torch.linalg.eigh(torch.cov(normalised.T) + _RIDGE * torch.eye(len(statistics.mean)))
    matrix = torch.eye(FEATURES)
    matrix[RECENCY:, RECENCY:] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return matrix


def first(spectra: Sequence[Tensor], statistics: Moments, matrix: Tensor, start: Tensor, seed: int) -> Tensor:
    """Where learning begins, (4172,), to be read `through` the matrix: `start` with a random attention in front of its
    output layer, and scores of full caches that lie around 0."""
    generator = torch.Generator().manual_seed(seed)
    vector = through(start.float(), torch.linalg.inv(matrix))
    inside = SIZE - 1 - FEATURES
    sizes = [torch.Size(shape).numel() for shape in list(SHAPES.values())[:4]]
    spreads = torch.cat([torch.full((n,), s) for n, s in zip(sizes, (0.1, 0.0, 0.05, 0.0), strict=True)])
    vector[:inside] = spreads * torch.randn(inside, generator=generator)
    namm = NAMM.from_vector(through(vector, matrix), mean=statistics.mean, var=statistics.var)
    scores = torch.cat(
        [
            namm.score(namm.features(s.float()[None], torch.arange(s.shape[-1]).expand(1, len(s), -1))).flatten()
            for s in spectra
        ]
    )
    middle = scores.median()
    scale = _SPREAD / (scores - middle).abs().median()
    vector[inside:-1] *= scale
    vector[-1] = (vector[-1] - middle) * scale
    return vector


class Learning:
    """Adam on quizzes, spread over processes; killed, it goes on from what is in `path`.

    Args:
        adapter: the language model, which stays as it is.
        start: (4172,), where to begin; see `first`.
        path: the state on disk.
        settings: whatever decides the result.

    Raises:
        NammTransferError: what is in `path` was made with other settings.
    """

    def __init__(
        self,
        adapter: CausalLMAdapter,
        config: EvolutionConfig,
        statistics: Moments,
        start: np.ndarray,
        *,
        seed: int,
        path: Path,
        settings: str,
        accelerator: Accelerator,
    ) -> None:
        self.adapter, self.config, self.statistics, self.seed = adapter, config, statistics, seed
        self.path, self.settings, self.accelerator = path, settings, accelerator
        self.vector = torch.zeros(SIZE, device=adapter.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.vector], betas=(0.9, 0.98))
        self.log = torch.zeros(0, 3)
        if path.exists():
            self._resume()
        else:
            self._begin(torch.tensor(start))

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.log)

    @property
    def price(self) -> float:
        """Of a cache of full size, now."""
        return float(self.log[-1, 2]) if self.step else _PRICE

    def run(self, tick: Callable[[], object] = lambda: None) -> tuple[Tensor, Tensor]:
        """Learn to the end.

        Returns:
            The vector (4172,) float32, and the matrix (25, 25) to read it `through`.
        """
        model: Any = self.adapter.model
        model.requires_grad_(False)
        model.set_attn_implementation(fading.NAME)
        try:
            while self.step < self.config.learn_steps:
                self._learn()
                if self.step % _SAVE_EVERY == 0 or self.step == self.config.learn_steps:
                    self._save()
                tick()
        finally:
            model.set_attn_implementation("memory")
        return self.vector.detach(), self.matrix

    def _learn(self) -> None:
        """One step: every process takes some of the quizzes, all take the same step."""
        each, progress = self.config.learn_quizzes, self.step / self.config.learn_steps
        table = torch.zeros(each, SIZE + 2, device=self.adapter.device)
        for number in range(self.accelerator.process_index, each, self.accelerator.num_processes):
            table[number] = self._lesson(self.step * each + number, progress)
        mean = self.accelerator.reduce(table, "sum").mean(0)  # every row was filled by one process
        self.vector.grad, (said, held) = mean[:SIZE], mean[SIZE:].tolist()
        self.optimizer.param_groups[0]["lr"] = (
            _RATE * min(1, (self.step + 1) / _WARM_UP) * (0.05 + 0.475 * (1 + cos(pi * progress)))
        )
        self.optimizer.step()
        price = max(0.0, self.price + _PRICE_RATE * (held - self.config.learn_held))
        self.log = torch.cat([self.log, torch.tensor([[said, held, price]])])

    def _lesson(self, number: int, progress: float) -> Tensor:
        """(4174,): the gradient of one quiz's loss, mean log-probability of its answers, share of the tokens held."""
        config, rng = self.config, random.Random(f"{self.seed}/{number}")
        tokens, interval = rng.choice(config.learn_tokens), rng.choice(config.learn_intervals)
        quiz = Quiz.encode(self.adapter, make_quiz("train", self.seed, number, tokens=tokens, count=self.adapter.count))
        namm = NAMM.from_vector(
            through(self.vector.detach(), self.matrix), mean=self.statistics.mean, var=self.statistics.var
        ).to(self.adapter.device)
        memory = fading.Fading(
            namm.requires_grad_(True),
            interval,
            temperature=_TEMPERATURE[0] * (_TEMPERATURE[1] / _TEMPERATURE[0]) ** progress,
            noise=_NOISE[0] * (_NOISE[1] / _NOISE[0]) ** progress,
            generator=torch.Generator().manual_seed(rng.getrandbits(63)),
        )
        answers, prose = self._read(quiz, memory, rng)
        held = torch.stack(memory.held).mean()
        size = self.price * held + _STIFFNESS * (held - config.learn_held).square()
        gradients = torch.autograd.grad(size - answers - _PROSE_WEIGHT * prose, list(namm.parameters()))
        gradient = through(torch.cat([g.flatten() for g in gradients]), self.matrix.T)
        gradient *= (_LONGEST / gradient.norm()).clamp_max(1.0)
        return torch.cat([gradient, torch.stack([answers, held]).detach()])

    def _read(self, quiz: Quiz, memory: fading.Fading, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Mean log-probability of a quiz's answers, and of some tokens of its text."""
        places = range(memory.update_interval, quiz.text - 1)
        prose = sorted(rng.sample(places, min(_PROSE, len(places))))
        said = [list(range(span.start - 1, span.stop - 1)) for span in quiz.answers]
        at = torch.tensor([p for part in (prose, *said) for p in part], device=quiz.tokens.device)
        model: Any = self.adapter.model
        logits = model(quiz.tokens[None], fading=memory, use_cache=False, logits_to_keep=at).logits[0]
        right = logits.float().log_softmax(-1).gather(-1, quiz.tokens[at + 1, None]).squeeze(-1)
        known, *answers = right.split([len(prose), *map(len, said)])
        return torch.stack([answer.mean() for answer in answers]).mean(), known.mean()

    def _begin(self, start: Tensor) -> None:
        """Coordinates and first vector from the spectra of some texts in the full cache."""
        policy = Spectra(self.config.update_interval)
        for number, tokens in enumerate(self.config.learn_tokens):
            (text, _), *_ = make_quiz("train", self.seed, -1 - number, tokens=tokens, count=self.adapter.count)
            quiz = Quiz.encode(self.adapter, [(text, "")])
            with torch.inference_mode():
                self.adapter.model(quiz.tokens[None], past_key_values=self.adapter.memory(policy), logits_to_keep=1)
        spectra = [s.cpu() for s in policy.spectra]
        matrix = whitening(spectra, self.statistics)
        vector = first(spectra, self.statistics, matrix, start, self.seed)
        # The last bits of the spectra may differ between processes.
        self.matrix = broadcast(matrix.to(self.adapter.device))
        self.vector.data = broadcast(vector.to(self.adapter.device))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = self.optimizer.state_dict()["state"][0]
            tensors |= {"vector": self.vector.detach(), "matrix": self.matrix, "log": self.log}
            cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            write_atomic(self.path, save(cpu, metadata={"settings": self.settings}))

    def _resume(self) -> None:
        with safe_open(self.path, framework="pt", device=str(self.adapter.device)) as file:
            made_with = (file.metadata() or {}).get("settings")
            if made_with != self.settings:
                raise NammTransferError(
                    f"{self.path} was made with other settings: {made_with}; these are {self.settings}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.vector.data, self.matrix = tensors.pop("vector"), tensors.pop("matrix")
        self.log = tensors.pop("log").cpu()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {0: tensors}})
