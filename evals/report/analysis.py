"""Compute the `Report` from the records in a folder, independently of the order in which they were written.

Reinforcement-learning tasks in one folder are also summarised together, by the interquartile mean with a stratified
bootstrap interval and by the probability of improvement (Agarwal et al., 2021; see `statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import cautions, statistics, verdict
from namm_transfer.evals.report.decomposition import decompositions
from namm_transfer.evals.report.gate import gates
from namm_transfer.evals.report.overlap import overlaps
from namm_transfer.evals.report.records import Task, load, mean_history
from namm_transfer.evals.report.schema import (
    Answer,
    Brief,
    Category,
    Cost,
    Headline,
    HeatMap,
    Likelihood,
    Overall,
    Published,
    Record,
    Report,
    Returns,
    Sizes,
    SummaryRow,
)

EPISODIC = "rl"
"""The group whose tasks are summarised together; interquartile means suit returns, not right-or-wrong scores."""

HEADLINE_RULES = ("mean over categories", "mean over samples")
"""Rules for averaging an official score; `Run.description["headline"]` names one of them."""

CORL = "CORL (Tarasov et al., 2022, arXiv 2210.07105), Decision Transformer, last checkpoint"
D4RL = "D4RL v2 data and environments"
DECISION_TRANSFORMER = {
    "hopper": {"medium": 65.1, "medium-replay": 81.8, "medium-expert": 110.4},
    "halfcheetah": {"medium": 42.2, "medium-replay": 38.9, "medium-expert": 91.6},
    "walker2d": {"medium": 67.6, "medium-replay": 59.9, "medium-expert": 107.1},
}
"""Published scores: environment -> data set -> normalised score with the usual context of 20 steps."""


def build(folder: Path) -> Report:
    """Compute the report over all records in a folder; raises the errors of `load`."""
    tasks = load(folder)
    ran = [(task, spec) for task in tasks for spec in task.records if task.records[spec]]
    runs = [task.run for task in tasks]
    summary = [_row(task, spec) for task, spec in ran]
    overall = _overall(tasks)
    known = [item for run in runs for item in published(run.task)]
    warnings = cautions.group_warnings(overall, _members(tasks), summary)
    report = Report(
        headline="",
        headlines=[item for task in tasks for item in _headlines(task)],
        answers=_answers(tasks, summary, overall),
        summary=summary,
        overall=overall,
        costs=[_cost(task, spec) for task, spec in ran],
        returns=[item for task, spec in ran for item in _returns(task, spec)],
        sizes=[item for task, spec in ran for item in _sizes(task, spec)],
        overlaps=[item for task, spec in ran for item in overlaps(task, spec)],
        categories=[row for task in tasks for row in _categories(task)],
        heatmaps=[item for task, spec in ran for item in _heatmap(task, spec)],
        likelihoods=[item for task, spec in ran for item in _likelihood(task, spec)],
        decompositions=decompositions(tasks, EPISODIC),
        gates=gates(tasks),
        published=known,
        warnings=warnings + [line for task in tasks for line in cautions.task_warnings(task, summary, known)],
        runs=runs,
        records=[_brief(task.run.task, record) for task in tasks for rows in task.records.values() for record in rows],
    )
    return report.model_copy(update={"headline": verdict.in_one_line(report)})


def _row(task: Task, spec: str) -> SummaryRow:
    records, reference = task.records[spec], task.run.baseline
    differences, clusters = task.differences(spec)
    compared = bool(differences) and reference is not None and spec != reference.spec
    return SummaryRow(
        task=task.run.task,
        policy=spec,
        score=statistics.mean(_scores(records)),
        diff_full=statistics.mean(differences) if compared else None,
        diff_ci=statistics.interval(differences, clusters) if compared else None,
        divergence=_mean_of(records, "divergence"),
        **_counts(records),
    )


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    """Compute the fields that `SummaryRow` and `Overall` share."""
    finished = [record for record in records if record.error is None]
    return {
        "n": len(records),
        "kept_share": _mean_of(finished, "kept_share"),
        "updates_mean": statistics.mean([record.updates for record in finished]) or 0.0,
        "acted_share": _acted(records),
        "failed": len(records) - len(finished),
        "unparsed": sum(record.unparsed for record in records),
    }


def _scores(records: Sequence[Record]) -> list[float]:
    return [record.score for record in records if record.score is not None]


def _acted(records: Sequence[Record]) -> float:
    """Compute the share of the samples that did not fail in which the policy acted at least once."""
    return statistics.mean([record.updates > 0 for record in records if record.error is None]) or 0.0


def _mean_of(records: Sequence[Record], name: str) -> float | None:
    return statistics.mean([value for record in records if (value := getattr(record, name)) is not None])


def _detail(records: Sequence[Record], name: str) -> list[float]:
    """List the numbers that the evaluator recorded in `details` under this name."""
    return [float(record.details[name]) for record in records if record.error is None and name in record.details]


def _members(tasks: Sequence[Task]) -> list[Task]:
    """List the tasks of the group `EPISODIC`: those whose names start with "rl/"."""
    return [task for task in tasks if task.run.task.startswith(f"{EPISODIC}/")]


def _overall(tasks: Sequence[Task]) -> list[Overall]:
    """Make one row for each policy that was run in every task of the group."""
    members = _members(tasks)
    specs = [spec for spec in (members[0].records if members else {}) if all(t.records.get(spec) for t in members)]
    return [_overall_row(members, spec) for spec in specs]


def _overall_row(tasks: list[Task], spec: str) -> Overall:
    scores = [_scores(task.records[spec]) for task in tasks]
    known = all(scores)
    is_reference = all(task.run.baseline is not None and task.run.baseline.spec == spec for task in tasks)
    pairs = [] if is_reference else [task.paired(spec) for task in tasks]
    mine = [[record.score or 0.0 for record, _ in task] for task in pairs]
    full = [[other.score or 0.0 for _, other in task] for task in pairs]
    compared = bool(pairs) and all(pairs)
    chance = statistics.improvement(mine, full) if compared else (None, None)
    middles = [statistics.interquartile_mean(side) for side in (mine, full)] if compared else []
    return Overall(
        task=EPISODIC,
        policy=spec,
        tasks=len(tasks),
        score=statistics.interquartile_mean(scores) if known else None,
        score_ci=statistics.interquartile_interval(scores) if known else None,
        diff_full=middles[0] - middles[1] if middles else None,
        diff_ci=statistics.interquartile_interval(mine, full) if middles else None,
        improvement=chance[0],
        improvement_ci=chance[1],
        **_counts([record for task in tasks for record in task.records[spec]]),
    )


def _headlines(task: Task) -> list[Headline]:
    """Compute the official score of each policy; empty if the run's description names no rule for it.

    Raises:
        NammTransferError: the run's description names an unknown rule.
    """
    asked = task.run.description.get("headline")
    if asked is None:
        return []
    if not isinstance(asked, dict) or asked.get("rule") not in HEADLINE_RULES:
        raise NammTransferError(
            f"{task.run.task}: headline {asked!r}: expected a name, categories and a rule, "
            f"{' or '.join(map(repr, HEADLINE_RULES))}"
        )
    return [_headline(task, spec, asked) for spec, records in task.records.items() if records]


def _headline(task: Task, spec: str, asked: dict[str, Any]) -> Headline:
    records = task.records[spec]
    expected = [str(name) for name in asked.get("categories") or sorted({record.category for record in records})]
    by_category = {name: [r for r in records if name == r.category or name in _groups(r)] for name in expected}
    values = {name: [record.score or 0.0 for record in found] for name, found in by_category.items() if found}
    parts = {name: float(np.mean(found)) for name, found in values.items()}
    counted = list(parts.values())
    if asked["rule"] == "mean over samples":
        inside = {record.index: record.score or 0.0 for found in by_category.values() for record in found}
        counted = list(inside.values())
    return Headline(
        task=task.run.task,
        policy=spec,
        name=str(asked.get("name", "official score")),
        value=statistics.mean(counted) if _scores(records) else None,
        unit=verdict.unit(task.run),
        parts=parts,
        missing=[name for name, found in by_category.items() if not found],
    )


def _cost(task: Task, spec: str) -> Cost:
    records = task.records[spec]
    measured = [record for record in records if record.kept]
    return Cost(
        task=task.run.task,
        policy=spec,
        tokens_seen=_mean_of(measured, "seen"),
        tokens_held=statistics.mean([float(np.mean(record.kept)) for record in measured]),
        bytes_held=statistics.mean(_detail(records, "bytes")),
        peak_share=_mean_of(records, "peak_share"),
        seconds=float(np.mean([record.seconds for record in records])),
        acted_share=_acted(records),
    )


def _returns(task: Task, spec: str) -> list[Returns]:
    """Describe the distribution of the undiscounted returns; empty for a task without returns."""
    values = _detail(task.records[spec], "return")
    if not values:
        return []
    return [
        Returns(
            task=task.run.task,
            policy=spec,
            n=len(values),
            mean=float(np.mean(values)),
            sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            min=min(values),
            max=max(values),
        )
    ]


def _likelihood(task: Task, spec: str) -> list[Likelihood]:
    value = statistics.mean(_detail(task.records[spec], "likelihood"))
    return [] if value is None else [Likelihood(task=task.run.task, policy=spec, value=value)]


def _sizes(task: Task, spec: str) -> list[Sizes]:
    """Compute the cache size after each update; empty for a policy that never acted."""
    histories = [record.history for record in task.records[spec] if record.history and record.history[0]]
    if not histories:
        return []
    held = np.mean(mean_history(task.records[spec]), axis=0)
    reached = [sum(len(history[0]) > update for history in histories) for update in range(len(held))]
    interval = task.run.policy(spec).update_interval
    return [Sizes(task=task.run.task, policy=spec, interval=interval, held=held.round(2).tolist(), samples=reached)]


def _categories(task: Task) -> list[Category]:
    """Make rows by category, then by the further groups in the samples' `details["groups"]`, in order of appearance."""
    every = [record for records in task.records.values() for record in records]
    names = dict.fromkeys(sorted({record.category for record in every}))
    names |= dict.fromkeys(name for record in every for name in _groups(record))
    returns = any("return" in record.details for record in every)
    rows = []
    for name in names if len(names) > 1 or returns else []:
        for spec, records in task.records.items():
            chosen = [record for record in records if name == record.category or name in _groups(record)]
            rows.append(
                Category(
                    task=task.run.task,
                    category=name,
                    policy=spec,
                    n=len(chosen),
                    score=statistics.mean(_scores(chosen)),
                    raw=statistics.mean(_detail(chosen, "return")),
                    kept_share=_mean_of(chosen, "kept_share"),
                    acted_share=_acted(chosen),
                )
            )
    return rows


