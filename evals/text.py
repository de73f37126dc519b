"""Does a memory that forgets still find the answer? Questions about long texts, policy against policy.

    python evals/text.py --limit 40
    accelerate launch evals/text.py --tasks trained --policy full,namm,h2o:match=namm,random:match=namm
    accelerate launch evals/text.py --tasks longbench:all --model meta-llama/Meta-Llama-3-8B --dtype bfloat16 \\
        --update-interval 512 --max-tokens 32768 --rope-theta 3609793

The prompts of the families are made from text that comes with Python, deterministically from --seed, and are the same
for every policy, so that differences are paired. The score is graded: the geometric mean of the probabilities the model
gives to the tokens of the right answer, in %. Whether greedy generation would have said exactly that is in each record
as `exact`.

LongBench and InfiniteBench have prompts, answer lengths and metrics of their own, and rows of their own in the report:
the model goes on with the prompt, greedily, and its answer gets the task's metric x 100. The last command is the
protocol of the NAMM paper (arXiv 2410.13166), which stretches the 8192 positions of Llama 3 so; see docs/text.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter, TextAnswer
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.report.samples import choose
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.text import prose as text
from namm_transfer.evals.tasks.text.benchmarks import BENCHMARKS, TASKS, Question, Task, shorten
from namm_transfer.evals.tasks.text.families import FAMILIES, HELD_OUT, TRAINED, Prompt, make_prompt
from namm_transfer.evals.tasks.text.load import Source, find, load, local
from namm_transfer.files import sha256

GROUPS = {
    "trained": TRAINED,
    "held-out": HELD_OUT,
    "all": tuple(FAMILIES),
    **{f"{name}:all": tuple(id for id, task in TASKS.items() if task.benchmark == name) for name in BENCHMARKS},
}
SAMPLES = 20
"""Prompts of a family unless --samples says otherwise."""
MAX_TOKENS = 32768
"""Of a benchmark's prompt and answer, as in the NAMM paper."""


