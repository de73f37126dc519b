"""The command `namm-transfer`."""

import importlib
import sys

import pytest
from tiny_evaluation import main

from namm_transfer.evals.harness import cli
from namm_transfer.evals.harness.options import EvalOptions, parse
from namm_transfer.evals.report.analysis import build


def test_help_teaches(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and command.purpose in text for name, command in cli.COMMANDS.items())
    assert cli.main([]) == 2


def test_an_unknown_command_is_named(capsys):
    assert cli.main(["vidio"]) == 2
    assert "unknown command 'vidio'; expected one of video, rl" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_main(name, capsys):
    if name == "lm-eval":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_a_missing_extra_is_one_clear_message(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'decord'", name="decord")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["video"]) == 2
    message = capsys.readouterr().err
    assert "'decord'" in message
    assert 'pip install "namm-transfer[video]"' in message
    with pytest.raises(ModuleNotFoundError):
        cli.main(["parity"])


def test_what_a_user_can_put_right_is_no_traceback(tmp_path, capsys):
    assert cli.main(["report", "render", str(tmp_path)]) == 2
    assert "no records in" in capsys.readouterr().err
    assert cli.main(["report", "merge", "--out", str(tmp_path)]) == 2
    assert "nothing to merge" in capsys.readouterr().err


def test_report_commands_write_the_pages(tmp_path, capsys):
    run = main(["--out", str(tmp_path / "run"), "--limit", "2"])
    for name in ("report.json", "report.md", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert cli.main(["report", "render", str(tmp_path / "run")]) == 0
    assert cli.main(["report", "merge", str(tmp_path / "run"), "--out", str(tmp_path / "all")]) == 0
    assert build(tmp_path / "all") == run
    for folder in ("run", "all"):
        assert {"report.json", "report.md", "report.html"} <= {path.name for path in (tmp_path / folder).iterdir()}
    assert (tmp_path / "all" / "kept.npz").exists()
    assert "report.html" in capsys.readouterr().out


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("namm-transfer 0.")


def test_usage_names_the_subcommand(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/namm-transfer", "rl"])
    with pytest.raises(SystemExit):
        parse(EvalOptions, ["--help"])
    assert "usage: namm-transfer rl" in capsys.readouterr().out
