"""A benchmark's tasks, their questions, and how an answer is cut and scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from namm_transfer.evals.tasks.text.metrics import METRICS, Metric, library, protocol

BENCHMARKS = {"longbench": "LongBench (arXiv 2308.14508)", "infinitebench": "InfiniteBench (arXiv 2402.13718)"}
"""Name -> how a report calls it."""


@dataclass(frozen=True)
class Task:
    """One task of a benchmark."""

    benchmark: str
    """longbench or infinitebench"""
    name: str
    """Its file's name, without .jsonl"""
    prompt: str
    """Template, in `str.format`'s syntax"""
    answer_tokens: int
    """Most tokens of an answer"""
    metric: Metric
    stop: str | None = None
    """An answer ends before this"""
    first_line: bool = False
    """Only the first line of an answer is scored"""

    @property
    def id(self) -> str:
        """`longbench:trec`."""
        return f"{self.benchmark}:{self.name}"

    def check(self) -> None:
        """Raise `NammTransferError` if a library that the metric needs is not there."""
        for module in self.metric.needs:
            library(module)


@dataclass(frozen=True)
class Question:
    """One prompt of a task."""

    id: str
    """`longbench:trec/12`, counted from 0 in the file's order"""
    task: Task
    prompt: str
    """The template, filled in"""
    references: tuple[Any, ...]
    """Right answers, each in the form the metric takes"""
    right: str
    """The first of them, for a reader"""
    context: str
    """SHA-256 of the text that the question is about: questions about one text are no independent draws"""

    def trim(self, said: str) -> str:
        """What counts as the answer in what a model said, which ended with its end-of-text token or for its length."""
        return said if self.task.stop is None else said.split(self.task.stop)[0]

    def score(self, answer: str) -> float:
        """Best metric over the references, from 0 to 1."""
        if self.task.first_line:
            answer = answer.lstrip("\n").split("\n")[0]
        return max(self.task.metric.score(answer, reference) for reference in self.references)


def shorten(text: str, limit: int, tokenizer: Any) -> str:
    """A prompt of more than `limit` tokens without its middle: the text of its first and of its last limit // 2 tokens.

    The halves are joined as text, so that the result may have a few tokens more or less. Special tokens do not count.

    Args:
        limit: at least 2.
    """
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) <= limit:
        return text
    halves = (tokens[: limit // 2], tokens[-(limit // 2) :])
    return "".join(tokenizer.decode(half, skip_special_tokens=True) for half in halves)


def _tasks(benchmark: str) -> dict[str, Task]:
    entries = protocol(benchmark)["tasks"].items()
    every = [Task(benchmark, name, **{**entry, "metric": METRICS[entry["metric"]]}) for name, entry in entries]
    return {task.id: task for task in every}


TASKS = {id: task for benchmark in BENCHMARKS for id, task in _tasks(benchmark).items()}
"""`BENCHMARK:TASK` -> task, in the order of the protocol files."""
