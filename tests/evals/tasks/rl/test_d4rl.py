"""D4RL's HDF5 files: what is in them arrives, and what should not be in them is refused before it is read."""

import h5py
import minari
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.rl import d4rl, datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.files import sha256

STEPS = 12


def arrays():
    """Twelve steps: a fall after 5, a timeout after 4 more, three steps of an episode that never ends."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(STEPS + 1, 11)).astype(np.float32)
    terminals, timeouts = np.zeros(STEPS, bool), np.zeros(STEPS, bool)
    terminals[4], timeouts[8] = True, True
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": generator.uniform(-1, 1, (STEPS, 3)).astype(np.float32),
        "rewards": generator.normal(size=STEPS).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def file_of(path, content):
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file[name] = array
        file["infos/qpos"] = np.zeros((STEPS, 6))
    return path


def test_episodes_end_at_terminals_and_timeouts(tmp_path):
    content = arrays()
    path = file_of(tmp_path / "hopper_medium-v2.hdf5", content)
    found = d4rl.main(d4rl.Options("hopper", path, "d4rl/hopper/medium-v2"))
    first, second = found.trajectories
    assert (len(first), first.terminated) == (5, True)
    assert (len(second), second.terminated) == (4, False)
    np.testing.assert_array_equal(first.observations[:-1], content["observations"][:5])
    np.testing.assert_array_equal(first.observations[-1], content["next_observations"][4])
    np.testing.assert_array_equal(second.actions, content["actions"][5:9])
    np.testing.assert_array_equal(second.rewards, content["rewards"][5:9])
    metadata = minari.load_dataset("d4rl/hopper/medium-v2").storage.metadata
    assert metadata["d4rl_sha256"] == sha256(path)
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    assert "v2 environment" in found.description
    assert "3 steps of an unfinished last episode are left out" in found.description


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("observations", np.zeros((STEPS, 17), np.float32), r"observations is float32 of shape \(12, 17\)"),
        ("actions", np.zeros((STEPS - 1, 3), np.float32), r"actions .*\(11, 3\)"),
        ("rewards", np.float32(3), "0 steps"),
        ("rewards", np.zeros(STEPS, "S3"), "expects numbers"),
        ("terminals", np.zeros(STEPS, np.float32), "expects flags"),
        ("timeouts", None, "holds no 'timeouts'"),
    ],
)
def test_other_layouts_are_refused(tmp_path, name, array, complaint):
    content = arrays()
    del content[name]
    path = file_of(tmp_path / "a.hdf5", content if array is None else {**content, name: array})
    with pytest.raises(NammTransferError, match=complaint):
        d4rl.read(path, "hopper")


def test_a_claim_of_many_steps_is_not_allocated(tmp_path):
    path = file_of(tmp_path / "a.hdf5", {name: array for name, array in arrays().items() if name != "rewards"})
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", shape=(10**12,), dtype="f4", chunks=(1000,))
    with pytest.raises(NammTransferError, match="1000000000000 steps"):
        d4rl.read(path, "hopper")


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "raw", "group"])
def test_nothing_outside_the_file_is_read(tmp_path, kind):
    content = arrays()
    rewards = content.pop("rewards")
    path = file_of(tmp_path / "a.hdf5", content)
    file_of(tmp_path / "other.hdf5", {"rewards": rewards})
    rewards.tofile(tmp_path / "rewards.raw")
    with h5py.File(path, "a") as file:
        if kind == "soft":
            file["elsewhere"], file["rewards"] = rewards, h5py.SoftLink("/elsewhere")
        elif kind == "external":
            file["rewards"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/rewards")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(STEPS,), dtype="f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "rewards", shape=(STEPS,))
            file.create_virtual_dataset("rewards", layout)
        elif kind == "raw":
            file.create_dataset("rewards", (STEPS,), "f4", external=[(str(tmp_path / "rewards.raw"), 0, 4 * STEPS)])
        else:
            file.create_group("rewards")
    with pytest.raises(NammTransferError, match=r"'rewards' is (a link|no data set)"):
        d4rl.read(path, "hopper")


def test_truncated_foreign_and_missing_files(tmp_path):
    path = file_of(tmp_path / "a.hdf5", arrays())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(NammTransferError, match="may be truncated"):
        d4rl.read(path, "hopper")
    (tmp_path / "text").write_text("no HDF5")
    for name in ("text", "nowhere"):
        with pytest.raises(NammTransferError, match="cannot be read as HDF5"):
            d4rl.read(tmp_path / name, "hopper")


def test_no_whole_episode(tmp_path):
    content = arrays()
    content["terminals"][:], content["timeouts"][:] = False, False
    with pytest.raises(NammTransferError, match="no whole episode"):
        d4rl.main(d4rl.Options("hopper", file_of(tmp_path / "a.hdf5", content), "d4rl/hopper/medium-v2"))


def test_values_that_are_not_finite_and_unknown_environments(tmp_path):
    content = arrays()
    content["observations"][2, 1] = np.nan
    path = file_of(tmp_path / "a.hdf5", content)
    with pytest.raises(NammTransferError, match="not finite"):
        d4rl.main(d4rl.Options("hopper", path, "d4rl/hopper/medium-v2"))
    with pytest.raises(NammTransferError, match="no data set"):
        datasets.load("d4rl/hopper/medium-v2", "hopper")
    with pytest.raises(NammTransferError, match="'ant'"):
        d4rl.read(path, "ant")


def test_another_environments_file_is_refused(tmp_path):
    """HalfCheetah and Walker2d have equal sizes, so the name of D4RL's file decides."""
    path = file_of(tmp_path / "walker2d_medium-v2.hdf5", arrays())
    with pytest.raises(NammTransferError, match=r"'walker2d_medium-v2\.hdf5' names walker2d, expected halfcheetah"):
        d4rl.main(d4rl.Options("halfcheetah", path, "d4rl/halfcheetah/medium-v2"))


