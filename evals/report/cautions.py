"""The warnings of a report: missing records, failures, weak baselines, unequal cache sizes, unlike settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from namm_transfer.evals.report import statistics
from namm_transfer.evals.report.ledger import differences
from namm_transfer.evals.report.records import Task
from namm_transfer.evals.report.schema import Overall, Published, Run, SummaryRow
from namm_transfer.evals.report.verdict import MIN_UPDATES, number, percent

MATCH_TOLERANCE = 0.02
"""Largest relative difference of cache sizes at which match=NAME counts as met."""

TASKS_OWN = ("env", "dataset", "model", "target_return")
"""Options that may differ between the tasks of a group."""


def task_warnings(task: Task, summary: Sequence[SummaryRow], published: Sequence[Published]) -> list[str]:
    """Write the warnings about the tables of one task."""
    rows = {row.policy: row for row in summary if row.task == task.run.task}
    found = [*task.damage, *_missing(task, rows), *_losses(task, rows), *_chance(task), *_unmatched(task, rows)]
    both = [row.policy for row in rows.values() if row.diff_ci and row.diff_ci[0] < 0 < row.diff_ci[1]]
    if both:
        found.append(f"the interval contains zero, so neither a gain nor a loss is shown: {', '.join(both)}")
    own = str(task.run.description.get("world") or "a world that was not recorded")
    others = dict.fromkeys(item.world for item in published if item.task == task.run.task and item.world != own)
    found += [
        f"the published numbers are from another world ({other}) than these scores ({own}): read them side by side "
        "with care, their difference is no effect of a policy"
        for other in others
    ]
    return [f"{task.run.task}: {warning}" for warning in found]


def _missing(task: Task, rows: dict[str, SummaryRow]) -> list[str]:
    every = task.run.samples * len(task.records)
    missing = every - sum(map(len, task.records.values()))
    found = [f"the run is not finished: {missing} of {every} records are missing"] if missing else []
    if not any(row.score is not None for row in rows.values()):
        found.append("nothing was scored: every sample failed")
    reference = task.run.baseline
    if reference is None or reference.spec not in rows:
        found.append("no full cache was run, so there is nothing to compare with")
    return found


def _losses(task: Task, rows: dict[str, SummaryRow]) -> list[str]:
    """Report failed samples and unparsed answers; policies with the same message share one line."""
    texts: dict[str, list[str]] = {}
    for spec, row in rows.items():
        failed = [record for record in task.records[spec] if record.error is not None]
        if failed:
            text = (
                f"{row.failed} of {row.n} samples failed and are left out of the score "
                f"({_names([record.id for record in failed])}); the first: {failed[0].error}"
            )
            texts.setdefault(text, []).append(spec)
        if row.unparsed:
            text = f"{row.unparsed} of {row.n} answers could not be parsed and count as wrong"
            texts.setdefault(text, []).append(spec)
    everywhere = "every policy" if len(rows) > 1 else next(iter(rows), "")
    return [f"{everywhere if len(specs) == len(rows) else ', '.join(specs)}: {text}" for text, specs in texts.items()]


def _names(names: Sequence[str]) -> str:
    """List the first five names and say how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _chance(task: Task) -> list[str]:
    chance, reference = task.run.description.get("chance"), task.run.baseline
    full = [r for r in task.records.get(reference.spec if reference else "", []) if r.score is not None]
    if chance is None or not full:
        return []
    scores = [record.score or 0.0 for record in full]
    bounds = statistics.interval(scores, [record.cluster or f"sample {record.index}" for record in full])
    if (bounds[0] if bounds else float(np.mean(scores))) > float(chance):
        return []
    return [
        f"the full cache scores {number(float(np.mean(scores)))}, not clearly above guessing "
        f"({number(float(chance))}): differences between policies mean little for a model this weak"
    ]


def _unmatched(task: Task, rows: dict[str, SummaryRow]) -> list[str]:
    """Report policies whose cache size differs from that of the policy they match."""
    found = []
    for policy in task.run.policies:
        row, other = rows.get(policy.spec), rows.get(policy.match or "")
        if row is None or other is None or row.kept_share is None or not other.kept_share:
            continue
        if abs(row.kept_share / other.kept_share - 1) > MATCH_TOLERANCE:
            found.append(
                f"{policy.spec} kept {percent(row.kept_share)} of the cache, {policy.match} "
                f"{percent(other.kept_share)}: more than {100 * MATCH_TOLERANCE:.0f} % apart"
            )
    return found


def group_warnings(overall: Sequence[Overall], tasks: Sequence[Task], summary: Sequence[SummaryRow]) -> list[str]:
    """Write the warnings about the rows over a group of tasks."""
    if not overall or overall[0].tasks < 2:
        return []
    names, found = {task.run.task for task in tasks}, []
    for row in overall:
        idle = [
            part.task
            for part in summary
            if part.policy == row.policy and part.task in names and part.updates_mean < MIN_UPDATES
        ]
        if idle and row.updates_mean >= MIN_UPDATES:
            found.append(f"{row.policy} hardly acted in {', '.join(idle)}, and counts there too")
    partial = {spec for task in tasks for spec in task.records if task.records[spec]} - {row.policy for row in overall}
    if partial:
        found.append(f"not run in every task and so not in the overall table: {', '.join(sorted(partial))}")
    return [f"{overall[0].task}: {warning}" for warning in [*found, *_unlike(tasks)]]


def _unlike(tasks: Sequence[Task]) -> list[str]:
    """Report tasks of a group whose runs differ in options other than `TASKS_OWN`, or in weights."""
    first, found = tasks[0].run, []
    for other in (task.run for task in tasks[1:]):
        both = {policy.spec for policy in first.policies} & {policy.spec for policy in other.policies}
        sides = (f"in {first.task}", f"in {other.task}")
        if different := differences(_settings(first, both), _settings(other, both), sides=sides):
            found.append(f"tasks of different settings are taken together: {'; '.join(different)}")
    return found


def _settings(run: Run, specs: set[str]) -> dict[str, Any]:
    """Return the options that the tasks of a group should share, and the weights of the given policies."""
    options = {name: value for name, value in run.options.items() if name not in TASKS_OWN}
    return {"options": options, "weights": {p.spec: p.sha256 for p in run.policies if p.spec in specs}}
