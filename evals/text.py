"""Evaluate a language model on questions about long texts under each eviction policy.

    python evals/text.py --limit 40
    accelerate launch evals/text.py --tasks trained --policy full,namm,h2o:match=namm,random:match=namm
    accelerate launch evals/text.py --tasks longbench:all --model meta-llama/Meta-Llama-3-8B --dtype bfloat16 \\
        --update-interval 512 --max-tokens 32768 --rope-theta 3609793

The prompts of the families are made from text that comes with Python, deterministically from --seed, and are the same
for every policy, so that differences are paired. The score is graded: the geometric mean of the probabilities the model
gives to the tokens of the right answer, in %. Each record's `exact` says whether greedy decoding
gives exactly that answer. The families of ruler have a row of their own, scored as RULER is: by the recall of the
expected texts in a generated answer, with the likelihood beside it.

LongBench and InfiniteBench have prompts, answer lengths and metrics of their own, and rows of their own in the report:
the model goes on with the prompt, greedily, and its answer gets the task's metric x 100. The last command is the
protocol of the NAMM paper (arXiv 2410.13166), which stretches the 8192 positions of Llama 3 so; see docs/text.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from namm_transfer import NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.adapters.registry import find_adapter
from namm_transfer.evals.harness import Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.options import ContextOptions
from namm_transfer.evals.report.samples import choose, in_turns
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.text import prose
from namm_transfer.evals.tasks.text.asking import about_benchmarks, about_families
from namm_transfer.evals.tasks.text.families import (
    FAMILIES,
    HELD_OUT,
    TRAINED,
    FamilyGroup,
    group_of,
    groups,
    make_prompt,
)
from namm_transfer.evals.tasks.text.load import Source, find, load, local
from namm_transfer.evals.tasks.text.questions import Task, TextBenchmark, benchmarks
from namm_transfer.files import sha256

GROUPS = {"trained": TRAINED, "held-out": HELD_OUT, "all": tuple(FAMILIES)} | {
    name: tuple(group.families) for name, group in groups().items()
}
SAMPLES = 20
"""Prompts of a family unless --samples says otherwise."""
WORLD = "namm_transfer.evolution.tasks"
"""Name of the families in records; it is part of a run's identity and does not change with the module's place."""
MAX_TOKENS = 32768
"""Most tokens of a benchmark's prompt and answer together, as in the NAMM paper."""


@dataclass
class Options(ContextOptions):
    """Answer questions about long texts under each policy."""

    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2 (SmolLM2-135M-Instruct)."""
    adapter: str = "auto"
    """Adapter class that loads the model and encodes its prompts. auto is this package's; another installed package may
    declare more by name, as entry points of the group namm_transfer.adapters."""
    tasks: str = "all"
    """Task families, separated by commas: trained (those the shipped NAMM was trained on), held-out, all (both and two
    hard ones), ruler (needles among distractors, chains of variables, word counts, questions about two facts), or
    names. And tasks of benchmarks, longbench:trec or infinitebench:passkey; a name after one belongs to the same
    benchmark where that has it (longbench:trec,qasper). longbench:all is all of it, or with --data-root what has a
    file there."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the documents from which the families' texts are made."""
    samples: int | None = None
    """Prompts of each family, 20 by default, and of each benchmark task, by default all of its file, else the first.
    --limit cuts the whole list of the families, and that of each benchmark, in which families or tasks take turns."""
    tokens: int = 1000
    """Length of the families' prompts in tokens."""
    score: Literal["probability", "exact", "logprob"] = "probability"
    """Score of the families; those of ruler are scored by recall. probability: geometric mean probability of the
    answer's tokens, in %. exact: 100 if greedy generation gives exactly the answer. logprob: mean log-probability of
    its tokens."""
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
    """The dtype of the model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""
    update_interval: int = 256
    """The policy acts each time a prompt has grown by this many tokens."""
    out: Path = Path("runs/text")
    """Folder of the records and of report.json, report.md and report.html."""


def asked(options: Options) -> tuple[list[str], list[Task]]:
    """Parse the requested families and benchmark tasks, each in order and without repeats."""
    for flag in ("samples", "tokens", "max_tokens"):
        if (count := getattr(options, flag)) is not None and count < 1:
            raise NammTransferError(f"--{flag.replace('_', '-')} {count}: expected a positive number")
    given = [name for name in map(str.strip, options.tasks.split(",")) if name]
    known = benchmarks(name.partition(":")[0] for name in given if ":" in name)
    tasks = {task.id: task for item in known.values() for task in item.tasks}
    choices = [*GROUPS, *(f"{name}:all" for name in known), *dict.fromkeys(itertools.chain(*GROUPS.values())), *tasks]
    families, found, benchmark = list[str](), list[Task](), ""
    for name in given:
        name = f"{benchmark}:{name}" if f"{benchmark}:{name}" in choices else name
        if name not in choices:
            raise NammTransferError(f"--tasks {name!r}: expected some of {', '.join(choices)}")
        benchmark, _, task = name.partition(":")
        if not task:
            families += GROUPS.get(name, (name,))
        elif task == "all":
            found += all_tasks(known[benchmark], options.data_root)
        else:
            found.append(tasks[name])
    if not families and not found:
        raise NammTransferError(f"--tasks {options.tasks!r}: expected some of {', '.join(choices)}")
    return list(dict.fromkeys(families)), list(dict.fromkeys(found))


def all_tasks(benchmark: TextBenchmark, root: Path | None) -> list[Task]:
    """List all tasks of a benchmark, or with a folder those that have a file there."""
    found = [task for task in benchmark.tasks if root is None or local(task, root)]
    if not found:
        raise NammTransferError(f"{benchmark.name}:all: --data-root {str(root)!r} holds no TASK.jsonl of it")
    return found


def family_samples(options: Options, families: Sequence[str], adapter: CausalLMAdapter) -> list[Sample]:
    """Make one sample for each synthetic prompt."""
    prompts = [
        make_prompt(family, options.split, options.seed, number, tokens=options.tokens, count=adapter.count)
        for number in range(options.samples or SAMPLES)
        for family in families
    ]
    return [Sample(prompt.id, prompt.family, prompt, prompt=prompt.text + prompt.answer) for prompt in prompts]


def benchmark_samples(options: Options, sources: dict[Task, Source]) -> list[Sample]:
    """Make one sample for each question; tasks take turns, and questions about one text form a cluster."""
    count = min((n for n in (options.samples, options.limit) if n is not None), default=None)
    questions = in_turns(load(task, source, count) for task, source in sources.items())
    return [Sample(q.id, q.task.name, q, cluster=q.context, prompt=q.prompt) for q in questions]


def together(samples: Sequence[Sample]) -> list[Sample]:
    """Bring a task's questions about one text together, in the order in which the texts come first."""
    texts = list(dict.fromkeys((sample.cluster, sample.category) for sample in samples))
    return sorted(samples, key=lambda sample: texts.index((sample.cluster, sample.category)))


