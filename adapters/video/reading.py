"""Opening the videos of a sample: files, folders of frames or frames in memory, whole or in part."""

from __future__ import annotations

from os.path import isdir, isfile
from pathlib import Path

import numpy as np

from namm_transfer.adapters.video.clip import ClipReader
from namm_transfer.adapters.video.frame_folder import FolderReader, pictures_of
from namm_transfer.adapters.video.frames import ArrayReader, FrameReader, open_video
from namm_transfer.adapters.video.sample import Video, VideoSample


def readers_of(sample: VideoSample, backend: str) -> list[FrameReader]:
    """Open the sample's videos, each from the start of `sample.span` to its end.

    Raises:
        VideoError: one cannot be read.
    """
    videos = sample.video if isinstance(sample.video, tuple) else (sample.video,)
    readers = [_open(video, sample, backend) for video in videos]
    return [ClipReader(reader, sample.span) for reader in readers] if sample.span else readers


def _open(video: Video, sample: VideoSample, backend: str) -> FrameReader:
    if isinstance(video, np.ndarray):
        return ArrayReader(video)
    return FolderReader(Path(video), sample.frame_times) if isdir(video) else open_video(video, backend)


def identity(path: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of change of a video's files, by which a changed video is told; empty if missing."""
    files = pictures_of(path) if isdir(path) else [path] if isfile(path) else []
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
