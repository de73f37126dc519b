"""Training a Decision Transformer, in miniature."""

import numpy as np
import pytest
import torch

from namm_transfer import policies
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import TASKS, normalised_score
from namm_transfer.files import asset
from namm_transfer.training.rl import card, train

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


@pytest.mark.parametrize("tier", ["medium", "medium-replay"])
@pytest.mark.parametrize("env", TASKS)
def test_shipped_models_beat_random_actions(env, tier):
    adapter = DecisionTransformerAdapter.load(asset(f"decision-transformer/{env}-{tier}"), device="cpu")
    returns = card.measure(adapter, env, adapter.statistics.target_return, 3, first_seed=60_000)
    random_returns = rollout(Environments(env, 3), range(60_000, 60_003), random_policy(env, 0))
    chance = np.mean([episode.episode_return for episode in random_returns])
    assert normalised_score(env, returns.mean()) > normalised_score(env, float(chance)) + (
        20 if tier == "medium" else 5
    )
