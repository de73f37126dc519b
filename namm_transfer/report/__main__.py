"""`namm-transfer report merge A B C --out DIR` and `namm-transfer report render DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import NammTransferError
from . import render
from .build import build
from .merge import merge


def merge_command(folders: Annotated[tuple[Path, ...], tyro.conf.Positional], /, *, out: Path) -> None:
    """Make one report of several evaluations.

    Args:
        folders: Folders that evaluations wrote, each with a task of its own.
        out: Folder of the merged records and of report.json, report.md and report.html.
    """
    if not folders:
        raise NammTransferError(
            "nothing to merge; expected folders, as in: report merge runs/video runs/rl --out runs/all"
        )
    print(render.terminal(merge(folders, out), out))


def render_command(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Write report.json, report.md and report.html again from the records.

    Args:
        folder: Folder that an evaluation or a merge wrote.
    """
    report = build(folder)
    render.write(report, folder)
    print(render.terminal(report, folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two."""
    tyro.extras.subcommand_cli_from_dict(
        {"merge": merge_command, "render": render_command},
        prog="namm-transfer report",
        description="Reports are a pure function of the records that evaluations write.",
        args=arguments,
    )


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