def _groups(record: Record) -> list[str]:
    """Groups of a sample in addition to its category, such as "64 frames" or "duration group 600"."""
    return list(record.details.get("groups", []))


def _heatmap(task: Task, spec: str) -> list[HeatMap]:
    shares = [np.asarray(record.kept) / record.seen for record in task.records[spec] if record.kept and record.seen]
    if task.run.policy(spec).baseline or not shares:
        return []
    return [HeatMap(task=task.run.task, policy=spec, share=np.mean(shares, axis=0).round(3).tolist())]


def _answers(tasks: Sequence[Task], summary: Sequence[SummaryRow], overall: Sequence[Overall]) -> list[Answer]:
    """Judge the group, if it has several tasks, then on each task."""
    by_task = {task.run.task: task for task in tasks}
    rows: list[verdict.Row] = [*(row for row in overall if row.tasks > 1), *summary]
    answers = []
    for row in rows:
        members = _members(tasks) if isinstance(row, Overall) else [by_task[row.task]]
        run = members[0].run
        reference = next(
            (r for r in rows if r.task == row.task and run.baseline and r.policy == run.baseline.spec), None
        )
        clusters = [cluster for task in members for cluster in task.differences(row.policy)[1]]
        if isinstance(row, Overall):
            units = {verdict.unit(task.run) for task in members}
            scores = f"{min(units)}s" if units in ({"return"}, {"normalised return"}) else "scores"
            unit, draws = f"interquartile mean of the {scores} of {row.tasks} tasks", len(clusters)
        else:
            unit = verdict.unit(run) + ", mean over samples" * ("headline" in run.description)
            draws = len(set(clusters))
        answers.append(
            verdict.answer(
                row, run.policy(row.policy), reference=reference, pairs=len(clusters), draws=draws, unit=unit
            )
        )
    return answers


def published(task: str) -> list[Published]:
    """List the published scores for a task, by its name; only those of its data set if the name includes one."""
    parts = task.replace("-v5", "").split("/")
    name = next((env for env in DECISION_TRANSFORMER if env in "/".join(parts)), None)
    if parts[0] != EPISODIC or name is None:
        return []
    known = DECISION_TRANSFORMER[name]
    tier = next((data for data in sorted(known, key=len, reverse=True) if task.endswith(data)), None)
    return [
        Published(task=task, name=f"{name} {data}, full context of 20 steps", value=value, world=D4RL, source=CORL)
        for data, value in known.items()
        if tier in (None, data)
    ]


def _brief(task: str, record: Record) -> Brief:
    shown = {name: getattr(record, name) for name in Brief.model_fields if name != "task"}
    return Brief(task=task, **shown)
