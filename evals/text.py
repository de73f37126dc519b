"""Does a memory that forgets still find the answer? Questions about long texts, policy against policy.

    python evals/text.py --limit 40
    accelerate launch evals/text.py --tasks trained --policy full,namm,h2o:match=namm,random:match=namm

The prompts are made from text that comes with Python, deterministically from --seed, and are the same for every policy,
so that differences are paired. The score is graded: the geometric mean of the probabilities the model gives to the
tokens of the right answer, in %. Whether greedy generation would have said exactly that is in each record as `exact`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter, TextAnswer
from namm_transfer.evaluation import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evolution import text
from namm_transfer.evolution.tasks import FAMILIES, HELD_OUT, TRAINED, make_prompt
from namm_transfer.report.schema import Report

GROUPS = {"trained": TRAINED, "held-out": HELD_OUT, "all": tuple(FAMILIES)}


@dataclass
class Options(EvalOptions):
    """Answer questions about long texts under each policy."""

    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2 (SmolLM2-135M-Instruct)."""
    tasks: str = "all"
    """Task families, separated by commas: trained (those the shipped NAMM was evolved on), held-out, all, or names."""
    split: Literal["train", "validation", "test"] = "test"
    """Which documents the texts are made of."""
    samples: int = 20
    """Prompts of each family. --limit cuts the whole list, whose families take turns."""
    tokens: int = 1000
    """Length of the prompts in tokens."""
    score: Literal["probability", "exact", "logprob"] = "probability"
    """probability: geometric mean probability of the answer's tokens, in %. exact: 100 if greedy generation gives
    exactly the answer. logprob: mean log-probability of its tokens."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Of the model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""
    update_interval: int = 256
    """The policy acts each time a prompt has grown by this many tokens."""
    out: Path = Path("runs/text")
    """Folder of the records and of report.json, report.md and report.html."""


def families(options: Options) -> list[str]:
    """The families asked for, in order and without repeats."""
    names: list[str] = []
    for name in filter(None, map(str.strip, options.tasks.split(","))):
        if name not in GROUPS and name not in FAMILIES:
            raise NammTransferError(f"--tasks {name!r}: expected some of {', '.join([*GROUPS, *FAMILIES])}")
        names += GROUPS.get(name, (name,))
    if not names or min(options.samples, options.tokens) < 1:
        raise NammTransferError(
            f"--tasks {options.tasks!r} --samples {options.samples} --tokens {options.tokens}: expected a family and "
            "positive numbers"
        )
    return list(dict.fromkeys(names))


def questions(options: Options, adapter: CausalLMAdapter) -> list[Sample]:
    """One sample a prompt; the families take turns, so that every `--limit` has all of them."""
    prompts = [
        make_prompt(family, options.split, options.seed, number, tokens=options.tokens, count=adapter.count)
        for number in range(options.samples)
        for family in families(options)
    ]
    return [Sample(prompt.id, prompt.family, prompt, prompt=prompt.text + prompt.answer) for prompt in prompts]


def scored(answer: TextAnswer, kind: str) -> float:
    """The score of an answer; higher is better."""
    if kind == "exact":
        return 100.0 * answer.exact
    return 100.0 * math.exp(answer.logprob) if kind == "probability" else answer.logprob


def evaluator(options: Options, adapter: CausalLMAdapter) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """What answers one sample under a policy."""

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        encoded, cache = adapter.encode(sample.payload), adapter.memory(policy)
        logits = adapter.read(encoded, cache)
        report, kept = cache.report(), adapter.kept(cache, encoded)  # when the first answer token is produced
        answer = adapter.judge(encoded, cache, logits)[0]
        return [
            Outcome(
                score=scored(answer, options.score),
                memory=report.row(0),
                details={
                    "question": sample.payload.text[-200:],
                    "right_answer": sample.payload.answer,
                    "logprob": answer.logprob,
                    "exact": answer.exact,
                    "trained": sample.category in TRAINED,
                    "bytes": report.bytes,
                },
                arrays={**kept, "pieces": adapter.pieces(encoded)},
            )
        ]

    return evaluate


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, ask, report."""
    options = parse(Options, arguments)
    families(options)  # a typing error should not wait for the model
    accelerator = start(options)
    adapter = CausalLMAdapter.load(options.model, dtype=getattr(torch, options.dtype, None), device=accelerator.device)
    units = {
        "probability": "geometric mean probability of the answer's tokens, %",
        "exact": "exact answers, %",
        "logprob": "mean log-probability of the answer's tokens, nats",
    }
    description = {
        "model": adapter.source,
        "data": f"{options.split} documents of Python's own documentation, fingerprint {text.fingerprint()}",
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": units[options.score],
        "world": f"namm_transfer.evolution.tasks, {options.tokens} tokens a prompt",
        "trained_families": list(TRAINED),
        "cache_size": "tokens held over tokens seen when the first answer token is produced",
    }
    return run(
        options,
        task="text",
        samples=questions(options, adapter),
        evaluate=evaluator(options, adapter),
        description=description,
    )


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
