"""Compare two reports: configuration, versions, and scores with the significance of their differences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger, statistics
from namm_transfer.evals.report.records import ArrayStore, Task, load
from namm_transfer.evals.report.schema import Record
from namm_transfer.evals.report.verdict import MIN_DRAWS, number, percent, signed

_SHUFFLES = 20  # random orders of a sample's tokens, over which the overlap by chance is averaged


@dataclasses.dataclass
class Change:
    """The scores of one policy on one task in two reports."""

    task: str
    policy: str
    before: float | None
    """Mean score in the first report, in the task's unit."""
    after: float | None
    difference: float | None
    """After minus before, over the samples that both reports have, or of the two means if they share none."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the difference."""
    paired: int
    """Number of samples in both reports; if 0, the difference is unpaired."""
    draws: int
    """Number of independent draws behind the interval."""
    kept: tuple[float | None, float | None]
    """Mean share of the cache kept in each report."""
    overlap: float | None
    """Agreement on which tokens or frames to keep, as two models may have: what both keep over what either keeps, where
    a token counts with the share of the heads that keep it. None if no recorded sample has as many tokens in both."""
    by_chance: float | None
    """The overlap that chance alone would give: that with the second report's tokens in random order."""

    @property
    def significant(self) -> bool:
        """True if the interval excludes zero and rests on at least `MIN_DRAWS` independent draws."""
        return self.interval is not None and self.draws >= MIN_DRAWS and not self.interval[0] <= 0 <= self.interval[1]


@dataclasses.dataclass
class Difference:
    """The comparison of two reports."""

    configuration: list[str]
    """Differences of options, description and weights, one line each."""
    circumstances: list[str]
    """Differences of versions, machine and code, which are not meant to influence results."""
    missing: list[str]
    """Tasks and policies that only one report has."""
    changes: list[Change]
    """One change for each policy of each task that both reports have."""


def diff(first: Path, second: Path) -> Difference:
    """Compare the records of two report folders. Raises what `records.load` raises."""
    a, b = ({task.run.task: task for task in load(folder)} for folder in (first, second))
    result = Difference([], [], [], [])
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            result.missing.append(f"{name}: only in {first if name in a else second}")
            continue
        old, new = a[name], b[name]
        result.configuration += [f"{name}: {line}" for line in _configuration(old, new)]
        before, after = (task.run.provenance.model_dump(exclude={"command", "started"}) for task in (old, new))
        result.circumstances += [f"{name}: {line}" for line in ledger.differences(before, after)]
        for policy in dict.fromkeys([*old.records, *new.records]):
            if old.records.get(policy) and new.records.get(policy):
                change = _change(name, policy, old.records[policy], new.records[policy])
                shared = _overlaps(old.records[policy], new.records[policy], ArrayStore(first), ArrayStore(second))
                change.overlap, change.by_chance = statistics.mean(shared[0]), statistics.mean(shared[1])
                result.changes.append(change)
            else:
                result.missing.append(f"{name}: {policy} only in {first if old.records.get(policy) else second}")
    return result


def _configuration(old: Task, new: Task) -> list[str]:
    """List the differences of options, description and the weights of policies that both have."""
    sides = []
    for task in (old, new):
        found = task.run.configuration()
        found["weights"] = {item["spec"]: item["sha256"] for item in found.pop("policies")}
        sides.append(found)
    shared = sides[0]["weights"].keys() & sides[1]["weights"].keys()
    for side in sides:
        side["weights"] = {spec: digest for spec, digest in side["weights"].items() if spec in shared}
    return ledger.differences(sides[0], sides[1])


