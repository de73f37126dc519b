"""The commands of this folder end with the exit statuses of `namm-transfer`."""

import sys

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.harness import cli
from namm_transfer.training.rl import collect
from namm_transfer.training.rl.checks import run_command


def interrupted(options):
    raise KeyboardInterrupt


def refused(options):
    raise NammTransferError("expected something else")


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda options: f"made {options.env}", cli.OK, "made hopper"),
        (refused, cli.USER_ERROR, "error: expected something else"),
        (interrupted, cli.INTERRUPTED, "goes on from the last checkpoint"),
    ],
)
def test_exit_statuses(main, status, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collect", "--env", "hopper"])
    with pytest.raises(SystemExit) as end:
        run_command(main, collect.Options)
    assert end.value.code == status
    assert said in "".join(capsys.readouterr())
