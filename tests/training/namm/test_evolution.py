"""The evolution as a whole: kill -9 and resume, one process and two, what is written."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from places import ROOT
from safetensors import safe_open
from tiny_text import evolution_config

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals import evolve
from namm_transfer.evals.tasks.text import prose
from namm_transfer.evals.tasks.text.families import make_prompt
from namm_transfer.files import asset
from namm_transfer.training.loop import check_identity
from namm_transfer.training.namm import fitness
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.evolution import learned_by
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt
from namm_transfer.training.namm.state import FIELDS, State

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def arguments(config: Path, out: Path, generations: int, *more: str) -> list[str]:
    given = ["--config", str(config), "--out", str(out), "--generations", str(generations), "--dtype", "float32", *more]
    return given


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return evolution_config(tmp_path_factory.mktemp("evolution"))


@pytest.fixture(scope="module")
def whole(config):
    """An uninterrupted evolution of four generations."""
    torch.set_num_threads(1)
    out = config.parent / "whole"
    evolve.main(arguments(config, out, 4))
    return out


def state_of(out: Path) -> bytes:
    return (out / "state" / "state.safetensors").read_bytes()


def test_what_is_written(whole):
    lines = [json.loads(line) for line in (whole / "evolution.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(tuple(line) == FIELDS for line in lines)
    assert [line["validation"] is not None for line in lines] == [True, False, True, False, True]
    assert all(0 < line["kept"] < 1 for line in lines)
    state = State.read(whole / "state" / "state.safetensors")
    assert state.history.shape == (4, 4)
    namm = NAMM.from_pretrained(whole)
    assert (namm.update_interval, namm.size.keep) == (128, None)
    best = max(range(5), key=lambda i: -np.inf if lines[i]["validation"] is None else lines[i]["validation"])
    assert state.best_generation.item() == best
    np.testing.assert_allclose(namm.to_vector()[:-1], state.best[:-1], rtol=1e-6)
    np.testing.assert_allclose(namm.mean, state.statistics[1:18], rtol=1e-6)
    assert (whole / "model.safetensors").stat().st_size < 50_000
    card = (whole / "README.md").read_text()
    assert "evolve.py --seed 0" in card
    assert "Learned by gradient" in card
    assert "</svg>" in (whole / "plot.svg").read_text()


def test_the_kept_share_is_the_one_asked_for(config, whole):
    """And a little higher bias would keep more."""
    settings = State.read(whole / "state" / "state.safetensors").identity
    adapter = CausalLMAdapter.load(settings["model"], dtype=torch.float32, device="cpu")
    made = [make_prompt(f, "validation", 0, 0, tokens=300, count=adapter.count) for f in settings["families"]]
    prompts = [MultiQuestionPrompt.of(adapter, prompt) for prompt in made]
    namm, shares = NAMM.from_pretrained(whole), []
    for _ in range(2):
        shares.append(fitness.kept_share(adapter, prompts, namm, Accelerator(cpu=True)))
        namm.output.bias += 0.05
    assert shares[0] <= EvolutionConfig().kept_share < shares[1]


def test_killed_and_resumed_is_the_same(config, whole):
    out = config.parent / "killed"
    log = out / "evolution.jsonl"
    command = [sys.executable, str(ROOT / "evals" / "evolve.py"), *arguments(config, out, 99)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    evolve.main(arguments(config, out, 4, "--resume"))
    assert len(log.read_text().splitlines()) == 5, "killed too late to be resumed"
    for name in ("evolution.jsonl", "model.safetensors", "state/state.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_are_one(config, whole):
    out = config.parent / "two"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    command = [*launch, str(ROOT / "evals" / "evolve.py"), *arguments(config, out, 4)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes" in done.stdout
    assert state_of(out) == state_of(whole)
    assert (out / "evolution.jsonl").read_bytes() == (whole / "evolution.jsonl").read_bytes()


def test_a_started_evolution_is_not_started_over(config, whole):
    with pytest.raises(NammTransferError, match="--resume"):
        evolve.main(arguments(config, whole, 4))


def test_another_seed_is_refused(config, whole):
    with pytest.raises(NammTransferError, match="made with seed=0, this run has seed=1"):
        evolve.main(arguments(config, whole, 4, "--resume", "--seed", "1"))


def test_learning_may_be_given_more_steps_of_another_length_before_the_search_has_begun(config, whole, tmp_path):
    (tmp_path / "out" / "state").mkdir(parents=True)
    learned = whole / "state" / "learning.safetensors"
    shutil.copy(learned, tmp_path / "out" / "state")
    longer = tmp_path / "longer.toml"
    changed = config.read_text().replace("learn_steps = 3", "learn_steps = 4")
    longer.write_text(changed.replace("learn_tokens = [900]", "learn_tokens = [800]"))
    with pytest.raises(NammTransferError, match="made with learn_steps=3, this run has learn_steps=4"):
        evolve.main(arguments(longer, whole, 4, "--resume"))
    evolve.main(arguments(longer, tmp_path / "out", 1, "--resume"))
    before, after = (State.read(out / "state" / "state.safetensors").learning for out in (whole, tmp_path / "out"))
    assert len(after) == 4
    assert np.array_equal(after[:3], before)


def test_members_may_be_scored_on_multi_question_prompts(config, whole, tmp_path, monkeypatch):
    """New ones every generation; validation stays on prompts of the families."""
    (tmp_path / "out" / "state").mkdir(parents=True)
    shutil.copy(whole / "state" / "learning.safetensors", tmp_path / "out" / "state")
    asking = tmp_path / "asking.toml"
    asking.write_text(config.read_text().replace("prompts = 2\n", "multi_question_prompts = 2\n", 1))
    asked, evaluate = [], fitness.evaluate
    monkeypatch.setattr(fitness, "evaluate", lambda *given: (asked.append(given[1]), evaluate(*given))[1])
    evolve.main(arguments(asking, tmp_path / "out", 2, "--resume"))
    families = [[prompt.family for prompt in prompts] for prompts in asked]
    assert families == [["passkey", "lookup"], ["multi-question"] * 2, ["multi-question"] * 2, ["passkey", "lookup"]]
    texts = [tuple(prompt.tokens.tolist()) for prompts in asked[1:3] for prompt in prompts]
    assert len(set(texts)) == 4
    assert max(len(prompt.answers) for prompts in asked[1:3] for prompt in prompts) > 1


def test_what_ships_goes_on_under_the_defaults():
    folder, config = asset("namm-text") / "state", EvolutionConfig()
    fields = config.stated()
    same = {"seed": 1, "text": prose.fingerprint(), "dtype": "torch.bfloat16"}
    path = folder / "learning.safetensors"
    with safe_open(path, framework="pt") as file:
        check_identity(path, json.loads(file.metadata()["identity"]), same | {n: fields[n] for n in learned_by(config)})
    state = State.read(folder / "state.safetensors")
    del fields["generations"], fields["kept_share"]
    check_identity(path, state.identity, same | fields | {"cma": state.identity["cma"]})
    assert len(state.learning) == config.learn_steps
    assert len(state.history) == 11


def test_nothing_to_resume(config):
    with pytest.raises(NammTransferError, match="no evolution to go on with"):
        evolve.main(arguments(config, config.parent / "nowhere", 4, "--resume"))


def test_damaged_state(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(NammTransferError, match="not the state"):
        State.read(path)


def test_the_log_of_another_version_is_refused(whole, tmp_path):
    state = State.read(whole / "state" / "state.safetensors")
    dataclasses.replace(state, log=state.log[:, :5]).write(tmp_path / "old.safetensors")
    with pytest.raises(NammTransferError, match=r"log of shape \(5, 5\)"):
        State.read(tmp_path / "old.safetensors")
