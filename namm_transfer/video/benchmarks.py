"""Where questions come from: the generated films, MLVU, or a user's own file. All become the same `VideoQuestion`s."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.video import prompts
from namm_transfer.video.generate import cache_folder, generate

MLVU_FILES = (
    "1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning",
)  # fmt: skip
"""Tasks with multiple choice; videos of `json/X.json` lie in `video/X/`."""
MLVU_SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)


@dataclass(frozen=True)
class VideoQuestion:
    """One multiple-choice question about one video file."""

    id: str
    """Unique in its benchmark"""
    video: Path
    prompt: str
    """What the user says, in the benchmark's official form"""
    options: tuple[str, ...]
    answer: int | None
    """Index of the right option; None where the annotations name none of the options, and every answer is wrong"""
    kind: str
    """Question type"""
    duration: float | None
    """Seconds, if the annotations say"""
    lead: str = prompts.LEAD
    """How the answer begins"""

    @property
    def choices(self) -> tuple[str, ...]:
        """Continuations of `lead`, one an option: its letter, or where nothing leads the answer the option itself."""
        return prompts.letters(self.options) if self.lead else tuple(f" {option}" for option in self.options)


def load_generated(films: int, seconds: int, split: str = "test", folder: Path | None = None) -> list[VideoQuestion]:
    """Questions about generated films, which are written on first use (into the cache folder unless one is given).

    The shipped model answers in words and has not learnt to point at letters: it is asked the bare question, and the
    options are compared as answers, each of them one token.
    """
    found = load_json(generate(folder or cache_folder(), split, films, seconds))
    return [replace(question, prompt=question.prompt.splitlines()[0], lead="") for question in found]


def load_json(file: Path, root: Path | None = None) -> list[VideoQuestion]:
    """A user's own benchmark: a JSON list of objects in MLVU's form.

    Each has `video` (path relative to `root`, by default the file's folder), `question`, `candidates` (2 to 26 texts),
    `answer` (one of the candidates, verbatim); `question_type` and `duration` (seconds) may be left out. The prompt
    lists the options and asks for a letter, as instruction-tuned models can answer.

    Raises:
        NammTransferError: no such file, no JSON, or an entry that does not fit; the message says which.
    """
    found = _read(
        file, root or file.parent, file.stem, lambda entry: prompts.question(entry["question"], entry["candidates"])
    )
    for number, question in enumerate(found):
        if question.answer is None:
            raise NammTransferError(f"{str(file)!r}, entry {number}: the answer is none of {question.options!r}")
    return found


def load_mlvu(root: Path) -> list[VideoQuestion]:
    """MLVU's multiple-choice tasks from its folder (with `json/` and `video/` in it), with the official prompt.

    Tasks whose JSON file is not there are left out; a video that is missing fails its own samples alone. The real files
    hold two questions whose answer is none of the options; they stay in and are never answered right.
    """
    found = []
    for name in MLVU_FILES:
        file = root / "json" / f"{name}.json"
        if file.is_file():
            found += _read(file, root / "video" / name, name, _mlvu_prompt)
    if not found:
        raise NammTransferError(
            f"{str(root)!r} holds none of MLVU's files; expected json/{MLVU_FILES[0]}.json and so on"
        )
    return found


def _mlvu_prompt(entry: dict[str, Any]) -> str:
    options = prompts.question("Options:", entry["candidates"])
    return f"{MLVU_SYSTEM}Question: {entry['question']}\n{options}\nOnly give the best option."


def _read(file: Path, root: Path, name: str, prompt: Callable[[dict[str, Any]], str]) -> list[VideoQuestion]:
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise NammTransferError(f"benchmark file {str(file)!r} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise NammTransferError(f"benchmark file {str(file)!r} holds a {type(entries).__name__}; expected a list")
    found = []
    for number, entry in enumerate(entries):
        where = f"{str(file)!r}, entry {number}"
        _check(entry, where)
        found.append(
            VideoQuestion(
                f"{name}/{number}", _inside(root, entry["video"], where), prompt(entry), tuple(entry["candidates"]),
                _right(entry), entry.get("question_type", name), entry.get("duration"),
            )
        )  # fmt: skip
    return found


def _inside(root: Path, video: str, where: str) -> Path:
    """`root / video`; refused if an annotation names a place outside. Links that lie in `root` are its owner's: hub
    downloads consist of them."""
    if PurePath(video).is_absolute() or ".." in PurePath(video).parts:
        raise NammTransferError(f"{where}: video {video!r} leaves its folder {str(root)!r}; expected a path inside it")
    return root / video


def _right(entry: dict[str, Any]) -> int | None:
    """Index of the answer among the candidates: the last one if it is there twice, as MLVU's own evaluation has it."""
    places = [place for place, option in enumerate(entry["candidates"]) if option == entry["answer"]]
    return places[-1] if places else None


def _check(entry: Any, where: str) -> None:
    """Raise unless `entry` has the fields of a question."""
    if not isinstance(entry, dict):
        raise NammTransferError(f"{where} is a {type(entry).__name__}; expected an object")
    for key, kind in (("video", str), ("question", str), ("candidates", list), ("answer", str)):
        if not isinstance(entry.get(key), kind):
            raise NammTransferError(f"{where}: {key!r} is {entry.get(key)!r}; expected a {kind.__name__}")
    options = entry["candidates"]
    if not (2 <= len(options) <= 26 and all(isinstance(option, str) for option in options)):
        raise NammTransferError(f"{where}: 'candidates' is {options!r}; expected 2 to 26 texts")
    if not isinstance(entry.get("question_type", ""), str) or not isinstance(entry.get("duration", 0), int | float):
        raise NammTransferError(f"{where}: expected 'question_type' as text and 'duration' as a number")
