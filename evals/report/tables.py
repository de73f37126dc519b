"""The tables of a report, shared by the terminal, the Markdown page and the HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from tabulate import tabulate

from namm_transfer.evals.report.schema import Report, Run
from namm_transfer.evals.report.verdict import WORDS, number, percent, signed, unit


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table: heading, meaning, and the entry of a row that it shows."""

    name: str
    meaning: str
    """Explanation for the reader, with the unit."""
    field: str
    """Key of the row's entry that it shows."""
    show: Callable[[Any], str] = str
    """Function that formats that entry."""
    numeric: bool = True
    """True for a column that is right-aligned and sorted by value."""


@dataclasses.dataclass
class Cell:
    """One cell of a table."""

    text: str
    value: float | str | None
    """Sort key; None if the cell has no value."""


@dataclasses.dataclass
class Table:
    """A titled table."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]


def or_dash(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "-" if value is None else show(value)


def bounds(show: Callable[[float], str]) -> Callable[[Any], str]:
    return or_dash(lambda pair: f"{show(pair[0])} to {show(pair[1])}")


def _bytes(count: float) -> str:
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count:.0f} B"


POLICY = Column("policy", "the eviction policy, as written on the command line", "policy", numeric=False)
VERDICT = Column("verdict", "how it compares with the full cache; defined at the top", "verdict", numeric=False)
COUNT = Column("n", "samples tried (control: episodes)", "n")
SCORE = Column(
    "score", "mean over the samples that did not fail; its unit stands in the table's title", "score", number
)
DIVERGENCE = Column(
    "JS div.",
    "Jensen-Shannon divergence, in bits, of the first answer token's distribution from the full cache's: 0 is the same",
    "divergence",
    or_dash("{:.3f}".format),
)
KEPT = Column(
    "cache kept",
    "tokens in the cache when the answer began (control: averaged over the steps), as a share of all tokens seen",
    "kept_share",
    percent,
)
UPDATES = Column("updates", "times the policy decided what to keep, per sample", "updates_mean", "{:.1f}".format)
ACTED = Column(
    "acted",
    "share of the samples long enough for the policy to act at all",
    "acted_share",
    lambda share: f"{100 * share:.0f} %",
)

SUMMARY = [
    POLICY,
    VERDICT,
    COUNT,
    SCORE,
    Column("likelihood", "mean probability of the right answer's tokens, in %", "likelihood", number),
    Column("vs full", "mean difference to the full cache on the same samples", "diff_full", signed),
    Column("95 % interval", "paired bootstrap interval of that difference", "diff_ci", bounds(signed)),
    DIVERGENCE,
    KEPT,
    UPDATES,
    ACTED,
    Column("failed", "samples that raised an error; left out of the score", "failed"),
    Column("unparsed", "answers that could not be understood; they count as wrong", "unparsed"),
]

OVERALL = [
    POLICY,
    VERDICT,
    COUNT,
    Column("IQM", "interquartile mean of the scores: mean of the middle half of the episodes", "score",
           number),
    Column("IQM 95 %", "stratified bootstrap interval of it: episodes are drawn anew within each task", "score_ci",
           bounds(number)),
    Column("vs full", "difference to the full cache's interquartile mean on the same episodes", "diff_full", signed),
    Column("95 % interval", "paired stratified bootstrap interval of that difference", "diff_ci", bounds(signed)),
    Column("P(better)", "probability that an episode scores more than one under the full cache, ties half",
           "improvement", or_dash("{:.2f}".format)),
    Column("P 95 %", "stratified bootstrap interval of that probability; 0.5 is no difference", "improvement_ci",
           bounds("{:.2f}".format)),
    KEPT,
    UPDATES,
    ACTED,
]  # fmt: skip

COSTS = [
    POLICY,
    Column("tokens seen", "tokens that have passed through the cache, per sample", "tokens_seen", number),
    Column("tokens kept", "tokens a KV head keeps when the answer begins (control: at the end)", "tokens_held", number),
    Column("peak", "most tokens a KV head held at any time, as a share of all that were seen", "peak_share", percent),
    Column("bytes kept", "memory of keys, values and the policy's own state", "bytes_held", or_dash(_bytes)),
    Column("s/sample", "wall time in seconds", "seconds", "{:.2f}".format),
    ACTED,
]

OVERLAPS = [
    POLICY,
    Column("other policy", "the policy whose kept tokens are compared", "other", numeric=False),
    Column("overlap", "tokens that both keep over tokens that either keeps (Jaccard), mean over layers and heads",
           "jaccard", percent),
    Column("by chance", "the same for two random choices of as many tokens in each head", "chance", percent),
    Column("layers", "lowest and highest mean of a layer", "layers", bounds(percent)),
    Column("samples", "samples that both finished", "samples"),
]  # fmt: skip

CATEGORIES = [
    Column("category", "group of samples", "category", numeric=False),
    POLICY,
    COUNT,
    SCORE,
    Column("return", "mean undiscounted return, never normalised", "raw", number),
    KEPT,
    ACTED,
]

RETURNS = [
    POLICY,
    Column("episodes", "episodes that did not fail", "n"),
    Column("mean return", "undiscounted sum of rewards of an episode, never normalised", "mean", number),
    Column("sd", "standard deviation of the episodes' returns", "sd", number),
    Column("min", "smallest return of an episode", "min", number),
    Column("max", "largest return of an episode", "max", number),
]

HEADLINES = [
    POLICY,
    Column("official score", "average by the benchmark's own rule, failed samples counted as wrong", "value", number),
    Column("vs full (official)", "difference of that score to the full cache's", "difference", signed),
    Column("categories", "how many categories it averages", "categories"),
    Column("absent", "categories of the benchmark without a sample; it is not the published number then", "absent",
           numeric=False),
]  # fmt: skip

PUBLISHED = [
    Column("published", "what was measured", "name", numeric=False),
    Column("score", "as published", "value", number),
    Column("measured on", "not these samples", "world", numeric=False),
    Column("source", "where the number stands", "source", numeric=False),
]


def make(title: str, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Build a table from rows; columns without a value in any row are left out."""
    cells = [[Cell(column.show(row[column.field]), _sortable(row[column.field])) for column in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(row[i].value is not None for row in cells)]
    return Table(title, [columns[i] for i in shown], [[row[i] for i in shown] for row in cells])


def _sortable(value: Any) -> float | str | None:
    return value[0] if isinstance(value, tuple) else value


def _of(items: Sequence[BaseModel], task: str) -> list[dict[str, Any]]:
    return [item.model_dump() for item in items if getattr(item, "task", None) == task]


def _judged(report: Report, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    words = {(answer.task, answer.policy): WORDS[answer.verdict] for answer in report.answers}
    return [row | {"verdict": words.get((row["task"], row["policy"]))} for row in rows]


def _run(report: Report, task: str) -> Run:
    return next(run for run in report.runs if run.task == task)


def summary(report: Report, task: str) -> Table:
    """Make the main table of one task; where a benchmark has an official score, the plain mean is headed "mean"."""
    official = any(item.task == task for item in report.headlines)
    columns = [
        dataclasses.replace(SCORE, name="mean") if official and column is SCORE else column for column in SUMMARY
    ]
    title = str(_run(report, task).description.get("score", "score"))
    beside = {(item.task, item.policy): item.value for item in report.likelihoods}
    rows = [
        row | {"likelihood": beside.get((task, row["policy"]))} for row in _judged(report, _of(report.summary, task))
    ]
    return make(f"{task}: {title}{', mean over samples' * official}", columns, rows)


def headlines(report: Report, task: str) -> list[Table]:
    """Make the table of a benchmark's official score under each policy; empty if the task has none."""
    items = [item for item in report.headlines if item.task == task]
    if not items:
        return []
    reference = _run(report, task).baseline
    full = next((item.value for item in items if reference is not None and item.policy == reference.spec), None)
    rows = []
    for item in items:
        compared = (
            item.value is not None and full is not None and reference is not None and item.policy != reference.spec
        )
        difference = (item.value or 0.0) - (full or 0.0) if compared else None
        rows.append(
            item.model_dump()
            | {"difference": difference, "categories": len(item.parts), "absent": ", ".join(item.missing) or None}
        )
    columns = [
        dataclasses.replace(column, name=items[0].name) if column.field == "value" else column for column in HEADLINES
    ]
    return [make(f"{task}: {items[0].name}, the benchmark's own score ({items[0].unit})", columns, rows)]


def overall(report: Report) -> Table:
    """Make the table over all tasks of a group, which may be one."""
    group = report.overall[0].task
    names = [run.task for run in report.runs if run.task.startswith(f"{group}/")]
    over = f"{group} over {', '.join(names)}" if len(names) > 1 else names[0]
    return make(f"{over}: interquartile mean", OVERALL, _judged(report, _of(report.overall, group)))


def by_task(report: Report) -> Table:
    """Tabulate the scores of a group's policies, one column per task."""
    group = report.overall[0].task
    names = [run.task for run in report.runs if run.task.startswith(f"{group}/")]
    found = {(row.task, row.policy): row for row in report.summary}
    columns = [
        Column(
            name.removeprefix(f"{group}/"), "mean score, and its difference to the full cache", name, _with_difference
        )
        for name in names
    ]
    rows = [
        {"policy": row.policy, "acted_share": row.acted_share}
        | {name: (found[name, row.policy].score, found[name, row.policy].diff_full) for name in names}
        for row in report.overall
    ]
    return make(f"{group}: mean score by task (difference to the full cache)", [POLICY, *columns, ACTED], rows)


def _with_difference(value: tuple[float | None, float | None]) -> str:
    return number(value[0]) + ("" if value[1] is None else f" ({signed(value[1])})")


def returns(report: Report, task: str) -> list[Table]:
    """Tabulate the distribution of the undiscounted returns of a control task; empty for other tasks."""
    rows = _of(report.returns, task)
    return [make(f"{task}: return of an episode, as the environment pays it", RETURNS, rows)] if rows else []


def costs(report: Report, task: str) -> Table:
    """Tabulate cache size, memory and time of the policies on one task."""
    return make(f"{task}: size and time", COSTS, _of(report.costs, task))


def overlaps(report: Report, task: str) -> Table:
    """Tabulate the overlap of the tokens that pairs of policies keep; without rows if it was not recorded."""
    rows = [row | {"layers": (min(row["by_layer"]), max(row["by_layer"]))} for row in _of(report.overlaps, task)]
    return make(f"{task}: tokens that two policies keep in common", OVERLAPS, rows)


def categories(report: Report, task: str) -> Table:
    """Tabulate scores by category; without rows if the task has only one category."""
    return make(f"{task}: {unit(_run(report, task))} by category", CATEGORIES, _of(report.categories, task))


def published(report: Report, task: str) -> Table:
    """Tabulate the published scores on the task; without rows if none are known."""
    return make(f"{task}: published numbers", PUBLISHED, _of(report.published, task))


def as_text(table: Table) -> str:
    """Format the table as plain text; the columns failed and unparsed are left out if they are all zero."""
    quiet = ("failed", "unparsed")
    shown = [i for i, c in enumerate(table.columns) if c.name not in quiet or any(row[i].value for row in table.rows)]
    return table.title + "\n\n" + _tabulated(table, shown, "simple", str)


def as_markdown(table: Table) -> str:
    """Format the table in GitHub's Markdown."""
    return _tabulated(table, range(len(table.columns)), "pipe", escape)


def _tabulated(table: Table, shown: Iterable[int], style: str, text: Callable[[str], str]) -> str:
    places = list(shown)
    return tabulate(
        [[text(row[i].text) for i in places] for row in table.rows],
        headers=[table.columns[i].name for i in places],
        tablefmt=style,
        colalign=["right" if table.columns[i].numeric else "left" for i in places] if table.rows else None,
        disable_numparse=True,
    )


def escape(text: str) -> str:
    """Escape untrusted text for Markdown: one line, with every markup character quoted."""
    return "".join(f"\\{c}" if c in "\\`[]<>|!*#" else c for c in " ".join(text.split()))
