"""Training a Decision Transformer, in miniature."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.evals.harness.options import read_flags
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import TASKS, task
from namm_transfer.files import asset
from namm_transfer.training.rl import card, collect, train

ID = "namm-transfer/hopper/test-v0"


@pytest.fixture
def dataset():
    played = rollout(Environments("hopper", 6), range(6), random_policy("hopper", 0))
    datasets.write(ID, "hopper", played, "random actions", "for a test")
    return datasets.load(ID, "hopper")


def options(out, **others):
    settings = {
        "dataset": ID,
        "updates": 120,
        "tokens": 60,
        "width": 16,
        "layers": 1,
        "max_ep_len": 1000,
        "episodes": 2,
    }
    return train.Options("hopper", out, **{**settings, **others})


def test_windows_hold_real_steps(dataset):
    windows = train.Windows(dataset, np.random.default_rng(0))
    batch = windows.batch(length=8, rows=5)
    row, steps = batch["states"][0], batch["timesteps"][0]
    states = [(t.observations[:-1] - windows.mean) / windows.std for t in dataset.trajectories]
    fits = [t for t in states if len(t) > steps[-1] and np.allclose(t[steps], row, atol=1e-5)]
    assert len(fits) == 1
    longer = windows.batch(length=1000, rows=5)
    assert not longer["real"].all(), "no episode of random actions lasts 1,000 steps"
    assert longer["real"].sum(1).max() == longer["states"].shape[1]


def test_windows_begin_with_the_opening_of_their_episode(dataset):
    windows = train.Windows(dataset, np.random.default_rng(0), opening=3)
    batch = windows.batch(length=5, rows=20)
    later = 0
    for steps, real in zip(batch["timesteps"], batch["real"], strict=True):
        taken = steps[real].tolist()
        assert taken == sorted(set(taken)), "no step twice"
        if taken[-1] >= 8:
            assert taken[:3] == [0, 1, 2]
            later += 1
    assert later


def test_every_second_window_lies_in_the_ending_of_its_episode(dataset):
    long = datasets.Dataset(dataset.id, dataset.env, [max(dataset.trajectories, key=len)])
    total = len(long.trajectories[0])
    for length, expected in ((4, {total - 6, total - 5, total - 4}), (8, {total - 8})):
        windows = train.Windows(long, np.random.default_rng(0), ending=6)
        starts = windows.batch(length, rows=40)["timesteps"][:, 0].tolist()
        assert set(starts[1::2]) == expected
        assert min(starts[::2]) < total - 8


def test_every_second_window_begins_at_one_of_the_given_steps(dataset):
    long = datasets.Dataset(dataset.id, dataset.env, [max(dataset.trajectories, key=len)])
    total = len(long.trajectories[0])
    windows = train.Windows(long, np.random.default_rng(0), starts=(1, 5, total - 2))
    starts = windows.batch(4, rows=60)["timesteps"][:, 0].tolist()
    assert set(starts[1::2]) == {1, 5, total - 4}, "a window too long for its step ends with the episode"
    assert len(set(starts[::2])) > 3


def test_filling_up_does_not_count(dataset, tmp_path):
    model = train.new_model(options(tmp_path)).eval()
    batch = train.Windows(dataset, np.random.default_rng(0)).batch(1000, 4)
    loss = train.action_loss(model, dict(batch))
    for name in ("states", "actions", "returns_to_go"):
        batch[name] = torch.where(batch["real"][..., None], batch[name], torch.randn_like(batch[name]))
    assert torch.allclose(loss, train.action_loss(model, dict(batch)))


def test_the_command_makes_a_folder_that_acts(dataset, tmp_path):
    found = train.main(options(tmp_path / "model"))
    adapter = DecisionTransformerAdapter.load(tmp_path / "model", device="cpu")
    mean, std = dataset.state_statistics
    np.testing.assert_array_equal(adapter.statistics.state_mean, mean)
    np.testing.assert_array_equal(adapter.statistics.state_std, std)
    assert adapter.statistics.env == "hopper"
    assert adapter.statistics.target_return == found["target_return"]
    actions = adapter.play(adapter.memory(policies.make("full")), [1.0]).act(np.zeros((1, 11)), np.zeros(1))
    assert np.isfinite(actions).all()
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "statistics.json"}
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert adapter.model.dtype == torch.float32
    played = card.measure(adapter, "hopper", found["target_return"], 2, first_seed=40_000)
    assert played.mean() == found["whole episode"], "what the card says was measured on the weights of the file"
    text = (tmp_path / "model" / "README.md").read_text()
    assert f"{found['whole episode']:.0f}" in text
    assert "6 episodes" in text


def test_training_goes_on_where_it_was_killed(dataset, tmp_path, monkeypatch):
    device = torch.device("cpu")
    straight = train.fit(options(tmp_path / "straight"), dataset, device)
    loss, calls = train.action_loss, []

    def killed(model, batch):
        calls.append(1)
        if len(calls) == 110:
            raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setattr(train, "action_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train.fit(options(tmp_path / "killed"), dataset, device)
    again = train.fit(options(tmp_path / "killed"), dataset, device)
    assert len(calls) == 110 + 20, "the checkpoint was at 100 updates"
    for (name, ours), theirs in zip(again.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(("env", "tier"), [(env, tier) for env in TASKS for tier in TASKS[env].tiers])
def test_shipped_models_beat_random_actions(env, tier):
    adapter = DecisionTransformerAdapter.load(asset(f"decision-transformer/{env}-{tier}"), device="cpu")
    returns = card.measure(adapter, env, adapter.statistics.target_return, 3, first_seed=60_000)
    random_returns = rollout(Environments(env, 3), range(60_000, 60_003), random_policy(env, 0))
    chance = np.mean([episode.episode_return for episode in random_returns])
    assert task(env).score(returns.mean()) > task(env).score(float(chance)) + (5 if tier == "medium-replay" else 20)


@pytest.mark.parametrize("name", ["updates", "learning_rate", "tokens", "width", "layers", "seed", "max_ep_len"])
def test_another_training_does_not_go_on_from_a_checkpoint(dataset, tmp_path, name):
    """The error names the option with both values, and nothing is written."""
    given = options(tmp_path / "model", updates=100)
    train.fit(given, dataset, torch.device("cpu"))
    value = getattr(given, name) * 2 or 1
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(NammTransferError, match=rf"{name}={getattr(given, name)}, this run has {name}={value}"):
        train.fit(options(tmp_path / "model", **{"updates": 100, name: value}), dataset, torch.device("cpu"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_other_data_does_not_go_on_from_a_checkpoint(dataset, tmp_path):
    train.fit(options(tmp_path, updates=100), dataset, torch.device("cpu"))
    other = datasets.Dataset(dataset.id, dataset.env, dataset.trajectories[:-1])
    with pytest.raises(
        NammTransferError, match=f"data_sha256='{dataset.sha256}', this run has data_sha256='{other.sha256}'"
    ):
        train.fit(options(tmp_path, updates=100), other, torch.device("cpu"))


def test_a_finished_model_is_not_trained_over(dataset, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"finished")
    with pytest.raises(NammTransferError, match="holds a finished model"):
        train.main(options(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("heads", 3, r"--heads 3: expected a divisor of --width 16"),
        ("opening", -1, r"--opening -1: expected 0 or more steps"),
        ("ending", -5, r"--ending -5: expected 0 or more steps"),
        ("starts", (200, -1), r"--starts 200 -1: expected steps from 0 to 999"),
        ("starts", (200, 1000), r"--starts 200 1000: expected steps from 0 to 999"),
        ("seed", -1, "--seed -1"),
        ("max_ep_len", 100, r"--max-ep-len 100: an episode of Hopper-v5 may last 1000"),
        ("learning_rate", float("nan"), "--learning-rate nan"),
        ("learning_rate", float("inf"), "--learning-rate inf"),
        ("updates", -5, "--updates -5"),
        ("tokens", 0, "--tokens 0"),
        ("layers", 0, "--layers 0"),
        ("episodes", 0, "--episodes 0"),
        ("env", "nowhere", "unknown environment 'nowhere'"),
        ("dataset", "me/none-v0", "no data set 'me/none-v0'"),
    ],
)
def test_impossible_options_are_refused_before_the_work(dataset, tmp_path, name, value, complaint):
    given = dataclasses.replace(options(tmp_path / "model"), **{name: value})
    with pytest.raises(NammTransferError, match=complaint):
        train.main(given)
    assert not (tmp_path / "model").exists()


def test_windows_are_drawn_from_the_ending_or_from_the_starts(tmp_path):
    with pytest.raises(NammTransferError, match="--ending 9 with --starts: expected one of them"):
        train.main(options(tmp_path, ending=9, starts=(5,)))


def test_the_command_in_the_card_reads_back(tmp_path):
    given = options(tmp_path / "model", starts=(200, 400))
    told = card.command("module", given)
    assert "--starts 200 400" in told
    assert read_flags(train.Options, args=told.split()[3:]) == given


def test_a_full_disk_is_one_error(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NammTransferError, match=r"model'? cannot be written: .*No space left"):
        train.main(options(tmp_path / "model", updates=100))


def test_an_environment_of_gymnasium_from_random_data_to_a_model(tmp_path):
    """Any environment with vectors for observations and actions; without references the score is the return."""
    collect.main(collect.Options("Pendulum-v1", "random", steps=1000))
    found = train.main(dataclasses.replace(options(tmp_path / "model"), env="Pendulum-v1", tier="random", dataset=None))
    adapter = DecisionTransformerAdapter.load(tmp_path / "model", device="cpu")
    assert (adapter.statistics.env, adapter.model.config.state_dim) == ("Pendulum-v1", 3)
    assert found["target_return"] < 0
    text = (tmp_path / "model" / "README.md").read_text()
    assert "Without reference returns the score is the return" in text
    assert "--env Pendulum-v1" in text
