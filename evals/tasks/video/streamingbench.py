"""StreamingBench (Lin et al., 2024, arXiv 2411.03628): questions that are asked while a video is watched.

Its part "real-time visual understanding" alone: 2,500 questions in ten tasks. The other parts need the sound, the
answers to earlier questions, or that the model speaks up by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of

FILE = "questions_real.json"
TASKS = (
    "Object Recognition", "Causal Reasoning", "Clips Summarize", "Attribute Recognition", "Event Understanding",
    "Text-Rich Understanding", "Prospective Reasoning", "Spatial Understanding", "Action Recognition", "Counting",
)  # fmt: skip
SYSTEM = (
    "You are an advanced video question-answering AI assistant. You have been provided with some frames from the video "
    "and a multiple-choice question related to the video. Your task is to carefully analyze the video and provide the "
    "best answer to question, choosing from the four options provided. Respond with only the letter (A, B, C, or D) of "
    "the correct option."
)
ENTRY = {"video_path": str, "questions": list}
FIELDS = {"question": str, "time_stamp": str, "answer": str, "options": list, "task_type": str}


def load_streamingbench(root: Path) -> list[VideoQuestion]:
    """Load the questions of `questions_real.json` with the prompt of the official evaluation.

    Raises:
        NammTransferError: there is no such file, or an entry does not fit.
    """
    file, found = root / FILE, list[VideoQuestion]()
    for at, entry in enumerate(read_json(file, list)):
        where = f"{str(file)!r}, entry {at}"
        expect(entry, ENTRY, where)
        for number, asked in enumerate(entry["questions"]):
            found.append(_question(asked, entry["video_path"], f"{at}/{number}", f"{where}, question {number}", root))
    return found


def _question(asked: Any, video: str, id: str, where: str, root: Path) -> VideoQuestion:
    expect(asked, FIELDS, where)
    check_options(asked["options"], where)
    options = [re.sub(r"^[A-Z]\.\s*", "", option) for option in asked["options"]]
    letters = [chr(ord("A") + number) for number in range(len(options))]
    if asked["answer"] not in letters:
        raise NammTransferError(f"{where}: the answer {asked['answer']!r} is none of {', '.join(letters)}")
    answer = letters.index(asked["answer"])
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return VideoQuestion(
        id=id,
        root=root,
        name=video,
        prompt=f"{SYSTEM}\n\nQuestion: {asked['question']}\n\nOptions:\n{listed}\n\nThe best option is:",
        options=tuple(options),
        answer=answer,
        kind=asked["task_type"],
        duration=None,
        lead="",
        asked_at=seconds(asked["time_stamp"], where),
        flaw=flaw_of(options, answer, where),
    )


def seconds(stamp: str, where: str) -> float:
    """Convert `HH:MM:SS` or `MM:SS` to seconds; raise a `NammTransferError` that begins with `where` if it is none."""
    if not re.fullmatch(r"(\d+:)?\d{1,2}:\d{1,2}", stamp):
        raise NammTransferError(f"{where}: 'time_stamp' is {stamp[:80]!r}; expected HH:MM:SS")
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(stamp.split(":")))))


HEADLINE = {"name": "StreamingBench real-time accuracy", "rule": "mean over samples", "categories": list(TASKS)}
BENCHMARKS = (VideoBenchmark("streamingbench", (FILE,), load_streamingbench, HEADLINE),)
