"""Is a file of the environment it is used for? Sizes cannot tell: HalfCheetah and Walker2d both have 17 and 6."""

from __future__ import annotations

import re
import warnings

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.tasks import task

_FAMILIES = {
    "hopper": r"hopper",
    "halfcheetah": r"half[-_ ]?cheetah",
    "walker2d": r"walker(?:[-_ ]?2d)?",
    "ant": r"ant",
    "humanoid": r"humanoid",
    "humanoidstandup": r"humanoid[-_ ]?standup",
    "swimmer": r"swimmer",
    "reacher": r"reacher",
    "pusher": r"pusher",
    "pointmaze": r"(?:point[-_ ]?maze|maze2d)",
    "antmaze": r"ant[-_ ]?maze",
    "kitchen": r"(?:franka[-_ ]?)?kitchen",
    "pen": r"(?:adroithand)?pen",
    "door": r"(?:adroithand)?door",
    "hammer": r"(?:adroithand)?hammer",
    "relocate": r"(?:adroithand)?relocate",
}
"""Family of environments -> how names of files, repositories and data sets write it."""


def named_in(text: str) -> set[str]:
    """The families of environments that a text names as words of their own, upper and lower case alike.

    >>> sorted(named_in("edbeeching/decision-transformer-gym-halfcheetah-medium"))
    ['halfcheetah']
    """
    return {
        family
        for family, pattern in _FAMILIES.items()
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z])", text, re.IGNORECASE)
    }


def family(env: str) -> set[str]:
    """The families that the environment of task `env` belongs to; empty for one of somebody's own."""
    return named_in(task(env).gym_id.rpartition("-v")[0].replace("_", " "))


def check_name(env: str, text: str, what: str) -> bool:
    """Whether `text` (a file's name, a card, ...) names the environment of task `env`.

    Raises `NammTransferError` if it names another environment and not this one.
    """
    own, found = family(env), named_in(text)
    if found and own and not own & found:
        raise NammTransferError(f"{what} names {' and '.join(sorted(found))}, expected {env} ({task(env).gym_id})")
    return bool(own & found)


def check_spec(env: str, gym_id: str, what: str) -> None:
    """Refuse data recorded in another environment than that of task `env`; warn of another version of it."""
    own = task(env).gym_id
    if gym_id.rpartition("-v")[0] != own.rpartition("-v")[0]:
        raise NammTransferError(f"{what} was recorded in {gym_id}, expected {own}")
    if gym_id != own:
        warnings.warn(f"{what} was recorded in {gym_id}, another version of {own}", stacklevel=2)
