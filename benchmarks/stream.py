"""Memory of one process that watches a long video: the shipped model, films drawn in memory, one cache.

    python benchmarks/stream.py                             10,000 frames, the shipped NAMM, 512 tokens a head
    python benchmarks/stream.py --policy full --frames 2000

Prints a Markdown table with a row at every tenth of the stream. The model answers a question at each of them, from a
copy of the cache. Positions are extended to hold the whole stream before it begins, so what the small model answers
far beyond the 512 positions that it was trained for is no measure of a policy; time and memory are.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
import tyro

from namm_transfer import policies
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.scenes import make_film
from namm_transfer.evals.tasks.video.streaming import CLIP, ROOM
from namm_transfer.files import asset

FILM = 64
"""Seconds of each of the films that follow one another."""
COLUMNS = ("frames", "tokens seen", "tokens held a head", "cache, KiB", "process, MiB", "ms a frame", "ms a question")
Row = tuple[int, int, float, float, float, float, float]


def clips(frames: int) -> Iterator[np.ndarray]:
    """Draw films one after the other, a frame a second, in clips of `CLIP` frames: (CLIP, 32, 32, 3) uint8."""
    for first in range(0, frames, CLIP):
        film = make_film("test", first // FILM, FILM)
        times = first % FILM + 0.5 + np.arange(min(CLIP, frames - first))
        yield draw(film, times, 32)


def resident() -> float:
    """Return the resident set of this process in bytes (Linux)."""
    with open("/proc/self/status") as status:
        return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def watch(spec: str, frames: int, update_interval: int, rows: int = 10) -> Iterator[Row]:
    """Watch a stream and yield its figures `rows` times; times are means since the row before."""
    adapter = LlavaNextVideoAdapter.load(asset("llava-next-video-small"), device="cpu")
    policy = policies.make(spec, update_interval=update_interval)
    stream = adapter.stream(policy, positions=adapter.tokens_per_frame * frames + ROOM)
    marks = np.unique(np.linspace(0, frames, rows + 1).astype(int))[1:].tolist()
    before, last = time.perf_counter(), 0
    for clip in clips(frames):
        stream.watch(clip)
        if stream.frames < marks[0]:
            continue
        marks = [mark for mark in marks if mark > stream.frames] or [frames + 1]
        asked = time.perf_counter()
        stream.ask("What is the main place of the video?", max_new_tokens=1)
        now, report = time.perf_counter(), stream.cache.report()
        yield (
            stream.frames,
            report.seen[0],
            float(report.kept.float().mean()),
            report.bytes / 2**10,
            resident() / 2**20,
            1e3 * (asked - before) / (stream.frames - last),
            1e3 * (now - asked),
        )
        before, last = time.perf_counter(), stream.frames


def main(policy: str = "namm:budget=512", frames: int = 10_000, update_interval: int = 128) -> None:
    """Watch and print the table."""
    torch.set_num_threads(1)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for row in watch(policy, frames, update_interval):
        print(
            "| " + " | ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row) + " |", flush=True
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
