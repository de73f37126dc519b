"""Growth of cost with prompt length: the break-even length, and a figure."""

import io
import json
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

SIDES = {"namm:keep=0.5": "tab:orange", "namm:keep=0.25": "tab:red"}
Points = list[tuple[int, float]]


def points(folder: Path, names: tuple[str, ...], side: str, key: str) -> Points:
    """Collect (tokens, value) of one side by prompt length from the results of several cases."""
    found: dict[int, float] = {}
    for name in names:
        file = folder / f"{name}.json"
        tables = json.loads(file.read_text())["tables"] if file.exists() else {}
        found |= {int(n): table[side][key] for n, table in tables.items() if key in table.get(side, {})}
    return sorted(found.items())


def break_even(ratios: Points) -> float | None:
    """Interpolate the length from which the ratio stays below 1; None if it never does."""
    above = [i for i, (_, ratio) in enumerate(ratios) if ratio > 1]
    if not above:
        return float(ratios[0][0]) if ratios else None
    if above[-1] == len(ratios) - 1:
        return None
    (left, high), (right, low) = ratios[above[-1]], ratios[above[-1] + 1]
    part = (high - 1) / (high - low)
    return math.exp(math.log(left) + part * (math.log(right) - math.log(left)))


def draw(folder: Path) -> str:
    """Draw an SVG of prefill and decoding relative to plain SDPA by prompt length, for models with several lengths."""
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    models = {
        "toy, 1 thread": (("growth", "memory", "long"), "cpu_s"),
        "SmolLM2-135M, 2 threads": (("lm-growth", "lm"), "s"),
    }
    side = next(iter(SIDES))
    models = {m: (names, k) for m, (names, k) in models.items() if len(points(folder, names, side, "prefill_s")) > 1}
    figure = Figure(figsize=(4.5 * max(2, len(models)), 6), layout="constrained")
    grid = figure.subplots(2, len(models), sharex="col", squeeze=False)
    for row, part in zip(grid, ("prefill", "decode"), strict=True):
        for axis, (model, (names, clock)) in zip(row, models.items(), strict=True):
            axis.axhline(1, color="black", linewidth=0.8)
            for side, colour in SIDES.items():
                found = points(folder, names, side, f"{part}_{clock}_ratio")
                if not found:
                    continue
                even = break_even(found) if part == "prefill" else None
                label = f"{side}, break-even {even:,.0f}" if even else side
                axis.plot(*zip(*found, strict=True), "o-", color=colour, label=label)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_title(f"{part}, {model}", fontsize=10)
            axis.set_ylabel("time, times plain SDPA's")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    for axis in grid[1]:
        axis.set_xlabel("prompt, tokens")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
