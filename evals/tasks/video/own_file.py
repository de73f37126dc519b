"""Questions of the user's own, in a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.clip import Span, check_span
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.questions import VideoQuestion, check_options, indistinct
from namm_transfer.evals.tasks.video.streaming import age_group

FIELDS = {"video": str, "question": str, "candidates": list, "answer": str}
OPTIONAL = {
    "id": str, "question_type": str, "duration": float, "start": float, "end": float, "frame_rate": float,
    "frame_times": list, "asked_at": float, "seen_at": float,
}  # fmt: skip
"""Fields of a question -> their types."""


def load_json(file: Path, root: Path | None = None) -> list[VideoQuestion]:
    """Load questions from a JSON list of objects in MLVU's form.

    Each has `video` (path relative to `root`, by default the file's folder), `question`, `candidates` (2 to 26 texts
    that differ) and `answer` (one of the candidates, verbatim). May be left out: `id`, `question_type`, `duration`
    (seconds), `start` and `end` (seconds) of the part to show, for a folder of frames `frame_rate` (frames a second, 1
    by default) or `frame_times` (seconds of each), `asked_at` (when the question is asked) and `seen_at` (when its
    answer was last shown; both in seconds). Further fields are kept for the record. The prompt lists the options and
    asks for a letter, as instruction-tuned models can answer.

    Raises:
        NammTransferError: no such file, no JSON, or an entry that does not fit; the message says which.
    """
    entries = read_json(file, list)
    found = [
        _question(entry, f"{str(file)!r}, entry {at}", f"{file.stem}/{at}", file, root)
        for at, entry in enumerate(entries)
    ]
    seen: dict[str, int] = {}
    for at, question in enumerate(found):
        if question.id in seen:
            raise NammTransferError(
                f"{str(file)!r}, entries {seen[question.id]} and {at} have the same id {question.id!r}"
            )
        seen[question.id] = at
    return found


def _question(entry: Any, where: str, id: str, file: Path, root: Path | None) -> VideoQuestion:
    expect(entry, FIELDS, where)
    expect(entry, {key: kind for key, kind in OPTIONAL.items() if key in entry}, where)
    options = entry["candidates"]
    check_options(options, where)
    if (same := indistinct(options)) is not None:
        raise NammTransferError(
            f"{where}: options {same[0]} and {same[1]} of {options!r} are the same; expected them to differ"
        )
    if entry["answer"] not in options:
        raise NammTransferError(f"{where}: the answer {entry['answer']!r} is none of {options!r}")
    asked_at, seen_at = entry.get("asked_at"), entry.get("seen_at")
    if seen_at is not None and (asked_at is None or seen_at > asked_at):
        raise NammTransferError(f"{where}: 'seen_at' is {seen_at} and 'asked_at' {asked_at}; expected a later time")
    return VideoQuestion(
        id=entry.get("id", id),
        root=root or file.parent,
        name=entry["video"],
        prompt=prompts.question(entry["question"], options),
        options=tuple(options),
        answer=options.index(entry["answer"]),
        kind=entry.get("question_type", file.stem),
        duration=entry.get("duration"),
        asked_at=asked_at,
        groups=() if seen_at is None else (age_group(asked_at - seen_at),),
        extra={key: value for key, value in entry.items() if key not in FIELDS and key not in OPTIONAL},
        span=_span(entry, where),
        frame_times=_frame_times(entry, where),
    )


def _span(entry: Any, where: str) -> Span | None:
    try:
        return check_span(entry.get("start"), entry.get("end"))
    except NammTransferError as error:
        raise NammTransferError(f"{where}: {error}") from None


def _frame_times(entry: Any, where: str) -> float | tuple[float, ...]:
    if {"frame_rate", "frame_times"} <= entry.keys():
        raise NammTransferError(f"{where}: 'frame_rate' and 'frame_times'; expected one of them")
    for time in entry.get("frame_times", ()):
        expect({"frame_times": time}, {"frame_times": float}, where)
    return tuple(entry["frame_times"]) if "frame_times" in entry else entry.get("frame_rate", 1.0)
