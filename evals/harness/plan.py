"""The plan of an evaluation: its samples, its policies, and the `Run` that earlier records must match to resume."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness.lineup import Entry, lineup
from namm_transfer.evals.harness.options import EvalOptions
from namm_transfer.evals.harness.sample import Sample
from namm_transfer.evals.report import ledger, provenance
from namm_transfer.evals.report.schema import Policy, Run

LOCATIONS = ("policy", "out", "resume", "config", "context_cache")
"""Options that are not recorded, as they do not influence results; `policy` is recorded in parsed form."""


@dataclasses.dataclass
class Plan:
    """The samples and policies to evaluate, identical in every process."""

    run: Run
    """The run as the ledgers record it."""
    samples: list[Sample]
    """All samples, in the order in which they are grouped into batches."""
    entries: list[Entry]
    """The policies. Those with a cache size of their own are evaluated before those that match one of them."""


def make_plan(
    options: EvalOptions, task: str, samples: Sequence[Sample], description: dict[str, Any], batch: int, processes: int
) -> Plan:
    """Make the plan of an evaluation.

    Raises:
        NammTransferError: a policy is unknown, there are no samples, or two samples have the same id.
    """
    chosen = list(samples)[: options.limit]
    if not chosen:
        raise NammTransferError("no samples to evaluate")
    name, count = Counter(sample.id for sample in chosen).most_common(1)[0]
    if count > 1:
        raise NammTransferError(f"sample id {name!r} is there twice; expected each id once")
    if batch < 1:
        raise NammTransferError(f"batch={batch!r}: expected at least one sample at a time")
    entries = lineup(options.policies(), options.update_interval)
    run = Run(
        task=task,
        samples=len(chosen),
        samples_sha256=_digest("\n".join(sample.id for sample in chosen)),
        batch=batch,
        policies=[recorded(entry) for entry in entries],
        options={key: plain(value) for key, value in dataclasses.asdict(options).items() if key not in LOCATIONS},
        description=plain(provenance.with_checksums({**description, **_prompts(chosen)})),
        provenance=provenance.collect(processes),
    )
    return Plan(run, chosen, entries)


def shared(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """Call `make` in the main process and return its result, or raise its error, in every process."""
    result: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            result = [make()]
        except (NammTransferError, OSError) as error:  # every process must learn of it, or the others wait for ever
            result = [error]
    broadcast_object_list(result)
    if isinstance(result[0], NammTransferError | OSError):
        raise result[0]
    return result[0]


def defaults(options: EvalOptions) -> dict[str, Any]:
    """Return the default of every option, as `Run.options` records it."""
    fields = [field for field in dataclasses.fields(options) if field.default is not dataclasses.MISSING]
    return {field.name: plain(field.default) for field in fields}


def prepare(options: EvalOptions, plan: Plan) -> list[str]:
    """Make the --out folder ready for this plan and return messages for the user. Call it in one process only."""
    return ledger.prepare(options.out, plan.run, options.resume, defaults(options))


def plain(value: Any) -> Any:
    """Make a JSON-able copy: paths become strings, NumPy and torch values Python's, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value).encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON cannot hold, becomes "?"


def recorded(entry: Entry) -> Policy:
    """Describe the policy as the ledgers record it."""
    return Policy(
        spec=entry.spec.text,
        name=entry.spec.name,
        update_interval=entry.policy.update_interval,
        baseline=not entry.policy.evicts,
        match=None if entry.match is None else entry.match.text,
        allocation=entry.policy.allocation,
        sha256=provenance.weights_sha256(entry.policy),
        options=provenance.saved_options(entry.policy),
    )


def _prompts(samples: list[Sample]) -> dict[str, str]:
    """`prompts_sha256` over all prompts in order; empty if no sample has a prompt."""
    asked = "\0".join(sample.prompt for sample in samples)
    return {"prompts_sha256": _digest(asked)} if asked.strip("\0") else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
