"""What a report is made of: one `Record` a sample, one `Run` per evaluation, and the `Report` computed from them.

`schema.json` beside this file is the JSON Schema of `Report`: `python -m namm_transfer.evals.report.schema`.

Shares are fractions of 1, scores have the unit the run's description names, times are in seconds.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

SCHEMA_VERSION = 2

Verdict = Literal["baseline", "helps", "holds", "hurts", "unsettled", "hardly acted", "cannot tell"]


class _Strict(BaseModel):
    """Unknown keys are refused, so that a newer file is noticed instead of half read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(_Strict):
    """One sample under one policy: a line of the ledger."""

    index: int
    """Place of the sample in the evaluation's order."""
    id: str
    category: str
    cluster: str | None = None
    """Samples of one cluster (questions on one video) are resampled together."""
    policy: str
    """As written on the command line."""
    score: float | None
    """None if the sample failed."""
    updates: int = 0
    """How many times the policy acted."""
    seen: int = 0
    """Tokens this sample's cache has seen."""
    kept_share: float | None = None
    """Tokens held when the answer began (RL: averaged over steps) over tokens seen, averaged over layers and heads."""
    peak_share: float | None = None
    kept: list[list[int]] = []
    """Tokens held, (layers, KV heads)."""
    history: list[list[float]] = []
    """Mean tokens a head held after each update, (layers, updates)."""
    answer: str | None = None
    unparsed: bool = False
    error: str | None = None
    """Why the sample failed; None if it did not."""
    seconds: float = 0.0
    """Wall time; a batch's time is shared out evenly."""
    details: dict[str, Any] = {}
    arrays: dict[str, str] = {}
    """Name -> SHA-256, under which the array lies in kept.npz."""


class Policy(_Strict):
    """One policy of a run. Whoever wants to know what a policy is looks here and never into its spec."""

    spec: str
    """As written on the command line, for example ``h2o:keep=0.5``; the policy's name in records and tables."""
    name: str
    """Name in the registry of policies, for example ``h2o``."""
    update_interval: int
    """The policy acts each time a sequence has grown by this many tokens."""
    baseline: bool
    """True for a policy that keeps every token."""
    match: str | None = None
    """Spec of the policy whose cache size this one was given."""
    sha256: str | None = None
    """SHA-256 of the weights and statistics, for policies that have some."""


class Provenance(_Strict):
    """How and where a run was made. Differs between runs of equal result, so comparisons leave it out."""

    command: str
    started: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    platform: str
    cpu: str
    cores: int
    accelerator: str
    processes: int
    git_hash: str | None
    git_dirty: bool | None

    @property
    def code(self) -> tuple[Any, ...]:
        """What may change a result without being part of a run's identity."""
        return self.git_hash, self.git_dirty, self.versions


class Run(_Strict):
    """One evaluation: everything that decides its records, and how it was made. First line of a ledger."""

    schema_version: Literal[2] = 2
    task: str
    samples: int
    samples_sha256: str
    """Of the sample ids, one a line, in order."""
    batch: int
    policies: list[Policy]
    options: dict[str, Any]
    """Resolved flags, without those that only say where files lie."""
    description: dict[str, Any]
    """What was evaluated: model, data, their SHA-256, dtype, prompts, what the score is."""
    provenance: Provenance
    resumed: list[Provenance] = []
    """Later starts of this run with other code or packages, whose records stand among the others."""

    @property
    def latest(self) -> Provenance:
        """Provenance of the last start that had other code or packages than the one before."""
        return [self.provenance, *self.resumed][-1]

    @property
    def baseline(self) -> Policy | None:
        """The policy that the others are compared with: the first that keeps every token."""
        return next((policy for policy in self.policies if policy.baseline), None)

    def policy(self, spec: str) -> Policy:
        """The policy that was written as `spec`; `KeyError` if the run has none."""
        return {policy.spec: policy for policy in self.policies}[spec]

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        """Version 1 recorded a policy as its spec alone, ``name`` or ``name:key=value,...``."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        options = data.get("options")
        interval = options.get("update_interval", 1) if isinstance(options, dict) else 1
        policies = [_policy_of_version_1(policy, interval) for policy in data.get("policies") or ()]
        return {**data, "schema_version": SCHEMA_VERSION, "policies": policies}

    def identity(self) -> dict[str, Any]:
        """All that two runs must share for their records to belong together; files count by content, not by place."""
        found = json.loads(self.model_dump_json(exclude={"provenance", "resumed"}))
        placed = {key.removesuffix("_sha256") for key in self.description if key.endswith("_sha256")}
        found["description"] = {key: value for key, value in found["description"].items() if key not in placed}
        return found


def _policy_of_version_1(policy: Any, interval: Any) -> Any:
    if not isinstance(policy, dict) or not isinstance(policy.get("spec"), str):
        return policy
    name, _, rest = policy["spec"].partition(":")
    given = dict(part.partition("=")[::2] for part in rest.split(","))
    return {
        "name": name,
        "update_interval": given.get("update_interval", interval),
        "baseline": name == "full",
        **policy,
    }


class SummaryRow(_Strict):
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


class Overall(_Strict):
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


class Cost(_Strict):
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


class Returns(_Strict):
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


class Sizes(_Strict):
    """How the cache of one policy grew and shrank on one task."""

    task: str
    policy: str
    interval: int
    """Tokens from one update to the next."""
    held: list[float]
    """Tokens a head held after each update, mean over layers and the samples that got so far."""
    samples: list[int]
    """How many samples got so far."""


class Category(_Strict):
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


class Published(_Strict):
    """A number from a paper, shown beside a task's own with its source."""

    task: str
    name: str
    value: float
    world: str
    """What it was measured on."""
    source: str


class Answer(_Strict):
    """The result of one policy on one task in words."""

    task: str
    policy: str
    verdict: Verdict
    text: str


class Headline(_Strict):
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


class HeatMap(_Strict):
    """Mean share of the seen tokens that was held, (layers, KV heads)."""

    task: str
    policy: str
    share: list[list[float]]


class Brief(_Strict):
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
    details: dict[str, Any] = {}
    arrays: dict[str, str] = {}


class Report(_Strict):
    """Everything the pages show; a pure function of the records."""

    schema_version: Literal[2] = 2
    headline: str
    """The answer over all tasks in one line."""
    headlines: list[Headline] = []
    """Scores as the authors of the benchmarks report them."""
    answers: list[Answer]
    """A line for each policy: of a group of tasks first, then of each task."""
    summary: list[SummaryRow]
    overall: list[Overall]
    costs: list[Cost]
    returns: list[Returns] = []
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
