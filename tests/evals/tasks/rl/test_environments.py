"""Several real environments side by side."""

import os
import subprocess
import sys
import types
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import TASKS, make, task


def still(observations, rewards):
    return np.zeros((len(observations), 3))


@pytest.mark.parametrize("name", TASKS)
def test_spaces_are_what_the_task_says(name):
    env = make(name)
    assert env.observation_space.shape == (TASKS[name].observation_size,)
    assert env.action_space.shape == (TASKS[name].action_size,)
    assert float(env.action_space.high.max()) == -float(env.action_space.low.min()) == 1.0


def test_normalised_score_is_0_for_random_and_100_for_the_expert():
    assert task("hopper").score(-20.272305) == 0
    assert task("walker2d").score(4592.3) == pytest.approx(100)


def test_no_log_file_and_no_notice(tmp_path, capfd):
    for name in TASKS:
        make(name).reset(seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_seed_is_an_initial_state():
    first, second = Environments("hopper", 2), Environments("hopper", 2)
    np.testing.assert_array_equal(first.reset([5, 6]), second.reset([5, 6]))
    assert not np.array_equal(first.observations[0], first.observations[1])
    np.testing.assert_array_equal(second.reset([6])[0], first.observations[1])


def test_a_neighbour_changes_nothing_and_a_finished_row_stands_still():
    seen = []

    def act(observations, rewards):
        seen.append(observations.copy())
        actions = np.zeros((len(observations), 3))
        actions[1] = 1  # falls first
        return actions

    together = rollout(Environments("hopper", 2), [3, 4], act)
    alone = rollout(Environments("hopper", 1), [3], still)[0]
    np.testing.assert_array_equal(together[0].observations, alone.observations)
    np.testing.assert_array_equal(together[0].rewards, alone.rewards)
    assert len(together[1]) < len(together[0]) == len(alone)
    assert all(np.array_equal(observation[1], together[1].observations[-1]) for observation in seen[len(together[1]) :])
    assert together[0].terminated


def test_rows_without_a_seed_are_not_played():
    played = rollout(Environments("hopper", 3), [7], still)
    assert [episode.seed for episode in played] == [7]


def test_returns_to_go_are_the_rewards_to_come():
    episode = rollout(Environments("hopper", 1), [0], random_policy("hopper", 0))[0]
    returns = episode.returns_to_go()
    assert returns[0] == pytest.approx(episode.episode_return)
    assert returns[-1] == episode.rewards[-1]


def test_bad_actions_are_refused():
    batch = Environments("hopper", 2)
    batch.reset([0, 1])
    with pytest.raises(NammTransferError, match=r"\(2, 3\)"):
        batch.step(np.zeros((2, 4)))
    actions = np.zeros((2, 3))
    actions[1, 2] = np.nan
    with pytest.raises(NammTransferError, match="not finite"):
        batch.step(actions)


def test_unknown_environment_and_missing_mujoco(monkeypatch):
    with pytest.raises(NammTransferError, match=r"'ant'.*hopper"):
        make("ant")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(NammTransferError, match=r"namm-transfer\[rl\]"):
        make("hopper")
    assert Path("MUJOCO_LOG.TXT").exists() is False


def test_actions_are_clipped_to_the_bounds_with_a_warning():
    """D4RL's environments clip; the reward's control cost and the data then hold the clipped action."""
    batch = Environments("hopper", 2)
    with pytest.warns(UserWarning, match="Hopper-v5: actions outside its bounds are clipped"):
        wild = rollout(batch, [3, 4], lambda observations, _: np.array([[0, 0, 0], [40.0, -3, 0.5]]))
    assert batch.clipped.tolist() == [0, len(wild[1])]
    tame = rollout(Environments("hopper", 2), [3, 4], lambda observations, _: np.array([[0, 0, 0], [1.0, -1, 0.5]]))
    np.testing.assert_array_equal(wild[1].actions, tame[1].actions)
    np.testing.assert_array_equal(wild[1].rewards, tame[1].rewards)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("hopper-medium-v2", (11, 3)), ("Hopper-v5", (11, 3)), ("Ant-v5", (105, 8)), ("ant-expert-v2", (105, 8))],
)
def test_names_of_gymnasium_and_d4rl(name, sizes):
    found = task(name)
    assert (found.observation_size, found.action_size) == sizes
    assert found.max_steps == 1000
    assert found.name == ("hopper" if "hopper" in name.lower() else "Ant-v5")


def test_an_environment_without_references_scores_its_return():
    found = task("Pendulum-v1")
    assert (found.has_references, found.score(-321.5), found.max_steps) == (False, -321.5, 200)
    assert found.bounds[1].tolist() == [2.0]
    episode = rollout(Environments("Pendulum-v1", 1), [0], random_policy("Pendulum-v1", 0))[0]
    assert len(episode) == 200
    assert 1 < np.abs(episode.actions).max() <= 2


