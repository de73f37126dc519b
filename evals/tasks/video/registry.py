"""The video benchmarks by their names."""

from __future__ import annotations

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.video.generated import GENERATED
from namm_transfer.evals.tasks.video.questions import VideoBenchmark


def known(name: str) -> VideoBenchmark | None:
    """Find the benchmark of a name; None for the generated films and for a file of the user's own.

    Raises:
        NammTransferError: it is neither; the message lists the names.
    """
    if name in GENERATED or name.endswith(".json"):
        return None
    names = [*GENERATED, *registry.names(VideoBenchmark)]
    if name not in names:
        raise NammTransferError(f"--benchmark {name!r}: expected {', '.join(names)}, or a .json file of your own")
    return registry.find(name, VideoBenchmark)
