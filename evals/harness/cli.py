"""The command `namm-transfer`: one word for each of the scripts, without a checkout.

`namm-transfer rl --env hopper` is `python evals/rl.py --env hopper`; over several processes or machines it is
`accelerate launch -m namm_transfer.evals.rl --env hopper`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

from namm_transfer.errors import NammTransferError


@dataclasses.dataclass
class Command:
    """One word of the command line."""

    module: str
    """Module whose `main(arguments)` it runs."""
    extra: str | None
    """Extra of the package that brings what the module needs."""
    purpose: str
    """A line for the help text."""


COMMANDS = {
    "video": Command("namm_transfer.evals.video", "video", "questions about videos, answered under each policy"),
    "rl": Command("namm_transfer.evals.rl", "rl", "MuJoCo episodes, played under each policy"),
    "text": Command("namm_transfer.evals.text", "text", "questions about long texts, answered under each policy"),
    "evolve": Command("namm_transfer.evals.evolve", "evolve", "evolve a NAMM on text"),
    "report": Command(
        "namm_transfer.evals.report.__main__", "report", "merge, verify and compare reports, or make a gallery of them"
    ),
    "parity": Command("namm_transfer.parity", None, "replay recorded updates and compare every number"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a check that failed, 2 for something the user can put right."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"namm-transfer {metadata.version('namm-transfer')}")
        return 0
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    name, *rest = given
    if name not in COMMANDS:
        print(f"namm-transfer: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        status = importlib.import_module(command.module).main(rest)
    except NammTransferError as error:
        print(f"namm-transfer {name}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").startswith("namm_transfer"):
            raise
        print(
            f"namm-transfer {name} needs the Python module {error.name!r}, which is not installed: "
            f'pip install "namm-transfer[{command.extra}]"',
            file=sys.stderr,
        )
        return 2
    return status if isinstance(status, int) else 0


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<8} {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: namm-transfer COMMAND [OPTIONS]",
            "",
            "Does a memory evolved on text help a video model, and an agent, that it never saw?",
            "",
            *lines,
            "",
            "namm-transfer COMMAND --help explains the options of a command. To begin with:",
            "",
            "  namm-transfer rl --env hopper --limit 4 --policy full,namm",
            "  namm-transfer report merge runs/video runs/rl --out runs/transfer",
            "  namm-transfer report verify runs/video --samples 2",
            "",
            "Several processes or machines: accelerate launch -m namm_transfer.evals.rl --env hopper",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
