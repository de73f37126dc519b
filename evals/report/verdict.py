"""A verdict for each policy, the sentences that state it, and the formatting of numbers.

`better` and `worse` need a 95 % interval of the difference to the full cache that excludes zero. `non-inferior` needs
one that includes zero and excludes a loss of more than `MARGIN` of the full cache's score; a wider one is
`inconclusive`. If no score differs at all, a bootstrap interval has no width however few the samples are, and the rule
of three takes its place. A policy that acted fewer than `MIN_UPDATES` times per sample is not judged, since its score
is that of an almost full cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from namm_transfer.evals.report.schema import (
    Answer,
    Headline,
    Overall,
    Policy,
    Report,
    Run,
    SummaryRow,
    Verdict,
)

Row = SummaryRow | Overall

MIN_UPDATES = 3
"""Mean number of updates per sample below which a policy is not judged."""

MARGIN = 0.1
"""Margin of non-inferiority: the loss, as a share of the full cache's score, that the interval must exclude."""

MIN_DRAWS = 5
"""Fewest independent draws for a verdict: four differences have the same sign by chance in one case of eight."""

FEW_DRAWS = 10
"""Number of independent draws below which the answer warns that a bootstrap interval is too narrow."""

WORDS: dict[Verdict, str] = {
    "baseline": "baseline",
    "helps": "better",
    "holds": "non-inferior",
    "hurts": "worse",
    "unsettled": "inconclusive",
    "hardly acted": "hardly acted",
    "cannot tell": "not judged",
}
"""Verdict in report.json -> word shown to readers."""

DEFINITION = (
    "Verdicts: better or worse, the 95 % interval of the difference to the full cache excludes zero; non-inferior "
    f"(loses at most {100 * MARGIN:.0f} %), it includes zero and excludes a loss of more than {100 * MARGIN:.0f} % of "
    f"the full cache's score; inconclusive, it is wider than that. Not judged: fewer than {MIN_DRAWS} independent "
    f"pairs of samples. Hardly acted: fewer than {MIN_UPDATES} updates (decisions what to keep) a sample."
)
"""Definition of the verdicts, shown at the top of every page."""


def judge(row: Row, policy: Policy, reference: Row | None, draws: int) -> Verdict:
    """Judge a row, given the baseline's row of the same task and the number of independent draws."""
    if policy.baseline:
        return "baseline"
    if row.score is not None and row.updates_mean < MIN_UPDATES:
        return "hardly acted"
    if row.diff_ci is None or reference is None or reference.score is None or draws < MIN_DRAWS:
        return "cannot tell"
    low, high = row.diff_ci
    if low > 0 or high < 0:
        return "helps" if low > 0 else "hurts"
    if reference.score == 0:
        return "cannot tell"  # where the full cache gets nothing right there is nothing to lose
    worst = min(low, -_unseen(row, reference, draws))
    return "holds" if worst >= -MARGIN * abs(reference.score) else "unsettled"


def _unseen(row: Row, reference: Row, draws: int) -> float:
    """Compute the largest loss that fits no observed difference by the rule of three: at 95 %, 3 draws may lose all."""
    return 3 / draws * abs(reference.score or 0.0) if row.diff_ci == (0, 0) else 0.0


def answer(row: Row, policy: Policy, *, reference: Row | None, pairs: int, draws: int, unit: str) -> Answer:
    """State the verdict on a row in a sentence with its numbers.

    Args:
        row: row of the summary, or of a group of tasks.
        policy: the policy of the row.
        reference: the baseline's row of the same task or group.
        pairs: number of samples behind the difference.
        draws: number of independent draws among them: clusters if samples share a video, otherwise the pairs.
        unit: meaning and unit of the score.
    """
    word = judge(row, policy, reference, draws)
    counted = f"{pairs} pairs" if draws == pairs else f"{pairs} pairs in {draws} clusters"
    text = _sentence(row, word, reference, counted, unit, draws)
    if word in ("helps", "holds", "hurts", "unsettled"):
        if draws < FEW_DRAWS:
            text += f" Fewer than {FEW_DRAWS} independent draws: the interval is too narrow."
        text += _improvement(row)
    return Answer(task=row.task, policy=row.policy, verdict=word, text=text)


