"""The policies that an evaluation compares, and the cache size that each policy with match=NAME is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from namm_transfer import policies
from namm_transfer.errors import NammTransferError
from namm_transfer.policies import PolicySpec
from namm_transfer.policy import EvictionPolicy


@dataclasses.dataclass
class Entry:
    """One policy of a comparison."""

    spec: PolicySpec
    """The policy as the command line names it."""
    policy: EvictionPolicy
    """The policy built from the spec. With `match=NAME` its cache size is not known yet."""
    match: PolicySpec | None = None
    """The policy whose cache size this one is given; None if it has a size of its own."""


def lineup(specs: Sequence[PolicySpec], update_interval: int) -> list[Entry]:
    """Build the policies to compare, in order. If the target of a match=NAME is missing, it is added before.

    Args:
        specs: the requested policies.
        update_interval: tokens between two updates, for policies whose spec does not set it.

    Raises:
        NammTransferError: there is no policy, a policy rejects a value, or a match=NAME fits no policy or several.
    """
    if not specs:
        raise NammTransferError("no policy to evaluate; expected something like --policy full,namm")
    entries: list[Entry] = []
    for spec in specs:
        entry = Entry(spec, spec.make(update_interval))
        wanted = entry.policy.match
        known = [*specs, *(earlier.spec for earlier in entries)]
        if wanted is not None and not _named(wanted, spec, known):
            added = policies.parse(wanted)
            entries.append(Entry(added, added.make(update_interval)))
        entries.append(entry)
    for entry in entries:
        entry.match = _target(entry, entries)
    return entries


def alone(spec: PolicySpec, update_interval: int) -> Entry:
    """Build the one policy that runs.

    Raises:
        NammTransferError: the policy rejects a value, or is to match the size of another.
    """
    entries = lineup([spec], update_interval)
    if len(entries) > 1:
        raise NammTransferError(
            f"{spec.text!r}: one policy at a time runs here, so there is none to match; expected keep= or budget="
        )
    return entries[0]


def _target(entry: Entry, entries: Sequence[Entry]) -> PolicySpec | None:
    """Find the policy whose cache size `entry` is to match; None if it has a size of its own."""
    name = entry.policy.match
    if name is None:
        return None
    sized = [other.spec for other in entries if other.policy.match is None]
    found = [spec for spec in _named(name, entry.spec, [other.spec for other in entries]) if spec in sized]
    if len(found) != 1:
        candidates = " or ".join(repr(spec.text) for spec in found) or "no policy with a size of its own"
        raise NammTransferError(
            f"{entry.spec.text!r}: match={name!r} means {candidates}; expected exactly one policy of that name"
        )
    return found[0]


def _named(name: str, asking: PolicySpec, specs: Sequence[PolicySpec]) -> list[PolicySpec]:
    """List the other specs that match=NAME in `asking` may mean: one with exactly that text, else all of that name."""
    others = [spec for spec in specs if spec != asking]
    return [spec for spec in others if spec.text == name] or [spec for spec in others if spec.name == name]
