"""The few samples that a page shows, chosen independently of their outcome, with time lines of the tokens kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.image import imsave

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report.html import data_uri
from namm_transfer.evals.report.records import ArrayStore
from namm_transfer.evals.report.schema import Brief, Report, Run
from namm_transfer.evals.report.verdict import number, percent
from namm_transfer.files import safe_join, safe_name

Item = TypeVar("Item")

RECORDED = 12
"""Number of samples whose arrays and thumbnails an evaluation stores."""

SAMPLES = 6
"""Number of samples a page shows, over all tasks."""

RULE = "category by category in turn, by the SHA-256 of their names: the outcome has no say in the choice"

TEXT_LIMIT = 500
"""Most characters shown of a question or an answer."""

THUMBNAILS = 8
"""Most frames shown of a video, evenly spaced."""

THUMBNAIL_BYTES = 10_000
"""Largest thumbnail that is embedded in the page, in bytes."""

COLUMNS = 200
"""Most pixels of a time line; longer ones are averaged down to this."""

COLOUR = (0.0, 0.45, 0.78)
"""Colour (RGB) of a kept token; its opacity is the share of heads that keep it."""

LEVELS = 4
"""Level of a token that every head keeps; 0 is one that no head keeps."""

KINDS = ("returns", "states", "actions")
"""Token types of a Decision Transformer's time step, in order."""


@dataclasses.dataclass
class Strip:
    """A time line of the tokens kept in one sample."""

    label: str
    """Kind of token: frames, tokens, returns, states or actions."""
    image: str
    """Data URI of a PNG, one pixel high; an opaque pixel is kept by all layers and heads."""
    alternative: str
    """Text alternative: the mean share kept in each quarter."""


@dataclasses.dataclass
class Entry:
    """One sample under one policy, as the page shows it."""

    record: Brief
    answer: str
    """The model's answer, cut to `TEXT_LIMIT`, or the numbers of an episode."""
    outcomes: list[str]
    """Labels by which the page can filter, such as "wrong"."""
    strips: list[Strip]
    text: list[tuple[int, str]]
    """(level, text) of the prompt, see `runs_of_text`; empty if it was not recorded or another entry shows it."""


@dataclasses.dataclass
class Card:
    """One sample under all policies, as the page shows it."""

    id: str
    category: str
    question: str
    expected: str
    thumbnails: list[tuple[str, str]]
    """(description, data URI) of each picture."""
    entries: list[Entry]


def choose(samples: Iterable[tuple[str, str]], count: int = RECORDED) -> list[str]:
    """Choose the ids of up to `count` samples to show by `RULE`; a smaller count gives a prefix of the same list.

    Args:
        samples: (id, category) of every sample.
        count: how many to choose.
    """
    by_category: dict[str, list[str]] = {}
    for name, category in dict.fromkeys(samples):
        by_category.setdefault(category, []).append(name)
    queues = [
        sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()) for names in by_category.values()
    ]
    return in_turns(queues)[:count]


