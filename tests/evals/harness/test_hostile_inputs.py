"""200 hostile inputs at every door: one typed error or none, quickly, and nothing written outside the folder.

Each door gets a file (or flags) that is right, damaged by a seeded hypothesis: bytes flipped, cut, inserted or
repeated, JSON values exchanged for what no annotation should hold. A `NammTransferError` or `SystemExit` is right, and
so is success, since not every damage matters; anything else that is raised fails the test.
"""

import gzip
import io
import json
import os
import signal
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny_evaluation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_tasks import TASKS
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.evals.harness import parse
from namm_transfer.evals.harness.lineup import lineup
from namm_transfer.evals.report import build, read
from namm_transfer.evals.report.records import ArrayStore
from namm_transfer.evals.tasks.rl import d4rl
from namm_transfer.evals.tasks.text import load as text_load
from namm_transfer.evals.tasks.video.archive import unpack
from namm_transfer.evals.tasks.video.longvideobench import load_longvideobench
from namm_transfer.evals.tasks.video.mlvu import load_mlvu
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.subtitle_files import SubtitleFile

SECONDS = 5
"""Of processor time for one input."""


def hostile(count: int) -> Callable:
    """Settings of a test with `count` inputs, the same in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """More processor time than an input may take."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def door() -> Iterator[Path]:
    """A folder to work in; what happens inside may fail with a typed error, and write in that folder only."""

    def stop(*_):
        raise Hang

    before, home = signal.signal(signal.SIGALRM, stop), Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch)
        inside = outside / "inside"
        inside.mkdir()
        (outside / "canary").write_text("alive")
        os.chdir(inside)
        signal.alarm(20 * SECONDS)
        begun = time.process_time()
        try:
            yield inside
        except (NammTransferError, SystemExit):
            pass
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.chdir(home)
        assert time.process_time() - begun < SECONDS
        left = {path: content for path, content in tree(outside).items() if not path.startswith(str(inside))}
        assert left == {str(outside / "canary"): b"alive"}


# --- what is hostile

WORDS = st.sampled_from(
    ["", " ", "..", "../../canary", "/etc/passwd", "a\0b", "\ud800", "\udcff", "x" * 300, "é\u202e", "{}", "%s", "nan"]
)
VALUES = WORDS | st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
        [],
        {},
        [[]],
        {"a": None},
        [None] * 3,
    ]
)