def test_a_taken_id_is_refused_before_the_file_is_read(tmp_path):
    path = file_of(tmp_path / "hopper_medium-v2.hdf5", arrays())
    d4rl.main(d4rl.Options("hopper", path, "d4rl/hopper/medium-v2"))
    with pytest.raises(NammTransferError, match="already exists"):
        d4rl.main(d4rl.Options("hopper", tmp_path / "hopper_nowhere.hdf5", "d4rl/hopper/medium-v2"))


def test_unmarked_ends_and_actions_of_another_unit(tmp_path):
    long = {name: np.concatenate([array] * 100) for name, array in arrays().items()}
    long["terminals"][:], long["timeouts"][:] = False, False
    long["timeouts"][-1] = True
    path = file_of(tmp_path / "a.hdf5", long)
    with pytest.raises(NammTransferError, match=r"a\.hdf5: episode 0 has 1,200 steps"):
        d4rl.main(d4rl.Options("hopper", path, "d4rl/hopper/medium-v2"))
    path = file_of(tmp_path / "b.hdf5", {**arrays(), "actions": arrays()["actions"] * 3})
    with pytest.raises(NammTransferError, match=r"b\.hdf5: episode 0: the action of step \d+ is"):
        d4rl.main(d4rl.Options("hopper", path, "d4rl/hopper/medium-v2"))


def test_another_environments_data_are_refused_whatever_the_file_is_called(tmp_path):
    environments = Environments("walker2d", 2)
    played = rollout(environments, [0, 1], random_policy("walker2d", 0))
    ends = np.concatenate([np.arange(len(t)) == len(t) - 1 for t in played])
    content = {
        "observations": np.concatenate([t.observations[:-1] for t in played]).astype(np.float32),
        "next_observations": np.concatenate([t.observations[1:] for t in played]).astype(np.float32),
        "actions": np.concatenate([t.actions for t in played]).astype(np.float32),
        "rewards": np.concatenate([t.rewards for t in played]).astype(np.float32),
        "terminals": ends,
        "timeouts": np.zeros_like(ends),
    }
    path = file_of(tmp_path / "data.hdf5", content)
    with pytest.raises(NammTransferError, match="begin as those of walker2d do, expected halfcheetah"):
        d4rl.main(d4rl.Options("halfcheetah", path, "d4rl/halfcheetah/medium-v2"))
    assert len(d4rl.main(d4rl.Options("walker2d", path, "d4rl/walker2d/medium-v2")).trajectories) == 2
