"""Benchmarks of long texts: tasks, their questions, and the trimming and scoring of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.json_files import parse_line
from namm_transfer.evals.tasks.text.metrics import METRICS, Metric, library, protocol


class Entry:
    """One line of a benchmark's file with checked access to its fields."""

    def __init__(self, line: bytes, where: str) -> None:
        self.where, self.values = where, parse_line(line, where)

    def text(self, name: str) -> str:
        """Return a field that must be a text."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.refusal(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a field that must be a list of texts."""
        value = self.values.get(name)
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise self.refusal(name, "a list of texts")
        return value

    def refusal(self, name: str, expected: str) -> NammTransferError:
        """Make the error that names a field of the wrong type."""
        return NammTransferError(f"{self.where}: {name!r} is {str(self.values.get(name))[:80]!r}; expected {expected}")


QUESTION_ROOM = 128
"""Tokens are kept free for a question that is read apart from its context in multiples of this number, so that
questions of different lengths find the same part of a long context."""
Read = Callable[["Task", Entry], tuple[dict[str, str], tuple[Any, ...]]]
"""Function of a line that returns the fields of its task's prompt, `context` among them, and the right answers."""


@dataclass(frozen=True)
class Place:
    """Location of a benchmark's files, one `TASK.jsonl` a task."""

    repository: str
    """Data set repository on the hub."""
    archive: str | None = None
    """Zip file in the repository with `data/TASK.jsonl`; None if the files are not archived."""


@dataclass(frozen=True)
class Task:
    """One task of a benchmark."""

    benchmark: str
    """Name of the benchmark, for example longbench."""
    name: str
    """Name of the task: its file's name without .jsonl."""
    prompt: str
    """Prompt template in `str.format`'s syntax."""
    answer_tokens: int
    """Largest number of tokens in an answer."""
    metric: Metric
    place: Place
    read: Read
    stop: str | None = None
    """Text before which an answer ends."""
    first_line: bool = False
    """True if only the first line of an answer is scored."""

    @property
    def id(self) -> str:
        """`longbench:trec`."""
        return f"{self.benchmark}:{self.name}"

    @property
    def asks_first(self) -> bool:
        """True if something of the question stands before the text that it is about."""
        before, _, _ = self.prompt.partition("{context}")
        return any(field is not None for _, field, _, _ in Formatter().parse(before))

    def check(self) -> None:
        """Raise `NammTransferError` if a library that the metric needs is not there."""
        for module in self.metric.needs:
            library(module)


@dataclass(frozen=True)
class TextBenchmark:
    """A benchmark of long texts, each task with a prompt, an answer length and a metric of its own."""

    name: str
    """Name on the command line: `--tasks NAME:TASK`."""
    title: str
    """Name in reports."""
    tasks: tuple[Task, ...]

    @property
    def headline(self) -> dict[str, Any]:
        """Return the official score, a mean in which every task has the same weight."""
        categories = [task.name for task in self.tasks]
        return {
            "name": f"{self.title.split(' (')[0]} average",
            "rule": "mean over categories",
            "categories": categories,
        }


def benchmarks(names: Iterable[str] = ()) -> dict[str, TextBenchmark]:
    """Load the benchmarks of this package, and those of the names that other packages declare."""
    known = registry.names(TextBenchmark)
    others = {name: registry.find(name, TextBenchmark) for name in names if name in known}
    return {**registry.built_in(TextBenchmark), **others}


def tasks_of(benchmark: str, place: Place, read: Read) -> tuple[Task, ...]:
    """Read the tasks from `BENCHMARK.toml` beside this file, in its order."""
    entries = protocol(benchmark)["tasks"].items()
    return tuple(
        Task(benchmark, name, **{**entry, "metric": METRICS[entry["metric"]]}, place=place, read=read)
        for name, entry in entries
    )


@dataclass(frozen=True)
class Question:
    """One prompt of a task."""

    id: str
    """`longbench:trec/12`, counted from 0 in the file's order"""
    task: Task
    prompt: str
    """Complete prompt, made from the template."""
    references: tuple[Any, ...]
    """Right answers, each in the form that the metric accepts."""
    right: str
    """First right answer as text, for a reader of the report."""
    context: str
    """SHA-256 of the text that the question is about: questions about one text are no independent draws"""
    asked: str = ""
    """The end of the prompt, behind the text that the question is about; empty if the two are not told apart"""

    def within(self, limit: int, tokenizer: Any, *, apart: bool) -> str:
        """Return the prompt with at most `limit` tokens: the middle is cut out of it, or with `apart` of its context.

        Raises:
            NammTransferError: the question alone leaves no room for its context.
        """
        if not apart:
            return shorten(self.prompt, limit, tokenizer)
        tokens = len(tokenizer(self.asked, add_special_tokens=False, verbose=False).input_ids)
        left = limit - -(-tokens // QUESTION_ROOM) * QUESTION_ROOM
        if left < 2:
            raise NammTransferError(
                f"{self.id}: a question of {tokens} tokens, for which multiples of {QUESTION_ROOM} are kept free, "
                f"leaves no room for its text in {limit}; expected a larger --max-tokens"
            )
        return shorten(self.prompt.removesuffix(self.asked), left, tokenizer) + self.asked

    def trim(self, answer: str) -> str:
        """Cut a generated text at the task's stop text, which the answer does not include."""
        return answer if self.task.stop is None else answer.split(self.task.stop)[0]

    def score(self, answer: str) -> float:
        """Return the best metric over the references, from 0 to 1."""
        if self.task.first_line:
            answer = answer.lstrip("\n").split("\n")[0]
        return max(self.task.metric.score(answer, reference) for reference in self.references)


def shorten(text: str, limit: int, tokenizer: Any) -> str:
    """Remove the middle of a prompt of more than `limit` tokens: its first and last limit // 2 tokens are kept.

    The halves are joined as text, so that the result may have a few tokens more or less. Special tokens do not count.

    Args:
        limit: at least 2.
    """
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) <= limit:
        return text
    halves = (tokens[: limit // 2], tokens[-(limit // 2) :])
    return "".join(tokenizer.decode(half, skip_special_tokens=True) for half in halves)
