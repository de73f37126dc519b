"""A start vector learned by gradient: quizzes about texts that are read while a NAMM evicts.

CMA-ES in 4,172 dimensions learns little from each costly answer. Here one backward pass through the frozen language
model and the evictions (`evicting.py`) tells how every number of the scoring network should change to make the answers
likelier and the cache smaller. Learning begins where a network tells the heads that need their cache from those that do
not (`heads.py`, `imitation.py`); Adam goes on from there, and CMA-ES after it. This is ours, not the paper's.
"""

from __future__ import annotations

import random
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
from namm_transfer.cache.keyword import CACHE
from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM, SIZE
from namm_transfer.training.namm import importance as heads
from namm_transfer.training.namm import straight_through as evicting
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.distill import Imitation, watch
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.progress import progress
from namm_transfer.training.namm.statistics import Spectra
from namm_transfer.training.namm.whitening import first, gradient, through, whitening

_WARM_UP = 20  # steps
_TEMPERATURE = (0.5, 0.25)  # first and last step: how far from the threshold a token's gradient counts
_NOISE = (0.1, 0.03)
_PRICE, _PRICE_RATE = 3.0, 0.1  # of a cache of full size, and how fast it follows what is held too much
_STIFFNESS = 15.0  # of the quadratic term beside the price, which keeps the size from swinging
_PROSE = 48  # tokens of each text, drawn at random, whose likelihood counts beside the answers'
_PROSE_WEIGHT = 0.2
_LONGEST = 1.0  # a quiz's gradient is shortened to this norm: now and then one is a hundred times as long
_WATCHED = 64  # quizzes that are imitated from
_SAVE_EVERY = 10  # steps


def _between(ends: tuple[float, float], progress: float) -> float:
    """From the first to the second, geometrically."""
    return ends[0] * (ends[1] / ends[0]) ** progress


class Learning:
    """Adam on quizzes, spread over processes; killed, it goes on from what is in `path`.

    Args:
        adapter: the language model, which stays as it is.
        start: (4172,), what the random network begins from; see `coordinates.first`.
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

    def run(self) -> tuple[Tensor, Tensor]:
        """Learn to the end.

        Returns:
            The vector (4172,) float32, and the matrix (25, 25) to read it `through`.
        """
        model: Any = self.adapter.model
        model.requires_grad_(False)
        model.set_attn_implementation(evicting.NAME)
        try:
            with progress(self.accelerator, "learning", self.config.learn_steps, self.step) as bar:
                while self.step < self.config.learn_steps:
                    self._learn()
                    if self.step % _SAVE_EVERY == 0 or self.step == self.config.learn_steps:
                        self._save()
                    said, held, _ = self.log[-_SAVE_EVERY:].mean(0).tolist()
                    bar.set_postfix(answers=f"{said:.2f}", held=f"{held:.2f}")
                    bar.update()
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
            self.config.learn_rate * min(1, (self.step + 1) / _WARM_UP) * (0.05 + 0.475 * (1 + cos(pi * progress)))
        )
        self.optimizer.step()
        price = max(0.0, self.price + _PRICE_RATE * (held - self.config.learn_held))
        self.log = torch.cat([self.log, torch.tensor([[said, held, price]])])

    def _lesson(self, number: int, progress: float) -> Tensor:
        """(4174,): the gradient of one quiz's loss, mean log-probability of its answers, share of the tokens held."""
        config, rng = self.config, random.Random(f"{self.seed}/{number}")
        common = random.Random(f"{self.seed}/step {self.step}")  # so that no process waits long for another
        tokens, interval = common.choice(config.learn_tokens), common.choice(config.learn_intervals)
        quiz = Quiz.make(self.adapter, self.seed, number, tokens)
        namm = NAMM.from_vector(
            through(self.vector.detach(), self.matrix),
            mean=self.statistics.mean,
            var=self.statistics.var,
            selection=config.selection,
        ).to(self.adapter.device)
        memory = evicting.Evicting(
            namm.requires_grad_(True),
            interval,
            temperature=_between(_TEMPERATURE, progress),
            noise=_between(_NOISE, progress),
            generator=torch.Generator().manual_seed(rng.getrandbits(63)),
        )
        places = range(interval, quiz.text - 1)
        beside = sorted(rng.sample(places, min(_PROSE, len(places))))
        answers, prose = quiz.likelihood(self.adapter.model, beside, evicting=memory, use_cache=False)
        held = torch.stack(memory.held).mean()
        size = self.price * held + _STIFFNESS * (held - config.learn_held).square()
        step = gradient(size - answers - _PROSE_WEIGHT * prose, namm, self.matrix)
        step *= (_LONGEST / step.norm()).clamp_max(1.0)
        return torch.cat([step, torch.stack([answers, held]).detach()])

    def _begin(self, start: Tensor) -> None:
        """Coordinates from the spectra of full caches, and the first vector: an imitation of what heads need."""
        config = self.config
        spectra = Spectra(config.update_interval)
        for quiz in self._quizzes(len(config.learn_tokens)):
            with torch.inference_mode():
                self.adapter.model(quiz.tokens[None], **{CACHE: self.adapter.memory(spectra)}, logits_to_keep=1)
        seen = [s.cpu() for s in spectra.spectra]
        matrix = whitening(seen, self.statistics)
        vector = first(seen, self.statistics, matrix, start, self.seed)
        # The last bits of the spectra, and so what follows from them, may differ between processes.
        self.matrix = broadcast(matrix.to(self.adapter.device))
        self.worth = self._worth()
        self.vector.data = broadcast(self._imitate(vector).to(self.adapter.device))
        self._save()

    def _worth(self) -> Tensor:
        """What every head's cache is worth, (layers, kv_heads)."""
        quizzes = self._quizzes(self.config.learn_measured)
        with progress(self.accelerator, "heads") as bar:
            return heads.worth(self.adapter, quizzes, self.config.update_interval, self.accelerator, bar.update)

    def _imitate(self, vector: Tensor) -> Tensor:
        """From this vector to one that tells the worthy heads from the others."""
        config, rng, seen = self.config, random.Random(self.seed), []
        imitation = Imitation(self.worth, config.learn_heads)
        with progress(self.accelerator, "watching", _WATCHED) as bar:
            for quiz in self._quizzes(_WATCHED):
                seen += watch(self.adapter, quiz, imitation.whole, rng.choice(config.learn_intervals))
                bar.update()
        with progress(self.accelerator, "imitation", config.learn_imitation) as bar:
            return imitation.fit(
                seen,
                vector,
                self.matrix.cpu(),
                self.statistics,
                steps=config.learn_imitation,
                seed=self.seed,
                tick=bar.update,
            )

    def _quizzes(self, count: int) -> list[Quiz]:
        """Some that are not learned from later, of all lengths."""
        lengths = self.config.learn_tokens
        return [Quiz.make(self.adapter, self.seed, -1 - n, lengths[-1 - n % len(lengths)]) for n in range(count)]

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = dict(self.optimizer.state_dict()["state"].get(0, {}))  # empty before the first step
            tensors |= {"vector": self.vector.detach(), "matrix": self.matrix, "log": self.log, "worth": self.worth}
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
        self.log, self.worth = tensors.pop("log").cpu(), tensors.pop("worth").cpu()
        if tensors:
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {0: tensors}})
