"""The picture of an evolution: what the gradient taught before it, then fitness, validation, cache size, step size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure


def draw(log: np.ndarray, lessons: np.ndarray) -> str:
    """An SVG of both stages, side by side, or of the search alone.

    Args:
        log: (generations + 1, 5), columns as in `state.FIELDS`.
        lessons: (steps, 3), as in `State`; may be empty.
    """
    figure = Figure(figsize=(11 if len(lessons) else 7, 6), layout="constrained")
    sides = figure.subfigures(1, 2 if len(lessons) else 1, squeeze=False)[0]
    if len(lessons):
        _draw_lessons(sides[0], lessons)
    _draw_search(sides[-1], log)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "evolution", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw_lessons(figure: Any, lessons: np.ndarray) -> None:
    figure.suptitle("start learned by gradient through evictions", fontsize=10)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    width = max(1, len(lessons) // 40)
    for axes, values, colour in ((top, lessons[:, 0], "tab:blue"), (bottom, lessons[:, 1], "tab:green")):
        smooth = np.convolve(values, np.full(width, 1 / width), "valid")
        axes.plot(values, lw=0.6, color="0.75")
        axes.plot(np.arange(len(smooth)) + width // 2, smooth, color=colour)
    top.set_ylabel("log-probability of the answers")
    bottom.set_ylabel("held share")
    bottom.set_xlabel("step")


def _draw_search(figure: Any, log: np.ndarray) -> None:
    generation, fitness, validation, kept, sigma = log.T
    seen = ~np.isnan(validation)
    figure.suptitle("search by CMA-ES", fontsize=10)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    top.plot(generation, fitness, lw=1, color="0.6", label="mean fitness of the members (training prompts)")
    top.plot(generation[seen], validation[seen], "o-", ms=3, label="mean vector (validation prompts)")
    top.axhline(0, color="0.3", lw=0.8, ls=":", label="full cache, without a price")
    top.set_ylabel("score against the full cache\nminus the price of size")
    top.legend(fontsize=8)
    middle.plot(generation, kept, color="tab:green")
    middle.set_ylabel("kept share")
    middle.set_ylim(0, 1.02)
    bottom.plot(generation, sigma, color="tab:orange")
    bottom.set_ylabel("sigma")
    bottom.set_xlabel("generation")
