"""Figures as SVG text to be put into the page: they follow its colours, and the same numbers give the same bytes."""

from __future__ import annotations

import dataclasses
import io
import re
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from namm_transfer.evals.report.schema import Report, SummaryRow
from namm_transfer.evals.report.tables import describe
from namm_transfer.evals.report.verdict import number, percent

INK = "#010203"
"""Drawn in this colour, shown in the page's text colour."""

COLOURS = ("#d55e00", "#0084c8", "#009e73", "#cc79a7", "#b8860b", "#7a6ff0", "#8c8c8c")
"""Told apart by the colour-blind (after Okabe and Ito), and visible on white and on black."""

MAX_MAPS = 6
"""Heat maps a task shows."""

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


@dataclasses.dataclass
class Drawing:
    """A figure and the words for those who cannot see it."""

    svg: str
    """Inline SVG."""
    caption: str
    """What it shows and how to read it."""
    alternative: str
    """Its numbers in words."""


def score_against_size(report: Report, task: str, name: str) -> Drawing:
    """Score over cache size of one task; vertical bars are the paired intervals around the full cache's score.

    Args:
        name: unique in the page, since the parts of all figures share one name space.
    """
    rows = [row for row in report.summary if row.task == task and row.score is not None and row.kept_share is not None]
    unit = describe(report, task).partition(" (")[0]

    def draw(axes: Axes) -> None:
        full = next((row for row in rows if row.policy == "full"), None)
        if full is not None and full.score is not None:
            axes.axhline(full.score, color=INK, linestyle="--", linewidth=1, label="full cache")
        families: dict[str, list[SummaryRow]] = {}
        for row in rows:
            if row is not full:
                families.setdefault(row.policy.partition(":")[0], []).append(row)
        for i, (family, members) in enumerate(families.items()):
            _points(axes, family, members, full, COLOURS[i % len(COLOURS)], "osD^vPX"[i % 7])
        axes.set_xlabel("cache held")
        axes.set_ylabel(textwrap.fill(unit, 34))
        axes.set_xlim(0, 1.05)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        if rows:
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=3)

    words = "; ".join(f"{row.policy}: {number(row.score)} holding {percent(row.kept_share)}" for row in rows)
    return Drawing(
        svg=_svg(draw, name, (4.6, 3.4)),
        caption=f"{task}: {unit} against the share of the cache held; up and to the left is better. Bars: 95 % paired "
        "interval of the difference to the full cache, drawn around its score. Filled and joined: the same budget in "
        "every layer; open: sizes by a threshold, or matched to it.",
        alternative=f"Scatter plot of {unit} against cache held for {task}. {words}.",
    )


def _points(
    axes: Axes, family: str, members: list[SummaryRow], full: SummaryRow | None, colour: str, mark: str
) -> None:
    members = sorted(members, key=lambda row: row.kept_share or 0)
    equal = [row for row in members if "keep=" in row.policy or "budget=" in row.policy]
    own = [row for row in members if row not in equal]
    label: str | None = family
    for rows, style in ((own, {"linestyle": "none", "markerfacecolor": "none"}), (equal, {"linewidth": 1.2})):
        if rows:
            x, y = np.array([(row.kept_share, row.score) for row in rows], dtype=float).T
            axes.plot(x, y, color=colour, marker=mark, markersize=6, label=label, **style)
            label = None  # one entry in the legend
    for row in members:
        if row.diff_ci is not None and full is not None and full.score is not None:
            bounds = [full.score + row.diff_ci[0], full.score + row.diff_ci[1]]
            axes.plot([row.kept_share or 0.0] * 2, bounds, color=colour, linewidth=1.2, alpha=0.7)


def kept_shares(report: Report, task: str, name: str) -> Drawing | None:
    """Heat maps of the share held by layer and KV head, a panel a policy; None if nothing was recorded."""
    maps = [item for item in report.heatmaps if item.task == task][:MAX_MAPS]
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
            axes.set_title(_wrapped(item.policy), fontsize=8)
            for axis, count in zip((axes.yaxis, axes.xaxis), np.shape(item.share), strict=True):
                axis.set_ticks(range(0, count, -(-count // 4)))
        figure.supxlabel("KV head", color=INK, fontsize=9)
        figure.supylabel("layer", color=INK, fontsize=9)
        bar = figure.colorbar(image, ax=grid, format=PercentFormatter(1), shrink=0.9)
        bar.outline.set_visible(False)
        svg = inline(figure, name)
    words = "; ".join(
        f"{item.policy}: " + ", ".join(f"layer {i} {percent(float(np.mean(row)))}" for i, row in enumerate(item.share))
        for item in maps
    )
    return Drawing(
        svg=svg,
        caption=f"{task}: share of the tokens seen that each KV head held when the answer began, mean over samples.",
        alternative=f"Heat maps by layer and KV head for {task}. Means over the heads: {words}.",
    )


def sizes_by_update(report: Report, task: str, name: str) -> Drawing | None:
    """Tokens a head held after each update, a line a policy; None if no policy acted."""
    lines = [item for item in report.sizes if item.task == task]
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        longest = max(lines, key=lambda item: len(item.held))
        seen = longest.interval * np.arange(len(longest.held) + 1)
        axes.plot(seen, seen, color=INK, linestyle="--", linewidth=1, label="everything")
        for i, item in enumerate(lines):  # thinner and thinner, since sizes that were matched lie on each other
            tokens = item.interval * np.arange(1, len(item.held) + 1)
            axes.plot(tokens, item.held, color=COLOURS[i % len(COLOURS)], label=item.policy,
                      linewidth=max(1.2, 6 - 1.5 * i), linestyle=("-", "-.", ":")[i // len(COLOURS) % 3])  # fmt: skip
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("tokens held by a head")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)

    words = "; ".join(
        f"{item.policy}: {number(item.held[0])} after the first update, {number(item.held[-1])} after the last "
        f"({len(item.held)}), which {item.samples[-1]} of {item.samples[0]} samples reached"
        for item in lines
    )
    return Drawing(
        svg=_svg(draw, name, (4.6, 3.4 + 0.12 * len(lines))),
        caption=f"{task}: tokens a head held after each update, mean over layers and over the samples that got so far "
        "(fewer and fewer where samples differ in length). Dashed: a cache that keeps everything.",
        alternative=f"Line chart of the cache size after each update for {task}. {words}.",
    )


def _wrapped(policy: str) -> str:
    name, _, rest = policy.partition(":")
    rest = rest if len(rest) <= 18 else rest[:17] + "…"
    return f"{name}\n{rest}" if rest else name


def _svg(draw: Callable[[Axes], None], name: str, size: tuple[float, float]) -> str:
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return inline(figure, name)


def inline(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that scales, takes the page's text colour, and whose names are its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
