"""MLVU (Zhou et al., 2024): seven tasks of multiple choice about long videos, reported as M-Avg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from namm_transfer.adapters.video import prompts
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of

FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Task -> X, where its questions are in `json/X.json` and its videos in `video/X/`."""
FILE_OF = {task: f"json/{name}.json" for task, name in FILES.items()}
FIELDS = {"video": str, "question": str, "candidates": list, "answer": str}
"""Fields of a question -> their types."""
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)


def load_mlvu(root: Path) -> list[VideoQuestion]:
    """Load the questions of the tasks whose file is in MLVU's folder, with the prompt of its official evaluation.

    A video that is missing fails its own samples alone. The official files hold two questions whose answer is none of
    the options; they stay in and are never answered right.

    Raises:
        NammTransferError: none of the files is there, or an entry does not fit.
    """
    found = []
    for task, name in FILES.items():
        file = root / "json" / f"{name}.json"
        if file.is_file():
            found += [_question(entry, task, name, at, root) for at, entry in enumerate(read_json(file, list))]
    if not found:
        raise NammTransferError(f"{str(root)!r} holds none of MLVU's files; expected {FILE_OF['plotQA']} and so on")
    return found


def _question(entry: Any, task: str, name: str, at: int, root: Path) -> VideoQuestion:
    where = f"{str(root / FILE_OF[task])!r}, entry {at}"
    expect(entry, FIELDS | ({"duration": float} if "duration" in entry else {}), where)
    options = entry["candidates"]
    check_options(options, where)
    listed = prompts.question("Options:", options)
    # Of an answer that is there twice the last one, as in the official evaluation.
    places = [place for place, option in enumerate(options) if option == entry["answer"]]
    answer = places[-1] if places else None
    return VideoQuestion(
        id=f"{name}/{at}",
        root=root / "video" / name,
        name=entry["video"],
        prompt=f"{SYSTEM}Question: {entry['question']}\n{listed}\nOnly give the best option.",
        options=tuple(options),
        answer=answer,
        kind=task,
        duration=entry.get("duration"),
        sampling="mlvu",
        flaw=flaw_of(options, answer, where),
    )


HEADLINE = {"name": "M-Avg", "rule": "mean over categories", "categories": list(FILES)}
BENCHMARKS = (VideoBenchmark("mlvu", ("json",), load_mlvu, HEADLINE, FILE_OF),)
