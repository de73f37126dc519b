"""What the three evaluation scripts share: their flags, and a loop over policies and samples that can be killed.

A script defines its options (a dataclass that inherits from `EvalOptions`), a list of `Sample`s and a function that
answers a few samples under one policy. `run` does the rest: policies from their command line notation, samples split
over the processes of `accelerate launch`, one durable record a finished sample, `--resume`, and the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

    from .cache import RowReport
    from .policies import EvictionPolicy
    from .report.schema import Report


@dataclasses.dataclass
class EvalOptions:
    """Flags that every evaluation has. A script's own options inherit from this and may give other defaults."""

    policy: tuple[str, ...] = ("full,namm,streaming:keep=0.5,h2o:match=namm",)
    """Policies to compare, written name:key=value,... ; may be repeated, and one value may hold several, separated by
    commas (full,streaming:sinks=4,window=252 is two). match=NAME asks for the cache size that policy NAME used."""

    update_interval: int = 512
    """The policy acts each time a sequence has grown by this many tokens; spectral policies need a multiple of 16."""

    limit: int | None = None
    """Evaluate only the first so many samples; all of them if not given."""

    seed: int = 0
    """Seed of everything random in this evaluation, the bootstrap intervals included."""

    out: Path = Path("runs/evaluation")
    """Folder of the records and of report.json, report.md and report.html."""

    resume: bool = False
    """Go on from the records in the --out folder; finished samples are not repeated."""

    config: Path | None = None
    """TOML file with defaults for these flags (keys are the names of the flags); a flag overrules the file."""

    threads: int = 1
    """CPU threads a process. Another number may change the last bit of a result; for speed, start more processes."""


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


@dataclasses.dataclass
class Outcome:
    """What came of one sample under one policy."""

    score: float
    """Higher is better; the unit is the description's `score`. An answer that could not be parsed has score 0."""

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
    """Anything else worth keeping, JSON-able: the question, the right answer, the return of an episode, `bytes` held."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Arrays of this sample for the page's figures (kept share by frame, ...); they go to kept.npz."""


Evaluate = Callable[[list[Sample], "EvictionPolicy"], list[Outcome]]
"""Answers up to `batch` samples under one policy, one outcome a sample in the order given."""

Options = TypeVar("Options", bound=EvalOptions)


def parse(options: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line (`sys.argv[1:]` unless given): flags, then `--config FILE`, then the defaults."""
    raise NotImplementedError


def start(options: EvalOptions) -> Accelerator:
    """Join the processes of `accelerate launch` (or be the only one), set threads and seeds; call it before loading a
    model, which belongs on `start(options).device`. Safe to call again: `run` does."""
    raise NotImplementedError


def run(
    options: EvalOptions,
    *,
    task: str,
    samples: Sequence[Sample],
    evaluate: Evaluate,
    description: dict[str, Any],
    batch: int = 1,
) -> Report:
    """Evaluate every sample under every policy and write the report.

    Args:
        options: the resolved flags; all fields, a subclass's too, are recorded.
        task: name of the row in the summary, for example `"video"` or `"rl/hopper"`.
        samples: all samples, the same list in every process; `options.limit` cuts it.
        evaluate: see `Evaluate`. It must return the same for the same samples, whatever ran before.
        description: what was evaluated, JSON-able: `model` and `data` (folder or hub id; folders are hashed), `dtype`,
            `score` (what the score is, with its unit, for example "accuracy, %"), `chance` (score of guessing, if
            known), `world` (which data set or environment version the numbers come from), prompts, ...
        batch: how many samples `evaluate` gets at once. The composition of a batch depends on the order of the samples
            alone, never on the number of processes or on a resume.

    Returns:
        The report over all samples, in every process.
    """
    raise NotImplementedError
