"""What goes into an evaluation and what comes out of it: a `Sample`, and its `Outcome` under one policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from namm_transfer.cache.report import RowReport
from namm_transfer.policy import EvictionPolicy


@dataclasses.dataclass
class Sample:
    """One unit of evaluation: a question, a document, an episode."""

    id: str
    """Unique within the evaluation and the same in every run of it."""

    category: str
    """Group of the report's table by category: a question type, a task, an environment seed."""

    payload: Any = None
    """The evaluator's own object; never written anywhere."""

    cluster: str | None = None
    """Name shared by samples that are no independent draws, such as several questions about one video."""

    prompt: str = ""
    """What the model is asked in words, if in words; the run records a checksum of all prompts."""


@dataclasses.dataclass
class Outcome:
    """What came of one sample under one policy."""

    score: float
    """Higher is better, in the unit of the description's `score`. An unparsed answer is recorded as 0."""

    memory: RowReport | None
    """The sample's row of `cache.report()`, taken when the first answer token is produced (text, video) or averaged
    over the steps (control); None only if the sample failed before there was a cache."""

    answer: str | None = None
    """What the model said, for the reader of the report."""

    unparsed: bool = False
    """True if the answer could not be understood; it counts as wrong, and the report says how many there were."""

    error: str | None = None
    """Why the sample failed. `run` fills this in for an exception; set it only for a failure found without one."""

    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Anything else worth keeping, JSON-able: the question, the right answer, an episode's return, `bytes` held."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Arrays for the page's figures, such as the kept share of each frame; they go to kept.npz."""


Evaluate = Callable[[list[Sample], EvictionPolicy], list[Outcome]]
"""Answers up to `batch` samples under one policy and returns one outcome a sample, in the order given."""
