"""The environments that can be evaluated: their names, their spaces and the returns that scores are measured against.

A name is a short name (`hopper`, `t-maze`), the name of a D4RL data set (`hopper-medium-v2`), any id registered with
Gymnasium (`Ant-v5`), or the id of a local Minari data set (`D4RL/pointmaze/umaze-v2`), whose metadata hold its
environment and reference returns.

Source of the references: D4RL (Fu et al., 2020), `d4rl/infos.py`. They were measured on the v2 environments; the
environments here are Gymnasium's v5, so a score says "v5 return against the D4RL references" and is not a D4RL number.
Those of the tasks with a cue (see `cued`) were measured here, in 200 episodes each: random actions, and the behaviour
that has the cue in sight.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.store import EXTRAS, environment_of, folder, open_dataset, registered

if TYPE_CHECKING:
    import gymnasium

GOAL_PARTS = ("observation", "desired_goal")
"""Entries of a goal environment's observation that become one vector, in this order, as d3rlpy reads Minari's data."""
D4RL_NAME = re.compile(
    r"(hopper|halfcheetah|walker2d|ant)-(random|medium-replay|medium-expert|medium|expert|full-replay)-v\d+"
)

D4RL_MINARI = {
    "antmaze": "antmaze-v1", "maze2d": "pointmaze-v2", "kitchen": "kitchen-v2", "pen": "pen-v2", "door": "door-v2",
    "hammer": "hammer-v2", "relocate": "relocate-v2",
}  # fmt: skip
"""D4RL's other families -> the name and version of their data in Minari: antmaze-umaze-v2, D4RL/antmaze/umaze-v1."""


@dataclass(frozen=True)
class Task:
    """One environment and what its returns are measured against."""

    name: str
    """The name used in reports, in `statistics.json` and on the command line."""
    gym_id: str
    """Gymnasium's environment id."""
    observation_size: int
    """Numbers in one observation, a goal included."""
    action_size: int
    """Numbers in one action."""
    random_return: float | None = None
    """Undiscounted return of a uniformly random policy; None if there are no references."""
    expert_return: float | None = None
    """Undiscounted return of the reference expert; None if there are no references."""
    target_return: float | None = None
    """The higher of the two target returns the Decision Transformer's authors condition on, if they name any."""
    low: tuple[float, ...] = ()
    """Smallest actions, (action_size,); empty means -1."""
    high: tuple[float, ...] = ()
    """Largest actions, (action_size,); empty means 1."""
    max_steps: int = 1000
    """Steps after which the environment ends an episode."""
    tiers: tuple[str, ...] = ("medium", "medium-replay")
    """Data sets that the shipped models were trained on, the default first; none where no model ships."""
    references: str = "D4RL's reference returns (measured on its v2 environments)"
    """Source of the reference returns, for reports."""
    spec: Any = None
    """Gymnasium's EnvSpec where the id alone does not say everything (an environment recovered from a data set)."""

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and largest actions, two vectors (action_size,) float64."""
        ones = np.ones(self.action_size)
        return (np.array(self.low) if self.low else -ones), (np.array(self.high) if self.high else ones)

    @property
    def has_references(self) -> bool:
        """True if scores are normalised; otherwise a score is the raw return."""
        return self.random_return is not None and self.expert_return is not None

    def score(self, episode_return: float) -> float:
        """Compute 100 (R - random) / (expert - random), or return R itself if there are no references."""
        if self.random_return is None or self.expert_return is None:
            return float(episode_return)
        return 100.0 * (episode_return - self.random_return) / (self.expert_return - self.random_return)


_CUED: dict[str, Any] = {
    "tiers": ("sighted",),
    "references": "random actions and the behaviour that has the cue in sight",
}
TASKS: dict[str, Task] = {
    "hopper": Task("hopper", "Hopper-v5", 11, 3, -20.272305, 3234.3, 3600.0),
    "halfcheetah": Task("halfcheetah", "HalfCheetah-v5", 17, 6, -280.178953, 12135.0, 12000.0),
    "walker2d": Task("walker2d", "Walker2d-v5", 17, 6, 1.629008, 4592.3, 5000.0),
    "cued-halfcheetah": Task("cued-halfcheetah", "namm-transfer/CuedHalfCheetah-v0", 21, 6, 19.35, 91.93, **_CUED),
    "cued-swimmer": Task("cued-swimmer", "namm-transfer/CuedSwimmer-v0", 12, 2, 26.86, 71.38, **_CUED),
    "t-maze": Task("t-maze", "namm-transfer/TMaze-v0", 12, 2, 0.0, 100.0, max_steps=800, **_CUED),
}
"""The tasks with a short name."""


def task(name: str) -> Task:
    """Return the task called `name` (see the module); `NammTransferError` if it is unknown or not supported."""
    d4rl = D4RL_NAME.fullmatch(name)
    name = name if d4rl is None else "Ant-v5" if d4rl[1] == "ant" else d4rl[1]
    group, _, rest = name.partition("-")
    if group in D4RL_MINARI and re.search(r"-v\d+$", rest):
        minari, version = D4RL_MINARI[group].split("-")
        name = f"D4RL/{minari}/{rest.rpartition('-')[0]}-{version}"
    known = {**TASKS, **{found.gym_id: found for found in TASKS.values()}}
    if name in known:
        return known[name]
    found = _installed(name)
    if found is None and "/" in name:
        found = _recorded(name, folder(name))
    if found is None:
        raise NammTransferError(
            f"unknown environment {name!r}; expected one of {', '.join(TASKS)}, an id registered with Gymnasium such "
            "as Ant-v5, a D4RL name such as hopper-medium-v2, or the id of a local Minari data set"
        )
    return found


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Stop MuJoCo from writing ./MUJOCO_LOG.TXT and logging to the console while an environment is made.

    Gymnasium's own models draw a deprecation notice each time they are compiled. The log file stays switched off.
    """
    try:
        import mujoco
    except Exception:  # not installed, or MUJOCO_GL names what is not: MuJoCo and PyOpenGL each raise their own
        yield
        return
    if not hasattr(mujoco, "MjLogConfig"):  # MuJoCo 3 writes its log only on errors
        yield
        return
    config = mujoco.MjLogConfig.get()
    console = config.logto_console
    config.logto_file = config.logto_console = False
    config.set()
    try:
        yield
    finally:
        config.logto_console = console
        config.set()


