"""Behaviour policies: trained, interrupted, saved, shipped, and what they collect."""

import dataclasses
import re

import gymnasium
import numpy as np
import pytest
import torch

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.tasks import TASKS, task
from namm_transfer.files import asset
from namm_transfer.training.rl import collect, experience
from namm_transfer.training.rl.actor import BehaviourActor, load_actor, save_actor


def test_actor_round_trip(tmp_path):
    actor = BehaviourActor(11, 3, 16)
    save_actor(actor, tmp_path, {"env": "hopper", "steps": 5})
    loaded, facts = load_actor(tmp_path, "hopper")
    states = torch.randn(4, 11)
    assert torch.equal(actor.act(states), loaded.act(states))
    assert facts["steps"] == 5
    seeded = [loaded.act(states, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*seeded)
    assert not torch.equal(seeded[0], loaded.act(states))


def test_actor_of_another_environment_or_shape(tmp_path):
    with pytest.raises(NammTransferError, match=r"rl\.behaviour --env hopper"):
        load_actor(tmp_path, "hopper")
    save_actor(BehaviourActor(11, 3, 16), tmp_path, {"env": "hopper"})
    with pytest.raises(NammTransferError, match="'hopper', expected 'walker2d'"):
        load_actor(tmp_path, "walker2d")
    save_actor(BehaviourActor(12, 3, 16), tmp_path, {"env": "hopper"})
    with pytest.raises(NammTransferError, match="does not hold the actor"):
        load_actor(tmp_path, "hopper")


@pytest.mark.parametrize("env", [env for env in TASKS if "medium" in TASKS[env].tiers])
def test_shipped_policies_are_medium(env):
    actor, facts = load_actor(asset(f"behaviour/{env}-medium"), env)
    played = list(collect.collect(collect.sampled(actor, env, 50_000), env, steps=1, seed=50_000))
    score = task(env).score(float(np.mean([episode.episode_return for episode in played])))
    assert 30 < score < 70, "40 to 60 over more episodes"
    assert 40 <= facts["measured"]["score"] <= 60


def test_the_same_seed_collects_the_same_data(tmp_path):
    save_actor(BehaviourActor(11, 3, 16), tmp_path / "actor", {"env": "hopper", "steps": 5, "algorithm": "ppo"})
    found = []
    for name in ("a", "b"):
        options = collect.Options(
            "hopper", actor=tmp_path / "actor", id=f"namm-transfer/hopper/{name}-v0", steps=300, seed=3
        )
        found.append(collect.main(options))
    assert found[0].summary() == found[1].summary()
    assert found[0].summary()["steps"] >= 300
    assert datasets.load("namm-transfer/hopper/a-v0", "hopper").id == "namm-transfer/hopper/a-v0"


def options(out, algorithm, **others):
    behaviour = pytest.importorskip("namm_transfer.training.rl.behaviour", reason="needs the extra [train]")
    settings = {"steps": 2048, "evaluate_every": 2048, "episodes": 1, "width": 8}
    return behaviour, behaviour.Options(
        out=out, algorithm=algorithm, state=out / "state", **{"env": "hopper", **settings, **others}
    )


def learner_in(folder, algorithm, env="hopper"):
    """A fresh learner that went on from what a training left behind."""
    from namm_transfer.training.rl.learners import LEARNERS  # needs stable-baselines3

    learner = LEARNERS[algorithm](env, 8, 5e-4, 128, 10_000, seed=1)
    assert learner.load(folder / "state")
    return learner


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_training_goes_on_where_it_was_stopped(tmp_path, algorithm):
    behaviour, given = options(tmp_path, algorithm)
    assert behaviour.train(given) == {"steps": 2048, "medium": False}
    before = learner_in(tmp_path, algorithm)
    assert before.model.num_timesteps == 2048
    given.steps = 4096
    assert behaviour.train(given)["steps"] == 4096
    after = learner_in(tmp_path, algorithm)
    if algorithm == "sac":
        found = after.model.replay_buffer.observations[: before.model.replay_buffer.pos]
        np.testing.assert_array_equal(found, before.model.replay_buffer.observations[: len(found)])
        assert after.model.replay_buffer.pos >= 4096 - 3, "a stop loses the transition in progress, no more"
    else:
        assert after.seen["observations"].count > before.seen["observations"].count > 1000


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_the_actor_does_what_the_learner_would(tmp_path, algorithm):
    behaviour, given = options(tmp_path, algorithm)
    behaviour.train(given)
    learner = learner_in(tmp_path, algorithm)
    states = np.random.default_rng(0).normal(size=(20, 11)).astype(np.float32)
    normalised = learner.environments.normalize_obs(states) if algorithm == "ppo" else states
    expected, _ = learner.model.predict(normalised, deterministic=True)
    np.testing.assert_allclose(learner.actor().act(torch.from_numpy(states)).numpy(), expected, atol=1e-5)


class Short(gymnasium.Env):
    """Episodes of three steps; every second one ends by itself. Observation and reward count the steps."""

    def __init__(self):
        self.steps = self.episodes = 0

    def reset(self, *, seed=None, options=None):
        self.steps, self.episodes = 0, self.episodes + 1
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 3
        terminated = over and self.episodes % 2 == 0
        return np.full(2, self.steps), self.steps, terminated, over and not terminated, {}


def test_whole_episodes_are_recorded_and_recalled(tmp_path):
    episodes = []
    recorder = experience.Recorder(Short(), episodes)
    for number in range(5):
        recorder.reset()
        for step in range(2 if number == 3 else 3):  # the fourth is broken off
            recorder.step(np.full(1, number + step / 10))
        experience.keep(tmp_path, 10 * number, episodes)
    assert episodes == []
    found = list(experience.recall(tmp_path))
    assert [episode.terminated for episode in found] == [False, True, False, False]
    for number, episode in zip([0, 1, 2, 4], found, strict=True):
        np.testing.assert_array_equal(episode.observations, [[0, 0], [1, 1], [2, 2], [3, 3]])
        np.testing.assert_allclose(episode.actions[:, 0], [number, number + 0.1, number + 0.2])
        np.testing.assert_array_equal(episode.rewards, [1, 2, 3])
    experience.forget_after(tmp_path, 20)
    assert len(list(experience.recall(tmp_path))) == 3


@pytest.mark.parametrize(("algorithm", "medium"), [("sac", False), ("ppo", True)])
def test_what_training_lived_through_becomes_a_data_set(tmp_path, algorithm, medium, monkeypatch):
    name = "namm-transfer/hopper/medium-replay-v0"
    behaviour, given = options(tmp_path, algorithm, evaluate_every=1024)
    monkeypatch.setattr(behaviour, "reaches", lambda *_: False)
    behaviour.train(given)
    given.steps, given.replay = 3072, name
    monkeypatch.setattr(behaviour, "reaches", lambda *_: medium)
    assert behaviour.train(given) == {"steps": 3072, "medium": medium}
    found = datasets.load(name, "hopper")
    steps = found.summary()["steps"]
    assert 1500 < steps <= 3072, "a restart and the end break off an episode in each environment"
    assert np.abs(np.concatenate([episode.actions for episode in found.trajectories])).max() <= 1
    assert f"{algorithm} training" in found.description
    assert ("short of the medium tier" in found.description) is not medium
    assert f"--replay {name}" in found.description


def test_a_tier_is_a_score_and_moves(tmp_path):
    behaviour, medium = options(tmp_path, "sac")
    expert = dataclasses.replace(medium, tier="expert")
    assert behaviour.reaches(medium, {"score": 50, "return": 1600, "length": 600})
    assert not behaviour.reaches(medium, {"score": 41, "return": 1310, "length": 1000}), "stands and shuffles"
    assert not behaviour.reaches(medium, {"score": 61, "return": 2000, "length": 600})
    assert behaviour.reaches(expert, {"score": 101, "return": 3300, "length": 1000})
    assert not behaviour.reaches(expert, {"score": 89, "return": 2900, "length": 1000})


def test_without_reference_returns_a_tier_is_a_return(tmp_path):
    """Pendulum's actions lie between -2 and 2, those of an actor between -1 and 1."""
    behaviour, given = options(tmp_path, "ppo", env="Pendulum-v1", tier="expert", reach=-5000.0)
    found = behaviour.train(given)
    assert found == {"steps": 2048, "expert": True}
    made = collect.main(collect.Options("Pendulum-v1", "expert", tmp_path, steps=200))
    assert np.abs(np.concatenate([episode.actions for episode in made.trajectories])).max() > 1.2
    both = collect.Options("Pendulum-v1", "medium-expert", tmp_path, tmp_path, steps=200)
    with pytest.raises(NammTransferError, match="tier 'expert', expected 'medium'"):
        collect.main(both)
    with pytest.raises(NammTransferError, match="expected --reach with a mean return"):
        behaviour.train(dataclasses.replace(given, reach=None))
    with pytest.raises(NammTransferError, match=r"--reach 5\.0: hopper has reference returns"):
        behaviour.train(dataclasses.replace(given, env="hopper", reach=5.0))


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_an_actors_actions_are_scaled_to_the_bounds_of_the_environment(tmp_path, algorithm):
    behaviour, given = options(tmp_path, algorithm, env="Pendulum-v1", reach=1e6)
    behaviour.train(given)
    learner = learner_in(tmp_path, algorithm, "Pendulum-v1")
    world = learner.model.get_env().envs[0]
    seen, _ = world.reset(seed=0)
    action = learner.actor().act(torch.from_numpy(seen).float())
    learner.episodes.clear()
    for _ in range(200):
        world.step(action.numpy())
    np.testing.assert_allclose(learner.episodes[-1].actions[-1], 2 * action.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("algorithm", "ppo"), ("learning_rate", 1e-4), ("width", 16), ("seed", 7), ("batch_size", 64), ("tier", "expert")],
)
def test_another_training_does_not_go_on_from_this_state(tmp_path, name, value):
    behaviour, given = options(tmp_path, "sac", steps=64, evaluate_every=64)
    behaviour.train(given)
    own = re.escape(repr(getattr(given, name)))
    with pytest.raises(NammTransferError, match=f"{name}={own}, this run has {name}={value!r}"):
        behaviour.train(dataclasses.replace(given, **{name: value}))


