"""The benchmarks of long texts by name."""

from __future__ import annotations

from collections.abc import Iterable

from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.text.questions import TextBenchmark

PACKAGE = "namm_transfer.evals.tasks.text"
"""Package whose modules define the built-in benchmarks."""


def benchmarks(names: Iterable[str] = ()) -> dict[str, TextBenchmark]:
    """Load the benchmarks of this package, and the named ones of other packages."""
    others = {name: registry.find(name, PACKAGE, TextBenchmark) for name in names if name in known()}
    return {**registry.built_in(PACKAGE, TextBenchmark), **others}


def known() -> list[str]:
    """List all names that `benchmarks` accepts."""
    return registry.names(PACKAGE, TextBenchmark)
