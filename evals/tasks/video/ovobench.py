"""OVO-Bench (Li et al., 2025, arXiv 2501.05510): questions that are asked while a video is watched.

Its two parts of multiple choice: backward tracing (what was shown earlier) and real-time perception (what is shown).
The third one, forward responding, asks for numbers and for whether to wait, and is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from namm_transfer.adapters.video import prompts
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of

FILE = "ovo_bench_new.json"
PARTS = {
    "backward tracing": ("EPM", "ASI", "HLD"),
    "real-time perception": ("STU", "OJR", "ATR", "ACR", "OCR", "FPD"),
    "forward responding": ("REC", "SSR", "CRR"),
}
PART_OF = {task: part for part, tasks in PARTS.items() for task in tasks}
FIELDS = {"id": int, "video": str, "question": str, "options": list, "gt": int, "realtime": float}


def load_ovobench(root: Path) -> list[VideoQuestion]:
    """Load the questions of `ovo_bench_new.json` that are multiple choice.

    Raises:
        NammTransferError: there is no such file, or an entry does not fit.
    """
    file = root / FILE
    found = [_question(entry, f"{str(file)!r}, entry {at}", root) for at, entry in enumerate(read_json(file, list))]
    return [question for question in found if question is not None]


def _question(entry: Any, where: str, root: Path) -> VideoQuestion | None:
    expect(entry, {"task": str}, where)
    if (task := entry["task"]) not in PART_OF:
        raise NammTransferError(f"{where}: 'task' is {task[:80]!r}; expected one of {', '.join(PART_OF)}")
    if PART_OF[task] == "forward responding":
        return None
    expect(entry, FIELDS, where)
    options, answer = entry["options"], entry["gt"]
    check_options(options, where)
    if answer >= len(options):
        raise NammTransferError(
            f"{where}: 'gt' is {answer}; expected the number of one of {len(options)} options, from 0"
        )
    listed = "; ".join(f"{letter}. {option}" for letter, option in zip(prompts.letters(options), options, strict=True))
    return VideoQuestion(
        id=str(entry["id"]),
        root=root,
        name=entry["video"],
        prompt=(
            f"Question: {entry['question']}\nOptions:\n{listed};\nRespond only with the letter corresponding to your "
            "chosen option (e.g., A, B, C).\nDo not include any additional text or explanation in your response."
        ),
        options=tuple(options),
        answer=answer,
        kind=task,
        duration=None,
        lead="",
        groups=(PART_OF[task],),
        asked_at=float(entry["realtime"]),
        flaw=flaw_of(options, answer, where),
    )


CATEGORIES = [task for task, part in PART_OF.items() if part != "forward responding"]
HEADLINE = {"name": "OVO-Bench, backward and real-time", "rule": "mean over categories", "categories": CATEGORIES}
BENCHMARKS = (VideoBenchmark("ovobench", (FILE,), load_ovobench, HEADLINE),)
