"""One row a policy over all tasks of a group: reinforcement learning's environments and data tiers.

Episodes are far from normal and tasks few, so the middle is the interquartile mean, its interval comes from a
stratified bootstrap, and beside it stands the probability of improvement (Agarwal et al., 2021; see `statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence

from namm_transfer.evals.report import statistics
from namm_transfer.evals.report.records import Task
from namm_transfer.evals.report.schema import Overall

EPISODIC = "rl"
"""The group whose tasks are taken together. Other scores (right or wrong) have no middle half."""


def members(tasks: Sequence[Task], group: str = EPISODIC) -> list[Task]:
    """The tasks of a group: those whose names begin with it and a slash."""
    return [task for task in tasks if task.run.task.partition("/")[0] == group and "/" in task.run.task]


def rows(tasks: Sequence[Task], group: str = EPISODIC) -> list[Overall]:
    """A row for each policy that was run in every task of the group."""
    chosen = members(tasks, group)
    specs = [spec for spec in (chosen[0].records if chosen else {}) if all(task.records.get(spec) for task in chosen)]
    return [_row(chosen, group, spec) for spec in specs]


def _row(tasks: list[Task], group: str, spec: str) -> Overall:
    records = [record for task in tasks for record in task.records[spec]]
    finished = [record for record in records if record.error is None]
    scores = [[r.score for r in task.records[spec] if r.score is not None] for task in tasks]
    known = all(scores)
    pairs = [] if spec == "full" else [task.paired(spec) for task in tasks if task.records.get("full")]
    mine = [[record.score or 0.0 for record, _ in task] for task in pairs]
    full = [[other.score or 0.0 for _, other in task] for task in pairs]
    compared = len(pairs) == len(tasks) and all(pairs)
    chance = statistics.improvement(mine, full) if compared else None
    middles = [statistics.interquartile_mean(side) for side in (mine, full)] if compared else []
    return Overall(
        task=group,
        policy=spec,
        tasks=len(tasks),
        n=len(records),
        score=statistics.interquartile_mean(scores) if known else None,
        score_ci=statistics.interquartile_interval(scores) if known else None,
        diff_full=middles[0] - middles[1] if middles else None,
        diff_ci=statistics.interquartile_interval(mine, full) if middles else None,
        improvement=chance[0] if chance else None,
        improvement_ci=chance[1] if chance else None,
        kept_share=statistics.mean([r.kept_share for r in finished if r.kept_share is not None]),
        updates_mean=statistics.mean([record.updates for record in finished]) or 0.0,
        acted_share=statistics.mean([record.updates > 0 for record in finished]) or 0.0,
        failed=len(records) - len(finished),
        unparsed=sum(record.unparsed for record in records),
    )
