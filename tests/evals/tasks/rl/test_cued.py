"""Tasks whose cue is gone when it matters."""

import numpy as np
import pytest

from namm_transfer.evals.tasks.rl.cued import (
    COLOURS,
    CUE_STEPS,
    FIRST_RUN,
    RUN_EVERY,
    RUN_STEPS,
    RUNS,
    SEEN_FROM,
    without_cue,
)
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.tasks import make
from namm_transfer.training.rl.sighted import sighted_policy

BODIES = ("cued-halfcheetah", "cued-swimmer")
CUED = (*BODIES, "t-maze")


def still(observations, rewards):
    return np.zeros((len(observations), 6 if observations.shape[1] == 21 else 2))


def ahead(observations, rewards):
    actions = still(observations, rewards)
    actions[:, 0] = 1  # along the maze's corridor
    return actions


@pytest.mark.parametrize("env", BODIES)
def test_each_cue_is_shown_in_one_of_the_first_steps_alone(env):
    (episode,) = rollout(Environments(env, 1), [3], still)
    cue = episode.observations[:, -4:-1]
    assert len(episode) == 1000
    np.testing.assert_array_equal(np.flatnonzero(cue.any(1)), [4, 9, 14, 19])
    environment = make(env)
    environment.reset(seed=3)
    np.testing.assert_array_equal(cue[4:20:5].argmax(1), environment.get_wrapper_attr("asked"))


@pytest.mark.parametrize("env", BODIES)
def test_runs_are_announced_where_they_take_place(env):
    (episode,) = rollout(Environments(env, 1), [3], still)
    running = np.flatnonzero(episode.observations[:-1, -1])
    expected = [FIRST_RUN + run * RUN_EVERY + step for run in range(RUNS) for step in range(RUN_STEPS)]
    np.testing.assert_array_equal(running, expected)
    assert episode.observations[FIRST_RUN + RUN_STEPS - 1, -1] == 1


@pytest.mark.parametrize("env", CUED)
def test_hiding_the_cue_gives_the_observations_of_the_environment_that_does_not_show_it(env):
    seen = [rollout(Environments(env, 1, in_sight=shown), [7], ahead)[0].observations for shown in (True, False)]
    assert not np.array_equal(*seen)
    np.testing.assert_array_equal(without_cue(env, seen[0]), seen[1])


@pytest.mark.parametrize("env", CUED)
def test_no_reward_comes_before_the_last_step(env):
    environments = Environments(env, 2, in_sight=True)
    for episode in rollout(environments, [0, 1], sighted_policy(env, 0)):
        assert not episode.rewards[:-1].any()
        assert episode.episode_return > 40


@pytest.mark.parametrize("env", BODIES)
def test_seeds_draw_every_speed(env):
    environment, asked = make(env), []
    for seed in range(30):
        environment.reset(seed=seed)
        asked.append(environment.get_wrapper_attr("asked"))
    assert np.bincount(np.concatenate(asked), minlength=3).min() > 20
    environment.reset(seed=29)
    np.testing.assert_array_equal(environment.get_wrapper_attr("asked"), asked[-1])


def test_a_run_at_another_speed_than_asked_for_scores_nothing():
    """The cheetah runs at full speed in every run: what was asked for decides the score."""
    environment = Environments("cued-halfcheetah", 4, in_sight=True)
    fast = sighted_policy("cued-halfcheetah", 0)

    def act(observations, rewards):
        shown = observations.copy()
        shown[:, -4:-1] = [0, 0, 1]
        return fast(shown, rewards)

    rollout(environment, range(4), act)
    for body in environment.envs:
        asked, scores = body.get_wrapper_attr("asked"), body.get_wrapper_attr("scores")()
        assert (scores[asked == 2] > 0.6).all()
        assert (scores[asked == 0] == 0).all()


def test_the_maze_pays_for_the_side_that_the_sign_of_its_colour_gave():
    told = sighted_policy("t-maze", 0)
    for side in (0, 1):
        environment = Environments("t-maze", 6)

        def act(observations, rewards, side=side):
            shown = observations.copy()
            shown[:, -2:] = np.eye(2)[side]
            return told(shown, rewards)

        played = rollout(environment, range(6), act)
        for episode in played:
            signs, colour = episode.observations[list(CUE_STEPS), 4:], episode.observations[-1, 4:-2]
            (sign,) = signs[signs[:, :-2] @ colour == 1]
            assert episode.episode_return == 100 * sign[-2 + side]
        assert {episode.episode_return for episode in played} == {0, 100}


def test_the_maze_shows_every_colour_once_and_at_the_end_one_without_its_side():
    (episode,) = rollout(Environments("t-maze", 1, in_sight=True), [5], sighted_policy("t-maze", 0))
    hidden = without_cue("t-maze", episode.observations)
    shown = np.flatnonzero(hidden[:, 4:].any(1))
    np.testing.assert_array_equal(np.sort(hidden[list(CUE_STEPS), 4:-2].argmax(1)), range(COLOURS))
    np.testing.assert_array_equal(np.flatnonzero(hidden[:, -2:].any(1)), CUE_STEPS)
    np.testing.assert_array_equal(shown[COLOURS:], np.flatnonzero(hidden[:, 0] > SEEN_FROM))
    assert len(shown) > COLOURS + 20


def test_seeds_draw_signs_and_the_colour_at_the_end():
    maze, drawn = make("t-maze").unwrapped, []
    for seed in range(60):
        maze.reset(seed=seed)
        drawn.append((*maze.sides, *maze.order, maze.colour))
    sides, order, colours = np.split(np.array(drawn), [COLOURS, 2 * COLOURS], axis=1)
    assert 15 < sides.sum(0).min() <= sides.sum(0).max() < 45
    assert (np.sort(order) == np.arange(COLOURS)).all()
    assert len(np.unique(order, axis=0)) > 50
    assert set(colours.ravel()) == set(range(COLOURS))
