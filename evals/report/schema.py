"""Data model of a report: the `Report` that `analysis` computes from the records of evaluations, and its parts.

`schema.json` beside this file is the JSON Schema of `Report`: `python -m namm_transfer.evals.report.schema`.

Shares are fractions of 1, scores have the unit that the run's description names, times are in seconds.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from namm_transfer.evals.report.evaluation import SCHEMA_VERSION, Policy, Provenance, Record, Run, Strict

__all__ = ["SCHEMA_VERSION", "Policy", "Provenance", "Record", "Report", "Run"]

Verdict = Literal["baseline", "helps", "holds", "hurts", "unsettled", "hardly acted", "cannot tell"]


class SummaryRow(Strict):
    """The result of one policy on one task."""

    task: str
    policy: str
    n: int
    """Number of samples evaluated, including failed and unparsed ones."""
    score: float | None
    """Mean over the samples that did not fail; an unparsed answer counts as wrong."""
    diff_full: float | None
    """Mean difference to the full cache over the samples that both finished."""
    diff_ci: tuple[float, float] | None
    """95 % paired bootstrap interval of that difference; None for fewer than two independent pairs."""
    kept_share: float | None
    divergence: float | None = None
    """Mean Jensen-Shannon divergence, in bits, of the first answer token's distribution from the full cache's."""
    updates_mean: float
    """Mean number of updates per sample, over the samples that did not fail."""
    acted_share: float
    """Share of the samples that did not fail in which the policy acted at least once."""
    failed: int
    unparsed: int


class Overall(Strict):
    """The result of one policy over all tasks of a group; in RL a task is an environment with a data set."""

    task: str
    """Name of the group: the part of its tasks' names before the first slash."""
    policy: str
    tasks: int
    n: int
    """Number of episodes evaluated, over all tasks."""
    score: float | None
    """Interquartile mean over all episodes that did not fail."""
    score_ci: tuple[float, float] | None
    """95 % stratified bootstrap interval of the score."""
    diff_full: float | None
    """Difference to the full cache's interquartile mean over the episodes that both finished."""
    diff_ci: tuple[float, float] | None
    """95 % paired stratified bootstrap interval of that difference."""
    improvement: float | None
    """Probability that an episode scores more than one under the full cache, ties half, mean over tasks."""
    improvement_ci: tuple[float, float] | None
    kept_share: float | None
    updates_mean: float
    acted_share: float
    failed: int
    unparsed: int


class Cost(Strict):
    """Cache size, memory and time of one policy on one task, as means over its samples."""

    task: str
    policy: str
    tokens_seen: float | None
    tokens_held: float | None
    """A head holds so many when the answer begins; where there is none (RL), at the end."""
    bytes_held: float | None
    """Keys, values and the policy's state."""
    peak_share: float | None
    seconds: float
    acted_share: float


class Returns(Strict):
    """The undiscounted returns of one policy's episodes on one task, before they are normalised."""

    task: str
    policy: str
    n: int
    """Episodes that did not fail."""
    mean: float
    sd: float | None
    """Standard deviation over the episodes; None for a single one."""
    min: float
    max: float


class Sizes(Strict):
    """Cache size of one policy on one task after each update."""

    task: str
    policy: str
    interval: int
    """Number of tokens between two updates."""
    held: list[float]
    """Tokens a KV head kept after each update, mean over layers and the samples that reached that update."""
    samples: list[int]
    """Number of samples that reached each update."""


class Overlap(Strict):
    """Overlap of two policies' tokens on one task, as means over the samples that both finished."""

    task: str
    policy: str
    other: str
    samples: int
    jaccard: float
    """Tokens that both keep over tokens that either keeps, averaged over layers, KV heads and samples."""
    chance: float
    """Overlap of two random choices that keep as many tokens in each head."""
    by_layer: list[float]
    """The index of each layer, averaged over its KV heads and the samples."""


class Category(Strict):
    """The result of one policy on one category of a task."""

    task: str
    category: str
    policy: str
    n: int
    score: float | None
    raw: float | None
    """Mean of the samples' `details["return"]` (RL: the undiscounted return before it is normalised)."""
    kept_share: float | None
    acted_share: float


class Published(Strict):
    """A score published in a paper, shown beside a task's own scores with its source."""

    task: str
    name: str
    value: float
    world: str
    """Data set or environment version on which it was measured."""
    source: str


class Answer(Strict):
    """The result of one policy on one task in words."""

    task: str
    policy: str
    verdict: Verdict
    text: str


