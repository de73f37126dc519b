"""Import a data set of D4RL (Fu et al., 2020) from its HDF5 file into Minari.

    python -m namm_transfer.evals.tasks.rl.d4rl --env hopper --file hopper_medium-v2.hdf5 --id d4rl/hopper/medium-v2

The file is that of a `v2` locomotion task: `observations`, `next_observations`, `actions`, `rewards`, `terminals` and
`timeouts`, a row a step. Names, links, shapes and types are checked before anything is read. Steps after the last
terminal or timeout belong to an episode whose end is not known and are left out, as D4RL's own readers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.options import read_flags
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Trajectory
from namm_transfer.evals.tasks.rl.identity import check_first_states, check_name
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import sha256

MOST_STEPS = 10_000_000
"""Steps beyond which a file is refused before anything is allocated; the largest of D4RL's have 2 million."""
FLAGS, NUMBERS = "bui", "f"
"""NumPy type kinds that are accepted: for terminals and timeouts, and for all other arrays."""


@dataclass
class Options:
    """Import a D4RL file."""

    env: str
    """hopper, halfcheetah or walker2d."""
    file: Path
    """The HDF5 file."""
    id: str
    """Minari id to make, for example d4rl/hopper/medium-v2."""


def read(path: Path, env: str) -> dict[str, np.ndarray]:
    """Read the six arrays of a D4RL file, (steps, ...), in their stored types.

    Raises:
        NammTransferError: no such file, not HDF5 or truncated, an array missing, behind a link, kept in other files, of
            another shape or type than `env` has, or with NaN or infinity in it.
    """
    try:
        with h5py.File(path, "r") as file:
            sources = {name: _checked(file, name, path) for name in _layout(env, 0)}
            steps = sources["rewards"].shape[0] if sources["rewards"].ndim else 0
            if not 0 < steps <= MOST_STEPS:
                raise NammTransferError(f"{path} holds {steps} steps, expected 1 to {MOST_STEPS:,}")
            for name, (shape, kinds) in _layout(env, steps).items():
                found = sources[name]
                if found.shape != shape or found.dtype.kind not in kinds:
                    raise NammTransferError(
                        f"{path}: {name} is {found.dtype} of shape {found.shape}, {env} expects "
                        f"{'numbers' if kinds == NUMBERS else 'flags'} of shape {shape}"
                    )
            arrays = {name: source[:] for name, source in sources.items()}
    except (OSError, RuntimeError, KeyError) as problem:
        raise NammTransferError(f"{path} cannot be read as HDF5, it may be truncated: {problem}") from problem
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NammTransferError(f"{path}: {name} holds values that are not finite")
    return arrays


def _layout(env: str, steps: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the expected shape and type kinds of each array by its name."""
    reference = task(env)
    observations, actions = (steps, reference.observation_size), (steps, reference.action_size)
    return {
        "observations": (observations, NUMBERS),
        "next_observations": (observations, NUMBERS),
        "actions": (actions, NUMBERS),
        "rewards": ((steps,), NUMBERS),
        "terminals": ((steps,), FLAGS),
        "timeouts": ((steps,), FLAGS),
    }


def _checked(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return a data set stored in the file itself; links could point at anything that the user can read."""
    link = file.get(name, getlink=True)
    if link is None:
        raise NammTransferError(f"{path} holds no {name!r}, which D4RL's v2 files have; it has {sorted(file)}")
    if not isinstance(link, h5py.HardLink):
        raise NammTransferError(f"{path}: {name!r} is a link, expected a data set in the file itself")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise NammTransferError(f"{path}: {name!r} is no data set kept in the file itself")
    return found


def episodes(arrays: dict[str, np.ndarray]) -> Iterator[Trajectory]:
    """Split after each terminal or timeout; a step that is both counts as terminal."""
    terminals = arrays["terminals"].astype(bool)
    ends = np.flatnonzero(terminals | arrays["timeouts"].astype(bool)) + 1
    for first, end in zip([0, *ends], ends, strict=False):
        steps = slice(first, end)
        last = arrays["next_observations"][end - 1 : end]
        yield Trajectory(
            seed=-1,
            observations=np.concatenate([arrays["observations"][steps], last]).astype(np.float64),
            actions=arrays["actions"][steps].astype(np.float32),
            rewards=arrays["rewards"][steps].astype(np.float64),
            terminated=bool(terminals[end - 1]),
        )


def main(options: Options) -> datasets.Dataset:
    """Import a D4RL file and return the new data set as read back.

    Raises:
        NammTransferError: the id is taken, the file's name or the first states of its episodes are those of another
            environment, or what `read` and
            `datasets.check_trajectory` refuse.
    """
    check_name(options.env, options.file.name, f"the file name {options.file.name!r}")
    datasets.check_free(options.id)
    arrays = read(options.file, options.env)
    found = list(episodes(arrays))
    if not found:
        raise NammTransferError(f"{options.file} holds no whole episode: no terminal and no timeout")
    for number, trajectory in enumerate(found):
        datasets.check_trajectory(trajectory, options.env, f"{options.file}: episode {number}")
    check_first_states(options.env, np.stack([trajectory.observations[0] for trajectory in found]), str(options.file))
    left_out = len(arrays["rewards"]) - sum(map(len, found))
    digest = sha256(options.file)
    description = (
        f"Imported from D4RL's {options.file.name} (SHA-256 {digest}), recorded in D4RL's v2 environment, not in "
        f"{task(options.env).gym_id}."
    )
    if left_out:
        description += f" {left_out} steps of an unfinished last episode are left out."
    datasets.write(options.id, options.env, found, "unknown", description, {"d4rl_sha256": digest})
    return datasets.load(options.id, options.env)


def command() -> None:
    """Import the file that the command line names and print what was made."""
    made = main(read_flags(Options))
    print(made.id, made.summary())


if __name__ == "__main__":
    script(command)
