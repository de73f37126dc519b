"""One evaluation as its ledgers hold it: a `Run`, with its policies and where it was made, and a `Record` a sample.

Shares are fractions of 1, scores have the unit the run's description names, times are in seconds.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]


class Strict(BaseModel):
    """Unknown keys are refused, so that a newer file is noticed instead of half read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(Strict):
    """One sample under one policy: a line of the ledger."""

    index: Count
    """Place of the sample in the evaluation's order."""
    id: str
    category: str
    cluster: str | None = None
    """Samples of one cluster (questions on one video) are resampled together."""
    policy: str
    """As written on the command line."""
    score: float | None
    """None if the sample failed."""
    updates: Count = 0
    """How many times the policy acted."""
    seen: Count = 0
    """Tokens this sample's cache has seen."""
    kept_share: float | None = None
    """Tokens held when the answer began (RL: averaged over steps) over tokens seen, averaged over layers and heads."""
    peak_share: float | None = None
    kept: list[list[Count]] = []
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
    sizes_sha256: str | None = None
    """SHA-256 of the cache sizes that a policy with match=NAME was given; a change of them makes the record void."""

    @model_validator(mode="after")
    def _heads_and_updates_alike(self) -> Self:
        if len(set(map(len, self.kept))) > 1:
            raise ValueError("kept: expected as many heads in every layer")
        return self


class Policy(Strict):
    """One policy of a run. Whoever wants to know what a policy is looks here and never into its spec."""

    spec: str
    """As written on the command line, for example ``h2o:keep=0.5``; the policy's name in records and tables."""
    name: str
    """Name in the registry of policies, for example ``h2o``."""
    update_interval: Positive
    """The policy acts each time a sequence has grown by this many tokens."""
    baseline: bool
    """True for a policy that keeps every token."""
    match: str | None = None
    """Spec of the policy whose cache size this one was given."""
    sha256: str | None = None
    """SHA-256 of the weights and statistics, for policies that have some."""


class Provenance(Strict):
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


class Run(Strict):
    """One evaluation: everything that decides its records, and how it was made. First line of a ledger."""

    schema_version: Literal[2] = 2
    task: str
    samples: Positive
    samples_sha256: str
    """SHA-256 of the sample ids, one a line, in order."""
    batch: Positive
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
        """What two runs must share for their records to belong together.

        Files count by content, not by place. Of the description only what the options do not decide is in it: model,
        data, their number format and the prompts; the rest is words for the reader, which may be improved.
        """
        found = self.configuration()
        decisive = {key: value for key, value in found["description"].items() if key in _DECISIVE or _is_digest(key)}
        return {**found, "description": decisive}

    def configuration(self) -> dict[str, Any]:
        """All that was set or chosen, without how and where the run was made; files count by content, not by place."""
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