def test_a_finished_policy_is_not_trained_over(tmp_path):
    behaviour, given = options(tmp_path, "ppo")
    (tmp_path / "actor.safetensors").write_bytes(b"finished")
    with pytest.raises(NammTransferError, match="holds a finished policy"):
        behaviour.train(given)
    assert (tmp_path / "actor.safetensors").read_bytes() == b"finished"


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_a_damaged_state_is_one_error(tmp_path, algorithm):
    behaviour, given = options(tmp_path, algorithm, steps=64, evaluate_every=64)
    behaviour.train(given)
    (tmp_path / "state" / "parameters.pt").write_bytes(b"half")
    with pytest.raises(NammTransferError, match=r"state.* cannot be read"):
        behaviour.train(given)
    (tmp_path / "state" / "identity.json").write_text("{")
    with pytest.raises(NammTransferError, match=r"identity\.json cannot be read"):
        behaviour.train(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", -1), ("learning_rate", float("nan")), ("width", 0), ("seed", -1), ("episodes", 0), ("replay", "no id")],
)
def test_impossible_numbers_are_refused_before_the_work(tmp_path, name, value):
    behaviour, given = options(tmp_path, "ppo", **{name: value})
    with pytest.raises(NammTransferError, match=f"{value}|finite"):
        behaviour.train(given)
    assert not (tmp_path / "state").exists()


