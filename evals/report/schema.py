"""The `Report`, computed from the records of evaluations (`evaluation`), and its parts.

`schema.json` beside this file is the JSON Schema of `Report`: `python -m namm_transfer.evals.report.schema`.

Shares are fractions of 1, scores have the unit the run's description names, times are in seconds.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from namm_transfer.evals.report.evaluation import SCHEMA_VERSION, Policy, Provenance, Record, Run, Strict

__all__ = ["SCHEMA_VERSION", "Policy", "Provenance", "Record", "Report", "Run"]

Verdict = Literal["baseline", "helps", "holds", "hurts", "unsettled", "hardly acted", "cannot tell"]


class SummaryRow(Strict):
    """One policy on one task."""

    task: str
    policy: str
    n: int
    """Samples tried, the failed and the unparsed among them."""
    score: float | None
    """Mean over the samples that did not fail; an unparsed answer counts as wrong."""
    diff_full: float | None
    """Mean difference to the full cache over the samples that both finished."""
    diff_ci: tuple[float, float] | None
    """95 % paired bootstrap interval of it; None for fewer than two independent pairs."""
    kept_share: float | None
    updates_mean: float
    """Times the policy acted on a sample that did not fail, on average."""
    acted_share: float
    """Share of the samples that did not fail in which it acted at all."""
    failed: int
    unparsed: int


class Overall(Strict):
    """One policy over all tasks of a group, an environment and its data being a task (RL)."""

    task: str
    """Name of the group: what stands before the first slash of its tasks' names."""
    policy: str
    tasks: int
    n: int
    """Episodes tried, over all tasks."""
    score: float | None
    """Interquartile mean over all episodes that did not fail."""
    score_ci: tuple[float, float] | None
    """95 % stratified bootstrap interval of it."""
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
    """What one policy cost on one task, means over its samples."""

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
    """How the cache of one policy grew and shrank on one task."""

    task: str
    policy: str
    interval: int
    """Tokens from one update to the next."""
    held: list[float]
    """Tokens a head held after each update, mean over layers and the samples that got so far."""
    samples: list[int]
    """How many samples got so far."""


class Category(Strict):
    """One category of one task under one policy."""

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
    """A number from a paper, shown beside a task's own with its source."""

    task: str
    name: str
    value: float
    world: str
    """What it was measured on."""
    source: str


class Answer(Strict):
    """The result of one policy on one task in words."""

    task: str
    policy: str
    verdict: Verdict
    text: str


class Headline(Strict):
    """A benchmark's score as its authors report it, for one policy of one task: MLVU's M-Avg, for example.

    Samples that failed count as wrong.
    """

    task: str
    policy: str
    name: str
    """What the authors call it."""
    value: float | None
    """None if nothing was scored."""
    unit: str
    parts: dict[str, float]
    """Category -> its score, in the same unit."""
    missing: list[str]
    """Categories of the benchmark that were expected and of which there is no sample."""


class HeatMap(Strict):
    """Mean share of the seen tokens that was held, (layers, KV heads)."""

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
    """Everything the pages show; a pure function of the records."""

    schema_version: Literal[2] = 2
    headline: str
    """The answer over all tasks in one line."""
    headlines: list[Headline] = Field(default_factory=list)
    """Scores as the authors of the benchmarks report them."""
    answers: list[Answer]
    """A line for each policy: of a group of tasks first, then of each task."""
    summary: list[SummaryRow]
    overall: list[Overall]
    costs: list[Cost]
    returns: list[Returns] = Field(default=[])
    """Of tasks whose samples are episodes; empty for others."""
    sizes: list[Sizes]
    categories: list[Category]
    heatmaps: list[HeatMap]
    published: list[Published]
    warnings: list[str]
    runs: list[Run]
    records: list[Brief]
    records_left_out: int = 0
    """Records that report.json had no room for; they are in the ledgers."""

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        """Version 1 had no headlines; its runs are brought up to date by `Run`."""
        old = isinstance(data, dict) and data.get("schema_version") == 1
        return {**data, "schema_version": SCHEMA_VERSION} if old else data


def json_schema() -> str:
    """The JSON Schema of `Report`, as shipped in schema.json."""
    return json.dumps(Report.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
