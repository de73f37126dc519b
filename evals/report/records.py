"""Read a report folder: the records of its ledgers by task and policy, its arrays, and its report.json."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydantic_core
from pydantic import ValidationError

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.schema import SCHEMA_VERSION, Record, Report, Run
from namm_transfer.files import write_atomic

MOST_ARRAY_BYTES = 1 << 28
"""Largest array that is unpacked from an archive, in bytes."""

_ARRAY_NAME = re.compile("[0-9a-f]{64}")
# The archive or member is missing, damaged, encrypted, or compressed in a way that Python cannot read.
_UNREADABLE = (OSError, KeyError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass
class Task:
    """One run with its records."""

    run: Run
    """The run, as the first ledger that has it states it."""
    records: dict[str, list[Record]]
    """Policy spec -> records, ordered by sample index."""
    damage: list[str]
    """Messages about the parts of the ledgers that could not be read."""

    def scores(self, policy: str) -> list[float]:
        """List the scores of the samples that did not fail under a policy."""
        return [record.score for record in self.records.get(policy, []) if record.score is not None]

    def paired(self, policy: str, reference: str | None = None) -> list[tuple[Record, Record]]:
        """List the records of samples that both this policy and another one finished: (its own, the other's).

        Args:
            reference: spec of the other policy; the baseline by default.
        """
        other = reference or (self.run.baseline.spec if self.run.baseline else "")
        found = {record.index: record for record in self.records.get(other, []) if record.score is not None}
        return [
            (record, found[record.index])
            for record in self.records[policy]
            if record.score is not None and record.index in found
        ]

    def differences(self, policy: str, reference: str | None = None) -> tuple[list[float], list[str]]:
        """Compute the differences between the scores of the pairs of `paired`, and the cluster of each."""
        pairs = self.paired(policy, reference)
        clusters = [record.cluster or f"sample {record.index}" for record, _ in pairs]
        return [(record.score or 0.0) - (other.score or 0.0) for record, other in pairs], clusters


def load(folder: Path) -> list[Task]:
    """Load the runs of a report folder, in the order they were started.

    Raises:
        NammTransferError: there is no ledger, or two of the same task are of different runs.
    """
    contents = [ledger.read(path) for path in ledger.find(folder)]
    if not any(item.run for item in contents):
        raise NammTransferError(
            f"no records in {str(folder)!r}; expected records-*.jsonl files that an evaluation wrote"
        )
    tasks: dict[str, Task] = {}
    for item in contents:
        if item.run is None:
            continue
        task = tasks.setdefault(item.run.task, Task(item.run, {policy.spec: [] for policy in item.run.policies}, []))
        if differences := ledger.differences(task.run.identity(), item.run.identity()):
            raise NammTransferError(f"{item.path} is of another run of {item.run.task!r}: {'; '.join(differences)}")
        for record in item.records:
            if record.policy not in task.records or record.index >= task.run.samples:
                raise NammTransferError(
                    f"{item.path} has a record of sample {record.index} under {record.policy!r}; expected one of its "
                    f"{task.run.samples} samples under one of {', '.join(task.records)}"
                )
            task.records[record.policy].append(record)
        task.damage += [item.damage] if item.damage else []
    for task in tasks.values():
        task.records = {spec: _unique(records) for spec, records in task.records.items()}
    nameless = [item.damage for item in contents if item.run is None and item.damage]
    ordered = sorted(tasks.values(), key=lambda task: (task.run.provenance.started, task.run.task))
    ordered[0].damage += nameless
    return ordered


def _unique(records: list[Record]) -> list[Record]:
    """Keep one record per sample, in the samples' order: the last result, or the last failure if there is none."""
    results = {record.index: record for record in records if record.error is None}
    return [record for _, record in sorted(({record.index: record for record in records} | results).items())]


def read(path: Path) -> Report:
    """Read the report in a report.json, or in a folder that has one.

    Raises:
        NammTransferError: no such file, no JSON, another version of the schema, or something that does not fit it.
    """
    path = path / "report.json" if path.is_dir() else path
    again = "write it again from its records with namm-transfer report render"
    try:
        content = pydantic_core.from_json(path.read_bytes(), allow_inf_nan=False)  # refuses what is nested too deeply
    except (OSError, ValueError) as error:
        raise NammTransferError(f"{str(path)!r} cannot be read as a report: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in range(1, SCHEMA_VERSION + 1):
        raise NammTransferError(
            f"{str(path)!r} has schema version {version!r}, expected 1 to {SCHEMA_VERSION}: {again}, "
            "or use the release that wrote it"
        )
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise NammTransferError(
            f"{str(path)!r} is no report of schema version {version}: {place}: {first['msg']}; {again}"
        ) from None


def mean_history(records: Iterable[Record]) -> list[list[float]]:
    """Average the tokens a KV head kept after each update over the samples that reached it: (layers, updates)."""
    histories = [record.history for record in records]
    layers = max(map(len, histories), default=0)
    return [_mean_by_update([history[i] for history in histories if i < len(history)]) for i in range(layers)]


def mean_history_by_head(records: Iterable[Record]) -> list[list[tuple[float, ...]]]:
    """Average the tokens each KV head kept after an update over the samples that reached it: (layers, updates, heads).

    Raises:
        NammTransferError: a record does not have these numbers.
    """
    found = []
    for record in records:
        if record.history and record.history[0] and not record.history_by_head:
            raise NammTransferError(f"{record.id} under {record.policy!r} has no sizes by head; expected a new run")
        if record.history_by_head:
            found.append(record.history_by_head)
    layers = []
    for layer in zip(*found, strict=True):
        heads = range(len(next((updates[0] for updates in layer if updates), [])))
        layers.append(
            list(zip(*(_mean_by_update([[sizes[h] for sizes in s] for s in layer]) for h in heads), strict=True))
        )
    return layers


def _mean_by_update(rows: list[list[float]]) -> list[float]:
    columns = [[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows), default=0))]
    return [math.fsum(column) / len(column) for column in columns]  # fsum: the same in whatever order they come


