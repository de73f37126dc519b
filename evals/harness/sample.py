"""Input and output of an evaluator: a `Sample`, and its `Outcome` under one policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from namm_transfer.cache.report import RowReport
from namm_transfer.policy import EvictionPolicy


@dataclasses.dataclass
class Sample:
    """One unit of evaluation: a question, a document, an episode."""

    id: str
    """Name that is unique within the evaluation and the same in every run."""

    category: str
    """Category in the report, such as a question type, a task or an environment seed."""

    payload: Any = None
    """Arbitrary object for the evaluator; it is not recorded."""

    cluster: str | None = None
    """Label shared by samples that are not independent, such as several questions about one video."""

    prompt: str = ""
    """Text of the prompt, if there is one; the run records a checksum of all prompts."""


@dataclasses.dataclass
class Outcome:
    """The result of one sample under one policy."""

    score: float
    """Score in the unit of the description's `score`, higher is better. An unparsed answer is recorded as 0."""

    memory: RowReport | None
    """The sample's row of `cache.report()`, taken when the first answer token is produced (text, video) or averaged
    over the steps (control); None only if the sample failed before there was a cache."""

    answer: str | None = None
    """The model's answer, as shown in the report."""

    unparsed: bool = False
    """True if the answer could not be parsed; it counts as wrong, and the report counts such answers."""

    error: str | None = None
    """Reason why the sample failed. `run` sets it for exceptions; set it only for failures that raise none."""

    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON-able values to record: the question, the right answer, an episode's return, `bytes` of cache."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Arrays for the page's figures, such as the kept share of each frame; they are stored in kept.npz."""

    next_token: Tensor | None = None
    """Logits of the first answer token, (vocabulary,), which `harness.agreement` compares with the full cache's."""

    held: np.ndarray | None = None
    """Tokens that each head holds then, see `harness.agreement.sketch`, to be compared between policies."""


Evaluate = Callable[[list[Sample], EvictionPolicy], list[Outcome]]
"""Function that evaluates up to `batch` samples under one policy and returns their outcomes in the same order."""
