"""The tables of a report as text, once for the terminal, the Markdown page and the HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.report.verdict import number, percent, signed


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

OVERALL = [
    Column("policy", "as written on the command line", numeric=False),
    Column("verdict", "helps, holds or hurts, or why none of them can be said", numeric=False),
    Column("n", "episodes tried, over all tasks"),
    Column("IQM", "interquartile mean of the normalised returns: mean of the middle half of all episodes"),
    Column("IQM 95 %", "stratified bootstrap interval of it: episodes drawn anew within each task"),
    Column("vs full", "difference to the full cache's interquartile mean on the same episodes"),
    Column("95 % interval", "paired stratified bootstrap interval of that difference"),
    Column("P(better)", "probability that an episode scores more than one under the full cache, ties half"),
    Column("P 95 %", "stratified bootstrap interval of that probability; 0.5 is no difference"),
    Column("cache held", "tokens held out of those seen, over the steps"),
    Column("updates", "times the policy acted on an episode, on average"),
    Column("acted", "share of the episodes in which it acted at all"),
]

COSTS = [
    Column("policy", "as written on the command line", numeric=False),
    Column("tokens seen", "per sample"),
    Column("tokens held", "per head, when the answer began (RL: at the end)"),
    Column("peak", "most tokens a head held at any time, as a share of all that were seen"),
    Column("bytes held", "keys, values and the policy's state"),
    Column("s/sample", "wall time in seconds"),
    Column("acted", "share of the samples in which it acted at all"),
]

CATEGORIES = [
    Column("category", "group of samples", numeric=False),
    Column("policy", "as written on the command line", numeric=False),
    Column("n", "samples tried"),
    Column("score", "mean over the samples that did not fail"),
    Column("return", "mean undiscounted return, before it is normalised"),
    Column("cache held", "share of the tokens seen"),
    Column("acted", "share of the samples in which it acted at all"),
]

PUBLISHED = [
    Column("published", "what was measured", numeric=False),
    Column("score", "as published"),
    Column("measured on", "not these samples", numeric=False),
    Column("source", "where the number stands", numeric=False),
]


def summary(report: Report, task: str) -> Table:
    """The main table of one task."""
    words = _words(report)
    rows = [
        [
            Cell(row.policy, row.policy),
            Cell(words[row.task, row.policy], words[row.task, row.policy]),
            Cell(str(row.n), row.n),
            Cell(number(row.score), row.score),
            Cell(signed(row.diff_full), row.diff_full),
            _interval(row.diff_ci, signed),
            Cell(percent(row.kept_share), row.kept_share),
            Cell(f"{row.updates_mean:.1f}", row.updates_mean),
            _acted(row.acted_share),
            Cell(str(row.failed), row.failed),
            Cell(str(row.unparsed), row.unparsed),
        ]
        for row in report.summary
        if row.task == task
    ]
    return Table(f"{task}: {describe(report, task)}", SUMMARY, rows)


def overall(report: Report) -> Table:
    """The table over all tasks of a group, which may be one; no rows where there is none."""
    words = _words(report)
    rows = [
        [
            Cell(row.policy, row.policy),
            Cell(words.get((row.task, row.policy), "-"), words.get((row.task, row.policy))),
            Cell(str(row.n), row.n),
            Cell(number(row.score), row.score),
            _interval(row.score_ci, number),
            Cell(signed(row.diff_full), row.diff_full),
            _interval(row.diff_ci, signed),
            Cell("-" if row.improvement is None else f"{row.improvement:.2f}", row.improvement),
            _interval(row.improvement_ci, lambda value: f"{value:.2f}"),
            Cell(percent(row.kept_share), row.kept_share),
            Cell(f"{row.updates_mean:.1f}", row.updates_mean),
            _acted(row.acted_share),
        ]
        for row in report.overall
    ]
    names = [run.task for run in report.runs if report.overall and run.task.startswith(f"{report.overall[0].task}/")]
    over = f"{report.overall[0].task} over {', '.join(names)}" if len(names) > 1 else "".join(names)
    return _measured(Table(f"{over}: interquartile mean", OVERALL, rows))


def by_task(report: Report) -> Table:
    """Scores of a group's policies, a column a task; no rows where there are fewer than two tasks."""
    several = [row for row in report.overall if row.tasks > 1]
    group = several[0].task if several else ""
    names = [run.task for run in report.runs if several and run.task.startswith(f"{group}/")]
    found = {(row.task, row.policy): row for row in report.summary}
    columns = [Column("policy", "as written on the command line", numeric=False)]
    columns += [Column(name.partition("/")[2], "mean score, and its difference to the full cache") for name in names]
    rows = []
    for row in several:
        cells = [found[name, row.policy] for name in names]
        texts = [
            number(cell.score) + ("" if cell.diff_full is None else f" ({signed(cell.diff_full)})") for cell in cells
        ]
        scores = [Cell(text, cell.score) for text, cell in zip(texts, cells, strict=True)]
        rows.append([Cell(row.policy, row.policy), *scores, _acted(row.acted_share)])
    acted = Column("acted", "share of the episodes in which it acted at all")
    return Table(f"{group}: mean score by task (difference to the full cache)", [*columns, acted], rows)


def published(report: Report, task: str) -> Table:
    """What others measured; no rows where nothing is known."""
    rows = [
        [
            Cell(item.name, item.name),
            Cell(number(item.value), item.value),
            Cell(item.world, item.world),
            Cell(item.source, item.source),
        ]
        for item in report.published
        if item.task == task
    ]
    return Table(f"{task}: published numbers", PUBLISHED, rows)


def _words(report: Report) -> dict[tuple[str, str], str]:
    return {(answer.task, answer.policy): str(answer.verdict) for answer in report.answers}


def _interval(bounds: tuple[float, float] | None, show: Callable[[float], str]) -> Cell:
    return Cell("-", None) if bounds is None else Cell(f"{show(bounds[0])} to {show(bounds[1])}", bounds[0])


def _acted(share: float) -> Cell:
    return Cell(f"{100 * share:.0f} %", share)


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
                    _acted(row.acted_share),
                ]
            )
    return _measured(Table(f"{task}: size and time", COSTS, rows))


def _measured(table: Table) -> Table:
    """The table without the columns for which no row has a value."""
    shown = [i for i in range(len(table.columns)) if any(row[i].value is not None for row in table.rows)]
    return Table(table.title, [table.columns[i] for i in shown], [[row[i] for i in shown] for row in table.rows])


def categories(report: Report, task: str) -> Table:
    """Scores by category; no rows where a task has one category only."""
    rows = [
        [
            Cell(row.category, row.category),
            Cell(row.policy, row.policy),
            Cell(str(row.n), row.n),
            Cell(number(row.score), row.score),
            Cell(number(row.raw), row.raw),
            Cell(percent(row.kept_share), row.kept_share),
            _acted(row.acted_share),
        ]
        for row in report.categories
        if row.task == task
    ]
    return _measured(Table(f"{task}: by category", CATEGORIES, rows))


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def as_text(table: Table) -> str:
    """The table for a terminal; columns that say nothing are left out: dashes only, or that nothing went wrong."""
    empty = {column.name: {"-", "0"} if column.name in ("failed", "unparsed") else {"-"} for column in table.columns}
    shown = [i for i, c in enumerate(table.columns) if not {row[i].text for row in table.rows} <= empty[c.name]]
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
