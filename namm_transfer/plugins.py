"""Plug-ins: policies, adapters and benchmarks of other installed packages, found by the entry points they declare."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from namm_transfer.errors import NammTransferError

BuiltIn = TypeVar("BuiltIn")


def discover(group: str) -> dict[str, EntryPoint]:
    """List what installed packages declare in an entry-point group, by name, without importing any of it.

    Args:
        group: for example ``namm_transfer.policies``.

    Returns:
        One entry point for each name; `find` refuses a name that several packages use.
    """
    return {entry.name: entry for entry in entry_points(group=group)}


def names(group: str, built_in: Mapping[str, Any]) -> list[str]:
    """List all names that `find` knows: the built-in ones, then those of other packages."""
    return [*built_in, *sorted(discover(group).keys() - built_in.keys())]


def find(kind: str, name: str, group: str, built_in: Mapping[str, BuiltIn]) -> BuiltIn | Any:
    """Return what a name stands for: a built-in object, or what another package's entry point loads.

    Args:
        kind: what is looked for, for messages, for example ``policy``.
        name: as the user wrote it.
        group: the entry-point group of that kind.
        built_in: the built-in objects by name.

    Raises:
        NammTransferError: nobody knows the name, several packages (or this one and another) use it, or the package
            that declares it cannot be imported. Other names are not affected.
    """
    offers = [entry for entry in entry_points(group=group) if entry.name == name]
    if len(offers) + (name in built_in) > 1:
        owners = [*(["namm-transfer itself"] if name in built_in else []), *sorted(map(_origin, offers))]
        raise NammTransferError(f"{kind} {name!r} is declared more than once: by {' and by '.join(owners)}")
    if name in built_in:
        return built_in[name]
    if not offers:
        raise NammTransferError(f"unknown {kind} {name!r}: expected one of {', '.join(names(group, built_in))}")
    try:
        return offers[0].load()
    except (Exception, SystemExit) as error:  # somebody else's code: anything can happen in its import
        raise NammTransferError(
            f"{kind} {name!r} of {_origin(offers[0])} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'an unnamed package'} ({entry.value})"
