"""From the records in a folder to the `Report`: a pure function, whatever order the records were written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import NammTransferError
from . import ledger, statistics, verdict
from .schema import Answer, Brief, Category, Cost, HeatMap, Record, Report, Run, SummaryRow

MATCH_TOLERANCE = 0.02
"""Relative difference of cache sizes up to which match=NAME counts as met."""


@dataclasses.dataclass
class Task:
    """One run and its records."""

    run: Run
    """The run; where several ledgers have one, the first."""
    records: dict[str, list[Record]]
    """By policy, in the run's order; each list by index."""
    damage: list[str]
    """What could not be read."""

    def paired(self, policy: str) -> tuple[list[float], list[str]]:
        """Differences to the full cache over samples that both finished, and the cluster of each."""
        full = {record.index: record.score for record in self.records.get("full", [])}
        differences, clusters = [], []
        for record in self.records[policy]:
            other = full.get(record.index)
            if record.score is not None and other is not None:
                differences.append(record.score - other)
                clusters.append(record.cluster or f"sample {record.index}")
        return differences, clusters


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
            task.records[record.policy].append(record)
        task.damage += [item.damage] if item.damage else []
    for task in tasks.values():
        task.records = {spec: _unique(records) for spec, records in task.records.items()}
    nameless = [item.damage for item in contents if item.run is None and item.damage]
    ordered = sorted(tasks.values(), key=lambda task: (task.run.provenance.started, task.run.task))
    ordered[0].damage += nameless
    return ordered


def _unique(records: list[Record]) -> list[Record]:
    return [record for _, record in sorted({record.index: record for record in records}.items())]


def build(folder: Path) -> Report:
    """The report over all records in a folder. Raises what `load` raises."""
    tasks = load(folder)
    summary = [_row(task, spec) for task in tasks for spec in task.records if task.records[spec]]
    return Report(
        answers=_answers(tasks, summary),
        summary=summary,
        costs=[_cost(task, spec) for task in tasks for spec in task.records if task.records[spec]],
        categories=[row for task in tasks for row in _categories(task)],
        heatmaps=[map_ for task in tasks for spec in task.records for map_ in _heatmap(task, spec)],
        warnings=[warning for task in tasks for warning in _warnings(task, summary)],
        runs=[task.run for task in tasks],
        records=[_brief(task.run.task, record) for task in tasks for rows in task.records.values() for record in rows],
    )


def _row(task: Task, spec: str) -> SummaryRow:
    records = task.records[spec]
    differences, clusters = task.paired(spec)
    finished = [record for record in records if record.error is None]
    compared = spec != "full" and bool(differences)
    return SummaryRow(
        task=task.run.task,
        policy=spec,
        n=len(records),
        score=statistics.mean([record.score for record in records if record.score is not None]),
        diff_full=statistics.mean(differences) if compared else None,
        diff_ci=statistics.interval(differences, clusters) if compared else None,
        kept_share=_mean_of(records, "kept_share"),
        updates_mean=statistics.mean([record.updates for record in finished]) or 0.0,
        acted_share=statistics.mean([record.updates > 0 for record in finished]) or 0.0,
        failed=sum(record.error is not None for record in records),
        unparsed=sum(record.unparsed for record in records),
    )


def _mean_of(records: Sequence[Record], name: str) -> float | None:
    return statistics.mean([value for record in records if (value := getattr(record, name)) is not None])


def _cost(task: Task, spec: str) -> Cost:
    records = task.records[spec]
    measured = [record for record in records if record.kept]
    return Cost(
        task=task.run.task,
        policy=spec,
        tokens_seen=_mean_of(measured, "seen"),
        tokens_held=statistics.mean([float(np.mean(record.kept)) for record in measured]),
        bytes_held=statistics.mean([float(r.details["bytes"]) for r in records if "bytes" in r.details]),
        peak_share=_mean_of(records, "peak_share"),
        seconds=float(np.mean([record.seconds for record in records])),
    )


def _categories(task: Task) -> list[Category]:
    """Rows by category, then by the further groups that samples name in `details["groups"]`, as the samples come."""
    every = [record for records in task.records.values() for record in records]
    names = dict.fromkeys(sorted({record.category for record in every}))
    names |= dict.fromkeys(name for record in every for name in _groups(record))
    rows = []
    for name in names if len(names) > 1 else []:
        for spec, records in task.records.items():
            chosen = [record for record in records if name == record.category or name in _groups(record)]
            scores = [record.score for record in chosen if record.score is not None]
            rows.append(
                Category(
                    task=task.run.task,
                    category=name,
                    policy=spec,
                    n=len(chosen),
                    score=statistics.mean(scores),
                    kept_share=_mean_of(chosen, "kept_share"),
                )
            )
    return rows


