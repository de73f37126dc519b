"""Questions with times: formats, generated questions, and watching that sees nothing of what comes later."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_llava import save_tiny_llava

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.evals.tasks.video.generated import load_generated
from namm_transfer.evals.tasks.video.ovobench import load_ovobench
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.scenes import make_film
from namm_transfer.evals.tasks.video.streaming import CLIP, Watcher, age_group, by_film
from namm_transfer.evals.tasks.video.streamingbench import load_streamingbench, seconds

STREAMING = {
    "time": "[0:03:17 - 0:03:27]", "video_path": "./videos/sample_1_real.mp4",
    "questions": [
        {"task_type": "Counting", "question": "How many?", "time_stamp": "00:03:26", "answer": "B",
         "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."]},
        {"task_type": "Clips Summarize", "question": "What?", "time_stamp": "1:00", "answer": "A",
         "options": ["Rain", "Snow"]},
    ],
}  # fmt: skip
OVO = {"id": 7, "task": "EPM", "video": "src/a.mp4", "question": "Where?", "options": ["Here", "There"], "gt": 1,
       "realtime": 12.5}  # fmt: skip


def write(root, name, content):
    (root / name).write_text(json.dumps(content))
    return root


def test_streamingbench(tmp_path):
    first, second = load_streamingbench(write(tmp_path, "questions_real.json", [STREAMING]))
    assert (first.id, first.kind, first.answer, first.asked_at) == ("0/0", "Counting", 1, 206)
    assert first.options == ("One.", "Two.", "Three.", "Four.")
    assert first.prompt.endswith(
        "Question: How many?\n\nOptions:\nA. One.\nB. Two.\nC. Three.\nD. Four.\n\nThe best option is:"
    )
    assert first.video == tmp_path / "videos/sample_1_real.mp4"
    assert (second.id, second.asked_at, second.options) == ("0/1", 60, ("Rain", "Snow"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_stamp": "soon"}, "entry 0, question 0: 'time_stamp' is 'soon'"),
        ({"answer": "E"}, "the answer 'E' is none of A, B, C, D"),
        ({"options": None}, "'options' is None"),
    ],
)
def test_what_does_not_fit_streamingbench_is_named(change, message, tmp_path):
    entry = {**STREAMING, "questions": [{**STREAMING["questions"][0], **change}]}
    with pytest.raises(NammTransferError, match=message):
        load_streamingbench(write(tmp_path, "questions_real.json", [entry]))


def test_times_of_streamingbench():
    assert [seconds(stamp, "x") for stamp in ("00:03:10", "03:10", "1:00:00")] == [190, 190, 3600]


def test_ovobench_without_what_is_no_multiple_choice(tmp_path):
    forward = {"id": 8, "task": "REC", "video": "src/a.mp4", "test_info": [{"realtime": 3, "count": 1}]}
    (question,) = load_ovobench(write(tmp_path, "ovo_bench_new.json", [forward, OVO]))
    assert (question.id, question.kind, question.answer, question.asked_at) == ("7", "EPM", 1, 12.5)
    assert question.groups == ("backward tracing",)
    assert "A. Here; B. There;" in question.prompt
    for change, message in (
        ({"gt": 2}, "'gt' is 2"),
        ({"task": "XYZ"}, "'task' is 'XYZ'"),
        ({"realtime": "x"}, "'realtime'"),
    ):
        with pytest.raises(NammTransferError, match=message):
            load_ovobench(write(tmp_path, "ovo_bench_new.json", [{**OVO, **change}]))


def test_own_questions_with_times(tmp_path):
    entry = {"video": "a.mp4", "question": "?", "candidates": ["red", "blue"], "answer": "red", "asked_at": 30}
    (question,) = load_json(write(tmp_path, "own.json", [{**entry, "seen_at": 9.5}]) / "own.json")
    assert (question.asked_at, question.groups) == (30, ("answer shown 16 to 64 s before",))
    for change in ({"seen_at": 31}, {"seen_at": 1, "asked_at": None}):
        broken = {key: value for key, value in {**entry, **change}.items() if value is not None}
        with pytest.raises(NammTransferError, match="'seen_at' is"):
            load_json(write(tmp_path, "own.json", [broken]) / "own.json")


def test_ages_are_grouped_by_powers_of_four():
    names = [age_group(age) for age in (0, 3.9, 4, 15, 16, 64, 300)]
    assert [name.removeprefix("answer shown ").removesuffix(" s before") for name in names] == [
        "0 to 4", "0 to 4", "4 to 16", "4 to 16", "16 to 64", "64 to 256", "256 to 1024"
    ]  # fmt: skip


def test_questions_that_share_a_reading_of_their_film_come_together(tmp_path):
    entry = {"question": "?", "candidates": ["red", "blue"], "answer": "red"}
    asked = [("a", 9), ("b", 1), ("a", 3), ("b", None), ("a", None)]
    entries = [{**entry, "video": f"{name}.mp4", **({} if at is None else {"asked_at": at})} for name, at in asked]
    questions = load_json(write(tmp_path, "own.json", entries) / "own.json")

    def order(chosen, **protocol):
        return [int(q.id.split("/")[1]) for q in by_film(chosen, **protocol)]

    assert order(questions, streaming=True, query_agnostic=False) == [2, 0, 4, 1, 3]
    untimed = [replace(question, asked_at=None) for question in questions]
    assert order(untimed, streaming=False, query_agnostic=True) == [0, 2, 4, 1, 3]
    assert order(untimed, streaming=False, query_agnostic=False) == [0, 1, 2, 3, 4]
    lengths = [replace(question, frames=frames) for question in untimed for frames in (8, 16)]
    assert order(lengths, streaming=False, query_agnostic=True) == [0, 2, 4, 0, 2, 4, 1, 3, 1, 3]


def test_generated_questions_are_about_what_was_shown_a_known_time_ago(tmp_path):
    asked = load_generated(films=3, seconds=64, folder=tmp_path, streaming=True)
    assert len({question.id for question in asked}) == len(asked) > 3 * 6
    assert {question.kind for question in asked} == {"needle", "referring"}
    assert len({question.answer for question in asked}) == 4
    for question in asked:
        film = make_film("test", int(question.id.split("-")[1]), 64)
        shape, age = question.id.split("/")[1].split()[1], int(question.id.split("/")[2].split()[0])
        (shot,) = [shot for shot in film.shots if shot.shape == shape]
        assert question.asked_at == shot.end + age <= 64
        assert question.groups == (age_group(age),)
        right = shot.color if question.kind == "needle" else shot.place
        assert question.options[question.answer] == right
    usual = load_generated(films=3, seconds=64, folder=tmp_path)
    assert {question.name for question in usual} == {question.name for question in asked}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return LlavaNextVideoAdapter.load(save_tiny_llava(tmp_path_factory.mktemp("llava"), "shipped"), device="cpu")


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """40 frames, one a second."""
    return np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)


class Films:
    """Names for films in memory, as an adapter opens files."""

    def __init__(self, adapter, films):
        self.adapter, self.films, self.opened = adapter, films, []

    def __enter__(self):
        from namm_transfer.adapters.video.frames import ArrayReader

        def readers(sample):
            self.opened.append(sample.video)
            return [ArrayReader(self.films[sample.video])]

        self.adapter.readers = readers
        return self

    def __exit__(self, *_):
        del self.adapter.readers


def ask(watcher, adapter, name, at, policy):
    sample = VideoSample(name, "What was it?", lead="", choices=(" red", " blue"))
    encoded, cache, logits = watcher.read(sample, at, policy, room=4)
    return encoded.frames, adapter.choose(encoded, cache, logits).logprobs


def test_nothing_of_what_comes_later_is_seen_and_order_changes_nothing(adapter, film):
    later = film.copy()
    later[20:] = 0
    policy = policies.make("h2o:keep=0.5", update_interval=16)
    with Films(adapter, {"film": film, "later": later, "short": film[:20]}):
        found = {}
        for order in ((5, 16, 20, 33, None), (None, 20, 5, 33, 16), (33, 33, 5, 20, 16, None)):
            watcher = Watcher(adapter, 1)
            for at in order:
                answer = ask(watcher, adapter, "film", at, policy)
                assert found.setdefault(at, answer) == answer
        assert [found[at][0] for at in (5, 16, 20, 33, None)] == [5, CLIP, 20, 33, 40]
        watcher = Watcher(adapter, 1)
        assert ask(watcher, adapter, "later", 20, policy)[1] == found[20][1]
        assert ask(watcher, adapter, "later", 21, policy)[1] != found[20][1]
        with pytest.raises(NammTransferError, match="asked at 0 s; the first frame is shown at 0"):
            ask(watcher, adapter, "film", 0, policy)
        assert ask(Watcher(adapter, 0.5), adapter, "film", 20, policy)[0] == 10


def test_a_film_is_watched_once_for_questions_in_the_order_of_their_times(adapter, film, monkeypatch):
    policy, other = (policies.make("h2o:keep=0.5", update_interval=16) for _ in range(2))
    clips = []
    encode = adapter.encode_clip
    monkeypatch.setattr(adapter, "encode_clip", lambda *given: (clips.append(given[1].count), encode(*given))[1])
    with Films(adapter, {"film": film, "second": film[::-1].copy()}) as films:
        watcher = Watcher(adapter, 1)
        for at in (16, 16, 32, 33, None):
            ask(watcher, adapter, "film", at, policy)
        assert clips == [16, 16, 1, 8]
        ask(watcher, adapter, "film", 16, other)
        ask(watcher, adapter, "second", 16, other)
        assert films.opened == ["film", "film", "second"]
