"""The command `namm-transfer`, and the exit statuses of every script of this package.

`namm-transfer rl --env hopper` does the same as `python evals/rl.py --env hopper` in a checkout. To use several
processes or machines, run `accelerate launch -m namm_transfer.evals.rl --env hopper`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NoReturn

from namm_transfer.errors import NammTransferError

OK, CHECK_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


@dataclasses.dataclass
class Command:
    """A subcommand of `namm-transfer`."""

    module: str
    """Module whose `main(arguments)` the command runs."""
    extra: str | None
    """Optional extra of the package that installs the module's dependencies; None if it needs none."""
    purpose: str
    """One line for the help text."""


COMMANDS = {
    "video": Command("namm_transfer.evals.video", "video", "ask a video-language model about videos"),
    "rl": Command("namm_transfer.evals.rl", "rl", "let a Decision Transformer play MuJoCo episodes"),
    "text": Command("namm_transfer.evals.text", "text", "ask a language model about long texts"),
    "ask": Command("namm_transfer.evals.ask", "video", "ask about a film of your own and see what was kept of it"),
    "read": Command("namm_transfer.evals.read", "text", "ask about a text of your own and see what was kept of it"),
    "lm-eval": Command("namm_transfer.evals.lm_eval", "lm-eval", "run lm-eval's tasks, with a policy in model namm"),
    "evolve": Command("namm_transfer.evals.evolve", "evolve", "make a NAMM on text"),
    "report": Command("namm_transfer.evals.report.__main__", "report", "merge, verify, compare and publish reports"),
    "parity": Command("namm_transfer.parity", None, "replay recorded updates and compare every number"),
}

USAGE = """usage: namm-transfer COMMAND [OPTIONS]

Evaluate policies that decide which tokens stay in a transformer's key/value cache. video, rl and text run a model once
under each policy of --policy and write a report that compares score and cache size: does a memory that was trained on
text alone serve a video model, or an agent, that it never saw?

{commands}

namm-transfer COMMAND --help explains the options of a command. To begin with, a film and a text of your own:

  namm-transfer ask film.mp4 "What does she pick up?" --model Qwen/Qwen2.5-VL-7B-Instruct
  namm-transfer read report.txt "When was the bridge opened?"

or a comparison of policies, a few minutes on a laptop:

  namm-transfer rl --env hopper --limit 4 --policy full,namm,h2o:match=namm --out runs/rl
  namm-transfer video --films 2 --policy full,namm --out runs/video

Then read runs/rl/report.html, or put reports together and check them:

  namm-transfer report merge runs/video runs/rl --out runs/transfer
  namm-transfer report verify runs/video --samples 2

A run that was interrupted continues with the same command and --resume. Several processes or machines:
accelerate launch -m namm_transfer.evals.rl --env hopper

Exit status: 0 done; 1 a check failed, or an evaluation under a policy scored nothing; 2 something you can put right,
named in one line; 130 interrupted."""


def usage() -> str:
    """Return the help text of `namm-transfer`."""
    return USAGE.format(commands="\n".join(f"  {name:<8} {command.purpose}" for name, command in COMMANDS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments (`sys.argv[1:]` by default) name and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"namm-transfer {metadata.version('namm-transfer')}")
        return OK
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return OK if given else USER_ERROR
    name, *rest = given
    if name not in COMMANDS:
        print(f"namm-transfer: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return USER_ERROR
    command = COMMANDS[name]
    try:
        return status(lambda: importlib.import_module(command.module).main(rest), f"namm-transfer {name}")
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").startswith("namm_transfer"):
            raise
        print(
            f"namm-transfer {name} needs the Python module {error.name!r}, which is not installed: "
            f'pip install "namm-transfer[{command.extra}]"',
            file=sys.stderr,
        )
        return USER_ERROR


def script(main: Callable[[], Any]) -> NoReturn:
    """Run the `main` of a script and end the program with its exit status.

    if __name__ == "__main__":
        script(main)
    """
    sys.exit(status(main, "error"))


def status(main: Callable[[], Any], name: str) -> int:
    """Run `main` and return the exit status. Errors that the user can fix print one line on stderr, no traceback.

    Args:
        main: function that returns an exit status, a `Report` (a failure if a policy scored nothing), or None.
        name: prefix of the error line.
    """
    try:
        result = main()
    except NammTransferError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the program that reads the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CHECK_FAILED
    except OSError as error:
        print(f"{name}: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    if result is None or isinstance(result, int):
        return int(result or OK)
    unscored = [f"{row.policy} on {row.task}" for row in result.summary if row.score is None]
    if unscored:
        print(f"{name}: nothing was scored under {', '.join(unscored)}", file=sys.stderr)
    return CHECK_FAILED if unscored else OK


if __name__ == "__main__":
    sys.exit(main())
