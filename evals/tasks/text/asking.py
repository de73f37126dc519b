"""The functions that ask a model one question about a text under a policy, and score its answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Set
from dataclasses import replace

from torch import Tensor

from namm_transfer import EvictionPolicy, MemoryCache
from namm_transfer.adapters.causal_lm import CausalLMAdapter, EncodedPrompt, Prompt, TextAnswer
from namm_transfer.adapters.context import ContextCaches
from namm_transfer.evals.harness import Evaluate, Outcome, Sample
from namm_transfer.evals.harness.agreement import sketch
from namm_transfer.evals.harness.options import ContextOptions
from namm_transfer.evals.tasks.text.families import TRAINED, recall
from namm_transfer.evals.tasks.text.questions import Question

SPARE = 16
"""Tokens that a generated answer of a family may take beyond those of the right one."""

Read = Callable[[Prompt, EvictionPolicy], tuple[EncodedPrompt, MemoryCache, Tensor]]
"""Function that reads a prompt under a policy: the prompt in tokens, its cache, (vocabulary,) float32 logits."""


def whole(adapter: CausalLMAdapter) -> Read:
    """Make the function that reads a prompt at once."""

    def read(prompt: Prompt, policy: EvictionPolicy) -> tuple[EncodedPrompt, MemoryCache, Tensor]:
        encoded, cache = adapter.encode(prompt), adapter.memory(policy)
        return encoded, cache, adapter.read(encoded, cache)

    return read


def reader(options: ContextOptions, adapter: CausalLMAdapter) -> Read:
    """Make the function that reads a prompt, at once or the context before the question."""
    if not options.query_agnostic:
        return whole(adapter)
    contexts = ContextCaches(adapter, options.context_cache)

    def read(prompt: Prompt, policy: EvictionPolicy) -> tuple[EncodedPrompt, MemoryCache, Tensor]:
        encoded = adapter.encode_apart(prompt)
        cache = contexts.read(encoded, policy)
        return encoded, cache, adapter.read(encoded, cache)

    return read


def likelihood(answer: TextAnswer) -> float:
    """Compute the geometric mean probability of the answer's tokens, in %."""
    return 100.0 * math.exp(answer.logprob)


def scored(answer: TextAnswer, kind: str) -> float:
    """Compute the score of an answer; higher is better."""
    if kind == "exact":
        return 100.0 * answer.exact
    return likelihood(answer) if kind == "probability" else answer.logprob


def about_families(options: ContextOptions, score: str, adapter: CausalLMAdapter) -> Evaluate:
    """Make the function that scores one sample of a family under a policy.

    The score is the likelihood of the right answer; for a prompt with expected texts, the recall of these in the answer
    that the model generates. Under the full cache the question is also asked without its text (the blind baseline).
    """

    def ask(prompt: Prompt, policy: EvictionPolicy, read: Read) -> Outcome:
        encoded, cache, logits = read(prompt, policy)
        report, kept = cache.report(), adapter.kept(cache, encoded)  # when the first answer token is produced
        held = sketch(cache)
        room = len(encoded.answer) + SPARE
        text = adapter.generate(encoded, copy.deepcopy(cache), room, logits) if prompt.expected else None
        answer = adapter.judge(encoded, cache, logits)
        return Outcome(
            score=scored(answer, score) if text is None else 100.0 * recall(text, prompt.expected),
            memory=report.row(0),
            answer=text,
            details={
                "question": prompt.text[-200:],
                "right_answer": prompt.answer,
                "logprob": answer.logprob,
                "exact": answer.exact,
                "trained": prompt.family in TRAINED,
                "bytes": report.bytes,
                **({} if text is None else {"likelihood": likelihood(answer)}),
            },
            arrays={**kept, "pieces": adapter.pieces(encoded)},
            next_token=logits,
            held=held,
        )

    given, alone = reader(options, adapter), whole(adapter)

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        prompt: Prompt = sample.payload
        outcome = ask(prompt, policy, given)
        if not policy.evicts:
            outcome.details["blind"] = ask(replace(prompt, text=prompt.question.strip()), policy, alone).score
        return [outcome]

    return evaluate


def about_benchmarks(options: ContextOptions, context: int, adapter: CausalLMAdapter, shown: Set[str]) -> Evaluate:
    """Make the function that answers a benchmark's question under a policy.

    Args:
        context: most tokens of prompt and answer together.
        shown: ids of the samples whose kept shares are recorded, too.
    """
    read = reader(options, adapter)

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        question: Question = sample.payload
        room = question.task.answer_tokens
        prompt = question.within(context - room, adapter.tokenizer, apart=options.query_agnostic)
        asked = Prompt(question.id, question.task.id, prompt, "", question.asked)
        encoded, cache, logits = read(asked, policy)
        report, held = cache.report(), sketch(cache)  # when the first answer token is produced
        arrays = {**adapter.kept(cache, encoded), "pieces": adapter.pieces(encoded)} if sample.id in shown else {}
        answer = question.trim(adapter.generate(encoded, cache, room, logits))
        return [
            Outcome(
                score=100.0 * question.score(answer),
                memory=report.row(0),
                answer=answer,
                details={
                    "question": prompt[-200:],
                    "right_answer": question.right[:500],
                    "cut": prompt != question.prompt,
                    "bytes": report.bytes,
                },
                arrays=arrays,
                next_token=logits,
                held=held,
            )
        ]

    return evaluate
