"""The picture of an evolution: fitness, validation, cache size and step size over generations."""

from __future__ import annotations

import io

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure


def draw(log: np.ndarray) -> str:
    """An SVG of the log.

    Args:
        log: (generations + 1, 5), columns as in `state.FIELDS`.
    """
    generation, fitness, validation, kept, sigma = log.T
    seen = ~np.isnan(validation)
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    top.plot(generation, fitness, lw=1, color="0.6", label="mean fitness of the members (training prompts)")
    top.plot(generation[seen], validation[seen], "o-", ms=3, label="mean vector (validation prompts)")
    top.axhline(0, color="0.3", lw=0.8, ls=":", label="full cache")
    top.set_ylabel("score against\nthe full cache")
    top.legend(fontsize=8)
    middle.plot(generation, kept, color="tab:green")
    middle.set_ylabel("kept share")
    middle.set_ylim(0, 1.02)
    bottom.plot(generation, sigma, color="tab:orange")
    bottom.set_ylabel("sigma")
    bottom.set_xlabel("generation")
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "evolution", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
