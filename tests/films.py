"""A generated film as a real H.264 file, shared by the tests of this folder."""

from pathlib import Path

import pytest

from namm_transfer.evals.tasks.video.generate import write_film
from namm_transfer.evals.tasks.video.scenes import make_film


@pytest.fixture(scope="session")
def film_file(tmp_path_factory) -> Path:
    """16 seconds, 4 frames a second, 64 x 64 pixels, several key frames."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(make_film("test", 1, 16), path, fps=4, size=64)
    return path