class ArrayStore:
    """The arrays of a report folder, addressed by the SHA-256 of their .npy bytes.

    A run writes each array to a file of its own; `pack` puts them into one kept.npz at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.loose = folder / "arrays"
        self.packed = folder / "kept.npz"

    def put(self, array: np.ndarray) -> str:
        """Store an array and return its name; raises `NammTransferError` for object arrays, which would need pickle."""
        if np.asarray(array).dtype.hasobject:
            raise NammTransferError(f"cannot store an array of dtype {np.asarray(array).dtype}; expected numbers")
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(array), allow_pickle=False)
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        if not (self.loose / f"{name}.npy").exists():
            write_atomic(self.loose / f"{name}.npy", buffer.getvalue())
        return name

    def get(self, name: str) -> np.ndarray:
        """Load the array of that name; raises `NammTransferError` if it is missing or its SHA-256 is not its name."""
        data = self._bytes(name)
        if data is None or hashlib.sha256(data).hexdigest() != name:
            raise NammTransferError(f"array {name!r} is {'missing' if data is None else 'damaged'} in {self.packed}")
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, MemoryError, OverflowError) as error:
            raise NammTransferError(f"array {name!r} in {self.packed} is no .npy file: {error}") from None

    def _bytes(self, name: str) -> bytes | None:
        if not _ARRAY_NAME.fullmatch(name):  # the name comes from a record and becomes part of a path
            return None
        loose = self.loose / f"{name}.npy"
        try:
            if loose.is_file():
                return loose.read_bytes()
            with zipfile.ZipFile(self.packed) as archive:
                member = archive.getinfo(f"{name}.npy")
                return archive.read(member) if member.file_size <= MOST_ARRAY_BYTES else None
        except _UNREADABLE:
            return None

    def _names(self) -> set[str]:
        """List the names of all arrays in this folder."""
        loose = {path.stem for path in self.loose.glob("*.npy")}
        try:
            with zipfile.ZipFile(self.packed) as archive:
                return loose | {Path(name).stem for name in archive.namelist()}
        except _UNREADABLE:
            return loose

    def pack(self, names: Iterable[str] = (), sources: Iterable[ArrayStore] = (), only: bool = False) -> None:
        """Pack all arrays of this folder, and the named ones from `sources`, into kept.npz and remove the loose files.

        Arrays of earlier runs are kept, as their records are. Arrays that cannot be found are left out, although the
        records still name them. With `only`, arrays of this folder that are not named are removed.
        """
        stores = [self, *sources]
        wanted = set(names) if only else self._names().union(names)
        found = {name: next((data for store in stores if (data := store._bytes(name))), None) for name in wanted}
        if any(found.values()):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in sorted(name for name, data in found.items() if data):
                    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), found[name] or b"", zipfile.ZIP_DEFLATED)
            write_atomic(self.packed, buffer.getvalue())
        for path in self.loose.glob("*.npy"):
            path.unlink()
        if self.loose.exists():
            self.loose.rmdir()
