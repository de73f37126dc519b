"""The figure of an evolution: the learned start, then fitness, cache size, step size and signal of the search."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

_SMOOTH = 10  # generations over which the signal is averaged


def draw(log: np.ndarray, learning: np.ndarray) -> str:
    """Draw an SVG of both stages side by side, or of the search alone.

    Args:
        log: (generations + 1, 6), columns as in `state.FIELDS`.
        learning: (steps, 3), as in `State`; may be empty.
    """
    figure = Figure(figsize=(11 if len(learning) else 7, 6), layout="constrained")
    sides = figure.subfigures(1, 2 if len(learning) else 1, squeeze=False)[0]
    if len(learning):
        _draw_learning(sides[0], learning)
    _draw_search(sides[-1], log)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "evolution", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw_learning(figure: Any, learning: np.ndarray) -> None:
    figure.suptitle("start learned by gradient through evictions", fontsize=10)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for axes, values, colour in ((top, learning[:, 0], "tab:blue"), (bottom, learning[:, 1], "tab:green")):
        _draw_smoothed(axes, values, max(1, len(learning) // 40), colour)
    top.set_ylabel("log-probability of the answers")
    bottom.set_ylabel("kept share")
    bottom.set_xlabel("step")


def _draw_smoothed(axes: Any, values: np.ndarray, width: int, colour: str) -> None:
    """Plot values in grey and their moving mean over windows of this width."""
    axes.plot(values, lw=0.6, color="0.75")
    if len(values) >= width:
        smooth = np.convolve(values, np.full(width, 1 / width), "valid")
        axes.plot(np.arange(len(smooth)) + width // 2, smooth, color=colour)


def _draw_search(figure: Any, log: np.ndarray) -> None:
    generation, fitness, validation, kept, sigma, signal = log.T
    seen = ~np.isnan(validation)
    figure.suptitle("search by CMA-ES", fontsize=10)
    top, middle, step, bottom = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1, 1, 1])
    top.plot(generation, fitness, lw=1, color="0.6", label="mean fitness of the members (training)")
    top.plot(generation[seen], validation[seen], "o-", ms=3, label="mean vector (validation)")
    top.axhline(0, color="0.3", lw=0.8, ls=":", label="full cache, without the penalty")
    top.set_ylabel("log-probability against the full cache\nminus the penalty for size")
    top.legend(fontsize=8)
    middle.plot(generation, kept, color="tab:green")
    middle.set_ylabel("kept share")
    middle.set_ylim(0, 1.02)
    step.plot(generation, sigma, color="tab:orange")
    step.set_ylabel("sigma")
    _draw_smoothed(bottom, signal, _SMOOTH, "tab:purple")
    bottom.axhline(0, color="0.3", lw=0.8, ls=":")
    bottom.set_ylabel("signal")
    bottom.set_xlabel("generation")
