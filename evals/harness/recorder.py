"""What came of the samples, written down by one process: records into its ledger, arrays into the array store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.cache.report import RowReport
from namm_transfer.evals.harness.plan import Plan, plain
from namm_transfer.evals.harness.sample import Outcome
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.arrays import ArrayStore
from namm_transfer.evals.report.schema import Record


class Recorder:
    """The ledger of one process and the arrays its records name.

    Args:
        out: folder of the evaluation.
        plan: what is evaluated.
        process: number of this process, which has a ledger file of its own.
    """

    def __init__(self, out: Path, plan: Plan, process: int) -> None:
        self._samples = plan.samples
        self._ledger = ledger.Ledger(ledger.path_of(out, plan.run.task, process), plan.run)
        self._arrays = ArrayStore(out)

    def add(self, policy: str, index: int, outcome: Outcome, *, seconds: float, sizes: str | None) -> None:
        """Write down one sample; it is on the disk when this returns.

        Args:
            policy: spec of the policy.
            index: place of the sample in the plan.
            outcome: what came of it. One whose score is no finite number counts as failed.
            seconds: wall time it took.
            sizes: SHA-256 of the sizes that a policy with match=NAME was given.
        """
        sample, error = self._samples[index], outcome.error
        if error is None and not math.isfinite(outcome.score):
            error = f"score {outcome.score!r}: expected a finite number"
        self._ledger.add(
            Record(
                index=index,
                id=plain(sample.id),
                category=plain(sample.category),
                cluster=plain(sample.cluster),
                policy=policy,
                score=None if error else 0.0 if outcome.unparsed else float(outcome.score),
                **({} if outcome.memory is None else _memory(outcome.memory)),
                answer=plain(outcome.answer),
                unparsed=outcome.unparsed,
                error=plain(error),
                seconds=seconds,
                details=plain(outcome.details),
                arrays={name: self._arrays.put(np.asarray(array)) for name, array in sorted(outcome.arrays.items())},
                sizes_sha256=sizes,
            )
        )

    def close(self) -> None:
        """Close the ledger; nothing is lost without it."""
        self._ledger.close()


def _memory(memory: RowReport) -> dict[str, Any]:
    history = [[round(count, 4) for count in layer if math.isfinite(count)] for layer in memory.history.tolist()]
    return {
        "updates": int(memory.updates),
        "seen": int(memory.seen),
        "kept_share": float(memory.kept_share),
        "peak_share": float(memory.peak_share),
        "kept": memory.kept.tolist(),
        "history": history,
    }
