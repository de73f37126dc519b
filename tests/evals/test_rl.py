"""`evals/rl.py` end to end: real Hopper, a small random model that falls soon, several policies."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.state_statistics import Statistics
from namm_transfer.evals import rl
from namm_transfer.evals.report import ledger
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import task

SCRIPT = Path(rl.__file__)
POLICIES = "full,streaming:sinks=2,window=10,h2o:keep=0.5"


def make_model(folder, states=11, actions=3, statistics=True):
    torch.manual_seed(3)
    config = DecisionTransformerConfig(
        state_dim=states,
        act_dim=actions,
        hidden_size=32,
        n_layer=2,
        max_ep_len=1000,
        n_positions=8,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    DecisionTransformerModel(config).save_pretrained(folder)
    if statistics:
        text = Statistics(np.zeros(states), np.ones(states), target_return=1000.0).to_json()
        (folder / "statistics.json").write_text(text)
    return str(folder)


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def flags(model, out, *more):
    common = ["--env", "hopper", "--model", model, "--update-interval", "16", "--batch-envs", "3", "--episodes", "4"]
    return [*common, "--policy", POLICIES, "--out", str(out), *more]


def content(out):
    """What was found, without how long it took."""
    return {
        policy: [record.model_copy(update={"seconds": 0}) for record in found] for policy, found in played(out).items()
    }


def played(out):
    """The records of a report folder, in full, by policy."""
    found = {}
    for contents in ledger.read_task(out, "rl/hopper"):
        for record in sorted(contents.records, key=lambda record: record.index):
            found.setdefault(record.policy, []).append(record)
    return found


def test_every_policy_plays_the_same_episodes(model, tmp_path):
    report = rl.main(flags(model, tmp_path / "out", "--seeds", "2"))
    records = played(tmp_path / "out")
    assert list(records) == ["full", "streaming:sinks=2,window=10", "h2o:keep=0.5"]
    for policy, found in records.items():
        assert [record.details["env_seed"] for record in found] == [0, 10_000, 1, 10_001]
        for record in found:
            assert record.error is None
            assert record.score == pytest.approx(task("hopper").score(record.details["return"]))
            assert record.seen == 3 * record.details["length"] - 1
            assert record.updates == (0 if policy == "full" else record.seen // 16)
    assert {record.category for record in records["full"]} == {"seed 0", "seed 1"}
    assert [(row.policy, row.n, row.failed) for row in report.summary] == [(policy, 4, 0) for policy in records]
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_cache_size_is_averaged_over_the_steps(model, tmp_path):
    rl.main(flags(model, tmp_path / "out"))
    records = played(tmp_path / "out")
    assert all(record.kept_share == 1.0 for record in records["full"])
    for record in records["streaming:sinks=2,window=10"]:
        shares, held, updates = [], 0, 0
        for seen in range(1, record.seen + 1):
            held += 1
            if seen % 16 == 0:
                held, updates = min(held, 12), updates + 1
            if seen % 3 == 2:  # the state: an action is read
                shares.append(held / seen)
        assert record.kept_share == pytest.approx(np.mean(shares), rel=1e-5)
        held_on_average = np.mean([share * seen for share, seen in zip(shares, range(2, 10_000, 3), strict=False)])
        assert record.details["tokens_held"] == pytest.approx(held_on_average, rel=1e-5)
        assert record.updates == updates


def test_bytes_are_those_of_one_episode(model, tmp_path):
    rl.main(flags(model, tmp_path / "out"))
    for record in played(tmp_path / "out")["full"][:3]:
        numbers = 2 * 2 * 32 + 1  # two layers of keys and values 32 wide, and a position for each head
        assert record.details["bytes"] >= record.seen * numbers * 4
        assert record.details["bytes"] < 2 * (record.seen + 128) * (numbers + 8) * 4


def test_what_was_kept_is_in_the_report(model, tmp_path):
    rl.main(flags(model, tmp_path / "out"))
    with np.load(tmp_path / "out" / "kept.npz") as arrays:
        for policy, records in played(tmp_path / "out").items():
            for record in records:
                kept = arrays[record.arrays["kept"]]
                assert kept.shape == (2, record.details["length"], 3)
                assert kept.sum() / 2 == pytest.approx(np.mean(record.kept), rel=1e-4)
                by_kind = record.details["kept_by_kind"]
                np.testing.assert_allclose(by_kind["state"], kept[:, :, 1].mean(1), atol=1e-5)
                np.testing.assert_allclose(by_kind["action"], kept[:, :-1, 2].mean(1), atol=1e-5)
                if policy == "full":
                    assert kept.reshape(2, -1)[:, :-1].all()
                    assert by_kind == {"return": [1.0] * 2, "state": [1.0] * 2, "action": [1.0] * 2}


def test_same_seed_same_report_and_resume(model, tmp_path):
    rl.main(flags(model, tmp_path / "a"))
    rl.main(flags(model, tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    records = next((tmp_path / "b").glob("records-*.jsonl"))
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:6]))
    rl.main(flags(model, tmp_path / "b", "--resume"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_two_processes_give_the_same_report(model, tmp_path):
    rl.main(flags(model, tmp_path / "one"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_cpu_threads_per_process", "1", str(SCRIPT), *flags(model, tmp_path / "two")]
    subprocess.run(launch, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    assert len(list((tmp_path / "two").glob("records-*.jsonl"))) == 2, "both processes played"
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_window_recomputes_and_says_that_no_policy_acts(model, tmp_path, capsys):
    rl.main(flags(model, tmp_path / "out", "--context", "window", "--window", "5"))
    assert "no policy will ever act" in capsys.readouterr().err
    records = played(tmp_path / "out")
    for found in records.values():
        assert all((record.updates, record.kept_share) == (0, 1.0) for record in found)
        assert all(record.seen == 14 for record in found), "five steps less the last action"
    lengths = [[record.details["length"] for record in found] for found in records.values()]
    assert lengths[0] == lengths[1] == lengths[2]


def test_episodes_shorter_than_an_interval_are_named(model, tmp_path, capsys):
    rl.main(flags(model, tmp_path / "out", "--update-interval", "1024"))
    assert "8 of 8 episodes ended before the first update" in capsys.readouterr().err


def test_statistics_from_a_data_set(tmp_path):
    episodes = rollout(Environments("hopper", 2), [0, 1], random_policy("hopper", 0))
    datasets.write("namm-transfer/hopper/test-v0", "hopper", episodes, "random actions", "for a test")
    model = make_model(tmp_path / "published", statistics=False)
    with pytest.raises(NammTransferError, match=r"statistics\.json"):
        rl.main(flags(model, tmp_path / "out"))
    report = rl.main(flags(model, tmp_path / "out", "--dataset", "namm-transfer/hopper/test-v0"))
    assert all(row.failed == 0 for row in report.summary)


def test_a_model_with_its_statistics_in_the_card_plays(tmp_path):
    folder = make_model(tmp_path / "published", statistics=False)
    vector = ", ".join(["0.5"] * 11)
    (tmp_path / "published" / "README.md").write_text(f"mean = [{vector}]\n\nstd = [{vector}]\n")
    report = rl.main(flags(folder, tmp_path / "out"))
    assert all(row.failed == 0 for row in report.summary)
    assert report.runs[0].description["target_return"] == 3600.0, "the higher of the authors' two"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--policy", "oracle"], "oracle"),
        (["--dataset", "namm-transfer/hopper/none-v0"], "no data set"),
        (["--env", "walker2d"], "Walker2d-v5 has 17"),
        (["--env", "ant"], "unknown environment 'ant'"),
        (["--env", "CartPole-v1"], "CartPole-v1: .* expected Box"),
        (["--target-return", "nan"], "--target-return nan"),
        (["--target-return", "5,inf"], "--target-return 5,inf"),
        (["--target-return", "5,much"], "--target-return 5,much"),
        (["--render", "film.gif"], r"--render film\.gif: expected the name of an \.mp4 file"),
        (["--env", "hopper,walker2d"], "--env hopper,walker2d"),
        (["--seeds", "9"], "--seeds 9"),
        (["--batch-envs", "0"], "--batch-envs 0"),
        (["--model", "nowhere"], "'nowhere'"),
    ],
)
def test_bad_input_is_one_clear_error(model, tmp_path, more, complaint):
    with pytest.raises(NammTransferError, match=complaint):
        rl.main(flags(model, tmp_path / "out", *more))


def test_a_model_that_gives_nan_fails_its_episodes(model, tmp_path):
    broken = DecisionTransformerModel.from_pretrained(model)
    with torch.no_grad():
        broken.predict_action[0].bias.fill_(float("nan"))
    broken.save_pretrained(model)
    with pytest.raises(NammTransferError, match=r"12 of 12 episodes failed.*not finite"):
        rl.main(flags(model, tmp_path / "out"))
    assert all("not finite" in record.error for found in played(tmp_path / "out").values() for record in found)
    assert (tmp_path / "out" / "report.html").is_file()


def test_several_environments_are_one_report(model, tmp_path, monkeypatch):
    for env, states, actions in (("hopper", 11, 3), ("walker2d", 17, 6)):
        make_model(tmp_path / f"decision-transformer/{env}-medium", states, actions)
    monkeypatch.setattr(rl, "asset", lambda name: tmp_path / name)
    common = ["--policy", "full", "--episodes", "2", "--batch-envs", "2", "--out", str(tmp_path / "out")]
    report = rl.main(["--env", "hopper,walker2d", *common])
    assert [row.task for row in report.summary] == ["rl/hopper-medium", "rl/walker2d-medium"]
    again = rl.main(["--env", "hopper,walker2d", *common, "--resume"])
    assert again.records == report.records, "nothing was played twice"
    with pytest.raises(NammTransferError, match=r"--dataset 'large'.* medium and medium-replay"):
        rl.main(["--dataset", "medium,large", *common])


def test_report_says_with_which_interval_a_namm_was_evolved(model, tmp_path):
    NAMM(update_interval=64).save_pretrained(tmp_path / "namm")
    spec = f"namm:path={tmp_path / 'namm'}"
    report = rl.main([*flags(model, tmp_path / "out"), "--policy", spec])
    assert report.runs[0].description["evolved_interval"] == {spec: 64}
    assert report.runs[0].options["update_interval"] == 16


def test_the_script_ends_with_the_message_and_a_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags("nowhere", tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code != 0
    assert "error: no Decision Transformer at 'nowhere'" in capsys.readouterr().err


def walking(folder, card=None, env=None):
    """A model of Walker2d's sizes, which are HalfCheetah's too; what it says of itself is up to the caller."""
    make_model(folder, 17, 6, statistics=False)
    if card is not None:
        vector = ", ".join(["0.5"] * 17)
        (folder / "README.md").write_text(f"{card}\n\nmean = [{vector}]\n\nstd = [{vector}]\n")
    else:
        (folder / "statistics.json").write_text(Statistics(np.zeros(17), np.ones(17), env=env).to_json())
    return str(folder)


@pytest.mark.parametrize(
    ("name", "says", "complaint"),
    [
        ("model", {"env": "walker2d"}, "was trained for 'walker2d', not for 'halfcheetah'"),
        ("model", {"env": "Walker2d-v5"}, "was trained for 'Walker2d-v5', not for 'halfcheetah'"),
        (
            "model",
            {"card": "# Trained in the Gym Walker2d environment"},
            "the card of .* names walker2d",
        ),
        ("decision-transformer-gym-walker2d-expert", {}, "the name of the model .* names walker2d, expected half"),
    ],
)
def test_another_environments_model_is_refused_though_it_fits(tmp_path, name, says, complaint):
    folder = walking(tmp_path / name, **says)
    with pytest.raises(NammTransferError, match=complaint):
        rl.main(["--env", "halfcheetah", "--model", folder, "--out", str(tmp_path / "out")])


def test_a_model_that_says_nothing_is_warned_of(model, tmp_path, capsys):
    rl.main(flags(model, tmp_path / "out", "--policy", "full", "--episodes", "1"))
    assert "says which environment it was trained for" in capsys.readouterr().err


def test_a_data_set_does_not_replace_what_the_model_says(tmp_path):
    """Statistics, target and environment are the model's own; the data set fills what the model lacks."""
    episodes = rollout(Environments("hopper", 2), [0, 1], random_policy("hopper", 0))
    datasets.write("me/hopper/test-v0", "hopper", episodes, "random actions", "for a test")
    folder = make_model(tmp_path / "published", statistics=False)
    vector = ", ".join(["0.5"] * 11)
    (tmp_path / "published" / "README.md").write_text(f"mean = [{vector}]\n\nstd = [{vector}]\n")
    one = ["--policy", "full", "--episodes", "2", "--batch-envs", "2"]
    alone = rl.main(["--env", "hopper", "--model", folder, *one, "--out", str(tmp_path / "alone")])
    beside = [*one, "--dataset", "me/hopper/test-v0", "--out", str(tmp_path / "beside")]
    both = rl.main(["--env", "hopper", "--model", folder, *beside])
    assert [record.score for record in both.records] == [record.score for record in alone.records]
    assert both.runs[0].description["statistics_from"] == "README.md"
    assert both.runs[0].description["target_return_from"] == "the Decision Transformer's authors"
    (tmp_path / "published" / "README.md").unlink()
    beside[-1] = str(tmp_path / "lacking")
    lacking = rl.main(["--model", folder, *beside])
    assert lacking.runs[0].description["statistics_from"] == "data set me/hopper/test-v0"
    assert lacking.runs[0].task == "rl/hopper", "the environment is the data set's"


