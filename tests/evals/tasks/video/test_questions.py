"""What all benchmarks about videos share: paths, clusters, options that can be told apart, and the registry."""

import dataclasses
import json
from importlib.metadata import EntryPoint

import pytest

from namm_transfer import NammTransferError, plugins
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.video import questions
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, indistinct

PACKAGE = "namm_transfer.evals.tasks.video"
ENTRY = {"video": "v.mp4", "question": "What?", "candidates": ["Rain", "Snow"], "answer": "Snow"}


def asked(folder, *changes):
    file = folder / "mine.json"
    file.write_text(json.dumps([{**ENTRY, **change} for change in changes]))
    return load_json(file)


def test_one_video_is_one_cluster_however_it_is_written(tmp_path):
    (tmp_path / "v.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("v.mp4")
    names = ("v.mp4", "./v.mp4", "a/../v.mp4", ".//v.mp4", "link.mp4")
    assert {q.cluster for q in asked(tmp_path, *({"video": name} for name in names))} == {f"{tmp_path.name}/v.mp4"}
    other = asked(tmp_path, {"video": "a/w.mp4"}, {"video": "a/./w.mp4"}, {"video": "../w.mp4"})
    assert other[0].cluster == other[1].cluster == f"{tmp_path.name}/a/w.mp4" != other[2].cluster


def test_paths_that_can_be_no_file_are_video_errors(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for name in ("one", "one/v.mp4", "n" * 300, "a\0b", "n" * 300 + "/v.mp4"):
        (question,) = asked(tmp_path, {"video": name})
        with pytest.raises(VideoError, match=r"can be no file|leaves"):
            _ = question.video
        assert question.cluster


@pytest.mark.parametrize(
    "options", [["Rain", "Rain"], ["Rain", "rain "], ["Snow", "a  b", "A b"], ["Snow", "ﬁre", "fire"], ["", "", "Snow"]]
)
def test_own_options_that_are_the_same_are_refused(options, tmp_path):
    with pytest.raises(NammTransferError, match=r"mine\.json', entry 1: options \d and \d of .* are the same"):
        asked(tmp_path, {}, {"candidates": options, "answer": options[0]})
    assert indistinct(options) is not None
    assert indistinct(["Rain", "Rains"]) is None


def test_own_ids_and_further_fields_are_kept(tmp_path):
    first, second = asked(tmp_path, {"id": "q7", "difficulty": 3, "source": {"page": 4}}, {})
    assert (first.id, first.extra) == ("q7", {"difficulty": 3, "source": {"page": 4}})
    assert (second.id, second.extra) == ("mine/1", {})
    with pytest.raises(NammTransferError, match="entries 0 and 1 have the same id 'q7'"):
        asked(tmp_path, {"id": "q7"}, {"id": "q7"})
    with pytest.raises(NammTransferError, match="'id' is 3; expected a str"):
        asked(tmp_path, {"id": 3})


def test_every_benchmark_says_how_its_authors_score_it():
    names = registry.names(VideoBenchmark)
    assert {"mlvu", "longvideobench", "egoschema", "videomme"} <= set(names)
    for name in names:
        headline = registry.find(name, VideoBenchmark).headline
        assert headline["rule"] in ("mean over categories", "mean over samples")
        assert headline["name"]
        assert headline["categories"]


def test_another_package_may_bring_a_benchmark(monkeypatch):
    theirs = VideoBenchmark("theirs", ("a.json",), lambda root: [], {"name": "x", "rule": "mean over samples"})
    monkeypatch.setattr(questions, "THEIRS", theirs, raising=False)
    point = EntryPoint("theirs", f"{PACKAGE}.questions:THEIRS", registry.GROUP)
    wrong = EntryPoint("wrong", f"{PACKAGE}.questions:indistinct", registry.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point, wrong] if group == registry.GROUP else [])
    assert registry.find("theirs", VideoBenchmark) is theirs
    assert "theirs" in registry.names(VideoBenchmark)
    with pytest.raises(NammTransferError, match="'wrong' is a function; expected a VideoBenchmark"):
        registry.find("wrong", VideoBenchmark)
    assert dataclasses.is_dataclass(theirs)
