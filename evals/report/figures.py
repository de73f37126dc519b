"""Figures as inline SVG. They follow the page's colours, and equal numbers give equal bytes."""

from __future__ import annotations

import dataclasses
import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from namm_transfer.evals.report.schema import Report, Run, SummaryRow
from namm_transfer.evals.report.verdict import MIN_UPDATES, Row, number, percent, policy_of, unit

INK = "#010203"
"""Placeholder colour that `inline` replaces by the page's text colour."""

COLOURS = ("#d55e00", "#0084c8", "#009e73", "#cc79a7", "#b8860b", "#7a6ff0", "#8c8c8c")
"""Colours of the lines, distinguishable for colour-blind readers (after Okabe and Ito), on white and on black."""

MARKS = "osD^vPX"

MAX_MAPS = 6
"""Most heat maps shown per task."""

UNIFORM = 0.01
"""Largest difference of the kept shares at which all KV heads count as having the same budget."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor", "titlecolor")},
}

ADAPTING = "<style>svg { color: #1f2328 } @media (prefers-color-scheme: dark) { svg { color: #e6edf3 } }</style>"
"""Style with which a stand-alone SVG file follows the reader's colour scheme."""


@dataclasses.dataclass
class Drawing:
    """A figure as inline SVG, its caption, and its numbers in words for those who cannot see it."""

    svg: str
    caption: str
    alternative: str


def score_against_size(report: Report, run: Run, name: str) -> Drawing | None:
    """Plot score against cache size for one task, with paired intervals as bars; None if nothing was scored.

    Args:
        report: the report that has the numbers.
        run: the run of the task.
        name: prefix of the SVG ids, unique in the page.
    """
    scored = [row for row in report.summary if row.task == run.task and row.score is not None]
    rows = [row for row in scored if row.kept_share is not None]
    if not rows:
        return None
    uniform = {m.policy for m in report.heatmaps if m.task == run.task and np.ptp(np.asarray(m.share)) <= UNIFORM}
    full = next((row for row in rows if run.baseline is not None and row.policy == run.baseline.spec), None)

    def draw(axes: Axes) -> None:
        if full is not None and full.score is not None:
            axes.axhline(full.score, color=INK, linestyle="--", linewidth=1, label="full cache")
        families: dict[str, list[SummaryRow]] = {}
        for row in rows:
            if row is not full:
                families.setdefault(run.policy(row.policy).name, []).append(row)
        for i, (family, members) in enumerate(families.items()):
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            _points(axes, family, members, uniform, full, colour, mark)
        axes.set_xlabel("cache kept")
        axes.set_ylabel(textwrap.fill(unit(run), 34, max_lines=2, placeholder="…"))
        axes.set_xlim(0, 1.05)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=3)

    words = "; ".join(f"{row.policy}: {number(row.score)} keeping {percent(row.kept_share)}" for row in rows)
    return Drawing(
        svg=_svg(draw, name, (4.6, 3.4)),
        caption=f"{run.task}: {unit(run)} against the share of the cache kept; up and to the left is better. Bars: "
        "95 % paired interval of the difference to the full cache, drawn around its score. Filled and joined: every "
        "KV head keeps the same number of tokens; open: heads keep different numbers.",
        alternative=f"Scatter plot of {unit(run)} against cache kept for {run.task}. {words}.",
    )


def _points(
    axes: Axes,
    family: str,
    members: list[SummaryRow],
    uniform: set[str],
    full: SummaryRow | None,
    colour: str,
    mark: str,
) -> None:
    members = sorted(members, key=lambda row: row.kept_share or 0)
    equal = [row for row in members if row.policy in uniform]
    own = [row for row in members if row not in equal]
    label: str | None = _label(family)
    for rows, style in ((own, {"linestyle": "none", "markerfacecolor": "none"}), (equal, {"linewidth": 1.2})):
        if rows:
            x, y = np.array([(row.kept_share, row.score) for row in rows], dtype=float).T
            axes.plot(x, y, color=colour, marker=mark, markersize=6, label=label, **style)
            label = None  # one entry in the legend
    for row in members:
        if row.diff_ci is not None and full is not None and full.score is not None:
            bounds = [full.score + row.diff_ci[0], full.score + row.diff_ci[1]]
            axes.plot([row.kept_share or 0.0] * 2, bounds, color=colour, linewidth=1.2, alpha=0.7)


