"""Names that moved serve for one release, and say where they went."""

import importlib
import subprocess
import sys

import pytest

MOVED = {
    "namm_transfer.conformance": "namm_transfer.testing",
    "namm_transfer.report": "namm_transfer.evals.report",
    "namm_transfer.rl.behaviour": "namm_transfer.training.rl.behaviour",
    "namm_transfer.rl.collect": "namm_transfer.training.rl.collect",
    "namm_transfer.rl.d4rl": "namm_transfer.evals.tasks.rl.d4rl",
    "namm_transfer.rl.train": "namm_transfer.training.rl.train",
    "namm_transfer.video.train": "namm_transfer.training.video.train",
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module_and_warns_the_importer(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=MOVED[old]) as caught:
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert len(caught) == 1


def test_functions_of_the_report_are_found_under_the_old_name():
    from namm_transfer.report import build, diff, merge, read, verify, write

    assert all(map(callable, (build, diff, merge, read, verify, write)))


def test_an_old_command_runs_and_says_the_new_one():
    command = [sys.executable, "-m", "namm_transfer.rl.d4rl", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--file" in done.stdout
    assert "namm_transfer.rl.d4rl is now namm_transfer.evals.tasks.rl.d4rl" in done.stderr
