"""Where questions come from: the generated films, MLVU, or a user's own file. All become the same `VideoQuestion`s.

LongVideoBench has a file of its own, `longvideobench.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.adapters.video.subtitles import SubtitleFile
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video.generate import cache_folder, generate
from namm_transfer.files import safe_join

MLVU_FILES = (
    "1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning",
)  # fmt: skip
"""Tasks with multiple choice; videos of `json/X.json` lie in `video/X/`."""
FIELDS = {"video": str, "question": str, "candidates": list, "answer": str}
OPTIONAL = {"question_type": str, "duration": float}
"""Fields of a question -> their types."""
MLVU_SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)


@dataclass(frozen=True)
class VideoQuestion:
    """One multiple-choice question about one video file."""

    id: str
    """Unique in its benchmark"""
    root: Path
    """Folder its video must lie in"""
    name: str
    """The video's path in there, as the annotations have it"""
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
    by_letter: bool = True
    """The answer is an option's letter; else it is the option itself"""
    groups: tuple[str, ...] = ()
    """What else its score is averaged by: a duration group, a topic"""
    frames: int | None = None
    """Frames to sample at most"""
    sampling: Literal["uniform", "mlvu", "longvideobench"] = "uniform"
    """The rule that chooses the frames, see `adapters/video/sampling.py`"""
    subtitles: SubtitleFile | None = None
    """What is said in the video"""

    @property
    def video(self) -> Path:
        """Where the video lies; `VideoError` if the annotations name a place outside `root`."""
        try:
            return safe_join(self.root, self.name)
        except NammTransferError as error:
            raise VideoError(f"video {error}") from None

    @property
    def choices(self) -> tuple[str, ...]:
        """Continuations of `lead`, one an option: its letter, or the option itself."""
        words = prompts.letters(self.options) if self.by_letter else self.options
        return words if self.lead else tuple(f" {word}" for word in words)


def load_generated(films: int, seconds: int, split: str = "test", folder: Path | None = None) -> list[VideoQuestion]:
    """Questions about generated films, which are written on first use (into the cache folder unless one is given).

    The shipped model answers in words and has not learnt to point at letters: it is asked the bare question, and the
    options are compared as answers, each of them one token.
    """
    found = load_json(generate(folder or cache_folder(), split, films, seconds))
    return [replace(question, prompt=question.prompt.splitlines()[0], lead="", by_letter=False) for question in found]


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

    Tasks whose JSON file is not there are left out; a video that is missing, unreadable or outside `video/TASK` fails
    its own samples alone. The real files hold two questions whose answer is none of the options; they stay in and are
    never answered right.
    """
    found = []
    for name in MLVU_FILES:
        file = root / "json" / f"{name}.json"
        if file.is_file():
            read = _read(file, root / "video" / name, name, _mlvu_prompt)
            found += [replace(question, sampling="mlvu") for question in read]
    if not found:
        raise NammTransferError(
            f"{str(root)!r} holds none of MLVU's files; expected json/{MLVU_FILES[0]}.json and so on"
        )
    return found


def _mlvu_prompt(entry: dict[str, Any]) -> str:
    options = prompts.question("Options:", entry["candidates"])
    return f"{MLVU_SYSTEM}Question: {entry['question']}\n{options}\nOnly give the best option."


def read_entries(file: Path) -> list[Any]:
    """The list in a JSON file of annotations; `NammTransferError` if there is none."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NammTransferError(f"benchmark file {str(file)!r} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise NammTransferError(f"benchmark file {str(file)!r} holds a {type(entries).__name__}; expected a list")
    return entries


def expect(entry: Any, fields: dict[str, type], where: str) -> None:
    """Raise unless `entry` is an object with these fields, of these types, and 2 to 26 texts as candidates."""
    if not isinstance(entry, dict):
        raise NammTransferError(f"{where} is a {type(entry).__name__}; expected an object")
    for key, kind in fields.items():
        value = entry.get(key)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise NammTransferError(f"{where}: {key!r} is {value!r}; expected a {kind.__name__}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise NammTransferError(f"{where}: {key!r} is {value!r}; expected seconds")
    options = entry["candidates"]
    if not (2 <= len(options) <= 26 and all(isinstance(option, str) for option in options)):
        raise NammTransferError(f"{where}: 'candidates' is {options!r}; expected 2 to 26 texts")


def _read(file: Path, root: Path, name: str, prompt: Callable[[dict[str, Any]], str]) -> list[VideoQuestion]:
    found = []
    for number, entry in enumerate(read_entries(file)):
        where = f"{str(file)!r}, entry {number}"
        expect(entry, FIELDS | {key: kind for key, kind in OPTIONAL.items() if key in entry}, where)
        found.append(
            VideoQuestion(
                f"{name}/{number}", root, entry["video"], prompt(entry), tuple(entry["candidates"]),
                _right(entry), entry.get("question_type", name), entry.get("duration"),
            )
        )  # fmt: skip
    return found


def _right(entry: dict[str, Any]) -> int | None:
    """Index of the answer among the candidates: the last one if it is there twice, as MLVU's own evaluation has it."""
    places = [place for place, option in enumerate(entry["candidates"]) if option == entry["answer"]]
    return places[-1] if places else None
