"""LongVideoBench (Wu et al., 2024): questions about films of up to an hour, with their subtitles between the frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from namm_transfer.adapters.video.prompts import letters
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.archive import unpack
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of
from namm_transfer.evals.tasks.video.subtitle_files import SubtitleFile

FILE = "lvb_val.json"
FIELDS = {
    "id": str, "question": str, "candidates": list, "correct_choice": int, "video_path": str, "subtitle_path": str,
    "duration": float, "duration_group": int, "question_category": str, "topic_category": str,
    "starting_timestamp_for_subtitles": float,
}  # fmt: skip
"""Fields of a question -> their types."""


def load_longvideobench(root: Path) -> list[VideoQuestion]:
    """Load the validation questions from LongVideoBench's downloaded folder, with the official prompt and sampling.

    `videos/` and `subtitles/` are unpacked on first use from `videos.tar.part.*` and `subtitles.tar`. At most one frame
    a second is sampled. A film or a subtitle file that cannot be read fails its own samples alone.

    Raises:
        NammTransferError: no annotations there, an entry that does not fit, or an archive that is refused.
    """
    for name in ("videos", "subtitles"):
        parts = sorted(root.glob(f"{name}.tar.part.*")) or sorted(root.glob(f"{name}.tar"))
        if parts and not (root / name).is_dir():
            unpack(parts, root, name)
    found = []
    for number, entry in enumerate(read_json(root / FILE, list)):
        where = f"{str(root / FILE)!r}, entry {number}"
        expect(entry, FIELDS, where)
        check_options(entry["candidates"], where)
        if not 0 <= entry["correct_choice"] < len(entry["candidates"]):
            raise NammTransferError(
                f"{where}: 'correct_choice' is {entry['correct_choice']!r}; expected a candidate's place"
            )
        found.append(_question(root, entry, where))
    return found


def without_subtitles(root: Path) -> list[VideoQuestion]:
    """Load the validation questions without subtitles."""
    return [replace(question, subtitles=None) for question in load_longvideobench(root)]


def _question(root: Path, entry: dict[str, Any], where: str) -> VideoQuestion:
    options = tuple(entry["candidates"])
    lines = (f"{letter}. {option}" for letter, option in zip(letters(options), options, strict=True))
    ask = "Answer with the option's letter from the given choices directly."
    begins, seconds = float(entry["starting_timestamp_for_subtitles"]), float(entry["duration"])
    return VideoQuestion(
        id=entry["id"],
        root=root / "videos",
        name=entry["video_path"],
        prompt="\n".join((f"Question: {entry['question']}", *lines, ask)),
        options=options,
        answer=entry["correct_choice"],
        kind=entry["question_category"],
        duration=seconds,
        lead="",
        groups=(f"duration group {entry['duration_group']}", f"topic {entry['topic_category']}"),
        frames=max(1, int(seconds)),
        sampling="longvideobench",
        subtitles=SubtitleFile(root / "subtitles", entry["subtitle_path"], begins, seconds),
        flaw=flaw_of(options, entry["correct_choice"], where),
    )


GROUPS = [f"duration group {seconds}" for seconds in (15, 60, 600, 3600)]
HEADLINE = {"name": "accuracy", "rule": "mean over samples", "categories": GROUPS}
BENCHMARKS = (
    VideoBenchmark("longvideobench", (FILE,), load_longvideobench, HEADLINE),
    VideoBenchmark("longvideobench-frames", (FILE,), without_subtitles, HEADLINE),
)
