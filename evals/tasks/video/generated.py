"""Questions about the films that this package draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from namm_transfer.evals.tasks.video.generate import cache_folder, generate
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.questions import VideoQuestion

GENERATED = {"generated": (1, "llava-next-video-small"), "generated-v2": (2, "llava-next-video-small-v2")}
"""Names of the generated benchmarks -> version of the films, and the shipped model that was trained for them."""


def load_generated(
    films: int, seconds: int, folder: Path | None = None, version: int = 1, *, streaming: bool = False
) -> list[VideoQuestion]:
    """Load questions about generated films of the test split, written on first use (to the cache folder by default).

    With `streaming`, the questions are those that are asked while the films are watched.

    The shipped model answers in words and has not learnt to point at letters: it is asked the bare question, and the
    options are compared as answers, each of them one token.
    """
    manifest = generate(folder or cache_folder(), "test", films, seconds, version=version, streaming=streaming)
    found = load_json(manifest)
    return [replace(question, prompt=question.prompt.splitlines()[0], lead="", by_letter=False) for question in found]
