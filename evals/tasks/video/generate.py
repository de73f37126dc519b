"""Generated films as real H.264 files, written into a cache folder on first use, with a manifest of their questions.

The manifest `SPLIT-SECONDSs.json` has the form of a user's own benchmark (see `own_file.load_json`).
"""

from __future__ import annotations

import itertools
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.scenes import Film, questions
from namm_transfer.evals.tasks.video.versions import film_set
from namm_transfer.files import make_folder, write_atomic

FPS = 4
AGES = (2, 8, 32, 128, 512, 2048)  # seconds between the end of what is asked for and the question
SIZE = 128


def cache_folder() -> Path:
    """Return the cache folder: `$NAMM_TRANSFER_CACHE/videos`, or `~/.cache/namm-transfer/videos`."""
    root = os.environ.get("NAMM_TRANSFER_CACHE") or Path.home() / ".cache" / "namm-transfer"
    return Path(root) / "videos"


def generate(
    folder: Path,
    split: str = "test",
    films: int = 50,
    seconds: int = 64,
    size: int = SIZE,
    version: int = 1,
    *,
    streaming: bool = False,
) -> Path:
    """Write the first films of a split, each with one question of every type, and their manifest; returns its path.

    With `streaming`, the questions are those of `streaming_entries`, which films of version 1 have; `version` is that
    of the films (see `versions.py`). Files that are there are not written again.
    """
    make_folder(folder)
    entries = []
    for seed in tqdm(range(films), desc="films", disable=None, leave=False):
        film = film_set(version).make_film(split, seed, seconds)
        name = f"{split}-{seed:05d}-{seconds}s-{FPS}fps-{size}px-v{version}.mp4"
        if not (folder / name).exists():
            write_film(film, folder / name, size=size)
        entries += streaming_entries(film, name) if streaming else manifest_entries(film, name, version)
    kind = "-streaming" if streaming else ""
    manifest = folder / f"{split}-{seconds}s-{FPS}fps-{size}px-v{version}-{films}{kind}.json"
    write_atomic(manifest, json.dumps(entries, indent=1) + "\n")
    return manifest


def manifest_entries(film: Film, name: str, version: int = 1) -> list[dict]:
    """Make one question of every type about a film, as entries of a benchmark file.

    Which of several questions of a type is taken, and where its right answer stands, rotate with the seed.
    """
    films = film_set(version)
    asked = films.questions(film, every=False)
    entries = []
    for number, kind in enumerate(films.types):
        choice = [question for question in asked if question.kind == kind]
        if choice:
            question = choice[film.seed % len(choice)].turned_to((film.seed + number) % 4)
            entries.append(
                {"video": name, "duration": film.seconds, "question": question.text,
                 "candidates": list(question.options), "answer": question.options[question.answer],
                 "question_type": kind}
            )  # fmt: skip
    return entries


def streaming_entries(film: Film, name: str) -> list[dict]:
    """Make questions that are asked while a film is watched, about what was on screen `AGES` seconds before.

    Each is about a shape that is on screen once, for three seconds, and after which nobody was told to look.
    """
    asked = [question for question in questions(film) if question.kind in ("needle", "referring")]
    entries = []
    for number, (question, age) in enumerate(itertools.product(asked, AGES)):
        shot = next(shot for shot in film.shots if shot.needle and question.text.endswith(f" {shot.shape}?"))
        if shot.end + age <= film.seconds:
            turned = question.turned_to((film.seed + number) % 4)
            entries.append(
                {"id": f"{film.split}-{film.seed}-{film.seconds}/{question.kind} {shot.shape}/{age} s", "video": name,
                 "duration": film.seconds, "question": turned.text, "candidates": list(turned.options),
                 "answer": turned.options[turned.answer], "question_type": question.kind, "seen_at": shot.end,
                 "asked_at": shot.end + age}
            )  # fmt: skip
    return entries


def write_film(film: Film, path: Path, fps: int = FPS, size: int = SIZE) -> None:
    """Draw a film and encode it as H.264 in MP4 at `path`; the file appears whole or not at all."""
    try:
        import av
    except ImportError as error:
        raise NammTransferError("writing films needs: pip install 'namm-transfer[video]'") from error
    partial = path.with_name(f".{path.name}.{os.getpid()}.mp4")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps))
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            # One thread: the same bytes on every machine with this encoder.
            stream.options = {"crf": "26", "preset": "veryfast", "g": str(10 * fps), "threads": "1"}
            for second in range(film.seconds):
                for picture in draw(film, second + (np.arange(fps) + 0.5) / fps, size):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
