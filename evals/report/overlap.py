"""Overlap of the tokens that the policies of one task keep, from the indices in their records."""

from __future__ import annotations

import numpy as np

from namm_transfer.evals.report.records import Task
from namm_transfer.evals.report.schema import Overlap


def overlaps(task: Task, spec: str) -> list[Overlap]:
    """Compute the overlap of a policy's tokens with those of each policy that was evaluated before it."""
    found = []
    for other in dict.fromkeys(name for record in task.records[spec] for name in record.overlaps):
        records = {record.index: record for record in task.records.get(other, [])}
        pairs = [(r, records[r.index]) for r in task.records[spec] if other in r.overlaps and r.index in records]
        if not pairs:
            continue
        shares = [[np.array(record.kept) / max(record.seen, 1) for record in pair] for pair in pairs]
        both = np.array([np.mean(p * q / np.maximum(p + q - p * q, 1e-12)) for p, q in shares])
        indices = np.array([record.overlaps[other] for record, _ in pairs])
        found.append(
            Overlap(
                task=task.run.task,
                policy=spec,
                other=other,
                samples=len(pairs),
                jaccard=round(float(indices.mean()), 4),
                chance=round(float(both.mean()), 4),
                by_layer=indices.mean((0, 2)).round(3).tolist(),
            )
        )
    return found
