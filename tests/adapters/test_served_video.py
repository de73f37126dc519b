"""Every class of video-language models that is served, through every check of the table in docs/models.md."""

import importlib.util

import pytest
import torch
import video_checks
from places import table_in
from tiny_video_models import KINDS

ROWS = table_in("docs/models.md", "video")


@pytest.fixture(scope="module", params=["llava_next_video", *KINDS])
def loaded(request, tmp_path_factory):
    """A model type, and a random model of it in its adapter."""
    if request.param == "smolvlm" and importlib.util.find_spec("num2words") is None:
        pytest.skip("SmolVLM's processor needs num2words")
    return request.param, video_checks.load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("check", video_checks.CHECKS)
@torch.no_grad()
def test_a_class_passes_as_the_table_says(loaded, check):
    kind, adapter = loaded
    video_checks.CHECKS[check](adapter)
    (row,) = (row for row in ROWS if row[0] == kind)
    assert row[ROWS[0].index(check)] == "yes"


def test_the_table_names_every_class():
    assert [row[0] for row in ROWS[2:]][: 1 + len(KINDS)] == ["llava_next_video", *KINDS]