def as_json(value: object) -> bytes:
    """JSON as Python writes it: with NaN, Infinity and halves of surrogate pairs."""
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few faults."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "front"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "repeat":
            data[place:place] = data[place : place + 64]
        elif kind == "zero":
            data[place : place + 8] = bytes(8)
        elif data:
            data[draw(st.integers(0, min(63, len(data) - 1)))] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def exchanged(draw: st.DrawFn, value: object) -> object:
    """A JSON value with one of its parts exchanged for a hostile value, removed, or nested too deeply."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["inside", "inside", "remove", "add"]))
        if kind == "remove":
            return {name: item for name, item in value.items() if name != key}
        if kind == "add":
            return {**value, draw(WORDS): draw(VALUES)}
        return {**value, key: draw(exchanged(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(exchanged(value[place])), *value[place + 1 :]]
    return draw(VALUES)


def hostile_json(value: object) -> st.SearchStrategy[bytes]:
    """The JSON of a value, exchanged in places or damaged as bytes, or nested 100,000 deep."""
    deep = st.just(b"[" * 100_000 + b"]" * 100_000)
    return exchanged(value).map(as_json) | exchanged(value).map(as_json) | damaged(as_json(value)) | deep


# --- flags and configuration

FLAGS = [f"--{name.replace('_', '-')}" for name in asdict(tiny_evaluation.Options())]
SPECS = st.sampled_from(
    [
        "full",
        "nobody",
        "h2o:keep=nan",
        "h2o:keep=-1",
        "h2o:keep",
        "l2:match=l2",
        "random:match=../..",
        "tova:budget=1e9",
        "streaming:sinks=-1",
        "random:seed=99999999999999999999",
        "full:update_interval=0",
        ":",
        "=",
        ",,,",
        "keep=1",
    ]
)


@hostile(30)
@given(st.lists(st.sampled_from(FLAGS) | WORDS | SPECS | st.integers().map(str), max_size=6))
def test_flags(arguments):
    with door():
        lineup((options := parse(tiny_evaluation.Options, arguments)).policies(), options.update_interval)


CONFIG = b'policy = ["full", "h2o:keep=0.5"]\nupdate-interval = 16\nseed = 3\nlimit = 2\nout = "there"\nresume = true\n'
LINES = st.sampled_from(
    [
        'out = "a\\u0000b"',
        "seed = inf",
        "limit = nan",
        "seed = 1979-05-27",
        "policy = [[1]]",
        "policy = {a = 1}",
        "seed = []",
        "x = " + "[" * 9000,
        "seed = " + "9" * 5000,
        'seed = "\\uD800"',
        "[seed]",
        "config = 'c.toml'",
        "threads = true",
    ]
)


@hostile(25)
@given(
    damaged(CONFIG) | LINES.map(str.encode) | LINES.map(lambda line: CONFIG + line.encode()) | st.binary(max_size=60)
)
def test_configuration_files(content):
    with door() as folder:
        (folder / "c.toml").write_bytes(content)
        options = parse(tiny_evaluation.Options, ["--config", str(folder / "c.toml")])
        lineup(options.policies(), options.update_interval)


# --- questions and subtitles

QUESTION = {"video": "a.mp4", "question": "What?", "candidates": ["a", "b"], "answer": "a", "duration": 3.0}
LONG = {
    "id": "q",
    "video_path": "a.mp4",
    "question": "What?",
    "candidates": ["a", "b"],
    "correct_choice": 0,
    "duration": 3.0,
    "starting_timestamp_for_subtitles": 0.0,
    "question_category": "S2E",
    "duration_group": 15,
    "topic_category": "T",
    "subtitle_path": "a.json",
}


@hostile(20)
@given(hostile_json([QUESTION, {**QUESTION, "question": "Who?"}]), st.booleans())
def test_questions(content, mlvu):
    with door() as folder:
        if mlvu:
            (folder / "json").mkdir()
            for name in ("1_plotQA", "2_needle"):
                (folder / "json" / f"{name}.json").write_bytes(content)
            load_mlvu(folder)
        else:
            (folder / "questions.json").write_bytes(content)
            load_json(folder / "questions.json")


@hostile(15)
@given(hostile_json([LONG, {**LONG, "id": "r"}]))
def test_questions_with_subtitles(content):
    with door() as folder:
        (folder / "lvb_val.json").write_bytes(content)
        load_longvideobench(folder)


SUBTITLES = [{"timestamp": [0.0, 1.5], "text": "one"}, {"start": "00:00:02.000", "end": "00:00:03.000", "line": "two"}]


@hostile(20)
@given(hostile_json(SUBTITLES), st.just("a.json") | WORDS)
def test_subtitles(content, name):
    with door() as folder:
        (folder / "a.json").write_bytes(content)
        SubtitleFile(folder, name, 0.0, 3.0).read()


# --- data sets, weights


def d4rl_file() -> bytes:
    steps, data = 12, io.BytesIO()
    with h5py.File(data, "w") as file:
        for name in ("observations", "next_observations"):
            file[name] = np.zeros((steps, 11), np.float32)
        file["actions"], file["rewards"] = np.zeros((steps, 3), np.float32), np.ones(steps, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(steps, bool), np.arange(steps) % 4 == 3
    return data.getvalue()


@hostile(20)
@given(damaged(d4rl_file()))
def test_d4rl_files(content):
    with door() as folder:
        (folder / "hopper_medium-v2.hdf5").write_bytes(content)
        list(d4rl.episodes(d4rl.read(folder / "hopper_medium-v2.hdf5", "hopper")))


@pytest.fixture(scope="module")
def namm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("namm")
    NAMM.from_pretrained("namm-text").save_pretrained(folder)
    return folder


@hostile(20)
@given(data=st.data())
def test_a_namm(namm, data):
    with door() as folder:
        spoil(folder, namm, data)
        NAMM.from_pretrained(folder)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("transformer")
    config = DecisionTransformerConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, n_head=1, max_ep_len=40)
    DecisionTransformerModel(config).save_pretrained(folder)
    numbers = {"state_mean": [0.0] * 11, "state_std": [1.0] * 11, "return_scale": 1000.0, "target_return": 3600.0}
    (folder / "statistics.json").write_text(json.dumps(numbers))
    return folder


@hostile(15)
@given(data=st.data())
def test_a_decision_transformer(transformer, data):
    with door() as folder:
        spoil(folder, transformer, data)
        DecisionTransformerAdapter.load(str(folder))


def spoil(folder: Path, whole: Path, data: st.DataObject) -> None:
    """Copy the files of a folder, one of them hostile."""
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    victim = data.draw(st.sampled_from(sorted(files)))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if victim.endswith(".json"):
        (folder / victim).write_bytes(data.draw(hostile_json(json.loads(files[victim]))))
    else:
        (folder / victim).write_bytes(data.draw(damaged(files[victim])))


# --- archives


def tar_of(names: list[str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(b"x" * 700))
    return data.getvalue()


NAMES = st.sampled_from(
    ["videos/a", "videos/b/c", "../canary", "/tmp/x", "videos/../../canary", "videos", "v" * 300, "."]
)


@hostile(20)
@given(damaged(tar_of(["videos/a", "videos/b/c"])) | st.lists(NAMES, max_size=4).map(tar_of), st.integers(1, 5000))
def test_split_archives(content, cut):
    with door() as folder:
        parts = [folder / "videos.tar.part.aa", folder / "videos.tar.part.ab"]
        parts[0].write_bytes(content[:cut])
        parts[1].write_bytes(content[cut:])
        unpack(parts, folder, "videos")


def zip_of() -> bytes:
    line = {"input": "q", "context": "c", "answers": ["a"], "all_classes": ["a", "b"], "length": 1, "dataset": "trec",
            "language": "en", "_id": "1"}  # fmt: skip
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/trec.jsonl", json.dumps(line) + "\n")
    return data.getvalue()


@hostile(10)
@given(damaged(zip_of()))
def test_zip_archives(content):
    with door() as folder:
        (folder / "data.zip").write_bytes(content)
        task = TASKS["longbench:trec"]
        text_load.load(task, text_load.find(task, folder))


# --- what evaluations write


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_evaluation.main(["--out", str(folder), "--limit", "2"])
    return folder


@hostile(10)
@given(data=st.data())
def test_arrays(evaluated, data):
    name = json.loads((evaluated / "report.json").read_text())["records"][0]["arrays"]["positions"]
    with door() as folder:
        (folder / "kept.npz").write_bytes(data.draw(damaged((evaluated / "kept.npz").read_bytes())))
        ArrayStore(folder).get(data.draw(st.just(name) | WORDS))


@hostile(20)
@given(data=st.data())
def test_ledgers(evaluated, data):
    lines = (evaluated / "records-tiny-0.jsonl").read_bytes().splitlines()
    victim = data.draw(st.integers(0, len(lines) - 1))
    lines[victim] = data.draw(hostile_json(json.loads(lines[victim])))
    content = b"\n".join(lines) + b"\n"
    with door() as folder:
        if data.draw(st.booleans()):
            packed = gzip.compress(content)
            (folder / "records-tiny-0.jsonl.gz").write_bytes(data.draw(st.just(packed) | damaged(packed)))
        else:
            (folder / "records-tiny-0.jsonl").write_bytes(content)
        build(folder)


@hostile(15)
@given(data=st.data())
def test_reports(evaluated, data):
    whole = json.loads((evaluated / "report.json").read_bytes())
    with door() as folder:
        (folder / "report.json").write_bytes(data.draw(hostile_json(whole)))
        read(folder)
