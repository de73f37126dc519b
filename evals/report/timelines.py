"""What was kept of a sample over its time, as strips of pixels: frames of a film, time steps by kind, text by token."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import numpy as np
from matplotlib.image import imsave

from namm_transfer.evals.report.verdict import percent

COLUMNS = 200
"""Most columns of a strip; longer time lines are averaged down to this."""

COLOUR = (0.0, 0.45, 0.78)
"""Of what is kept; what is not shows the page behind it."""

LEVELS = 4
"""Steps between a token that no head holds any more and one that all hold."""

NO_SOFTWARE: dict[str, Any] = {"Software": None}
"""Keeps matplotlib's version out of the picture: the same numbers give the same bytes."""

KINDS = ("returns", "states", "actions")
"""Order of the tokens of a time step (Decision Transformer)."""


@dataclasses.dataclass
class Strip:
    """One time line."""

    label: str
    """What it is of."""
    image: str
    """Data URI of a PNG, one pixel high; a fully coloured pixel was held by all layers and heads."""
    alternative: str
    """Its numbers in words, by quarters."""


def strips(arrays: dict[str, np.ndarray]) -> list[Strip]:
    """The time lines in a sample's arrays.

    Args:
        arrays: shares in [0, 1] by name: `frames` (layers, KV heads, frames), `kept` (layers, steps, 3),
            `tokens` (tokens,); others are left alone.
    """
    found = []
    if "frames" in arrays:
        found.append(("frames", arrays["frames"].mean((0, 1))))
    if "kept" in arrays and arrays["kept"].ndim == 3 and arrays["kept"].shape[2] == len(KINDS):
        found += list(zip(KINDS, arrays["kept"].mean(0).T, strict=True))
    if "tokens" in arrays:
        found.append(("tokens", arrays["tokens"]))
    return [_strip(label, np.clip(shares, 0, 1)) for label, shares in found if len(shares)]


def _strip(label: str, shares: np.ndarray) -> Strip:
    parts = [percent(float(part.mean())) for part in np.array_split(shares, min(4, len(shares)))]
    columns = np.array([part.mean() for part in np.array_split(shares, min(COLUMNS, len(shares)))])
    pixels = np.empty((1, len(columns), 4))
    pixels[..., :3], pixels[..., 3] = COLOUR, columns
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata=NO_SOFTWARE)
    return Strip(
        label=label,
        image="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        alternative=f"{label} kept, from the beginning to the end in {len(parts)} parts: {', '.join(parts)}",
    )


def runs(pieces: np.ndarray, shares: np.ndarray) -> list[tuple[int, str]]:
    """A text in runs of tokens that were held alike: (level from 0, nobody holds it, to `LEVELS`, all do; the words).

    Args:
        pieces: (tokens,) strings.
        shares: (tokens,) share of layers and heads that hold each.
    """
    levels = np.rint(np.asarray(shares) * LEVELS).astype(int)
    found: list[tuple[int, str]] = []
    for level, piece in zip(levels.tolist(), pieces.tolist(), strict=False):
        if found and found[-1][0] == level:
            found[-1] = (level, found[-1][1] + piece)
        else:
            found.append((level, piece))
    return found