def test_spaces_that_are_not_served():
    with pytest.raises(NammTransferError, match=r"CartPole-v1: .* actions Discrete\(2\); expected Box"):
        task("CartPole-v1")


@pytest.mark.parametrize(
    ("name", "data"),
    [("antmaze-medium-diverse-v2", "D4RL/antmaze/medium-diverse-v1"), ("maze2d-umaze-v1", "D4RL/pointmaze/umaze-v2")],
)
def test_d4rls_mazes_are_minaris_data_sets(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(NammTransferError, match=f"minari download {data}"):
        task(name)


def fails(**_):
    raise AssertionError


def test_an_environment_that_cannot_be_made_says_why():
    gymnasium.register("Failing-v0", entry_point=fails, max_episode_steps=3)
    with pytest.raises(NammTransferError, match=r"Failing-v0 cannot be made: AssertionError: raise AssertionError"):
        task("Failing-v0")


class Goal(gymnasium.Env):
    """A goal environment: an observation dictionary, three steps."""

    observation_space = gymnasium.spaces.Dict(
        {
            "achieved_goal": gymnasium.spaces.Box(-9, 9, (2,)),
            "desired_goal": gymnasium.spaces.Box(-9, 9, (2,)),
            "observation": gymnasium.spaces.Box(-9, 9, (3,)),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, reward=1.0):
        self.reward = reward

    def _seen(self):
        seen = {"achieved_goal": np.zeros(2), "desired_goal": np.full(2, 7), "observation": np.arange(3)}
        return {name: value.astype(np.float32) for name, value in seen.items()}

    def reset(self, *, seed=None, options=None):
        return self._seen(), {}

    def step(self, action):
        return self._seen(), self.reward, False, False, {}


@pytest.fixture
def goal():
    sys.modules["namm_goal"] = types.SimpleNamespace(Goal=Goal)
    gymnasium.register("NammGoal-v0", "namm_goal:Goal", max_episode_steps=3)
    yield "NammGoal-v0"
    del gymnasium.registry["NammGoal-v0"], sys.modules["namm_goal"]


def test_goal_dictionaries_become_observation_and_desired_goal(goal):
    episode = rollout(Environments(goal, 1), [0], random_policy(goal, 0))[0]
    np.testing.assert_array_equal(episode.observations, [[0, 1, 2, 7, 7]] * 4)


def test_environment_and_references_come_from_the_data_set(goal):
    """Recorded with another argument, step limit and reference returns than the registered environment has."""
    env = gymnasium.make(goal, reward=2.0, max_episode_steps=5)
    seen = Goal()._seen()
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations={name: np.stack([value] * 6) for name, value in seen.items()},
            actions=np.zeros((5, 1), np.float32),
            rewards=[2.0] * 5,
            terminations=[False] * 5,
            truncations=[False] * 4 + [True],
        )
        for _ in range(2)
    ]
    facts = {"author": "a", "author_email": "b", "code_permalink": "c", "algorithm_name": "d", "description": "e"}
    facts |= {"ref_min_score": 1.0, "ref_max_score": 11.0}
    minari.create_dataset_from_buffers("me/goal/data-v0", buffers, env=env, eval_env=env.spec, **facts)
    found = task("me/goal/data-v0")
    assert (found.gym_id, found.observation_size, found.max_steps, found.score(6.0)) == (goal, 5, 5, 50.0)
    assert rollout(Environments("me/goal/data-v0", 1), [0], random_policy(goal, 0))[0].rewards.tolist() == [2.0] * 5
    data = datasets.load("me/goal/data-v0", "me/goal/data-v0")
    np.testing.assert_array_equal(data.trajectories[1].observations, [[0, 1, 2, 7, 7]] * 6)
    datasets.write("me/goal/copy-v0", "me/goal/data-v0", data.trajectories, "copied", "for a test")
    assert datasets.load("me/goal/copy-v0", "me/goal/copy-v0").sha256 == data.sha256


FILMED = """
from pathlib import Path
from namm_transfer.evals.tasks.rl.film import prepare
prepare(Path("film.mp4"), "hopper")
"""


def test_no_opengl_is_one_error():
    """MuJoCo reads MUJOCO_GL when it is first imported, so this is a process of its own."""
    given = {**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    code = f"import sys; sys.modules['OpenGL'] = None\n{FILMED}"
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=120)
    assert "NammTransferError: hopper cannot be rendered" in done.stderr
    assert "MUJOCO_GL is 'osmesa', expected egl" in done.stderr


def test_a_backend_that_is_none_is_one_error():
    code = "from namm_transfer.evals.tasks.rl.tasks import task\ntask('Ant-v5')"
    given = {**os.environ, "MUJOCO_GL": "painting"}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=120)
    assert "NammTransferError: Ant-v5 cannot be made: RuntimeError" in done.stderr
    assert "MUJOCO_GL='painting': expected a backend that is installed" in done.stderr
