"""A page that plays what a cache kept of one prompt: frames or words, dimmed by what is left after each update."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from namm_transfer.cache.history import KeptHistory
from namm_transfer.evals.report.html import sealed, template

MOST_STEPS = 200
"""Most updates that a page shows; of more, evenly spaced ones."""
MOST_SHARES = 4_000_000
"""Most bytes of the shares of frames in a page, by which the number of steps is limited too."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of the video as the page shows it."""

    picture: str
    """Data URI of a small JPEG."""
    seconds: float
    """Time at which the frame is shown in the video."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """One question, its answer, and what the cache kept of the prompt while it was read."""

    title: str
    question: str
    answer: str
    kept: str
    """Share of the cache that was kept when the answer began."""
    facts: list[tuple[str, str]]
    """(name, value) pairs: model, policy, files."""
    history: KeptHistory
    unit_of: np.ndarray
    """(tokens,) int64: the frame or piece that a token belongs to; -1 for none, which only frames may have."""
    pieces: list[str] = dataclasses.field(default_factory=list)
    """The prompt's text in pieces; empty if frames are shown."""
    frames: list[Frame] = dataclasses.field(default_factory=list)
    """The video's frames; empty if a text is shown."""
    shares_of: np.ndarray | None = None
    """(frames,) int64: the frame whose tokens each frame shares; by default its own."""
    note: str = ""
    """A warning at the top of the page."""


def clock(times: Sequence[float]) -> list[str]:
    """Write times in seconds as minutes and seconds, with tenths if one of them has some: 1:02.5."""
    tenths = [round(10 * seconds) for seconds in times]
    digits = any(tenth % 10 for tenth in tenths)
    return [f"{at // 600}:{at // 10 % 60:02d}" + f".{at % 10}" * digits for at in tenths]


def as_html(shown: Kept) -> str:
    """Render one HTML page that makes no requests, with everything that the user or the model wrote escaped."""
    layers, heads, _ = shown.history.last.shape
    units = len(shown.frames) or len(shown.pieces)
    most = min(MOST_STEPS, max(2, MOST_SHARES // (layers * heads * units)) if shown.frames else MOST_STEPS)
    history = shown.history.thinned(most)
    owner = np.arange(units) if shown.shares_of is None else shown.shares_of
    starts = [int(np.argmax(shown.unit_of == unit)) for unit in range(units)]
    data: dict[str, Any] = {
        "layers": layers,
        "heads": heads,
        "seen": history.seen.tolist(),
        "updates": history.updates.tolist(),
        "held": _base64(history.counts().astype("<u4")),
        "unit": [] if shown.frames else shown.unit_of.tolist(),
        "first": [starts[unit] for unit in owner.tolist()],
    }
    if shown.frames:
        shares = history.shares(shown.unit_of, units)[..., owner]
        data["shares"] = _base64(np.rint(255 * shares).astype(np.uint8))
        final = shares[-1].mean((0, 1))
    else:
        data["last"] = _base64(history.last.astype(np.uint8))
        sizes = np.bincount(shown.unit_of, minlength=units)
        final = np.bincount(shown.unit_of, history.held(-1 + len(history.seen)).mean((0, 1)), units) / sizes
    page = template("kept.html").render(
        shown=shown,
        times=clock([frame.seconds for frame in shown.frames]),
        data=data,
        final=final.tolist(),
        layers=layers,
        heads=heads,
        steps=len(history.seen),
    )
    return sealed(page)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