def test_tiers_of_collected_data(tmp_path):
    for tier, steps in (("medium", 5), ("expert", 9)):
        facts = {"env": "hopper", "steps": steps, "algorithm": "ppo", "tier": tier}
        save_actor(BehaviourActor(11, 3, 16), tmp_path / tier, facts)
    given = collect.Options("hopper-medium-v2", steps=300, tier="random")
    made = collect.main(given)
    assert (made.id, "uniformly random" in made.description) == ("namm-transfer/hopper/random-v0", True)
    both = collect.Options("hopper", "medium-expert", tmp_path / "medium", tmp_path / "expert", steps=400)
    made = collect.main(both)
    assert "stopped after 5 steps; then sampled actions of a ppo policy stopped after 9" in made.description
    assert len({episode.observations[0, 0] for episode in made.trajectories}) == len(made.trajectories)
    with pytest.raises(NammTransferError, match="tier 'expert', expected 'medium'"):
        collect.main(collect.Options("hopper", actor=tmp_path / "expert"))
    with pytest.raises(NammTransferError, match="already exists"):
        collect.main(both)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64])
def test_a_damaged_actor_is_one_error(tmp_path, content):
    (tmp_path / "actor.safetensors").write_bytes(content)
    with pytest.raises(NammTransferError, match="does not hold the actor of hopper"):
        load_actor(tmp_path, "hopper")