def family_run(
    options: Options, families: Sequence[str], adapter: CausalLMAdapter, group: FamilyGroup | None = None
) -> dict[str, Any]:
    """Return the arguments of `run` for the families of a group, or for those of none."""
    units = {
        "probability": "geometric mean probability of the answer's tokens, %",
        "exact": "exact answers, %",
        "logprob": "mean log-probability of the answer's tokens, nats",
    }
    description = {
        "data": f"{options.split} documents of Python's own documentation, fingerprint {prose.fingerprint()}",
        "score": "recall of the expected texts by greedy generation, %" if group else units[options.score],
        "world": f"{group.title if group else WORLD}, {options.tokens} tokens a prompt",
        "trained_families": list(TRAINED),
    }
    samples = family_samples(options, families, adapter)
    task = f"text/{group.name}" if group else "text"
    evaluate = about_families(options, options.score, adapter)
    return dict(task=task, samples=samples, evaluate=evaluate, description=description)


def benchmark_run(
    options: Options,
    benchmark: TextBenchmark,
    sources: dict[Task, Source],
    samples: list[Sample],
    adapter: CausalLMAdapter,
) -> dict[str, Any]:
    """Return the arguments of `run` for these tasks of a benchmark."""
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
        "world": f"{benchmark.title}, its prompts as plain text, greedy answers",
        "headline": benchmark.headline,
    }
    shown = set(choose((s.id, s.category) for s in samples[: options.limit]))
    evaluate = about_benchmarks(options, context, adapter, shown)
    return dict(task=f"text/{benchmark.name}", samples=samples, evaluate=evaluate, description=description)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse the command line, ask the questions and write the report."""
    options = parse(Options, arguments)
    options.check_context()
    adapter_class = find_adapter(options.adapter, CausalLMAdapter)
    families, tasks = asked(options)  # a misspelt name should not wait for the model
    for task in tasks:
        task.check()
    if options.query_agnostic and (early := [task.id for task in tasks if task.asks_first]):
        raise NammTransferError(
            f"--query-agnostic: {', '.join(early)} ask before the text; expected --tasks without them"
        )
    accelerator = start(options)
    with accelerator.main_process_first():  # it downloads the files, which the other processes then find
        sources = {task: find(task, options.data_root) for task in tasks}
    known = benchmarks(task.benchmark for task in tasks)
    parts = {name: {task: sources[task] for task in tasks if task.benchmark == name} for name in known}
    questions = {name: benchmark_samples(options, part) for name, part in parts.items() if part}
    if options.query_agnostic:
        questions = {name: together(asks[: options.limit]) for name, asks in questions.items()}
    adapter = adapter_class.load(
        options.model,
        dtype=getattr(torch, options.dtype, None),
        device=accelerator.device,
        rope_theta=options.rope_theta,
    )
    plans = []
    for group in (None, *groups().values()):
        if members := [family for family in families if group_of(family) == group]:
            plans.append((members, family_run(options, members, adapter, group)))
    for name, asks in questions.items():
        plan = benchmark_run(options, known[name], parts[name], asks, adapter)
        plans.append(([task.id for task in parts[name]], plan))
    for members, plan in plans:
        plan["description"] |= {
            "model": adapter.source,
            "dtype": str(adapter.dtype).removeprefix("torch."),
            "cache_size": "tokens held over tokens seen when the first answer token is produced",
        }
        alone = len(plans) == 1 and not questions
        own = options if alone else replace(options, tasks=",".join(members))  # resumable by itself
        report = run(own, **plan)
    return report


if __name__ == "__main__":
    script(main)
