"""Training a Decision Transformer and evaluating it in environments without a shipped model: Ant, and a maze."""

import copy

import gymnasium
import minari
import numpy as np
import pytest

from namm_transfer.evals import rl
from namm_transfer.evals.report.verdict import number
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.training.rl import train

TINY = {"updates": 30, "tokens": 60, "width": 16, "layers": 1, "episodes": 2}
POLICIES = ["--policy", "full,h2o:keep=0.5", "--update-interval", "16", "--episodes", "2", "--batch-envs", "2"]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)


def record(name, env, act, steps, **references):
    """A data set as Minari writes it, observations as the environment gives them; evaluated in episodes of 40 steps."""
    buffers = []
    for seed in range(4):
        seen, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(steps):
            actions.append(act(seen[-1]))
            now, reward, *_ = env.step(actions[-1])
            seen.append(now)
            rewards.append(float(reward))
        whole = {part: np.stack([one[part] for one in seen]) for part in seen[0]} if isinstance(seen[0], dict) else None
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                seed=seed,
                observations=np.stack(seen) if whole is None else whole,
                actions=np.stack(actions),
                rewards=rewards,
                terminations=[False] * steps,
                truncations=[False] * (steps - 1) + [True],
            )
        )
    spec = copy.deepcopy(env.spec)
    spec.max_episode_steps = 40
    facts = {"author": "a", "author_email": "b", "code_permalink": "c", "algorithm_name": "d", "description": "e"}
    minari.create_dataset_from_buffers(name, buffers, env=env, eval_env=spec, **facts, **references)


def test_ant_from_data_to_a_report(tmp_path, capsys):
    env = gymnasium.make("Ant-v5", max_episode_steps=40)
    draw = np.random.default_rng(0)
    record("me/ant/short-v0", env, lambda _: draw.uniform(-1, 1, 8).astype(np.float32), 30)
    train.main(train.Options("me/ant/short-v0", tmp_path / "ant", **TINY))
    given = ["--env", "me/ant/short-v0", "--model", str(tmp_path / "ant"), "--target-return", "10,20"]
    report = rl.main([*given, *POLICIES, "--out", str(tmp_path / "out")])
    tasks = ["rl/me/ant/short-v0 return 10", "rl/me/ant/short-v0 return 20"]
    assert [row.task for row in report.summary] == [task for task in tasks for _ in range(2)]
    assert all(record.updates >= 2 for record in report.records if record.policy != "full")
    assert report.runs[0].description["world"] == "Gymnasium Ant-v5, raw returns"
    shown = capsys.readouterr().out
    assert "normalised" not in shown
    spread = next(row for row in report.returns if row.task == tasks[0])
    assert spread.sd > 0
    assert number(spread.mean) in shown


def test_a_published_maze_from_its_name_to_a_report(tmp_path):
    """A data set named and described as D4RL/pointmaze/umaze-v2 is: environment and references are found in it."""
    pytest.importorskip("gymnasium_robotics", reason="gymnasium-robotics is not installed (namm-transfer[robotics])")
    name = "D4RL/pointmaze/umaze-v2"
    task("PointMaze_UMaze-v3")  # registers gymnasium-robotics
    maze = {"maze_map": [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]}
    options = {**maze, "reward_type": "sparse", "continuing_task": True, "reset_target": False}
    env = gymnasium.make("PointMaze_UMaze-v3", max_episode_steps=1_000_000, **options)

    def towards(seen):
        pull = 10 * (seen["desired_goal"] - seen["achieved_goal"]) - seen["observation"][2:]
        return np.clip(pull, -1, 1).astype(np.float32)

    record(name, env, towards, 40, ref_min_score=23.85, ref_max_score=161.86)
    found = task(name)
    assert (found.gym_id, found.observation_size, found.action_size) == ("PointMaze_UMaze-v3", 6, 2)
    assert (found.max_steps, found.random_return, found.expert_return) == (40, 23.85, 161.86)
    train.main(train.Options(name, tmp_path / "maze", **TINY))
    given = ["--dataset", name, "--model", str(tmp_path / "maze"), "--target-return", "30"]
    report = rl.main([*given, *POLICIES, "--out", str(tmp_path / "out")])
    assert [(row.policy, row.failed) for row in report.summary] == [("full", 0), ("h2o:keep=0.5", 0)]
    for played in report.records:
        assert played.score == pytest.approx(100 * (played.details["return"] - 23.85) / (161.86 - 23.85))
    assert report.runs[0].description["world"].endswith("normalised by the reference returns in the data set")


def test_a_behaviour_policy_learns_with_goals(tmp_path):
    pytest.importorskip("gymnasium_robotics", reason="gymnasium-robotics is not installed (namm-transfer[robotics])")
    behaviour = pytest.importorskip("namm_transfer.training.rl.behaviour", reason="needs the extra [train]")
    given = {
        "reach": 1e6,
        "steps": 320,
        "evaluate_every": 320,
        "episodes": 1,
        "width": 8,
        "replay": "me/maze/replay-v0",
    }
    env = "PointMaze_UMaze-v3"
    assert behaviour.train(behaviour.Options(env, tmp_path / "actor", **given)) == {"steps": 320, "medium": False}
    (lived,) = datasets.load("me/maze/replay-v0", env).trajectories
    assert (lived.observations.shape, lived.actions.shape) == ((301, 6), (300, 2))
