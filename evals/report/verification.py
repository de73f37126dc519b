"""Verify a report: evaluate a few of its samples again and compare the results with the records.

The records of those samples are removed from a copy of the folder, and the evaluation resumes from that copy like an
interrupted run: with the same options and batches, and refused if the NAMM, model or data have another checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger, provenance
from namm_transfer.evals.report.records import Task, load
from namm_transfer.evals.report.schema import Record
from namm_transfer.files import write_atomic

SPARE = 0.03
"""Share of the kept bytes that a cache may take beyond them, see `MemoryReport.bytes`."""
EXACT = (
    "updates", "seen", "kept_share", "peak_share", "kept", "history", "history_by_head", "answer", "unparsed", "error",
    "arrays",
)  # fmt: skip
"""Fields of a record that must be reproduced exactly; `arrays` covers every kept position that was recorded."""


@dataclasses.dataclass
class Verified:
    """The result of verifying one task."""

    task: str
    samples: list[str]
    """Ids of the samples that were evaluated again, under every policy."""
    records: int
    """Number of records that were evaluated again."""
    differences: list[str]
    """Differences between recorded and new results; empty if all were reproduced."""
    largest: float
    """Largest difference of a score, in the score's unit."""
    notes: list[str]
    """Differences of versions and machine, which may explain differences of results."""


def verify(
    folder: Path, *, samples: int = 3, seed: int = 0, tolerance: float = 0.0, evaluate: Callable[..., Any] | None = None
) -> list[Verified]:
    """Evaluate some samples of each task in a report folder again and compare.

    Args:
        folder: report folder that an evaluation or a merge wrote.
        samples: number of samples of each task; each is evaluated under all policies.
        seed: seed of their choice.
        tolerance: largest difference of a score that counts as equal, in the score's unit. All else must be equal.
        evaluate: function that evaluates, given command line arguments; by default that of the task's name.

    Raises:
        NammTransferError: there are no records, the task is unknown, or the NAMM, model, data or options differ from
            those recorded; the message names the differences.
    """
    if samples < 1 or tolerance < 0:
        raise NammTransferError(f"--samples {samples} --tolerance {tolerance}: expected one sample at least, and >= 0")
    return [_verify(folder, task, samples, seed, tolerance, evaluate or _evaluation(task)) for task in load(folder)]


def _evaluation(task: Task) -> Callable[..., Any]:
    kind = task.run.task.partition("/")[0]
    if kind not in ("video", "rl", "text"):
        raise NammTransferError(f"no evaluation makes task {task.run.task!r}; expected video, rl/... or text")
    return importlib.import_module(f"namm_transfer.evals.{kind}").main


def _verify(
    folder: Path, task: Task, samples: int, seed: int, tolerance: float, evaluate: Callable[..., Any]
) -> Verified:
    recorded = {(record.policy, record.index): record for records in task.records.values() for record in records}
    there = sorted({index for _, index in recorded})
    chosen = set(random.Random(seed).sample(there, min(samples, len(there))))
    with tempfile.TemporaryDirectory(prefix="namm-transfer-verify-") as scratch:
        out = Path(scratch) / "run"
        left = [record for (_, index), record in recorded.items() if index not in chosen]
        lines = [task.run.model_dump_json(), *(record.model_dump_json() for record in left)]
        write_atomic(ledger.path_of(out, task.run.task, 0), "\n".join(lines) + "\n")
        config = write_atomic(Path(scratch) / "config.toml", as_toml(task))
        with contextlib.redirect_stdout(io.StringIO()):  # hide the report over the partial copy
            evaluate(["--config", str(config), "--out", str(out), "--resume"])
        items = [item for item in load(out) if item.run.task == task.run.task]  # one command may make several tasks
        again = {(r.policy, r.index): r for item in items for records in item.records.values() for r in records}
    wanted = {key: record for key, record in recorded.items() if key[1] in chosen}
    lost = [f"{record.id}, {record.policy}: not evaluated again" for key, record in wanted.items() if key not in again]
    pairs = [(record, again[key]) for key, record in wanted.items() if key in again]
    gaps = [abs(old.score - new.score) for old, new in pairs if old.score is not None and new.score is not None]
    return Verified(
        task=task.run.task,
        samples=sorted({record.id for record in wanted.values()}),
        records=len(wanted),
        differences=lost + [line for old, new in pairs for line in compare(old, new, tolerance)],
        largest=max(gaps, default=0.0),
        notes=_notes(task),
    )


def as_toml(task: Task) -> str:
    """Write the recorded options as TOML for `--config`; JSON strings, numbers and lists are valid TOML."""
    options = {key: value for key, value in task.run.options.items() if value is not None}
    options["policy"] = [policy.spec for policy in task.run.policies]
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())


def compare(old: Record, new: Record, tolerance: float) -> list[str]:
    """Describe the differences between two records of one sample; times and most `details` are not compared."""
    found = []
    both = old.score is not None and new.score is not None
    if old.score != new.score and not (both and abs((old.score or 0.0) - (new.score or 0.0)) <= tolerance):
        found.append(f"score {old.score!r} recorded, {new.score!r} now")
    for name in EXACT:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            found.append(f"{name} {_short(before)} recorded, {_short(after)} now")
    if not _same_size(old.details.get("bytes"), new.details.get("bytes")):
        found.append(f"bytes {old.details.get('bytes')} recorded, {new.details.get('bytes')} now")
    return [f"{old.id}, {old.policy}: {line}" for line in found]


def _same_size(old: float | None, new: float | None) -> bool:
    """Compare bytes held: how the kept tokens are laid out may change between versions, by at most `SPARE`."""
    if old is None or new is None:
        return old is new
    return abs(old - new) <= SPARE * max(old, new)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _notes(task: Task) -> list[str]:
    here = provenance.collect(processes=1).model_dump()
    there = task.run.latest.model_dump()
    watched = ("versions", "cpu", "accelerator", "git_hash", "git_dirty")
    return ledger.differences({key: there[key] for key in watched}, {key: here[key] for key in watched})


def in_words(results: Sequence[Verified], tolerance: float) -> str:
    """Format the results as text for the terminal."""
    lines = []
    for result in results:
        lines.append(f"{result.task}: {len(result.samples)} samples, {result.records} records evaluated again")
        lines += [f"  sample {name}" for name in result.samples]
        lines += [f"  differs: {line}" for line in result.differences]
        within = "exactly" if tolerance == 0 else f"within {tolerance:g}"
        if not result.differences:
            lines.append(f"  all came out again: scores {within} (largest difference {result.largest:g}), kept tokens,")
            lines.append(f"  sizes and answers exactly, bytes within {SPARE:.0%}")
        lines += [f"  note: {note}" for note in result.notes]
    same = not any(result.differences for result in results)
    return "\n".join([*lines, "verified" if same else "NOT verified: see the differences above"])
