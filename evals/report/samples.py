"""The few samples a page shows, chosen without a look at their outcome, with what was kept of each."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import timelines
from namm_transfer.evals.report.arrays import ArrayStore
from namm_transfer.evals.report.schema import Brief, Report
from namm_transfer.evals.report.verdict import number, percent
from namm_transfer.files import safe_join, safe_name

SAMPLES = 12
"""Samples a page shows, over all tasks."""

RULE = "category by category in turn, by the SHA-256 of their names: the outcome has no say in the choice"

TEXT_LIMIT = 500
"""Characters of an answer that are shown."""

THUMBNAILS = 16
"""Frames of a film that are shown, spread evenly."""

THUMBNAIL_BYTES = 10_000
"""A larger picture is not embedded."""


@dataclasses.dataclass
class Entry:
    """A sample under one policy."""

    record: Brief
    answer: str
    """What the model said, cut to `TEXT_LIMIT`, or the facts of an episode."""
    outcomes: list[str]
    """Words the browser filters by."""
    strips: list[timelines.Strip]
    text: list[tuple[int, str]]
    """The prompt in runs of tokens held alike; empty where its words were not recorded."""


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


def choose(samples: Iterable[tuple[str, str]], count: int = SAMPLES) -> list[str]:
    """Names of `count` samples to show (see `RULE`), out of (name, category) of all; of fewer, the first of these."""
    by_category: dict[str, list[str]] = {}
    for name, category in dict.fromkeys(samples):
        by_category.setdefault(category, []).append(name)
    queues = [
        sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()) for names in by_category.values()
    ]
    return [name for turn in itertools.zip_longest(*queues) for name in turn if name is not None][:count]


def chosen(report: Report, task: str) -> list[str]:
    """Names of the samples of a task that the page shows; twelve over all tasks."""
    named = ((record.id, record.category) for record in report.records if record.task == task)
    return choose(named, max(1, SAMPLES // len(report.runs)))


def cards(report: Report, task: str, folder: Path | None, count: int = SAMPLES) -> list[Card]:
    """What the page shows of the first `count` chosen samples.

    Args:
        folder: where kept.npz and thumbnails/ lie; None shows answers alone.
    """
    names = chosen(report, task)[:count]
    records: dict[str, list[Brief]] = {name: [] for name in names}
    for record in report.records:
        if record.task == task and record.id in records:
            records[record.id].append(record)
    return [_card(found, folder) for found in records.values()]


def _card(records: list[Brief], folder: Path | None) -> Card:
    first, full = records[0], next((record for record in records if record.policy == "full"), None)
    details = first.details
    options, right = details.get("options"), details.get("right")
    listed = isinstance(options, list) and isinstance(right, int) and 0 <= right < len(options)
    return Card(
        id=first.id,
        category=first.category,
        question=str(details.get("question", ""))[-TEXT_LIMIT:],
        expected=str(options[right] if listed else details.get("right_answer", "")),  # type: ignore[index]
        thumbnails=_pictures(records, folder) if folder else [],
        entries=[_entry(record, full, folder) for record in records],
    )


def _entry(record: Brief, full: Brief | None, folder: Path | None) -> Entry:
    arrays = _arrays(record, folder)
    told = arrays.get("pieces")
    shares = arrays.get("tokens")
    return Entry(
        record=record,
        answer=(record.answer or _facts(record))[:TEXT_LIMIT],
        outcomes=_outcomes(record, full),
        strips=timelines.strips(arrays),
        text=timelines.runs(told, shares)
        if told is not None and shares is not None and record.policy != "full"
        else [],
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
    for name, digest in record.arrays.items() if folder else ():
        try:
            found[name] = ArrayStore(folder).get(digest)  # type: ignore[arg-type]
        except NammTransferError:
            continue
    return found


def thumbnails(folder: Path, sample: str) -> list[Path]:
    """Pictures `thumbnails/SAMPLE/FRAME.jpg` of a sample, evenly spread over those that are there and small."""
    inside = safe_join(folder / "thumbnails", safe_name(sample))
    small = [path for path in inside.glob("*.jpg") if path.stat().st_size <= THUMBNAIL_BYTES and path.stem.isdigit()]
    there = sorted(small, key=lambda path: int(path.stem))
    return [there[i] for i in np.linspace(0, len(there) - 1, min(THUMBNAILS, len(there))).round().astype(int)]


def _pictures(records: list[Brief], folder: Path) -> list[tuple[str, str]]:
    """The sample's pictures, each with what the first NAMM kept of that frame."""
    namm = next((record for record in records if record.policy.partition(":")[0] == "namm"), None)
    frames = _arrays(namm, folder).get("frames") if namm else None
    found = []
    for path in thumbnails(folder, records[0].id):
        number = int(path.stem)
        words = f"frame {number}"
        if frames is not None and namm is not None and number < frames.shape[2]:
            words += f": {percent(float(frames[:, :, number].mean()))} kept by {namm.policy}"
        found.append((words, "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()))
    return found


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