def _sentence(row: Row, word: Verdict, reference: Row | None, counted: str, unit: str, draws: int) -> str:
    score = f"{number(row.score)} ({unit})"
    if row.score is None:
        return f"Nothing was scored: {row.failed} of {row.n} samples failed."
    if word == "baseline":
        return f"The full cache, with which the others are compared: {score}."
    if word == "hardly acted":
        return (
            f"It hardly acted: {row.updates_mean:.1f} updates a sample on average, fewer than {MIN_UPDATES}. Its "
            f"score, {score}, says nothing about this policy; longer samples or a smaller --update-interval would."
        )
    held = f"keeping {percent(row.kept_share)} of the cache"
    if word == "cannot tell" or row.diff_ci is None or reference is None:
        nothing_right = reference is not None and reference.score == 0
        reason = "which scores 0 itself" if nothing_right else f"fewer than {MIN_DRAWS} to go by"
        return f"Nothing to conclude from {counted} with the full cache, {reason}: {score}, {held}."
    low, high = row.diff_ci
    facts = (
        f"{number(row.score)} against {number(reference.score)} with the full cache ({unit}), {signed(row.diff_full)} "
        f"(95 % interval {signed(low)} to {signed(high)}, {counted}), {held}."
    )
    facts = f"{WORDS[word].capitalize()}: {facts}"
    if word == "unsettled" and (loss := _unseen(row, reference, draws)):
        return f"{facts} Nothing changed, but so few draws may hide a loss of up to {number(loss)}."
    if word == "unsettled":
        gain = f" to a gain of {number(high)}" if high > 0 else " to none"
        return f"{facts} Anything from a loss of {number(-low)}{gain} fits these samples."
    excluded = low >= -MARGIN * abs(reference.score or 0.0) and word in ("holds", "hurts")
    return f"{facts} A loss of more than {100 * MARGIN:.0f} % of the score is excluded." if excluded else facts


def _improvement(row: Row) -> str:
    if not isinstance(row, Overall) or row.improvement is None or row.improvement_ci is None:
        return ""
    low, high = row.improvement_ci
    return (
        f" An episode scores more than one under the full cache with probability {row.improvement:.2f} "
        f"({low:.2f} to {high:.2f})."
    )


def policy_of(runs: Sequence[Run], task: str, spec: str) -> Policy:
    """Find the policy written as `spec` in a task, or in the first task of a group."""
    members = [run for run in runs if run.task == task] or [run for run in runs if run.task.startswith(f"{task}/")]
    return members[0].policy(spec)


def top(report: Report) -> list[Answer]:
    """List the answers about a NAMM for each task, or all if there is none; a group replaces its member tasks."""
    groups = tuple(f"{row.task}/" for row in report.overall if row.tasks > 1)
    judged = [item for item in report.answers if item.verdict != "baseline" and not item.task.startswith(groups)]
    namms = [item for item in judged if policy_of(report.runs, item.task, item.policy).name == "namm"]
    tasks = {item.task for item in namms}
    return [item for item in judged if item in namms or item.task not in tasks]


def in_one_line(report: Report) -> str:
    """Write the headline: official scores, then a clause a task, `Against the full cache. video: namm is ...`."""
    every: list[Row] = [*report.summary, *report.overall]
    rows = {(row.task, row.policy): row for row in every}
    first: dict[str, Answer] = {}
    for item in top(report):
        first.setdefault(item.task, item)
    parts = [_clause(item, rows[task, item.policy]) for task, item in first.items()]
    scored = {row.task for row in report.summary if row.score is not None}
    empty = [run.task for run in report.runs if run.task not in scored]
    lines = [f"Nothing was scored in {', '.join(empty)}."] if empty else []
    for run in report.runs:
        lines += _official([item for item in report.headlines if item.task == run.task], run, first.get(run.task))
    lines += [f"Against the full cache. {'; '.join(parts)}."] if parts else []
    return " ".join(lines) or "Nothing was compared with the full cache."


def _official(headlines: Sequence[Headline], run: Run, item: Answer | None) -> list[str]:
    """State a benchmark's official score under the baseline and under the policy of the answer."""
    wanted = {run.baseline.spec if run.baseline else None, item.policy if item else None}
    shown = [headline for headline in headlines if headline.policy in wanted] or list(headlines[:1])
    if not shown:
        return []
    values = ", ".join(f"{number(headline.value)} for {headline.policy}" for headline in shown)
    absent = f" without {', '.join(shown[0].missing)}, of which there is no sample" if shown[0].missing else ""
    return [f"{run.task}: {shown[0].name} {values} ({shown[0].unit}){absent}."]


def _clause(item: Answer, row: Row) -> str:
    name = f"{item.task} ({row.tasks} tasks)" if isinstance(row, Overall) else item.task
    word = WORDS[item.verdict] + f" (loses at most {100 * MARGIN:.0f} %)" * (item.verdict == "holds")
    facts = [f"{row.updates_mean:.1f} updates a sample"]
    if item.verdict in ("helps", "holds", "hurts", "unsettled") and row.diff_ci is not None:
        facts = [signed(row.diff_full), f"95 % interval {signed(row.diff_ci[0])} to {signed(row.diff_ci[1])}"]
    facts += [] if row.kept_share is None else [f"{percent(row.kept_share)} of the cache kept"]
    return f"{name}: {item.policy} {'' if word == 'hardly acted' else 'is '}{word} ({', '.join(facts)})"


def unit(run: Run) -> str:
    """Meaning and unit of a run's score, without the explanation in brackets that may follow."""
    return str(run.description.get("score", "score")).partition(" (")[0]


def number(value: float | None) -> str:
    """Format with three significant digits, without scientific notation for usual scores; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.5f}"


def signed(value: float | None) -> str:
    """Format like `number`, with a plus sign for positive values."""
    return number(value) if value is None or value <= 0 else f"+{number(value)}"


def percent(share: float | None) -> str:
    """Format a share as a percentage with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"