def make(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make the Gymnasium environment of task `name`, with its step limit and without a log file.

    Args:
        name: see the module.
        options: passed to `gymnasium.make`, for example `render_mode="rgb_array"`.

    Raises:
        NammTransferError: a library is missing, too old, or cannot use the graphics backend in MUJOCO_GL.
    """
    found = task(name)
    return _make(found.spec or found.gym_id, found.gym_id, **options)


def flat(observation: Any) -> np.ndarray:
    """Convert one observation or a batch to an array (..., size); goal dictionaries give the parts in `GOAL_PARTS`."""
    if isinstance(observation, dict):
        return np.concatenate([np.asarray(observation[part]) for part in GOAL_PARTS], axis=-1)
    return np.asarray(observation)


def _make(spec: Any, gym_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    try:
        import gymnasium

        described = registered(spec) if isinstance(spec, str) else spec
        if described is None or "mujoco" in str(described.entry_point):
            import mujoco  # noqa: F401 (if it is missing, say so rather than what Gymnasium makes of it)
        with quiet_mujoco():
            return gymnasium.make(spec, **options)
    except ImportError as problem:
        raise NammTransferError(f"{gym_id} needs {EXTRAS}: {problem}") from problem
    except Exception as problem:  # whatever an environment's maker raises: assertions, MuJoCo's and OpenGL's own errors
        backend = os.environ.get("MUJOCO_GL")
        hint = f" (MUJOCO_GL={backend!r}: expected a backend that is installed, egl or osmesa)" if backend else ""
        reason = str(problem) or traceback.extract_tb(problem.__traceback__)[-1].line  # of an assertion
        raise NammTransferError(f"{gym_id} cannot be made: {type(problem).__name__}: {reason}{hint}") from problem


@lru_cache
def _installed(name: str) -> Task | None:
    spec = registered(name)
    return None if spec is None else _described(name, spec)


def _described(name: str, spec: Any, random_return: float | None = None, expert_return: float | None = None) -> Task:
    """Make the task of an EnvSpec, with sizes read from the spaces of one instance."""
    import gymnasium

    env = _make(spec, name)
    seen, acted = env.observation_space, env.action_space
    env.close()
    if isinstance(seen, gymnasium.spaces.Dict) and set(GOAL_PARTS) <= set(seen.spaces):
        parts = [seen.spaces[part] for part in GOAL_PARTS]
    else:
        parts = [seen]
    boxes = [part for part in [*parts, acted] if isinstance(part, gymnasium.spaces.Box) and len(part.shape) == 1]
    if len(boxes) <= len(parts):
        raise NammTransferError(
            f"{name}: observations are {seen}, actions {acted}; expected Box spaces of one dimension, or a dictionary "
            f"with {' and '.join(GOAL_PARTS)} for the observations"
        )
    limit = spec.max_episode_steps
    if limit is None:
        raise NammTransferError(f"{name} has no step limit; expected an environment with max_episode_steps")
    return Task(
        name=name,
        gym_id=spec.id,
        observation_size=sum(part.shape[0] for part in boxes[:-1]),
        action_size=boxes[-1].shape[0],
        random_return=random_return,
        expert_return=expert_return,
        low=tuple(boxes[-1].low.astype(float).tolist()),
        high=tuple(boxes[-1].high.astype(float).tolist()),
        max_steps=int(limit),
        tiers=(),
        references="the reference returns in the data set",
        spec=spec,
    )


@lru_cache
def _recorded(dataset_id: str, _: Path) -> Task:
    """Make the task of the environment that a Minari data set names for evaluation, with its reference returns."""
    try:
        source = open_dataset(dataset_id)
    except FileNotFoundError as problem:
        raise NammTransferError(
            f"{dataset_id!r} is neither registered with Gymnasium nor a local Minari data set ({problem}); fetch a "
            f"published one with `minari download {dataset_id}`"
        ) from problem
    spec, facts = environment_of(source, dataset_id), source.storage.metadata
    for known in TASKS.values():
        if spec.id == known.gym_id and not spec.kwargs:
            return known
    references = facts.get("ref_min_score"), facts.get("ref_max_score")
    try:
        low, high = map(float, references)
        usable = np.isfinite([low, high]).all() and high > low
    except (TypeError, ValueError):
        usable = False
    return _described(dataset_id, spec, *((low, high) if usable else ()))
