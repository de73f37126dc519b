"""What the three evaluation scripts share: their flags, and a loop over policies and samples that can be killed.

A script defines its options (a dataclass that inherits from `EvalOptions`), a list of `Sample`s and a function that
answers a few samples under one policy. `run` does the rest: policies from their command line notation, samples split
over the processes of `accelerate launch`, one durable record a finished sample, `--resume`, and the report.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, set_seed
from tqdm import tqdm

from namm_transfer import policies
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.harness import lineup as matching
from namm_transfer.evals.harness.options import EvalOptions, parse
from namm_transfer.evals.report import ledger, provenance
from namm_transfer.evals.report.arrays import ArrayStore
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.records import mean_history
from namm_transfer.evals.report.pages import terminal, write
from namm_transfer.evals.report.schema import Policy, Record, Report, Run
from namm_transfer.policy import EvictionPolicy

if TYPE_CHECKING:
    from namm_transfer.cache.report import RowReport

__all__ = ["EvalOptions", "Outcome", "Sample", "parse", "run", "start"]

LOCATIONS = ("policy", "out", "resume", "config")
"""Options that do not decide a result; `policy` is recorded on its own, resolved."""


@dataclasses.dataclass
class Sample:
    """One unit of evaluation: a question, a document, an episode."""

    id: str
    """Unique within the evaluation and the same in every run of it."""

    category: str
    """Group of the report's table by category: a question type, a task, an environment."""

    payload: Any = None
    """The evaluator's own object; never written anywhere."""

    cluster: str | None = None
    """Samples that share something (several questions on one video) and so are no independent draws."""

    prompt: str = ""
    """What the model is asked in words, if in words; the run records a checksum of all prompts."""


