"""The evaluation harness: flags, the loop over policies and samples, and the command `namm-transfer`.

    from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start

An evaluator defines its options (a dataclass that inherits from `EvalOptions`), a list of `Sample`s and a function that
answers a few samples under one policy; `run` does the rest. A sample passes through four stages: `plan` decides what to
evaluate, `runner` evaluates it, `recorder` stores the outcome, and `namm_transfer.evals.report` makes the report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namm_transfer.evals.harness.runner import EvalOptions, Evaluate, Outcome, Sample, parse, run, start

__all__ = ["EvalOptions", "Evaluate", "Outcome", "Sample", "parse", "run", "start"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `namm-transfer --help` works without the packages that evaluations need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("namm_transfer.evals.harness.runner"), name)
