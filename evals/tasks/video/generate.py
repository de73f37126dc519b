"""Generated films as real H.264 files, written into a cache folder on first use, with a manifest of their questions.

The manifest `SPLIT-SECONDSs.json` has the form of a user's own benchmark (see `own_file.load_json`).
"""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.scenes import Film
from namm_transfer.evals.tasks.video.versions import film_set
from namm_transfer.files import make_folder, write_atomic

FPS = 4
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
    fps: int = FPS,
    size: int = SIZE,
    version: int = 1,
) -> Path:
    """Write the first films of a split, each with one question of every type, and their manifest; returns its path.

    Files that are there already are not written again; `version` is that of the films (see `versions.py`).
    """
    make_folder(folder)
    entries = []
    for seed in tqdm(range(films), desc="films", disable=None, leave=False):
        film = film_set(version).make_film(split, seed, seconds)
        name = f"{split}-{seed:05d}-{seconds}s-{fps}fps-{size}px-v{version}.mp4"
        if not (folder / name).exists():
            write_film(film, folder / name, fps, size)
        entries += manifest_entries(film, name, version)
    manifest = folder / f"{split}-{seconds}s-{fps}fps-{size}px-v{version}-{films}.json"
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
