"""Questions of LongBench and InfiniteBench from a folder, or from the hub without running anything of what lies there.

One JSON object a line. LongBench: `input`, `context`, `answers`, `all_classes` (and others that nobody needs here).
InfiniteBench: `context`, `input`, `answer`, `options`.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from huggingface_hub import hf_hub_download

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text.benchmarks import Question, Task
from namm_transfer.evals.tasks.text.matches import LETTERS
from namm_transfer.evals.tasks.text.metrics import METRICS
from namm_transfer.files import safe_join

LONGBENCH = ("THUDM/LongBench", "data.zip")
"""Data set on the hub, and its archive with `data/TASK.jsonl` for every task."""
INFINITEBENCH = "xinrongzhang2022/InfiniteBench"
"""Data set on the hub with a `TASK.jsonl` for every task."""


@dataclass(frozen=True)
class Source:
    """Where a task's lines are."""

    name: str
    """For a report: a path in the folder given, or repository and file on the hub"""
    file: Path
    member: str | None = None
    """Name in the archive, if the file is one"""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and bytes of each line that is not blank; `NammTransferError` if it cannot be read."""
        try:
            with ExitStack() as opened:
                if self.member is None:
                    file: IO[bytes] = opened.enter_context(self.file.open("rb"))
                else:
                    file = opened.enter_context(opened.enter_context(zipfile.ZipFile(self.file)).open(self.member))
                yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise NammTransferError(f"cannot read {self.name!r}: {error}") from error


def local(task: Task, root: Path) -> Source | None:
    """A task's lines in a folder: in `TASK.jsonl`, there or in `data/`, or in LongBench's archive; None if in none.

    Raises:
        NammTransferError: one of these lies outside of the folder, by a link.
    """
    file, archive = f"{task.name}.jsonl", LONGBENCH[1]
    places: list[tuple[str, str | None]] = [(file, None), (f"data/{file}", None)]
    places += [(archive, f"data/{file}")] if task.benchmark == "longbench" else []
    for name, member in places:
        if (path := safe_join(root, name)).is_file():
            return Source(str(root / name), path, member)
    return None


def find(task: Task, root: Path | None) -> Source:
    """Where a task's lines are: in the folder `root` (see `local`), or if that is None, in a file of the hub.

    Raises:
        NammTransferError: no such file, or one that lies outside of `root`; the hub cannot be reached.
    """
    file = f"{task.name}.jsonl"
    if root is not None:
        if (source := local(task, root)) is None:
            raise NammTransferError(f"{task.id}: {str(root)!r} holds no file {file!r}")
        return source
    repository, stored = LONGBENCH if task.benchmark == "longbench" else (INFINITEBENCH, file)
    try:
        path = Path(hf_hub_download(repository, stored, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise NammTransferError(
            f"{task.id}: cannot get {stored!r} of data set {repository!r} from the hub ({error}); "
            f"with no hub, give a folder that holds {file}"
        ) from error
    return Source(f"{repository}/{stored}", path, f"data/{file}" if task.benchmark == "longbench" else None)


def load(task: Task, source: Source, count: int | None = None) -> list[Question]:
    """The first `count` questions of a task (default all), in the file's order; what comes after is not read.

    Raises:
        NammTransferError: nothing in there, or a line that does not fit; the message names task, file and line.
    """
    questions: list[Question] = []
    read = _longbench if task.benchmark == "longbench" else _infinitebench
    for number, line in islice(source.lines(), count):
        fields, references = read(task, _Entry(line, f"{task.id}, line {number} of {source.name!r}"))
        questions.append(
            Question(
                id=f"{task.id}/{len(questions)}",
                task=task,
                prompt=task.prompt.format(**fields),
                references=references,
                right=_shown(references[0]),
                context=hashlib.sha256(fields["context"].encode()).hexdigest(),
            )
        )
    if not questions:
        raise NammTransferError(f"{task.id}: {source.name!r} holds no questions")
    return questions


class _Entry:
    """A line of a file, whose fields are looked at one by one."""

    def __init__(self, line: bytes, where: str) -> None:
        self.where = where
        try:
            self.values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NammTransferError(f"{where} is no JSON: {error}") from None
        if not isinstance(self.values, dict):
            raise NammTransferError(f"{where} holds a {type(self.values).__name__}; expected an object")

    def text(self, name: str) -> str:
        value = self.values.get(name)
        return value if isinstance(value, str) else self.refuse(name, "a text")

    def texts(self, name: str) -> list[str]:
        value = self.values.get(name)
        fits = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
        return value if fits else self.refuse(name, "a list of texts")  # type: ignore[return-value]

    def refuse(self, name: str, expected: str) -> Any:
        raise NammTransferError(f"{self.where}: {name!r} is {str(self.values.get(name))[:80]!r}; expected {expected}")


def _longbench(task: Task, entry: _Entry) -> tuple[dict[str, str], tuple[Any, ...]]:
    """Fields of the template and references of a line."""
    fields = {name: entry.text(name) for name in ("context", "input")}
    answers = entry.texts("answers")
    if task.metric is not METRICS["classification"]:
        return fields, tuple(answers)
    classes = tuple(entry.texts("all_classes"))
    return fields, tuple((answer, classes) for answer in answers)


def _infinitebench(task: Task, entry: _Entry) -> tuple[dict[str, str], tuple[Any, ...]]:
    """Fields of the template and references of a line, as `create_prompt` and `get_answer` of InfiniteBench."""
    fields = {name: entry.text(name) for name in ("context", "input")}
    fields["question"] = fields["input"]
    answer = entry.values.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(item, str | int | float | list) for item in answers):
        entry.refuse("answer", "a text, a number or a list of these")
    if "{OPTION_A}" in task.prompt:
        options = entry.texts("options")
        if len(options) != len(LETTERS):
            entry.refuse("options", "four texts")
        fields |= {f"OPTION_{letter}": option for letter, option in zip(LETTERS, options, strict=True)}
        if len(answers) == 1 and answers[0] in options:
            answers = [answers[0], LETTERS[options.index(answers[0])]]
        if len(answers) != 2 or answers[1] not in tuple(LETTERS):
            entry.refuse("answer", "one of the options")
        return fields, (tuple(answers),)
    if task.name == "math_find":
        fields["prefix"] = f"What is {_match(entry, r'The .+ of').lower()[:-3]} in the following list?"
    elif task.name == "code_run":
        fields["func_call"] = _match(entry, r"func_[0-9]+\(-?[0-9]+\)")
        fields["func"] = fields["func_call"].partition("(")[0]
    elif task.name == "math_calc":
        return fields, (tuple(answers[0] if isinstance(answers[0], list) else answers),)
    several = task.name in ("longbook_qa_eng", "longbook_qa_chn", "longbook_sum_eng")
    return fields, tuple(answers if several else answers[:1])


def _match(entry: _Entry, pattern: str) -> str:
    found = re.search(pattern, entry.text("input"))
    return found[0] if found else entry.refuse("input", f"a text with {pattern!r} in it")


def _shown(reference: Any) -> str:
    """A reference for a reader: of a text and what comes with it (all classes, the option's letter) the text."""
    return str(reference[0] if isinstance(reference, tuple) and isinstance(reference[0], str) else reference)