def test_an_episode_longer_than_the_model_is_refused_at_the_start(model, tmp_path):
    short = DecisionTransformerModel.from_pretrained(model)
    short.config.max_ep_len, short.embed_timestep = 999, torch.nn.Embedding(999, 32)
    short.save_pretrained(model)
    with pytest.raises(NammTransferError, match="has 999 time steps, an episode of Hopper-v5 may last 1000"):
        rl.main(flags(model, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("records*"))


def test_several_target_returns_are_evaluated_side_by_side(model, tmp_path):
    given = ["--policy", "full", "--episodes", "2", "--batch-envs", "2", "--target-return", "500,9000"]
    report = rl.main(["--env", "hopper", "--model", model, *given, "--out", str(tmp_path / "out")])
    assert [row.task for row in report.summary] == ["rl/hopper return 500", "rl/hopper return 9000"]
    assert [run.description["target_return"] for run in report.runs] == [500.0, 9000.0]
    assert all("return" in record.details for record in report.records)


def test_names_of_gymnasium_and_d4rl_are_the_short_name(tmp_path, monkeypatch):
    make_model(tmp_path / "decision-transformer/hopper-medium-replay")
    monkeypatch.setattr(rl, "asset", lambda name: tmp_path / name)
    common = ["--policy", "full", "--episodes", "1", "--batch-envs", "1"]
    named = rl.main(["--env", "hopper-medium-replay-v2", *common, "--out", str(tmp_path / "a")])
    plain = rl.main(["--env", "Hopper-v5", "--dataset", "medium-replay", *common, "--out", str(tmp_path / "b")])
    assert [row.task for row in named.summary] == [row.task for row in plain.summary] == ["rl/hopper-medium-replay"]
    assert named.records[0].details == plain.records[0].details
    with pytest.raises(NammTransferError, match="'expert': the shipped models were trained on medium and"):
        rl.main(["--env", "hopper-expert-v2", *common, "--out", str(tmp_path / "c")])


def test_an_environment_without_references_reports_returns(tmp_path):
    folder = tmp_path / "pendulum"
    make_model(folder, 3, 1)
    (folder / "statistics.json").write_text(Statistics(np.zeros(3), np.ones(3), env="Pendulum-v1").to_json())
    given = ["--env", "Pendulum-v1", "--model", str(folder), "--policy", "full,h2o:keep=0.5", "--episodes", "2"]
    with pytest.raises(NammTransferError, match="no target return is known for"):
        rl.main([*given, "--out", str(tmp_path / "out")])
    with pytest.raises(NammTransferError, match="--env Pendulum-v1: no model ships for it; expected --model"):
        rl.main(["--env", "Pendulum-v1", "--out", str(tmp_path / "out")])
    report = rl.main([*given, "--batch-envs", "2", "--target-return", "-200", "--out", str(tmp_path / "out")])
    assert all(record.score == pytest.approx(record.details["return"]) for record in report.records)
    assert report.runs[0].description["score"] == "return"
    assert report.runs[0].description["world"] == "Gymnasium Pendulum-v1, raw returns"


def test_an_episode_is_filmed_under_each_policy(model, tmp_path, capsys):
    av = pytest.importorskip("av", reason="needs the extra [video]")
    film = tmp_path / "films" / "hopper.mp4"
    given = flags(model, tmp_path / "out", "--render", str(film))
    try:
        rl.prepare(film, "hopper")
    except NammTransferError as problem:
        pytest.skip(str(problem))
    rl.main(given)
    made = sorted(path.name for path in film.parent.iterdir())
    assert made == ["hopper-full.mp4", "hopper-h2o-keep-0.5.mp4", "hopper-streaming-sinks-2-window-10.mp4"]
    first = played(tmp_path / "out")["full"][0].details
    assert f"hopper-full.mp4: full, return {first['return']:.0f} in {first['length']} steps" in capsys.readouterr().out
    with av.open(str(film.parent / made[0])) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(pictures) == first["length"] + 1
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50, "it moves"
