"""Which policies a comparison runs, and `match=NAME`: the cache size that another policy of the comparison used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from namm_transfer import policies
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness.options import split_policies
from namm_transfer.policy import EvictionPolicy


def lineup(values: Iterable[str], update_interval: int) -> dict[str, EvictionPolicy]:
    """The policies to run, by their specs, from the values of `--policy`.

    A policy that another one wants to match, and that is not there, comes before it.

    Raises:
        NammTransferError: an unknown policy or key, no policy at all, or a match=NAME that fits none or several.
    """
    specs = split_policies(values)
    if not specs:
        raise NammTransferError("no policy to evaluate; expected something like --policy full,namm")
    result: dict[str, EvictionPolicy] = {}
    for spec in specs:
        policy = policies.make(spec, update_interval=update_interval)
        if policy.match is not None and not _candidates(policy.match, spec, specs):
            result[policy.match] = policies.make(policy.match, update_interval=update_interval)
        result[spec] = policy
    for spec in specs:
        target(spec, result)
    return result


def target(spec: str, lineup: dict[str, EvictionPolicy]) -> str | None:
    """The spec whose cache size `spec` asks for; None if it has a size of its own."""
    name = lineup[spec].match
    if name is None:
        return None
    found = [other for other in _candidates(name, spec, list(lineup)) if lineup[other].match is None]
    if len(found) != 1:
        raise NammTransferError(
            f"{spec!r}: match={name!r} means {' or '.join(map(repr, found)) or 'no policy with a size of its own'}; "
            "expected exactly one policy of that name"
        )
    return found[0]


def _candidates(name: str, spec: str, specs: Sequence[str]) -> list[str]:
    """Which of `specs` the `name` in match=name can mean: the spec itself, or else those of that policy."""
    others = [other for other in specs if other != spec]
    return [name] if name in others else [other for other in others if other.partition(":")[0] == name]
