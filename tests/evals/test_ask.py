"""`namm-transfer ask`: one's own film, the answer, and the page of what was kept."""

import importlib
import socket
import time

import numpy as np
import pytest
from huggingface_hub import constants
from kept_pages import data_of, elements, files_in, requests_of
from PIL import Image
from tiny_video_models import save_tiny

from namm_transfer import policies
from namm_transfer.adapters import loading
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video.frames import open_video
from namm_transfer.adapters.video_language import VideoLanguageAdapter
from namm_transfer.evals import ask
from namm_transfer.evals.harness import cli
from namm_transfer.evals.tasks.video.generate import write_film
from namm_transfer.evals.tasks.video.scenes import make_film
from namm_transfer.files import asset
from namm_transfer.policies import Streaming

QUESTION = "What is the main place of the video?"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of 16 seconds, 4 frames a second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(make_film("test", 1, 16), path, fps=4, size=64)
    return path


def asked(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, output and errors of `namm-transfer ask`."""
    status = cli.main(["ask", *map(str, arguments)])
    return status, *capsys.readouterr()


def page_of(capsys, tmp_path, *arguments) -> str:
    """The page that `ask` writes."""
    status, _, errors = asked(capsys, *arguments, "--out", tmp_path / "page.html")
    assert status == 0, errors
    return (tmp_path / "page.html").read_bytes().decode()


def test_the_page_holds_what_the_cache_kept(film, tmp_path, capsys):
    flags = (film, QUESTION, "--options", "snow", "water", "--policy", "namm", "--frames", 32)
    status, printed, _ = asked(capsys, *flags, "--out", tmp_path / "page.html")
    assert status == 0
    sample = ask.as_sample(ask.Options(film, QUESTION, options=("snow", "water"), frames=32))
    adapter = LlavaNextVideoAdapter.load(asset("llava-next-video-small"))
    encoded, cache = adapter.encode(sample), adapter.memory(policies.make("namm", update_interval=32))
    answer = adapter.answer(encoded, cache)
    cache = adapter.memory(policies.make("namm", update_interval=32))
    adapter.prefill(encoded, cache)
    page = (tmp_path / "page.html").read_bytes().decode()
    data, report = data_of(page), cache.report()
    assert np.array_equal(data["held"][-1], report.kept[:, 0].numpy())
    assert data["held"][-1].max() < encoded.length
    assert np.abs(data["shares"][-1] / 255 - adapter.kept(cache, encoded)["frames"]).max() <= 0.5 / 255 + 1e-6
    assert data["seen"] == [*range(32, encoded.length + 1, 32), encoded.length]
    assert f"answer: {('snow', 'water')[answer.choice]} (of the options: snow " in printed
    assert f"cache kept: {report.row(0).kept_share:.1%} of {encoded.length} tokens" in printed
    assert "made for generated films" in printed
    found = elements(page)
    assert sum(tag == "img" for tag, _ in found.tags) == 32
    assert not requests_of(page)
    assert found.texts["p.question"] == [QUESTION]
    assert "made for generated films" in found.texts["p.note"][0]
    assert len(page) < 1_000_000


def test_a_free_answer_of_another_model_and_frames_that_share_tokens(film, tmp_path, capsys):
    model = save_tiny(tmp_path / "model", "qwen3_vl")
    page = page_of(
        capsys, tmp_path, film, "<b>What?</b>", "--model", model, "--frames", 7, "--policy", "h2o:keep=0.5",
        "--update-interval", 16, "--answer-tokens", 5,
    )  # fmt: skip
    adapter = VideoLanguageAdapter.load(model)
    encoded = adapter.encode(ask.as_sample(ask.Options(film, "<b>What?</b>", model=str(model), frames=7)))
    cache = adapter.memory(policies.make("h2o:keep=0.5", update_interval=16))
    logits = adapter.prefill(encoded, cache)
    data = data_of(page)
    assert np.array_equal(data["held"][-1], cache.report().kept[:, 0].numpy())
    assert np.abs(data["shares"][-1] / 255 - adapter.kept(cache, encoded)["frames"]).max() <= 0.5 / 255 + 1e-6
    assert data["first"][0] == data["first"][1] < data["first"][2]
    found = elements(page)
    written = adapter.decode_greedily(cache, logits, 5, encoded.shift).strip()
    assert found.texts["p.answer"] == [written or "The model answered nothing."]
    assert found.texts["p.question"] == ["<b>What?</b>"]
    assert "p.note" not in found.texts


def test_a_part_of_the_film_is_shown_with_its_real_times(film, tmp_path, capsys):
    page = page_of(capsys, tmp_path, film, QUESTION, "--start", 6, "--end", 8, "--frames", 4, "--update-interval", 16)
    figures = elements(page).texts["figcaption"]
    assert len(figures) == 4
    times = [attrs["alt"].partition(", ")[2] for tag, attrs in elements(page).tags if tag == "img"]
    assert times == ["0:06.2", "0:06.8", "0:07.2", "0:07.8"]
    sample = ask.as_sample(ask.Options(film, QUESTION, start=6.0, end=8.0, frames=4))
    adapter = LlavaNextVideoAdapter.load(asset("llava-next-video-small"))
    whole = open_video(film)
    assert np.array_equal(np.stack(list(adapter.pictures(sample, range(4)))), whole.frames([25, 27, 29, 31]))


def test_a_folder_of_frames(tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (64, 64), (20 * number, 100, 0)).save(folder / f"{number}.png")
    page = page_of(capsys, tmp_path, folder, QUESTION, "--frame-rate", 2, "--frames", 6, "--update-interval", 16)
    times = [attrs["alt"].partition(", ")[2] for tag, attrs in elements(page).tags if tag == "img"]
    assert times == ["0:00.5", "0:01.5", "0:02.5", "0:03.5", "0:04.5", "0:05.5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("missing.mp4", "What?"), "'missing.mp4': no such video"),
        (("FILM", " "), "expected a question"),
        (("FILM", "What?", "--options", "one"), "1 options: expected"),
        (("FILM", "What?", "--options", "snow", "xylophone"), "' xylophone' holds no word that the tokenizer knows"),
        (("FILM", "What?", "--frames", "0"), "--frames 0: expected a positive"),
        (("FILM", "What?", "--start", "5", "--end", "4"), "a clip from 5 to 4.0 seconds"),
        (("FILM", "What?", "--start", "40"), "the film lasts 16.0"),
        (("FILM", "What?", "--policy", "h2o:match=namm"), "none to match"),
        (("FILM", "What?", "--policy", "h3o"), "h3o"),
        (("FILM", "What?", "--out", "FOLDER"), "expected the name of a page"),
        (("FOLDER", "What?"), "holds no frames"),
        (("FILM", "What?", "--pixels", "64"), "64 pixels a frame"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(flags, message, film, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    given = [{"FILM": film, "FOLDER": tmp_path / "folder"}.get(flag, flag) for flag in flags]
    out = () if "--out" in flags else ("--out", tmp_path / "page.html")
    status, printed, errors = asked(capsys, *given, *out)
    assert (status, printed) == (2, "")
    (line,) = [line for line in errors.splitlines() if line.startswith("namm-transfer ask: ")]
    assert message in line
    assert "Traceback" not in errors
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("command", ["ask", "read"])
def test_with_no_hub_a_missing_model_is_said_within_five_seconds(command, film, tmp_path, capsys, monkeypatch):
    """The hub accepts connections and never answers."""
    (tmp_path / "text.txt").write_text("A text.")
    importlib.import_module(f"namm_transfer.evals.{command}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(loading.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.perf_counter()
        source = film if command == "ask" else tmp_path / "text.txt"
        status = cli.main([command, str(source), "What?", "--model", "nobody/nothing"])
        seconds = time.perf_counter() - begun
    errors = capsys.readouterr().err
    assert status == 2
    assert "'nobody/nothing'" in errors
    assert "cannot be reached" in errors
    assert errors.count("\n") == 1
    assert seconds < 5


def test_ctrl_c_while_the_prompt_is_read(film, tmp_path, capsys, monkeypatch):
    """It ends with status 130, says nothing and leaves no file."""

    def interrupted(self, view):
        raise KeyboardInterrupt

    monkeypatch.setattr(Streaming, "select", interrupted)
    flags = (film, QUESTION, "--policy", "streaming:keep=0.5", "--out", tmp_path / "new/page.html")
    status, printed, errors = asked(capsys, *flags)
    assert (status, printed) == (130, "")
    assert "Traceback" not in errors
    assert files_in(tmp_path) == []
