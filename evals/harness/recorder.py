"""Store the outcomes of one process: records in its ledger, arrays in the array store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.cache.report import RowReport
from namm_transfer.evals.harness.agreement import Agreement
from namm_transfer.evals.harness.plan import Plan, plain
from namm_transfer.evals.harness.sample import Outcome
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.records import ArrayStore
from namm_transfer.evals.report.schema import Record


class Recorder:
    """The ledger of one process and the arrays that its records refer to.

    Args:
        out: folder of the evaluation.
        plan: plan of the evaluation.
        process: index of this process; each process has its own ledger file.
        records: what is recorded already.
    """

    def __init__(self, out: Path, plan: Plan, process: int, records: list[Record]) -> None:
        self._samples = plan.samples
        self._lends_heads = {e.match.text for e in plan.entries if e.match and e.policy.allocation == "head"}
        self._ledger = ledger.Ledger(ledger.path_of(out, plan.run.task, process), plan.run)
        self._arrays = ArrayStore(out)
        baseline = plan.run.baseline
        self._agreement = Agreement(self._arrays, baseline.spec if baseline else None, records)

    def add(self, policy: str, index: int, outcome: Outcome, *, seconds: float, sizes: str | None) -> None:
        """Record one sample and sync it to disk.

        Args:
            policy: spec of the policy.
            index: position of the sample in the plan.
            outcome: result of the sample. It counts as failed if its score is not a finite number.
            seconds: wall-clock time it took.
            sizes: SHA-256 of the cache sizes that a policy with match=NAME was given.
        """
        sample, error = self._samples[index], outcome.error
        if error is None and not math.isfinite(outcome.score):
            error = f"score {outcome.score!r}: expected a finite number"
        divergence, overlaps, compared = self._agreement.compare(policy, index, outcome)
        self._ledger.add(
            Record(
                index=index,
                id=plain(sample.id),
                category=plain(sample.category),
                cluster=plain(sample.cluster),
                policy=policy,
                score=None if error else 0.0 if outcome.unparsed else float(outcome.score),
                **({} if outcome.memory is None else _memory(outcome.memory, policy in self._lends_heads)),
                answer=plain(outcome.answer),
                unparsed=outcome.unparsed,
                error=plain(error),
                seconds=seconds,
                details=plain(outcome.details),
                divergence=divergence,
                overlaps=overlaps,
                arrays={name: self._arrays.put(np.asarray(array)) for name, array in sorted(outcome.arrays.items())},
                compared=compared,
                sizes_sha256=sizes,
            )
        )

    def close(self) -> None:
        """Close the ledger. All records are already on disk."""
        self._ledger.close()


def _memory(memory: RowReport, by_head: bool) -> dict[str, Any]:
    history = [[round(count, 4) for count in layer if math.isfinite(count)] for layer in memory.history.tolist()]
    return {
        "updates": int(memory.updates),
        "seen": int(memory.seen),
        "kept_share": float(memory.kept_share),
        "peak_share": float(memory.peak_share),
        "kept": memory.kept.tolist(),
        "history": history,
        "history_by_head": memory.sizes.tolist() if by_head else [],
    }
