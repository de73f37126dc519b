"""From the records in a folder to the `Report`: a pure function, whatever order the records were written in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from namm_transfer.evals.report import cautions, overall, statistics, verdict
from namm_transfer.evals.report.published import beside
from namm_transfer.evals.report.records import Task, load, mean_history
from namm_transfer.evals.report.schema import (
    Answer,
    Brief,
    Category,
    Cost,
    HeatMap,
    Overall,
    Record,
    Report,
    Sizes,
    SummaryRow,
)


def build(folder: Path) -> Report:
    """The report over all records in a folder. Raises what `load` raises."""
    tasks = load(folder)
    ran = [(task, spec) for task in tasks for spec in task.records if task.records[spec]]
    summary = [_row(task, spec) for task, spec in ran]
    grouped = overall.rows(tasks)
    answers = _answers(tasks, summary, grouped)
    published = [item for task in tasks for item in beside(task.run.task)]
    warnings = cautions.of_group(grouped, overall.members(tasks), summary)
    return Report(
        headline=verdict.in_one_line(answers, summary, grouped),
        answers=answers,
        summary=summary,
        overall=grouped,
        costs=[_cost(task, spec) for task, spec in ran],
        sizes=[sizes for task, spec in ran for sizes in _sizes(task, spec)],
        categories=[row for task in tasks for row in _categories(task)],
        heatmaps=[map_ for task, spec in ran for map_ in _heatmap(task, spec)],
        published=published,
        warnings=warnings + [line for task in tasks for line in cautions.of_task(task, summary, published)],
        runs=[task.run for task in tasks],
        records=[_brief(task.run.task, record) for task in tasks for rows in task.records.values() for record in rows],
    )


def _row(task: Task, spec: str) -> SummaryRow:
    records = task.records[spec]
    differences, clusters = task.differences(spec)
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
        acted_share=_acted(records),
        failed=sum(record.error is not None for record in records),
        unparsed=sum(record.unparsed for record in records),
    )


def _acted(records: Sequence[Record]) -> float:
    """Share of the samples that did not fail in which the policy acted at all."""
    return statistics.mean([record.updates > 0 for record in records if record.error is None]) or 0.0


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
        acted_share=_acted(records),
    )


def _sizes(task: Task, spec: str) -> list[Sizes]:
    """The cache size after each update; nothing for a policy that never acted."""
    histories = [record.history for record in task.records[spec] if record.history and record.history[0]]
    if not histories:
        return []
    held = np.mean(mean_history(task.records[spec]), axis=0)
    reached = [sum(len(history[0]) > update for history in histories) for update in range(len(held))]
    own = re.search(r"\bupdate_interval=(\d+)", spec)
    interval = int(own[1] if own else task.run.options.get("update_interval", 1))
    return [Sizes(task=task.run.task, policy=spec, interval=interval, held=held.round(2).tolist(), samples=reached)]


def _categories(task: Task) -> list[Category]:
    """Rows by category, then by the further groups that samples name in `details["groups"]`, as the samples come."""
    every = [record for records in task.records.values() for record in records]
    names = dict.fromkeys(sorted({record.category for record in every}))
    names |= dict.fromkeys(name for record in every for name in _groups(record))
    rows = []
    returns = any("return" in record.details for record in every)
    for name in names if len(names) > 1 or returns else []:
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
                    raw=statistics.mean([float(r.details["return"]) for r in chosen if "return" in r.details]),
                    kept_share=_mean_of(chosen, "kept_share"),
                    acted_share=_acted(chosen),
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


def _answers(tasks: list[Task], summary: list[SummaryRow], grouped: list[Overall]) -> list[Answer]:
    """Of a group of several tasks first, then of each task."""
    by_task = {task.run.task: task for task in tasks}
    every: list[verdict.Row] = [*summary, *grouped]
    baselines = {row.task: row for row in every if row.policy == "full"}
    answers = []
    for row in grouped if grouped and grouped[0].tasks > 1 else []:
        pairs = sum(len(task.paired(row.policy)) for task in overall.members(tasks))
        unit = f"interquartile mean of the normalised returns of {row.tasks} tasks"
        answers.append(verdict.answer(row, full=baselines.get(row.task), pairs=pairs, draws=pairs, unit=unit))
    for part in summary:
        task = by_task[part.task]
        clusters = task.differences(part.policy)[1]
        unit, full = str(task.run.description.get("score", "score")), baselines.get(part.task)
        answers.append(verdict.answer(part, full=full, pairs=len(clusters), draws=len(set(clusters)), unit=unit))
    return answers


def _brief(task: str, record: Record) -> Brief:
    shown = {name: getattr(record, name) for name in Brief.model_fields if name != "task"}
    return Brief(task=task, **shown)
