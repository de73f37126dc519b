"""What a report folder holds: the records of its ledgers by task and policy, and its report.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import pydantic_core
from pydantic import ValidationError

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.schema import SCHEMA_VERSION, Record, Report, Run


@dataclasses.dataclass
class Task:
    """One run and its records."""

    run: Run
    """The run; where several ledgers have one, the first."""
    records: dict[str, list[Record]]
    """By policy, in the run's order; each list by index."""
    damage: list[str]
    """What could not be read."""

    def paired(self, policy: str) -> list[tuple[Record, Record]]:
        """The records of samples that both this policy and the baseline finished: (its own, the baseline's)."""
        reference = self.run.baseline.spec if self.run.baseline else ""
        full = {record.index: record for record in self.records.get(reference, []) if record.score is not None}
        return [
            (record, full[record.index])
            for record in self.records[policy]
            if record.score is not None and record.index in full
        ]

    def differences(self, policy: str) -> tuple[list[float], list[str]]:
        """Differences of the score to the baseline's, and the cluster of each."""
        pairs = self.paired(policy)
        clusters = [record.cluster or f"sample {record.index}" for record, _ in pairs]
        return [(record.score or 0.0) - (full.score or 0.0) for record, full in pairs], clusters


def load(folder: Path) -> list[Task]:
    """The runs of a report folder, in the order they were started.

    Raises:
        NammTransferError: no ledger there, or two of the same task that do not belong together.
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
    """One record a sample, in the samples' order: the last one, but none of a failure where there is a result."""
    results = {record.index: record for record in records if record.error is None}
    return [record for _, record in sorted(({record.index: record for record in records} | results).items())]


def read(path: Path) -> Report:
    """The report in a report.json, or in a folder that has one.

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
    """Tokens a head held after each update, (layers, updates), each entry the mean over the samples that got so far."""
    histories = [record.history for record in records]
    layers = max(map(len, histories), default=0)
    return [_mean_by_update([history[i] for history in histories if i < len(history)]) for i in range(layers)]


def _mean_by_update(rows: list[list[float]]) -> list[float]:
    columns = [[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows), default=0))]
    return [math.fsum(column) / len(column) for column in columns]  # fsum: the same in whatever order they come
