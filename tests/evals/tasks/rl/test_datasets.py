"""Minari data sets, written and read back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import make, quiet_mujoco, task

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
    with pytest.raises(NammTransferError, match="recorded in Hopper-v5, expected Walker2d-v5"):
        datasets.load(ID, "walker2d")
    with pytest.raises(NammTransferError, match="already exists"):
        write(trajectories)
    with pytest.raises(NammTransferError, match="expected a name with a version"):
        write(trajectories, "no version")
    with pytest.raises(NammTransferError, match="expected a name with a version"):
        write(trajectories, "no-version")


def test_damaged_file(trajectories, tmp_path):
    write(trajectories)
    file = next((tmp_path / "minari").rglob("*.hdf5"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(NammTransferError, match="cannot be read"):
        datasets.load(ID, "hopper")


def test_values_that_are_not_finite(trajectories):
    write(trajectories)
    with h5py.File(next((Path(os.environ["MINARI_DATASETS_PATH"])).rglob("*.hdf5")), "a") as file:
        file["episode_1/rewards"][3] = np.nan
    with pytest.raises(NammTransferError, match=r"episode 1 .* not finite"):
        datasets.load(ID, "hopper")
    trajectories[1].rewards[3] = np.nan
    with pytest.raises(NammTransferError, match=r"episode 1 .* not finite"):
        write(trajectories, "namm-transfer/hopper/other-v0")


def test_an_id_is_checked_before_the_work(trajectories):
    """A taken or malformed id is refused before the first episode is drawn."""
    write(trajectories)

    def never():
        raise AssertionError("an episode was played")
        yield

    for taken in (ID, "no version", "../outside-v0"):
        with pytest.raises(NammTransferError, match="data set"):
            datasets.write(taken, "hopper", never(), "random actions", "for a test")


KILLED = """
import os, sys, minari
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
played = rollout(Environments("hopper", 2), [0, 1], random_policy("hopper", 0))
update = minari.dataset.minari_storage.MinariStorage.update_metadata
minari.dataset.minari_storage.MinariStorage.update_metadata = lambda *_: os._exit(9)
datasets.write("namm-transfer/hopper/test-v0", "hopper", played, "random actions", "for a test")
"""


def test_a_killed_run_blocks_nothing(trajectories, recwarn):
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    assert minari.list_local_datasets() == {}
    assert not [found for found in recwarn if "Misconfigured" in str(found.message)]
    write(trajectories)
    assert list(minari.list_local_datasets()) == [ID]


def test_a_full_disk_is_named_and_leaves_nothing(trajectories, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5))
        with pytest.raises(NammTransferError, match=r"needs [\d,]+ bytes, .* has 5 left"):
            write(trajectories)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(minari.dataset._storages.hdf5_storage.h5py, "File", full)
        with pytest.raises(NammTransferError, match="No space left on device"):
            write(trajectories)
    assert not list(Path(minari.storage.get_dataset_path("")).iterdir())
    write(trajectories)


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("namm-transfer/hopper/medium-v0", r"rl\.collect --env hopper`"),
        ("namm-transfer/hopper/medium-replay-v0", r"rl\.behaviour --env hopper --replay"),
        ("namm-transfer/hopper/expert-v0", r"rl\.collect --env hopper --tier expert"),
        ("namm-transfer/hopper/mine-v0", r"nobody hosts .* --id namm-transfer/hopper/mine-v0"),
        ("mujoco/hopper/medium-v0", r"minari download mujoco/hopper/medium-v0"),
    ],
)
def test_hints_make_what_was_asked_for(asked, hint):
    with pytest.raises(NammTransferError, match=hint) as refused:
        datasets.load(asked, "hopper")
    assert ("minari download" in str(refused.value)) is not asked.startswith("namm-transfer")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda e: setattr(e, "actions", e.actions * 40), r"episode 1 .* action of step \d+ .* outside the bounds"),
        (lambda e: stretch(e, 3367), r"episode 1 .* 3,367 steps, Hopper-v5 ends an episode after 1,000"),
        (lambda e: setattr(e, "observations", e.observations[:-1]), "episode 1 .* expects"),
    ],
)
def test_implausible_episodes_are_refused_by_name(trajectories, change, complaint):
    change(trajectories[1])
    with pytest.raises(NammTransferError, match=complaint):
        write(trajectories)


def stretch(episode, steps):
    """One episode of so many steps, as from data whose ends are not marked."""
    index = np.arange(steps) % len(episode)
    episode.actions, episode.rewards = episode.actions[index], episode.rewards[index]
    episode.observations = np.concatenate([episode.observations[index], episode.observations[-1:]])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_minari_recorded_decides_not_the_sizes():
    """HalfCheetah and Walker2d have equal sizes; the recorded environment, or else the id, tells them apart."""
    played = rollout(Environments("walker2d", 1), [0], random_policy("walker2d", 0))
    datasets.write("me/data-v0", "walker2d", played, "random actions", "for a test")
    with pytest.raises(NammTransferError, match="recorded in Walker2d-v5, expected HalfCheetah-v5"):
        datasets.load("me/data-v0", "halfcheetah")
    episode = played[0]
    buffer = minari.data_collector.EpisodeBuffer(
        observations=episode.observations,
        actions=episode.actions,
        rewards=list(episode.rewards),
        terminations=[False] * (len(episode) - 1) + [True],
        truncations=[False] * len(episode),
    )
    spaces = {name: getattr(make("walker2d"), name) for name in ("observation_space", "action_space")}
    minari.create_dataset_from_buffers("me/walker2d/nameless-v0", [buffer], **spaces)
    with pytest.raises(NammTransferError, match="names walker2d, expected halfcheetah"):
        datasets.load("me/walker2d/nameless-v0", "halfcheetah")
    assert len(datasets.load("me/walker2d/nameless-v0", "walker2d").trajectories) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"data_format": "arrow"}', "[" * 100_000])
def test_metadata_that_is_none(trajectories, content):
    write(trajectories)
    next(Path(os.environ["MINARI_DATASETS_PATH"]).rglob("hopper/**/data/metadata.json")).write_text(content)
    with pytest.raises(NammTransferError, match=ID):
        datasets.load(ID, "hopper")


def test_a_storage_format_without_its_library(trajectories, monkeypatch):
    write(trajectories)
    path = next(Path(os.environ["MINARI_DATASETS_PATH"]).rglob("hopper/**/data/metadata.json"))
    path.write_text(path.read_text().replace('"hdf5"', '"arrow"'))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NammTransferError, match=r"cannot be read: .*pyarrow"):
        datasets.load(ID, "hopper")


def test_a_data_set_cannot_name_code_to_run(trajectories, tmp_path):
    """The environment comes from what is installed; an entry point in the data set's description is never called."""
    write(trajectories, "me/trap/data-v0")
    path = next(Path(os.environ["MINARI_DATASETS_PATH"]).rglob("trap/**/data/metadata.json"))
    facts = json.loads(path.read_text())
    spec = {**json.loads(facts["env_spec"]), "id": "Trap-v0", "entry_point": "os:mkdir"}
    spec["kwargs"] = {"path": str(tmp_path / "sprung")}
    path.write_text(json.dumps({**facts, "env_spec": json.dumps(spec)}))
    with pytest.raises(NammTransferError, match="'Trap-v0', which is not registered"):
        task("me/trap/data-v0")
    del facts["observation_space"]
    path.write_text(json.dumps({**facts, "env_spec": json.dumps(spec)}))
    with pytest.raises(NammTransferError, match="lacks observation_space"):
        datasets.load("me/trap/data-v0", "hopper")
    assert not (tmp_path / "sprung").exists()