@dataclasses.dataclass
class Outcome:
    """What came of one sample under one policy."""

    score: float
    """Higher is better, in the unit of the description's `score`. `run` records 0 for an unparsed answer."""

    memory: RowReport | None
    """The sample's row of `cache.report()`, taken when the first answer token is produced (text, video) or averaged
    over the steps (RL); None only if the sample failed before there was a cache."""

    answer: str | None = None
    """What the model said, for the reader of the report."""

    unparsed: bool = False
    """The answer could not be understood: counted, and wrong."""

    error: str | None = None
    """Why the sample failed. `run` fills this in for an exception; set it only for a failure found without one."""

    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Anything else worth keeping, JSON-able: the question, the right answer, an episode's return, `bytes` held."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Arrays of this sample for the page's figures (kept share by frame, ...); they go to kept.npz."""


Evaluate = Callable[[list[Sample], EvictionPolicy], list[Outcome]]
"""Answers up to `batch` samples under one policy, one outcome a sample in the order given."""


def start(options: EvalOptions) -> Accelerator:
    """Join the processes of `accelerate launch` (or be the only one), set threads and seeds.

    Call it before loading a model, which belongs on `start(options).device`. Safe to call again: `run` does.
    """
    if options.threads < 1 or not 0 <= options.seed < 2**32 or (options.limit is not None and options.limit < 1):
        raise NammTransferError(
            f"--threads {options.threads} --seed {options.seed} --limit {options.limit}: expected positive numbers, "
            "and a seed from 0 to 4294967295"
        )
    # Without an accelerator, only cpu=True makes the processes of `accelerate launch --multi_gpu` find each other. A
    # process may finish hours before another and has to wait for it.
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
) -> Report:
    """Evaluate every sample under every policy, write the report, print its summary.

    Args:
        options: the resolved flags; all fields, a subclass's too, are recorded.
        task: name of the row in the summary, for example `"video"` or `"rl/hopper"`.
        samples: all samples, the same list in every process; `options.limit` cuts it.
        evaluate: see `Evaluate`. It must return the same for the same samples, whatever ran before.
        description: what was evaluated, JSON-able: `model` and `data` (folder or hub id; what lies on this machine is
            hashed, so let `data` name the annotations rather than a folder of videos), `dtype`, `score` (what the score
            is, with its unit, for example "accuracy, %"), `chance` (score of guessing, if known), `world` (which data
            set or environment version the numbers come from), prompts, ...
        batch: how many samples `evaluate` gets at once. The composition of a batch depends on the order of the samples
            alone, never on the number of processes or on a resume.

    Returns:
        The report over everything in `options.out`, in every process.

    Raises:
        NammTransferError: unknown policies, an empty or ambiguous list of samples, or records in `options.out` that
            were made with another configuration.
        SystemExit: with status 130 after Ctrl-C; finished samples are on disk.
    """
    accelerator = start(options)
    samples = _checked(list(samples)[: options.limit])
    lineup = matching.lineup(options.policy, options.update_interval)
    plan = _plan(options, task, samples, lineup, description, batch, accelerator)
    job = _Job(options.out, plan, samples, evaluate, accelerator)
    try:
        job.work({spec: policy for spec, policy in lineup.items() if policy.match is None})
        accelerator.wait_for_everyone()
        job.work(_with_sizes(lineup, plan, options.out))
    except KeyboardInterrupt:
        print(f"\nstopped; finished samples are in {options.out}, go on from them with --resume")
        raise SystemExit(130) from None
    finally:
        job.close()
    accelerator.wait_for_everyone()
    report = build(options.out)
    if accelerator.is_main_process:
        ArrayStore(options.out).pack()
        write(report, options.out)
        print(terminal(report, options.out))
    accelerator.wait_for_everyone()
    return report


def _checked(samples: list[Sample]) -> list[Sample]:
    ids = [sample.id for sample in samples]
    if not ids or len(set(ids)) < len(ids):
        twice = next((name for name in ids if ids.count(name) > 1), None)
        raise NammTransferError("no samples to evaluate" if twice is None else f"sample id {twice!r} is there twice")
    return samples


def _plan(
    options: EvalOptions,
    task: str,
    samples: list[Sample],
    lineup: dict[str, EvictionPolicy],
    description: dict[str, Any],
    batch: int,
    accelerator: Accelerator,
) -> Run:
    """The run as all processes record it; the main one has made the folder ready for it."""
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            resolved = {
                key: _plain(value) for key, value in dataclasses.asdict(options).items() if key not in LOCATIONS
            }
            entries = [
                Policy(
                    spec=spec,
                    name=policies.parse(spec).name,
                    update_interval=policy.update_interval,
                    baseline=not policy.evicts,
                    match=matching.target(spec, lineup),
                    sha256=provenance.weights_sha256(policy),
                )
                for spec, policy in lineup.items()
            ]
            plan = Run(
                task=task,
                samples=len(samples),
                samples_sha256=hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest(),
                batch=batch,
                policies=entries,
                options=resolved,
                description=_plain(provenance.with_checksums({**description, **_prompts(samples)})),
                provenance=provenance.collect(accelerator.num_processes),
            )
            for note in ledger.prepare(options.out, plan, options.resume):
                print(note)
            shared = [plan]
        except NammTransferError as error:  # every process has to hear of it, or the others wait for ever
            shared = [error]
    broadcast_object_list(shared)
    if isinstance(shared[0], NammTransferError):
        raise shared[0]
    return shared[0]


def _prompts(samples: list[Sample]) -> dict[str, str]:
    """`prompts_sha256` of all that is asked, in order; nothing where nothing is asked."""
    asked = "\0".join(sample.prompt for sample in samples)
    return {"prompts_sha256": hashlib.sha256(asked.encode()).hexdigest()} if asked.strip("\0") else {}


def _with_sizes(lineup: dict[str, EvictionPolicy], plan: Run, out: Path) -> dict[str, EvictionPolicy]:
    """The policies with match=NAME, each given the mean sizes NAME had, per layer and update, over all samples."""
    result = {}
    for entry in plan.policies:
        if entry.match is None:
            continue
        records = [
            r for contents in ledger.read_task(out, plan.task) for r in contents.records if r.policy == entry.match
        ]
        if len(records) < plan.samples:
            raise NammTransferError(
                f"{entry.spec!r} needs all {plan.samples} records of {entry.match!r}, found {len(records)}: "
                f"expected {str(out)!r} to be one folder that all processes share"
            )
        result[entry.spec] = policies.with_schedule(lineup[entry.spec], mean_history(records))
    return result


class _Job:
    """This process's part of a run: the batches it evaluates and the ledger it writes them to."""

    def __init__(
        self, out: Path, plan: Run, samples: list[Sample], evaluate: Evaluate, accelerator: Accelerator
    ) -> None:
        self.plan, self.samples, self.evaluate, self.accelerator = plan, samples, evaluate, accelerator
        self.done = {(r.policy, r.index) for contents in ledger.read_task(out, plan.task) for r in contents.records}
        accelerator.wait_for_everyone()  # nobody appends before all have read what is there
        self.ledger = ledger.Ledger(ledger.path_of(out, plan.task, accelerator.process_index), plan)
        self.arrays = ArrayStore(out)

    def work(self, lineup: dict[str, EvictionPolicy]) -> None:
        """Evaluate what is missing under each of these policies, record by record."""
        todo = [(spec, chunk) for spec in lineup for chunk in self._chunks(spec)]
        bar = tqdm(
            total=sum(len(missing) for _, (_, missing) in todo),
            unit="sample",
            disable=not (todo and self.accelerator.is_main_process),
            dynamic_ncols=True,
        )
        with bar:
            for spec, (chunk, missing) in todo:
                bar.set_description(f"{self.plan.task}: {spec}", refresh=False)
                begun = time.perf_counter()
                outcomes = _outcomes(self.evaluate, [self.samples[i] for i in chunk], lineup[spec])
                seconds = (time.perf_counter() - begun) / len(chunk)
                for index, outcome in zip(chunk, outcomes, strict=True):
                    if index in missing:
                        self.ledger.add(self._record(spec, index, outcome, seconds))
                bar.update(len(missing))

    def _chunks(self, spec: str) -> Iterator[tuple[range, set[int]]]:
        """This process's batches with something left to do, as (indices of the samples, those that are missing).

        A batch is evaluated as a whole even if some of it is done: another composition could be another rounding.
        """
        count, size = len(self.samples), self.plan.batch
        for number, first in enumerate(range(0, count, size)):
            chunk = range(first, min(first + size, count))
            missing = {index for index in chunk if (spec, index) not in self.done}
            if missing and number % self.accelerator.num_processes == self.accelerator.process_index:
                yield chunk, missing

    def _record(self, spec: str, index: int, outcome: Outcome, seconds: float) -> Record:
        sample, memory, error = self.samples[index], outcome.memory, outcome.error
        if error is None and not math.isfinite(outcome.score):
            error = f"score {outcome.score!r}: expected a finite number"
        return Record(
            index=index,
            id=sample.id,
            category=sample.category,
            cluster=sample.cluster,
            policy=spec,
            score=None if error else 0.0 if outcome.unparsed else float(outcome.score),
            **({} if memory is None else _memory(memory)),
            answer=outcome.answer,
            unparsed=outcome.unparsed,
            error=error,
            seconds=seconds,
            details=_plain(outcome.details),
            arrays={name: self.arrays.put(np.asarray(array)) for name, array in sorted(outcome.arrays.items())},
        )

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()


def _outcomes(evaluate: Evaluate, chunk: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
    """The outcomes of a batch; if it raises, each sample gets its own chance, so that only the culprit fails."""
    try:
        outcomes = evaluate(chunk, policy)
    except Exception as error:
        if len(chunk) == 1:
            return [Outcome(score=math.nan, memory=None, error=_short(error))]
        return [outcome for sample in chunk for outcome in _outcomes(evaluate, [sample], policy)]
    if len(outcomes) != len(chunk):
        raise NammTransferError(f"the evaluator returned {len(outcomes)} outcomes for {len(chunk)} samples")
    return outcomes


def _short(error: Exception) -> str:
    """Type, message and place of an exception in at most 400 characters."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} [{Path(frame.filename).name}:{frame.lineno}]"


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


def _plain(value: Any) -> Any:
    """A JSON-able copy: paths become strings, NumPy and torch numbers and arrays Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
