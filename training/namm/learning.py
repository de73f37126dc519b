"""The learned start: a NAMM trained by gradient on multi-question prompts that are read while it evicts.

CMA-ES in 4,172 dimensions learns little from each costly answer. Here one backward pass through the frozen language
model and the evictions (`straight_through.py`) says how every parameter of the scoring network should change to make
the answers likelier and the cache smaller. Learning begins with the importance of each head (`importance.py`) and a
NAMM that a rule was distilled into (`distill.py`); CMA-ES follows it. This is this project's method, not the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.errors import NammTransferError
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.scorers import FEATURES, SCORERS, Scorer
from namm_transfer.training.loop import Loop, progress_bar, warm_up_cosine
from namm_transfer.training.namm import straight_through
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.distill import Distillation, Observation, fit, observe
from namm_transfer.training.namm.fitness import stacked_namm
from namm_transfer.training.namm.gates import learn_gates
from namm_transfer.training.namm.importance import measure_importance
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood
from namm_transfer.training.namm.statistics import SpectrumRecorder
from namm_transfer.training.namm.whitening import random_deep_start, random_start, unwhiten, whitening

_WARM_UP, _FLOOR = 20, 0.05  # steps of warm-up; last share of the peak learning rate
_TEMPERATURE = (0.5, 0.25)  # at the first and the last step: how far from the threshold a token's gradient counts
_NOISE = (0.1, 0.03)
_PENALTY_RATE = 0.1  # how fast the Lagrange multiplier of the kept share follows the excess
_STIFFNESS = 15.0  # of the quadratic term beside the penalty, which keeps the size from swinging
_PROSE = 48  # tokens of each text, drawn at random, whose likelihood counts beside the answers'
_PROSE_WEIGHT = 0.2
_CLIP = 1.0  # largest norm of a prompt's gradient; a few are a hundred times as long
_OFTEN = (0.4, 1.0)  # between which the share of the heads lies that keep everything when heads are drawn at random
_SAVE_EVERY = 10  # steps

METRICS = ("answers", "kept", "penalty")
"""Names of the metrics of a step: mean log-probability of the answers, kept share, and current penalty."""


class WhitenedNAMM(nn.Module):
    """The module that is trained: whitened parameters and the whitening matrix; see `whitening`."""

    matrix: Tensor

    def __init__(self, form: Scorer, heads: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(form.size))
        self.register_buffer("matrix", torch.eye(FEATURES))
        self.names = ["importance", *(f"importance_{number}" for number in range(1, len(heads)))]
        for name, shape in zip(self.names, heads, strict=True):  # (layers, kv_heads) of each base model
            self.register_buffer(name, torch.zeros(shape))


class Learning:
    """Gradient descent through the evictions; a run that was killed goes on from the checkpoint in `path`.

    Args:
        adapters: the base models, which stay frozen; each step takes one of them.
        path: the checkpoint. Beside it stands the gates of each model's heads, if those are learned.
        identity: everything that decides the result.

    Raises:
        NammTransferError: the checkpoint was made with another identity.
    """

    def __init__(
        self,
        adapters: Sequence[CausalLMAdapter],
        config: EvolutionConfig,
        statistics: Moments,
        *,
        seed: int,
        path: Path,
        identity: Mapping[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.adapters, self.config, self.statistics, self.seed = adapters, config, statistics, seed
        self.path, self.identity, self.accelerator = path, identity, accelerator
        self.form = SCORERS[config.scorer]
        self.models = distinct(adapters)
        shapes = [adapter.model.config.get_text_config() for adapter in self.models]
        heads = [(shape.num_hidden_layers, shape.num_key_value_heads) for shape in shapes]
        self.namm = WhitenedNAMM(self.form, heads).to(adapters[0].device)
        self.loop = Loop(
            self.namm,
            torch.optim.Adam([self.namm.vector], lr=config.learn_rate, betas=(0.9, 0.98)),
            self._loss,
            config.learn_steps,
            schedule=warm_up_cosine(config.learn_steps, _WARM_UP, _FLOOR),
            accelerator=accelerator,
            path=path,
            identity=identity,
            metrics=METRICS,
            parts=config.learn_prompts // config.learn_batch,
            save_every=_SAVE_EVERY,
            label="learning",
        )
        if not self.loop.resumed:
            self._begin()

    def adapter(self, step: int) -> CausalLMAdapter:
        """Return the base model of a step."""
        return self.adapters[random.Random(f"{self.seed}/model {step}").randrange(len(self.adapters))]

    def penalty(self, step: int) -> float:
        """Return the penalty of a cache of full size at a step, which follows the earlier ones of the same model."""
        adapter, earlier = self.adapter(step), reversed(range(step))
        last = next((number for number in earlier if self.adapter(number) is adapter), None)
        if last is None:
            return self.config.learn_penalty
        _, _, kept, penalty = self.loop.log[last].tolist()
        return max(0.0, penalty + _PENALTY_RATE * (kept - self.config.learn_kept_share))

    def run(self) -> tuple[Tensor, Tensor]:
        """Train to the last step.

        Returns:
            Whitened parameters (size,) float32, and the matrix (25, 25) of `unwhiten`.
        """
        models: list[Any] = [adapter.model for adapter in self.models]
        for model in models:
            model.requires_grad_(False)
            model.set_attn_implementation(straight_through.NAME)
        try:
            self.loop.run()
        finally:
            for model in models:
                model.set_attn_implementation("memory")
        return self.namm.vector.detach(), self.namm.matrix

    def _loss(self, step: int, part: int) -> tuple[Tensor, list[float]]:
        """Compute loss and metrics of some prompts of a step in one batch; each one's gradient is clipped by itself."""
        config, each, adapter, penalty = self.config, self.config.learn_batch, self.adapter(step), self.penalty(step)
        common = random.Random(f"{self.seed}/step {step}")  # one length and interval, so that no process waits long
        tokens, interval = common.choice(config.learn_tokens), common.choice(config.learn_intervals)
        progress = step / config.learn_steps
        first = step * config.learn_prompts + part * each
        prompts, beside, generators = [], [], []
        for number in range(first, first + each):
            rng = random.Random(f"{self.seed}/{number}")
            prompts.append(MultiQuestionPrompt.make(adapter, self.seed, number, tokens))
            generators.append(torch.Generator(adapter.device).manual_seed(rng.getrandbits(63)))
            places = range(interval, prompts[-1].text - 1)
            beside.append(sorted(rng.sample(places, min(_PROSE, len(places)))))
        vectors = self.namm.vector.expand(each, -1)
        vectors.register_hook(_clip_rows)
        flat = torch.stack([unwhiten(vector, self.namm.matrix, self.form) for vector in vectors])
        memory = straight_through.StraightThrough(
            stacked_namm(flat, self.statistics, **config.memory),
            interval,
            [len(prompt.tokens) for prompt in prompts],
            temperature=_between(_TEMPERATURE, progress),
            noise=_between(_NOISE, progress),
            generators=generators,
        )
        answers, prose = likelihood(adapter.model, prompts, beside, straight_through=memory, use_cache=False)
        kept = torch.stack(memory.kept_shares).mean(0)
        size = penalty * kept + _STIFFNESS * (kept - config.learn_kept_share).square()
        loss = (size - answers - _PROSE_WEIGHT * prose).mean()
        return loss, [float(answers.detach().mean()), float(kept.detach().mean()), penalty]

    def _begin(self) -> None:
        """Compute the whitening matrix from spectra of full caches, and the start: distilled, or a saved NAMM."""
        config, spectra = self.config, list[Tensor]()
        for adapter in self.models:
            recorder = SpectrumRecorder(config.update_interval)
            for prompt in self._prompts(adapter, len(config.learn_tokens)):
                with torch.inference_mode():
                    adapter.model(prompt.tokens[None], **{CACHE: adapter.memory(recorder)}, logits_to_keep=1)
            spectra += [s.cpu() for s in recorder.spectra]
        matrix = whitening(spectra, self.statistics, self.form)
        # The last bits of the spectra, and so of all that follows from them, may differ between processes.
        self.namm.matrix = broadcast(matrix.to(self.adapters[0].device))
        if config.learn_from:
            start = unwhiten(saved_start(config).to_vector(), torch.linalg.inv(matrix), self.form)
        elif config.scorer == "published":
            start = self._distil(random_start(spectra, self.statistics, matrix, self.seed))
        else:
            start = self._distil(random_deep_start(self.form, self.seed))
        self.namm.vector.data = broadcast(start.to(self.adapters[0].device))
        self.loop.save()

    def _measure(self) -> None:
        """Measure the importance of every head of each base model."""
        config = self.config
        for number, (name, adapter) in enumerate(zip(self.namm.names, self.models, strict=True)):
            if config.learn_gate_steps:
                importance = learn_gates(
                    adapter,
                    share=config.learn_important_heads / self.namm.get_buffer("importance").numel(),
                    steps=config.learn_gate_steps,
                    tokens=config.learn_tokens,
                    intervals=config.learn_intervals,
                    seed=self.seed,
                    path=self.path.with_name(f"gates-{number}.safetensors"),
                    identity={**self.identity, "number": number},
                    accelerator=self.accelerator,
                )
            else:
                prompts = self._prompts(adapter, config.learn_importance_prompts)
                with progress_bar(self.accelerator, "head importance") as bar:
                    importance = measure_importance(
                        adapter, prompts, config.update_interval, self.accelerator, bar.update
                    )
            setattr(self.namm, name, importance.to(adapter.device))

    def _count(self, heads: int) -> int:
        """Return how many of a model's heads are important: as large a share as is asked for of the first model."""
        return round(self.config.learn_important_heads * heads / self.namm.get_buffer("importance").numel())

    def _distil(self, start: Tensor) -> Tensor:
        """Measure the importance of heads, and fit whitened parameters that keep the important ones, from `start`."""
        self._measure()
        config, rng, parts = self.config, random.Random(self.seed), []
        each = -(-config.learn_distillation_prompts // len(self.models))
        for name, adapter in zip(self.namm.names, self.models, strict=True):
            importance, found = self.namm.get_buffer(name).cpu(), list[Observation]()
            distillation = Distillation(importance, self._count(importance.numel()), bool(config.learn_gate_steps))
            with progress_bar(self.accelerator, "observing", each) as bar:
                for prompt in self._prompts(adapter, each):
                    retrieval, interval = distillation.retrieval, rng.choice(config.learn_intervals)
                    if config.learn_random_rule:
                        generator = torch.Generator().manual_seed(rng.getrandbits(63))
                        retrieval = torch.rand(retrieval.shape, generator=generator) < rng.uniform(*_OFTEN)
                    found += observe(adapter, prompt, retrieval, interval)
                    bar.update()
            parts.append((distillation, found))
        return fit(
            parts,
            start,
            self.namm.matrix.cpu(),
            self.statistics,
            steps=config.learn_distillation_steps,
            seed=self.seed,
            accelerator=self.accelerator,
            scorer=config.scorer,
            pooled_tokens=config.pooled_tokens,
        )

    def _prompts(self, adapter: CausalLMAdapter, count: int) -> list[MultiQuestionPrompt]:
        """Make prompts of all lengths that are not used for learning later."""
        lengths = self.config.learn_tokens
        numbers = ((-1 - n, lengths[-1 - n % len(lengths)]) for n in range(count))
        return [MultiQuestionPrompt.make(adapter, self.seed, number, tokens) for number, tokens in numbers]


def saved_start(config: EvolutionConfig) -> NAMM:
    """Load the NAMM from which learning goes on.

    Raises:
        NammTransferError: there is none, or its scoring network has another form than the configuration's.
    """
    namm = NAMM.from_pretrained(config.learn_from)
    if namm.scorer != config.scorer:
        raise NammTransferError(
            f"learn_from={config.learn_from!r} has scorer={namm.scorer!r}; expected scorer={config.scorer!r}"
        )
    return namm


def distinct(adapters: Sequence[CausalLMAdapter]) -> list[CausalLMAdapter]:
    """List every adapter once, in the order in which they come first."""
    return list({id(adapter): adapter for adapter in adapters}.values())


def _between(ends: tuple[float, float], progress: float) -> float:
    """Interpolate geometrically from the first to the second value."""
    return ends[0] * (ends[1] / ends[0]) ** progress


def _clip_rows(gradients: Tensor) -> Tensor:
    """Clip each prompt's own gradient to `_CLIP`, in the gradients of a mean over prompts, (prompts, size)."""
    return gradients * (_CLIP / (gradients * len(gradients)).norm(dim=1, keepdim=True)).clamp_max(1.0)
