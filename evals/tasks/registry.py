"""Benchmarks by name: one module each in `evals/tasks/video` and `evals/tasks/text`, and those of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, Protocol, TypeVar

from namm_transfer import plugins
from namm_transfer.errors import NammTransferError

GROUP = "namm_transfer.benchmarks"
"""Entry points by which other packages declare benchmarks: name -> a `VideoBenchmark` or a `TextBenchmark`."""


class Named(Protocol):
    """The fields that every kind of benchmark has."""

    @property
    def name(self) -> str:
        """Name on the command line."""


Kind = TypeVar("Kind", bound=Named)


@cache
def _modules(package: str) -> list[ModuleType]:
    folder = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folder)]


def built_in(kind: type[Kind]) -> dict[str, Kind]:
    """Collect by name what the modules beside the one that defines `kind` list in their tuple `BENCHMARKS`."""
    package = kind.__module__.rpartition(".")[0]
    found: list[Any] = [item for module in _modules(package) for item in getattr(module, "BENCHMARKS", ())]
    return {item.name: item for item in found if isinstance(item, kind)}


def names(kind: type[Kind]) -> list[str]:
    """List all names that `find` accepts."""
    return plugins.names(GROUP, built_in(kind))


def find(name: str, kind: type[Kind]) -> Kind:
    """Return the benchmark of a name.

    Raises:
        NammTransferError: nobody knows the name (the message lists those that are known), several packages use it, or
            what another package declares under it is no benchmark of this kind.
    """
    found = plugins.find("benchmark", name, GROUP, built_in(kind))
    if not isinstance(found, kind):
        raise NammTransferError(f"benchmark {name!r} is a {type(found).__name__}; expected a {kind.__name__}")
    return found
