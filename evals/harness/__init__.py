"""The evaluation harness: flags, the loop over policies and samples, and the command `namm-transfer`.

    from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start

An evaluator defines its options (a dataclass that inherits from `EvalOptions`), a list of `Sample`s and a function that
answers a few samples under one policy; `run` does the rest. A sample goes one way: `plan` says what is to be evaluated,
`runner` evaluates it, `recorder` writes down what came of it, and `namm_transfer.evals.report` makes the report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namm_transfer.evals.harness.options import EvalOptions, parse
    from namm_transfer.evals.harness.runner import run, start
    from namm_transfer.evals.harness.sample import Evaluate, Outcome, Sample

__all__ = ["EvalOptions", "Evaluate", "Outcome", "Sample", "parse", "run", "start"]

_PLACES = {
    "EvalOptions": "options",
    "parse": "options",
    "run": "runner",
    "start": "runner",
    "Evaluate": "sample",
    "Outcome": "sample",
    "Sample": "sample",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `namm-transfer --help` works without the packages that evaluations need."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