@dataclass
class Options(EvalOptions):
    """Answer questions about long texts under each policy."""

    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2 (SmolLM2-135M-Instruct)."""
    tasks: str = "all"
    """Task families, separated by commas: trained (those the shipped NAMM was evolved on), held-out, all, or names. And
    tasks of benchmarks, longbench:trec or infinitebench:passkey; a name after one belongs to the same benchmark where
    that has it (longbench:trec,qasper). longbench:all is all of it, or with --data-root what has a file there."""
    split: Literal["train", "validation", "test"] = "test"
    """Which documents the families' texts are made of."""
    samples: int | None = None
    """Prompts of each family, 20 by default, and of each benchmark task, by default all of its file, else the first.
    --limit cuts the whole list of the families, and that of each benchmark, in which families or tasks take turns."""
    tokens: int = 1000
    """Length of the families' prompts in tokens."""
    score: Literal["probability", "exact", "logprob"] = "probability"
    """Of the families. probability: geometric mean probability of the answer's tokens, in %. exact: 100 if greedy
    generation gives exactly the answer. logprob: mean log-probability of its tokens."""
    data_root: Path | None = None
    """Folder of the benchmarks' files: TASK.jsonl, in it or in its data/, or LongBench's data.zip. By default they come
    from the hub."""
    max_tokens: int | None = None
    """Benchmarks: most tokens of a prompt and its answer together; of a longer prompt the middle is cut out. By default
    32768, or as many as the model has positions if these are fewer."""
    rope_theta: float | None = None
    """Base of the model's rotary position embedding, to read more tokens than it has positions; its own by default. The
    NAMM paper reads 32768 tokens with Llama 3 at 500000 x 7^(128/126) = 3609793."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Of the model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""
    update_interval: int = 256
    """The policy acts each time a prompt has grown by this many tokens."""
    out: Path = Path("runs/text")
    """Folder of the records and of report.json, report.md and report.html."""


def asked(options: Options) -> list[str]:
    """The families and benchmark tasks asked for, in order and without repeats."""
    for flag in ("samples", "tokens", "max_tokens"):
        if (count := getattr(options, flag)) is not None and count < 1:
            raise NammTransferError(f"--{flag.replace('_', '-')} {count}: expected a positive number")
    names: list[str] = []
    benchmark, choices = "", [*GROUPS, *FAMILIES, *TASKS]
    for name in filter(None, map(str.strip, options.tasks.split(","))):
        name = f"{benchmark}:{name}" if f"{benchmark}:{name}" in choices else name
        if name not in choices:
            raise NammTransferError(f"--tasks {name!r}: expected some of {', '.join(choices)}")
        benchmark = name.partition(":")[0]
        found = GROUPS.get(name, (name,))
        if options.data_root and name == f"{benchmark}:all":
            found = tuple(id for id in found if local(TASKS[id], options.data_root))
            if not found:
                raise NammTransferError(f"{name}: --data-root {str(options.data_root)!r} holds no TASK.jsonl of it")
        names += found
    if not names:
        raise NammTransferError(f"--tasks {options.tasks!r}: expected some of {', '.join(choices)}")
    return list(dict.fromkeys(names))


def family_samples(options: Options, families: Sequence[str], adapter: CausalLMAdapter) -> list[Sample]:
    """One sample a made-up prompt."""
    prompts = [
        make_prompt(family, options.split, options.seed, number, tokens=options.tokens, count=adapter.count)
        for number in range(options.samples or SAMPLES)
        for family in families
    ]
    return [Sample(prompt.id, prompt.family, prompt, prompt=prompt.text + prompt.answer) for prompt in prompts]


def benchmark_samples(options: Options, sources: dict[Task, Source]) -> list[Sample]:
    """One sample a question; tasks take turns, and questions about one text form a cluster."""
    count = min((n for n in (options.samples, options.limit) if n is not None), default=None)
    turns = itertools.zip_longest(*(load(task, source, count) for task, source in sources.items()))
    return [
        Sample(q.id, q.task.name, q, cluster=q.context, prompt=q.prompt)
        for q in itertools.chain.from_iterable(turns)
        if q is not None
    ]


def scored(answer: TextAnswer, kind: str) -> float:
    """The score of an answer; higher is better."""
    if kind == "exact":
        return 100.0 * answer.exact
    return 100.0 * math.exp(answer.logprob) if kind == "probability" else answer.logprob


def likelihoods(options: Options, adapter: CausalLMAdapter) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """What judges one sample of a family under a policy."""

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        encoded, cache = adapter.encode(sample.payload), adapter.memory(policy)
        logits = adapter.read(encoded, cache)
        report, kept = cache.report(), adapter.kept(cache, encoded)  # when the first answer token is produced
        answer = adapter.judge(encoded, cache, logits)
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


def answers(
    context: int, adapter: CausalLMAdapter, shown: Set[str]
) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """What answers one question of a benchmark under a policy; of samples with an id in `shown`, says what was kept."""

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        question: Question = sample.payload
        room = question.task.answer_tokens
        prompt = shorten(question.prompt, context - room, adapter.tokenizer)
        read = Prompt(question.id, question.task.id, prompt, answer="")
        encoded, cache = adapter.encode(read), adapter.memory(policy)
        logits = adapter.read(encoded, cache)
        report = cache.report()  # when the first answer token is produced
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
            )
        ]

    return evaluate


def family_run(options: Options, families: Sequence[str], adapter: CausalLMAdapter) -> dict[str, Any]:
    """What `run` has to be told to evaluate the families."""
    units = {
        "probability": "geometric mean probability of the answer's tokens, %",
        "exact": "exact answers, %",
        "logprob": "mean log-probability of the answer's tokens, nats",
    }
    description = {
        "data": f"{options.split} documents of Python's own documentation, fingerprint {text.fingerprint()}",
        "score": units[options.score],
        "world": f"namm_transfer.evals.tasks.text.families, {options.tokens} tokens a prompt",
        "trained_families": list(TRAINED),
    }
    samples = family_samples(options, families, adapter)
    return dict(task="text", samples=samples, evaluate=likelihoods(options, adapter), description=description)


def benchmark_run(
    options: Options, name: str, sources: dict[Task, Source], samples: list[Sample], adapter: CausalLMAdapter
) -> dict[str, Any]:
    """What `run` has to be told to evaluate these tasks of a benchmark."""
    positions = getattr(adapter.model.config.get_text_config(), "max_position_embeddings", None) or MAX_TOKENS
    context = options.max_tokens or min(MAX_TOKENS, positions)
    for task in sources:
        if context - task.answer_tokens < 2:
            raise NammTransferError(
                f"--max-tokens {context} leaves no room for the prompts of {task.id}, whose answers may take "
                f"{task.answer_tokens} tokens; expected more, or --tasks without it"
            )
    metrics = {task.name: task.metric.label for task in sources}
    label = metrics[next(iter(metrics))] if len(set(metrics.values())) == 1 else "the tasks' metrics"
    files = {source.name: source.file for source in sources.values()}
    description = {
        "data": list(files),
        "data_sha256": [sha256(file) for file in files.values()],
        "score": f"{label} x 100, mean over prompts",
        "metrics": metrics,
        "answer_tokens": {task.name: task.answer_tokens for task in sources},
        "context": f"{context} tokens for prompt and answer; longer prompts lose their middle",
        "world": f"{BENCHMARKS[name]}, its prompts as plain text, greedy answers",
    }
    evaluate = answers(context, adapter, set(choose((s.id, s.category) for s in samples[: options.limit])))
    return dict(task=f"text/{name}", samples=samples, evaluate=evaluate, description=description)


def averages(report: Report) -> str:
    """The score of each policy in each benchmark as the benchmarks report it: every task counts alike."""
    scores: dict[tuple[str, str], list[float]] = {}
    for row in report.categories:  # there are none of a benchmark of which one task was asked for
        name = row.task.removeprefix("text/")
        if name in BENCHMARKS and row.score is not None:
            scores.setdefault((name, row.policy), []).append(row.score)
    return "\n".join(
        f"{name}, {policy}: {mean(found):.1f}, mean over {len(found)} of its {len(GROUPS[f'{name}:all'])} tasks"
        for (name, policy), found in scores.items()
    )


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, ask, report."""
    options = parse(Options, arguments)
    names = asked(options)  # a typing error should not wait for the model
    families, tasks = [name for name in names if name in FAMILIES], [TASKS[name] for name in names if name in TASKS]
    for task in tasks:
        task.check()
    accelerator = start(options)
    with accelerator.main_process_first():  # which downloads the files that the others then find
        sources = [(task, find(task, options.data_root)) for task in tasks]
    benchmarks = {name: {task: file for task, file in sources if task.benchmark == name} for name in BENCHMARKS}
    questions = {name: benchmark_samples(options, found) for name, found in benchmarks.items() if found}
    adapter = CausalLMAdapter.load(
        options.model,
        dtype=getattr(torch, options.dtype, None),
        device=accelerator.device,
        rope_theta=options.rope_theta,
    )
    plans = [(families, family_run(options, families, adapter))] if families else []
    for name, asks in questions.items():
        plans.append(([t.id for t in benchmarks[name]], benchmark_run(options, name, benchmarks[name], asks, adapter)))
    for members, plan in plans:
        plan["description"] |= {
            "model": adapter.source,
            "dtype": str(adapter.dtype).removeprefix("torch."),
            "cache_size": "tokens held over tokens seen when the first answer token is produced",
        }
        own = replace(options, tasks=",".join(members)) if questions else options  # to be gone on with without the rest
        report = run(own, **plan)
    if accelerator.is_main_process and (means := averages(report)):
        print(means)
    return report


if __name__ == "__main__":
    script(main)
