"""The gate: whether a task needs a memory, by what random eviction loses and what can be answered without the text.

A task whose score survives the random loss of half of the cache cannot show what a memory is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from namm_transfer.evals.report import statistics
from namm_transfer.evals.report.records import Task
from namm_transfer.evals.report.schema import Gate
from namm_transfer.evals.report.verdict import number, percent
from namm_transfer.policies import parse

LOSSES = {0.5: 0.15, 0.25: 0.30}
"""Share that random eviction keeps -> share of the full cache's score that it must lose at least."""


def gates(tasks: Sequence[Task]) -> list[Gate]:
    """Compute the gate of each task in which random eviction with `keep=0.5` or `keep=0.25` and a full cache ran."""
    return [gate for task in tasks if (gate := _gate(task)) is not None]


def _gate(task: Task) -> Gate | None:
    baseline = task.run.baseline
    full = statistics.mean(task.scores(baseline.spec)) if baseline else None
    specs = _random(task)
    if baseline is None or not full or not specs:
        return None
    # Over the samples that both finished.
    lost = {keep: -(statistics.mean(task.differences(spec)[0]) or 0.0) / full for keep, spec in specs.items()}
    details = [r.details["blind"] for r in task.records[baseline.spec] if r.details.get("blind") is not None]
    blind = statistics.mean([float(value) for value in details])
    met = [lost[keep] >= least for keep, least in LOSSES.items() if keep in lost]
    parts = [f"a random {_NAMES[keep]} of the cache loses {percent(lost[keep])} of the score" for keep in lost]
    if blind is not None:
        parts.append(f"the question without its text scores {number(blind)}")
    wanted = ", ".join(f"{_NAMES[keep]} {100 * least:.0f} %" for keep, least in LOSSES.items())
    verdict = "needs a memory" if all(met) else "does not need a memory"
    return Gate(
        task=task.run.task,
        full=full,
        blind=blind,
        lost={f"{keep:g}": loss for keep, loss in lost.items()},
        passed=all(met),
        text=f"The task {verdict}: {', and '.join(parts)} (full cache {number(full)}; expected losses: {wanted}).",
    )


_NAMES = {0.5: "half", 0.25: "quarter"}


def _random(task: Task) -> dict[float, str]:
    """Find the spec of random eviction for each share of `LOSSES` that was run."""
    found = {}
    for policy in task.run.policies:
        if policy.name == "random" and task.records.get(policy.spec):
            options = parse(policy.spec).options
            if options.get("keep") in LOSSES and set(options) <= {"keep", "update_interval"}:
                found[options["keep"]] = policy.spec
    return found
