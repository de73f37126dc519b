"""The few samples of a page and their time lines."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from namm_transfer.evals.report import pages, samples
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.ledger import Ledger, path_of
from namm_transfer.evals.report.records import ArrayStore
from namm_transfer.files import safe_name


@pytest.fixture
def folder_of(make_run, make_record, tmp_path):
    """A folder of one sample a policy with these arrays."""

    def make(arrays: dict[str, np.ndarray], **other):
        names = {name: ArrayStore(tmp_path).put(array) for name, array in arrays.items()}
        ledger = Ledger(path_of(tmp_path, "video", 0), make_run(["full", "namm"], 1))
        for policy, score in (("full", 100.0), ("namm", 0.0)):
            ledger.add(make_record(0, policy, score, arrays=names, **other))
        ledger.close()
        return tmp_path

    return make


def test_twelve_samples_by_a_rule_that_does_not_see_the_outcome(write_folder, tmp_path):
    scores = [float(i % 3) for i in range(40)]
    first = build(write_folder(tmp_path / "a", {"full": scores, "namm": scores}))
    other = build(write_folder(tmp_path / "b", {"full": scores[::-1], "namm": scores}))
    assert len(samples.chosen(first, "video")) == samples.SAMPLES
    assert samples.chosen(first, "video") == samples.chosen(other, "video")
    assert samples.chosen(first, "video") != [f"sample {i}" for i in range(12)]
    assert samples.RULE in pages.as_html(first)


def test_categories_take_turns(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0] * 30}, room=1)
    with open(path_of(folder, "video", 0), "a") as file:
        file.write(make_record(30, "full", 0.0, category="needle").model_dump_json() + "\n")
    assert "sample 30" in samples.chosen(build(folder), "video")[:2]


def pixels(strip: samples.Strip) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.image.partition(",")[2]))))


def test_film_frames_become_one_strip():
    shares = np.zeros((2, 3, 8), dtype=np.float32)
    shares[:, :, :4] = 1
    (strip,) = samples.strips({"frames": shares, "unknown": np.zeros(3)})
    assert pixels(strip)[0, :, 3].tolist() == [255] * 4 + [0] * 4
    assert strip.alternative == (
        "frames kept, from the beginning to the end in 4 parts: 100.0 %, 100.0 %, 0.0 %, 0.0 %"
    )


def test_time_steps_become_a_strip_for_each_kind_of_token_and_long_ones_are_averaged():
    kept = np.zeros((2, 1000, 3), dtype=np.float32)
    kept[:, 500:, 1] = 1
    returns, states, actions = samples.strips({"kept": kept})
    assert [strip.label for strip in (returns, states, actions)] == ["returns", "states", "actions"]
    assert pixels(states).shape[1] == samples.COLUMNS
    assert pixels(states)[0, :, 3].mean() == pytest.approx(127.5)
    assert pixels(returns)[0, :, 3].max() == 0


def test_text_falls_into_runs_of_tokens_held_alike():
    pieces = np.array(["The", " cat", " sat", "."])
    assert samples.runs_of_text(pieces, np.array([1.0, 1.0, 0.0, 0.5])) == [(4, "The cat"), (0, " sat"), (2, ".")]


def test_the_page_dims_what_was_forgotten_and_escapes_it(folder_of):
    folder = folder_of({"tokens": np.array([1.0, 0.0]), "pieces": np.array(["<b>bold", " gone"])})
    page = pages.as_html(build(folder), folder)
    assert '<span class="k4">&lt;b&gt;bold</span><span class="k0"> gone</span>' in page
    assert page.count("<summary>The prompt") == 1, "nothing is dimmed under the full cache"
    assert "tokens kept, from the beginning to the end in 2 parts: 100.0 %, 0.0 %" in page


def test_thumbnails_are_embedded_eight_at_most_and_none_from_elsewhere(folder_of):
    folder = folder_of({"frames": np.ones((2, 2, 8))}, id="../film 1/what")
    inside = folder / "thumbnails" / safe_name("../film 1/what")
    inside.mkdir(parents=True)
    for frame in range(40):
        Image.new("RGB", (8, 8)).save(inside / f"{frame:04d}.jpg")
    (inside / "0005.jpg").write_bytes(b"x" * 20_000)
    page = pages.as_html(build(folder), folder)
    assert page.count("data:image/jpeg;base64,") == samples.THUMBNAILS
    assert 'alt="frame 0: 100.0 % kept by namm"' in page
    assert 'alt="frame 39"' in page, "nothing is known of a frame that has no share"


def test_outcomes_are_words_to_filter_by(folder_of):
    folder = folder_of({}, details={"options": ["red", "blue"], "right": 1, "question": "Which?"})
    report = build(folder)
    (card,) = samples.cards(report, report.runs[0], folder)
    assert (card.question, card.expected) == ("Which?", "blue")
    assert [entry.outcomes for entry in card.entries] == [["right"], ["wrong", "worse than full"]]


def test_arrays_that_are_gone_cost_the_time_line_alone(folder_of):
    folder = folder_of({"tokens": np.ones(4)})
    report = build(folder)
    for path in (folder / "arrays").iterdir():
        path.unlink()
    assert "<article" in pages.as_html(report, folder)


def test_a_page_too_large_shows_fewer_samples(folder_of, monkeypatch):
    rng = np.random.default_rng(0)
    folder = folder_of({"tokens": rng.random(20_000), "pieces": np.array(["word "] * 20_000)})
    monkeypatch.setattr(pages, "HTML_LIMIT", 200_000)
    page = pages.as_html(build(folder), folder)
    assert len(page) < 200_000
    assert "<article" not in page
