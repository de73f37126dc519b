"""Both forms of subtitle files, and all that is no subtitle file."""

import json

import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.subtitles import Subtitle
from namm_transfer.evals.tasks.video.subtitle_files import SubtitleFile


def test_both_forms_are_read_in_the_time_of_the_film(tmp_path):
    entries = [
        {"timestamp": [100.5, 102.5], "text": "first"},
        {"timestamp": [103, None], "text": "open end"},
        {"start": "00:01:41.250", "end": "01:00:00.000", "line": "clock"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert SubtitleFile(tmp_path, "a.json", begins=100, seconds=20).read() == (
        Subtitle(0.5, 2.5, "first"), Subtitle(3, 20, "open end"), Subtitle(1.25, 3500, "clock"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "7",
        '[{"text": "no time"}]',
        '[{"timestamp": [1], "text": ""}]',
        '[{"start": "1", "end": "2"}]',
        "[3]",
        '[{"timestamp": [NaN, 1], "text": ""}]',
        '[{"timestamp": [1e999, 1], "text": ""}]',
        '[{"timestamp": ["nan", 1], "text": ""}]',
        '[{"timestamp": [0, 1], "text": null}]',
        '[{"timestamp": [0, 1], "text": "\\ud800"}]',
        '[{"timestamp": [true, 1], "text": ""}]',
        '[{"start": "00:00:nan", "end": "00:00:01", "line": "a"}]',
        '[{"start": null, "end": "00:00:01", "line": "a"}]',
        '[{"start": "00:00:00", "end": "00:00:01", "line": 3}]',
        "[" * 100000,
    ],
)
def test_what_does_not_fit_is_named(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(NammTransferError, match=r"a\.json"):
        SubtitleFile(tmp_path, "a.json", 0, 10).read()


def test_files_missing_or_outside_are_refused(tmp_path):
    with pytest.raises(NammTransferError, match="cannot be read"):
        SubtitleFile(tmp_path, "nothing.json", 0, 10).read()
    with pytest.raises(NammTransferError, match="leaves its folder"):
        SubtitleFile(tmp_path, "../a.json", 0, 10).read()
