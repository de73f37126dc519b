"""A real evaluation in miniature: a random Llama, prompts of different lengths, the likelihood of their last token."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import EvictionPolicy, MemoryCache
from namm_transfer.cache.keyword import CACHE
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.report.schema import Report


@dataclass
class Options(EvalOptions):
    """Score random prompts."""

    policy: tuple[str, ...] = ("full,streaming:keep=0.5",)
    """Policies."""
    update_interval: int = 16
    """Tokens between updates."""
    out: Path = Path("runs/tiny")
    """Folder."""
    prompts: int = 6
    """How many there are."""
    batch: int = 2
    """At once."""


def samples(count: int) -> list[Sample]:
    """Prompts of 60 tokens and more; their categories alternate."""
    draws = torch.Generator().manual_seed(1)
    return [
        Sample(f"prompt {i}", ("even", "odd")[i % 2], torch.randint(0, 50, (60 + 8 * i,), generator=draws))
        for i in range(count)
    ]


def load() -> LlamaForCausalLM:
    """The model; the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="memory",
    )
    return LlamaForCausalLM(config).eval()


class Evaluator:
    """Scores prompts; on request it dies, raises or mumbles at a sample, as evaluations in the field do."""

    def __init__(self, die_at: int | None = None, raise_at: str | None = None, unparsed: str | None = None) -> None:
        self.model = load()
        self.calls = 0
        self.die_at, self.raise_at, self.unparsed = die_at, raise_at, unparsed

    def __call__(self, chunk: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        """Outcomes of a chunk."""
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        time.sleep(float(os.environ.get("TINY_PAUSE", "0")))
        return [self.score(sample, policy) for sample in chunk]

    @torch.inference_mode()
    def score(self, sample: Sample, policy: EvictionPolicy) -> Outcome:
        """Log-likelihood of the last token given the others."""
        if sample.id == self.raise_at:
            raise OSError(f"cannot read {sample.id!r}")
        cache = MemoryCache(self.model.config, policy=policy)
        logits = self.model(sample.payload[None, :-1], **{CACHE: cache}).logits[0, -1]
        memory = cache.report()
        mumbles = sample.id == self.unparsed
        return Outcome(
            score=float(logits.log_softmax(-1)[sample.payload[-1]]),
            memory=memory.row(0),
            answer="<script>alert('no')</script>" if mumbles else f"token {int(logits.argmax())}",
            unparsed=mumbles,
            details={"bytes": memory.bytes},
            arrays={"positions": cache.positions(0)[0].numpy().astype(np.int32)},
        )


def main(arguments: Sequence[str] | None = None, evaluate: Evaluator | None = None) -> Report:
    """Run it."""
    options = parse(Options, arguments)
    start(options)
    return run(
        options,
        task="tiny",
        samples=samples(options.prompts),
        evaluate=evaluate or Evaluator(),
        description={"model": "a random Llama", "dtype": "float32", "score": "log-likelihood"},
        batch=options.batch,
    )


if __name__ == "__main__":
    script(main)
