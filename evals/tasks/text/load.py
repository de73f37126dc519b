"""Loading of questions about long texts from a folder, or from the hub without executing code of the repository.

Files have one JSON object a line, whose fields depend on the benchmark.
"""

from __future__ import annotations

import hashlib
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
from namm_transfer.evals.tasks.text.questions import Entry, Question, Task
from namm_transfer.files import safe_join


@dataclass(frozen=True)
class Source:
    """Location of a task's lines."""

    name: str
    """Name for reports: a path in the given folder, or repository and file on the hub."""
    file: Path
    member: str | None = None
    """Name of the member, if the file is an archive."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield number (from 1) and bytes of each line that is not blank; `NammTransferError` if reading fails."""
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
    """Find a task's lines in a folder: `TASK.jsonl`, `data/TASK.jsonl` or the benchmark's archive; None if absent.

    Raises:
        NammTransferError: one of these lies outside of the folder, by a link.
    """
    file, archive = f"{task.name}.jsonl", task.place.archive
    places: list[tuple[str, str | None]] = [(file, None), (f"data/{file}", None)]
    places += [(archive, f"data/{file}")] if archive else []
    for name, member in places:
        if (path := safe_join(root, name)).is_file():
            return Source(str(root / name), path, member)
    return None


def find(task: Task, root: Path | None) -> Source:
    """Locate a task's lines in the folder `root` (see `local`), or on the hub if that is None.

    Raises:
        NammTransferError: no such file, or one that lies outside of `root`; the hub cannot be reached.
    """
    file = f"{task.name}.jsonl"
    if root is not None:
        if (source := local(task, root)) is None:
            raise NammTransferError(f"{task.id}: {str(root)!r} holds no file {file!r}")
        return source
    repository, archive = task.place.repository, task.place.archive
    stored = archive or file
    try:
        path = Path(hf_hub_download(repository, stored, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise NammTransferError(
            f"{task.id}: cannot get {stored!r} of data set {repository!r} from the hub ({error}); "
            f"with no hub, give a folder that holds {file}"
        ) from error
    return Source(f"{repository}/{stored}", path, f"data/{file}" if archive else None)


def load(task: Task, source: Source, count: int | None = None) -> list[Question]:
    """Load the first `count` questions of a task (default all) in the file's order; later lines are not read.

    Raises:
        NammTransferError: nothing in there, or a line that does not fit; the message names task, file and line.
    """
    questions: list[Question] = []
    _, _, behind = task.prompt.partition("{context}")
    for number, line in islice(source.lines(), count):
        fields, references = task.read(task, Entry(line, f"{task.id}, line {number} of {source.name!r}"))
        questions.append(
            Question(
                id=f"{task.id}/{len(questions)}",
                task=task,
                prompt=task.prompt.format(**fields),
                references=references,
                right=_shown(references[0]),
                context=hashlib.sha256(fields["context"].encode()).hexdigest(),
                asked=behind.format(**fields),
            )
        )
    if not questions:
        raise NammTransferError(f"{task.id}: {source.name!r} holds no questions")
    return questions


def _shown(reference: Any) -> str:
    """Return a reference as text for a reader, without what accompanies it (all classes, the option's letter)."""
    return str(reference[0] if isinstance(reference, tuple) and isinstance(reference[0], str) else reference)
