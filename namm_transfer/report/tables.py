"""The tables of a report as text, once for the terminal, the Markdown page and the HTML page."""

from __future__ import annotations

import dataclasses

from .schema import Report
from .verdict import number, percent, signed


@dataclasses.dataclass
class Column:
    """One column."""

    name: str
    """Its heading."""
    meaning: str
    """What a newcomer needs to know to read it, with the unit."""
    numeric: bool = True
    """Right-aligned, sorted by value."""


@dataclasses.dataclass
class Cell:
    """One cell."""

    text: str
    """As shown."""
    value: float | str | None
    """What sorting goes by."""


@dataclasses.dataclass
class Table:
    """A titled table."""

    title: str
    """Its caption."""
    columns: list[Column]
    """Headings, left to right."""
    rows: list[list[Cell]]
    """As many cells each as there are columns."""


SUMMARY = [
    Column("policy", "as written on the command line", numeric=False),
    Column("verdict", "helps, holds or hurts, or why none of them can be said", numeric=False),
    Column("n", "samples tried"),
    Column("score", "mean over the samples that did not fail"),
    Column("vs full", "mean difference to the full cache on the same samples"),
    Column("95 % interval", "paired bootstrap interval of that difference"),
    Column("cache held", "tokens held when the answer began (RL: over the steps) out of those seen"),
    Column("updates", "times the policy acted on a sample, on average"),
    Column("acted", "share of the samples in which it acted at all"),
    Column("failed", "samples that raised an error; left out of the score"),
    Column("unparsed", "answers that could not be understood; counted as wrong"),
]

COSTS = [
    Column("policy", "as written on the command line", numeric=False),
    Column("tokens seen", "per sample"),
    Column("tokens held", "per head, when the answer began"),
    Column("peak", "most tokens a head held at any time, as a share of all that were seen"),
    Column("bytes held", "keys, values and the policy's state"),
    Column("s/sample", "wall time in seconds"),
]

CATEGORIES = [
    Column("category", "group of samples", numeric=False),
    Column("policy", "as written on the command line", numeric=False),
    Column("n", "samples tried"),
    Column("score", "mean over the samples that did not fail"),
    Column("cache held", "share of the tokens seen"),
]


def summary(report: Report, task: str) -> Table:
    """The main table of one task."""
    verdicts = {(answer.task, answer.policy): answer.verdict for answer in report.answers}
    rows = []
    for row in report.summary:
        if row.task != task:
            continue
        bounds = "-" if row.diff_ci is None else f"{signed(row.diff_ci[0])} to {signed(row.diff_ci[1])}"
        word = verdicts[row.task, row.policy]
        rows.append(
            [
                Cell(row.policy, row.policy),
                Cell(word, word),
                Cell(str(row.n), row.n),
                Cell(number(row.score), row.score),
                Cell(signed(row.diff_full), row.diff_full),
                Cell(bounds, row.diff_ci[0] if row.diff_ci else None),
                Cell(percent(row.kept_share), row.kept_share),
                Cell(f"{row.updates_mean:.1f}", row.updates_mean),
                Cell(f"{100 * row.acted_share:.0f} %", row.acted_share),
                Cell(str(row.failed), row.failed),
                Cell(str(row.unparsed), row.unparsed),
            ]
        )
    return Table(f"{task}: {describe(report, task)}", SUMMARY, rows)


def describe(report: Report, task: str) -> str:
    """What the score of a task is."""
    run = next(run for run in report.runs if run.task == task)
    return str(run.description.get("score", "score"))


def costs(report: Report, task: str) -> Table:
    """What the policies cost on one task."""
    rows = []
    for row in report.costs:
        if row.task == task:
            rows.append(
                [
                    Cell(row.policy, row.policy),
                    Cell(number(row.tokens_seen), row.tokens_seen),
                    Cell(number(row.tokens_held), row.tokens_held),
                    Cell(percent(row.peak_share), row.peak_share),
                    Cell(_bytes(row.bytes_held), row.bytes_held),
                    Cell(f"{row.seconds:.2f}", row.seconds),
                ]
            )
    measured = [i for i in range(len(COSTS)) if any(row[i].value is not None for row in rows)]
    return Table(f"{task}: size and time", [COSTS[i] for i in measured], [[row[i] for i in measured] for row in rows])


def categories(report: Report, task: str) -> Table:
    """Scores by category; no rows where a task has one category only."""
    rows = [
        [
            Cell(row.category, row.category),
            Cell(row.policy, row.policy),
            Cell(str(row.n), row.n),
            Cell(number(row.score), row.score),
            Cell(percent(row.kept_share), row.kept_share),
        ]
        for row in report.categories
        if row.task == task
    ]
    return Table(f"{task}: by category", CATEGORIES, rows)


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def as_text(table: Table) -> str:
    """The table for a terminal; columns in which every cell is 0 or a dash are left out."""
    shown = [i for i in range(len(table.columns)) if not {row[i].text for row in table.rows} <= {"0", "-"}]
    lines = [[table.columns[i].name for i in shown], *([row[i].text for i in shown] for row in table.rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(shown))]
    numeric = [table.columns[i].numeric for i in shown]
    drawn = [
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, "", drawn[0], "-" * max(map(len, drawn)), *drawn[1:]])


def as_markdown(table: Table) -> str:
    """The table as a GitHub table."""
    heads = [column.name for column in table.columns]
    rules = ["---:" if column.numeric else ":---" for column in table.columns]
    body = [[escape(cell.text) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rules, *body])


def escape(text: str) -> str:
    """Text from a model or a file for a Markdown page: one line, and nothing in it is markup."""
    return "".join(f"\\{c}" if c in "\\`[]<>|!*#" else c for c in " ".join(text.split()))