def kept_shares(report: Report, run: Run, name: str) -> Drawing | None:
    """Heat maps of the share kept by layer and KV head, one panel per policy; None if nothing was recorded."""
    maps = [item for item in report.heatmaps if item.task == run.task][:MAX_MAPS]
    if not maps:
        return None
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 0.6 + 1.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(maps) :]:
            axes.set_visible(False)
        for axes, item in zip(grid.flat, maps, strict=False):
            image = axes.imshow(np.asarray(item.share), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            known = run.policy(item.policy).name
            rest = item.policy.removeprefix(known)
            axes.set_title(f"{known}\n{rest if len(rest) <= 16 else rest[:15] + '…'}".strip(), fontsize=8)
            for axis, count in zip((axes.yaxis, axes.xaxis), np.shape(item.share), strict=True):
                axis.set_ticks(range(0, count, -(-count // 4)))
        figure.supxlabel("KV head", color=INK, fontsize=9)
        figure.supylabel("layer", color=INK, fontsize=9)
        bar = figure.colorbar(image, ax=grid, format=PercentFormatter(1), shrink=0.9)
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)  # one small picture instead of 256 rectangles
        svg = inline(figure, name)
    words = "; ".join(
        f"{item.policy}: " + ", ".join(f"layer {i} {percent(float(np.mean(row)))}" for i, row in enumerate(item.share))
        for item in maps
    )
    return Drawing(
        svg=svg,
        caption=f"{run.task}: share of the tokens seen that each KV head keeps when the answer begins, "
        "mean over samples.",
        alternative=f"Heat maps by layer and KV head for {run.task}. Means over the heads: {words}.",
    )


def sizes_by_update(report: Report, run: Run, name: str) -> Drawing | None:
    """Plot the tokens a KV head keeps after each update, one line per policy; None if no policy acted."""
    lines = [item for item in report.sizes if item.task == run.task]
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        longest = max(lines, key=lambda item: item.interval * len(item.held))
        seen = longest.interval * np.arange(len(longest.held) + 1)
        axes.plot(seen, seen, color=INK, linestyle="--", linewidth=1, label="everything")
        for i, item in enumerate(lines):  # each line thinner than the last, since matched sizes coincide
            tokens = item.interval * np.arange(1, len(item.held) + 1)
            width, style = max(1.2, 6 - 1.5 * i), ("-", "-.", ":")[i // len(COLOURS) % 3]
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(tokens, item.held, color=colour, label=_label(item.policy), linewidth=width, linestyle=style)
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("tokens a KV head holds")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)

    words = "; ".join(
        f"{item.policy}: {number(item.held[0])} after the first update, {number(item.held[-1])} after the last "
        f"({len(item.held)}), which {item.samples[-1]} of {item.samples[0]} samples reached"
        for item in lines
    )
    return Drawing(
        svg=_svg(draw, name, (4.6, 3.4 + 0.12 * len(lines))),
        caption=f"{run.task}: tokens a KV head holds after each update, mean over layers and over the samples that got "
        "so far (fewer and fewer where samples differ in length). Dashed: a cache that keeps everything.",
        alternative=f"Line chart of the cache size after each update for {run.task}. {words}.",
    )


@dataclasses.dataclass
class Line:
    """One domain of the headline figure. The points' scores are in % of the full cache's."""

    title: str
    """Name of the domain and the share of the cache that the NAMM keeps."""
    full: Row
    points: dict[str, Row]
    """Rows by what they show: `NAMM`, `best rule`, `random`."""


POINTS = {"NAMM": (COLOURS[0], "o"), "best rule": (COLOURS[1], "s"), "random": (COLOURS[-1], "D")}
"""Colour and mark of each point of the headline figure."""


def changes(reports: Sequence[tuple[str, Report]]) -> str:
    """Draw an SVG with a line a domain: NAMM, the best rule at its own allocation, random eviction, the full cache.

    All but the last have the NAMM's total size. The tasks of a group share one line; a hollow point marks a policy that
    hardly acted. Domains in which the full cache scores 0, or nothing but random eviction was tried, are left out.

    Args:
        reports: (name, report) pairs.
    """
    lines = [line for name, report in reports for line in _lines(name, report)]
    with rc_context({**STYLE, "svg.hashsalt": "headline"}):
        figure = Figure(figsize=(7.0, 1.3 + 0.5 * max(1, len(lines))), layout="constrained")
        axes = figure.subplots()
        if lines:
            _draw_lines(axes, lines)
            figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncol=4)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "nothing was compared with a full cache", ha="center")
        svg = inline(figure, "headline")
    words = "; ".join(
        f"{line.title}: {', '.join(f'{kind} {_in_words(line.full, row)}' for kind, row in line.points.items())}"
        for line in lines
    )
    label = html.escape(f"Score in % of the full cache's. {words}")
    svg = svg.replace('aria-hidden="true" focusable="false" ', f'role="img" aria-label="{label}" ', 1)
    start = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:start]}{ADAPTING}{svg[start:]}'