def _groups(record: Record) -> list[str]:
    """Further groups a sample counts in beside its category: "64 frames", "duration group 600"."""
    return list(record.details.get("groups", []))


def _heatmap(task: Task, spec: str) -> list[HeatMap]:
    shares = [np.asarray(record.kept) / record.seen for record in task.records[spec] if record.kept and record.seen]
    if spec == "full" or not shares:
        return []
    return [HeatMap(task=task.run.task, policy=spec, share=np.mean(shares, axis=0).round(4).tolist())]


def _answers(tasks: list[Task], summary: list[SummaryRow]) -> list[Answer]:
    by_task = {task.run.task: task for task in tasks}
    baselines = {row.task: row for row in summary if row.policy == "full"}
    answers = []
    for row in summary:
        task = by_task[row.task]
        clusters = task.paired(row.policy)[1]
        unit = str(task.run.description.get("score", "score"))
        full = baselines.get(row.task)
        answers.append(verdict.answer(row, full=full, pairs=len(clusters), draws=len(set(clusters)), unit=unit))
    return answers


def _warnings(task: Task, summary: list[SummaryRow]) -> list[str]:
    """What a reader has to know before believing the table."""
    name, rows = task.run.task, {row.policy: row for row in summary if row.task == task.run.task}
    found = list(task.damage)
    missing = task.run.samples * len(task.records) - sum(map(len, task.records.values()))
    if missing:
        found.append(
            f"the run is not finished: {missing} of {task.run.samples * len(task.records)} records are missing"
        )
    if "full" not in rows:
        found.append("no full cache was run, so there is nothing to compare with")
    return [f"{name}: {warning}" for warning in found + _losses(task, rows) + _chance(task) + _sizes(task, rows)]


def _losses(task: Task, rows: dict[str, SummaryRow]) -> list[str]:
    """Failed samples and unparsed answers; what is the same under several policies is said once."""
    said: dict[str, list[str]] = {}
    for spec, row in rows.items():
        if row.failed:
            first = next(record.error for record in task.records[spec] if record.error)
            text = f"{row.failed} of {row.n} samples failed and are left out of the score; the first: {first}"
            said.setdefault(text, []).append(spec)
        if row.unparsed:
            text = f"{row.unparsed} of {row.n} answers could not be parsed and count as wrong"
            said.setdefault(text, []).append(spec)
    everywhere = "every policy" if len(rows) > 1 else next(iter(rows))
    return [f"{everywhere if len(specs) == len(rows) else ', '.join(specs)}: {text}" for text, specs in said.items()]


def _chance(task: Task) -> list[str]:
    chance = task.run.description.get("chance")
    full = [record for record in task.records.get("full", []) if record.score is not None]
    if chance is None or not full:
        return []
    scores = [record.score for record in full if record.score is not None]
    bounds = statistics.interval(scores, [record.cluster or f"sample {record.index}" for record in full])
    low = bounds[0] if bounds else float(np.mean(scores))
    if low > float(chance):
        return []
    return [
        f"the full cache scores {verdict.number(float(np.mean(scores)))}, not clearly above guessing "
        f"({verdict.number(float(chance))}): differences between policies mean little for a model this weak"
    ]


def _sizes(task: Task, rows: dict[str, SummaryRow]) -> list[str]:
    """Policies that were to have the cache size of another and do not."""
    found = []
    for policy in task.run.policies:
        row, other = rows.get(policy.spec), rows.get(policy.match or "")
        if row is None or other is None or row.kept_share is None or not other.kept_share:
            continue
        if abs(row.kept_share / other.kept_share - 1) > MATCH_TOLERANCE:
            found.append(
                f"{policy.spec} held {verdict.percent(row.kept_share)} of the cache, {policy.match} "
                f"{verdict.percent(other.kept_share)}: more than 2 % apart"
            )
    return found


def _brief(task: str, record: Record) -> Brief:
    shown = {name: getattr(record, name) for name in Brief.model_fields if name != "task"}
    return Brief(task=task, **shown)
