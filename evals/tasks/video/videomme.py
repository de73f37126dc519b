"""Video-MME (Fu et al., 2024): four options about short, medium and long videos; accuracy without subtitles."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of

FILE = "videomme/test-00000-of-00001.parquet"
FIELDS = {
    "question_id": str, "videoID": str, "duration": str, "domain": str, "task_type": str, "question": str,
    "options": list, "answer": str,
}  # fmt: skip
"""Columns -> their types. `duration` is short, medium or long; an option begins with its letter: "A. ..."."""
LENGTHS = ("short", "medium", "long")
ASK = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)


def load_videomme(root: Path) -> list[VideoQuestion]:
    """Load the questions of the hub's folder, with the official prompt; videos are `data/VIDEO_ID.mp4`.

    Raises:
        NammTransferError: the table is missing or damaged, pyarrow is not installed, or a row does not fit.
    """
    return [_question(root, row, f"{str(root / FILE)!r}, entry {at}") for at, row in enumerate(_rows(root / FILE))]


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise NammTransferError(f"{str(file)!r}: reading it needs pyarrow; pip install pyarrow") from error
    try:
        return parquet.ParquetFile(file).read().to_pylist()
    except Exception as error:  # pyarrow has errors of its own beside OSError and ValueError
        raise NammTransferError(f"benchmark file {str(file)!r} cannot be read: {error}") from error


def _question(root: Path, row: dict[str, Any], where: str) -> VideoQuestion:
    expect(row, FIELDS, where)
    check_options(row["options"], where)
    letters = [option.strip()[:1] for option in row["options"]]
    if letters != list("ABCD") or row["answer"] not in letters or row["duration"] not in LENGTHS:
        raise NammTransferError(
            f"{where}: options {letters}, answer {row['answer']!r}, duration {row['duration']!r}; "
            f"expected A to D, one of these, and {', '.join(LENGTHS)}"
        )
    options, answer = tuple(option.strip()[2:].strip() for option in row["options"]), letters.index(row["answer"])
    return VideoQuestion(
        id=row["question_id"],
        root=root / "data",
        name=f"{row['videoID']}.mp4",
        prompt="\n".join((ASK, row["question"], *row["options"], "The best answer is:")),
        options=options,
        answer=answer,
        kind=row["task_type"],
        duration=None,
        lead="",
        groups=(row["duration"], row["domain"]),
        flaw=flaw_of(options, answer, where),
    )


HEADLINE = {"name": "accuracy, without subtitles", "rule": "mean over samples", "categories": list(LENGTHS)}
BENCHMARKS = (VideoBenchmark("videomme", (FILE,), load_videomme, HEADLINE),)
