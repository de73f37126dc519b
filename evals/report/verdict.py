"""The answer in words: does a policy help, hold or hurt, by how much, how sure, at which cache size.

Help and hurt need an interval that does not contain zero. Hold needs one that contains zero and excludes a loss of more
than `HOLD_MARGIN` of the full cache's score; a wider one is unsettled, whatever its middle. Where no sample came out
differently, a bootstrap sees no spread however few they are, and the rule of three takes its place. A policy that acted
fewer than `MIN_UPDATES` times a sample gets none of these words: its score is that of a cache it hardly touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from namm_transfer.evals.report.schema import Answer, Overall, SummaryRow, Verdict

Row = SummaryRow | Overall

MIN_UPDATES = 3
"""Updates a sample, on average, below which a configuration is not judged."""

HOLD_MARGIN = 0.1
"""Loss, as a share of the full cache's score, that the interval of a policy said to hold must exclude."""

MIN_DRAWS = 5
"""Independent draws below which no word is given: four differences have one sign by chance in one case of eight."""

FEW_DRAWS = 10
"""Independent draws below which a bootstrap interval is somewhat too narrow; the answer says so."""


PHRASES: dict[Verdict, str] = {
    "baseline": "is the baseline",
    "helps": "helps",
    "holds": "holds",
    "hurts": "hurts",
    "unsettled": "is unsettled",
    "hardly acted": "hardly acted",
    "cannot tell": "cannot be judged",
}
"""The words in a sentence."""


def judge(row: Row, full: Row | None, draws: int) -> Verdict:
    """The word for a row of the summary, given the full cache's row of the same task and the independent draws."""
    if row.policy == "full":
        return "baseline"
    if row.score is not None and row.updates_mean < MIN_UPDATES:
        return "hardly acted"
    if row.diff_ci is None or full is None or full.score is None or draws < MIN_DRAWS:
        return "cannot tell"
    low, high = row.diff_ci
    if low > 0 or high < 0:
        return "helps" if low > 0 else "hurts"
    if full.score == 0:
        return "cannot tell"  # where the full cache gets nothing right there is nothing to hold
    return "holds" if min(low, -_unseen(row, full, draws)) >= -HOLD_MARGIN * abs(full.score) else "unsettled"


def _unseen(row: Row, full: Row, draws: int) -> float:
    """The loss that may hide where no difference was seen: with 95 %, at most 3 of as many draws lose all they have."""
    return 3 / draws * abs(full.score or 0.0) if row.diff_ci == (0, 0) else 0.0


def answer(row: Row, *, full: Row | None, pairs: int, draws: int, unit: str) -> Answer:
    """The word with its numbers.

    Args:
        full: the full cache's row of the same task or group.
        pairs: samples behind the difference.
        draws: independent draws among them: clusters, where samples share a video; otherwise as many as pairs.
        unit: what the score is, from the run's description.
    """
    word = judge(row, full, draws)
    unit = unit.partition(" (")[0]  # what follows explains it, and stands above the table
    counted = f"{pairs} pairs" if draws == pairs else f"{pairs} pairs in {draws} clusters"
    caution = f" Fewer than {FEW_DRAWS} independent draws: the interval is too narrow." if draws < FEW_DRAWS else ""
    text = _sentence(row, word, full, counted, unit, draws)
    if word in ("helps", "holds", "hurts", "unsettled"):
        text += caution + _improvement(row)
    return Answer(task=row.task, policy=row.policy, verdict=word, text=text)


def _sentence(row: Row, word: Verdict, full: Row | None, counted: str, unit: str, draws: int) -> str:
    score = f"{number(row.score)} ({unit})"
    if word == "baseline":
        return f"The full cache is what the others are compared with: {score}."
    if word == "hardly acted":
        return (
            f"It hardly acted: {row.updates_mean:.1f} updates a sample on average, fewer than {MIN_UPDATES}. Its "
            f"score, {score}, says nothing about this memory; longer samples or a smaller --update-interval would."
        )
    held = f"holding {percent(row.kept_share)} of the cache"
    if word == "cannot tell" or row.diff_ci is None or full is None:
        nothing_right = full is not None and full.score == 0
        reason = "which scores 0 itself" if nothing_right else f"fewer than {MIN_DRAWS} to go by"
        return f"Nothing to conclude from {counted} with the full cache, {reason}: {score}, {held}."
    low, high = row.diff_ci
    facts = (
        f"{number(row.score)} against {number(full.score)} with the full cache ({unit}), {signed(row.diff_full)} "
        f"(95 % interval {signed(low)} to {signed(high)}, {counted}), {held}."
    )
    if word == "unsettled" and (loss := _unseen(row, full, draws)):
        return f"Unsettled: {facts} Nothing changed, but so few draws may hide a loss of up to {number(loss)}."
    if word == "unsettled":
        gain = f" to a gain of {number(high)}" if high > 0 else " to none"
        return f"Unsettled: {facts} Anything from a loss of {number(-low)}{gain} fits these samples."
    if word == "holds":
        return f"It holds: {facts} A loss of more than {100 * HOLD_MARGIN:.0f} % of the score is excluded."
    return f"It {word}: {facts}"


def _improvement(row: Row) -> str:
    if not isinstance(row, Overall) or row.improvement is None or row.improvement_ci is None:
        return ""
    low, high = row.improvement_ci
    return (
        f" An episode scores more than one under the full cache with probability {row.improvement:.2f} "
        f"({low:.2f} to {high:.2f})."
    )


def headline(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that belong at the top: of each task those about a NAMM, or all where there is none.

    Where a group of tasks has an answer, it stands for its members.
    """
    every = {answer.task for answer in answers}
    judged = [
        answer
        for answer in answers
        if answer.verdict != "baseline" and not ("/" in answer.task and answer.task.partition("/")[0] in every)
    ]
    namms = [answer for answer in judged if answer.policy.partition(":")[0] == "namm"]
    tasks = {answer.task for answer in namms}
    return [answer for answer in judged if answer in namms or answer.task not in tasks]


def in_one_line(answers: Sequence[Answer], summary: Sequence[SummaryRow], overall: Sequence[Overall]) -> str:
    """The first headline of each task in a few words: `Against the full cache. video: namm holds (...); ...`."""
    every: list[Row] = [*summary, *overall]
    rows = {(row.task, row.policy): row for row in every}
    first = {answer.task: answer for answer in reversed(headline(answers))}
    parts = []
    for task in dict.fromkeys(answer.task for answer in headline(answers)):
        answer = first[task]
        row = rows[task, answer.policy]
        judged = answer.verdict in ("helps", "holds", "hurts", "unsettled") and row.diff_ci is not None
        facts = [signed(row.diff_full)] if judged else [f"{row.updates_mean:.1f} updates a sample"]
        facts += (
            []
            if not judged or row.diff_ci is None
            else [f"95 % interval {signed(row.diff_ci[0])} to {signed(row.diff_ci[1])}"]
        )
        facts += [] if row.kept_share is None else [f"{percent(row.kept_share)} of the cache held"]
        name = task if not isinstance(row, Overall) else f"{task} ({row.tasks} tasks)"
        parts.append(f"{name}: {answer.policy} {PHRASES[answer.verdict]} ({', '.join(facts)})")
    return "Against the full cache. " + "; ".join(parts) + "." if parts else "Nothing was compared with the full cache."


def number(value: float | None) -> str:
    """Three significant digits, never in scientific notation for the sizes scores have; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.5f}"


def signed(value: float | None) -> str:
    """`number` with its sign."""
    return number(value) if value is None or value <= 0 else f"+{number(value)}"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if share is None else f"{100 * share:.1f} %"