def in_turns(lists: Iterable[Iterable[Item]]) -> list[Item]:
    """Take the first of each list, the second of each, and so on."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return [item for item in turns if item is not None]


def chosen(report: Report, task: str) -> list[str]:
    """Choose the ids of a task's samples that the page shows: `SAMPLES` over all tasks, and one per task at least."""
    named = ((record.id, record.category) for record in report.records if record.task == task)
    return choose(named, max(1, SAMPLES // len(report.runs)))


def shown_arrays(report: Report) -> set[str]:
    """List the SHA-256 of the arrays that the page needs."""
    return {
        digest
        for run in report.runs
        for record in _chosen_records(report, run.task, SAMPLES)
        for digest in record.arrays.values()
    }


def cards(report: Report, run: Run, folder: Path | None, count: int = SAMPLES) -> list[Card]:
    """Make the cards of the first `count` chosen samples of a run.

    Args:
        report: the report that has the records.
        run: the run of the task.
        folder: folder of kept.npz and thumbnails/; None shows answers only.
        count: maximum number of samples.
    """
    records: dict[str, list[Brief]] = {}
    for record in _chosen_records(report, run.task, count):
        records.setdefault(record.id, []).append(record)
    return [_card(found, run, folder) for found in records.values()]


def _chosen_records(report: Report, task: str, count: int) -> list[Brief]:
    """List the records of the chosen samples under every policy, sample by sample."""
    order = {name: place for place, name in enumerate(chosen(report, task)[:count])}
    found = [record for record in report.records if record.task == task and record.id in order]
    return sorted(found, key=lambda record: order[record.id])


def _card(records: list[Brief], run: Run, folder: Path | None) -> Card:
    first, reference = records[0], run.baseline.spec if run.baseline else None
    full = next((record for record in records if record.policy == reference), None)
    acting = [record for record in records if not run.policy(record.policy).baseline]
    featured = next(
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
        thumbnails=_pictures(first.id, featured, folder) if folder else [],
        entries=[_entry(record, full, folder, record is featured) for record in records],
    )


def _entry(record: Brief, full: Brief | None, folder: Path | None, featured: bool) -> Entry:
    arrays = _arrays(record, folder)
    words = arrays.keys() >= {"pieces", "tokens"} and featured  # prompts are long, so only one entry shows it
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
    """Load the arrays of a record, without missing or damaged ones: a page without time lines is still useful."""
    found = {}
    for name, digest in record.arrays.items():
        try:
            if folder is not None:
                found[name] = ArrayStore(folder).get(digest)
        except NammTransferError:
            continue
    return found


def thumbnails(folder: Path, sample: str) -> list[Path]:
    """Choose thumbnails `thumbnails/SAMPLE/FRAME.jpg`, evenly spaced among those of at most `THUMBNAIL_BYTES`."""
    inside = safe_join(folder / "thumbnails", safe_name(sample))
    small = [path for path in inside.glob("*.jpg") if path.stat().st_size <= THUMBNAIL_BYTES and path.stem.isdigit()]
    there = sorted(small, key=lambda path: int(path.stem))
    return [there[i] for i in np.linspace(0, len(there) - 1, min(THUMBNAILS, len(there))).round().astype(int)]


def _pictures(sample: str, featured: Brief | None, folder: Path) -> list[tuple[str, str]]:
    """Read the sample's thumbnails, each with the share of that frame which the policy kept."""
    frames = _arrays(featured, folder).get("frames") if featured else None
    found = []
    for path in thumbnails(folder, sample):
        frame = int(path.stem)
        words = f"frame {frame}"
        if frames is not None and featured is not None and frame < frames.shape[2]:
            words += f": {percent(float(frames[:, :, frame].mean()))} kept by {featured.policy}"
        found.append((words, data_uri("jpeg", path.read_bytes())))
    return found


def _facts(record: Brief) -> str:
    """List the recorded details of a sample without a text answer, such as an episode's return."""
    return ", ".join(
        f"{name} {value_text(value)}"
        for name, value in record.details.items()
        if not isinstance(value, list | dict) and name not in ("question", "right_answer")
    )


def value_text(value: Any) -> str:
    """Format a JSON value for display."""
    return value if isinstance(value, str) else number(value) if isinstance(value, float) else json.dumps(value)


def strips(arrays: dict[str, np.ndarray]) -> list[Strip]:
    """Draw the time lines of a sample's arrays.

    Args:
        arrays: shares in [0, 1] by name: `frames` (layers, KV heads, frames), `kept` (layers, steps, 3),
            `tokens` (tokens,); others are ignored.
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
        image=data_uri("png", buffer.getvalue()),
        alternative=f"{label} kept, from the beginning to the end in {len(parts)} parts: {', '.join(parts)}",
    )


def runs_of_text(pieces: np.ndarray, shares: np.ndarray) -> list[tuple[int, str]]:
    """Group a text into runs of tokens that equally many heads keep: (level from 0 to `LEVELS`, text).

    Args:
        pieces: (tokens,) strings.
        shares: (tokens,) share of layers and heads that keep each token.
    """
    levels = np.rint(np.asarray(shares) * LEVELS).astype(int)
    found: list[tuple[int, str]] = []
    for level, piece in zip(levels.tolist(), pieces.tolist(), strict=False):
        if found and found[-1][0] == level:
            found[-1] = (level, found[-1][1] + piece)
        else:
            found.append((level, piece))
    return found
