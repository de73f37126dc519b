"""The loop over policies and samples that every evaluation shares. It can be killed, resumed, and split over processes.

`run` makes the plan (`plan`), calls the evaluator on each batch of samples, records every outcome on disk (`recorder`),
and at the end makes the report over all records (`namm_transfer.evals.report`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import set_seed
from tqdm import tqdm

from namm_transfer import policies
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness.lineup import Entry
from namm_transfer.evals.harness.options import EvalOptions, parse
from namm_transfer.evals.harness.plan import Plan, make_plan, prepare, shared
from namm_transfer.evals.harness.recorder import Recorder
from namm_transfer.evals.harness.sample import Evaluate, Outcome, Sample
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.pages import terminal, write
from namm_transfer.evals.report.records import ArrayStore, mean_history, mean_history_by_head
from namm_transfer.evals.report.schema import Record, Report
from namm_transfer.policy import EvictionPolicy

__all__ = ["EvalOptions", "Evaluate", "Outcome", "Sample", "parse", "run", "start"]

FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Operating system errors that stop the run instead of failing a sample: the disk is full, over quota or read-only, or
no more files can be opened."""


def start(options: EvalOptions) -> Accelerator:
    """Join the processes of `accelerate launch`, if there are any, and set threads and seeds.

    Call it before loading a model, and load the model to `start(options).device`. `run` calls it again, which is safe.

    Raises:
        NammTransferError: threads, seed or limit are out of range.
    """
    limited = options.limit is None or options.limit > 0
    if not (1 <= options.threads <= 1024 and 0 <= options.seed < 2**32 and limited):
        raise NammTransferError(
            f"--threads {options.threads} --seed {options.seed} --limit {options.limit}: expected 1 to 1024 threads, "
            "a seed from 0 to 4294967295 and a positive limit"
        )
    # Without an accelerator, only cpu=True makes the processes of `accelerate launch --multi_gpu` find each other. A
    # process may finish hours before another, so the timeout is long.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])
    torch.set_num_threads(options.threads)
    set_seed(options.seed)
    return accelerator


def run(
    options: EvalOptions,
    *,
    task: str,
    samples: Sequence[Sample],
    evaluate: Evaluate,
    description: dict[str, Any],
    batch: int = 1,
    check: Callable[[], None] | None = None,
) -> Report:
    """Evaluate every sample under every policy, write the report, print its summary.

    Args:
        options: the resolved flags; all fields are recorded, including those of a subclass.
        task: name of the row in the summary, for example ``"video"`` or ``"rl/hopper"``.
        samples: all samples, the same list in every process; `options.limit` cuts it.
        evaluate: see `Evaluate`. It must return the same for the same samples, whatever ran before.
        description: JSON-able facts about the evaluation. `model` and `data` are a path or hub id; local files are
            hashed, so let `data` name the annotations rather than a folder of videos. `score` names the score with
            its unit ("accuracy, %"), `dtype` the number format, `chance` the score of guessing, `world` the data set
            or environment version. `headline` describes the official score of a benchmark:
            ``{"name": "M-Avg", "rule": "mean over categories" or "mean over samples", "categories": [...]}``.
        batch: number of samples `evaluate` gets at once. The composition of a batch depends only on the order of the
            samples, not on the number of processes or on a resume.
        check: called once in the main process after planning and before anything is written; an error that it raises
            stops the evaluation.

    Returns:
        The report over everything in `options.out`, in every process.

    Raises:
        NammTransferError: a policy is unknown, there are no samples or two have the same id, the records in
            `options.out` are of another configuration, or the disk is full. Finished samples are on disk.
        SystemExit: with status 130 after Ctrl-C; finished samples are on disk.
    """
    accelerator = start(options)
    plan = make_plan(options, task, samples, description, batch, accelerator.num_processes)

    def ready() -> list[str]:
        if check is not None:
            check()
        return prepare(options, plan)

    try:
        notes = shared(accelerator, ready)
        if accelerator.is_main_process:
            print(*notes, sep="\n", end="\n" if notes else "")
        _evaluate_all(options.out, plan, evaluate, accelerator)
        return _report(options.out, accelerator)
    except KeyboardInterrupt:
        print(f"\nstopped; finished samples are in {options.out}, go on from them with --resume")
        raise SystemExit(130) from None
    except OSError as error:
        raise _stopped(error, options.out) from error


def _evaluate_all(out: Path, plan: Plan, evaluate: Evaluate, accelerator: Accelerator) -> None:
    """Evaluate first the policies with a cache size of their own, then those that match the size of one of these.

    A full cache comes before all, since others are compared with its distribution of the first answer token.
    """
    entries = sorted(plan.entries, key=lambda entry: entry.policy.evicts)
    sized = {entry.spec.text: entry.policy for entry in entries if entry.match is None}
    _work(out, plan, sized, {}, evaluate, accelerator)
    matching = [entry for entry in plan.entries if entry.match is not None]
    if not matching:
        return
    sizes = {entry.spec.text: _sizes(out, plan, entry) for entry in matching}
    digests = {spec: hashlib.sha256(json.dumps(found).encode()).hexdigest() for spec, found in sizes.items()}
    shared(accelerator, lambda: ledger.drop(out, plan.run.task, lambda record: _outdated(record, digests)))
    matched = {e.spec.text: policies.with_schedule(e.policy, sizes[e.spec.text]) for e in matching}
    _work(out, plan, matched, digests, evaluate, accelerator)


