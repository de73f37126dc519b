"""Parts of a policy's gain over random eviction at the same total size: where it keeps tokens, and which.

With `match=NAME,allocation=...` a rule keeps as many tokens as another policy, here a NAMM, under three allocations:
the same number in every head (`uniform`), the NAMM's number in each layer (`layer`), its number in each head (`head`).
Random eviction under these three and the NAMM itself form a chain whose steps add up to the gain:

    random, uniform -> random by layer -> random by layer and head -> NAMM
                    where: layers      where: heads                what

All differences are paired by sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from namm_transfer.evals.report import statistics
from namm_transfer.evals.report.records import Task
from namm_transfer.evals.report.schema import Allocated, Decomposition, Part, Policy
from namm_transfer.evals.report.verdict import number, percent, signed, unit

RANDOM = "random"
"""Name of the rule that keeps tokens by chance, so that only the allocation tells it from another one."""

LAYERS, HEADS, WHERE, WHAT, GAIN = "where: layers", "where: heads", "where", "what", "gain"


def decompositions(tasks: Sequence[Task], group: str) -> list[Decomposition]:
    """Decompose the gain of each policy whose sizes others took over, first over a group of tasks, then in each task.

    Args:
        tasks: all tasks of the report.
        group: tasks whose names start with this and a slash are also taken together, as the mean over their samples.
    """
    members = [task for task in tasks if task.run.task.startswith(f"{group}/")]
    together = [(group, members)] if len(members) > 1 else []
    alone = [(task.run.task, [task]) for task in tasks]
    found = [_decompose(name, some, lender) for name, some in [*together, *alone] for lender in _lenders(some)]
    return [item for item in found if item.parts]


def _lenders(tasks: Sequence[Task]) -> list[str]:
    """List the policies whose sizes others took over in every one of these tasks."""
    return [
        spec
        for spec in dict.fromkeys(policy.match for policy in tasks[0].run.policies if policy.match)
        if all(task.records.get(spec) for task in tasks)
    ]


def _decompose(name: str, tasks: Sequence[Task], lender: str) -> Decomposition:
    rules = [p for p in tasks[0].run.policies if p.match == lender and all(task.records.get(p.spec) for task in tasks)]
    chance = {_allocation(policy): policy.spec for policy in rules if policy.name == RANDOM}
    uniform, layer, head = (chance.get(allocation) for allocation in ("uniform", "layer", "head"))
    steps = [(LAYERS, uniform, layer), (HEADS, layer, head), (WHERE, uniform, head), (WHAT, head, lender)]
    steps.append((GAIN, uniform, lender))
    parts = [_part(step, tasks, before, after) for step, before, after in steps if before and after]
    return Decomposition(
        task=name,
        policy=lender,
        kept_share=_mean_share(tasks, lender),
        rules=[_allocated(tasks, lender, policy) for policy in rules],
        parts=[part for part in parts if part is not None],
        text=_sentence({part.name: part for part in parts if part is not None}, lender, unit(tasks[0].run)),
    )


def _allocation(policy: Policy) -> str:
    """Allocation of a policy that matches another one; by default it is that policy's by layer."""
    return policy.allocation or "layer"


def _part(name: str, tasks: Sequence[Task], before: str, after: str) -> Part | None:
    """Compute the mean difference between two policies; None if they share no sample."""
    found = [task.differences(after, before) for task in tasks]
    values = [value for differences, _ in found for value in differences]
    clusters = [(place, label) for place, (_, labels) in enumerate(found) for label in labels]
    if not values:
        return None
    mean = statistics.mean(values)
    assert mean is not None
    return Part(
        name=name, before=before, after=after, value=mean, ci=statistics.interval(values, clusters), n=len(values)
    )


def _allocated(tasks: Sequence[Task], lender: str, policy: Policy) -> Allocated:
    scores = [r.score for task in tasks for r in task.records[policy.spec] if r.score is not None]
    ahead = _part("", tasks, policy.spec, lender)
    return Allocated(
        rule=policy.name,
        allocation=_allocation(policy),
        policy=policy.spec,
        score=statistics.mean(scores),
        kept_share=_mean_share(tasks, policy.spec),
        lender_ahead=ahead.value if ahead else None,
        lender_ahead_ci=ahead.ci if ahead else None,
    )


def _mean_share(tasks: Sequence[Task], spec: str) -> float | None:
    records = [record for task in tasks for record in task.records[spec]]
    return statistics.mean([record.kept_share for record in records if record.kept_share is not None])


def _sentence(parts: dict[str, Part], lender: str, what: str) -> str:
    """Put the decomposition in words, for a reader who knows none of its terms; empty if there is no part."""
    texts = []
    if GAIN in parts:
        gain = parts[GAIN]
        texts.append(
            f"Against random eviction with the same total number of tokens, equal in all heads, {lender} gains "
            f"{_with_interval(gain)} ({what})."
        )
    if WHERE in parts:
        where = parts[WHERE]
        steps = [f"{signed(parts[s].value)} by {s.partition(': ')[2]}" for s in (LAYERS, HEADS) if s in parts]
        texts.append(
            f"Where it keeps tokens accounts for {_with_interval(where)}"
            + (f" ({', '.join(steps)})" if len(steps) == 2 else "")
            + ": that is what random eviction gains under its numbers by layer and head."
        )
    if WHAT in parts:
        texts.append(f"Which tokens it keeps accounts for {_with_interval(parts[WHAT])}, {_reading(parts[WHAT])}.")
    interval = parts[GAIN].ci if {GAIN, WHERE, WHAT} <= parts.keys() else None
    if interval is not None and interval[0] > 0:
        share = parts[WHERE].value / parts[GAIN].value
        split = f"{percent(share)} of the gain is where and {percent(1 - share)} is what"
        texts.append(f"So {split if 0 <= share <= 1 else 'all of the gain is ' + ('where' if share > 1 else 'what')}.")
    return " ".join(texts)


def _with_interval(part: Part) -> str:
    bounds = "no interval" if part.ci is None else f"95 % interval {signed(part.ci[0])} to {signed(part.ci[1])}"
    return f"{signed(part.value)} ({bounds})"


def _reading(part: Part) -> str:
    """Say in words what the interval of the choice shows."""
    if part.ci is None or part.ci[0] <= 0 <= part.ci[1]:
        return f"which is not told from chance by {number(part.n)} samples"
    return "better than a random choice" if part.value > 0 else "worse than a random choice"