def _lines(name: str, report: Report) -> list[Line]:
    """List the domains of a report. A single one is named after the report, since several may have the same task."""
    grouped = [row for row in report.overall if row.tasks > 1]
    groups = tuple(f"{row.task}/" for row in grouped)
    every: list[Row] = [*grouped, *(row for row in report.summary if not row.task.startswith(groups))]
    lines, domains = [], dict.fromkeys(row.task for row in every)
    for task in domains:
        rows = {row.policy: row for row in every if row.task == task}
        known = {spec: policy_of(report.runs, task, spec) for spec in rows}
        full = next((row for spec, row in rows.items() if known[spec].baseline and row.score), None)
        compared = [row for spec, row in rows.items() if not known[spec].baseline and row.diff_full is not None]
        if full is None or all(known[row.policy].name == "random" for row in compared):
            continue
        namm = next((row for row in compared if known[row.policy].name == "namm"), compared[0])
        # Under the NAMM's own sizes a rule shows what is left to choose, not what it would do itself.
        rivals = [row for row in compared if row is not namm and known[row.policy].allocation not in ("layer", "head")]
        same = [row for row in rivals if known[row.policy].match == namm.policy]
        own = [row for row in same if known[row.policy].allocation == "uniform"]
        rules = own or same or rivals
        chance = [row for row in rules if known[row.policy].name == "random"]
        others = [row for row in rules if row not in chance]
        points: dict[str, Row] = {"NAMM" if known[namm.policy].name == "namm" else "best rule": namm}
        if others:
            points.setdefault("best rule", max(others, key=lambda row: row.diff_full or 0.0))
        if chance:
            points["random"] = chance[0]
        title = task if len(domains) > 1 else name
        lines.append(Line(f"{title}, {percent(namm.kept_share)} kept", full, points))
    return lines


def _relative(full: Row, row: Row) -> list[float]:
    """Compute score, lower and upper bound in % of the full cache's score, from the paired difference to it."""
    low, high = row.diff_ci or (row.diff_full or 0.0,) * 2
    return [100 + 100 * value / abs(full.score or 1.0) for value in (row.diff_full or 0.0, low, high)]


def _in_words(full: Row, row: Row) -> str:
    middle, low, high = _relative(full, row)
    return f"({row.policy}) {middle:.1f} % ({low:.1f} to {high:.1f})"


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    axes.axvline(100, color=INK, linestyle="--", linewidth=1, label="full cache")
    shown: set[str] = set()
    for place, line in enumerate(lines):
        for shift, (kind, row) in enumerate(line.points.items()):
            colour, mark = POINTS[kind]
            middle, low, high = _relative(line.full, row)
            fill = colour if row.updates_mean >= MIN_UPDATES else "none"
            y = place + 0.18 * (shift - 1)
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
            label = None if kind in shown else kind
            axes.plot([middle], [y], color=colour, marker=mark, linestyle="none", markerfacecolor=fill, label=label)
            if kind == "best rule":
                name = row.policy.partition(":")[0]
                axes.annotate(_label(name), (high, y), xytext=(3, -3), textcoords="offset points", fontsize=7)
            shown.add(kind)
    axes.set_yticks(range(len(lines)), [textwrap.fill(line.title, 30) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel("score at the NAMM's size, in % of the full cache's\n(95 % interval of the paired difference)")


def _label(name: str) -> str:
    """Shorten a name to 30 characters by cutting out its middle, to leave room for the axes."""
    return name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"


def _svg(draw: Callable[[Axes], None], name: str, size: tuple[float, float]) -> str:
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return inline(figure, name)


def inline(figure: Figure, name: str) -> str:
    """Return the figure as a scalable <svg> element in the page's text colour, with ids prefixed by `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"-?\d+\.\d{2,}", _tenth, found[0]), svg)
    named = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"\n\s*", "\n", svg).replace(INK, "currentColor")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _tenth(number: re.Match[str]) -> str:
    """Round a coordinate to a tenth of a point, finer than a screen shows."""
    return f"{float(number[0]):.1f}".removesuffix(".0")
