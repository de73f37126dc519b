"""The records of a run on disk: append-only JSON lines, one file per process, synced to disk after every line.

The first line of a file is the `Run`, every other line a `Record`. A process that is killed leaves at most one damaged
line at the end of its file; reading stops there and reports it, and `prepare` truncates it before a run resumes.
Published ledgers are compressed (`records-*.jsonl.gz`).
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report.evaluation import SCHEMA_VERSION, Record, Run
from namm_transfer.files import make_folder, put_aside, safe_name, write_atomic

MOST_BYTES = 1 << 29
"""Largest decompressed size of a ledger, in bytes; the published ones are a hundred times smaller."""


@dataclasses.dataclass
class Contents:
    """The readable part of one ledger file."""

    path: Path
    """The ledger file."""
    run: Run | None
    """The run in its first line; None if that line is damaged."""
    records: list[Record]
    """The records before any damage, in the order they were written."""
    intact_bytes: int
    """Length of the undamaged beginning, in bytes."""
    damage: str | None
    """A message about the damage; None if the whole file is readable."""


def read(path: Path) -> Contents:
    """Read a ledger up to its end or to the first damaged line.

    Raises:
        NammTransferError: the file is from another version of the schema.
    """
    contents = Contents(path, None, [], 0, None)
    for number, line in enumerate(content(path).splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line is cut off")
            if number == 1:
                contents.run = _run(path, line)
            else:
                contents.records.append(Record.model_validate_json(line))
        except ValueError as error:  # pydantic's ValidationError is one
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            contents.damage = f"{path.name} is damaged from line {number} on ({what}); read up to there"
            break
        contents.intact_bytes += len(line)
    return contents


def content(path: Path) -> bytes:
    """Read the bytes of a ledger, decompressed; a truncated .gz file gives those before the end.

    Raises:
        NammTransferError: a .gz file is not in gzip format, or unpacks to more than `MOST_BYTES`.
    """
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    unpacking = zlib.decompressobj(wbits=31)  # 31: with gzip's header
    try:
        lines = unpacking.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise NammTransferError(f"{path} is damaged: no gzip file ({error})") from None
    if unpacking.unconsumed_tail:
        raise NammTransferError(f"{path} unpacks to more than {MOST_BYTES:,} bytes; expected fewer")
    return lines


def _run(path: Path, line: bytes) -> Run:
    version = re.match(rb'\{"schema_version":\s*(\d+)', line)
    if version and not 1 <= int(version[1]) <= SCHEMA_VERSION:
        raise NammTransferError(
            f"{path} has schema version {int(version[1])}, expected 1 to {SCHEMA_VERSION}: "
            "use the release that wrote it"
        )
    return Run.model_validate_json(line)


def find(folder: Path) -> list[Path]:
    """List the ledger files of a report folder."""
    return sorted([*folder.glob("records-*.jsonl"), *folder.glob("records-*.jsonl.gz")])


def path_of(folder: Path, task: str, process: int) -> Path:
    """Return the path of the ledger in which process number `process` writes its records of `task`."""
    return folder / f"records-{safe_name(task)}-{process}.jsonl"


def read_task(folder: Path, task: str) -> list[Contents]:
    """Read all ledgers of one task in a folder."""
    stem = path_of(folder, task, 0).name.removesuffix("0.jsonl")
    found = [read(path) for path in find(folder) if path.name.startswith(stem)]
    return [contents for contents in found if contents.run is None or contents.run.task == task]


def prepare(folder: Path, run: Run, resume: bool, defaults: Mapping[str, Any] | None = None) -> list[str]:
    """Make the folder ready for a run. One process calls this before any process opens its ledger.

    With `resume`, earlier ledgers of the task must be of the same run, to which policies may have been added: damaged
    ends and failed samples are removed, compressed ledgers unpacked, and a change of the code recorded. Otherwise they
    are renamed to *.old.

    Args:
        folder: the evaluation's --out folder.
        run: the run that is about to start or resume.
        resume: True to continue from the records in the folder.
        defaults: option -> default value, assumed for options that the run of an older release did not record.

    Returns:
        Messages for the user.

    Raises:
        NammTransferError: a ledger was made with another configuration; the message names the differences.
    """
    make_folder(folder)
    notes = []
    for contents in read_task(folder, run.task):
        if not resume:
            old = put_aside(contents.path)
            notes.append(f"records of an earlier run kept as {old.name} (--resume would have gone on from them)")
            continue
        if contents.run is not None and (difference := _differences_of(contents.run, run, defaults or {})):
            raise NammTransferError(
                f"cannot resume: {contents.path} was made with another configuration ({'; '.join(difference)}); "
                "use the same flags, or another --out"
            )
        if contents.path.suffix == ".gz":
            contents.path = _unpack(contents.path)
        if contents.damage:
            os.truncate(contents.path, contents.intact_bytes)
            notes.append(f"{contents.damage}; the damaged end is evaluated again")
        if contents.run is not None:
            notes += _take_over(contents.path, contents.run, run)
    failed = drop(folder, run.task, lambda record: record.error is not None) if resume else 0
    return [*notes, f"{failed} failed samples are tried again"] if failed else notes


def _differences_of(old: Run, new: Run, defaults: Mapping[str, Any]) -> list[str]:
    there, here = old.identity(), new.identity()
    there["options"] = {key: defaults[key] for key in here["options"] if key in defaults} | there["options"]
    options = {policy["spec"]: policy["options"] for policy in here["policies"]}
    for policy in there["policies"]:
        if policy["options"] is None:  # the record is older than the field
            policy["options"] = options.get(policy["spec"])
    if all(policy in here["policies"] for policy in there["policies"]):  # policies may be added
        there["policies"] = here["policies"]
    return differences(there, here)


def drop(folder: Path, task: str, unwanted: Callable[[Record], bool]) -> int:
    """Remove the unwanted records from the ledgers of a task, and return their number. No ledger may be open."""
    dropped = 0
    for contents in read_task(folder, task):
        left = [record for record in contents.records if not unwanted(record)]
        if contents.run is not None and len(left) < len(contents.records):
            lines = [contents.run.model_dump_json(), *(record.model_dump_json() for record in left)]
            write_atomic(contents.path, "\n".join(lines) + "\n")
            dropped += len(contents.records) - len(left)
    return dropped


def _unpack(path: Path) -> Path:
    """Replace a compressed ledger by an uncompressed one, which can be appended to."""
    unpacked = path.with_suffix("")
    if unpacked.exists():
        raise NammTransferError(f"{path} and {unpacked.name} are the same ledger: expected one of them")
    write_atomic(unpacked, content(path))
    path.unlink()
    return unpacked


def _take_over(path: Path, begun: Run, now: Run) -> list[str]:
    """Write into a ledger's first line what the resumed run has more: policies, or other code. Returns messages."""
    notes, update = list[str](), dict[str, Any]()
    known = {policy.spec for policy in begun.policies}
    if begun.policies != now.policies:
        update["policies"] = now.policies
    if added := [policy.spec for policy in now.policies if policy.spec not in known]:
        notes.append(f"{path.name}: added {', '.join(added)}")
    if begun.latest.code != now.provenance.code:
        update["resumed"] = [*begun.resumed, now.provenance]
        notes.append(f"{path.name} was made with other code or packages; the report says so")
    if update:
        _, _, records = path.read_bytes().partition(b"\n")
        first = begun.model_copy(update=update).model_dump_json()
        write_atomic(path, first.encode() + b"\n" + records)
    return notes


def differences(old: Any, new: Any, name: str = "", sides: tuple[str, str] = ("there", "here")) -> list[str]:
    """List the differences between two JSON values, one line each, such as `options.seed: 0 there, 1 here`."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        nested = [differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key), sides) for key in keys]
        return [line for lines in nested for line in lines]
    return [f"{name}: {old!r} {sides[0]}, {new!r} {sides[1]}"]


class Ledger:
    """The ledger file of one process, open for appending."""

    def __init__(self, path: Path, run: Run) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 -- open for as long as the run lasts
        if self._file.tell() == 0:
            self._append(run.model_dump_json())

    def add(self, record: Record) -> None:
        """Append a record and sync it to disk.

        Raises:
            OSError: it cannot be written, for example because the disk is full; earlier records are intact.
        """
        self._append(record.model_dump_json())

    def _append(self, line: str) -> None:
        end, rest = self._file.tell(), line.encode() + b"\n"
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            _to_disk(self._file.fileno())
        except BaseException:
            self._file.truncate(end)  # leave no partial line, and free its space
            raise

    def close(self) -> None:
        """Close the file. All records are already on disk."""
        self._file.close()


def _to_disk(handle: int) -> None:
    os.fsync(handle)
