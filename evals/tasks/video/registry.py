"""The video benchmarks by their names, and the order in which questions of several tasks are asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.video.generated import GENERATED
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion

PACKAGE = "namm_transfer.evals.tasks.video"
"""Package in which every module may define benchmarks."""


def known(name: str) -> VideoBenchmark | None:
    """The benchmark of a name; None for the generated films and for a file of the user's own.

    Raises:
        NammTransferError: it is neither; the message lists the names.
    """
    if name in GENERATED or name.endswith(".json"):
        return None
    names = [*GENERATED, *registry.names(PACKAGE, VideoBenchmark)]
    if name not in names:
        raise NammTransferError(f"--benchmark {name!r}: expected {', '.join(names)}, or a .json file of your own")
    return registry.find(name, PACKAGE, VideoBenchmark)


def in_turns(lists: Iterable[Sequence[VideoQuestion]]) -> list[VideoQuestion]:
    """The first of each list, the second of each, and so on."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return [question for question in turns if question is not None]
