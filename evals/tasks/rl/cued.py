"""Control whose cue is gone when it matters: running at remembered speeds, and a T-maze, both simulated by MuJoCo.

Importing this module registers `namm-transfer/CuedHalfCheetah-v0`, `namm-transfer/CuedSwimmer-v0` and
`namm-transfer/TMaze-v0` with Gymnasium. Each takes `in_sight=True`, which shows the cue for as long as it matters: that
is how behaviour is made, and what the upper end of the score is measured with. All reward is paid in the last step, as
in the delayed-return tasks of Chen et al. (2021, section 5.7), so that the return-to-go cannot give the cue away.

The corridor and its cue follow the T-maze of Bakker (2002), "Reinforcement learning with long short-term memory".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.spaces import Box

RUNS = 4
RUN_CUES = range(4, 20, 5)
"""Steps of 1,000 that show the cue of one run each."""
FIRST_RUN, RUN_EVERY, RUN_STEPS = 200, 200, 120
"""Step at which the first run begins, steps from one run to the next, and steps of a run."""
HALFCHEETAH_SPEEDS = (0.8, 3.0, 5.5)
SWIMMER_SPEEDS = (-0.1, 0.0, 0.1)
"""Speeds in metres a second that a cue can ask for."""


class CuedRuns(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A body that is told four speeds in its first 20 steps and has to run at them much later, one after the other.

    Four runs of 120 steps begin at steps 200, 400, 600 and 800. Each has one of three speeds, drawn independently, and
    shown in one step: 4, 9, 14 and 19, not the very first ones, which rules with attention sinks keep in any case. The
    observation is the body's own, then three numbers that are 1 for the speed being shown and otherwise 0, then one
    that says how much of the present run has passed (0 outside of runs, 1 in a run's last step). A run scores
    max(0, 1 - |v - u| / gap), with v the mean speed in its last 60 steps, u the speed asked for, and gap the smallest
    distance between two speeds. The return is 100 times the mean score of the runs.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], speeds: Sequence[float], in_sight: bool) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, Box)
        self.speeds = speeds
        self.in_sight = in_sight
        low, high = env.observation_space.low, env.observation_space.high
        extra = np.ones(len(self.speeds) + 1)
        self.observation_space = Box(np.concatenate([low, 0 * extra]), np.concatenate([high, extra]), dtype=np.float64)
        self.asked = np.zeros(RUNS, dtype=int)
        self.steps = 0
        self._reached: list[list[float]] = []

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The EnvSpec this environment was made from, which says all: making it again wraps the body again."""
        return self.unwrapped.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the body and draw the speeds of the four runs."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.asked = self.env.np_random.integers(len(self.speeds), size=RUNS)
        self.steps = 0
        self._reached = [[] for _ in range(RUNS)]
        return self._with_cue(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the body; the reward is 0 but in the last step, where it is the return."""
        run, passed = self._run()
        observation, _, terminated, _, info = self.env.step(action)
        if run is not None and passed > 0.5:
            self._reached[run].append(info["x_velocity"])
        self.steps += 1
        over = self.steps == FIRST_RUN + RUNS * RUN_EVERY
        reward = 100.0 * float(np.mean(self.scores())) if over else 0.0
        return self._with_cue(observation), reward, terminated, over, info

    def scores(self) -> np.ndarray:
        """Compute the score of each run, (4,) float64 from 0 to 1; 0 for a run that has not been."""
        gap = float(np.diff(self.speeds).min())
        return np.array(
            [
                max(0.0, 1 - abs(float(np.mean(reached)) - self.speeds[asked]) / gap) if reached else 0.0
                for reached, asked in zip(self._reached, self.asked, strict=True)
            ]
        )

    def _run(self) -> tuple[int | None, float]:
        """Return the number of the present run and the share of it that has passed after this step."""
        run, step = divmod(self.steps - FIRST_RUN, RUN_EVERY)
        return (run, (step + 1) / RUN_STEPS) if 0 <= run < RUNS and step < RUN_STEPS else (None, 0.0)

    def _with_cue(self, observation: np.ndarray) -> np.ndarray:
        cue = np.zeros(len(self.speeds))
        run, passed = self._run()
        if self.steps in RUN_CUES:
            cue[self.asked[RUN_CUES.index(self.steps)]] = 1
        elif self.in_sight and run is not None:
            cue[self.asked[run]] = 1
        return np.concatenate([observation, cue, [passed]])


COLOURS = 6
"""Colours of the maze's signs."""
CUE_STEPS = range(10, 10 + COLOURS)
"""Steps in which the maze shows its signs: not the first ones, which rules with attention sinks keep in any case."""
SEEN_FROM = 18.0
"""Metres along the corridor from which the colour at its end is seen."""
ARM = 1.0
"""Distance in metres from the corridor's axis at which an arm counts as chosen."""


class TMaze(MujocoEnv):
    """A ball in a corridor of 20 metres passes six signs and must obey one of them at its end, hundreds of steps later.

    In steps 10 to 15 one sign a step is shown, in random order: a colour, and a side, drawn independently for each
    colour. In the last two metres and beyond one of the colours is shown, and the ball must turn to the side that its
    sign gave. The observation is the ball's position (x, y) and velocity (x, y), six numbers of which one is 1 while
    its colour is shown, and two of which one is 1 while its side is shown: left, right. Actions are forces along x and
    y in [-1, 1]. The corridor takes some 500 steps. The episode ends in an arm, with a return of 100 for the right side
    and 0 for the other; it is cut after 800 steps.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by Gymnasium)
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 25,
    }

    def __init__(self, in_sight: bool = False, **options: Any) -> None:
        bound = np.array([np.inf] * 4 + [1.0] * (COLOURS + 2))
        space = Box(np.concatenate([-bound[:4], np.zeros(COLOURS + 2)]), bound, dtype=np.float64)
        model = str(Path(__file__).with_name("t_maze.xml"))
        super().__init__(model, 2, space, camera_name=options.pop("camera_name", "above"), **options)
        self.in_sight = in_sight
        self.sides, self.order = np.zeros(COLOURS, dtype=int), np.arange(COLOURS)
        self.colour, self.steps = 0, 0

    def reset_model(self) -> np.ndarray:
        """Put the ball near the corridor's start, draw the signs' sides and order, and the colour at the end."""
        self.sides, self.order = self.np_random.integers(2, size=COLOURS), self.np_random.permutation(COLOURS)
        self.colour, self.steps = int(self.np_random.integers(COLOURS)), 0
        place = self.init_qpos + self.np_random.uniform(-0.1, 0.1, 2)
        self.set_state(place, self.init_qvel)
        return self._observation()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Push the ball; the reward is 0 until it is in an arm."""
        self.do_simulation(np.asarray(action, dtype=np.float64), self.frame_skip)
        self.steps += 1
        sideways = float(self.data.qpos[1])
        over = abs(sideways) > ARM
        reward = 100.0 * (over and (sideways > 0) == (self.sides[self.colour] == 0))
        return self._observation(), reward, over, False, {}

    def _observation(self) -> np.ndarray:
        colour, side = np.zeros(COLOURS), np.zeros(2)
        at_end = self.data.qpos[0] > SEEN_FROM
        if at_end or self.steps in CUE_STEPS:
            shown = self.colour if at_end else self.order[self.steps - CUE_STEPS.start]
            colour[shown] = 1
            side[self.sides[shown]] = self.in_sight or not at_end
        return np.concatenate([self.data.qpos, self.data.qvel, colour, side])


def without_cue(env: str, observations: np.ndarray) -> np.ndarray:
    """Return observations (steps, size) made with `in_sight=True` as they are without: no cue after the first steps."""
    hidden = observations.copy()
    if env == "t-maze":
        hidden[CUE_STEPS.stop :, -2:] = 0
    else:
        hidden[RUN_CUES.stop :, -4:-1] = 0
    return hidden


def cued_halfcheetah(in_sight: bool = False, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make `CuedRuns` of Gymnasium's HalfCheetah-v5, which takes the other `options`."""
    return CuedRuns(HalfCheetahEnv(**options), HALFCHEETAH_SPEEDS, in_sight)


def cued_swimmer(in_sight: bool = False, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make `CuedRuns` of Gymnasium's Swimmer-v5, which takes the other `options`."""
    return CuedRuns(SwimmerEnv(**options), SWIMMER_SPEEDS, in_sight)


for _name, _entry, _limit in (
    ("CuedHalfCheetah", "cued_halfcheetah", FIRST_RUN + RUNS * RUN_EVERY),
    ("CuedSwimmer", "cued_swimmer", FIRST_RUN + RUNS * RUN_EVERY),
    ("TMaze", "TMaze", 800),
):
    gymnasium.register(
        f"namm-transfer/{_name}-v0", entry_point=f"{__name__}:{_entry}", max_episode_steps=_limit, order_enforce=False
    )
