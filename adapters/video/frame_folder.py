"""A folder of pictures as a video: its frames in the order of their names, at a stated rate or at stated times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from namm_transfer.adapters.video.container import MAX_PIXELS, VideoError, import_backend, unreadable
from namm_transfer.errors import NammTransferError
from namm_transfer.files import safe_join

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Pillow's names of the formats that are read, whatever a file is called."""


def pictures_of(folder: Path) -> list[Path]:
    """List the pictures of a folder in the order of their names, whose numbers count as numbers (2.jpg before 10.jpg).

    Raises:
        VideoError: there are none, or one is a link out of the folder.
    """
    names = [
        path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not names:
        raise VideoError(f"folder {str(folder)!r} holds no frames; expected pictures ({', '.join(SUFFIXES)})")
    parts = {name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in names}
    try:
        return [safe_join(folder, name) for name in sorted(names, key=lambda name: (parts[name], name))]
    except NammTransferError as error:
        raise VideoError(f"frame {error}") from None


class FolderReader:
    """A reader of the pictures in a folder, which must all have one size."""

    backend = "pictures"

    def __init__(self, folder: Path, timing: float | Sequence[float]) -> None:
        """Find the pictures.

        Args:
            folder: their folder; other files in it are ignored.
            timing: frames a second, or the time in seconds at which each frame is shown.

        Raises:
            VideoError: there are no pictures, or they do not fit their times.
        """
        self._files = pictures_of(folder)
        self.count = len(self._files)
        if isinstance(timing, int | float):
            if not 0 < timing < float("inf"):
                raise VideoError(f"folder {str(folder)!r}: {timing} frames a second; expected a positive number")
            self.times = np.arange(self.count) / timing
            self.seconds = self.count / timing
        else:
            self.times = np.array(timing, dtype=np.float64)
            steps = np.diff(self.times)
            if (
                len(self.times) != self.count
                or not np.isfinite(self.times).all()
                or self.times[0] < 0
                or (steps <= 0).any()
            ):
                raise VideoError(
                    f"folder {str(folder)!r}: {len(self.times)} times for {self.count} frames; expected one for each, "
                    "ascending, in seconds from 0 on"
                )
            self.seconds = float(self.times[-1] + (steps.mean() if len(steps) else 1.0))
        self.rate = self.count / self.seconds
        self._shape = self._read(self._files[0]).shape
        self.pixels = self._shape[0] * self._shape[1]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames at ascending `indices`, as `FrameReader.frames` describes."""
        found = []
        for index in indices:
            picture = self._read(self._files[int(index)])
            if picture.shape != self._shape:
                raise VideoError(
                    f"frame {str(self._files[int(index)])!r} has {picture.shape[1]} x {picture.shape[0]} pixels and "
                    f"the first one {self._shape[1]} x {self._shape[0]}; expected frames of one size"
                )
            found.append(picture)
        return np.stack(found)

    def _read(self, file: Path) -> np.ndarray:
        """Decode a picture, turned upright: (height, width, 3) uint8 RGB."""
        images, ops = import_backend("PIL.Image"), import_backend("PIL.ImageOps")
        try:
            with images.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise VideoError(f"frame {str(file)!r} has {size} pixels; expected {MAX_PIXELS:,} at most")
                upright = ops.exif_transpose(image)
                if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off instead of scaling
                    upright = images.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                return np.asarray(upright.convert("RGB"))
        except VideoError:
            raise
        except Exception as error:  # Pillow raises errors of many types for damaged files
            raise unreadable(file, error) from error
