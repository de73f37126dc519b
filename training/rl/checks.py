"""Checks of options, error messages and the entry point that this folder's commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tyro

from namm_transfer.errors import NammTransferError

Options = TypeVar("Options")


def check_positive(options: Any, *names: str) -> None:
    """Refuse options that are not finite numbers above 0, and a `seed` that no generator takes."""
    for name in names:
        value = getattr(options, name)
        if not (math.isfinite(value) and value > 0):
            raise NammTransferError(f"--{name.replace('_', '-')} {value}: expected a finite number above 0")
    if not 0 <= options.seed < 2**32:
        raise NammTransferError(f"--seed {options.seed}: expected a number from 0 to 4294967295")


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Convert operating-system errors (disk full, no permission) to a `NammTransferError` that names the folder."""
    try:
        yield
    except OSError as problem:
        raise NammTransferError(f"{str(folder)!r} cannot be written: {problem}") from problem


def run_command(main: Callable[[Options], Any], options: type[Options]) -> None:
    """Parse the command line, run, print the result; on a `NammTransferError`, exit with its one-line message."""
    try:
        print(main(tyro.cli(options)))
    except NammTransferError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")