def _change(task: str, policy: str, old: list[Record], new: list[Record]) -> Change:
    before, after = ({r.id: r for r in records if r.score is not None} for records in (old, new))
    both = [(before[name], after[name]) for name in before if name in after]
    values = [[record.score or 0.0 for record in side.values()] for side in (before, after)]
    if both:
        differences = [(late.score or 0.0) - (early.score or 0.0) for early, late in both]
        clusters = [early.cluster or early.id for early, _ in both]
        difference, draws = statistics.mean(differences), len(set(clusters))
        interval = statistics.interval(differences, clusters)
    else:
        known = all(values)
        difference = (statistics.mean(values[1]) or 0.0) - (statistics.mean(values[0]) or 0.0) if known else None
        draws, interval = min(map(len, values)), statistics.unpaired_interval(values[0], values[1])
    shares = [[r.kept_share for r in records if r.kept_share is not None] for records in (old, new)]
    return Change(
        task=task,
        policy=policy,
        before=statistics.mean(values[0]),
        after=statistics.mean(values[1]),
        difference=difference,
        interval=interval,
        paired=len(both),
        draws=draws,
        kept=(statistics.mean(shares[0]), statistics.mean(shares[1])),
        overlap=None,
        by_chance=None,
    )


def _overlaps(
    old: list[Record], new: list[Record], before: ArrayStore, after: ArrayStore
) -> tuple[list[float], list[float]]:
    """Compute how far both reports agree on each sample whose kept tokens they recorded, and how far they would by
    chance."""
    agreed, by_chance = list[float](), list[float]()
    later = {record.id: record for record in new}
    for record in old:
        for name in record.arrays.keys() & {"tokens", "frames"}:
            try:
                p = _by_token(before.get(record.arrays[name]))
                q = _by_token(after.get(later[record.id].arrays[name]))
            except (KeyError, NammTransferError):  # not recorded, or not shipped with the report
                continue
            if p.shape == q.shape:
                generator = np.random.default_rng(0)
                agreed.append(_overlap(p, q))
                by_chance += [_overlap(p, generator.permutation(q)) for _ in range(_SHUFFLES)]
    return agreed, by_chance


def _by_token(shares: np.ndarray) -> np.ndarray:
    """Average kept shares over everything but tokens or frames, the last axis."""
    return shares.reshape(-1, shares.shape[-1]).mean(0, dtype=np.float64)


def _overlap(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.minimum(p, q).sum() / max(np.maximum(p, q).sum(), 1e-12))


def in_words(result: Difference) -> str:
    """Format the comparison as text for the terminal."""
    lines = []
    for title, found in (
        ("configuration", result.configuration),
        ("circumstances", result.circumstances),
        ("only in one", result.missing),
    ):
        lines += [f"{title}:", *(f"  {line}" for line in found or ["the same"])]
    lines.append("scores:")
    lines += [f"  {_sentence(change)}" for change in result.changes] or ["  nothing in common"]
    expected = 0.05 * len(result.changes)
    if len(result.changes) > 1:
        many = sum(change.significant for change in result.changes)
        lines.append(
            f"of {len(result.changes)} comparisons {many} are significant at 5 %; "
            f"about {expected:.1f} would be by chance alone"
        )
    return "\n".join(lines)


def _sentence(change: Change) -> str:
    low, high = change.interval or (None, None)
    same = change.before == change.after and change.interval in (None, (0.0, 0.0))
    how = f"{change.paired} paired samples" if change.paired else "no sample in common, all against all"
    if change.paired and change.draws != change.paired:
        how += f" in {change.draws} clusters"
    few = "" if change.draws >= MIN_DRAWS else f", fewer than {MIN_DRAWS} independent draws"
    word = "the same" if same else "significant" if change.significant else f"not significant{few}"
    bounds = "no interval" if low is None else f"95 % interval {signed(low)} to {signed(high)}"
    return (
        f"{change.task}, {change.policy}: {number(change.before)} -> {number(change.after)}, "
        f"{signed(change.difference)} ({bounds}, {how}): {word}; "
        f"cache held {percent(change.kept[0])} -> {percent(change.kept[1])}"
        + ("" if change.overlap is None else f"; overlap of what is kept {percent(change.overlap)}")
        + ("" if change.by_chance is None else f", by chance {percent(change.by_chance)}")
    )
