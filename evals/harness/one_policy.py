"""The one policy of a run that another harness (lm-eval, lmms-eval) starts, and the facts that its results carry."""

from __future__ import annotations

from typing import Any

from namm_transfer import policies
from namm_transfer.evals.harness.lineup import Entry, alone
from namm_transfer.evals.harness.plan import recorded
from namm_transfer.evals.report import provenance

UPDATE_INTERVAL = 512
"""Tokens between two updates where the policy does not say."""


def one_policy(policy: str, options: dict[str, Any]) -> Entry:
    """Make the policy of a run from the harness's model arguments.

    Both harnesses cut these at commas, and with them the policy's own options: `policy=streaming:sinks=4,window=252`
    arrives in two parts. What belongs to the policy is put back and taken out of `options`.

    Raises:
        NammTransferError: no such policy, or one that wants to match another.
    """
    name, colon, rest = policy.partition(":")
    cut_off = [f"{key}={options.pop(key)}" for key in policies.option_names(name) if key in options]
    spec = policies.parse(":".join([name, ",".join(filter(None, [rest, *cut_off]))]) if colon or cut_off else name)
    return alone(spec, UPDATE_INTERVAL)


def facts(entry: Entry, processes: int) -> dict[str, Any]:
    """Describe the policy (`policy`) and where it ran (`provenance`) as JSON."""
    return {"policy": recorded(entry).model_dump(), "provenance": provenance.collect(processes).model_dump()}
