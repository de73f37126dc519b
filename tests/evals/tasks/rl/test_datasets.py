"""Minari data sets, written and read back."""

import minari
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, make, quiet_mujoco, random_policy, rollout

ID = "namm-transfer/hopper/test-v0"


@pytest.fixture
def trajectories():
    return rollout(Environments("hopper", 3), [10, 11, 12], random_policy("hopper", 0))


def write(trajectories, dataset_id=ID):
    datasets.write(dataset_id, "hopper", trajectories, "random actions", "for a test")


def test_round_trip(trajectories, capfd):
    write(trajectories)
    found = datasets.load(ID, "hopper")
    for ours, theirs in zip(trajectories, found.trajectories, strict=True):
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert ours.terminated == theirs.terminated
    assert found.summary()["episodes"] == 3
    assert "settotalmass" not in capfd.readouterr().err


def test_others_can_read_it(trajectories):
    """The metadata a stranger to this project needs: environment, reference scores, seeds."""
    write(trajectories)
    source = minari.load_dataset(ID)
    assert source.env_spec.id == "Hopper-v5"
    metadata = source.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    assert [episode["seed"] for episode in source.storage.get_episode_metadata([0, 1, 2])] == [10, 11, 12]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari recommends more facts than a test has
def test_a_published_data_set_loads_by_its_id(trajectories):
    """`mujoco/hopper/medium-v0` has what ours have, and infos beside every step, which nobody reads here."""
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=list(episode.rewards),
            terminations=[False] * (len(episode) - 1) + [True],
            truncations=[False] * len(episode),
            infos={"x_position": np.zeros(len(episode) + 1), "qpos": np.zeros((len(episode) + 1, 6))},
        )
        for episode in trajectories
    ]
    with quiet_mujoco():
        facts = {"author": "a", "author_email": "b", "code_permalink": "c", "algorithm_name": "SAC"}
        minari.create_dataset_from_buffers("mujoco/hopper/medium-v0", buffers, env=make("hopper"), **facts)
    found = datasets.load("mujoco/hopper/medium-v0", "hopper")
    assert [e.episode_return for e in found.trajectories] == [e.episode_return for e in trajectories]


def test_statistics_are_over_the_states_acted_in(trajectories):
    write(trajectories)
    mean, std = datasets.load(ID, "hopper").state_statistics
    states = np.concatenate([t.observations[:-1] for t in trajectories])
    np.testing.assert_allclose(mean, states.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, states.std(0) + 1e-6, rtol=1e-5)


def test_missing_and_foreign_and_taken_ids(trajectories):
    with pytest.raises(NammTransferError, match=r"rl\.collect --env hopper"):
        datasets.load(ID, "hopper")
    write(trajectories)
    with pytest.raises(NammTransferError, match="walker2d expects"):
        datasets.load(ID, "walker2d")
    with pytest.raises(NammTransferError, match="already exists"):
        write(trajectories)
    with pytest.raises(NammTransferError, match="cannot be written"):
        write(trajectories, "no version")


def test_damaged_file(trajectories, tmp_path):
    write(trajectories)
    file = next((tmp_path / "minari").rglob("*.hdf5"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(NammTransferError, match="cannot be read"):
        datasets.load(ID, "hopper")


def test_values_that_are_not_finite(trajectories):
    trajectories[1].rewards[3] = np.nan
    write(trajectories)
    with pytest.raises(NammTransferError, match=r"episode 1 .* not finite"):
        datasets.load(ID, "hopper")