def _sizes(out: Path, plan: Plan, entry: Entry) -> list[list[float]] | list[list[tuple[float, ...]]]:
    """Compute the mean tokens a KV head kept under the policy that `entry` matches, as its allocation asks.

    Returns:
        (layers, updates), or with ``allocation=head`` (layers, updates, heads).
    """
    assert entry.match is not None
    found = [record for record in _records(out, plan) if record.policy == entry.match.text]
    if len(found) < len(plan.samples):
        raise NammTransferError(
            f"{entry.spec.text!r} needs all {len(plan.samples)} records of {entry.match.text!r}, found {len(found)}: "
            f"expected {str(out)!r} to be one folder that all processes share"
        )
    finished = [record for record in found if record.error is None]
    if entry.policy.allocation == "head":
        return mean_history_by_head(finished)
    by_layer = mean_history(finished)
    if entry.policy.allocation == "uniform":
        return [[math.fsum(sizes) / len(sizes) for sizes in zip(*by_layer, strict=True)]] * len(by_layer)
    return by_layer


def _outdated(record: Record, digests: dict[str, str]) -> bool:
    """Return True if a record was made with other cache sizes, because a sample of the matched policy had failed."""
    return record.sizes_sha256 is not None and record.sizes_sha256 != digests.get(record.policy, record.sizes_sha256)


def _records(out: Path, plan: Plan) -> list[Record]:
    return [record for contents in ledger.read_task(out, plan.run.task) for record in contents.records]


def _work(
    out: Path,
    plan: Plan,
    lineup: dict[str, EvictionPolicy],
    sizes: dict[str, str],
    evaluate: Evaluate,
    accelerator: Accelerator,
) -> None:
    """Evaluate and record this process's share of the missing samples under each of these policies."""
    records = _records(out, plan)
    done = {(record.policy, record.index) for record in records}
    accelerator.wait_for_everyone()  # no process appends before all have read the ledgers
    recorder = Recorder(out, plan, accelerator.process_index, records)
    todo = [(spec, *chunk) for spec in lineup for chunk in _chunks(plan, spec, done, accelerator)]
    bar = tqdm(
        total=sum(len(missing) for _, _, missing in todo),
        unit="sample",
        disable=not (todo and accelerator.is_main_process),
        dynamic_ncols=True,
    )
    try:
        for spec, chunk, missing in todo:
            bar.set_description(f"{plan.run.task}: {spec}", refresh=False)
            begun = time.perf_counter()
            outcomes = _outcomes(evaluate, [plan.samples[i] for i in chunk], lineup[spec])
            seconds = (time.perf_counter() - begun) / len(chunk)
            for index, outcome in zip(chunk, outcomes, strict=True):
                if index in missing:
                    recorder.add(spec, index, outcome, seconds=seconds, sizes=sizes.get(spec))
            bar.update(len(missing))
    finally:
        bar.close()
        recorder.close()
    accelerator.wait_for_everyone()


def _chunks(
    plan: Plan, spec: str, done: set[tuple[str, int]], accelerator: Accelerator
) -> Iterator[tuple[range, set[int]]]:
    """Yield this process's unfinished batches, as (indices of the samples, indices of those that are missing).

    A batch is evaluated as a whole even if part of it is done, since another composition may round differently.
    """
    count, size = len(plan.samples), plan.run.batch
    for number, first in enumerate(range(0, count, size)):
        chunk = range(first, min(first + size, count))
        missing = {index for index in chunk if (spec, index) not in done}
        if missing and number % accelerator.num_processes == accelerator.process_index:
            yield chunk, missing


def _outcomes(evaluate: Evaluate, chunk: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
    """Evaluate a batch; if that raises, evaluate its samples one by one, so that only those at fault fail."""
    try:
        outcomes = evaluate(chunk, policy)
    except Exception as error:
        if (fatal := _fatal(error)) is not None:
            raise fatal from None
        if len(chunk) == 1:
            return [Outcome(score=math.nan, memory=None, error=_short(error))]
        return [outcome for sample in chunk for outcome in _outcomes(evaluate, [sample], policy)]
    if len(outcomes) != len(chunk):
        raise NammTransferError(f"the evaluator returned {len(outcomes)} outcomes for {len(chunk)} samples")
    return outcomes


def _fatal(error: BaseException | None) -> OSError | None:
    """Find the `OSError` with an errno in `FATAL` in the chain of an exception's causes; None if there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in FATAL:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _stopped(error: OSError, out: Path) -> NammTransferError:
    """Make an error that states in one line why the run stopped."""
    place = f" ({error.filename})" if error.filename else ""
    return NammTransferError(
        f"stopped: {error.strerror or error}{place}; finished samples are in {out}, go on from them with --resume"
    )


def _short(error: Exception) -> str:
    """Type, message (cut to 300 characters), file and line of an exception."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} [{Path(frame.filename).name}:{frame.lineno}]"


def _report(out: Path, accelerator: Accelerator) -> Report:
    """Make the report over everything in the folder; the main process writes and prints it."""
    report = build(out)
    if accelerator.is_main_process:
        ArrayStore(out).pack()
        write(report, out)
        print(terminal(report, out))
    accelerator.wait_for_everyone()
    return report
