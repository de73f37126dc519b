"""Checks of options, error messages and the entry point that this folder's commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.options import read_flags

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


def run_command(main: Callable[[Options], Any], options: type[Options]) -> NoReturn:
    """Parse the command line, run, print the result, and end with an exit status of `evals.harness.cli`."""

    def command() -> None:
        try:
            print(main(read_flags(options)))
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
            raise

    script(command)
