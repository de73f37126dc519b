"""Data model of one evaluation: a `Run` with its policies and provenance, and one `Record` per sample and policy.

Shares are fractions of 1, scores have the unit that the run's description names, times are in seconds.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]


class Strict(BaseModel):
    """Base class that refuses unknown keys, so that a file of a newer release is an error and not half read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(Strict):
    """The result of one sample under one policy: a line of the ledger."""

    index: Count
    """Position of the sample in the evaluation, from 0."""
    id: str
    category: str
    cluster: str | None = None
    """Label shared by dependent samples (questions on one video); the bootstrap resamples a cluster as a whole."""
    policy: str
    """The policy's spec, as written on the command line."""
    score: float | None
    """Score in the run's unit; None if the sample failed."""
    updates: Count = 0
    """Number of times the policy decided what to keep."""
    seen: Count = 0
    """Number of tokens that entered this sample's cache."""
    kept_share: float | None = None
    """Tokens kept when the answer began (RL: averaged over steps) over tokens seen, averaged over layers and heads."""
    peak_share: float | None = None
    kept: list[list[Count]] = []
    """Number of tokens in the cache, (layers, KV heads)."""
    history: list[list[float]] = []
    """Mean number of tokens a KV head kept after each update, (layers, updates)."""
    history_by_head: list[list[list[Count]]] = []
    """Number of tokens that each KV head kept after each update, (layers, updates, KV heads); recorded only for a
    policy whose sizes another one takes over with ``match=NAME,allocation=head``."""
    answer: str | None = None
    unparsed: bool = False
    error: str | None = None
    """Why the sample failed; None if it did not."""
    seconds: float = 0.0
    """Wall-clock time; the time of a batch is divided evenly among its samples."""
    details: dict[str, Any] = {}
    divergence: float | None = None
    """Jensen-Shannon divergence, in bits, of the distribution of the first answer token from the full cache's."""
    overlaps: dict[str, list[list[float]]] = {}
    """Spec of another policy -> Jaccard index of what both keep when the answer begins, (layers, KV heads). Each pair
    of policies stands in the record of the one that was evaluated later."""
    arrays: dict[str, str] = {}
    """Array name -> SHA-256, under which kept.npz stores it."""
    compared: dict[str, str] = {}
    """Arrays that policies evaluated later are compared with, named like `arrays`; of no use afterwards."""
    sizes_sha256: str | None = None
    """SHA-256 of the cache sizes that a policy with match=NAME was given; if they change, the record is discarded."""

    @model_validator(mode="after")
    def _heads_and_updates_alike(self) -> Self:
        if len(set(map(len, self.kept))) > 1:
            raise ValueError("kept: expected as many heads in every layer")
        return self


class Policy(Strict):
    """One policy of a run, with its properties spelled out so that nothing has to parse the spec."""

    spec: str
    """The policy as written on the command line, such as ``h2o:keep=0.5``; records and tables refer to it by this."""
    name: str
    """Name in the registry of policies, for example ``h2o``."""
    update_interval: Positive
    """The policy acts each time a sequence has grown by this many tokens."""
    baseline: bool
    """True for a policy that keeps every token."""
    match: str | None = None
    """Spec of the policy whose cache size this one was given."""
    allocation: str | None = None
    """Division of the size among layers and heads, as written on the command line; None: the policy's default."""
    sha256: str | None = None
    """SHA-256 of the weights and statistics; None for a policy without any."""
    options: dict[str, Any] | None = None
    """Options of a policy with weights, those of its configuration file too; None for others, and in older records."""


class Provenance(Strict):
    """Command, versions and machine of a run. Runs with equal results may differ in it, so comparisons leave it out."""

    command: str
    started: str
    """Start time, UTC, ISO 8601."""
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
        """Code and package versions, which may change a result without being part of a run's identity."""
        return self.git_hash, self.git_dirty, self.versions


class Run(Strict):
    """One evaluation: everything that determines its records, and its provenance. It is the first line of a ledger."""

    schema_version: Literal[2] = 2
    task: str
    samples: Positive
    samples_sha256: str
    """SHA-256 of the sample ids, one a line, in order."""
    batch: Positive
    policies: list[Policy]
    options: dict[str, Any]
    """Resolved flags, without those that only name file locations."""
    description: dict[str, Any]
    """Model, data and their SHA-256, dtype, prompts, and the meaning and unit of the score."""
    provenance: Provenance
    resumed: list[Provenance] = []
    """Provenance of later starts of this run with other code or packages; their records are among the others."""

    @property
    def latest(self) -> Provenance:
        """Provenance of the last start whose code or packages differ from those of the one before."""
        return [self.provenance, *self.resumed][-1]

    @property
    def baseline(self) -> Policy | None:
        """The policy that the others are compared with: the first one that keeps every token; None if there is none."""
        return next((policy for policy in self.policies if policy.baseline), None)

    def policy(self, spec: str) -> Policy:
        """Return the policy written as `spec`; raises `KeyError` if the run has none."""
        return {policy.spec: policy for policy in self.policies}[spec]

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        """Complete the policies of schema version 1, which recorded only specs, ``name`` or ``name:key=value,...``."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        options = data.get("options")
        interval = options.get("update_interval", 1) if isinstance(options, dict) else 1
        policies = [_policy_of_version_1(policy, interval) for policy in data.get("policies") or ()]
        return {**data, "schema_version": SCHEMA_VERSION, "policies": policies}

    def identity(self) -> dict[str, Any]:
        """Return the configuration that two runs must share for their records to be combined.

        Files are identified by content, not by path. From the description it takes only model, data, dtype and
        prompts; the rest is text for the reader, whose wording may change.
        """
        found = self.configuration()
        decisive = {key: value for key, value in found["description"].items() if key in _DECISIVE or _is_digest(key)}
        return {**found, "description": decisive}

    def configuration(self) -> dict[str, Any]:
        """Everything that was set or chosen, without provenance; files are identified by content, not by path."""
        found = json.loads(self.model_dump_json(exclude={"provenance", "resumed", "schema_version"}))
        placed = {key.removesuffix("_sha256") for key in self.description if _is_digest(key)}
        found["description"] = {key: value for key, value in found["description"].items() if key not in placed}
        return found


_DECISIVE = ("model", "data", "dtype")
"""Keys of a run's description that are part of its identity, beside the checksums."""


def _is_digest(key: str) -> bool:
    return key.endswith("_sha256")


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