class Headline(Strict):
    """A benchmark's official score, averaged as its authors do, for one policy on one task: MLVU's M-Avg, for example.

    Samples that failed count as wrong.
    """

    task: str
    policy: str
    name: str
    """Name that the benchmark's authors give the score."""
    value: float | None
    """The score; None if nothing was scored."""
    unit: str
    parts: dict[str, float]
    """Category -> score, in the same unit."""
    missing: list[str]
    """Categories of the benchmark without any sample."""


class Likelihood(Strict):
    """Mean probability of the right answer's tokens, in %, beside a score of another kind."""

    task: str
    policy: str
    value: float


class Allocated(Strict):
    """A rule that keeps as many tokens as another policy (the lender), under one allocation of that number."""

    rule: str
    """Name of the rule."""
    allocation: str
    """`uniform`, every head the same; `layer` or `head`, as many in each layer or head as the lender keeps there."""
    policy: str
    score: float | None
    kept_share: float | None
    lender_ahead: float | None
    """Mean difference of the lender's score to this one's over the samples that both finished."""
    lender_ahead_ci: tuple[float, float] | None


class Part(Strict):
    """One step of a decomposition: the paired difference of two policies."""

    name: str
    before: str
    after: str
    value: float
    """Mean of after minus before, in the task's unit."""
    ci: tuple[float, float] | None
    """95 % paired bootstrap interval."""
    n: int


class Decomposition(Strict):
    """The gain of a policy over random eviction at the same total size, by where it keeps tokens and which."""

    task: str
    """Task, or name of a group of tasks."""
    policy: str
    """The policy whose sizes the rules took over."""
    kept_share: float | None
    rules: list[Allocated]
    parts: list[Part]
    text: str


class Gate(Strict):
    """The gate of a task: what random eviction loses says if it needs a memory; beside it, the score without text."""

    task: str
    full: float
    """Score of the full cache."""
    blind: float | None
    """Score of the questions alone; None if they were not asked."""
    lost: dict[str, float]
    """Share that random eviction kept -> share of the full score that it lost."""
    passed: bool
    text: str


class HeatMap(Strict):
    """Mean share of the tokens seen that each KV head kept, (layers, KV heads)."""

    task: str
    policy: str
    share: list[list[float]]


class Brief(Strict):
    """A record without its per-head numbers, as it appears in report.json."""

    task: str
    policy: str
    id: str
    category: str
    score: float | None
    updates: int
    kept_share: float | None
    peak_share: float | None
    unparsed: bool
    error: str | None
    answer: str | None
    seconds: float
    details: dict[str, Any] = Field(default_factory=dict)
    arrays: dict[str, str] = Field(default_factory=dict)


class Report(Strict):
    """Everything that the pages show. It depends on the records alone."""

    schema_version: Literal[2] = 2
    headline: str
    """The result over all tasks in one line."""
    headlines: list[Headline] = Field(default_factory=list)
    """Official scores of the benchmarks."""
    answers: list[Answer]
    """One verdict for each policy, on groups of tasks first, then on each task."""
    summary: list[SummaryRow]
    overall: list[Overall]
    costs: list[Cost]
    returns: list[Returns] = Field(default=[])
    """Episode returns of the tasks whose samples are episodes."""
    sizes: list[Sizes]
    overlaps: list[Overlap] = Field(default=[])
    """Pairs of policies that both evict."""
    categories: list[Category]
    heatmaps: list[HeatMap]
    likelihoods: list[Likelihood] = Field(default_factory=list)
    """Likelihoods of the right answers, of tasks that are scored in another way."""
    decompositions: list[Decomposition] = Field(default_factory=list)
    """The gain over random eviction in parts (where and what), for groups of tasks first, then for each task."""
    gates: list[Gate] = Field(default_factory=list)
    """The gates of the tasks, which say if they need a memory."""
    published: list[Published]
    warnings: list[str]
    runs: list[Run]
    records: list[Brief]
    records_left_out: int = 0
    """Number of records that were left out of report.json for its size; the ledgers have them."""

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        """Accept schema version 1, which had no headlines; `Run` converts its runs."""
        old = isinstance(data, dict) and data.get("schema_version") == 1
        return {**data, "schema_version": SCHEMA_VERSION} if old else data


def json_schema() -> str:
    """Return the JSON Schema of `Report`, the content of schema.json."""
    return json.dumps(Report.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
