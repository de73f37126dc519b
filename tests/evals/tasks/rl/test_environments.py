"""Several real environments side by side."""

import sys
from pathlib import Path

import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import environments
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.scores import TASKS, normalised_score


def still(observations, rewards):
    return np.zeros((len(observations), 3))


@pytest.mark.parametrize("name", TASKS)
def test_spaces_are_what_the_task_says(name):
    env = environments.make(name)
    assert env.observation_space.shape == (TASKS[name].observation_size,)
    assert env.action_space.shape == (TASKS[name].action_size,)
    assert float(env.action_space.high.max()) == -float(env.action_space.low.min()) == 1.0


def test_normalised_score_is_0_for_random_and_100_for_the_expert():
    assert normalised_score("hopper", -20.272305) == 0
    assert normalised_score("walker2d", 4592.3) == pytest.approx(100)


def test_no_log_file_and_no_notice(tmp_path, capfd):
    for name in TASKS:
        environments.make(name).reset(seed=0)
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
        environments.make("ant")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(NammTransferError, match=r"namm-transfer\[rl\]"):
        environments.make("hopper")
    assert Path("MUJOCO_LOG.TXT").exists() is False
