"""The few samples a page shows, chosen without a look at their outcome, with what was kept of each over its time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report.arrays import ArrayStore
from namm_transfer.evals.report.schema import Brief, Report, Run
from namm_transfer.evals.report.verdict import number, percent
from namm_transfer.files import safe_join, safe_name

RECORDED = 12
"""Samples of which an evaluation stores what a page may show of them."""

SAMPLES = 6
"""Samples a page shows, over all tasks."""

RULE = "category by category in turn, by the SHA-256 of their names: the outcome has no say in the choice"

TEXT_LIMIT = 500
"""Characters of an answer that are shown."""

THUMBNAILS = 8
"""Frames of a film that are shown, spread evenly."""

THUMBNAIL_BYTES = 10_000
"""A larger picture is not embedded."""

COLUMNS = 200
"""Most columns of a strip; longer time lines are averaged down to this."""

COLOUR = (0.0, 0.45, 0.78)
"""Colour of a token that is kept; where it is not, the page shows through."""

LEVELS = 4
"""Steps between a token that no head keeps any more and one that all keep."""

KINDS = ("returns", "states", "actions")
"""Order of the tokens of a time step (Decision Transformer)."""


@dataclasses.dataclass
class Strip:
    """One time line."""

    label: str
    """What it is of."""
    image: str
    """Data URI of a PNG, one pixel high; a fully coloured pixel is kept by all layers and heads."""
    alternative: str
    """Its numbers in words, by quarters."""


@dataclasses.dataclass
class Entry:
    """A sample under one policy."""

    record: Brief
    answer: str
    """What the model said, cut to `TEXT_LIMIT`, or the facts of an episode."""
    outcomes: list[str]
    """Words the browser filters by."""
    strips: list[Strip]
    text: list[tuple[int, str]]
    """The prompt in runs of tokens kept alike; empty where its words were not recorded or stand elsewhere."""


@dataclasses.dataclass
class Card:
    """One sample under all policies."""

    id: str
    category: str
    question: str
    expected: str
    thumbnails: list[tuple[str, str]]
    """(what it is, data URI)."""
    entries: list[Entry]


def choose(samples: Iterable[tuple[str, str]], count: int = RECORDED) -> list[str]:
    """Names of `count` samples to show (see `RULE`), out of (name, category) of all; of fewer, the first of these."""
    by_category: dict[str, list[str]] = {}
    for name, category in dict.fromkeys(samples):
        by_category.setdefault(category, []).append(name)
    queues = [
        sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()) for names in by_category.values()
    ]
    return [name for turn in itertools.zip_longest(*queues) for name in turn if name is not None][:count]


def chosen(report: Report, task: str) -> list[str]:
    """Names of the samples of a task that the page shows; `SAMPLES` over all tasks, one of each at least."""
    named = ((record.id, record.category) for record in report.records if record.task == task)
    return choose(named, max(1, SAMPLES // len(report.runs)))


def shown_arrays(report: Report) -> set[str]:
    """SHA-256 of the arrays that the page draws."""
    return {
        digest
        for run in report.runs
        for record in _chosen_records(report, run.task, SAMPLES)
        for digest in record.arrays.values()
    }


def cards(report: Report, run: Run, folder: Path | None, count: int = SAMPLES) -> list[Card]:
    """What the page shows of the first `count` chosen samples of a run.

    Args:
        report: where the records stand.
        run: the task.
        folder: where kept.npz and thumbnails/ lie; None shows answers alone.
        count: how many samples at most.
    """
    records: dict[str, list[Brief]] = {}
    for record in _chosen_records(report, run.task, count):
        records.setdefault(record.id, []).append(record)
    return [_card(found, run, folder) for found in records.values()]


def _chosen_records(report: Report, task: str, count: int) -> list[Brief]:
    """Records of the chosen samples under every policy, sample by sample."""
    order = {name: place for place, name in enumerate(chosen(report, task)[:count])}
    found = [record for record in report.records if record.task == task and record.id in order]
    return sorted(found, key=lambda record: order[record.id])


def _card(records: list[Brief], run: Run, folder: Path | None) -> Card:
    first, reference = records[0], run.baseline.spec if run.baseline else None
    full = next((record for record in records if record.policy == reference), None)
    acting = [record for record in records if not run.policy(record.policy).baseline]
    told = next(
        (record for record in acting if run.policy(record.policy).name == "namm"), acting[0] if acting else None
    )
    details = first.details
    options, right = details.get("options"), details.get("right")
    expected = details.get("right_answer", "")
    if isinstance(options, list) and isinstance(right, int) and 0 <= right < len(options):
        expected = options[right]
    return Card(
        id=first.id,
        category=first.category,
        question=str(details.get("question", ""))[-TEXT_LIMIT:],
        expected=str(expected),
        thumbnails=_pictures(first.id, told, folder) if folder else [],
        entries=[_entry(record, full, folder, record is told) for record in records],
    )


def _entry(record: Brief, full: Brief | None, folder: Path | None, told: bool) -> Entry:
    arrays = _arrays(record, folder)
    words = arrays.keys() >= {"pieces", "tokens"} and told  # one policy is enough: the prompt is long
    return Entry(
        record=record,
        answer=(record.answer or _facts(record))[:TEXT_LIMIT],
        outcomes=_outcomes(record, full),
        strips=strips(arrays),
        text=runs_of_text(arrays["pieces"], arrays["tokens"]) if words else [],
    )


def _outcomes(record: Brief, full: Brief | None) -> list[str]:
    if record.error is not None or record.score is None:
        return ["failed"]
    words = ["not understood"] if record.unparsed else []
    if record.details.keys() & {"right", "exact"}:
        right = record.details.get("exact", record.score > 0)
        words.append("right" if right else "wrong")
    if full is not None and full is not record and full.score is not None and record.score != full.score:
        words.append("better than full" if record.score > full.score else "worse than full")
    return words


def _arrays(record: Brief, folder: Path | None) -> dict[str, np.ndarray]:
    """The arrays of a record that are there; a page without time lines is better than none."""
    found = {}
    for name, digest in record.arrays.items():
        try:
            if folder is not None:
                found[name] = ArrayStore(folder).get(digest)
        except NammTransferError:
            continue
    return found


def thumbnails(folder: Path, sample: str) -> list[Path]:
    """Pictures `thumbnails/SAMPLE/FRAME.jpg` of a sample, evenly spread over those that are there and small."""
    inside = safe_join(folder / "thumbnails", safe_name(sample))
    small = [path for path in inside.glob("*.jpg") if path.stat().st_size <= THUMBNAIL_BYTES and path.stem.isdigit()]
    there = sorted(small, key=lambda path: int(path.stem))
    return [there[i] for i in np.linspace(0, len(there) - 1, min(THUMBNAILS, len(there))).round().astype(int)]


def _pictures(sample: str, told: Brief | None, folder: Path) -> list[tuple[str, str]]:
    """The sample's pictures, each with what the policy kept of that frame."""
    frames = _arrays(told, folder).get("frames") if told else None
    found = []
    for path in thumbnails(folder, sample):
        frame = int(path.stem)
        words = f"frame {frame}"
        if frames is not None and told is not None and frame < frames.shape[2]:
            words += f": {percent(float(frames[:, :, frame].mean()))} kept by {told.policy}"
        found.append((words, _data_uri("jpeg", path.read_bytes())))
    return found


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _facts(record: Brief) -> str:
    """What there is to say of a sample without words: an episode's return, for example."""
    return ", ".join(
        f"{name} {value_text(value)}"
        for name, value in record.details.items()
        if not isinstance(value, list | dict) and name not in ("question", "right_answer")
    )


def value_text(value: Any) -> str:
    """A JSON value for a reader."""
    return value if isinstance(value, str) else number(value) if isinstance(value, float) else json.dumps(value)


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
    no_version: dict[str, Any] = {"Software": None}  # so that every version of matplotlib writes the same bytes
    imsave(buffer, pixels, format="png", metadata=no_version)
    return Strip(
        label=label,
        image=_data_uri("png", buffer.getvalue()),
        alternative=f"{label} kept, from the beginning to the end in {len(parts)} parts: {', '.join(parts)}",
    )


def runs_of_text(pieces: np.ndarray, shares: np.ndarray) -> list[tuple[int, str]]:
    """A text in runs of tokens kept alike: (level from 0, no head keeps it, to `LEVELS`, all do; the words).

    Args:
        pieces: (tokens,) strings.
        shares: (tokens,) share of layers and heads that keep each.
    """
    levels = np.rint(np.asarray(shares) * LEVELS).astype(int)
    found: list[tuple[int, str]] = []
    for level, piece in zip(levels.tolist(), pieces.tolist(), strict=False):
        if found and found[-1][0] == level:
            found[-1] = (level, found[-1][1] + piece)
        else:
            found.append((level, piece))
    return found
