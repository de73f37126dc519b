"""Tables and sentences for a report's decompositions (where or what) and gates (whether a task needs a memory)."""

from __future__ import annotations

from typing import Any

from namm_transfer.evals.report.decomposition import GAIN, HEADS, LAYERS, WHAT, WHERE
from namm_transfer.evals.report.schema import Decomposition, Report
from namm_transfer.evals.report.tables import Column, Table, bounds, make
from namm_transfer.evals.report.verdict import number, percent, signed

ALLOCATIONS = ("uniform", "layer", "head")
"""Allocations that have a column."""

MEANINGS = {
    LAYERS: "random eviction: the policy's numbers by layer, against uniform",
    HEADS: "random eviction: the policy's numbers by layer and head, against by layer",
    WHERE: "random eviction: the policy's numbers by layer and head, against uniform",
    WHAT: "the policy, against random eviction under its numbers by layer and head",
    GAIN: "the policy, against random eviction under uniform numbers",
}

RULES = [
    Column("rule", "rule that keeps as many tokens in all as the policy in the title", "rule", numeric=False),
    Column("uniform", "its score with the same number of tokens in every head", "uniform", number),
    Column("by layer", "its score with the policy's numbers of tokens in each layer", "layer", number),
    Column("by layer and head", "its score with the policy's numbers in each head", "head", number),
    Column("policy ahead", "the policy's score less the rule's by layer and head, same samples", "ahead", signed),
    Column("ahead 95 %", "paired bootstrap interval of that difference", "ahead_ci", bounds(signed)),
]

PARTS = [
    Column("part", "step from random eviction under uniform numbers to the policy", "name", numeric=False),
    Column("difference", "mean difference of the score on the same samples", "value", signed),
    Column("difference 95 %", "paired bootstrap interval of that difference", "ci", bounds(signed)),
    Column("of", "what is compared with what", "meaning", numeric=False),
]

COLUMNS = [*RULES, *PARTS]


def sentences(report: Report) -> list[tuple[str, str]]:
    """Return heading and text of each decomposition and gate; a group's decomposition stands for those of its tasks."""
    groups = tuple(f"{row.task}/" for row in report.overall if row.tasks > 1)
    shown = [item for item in report.decompositions if not item.task.startswith(groups)]
    found = [(f"{item.task}, {item.policy}: where or what", item.text) for item in shown]
    return [*found, *((f"{gate.task}: does it need a memory", gate.text) for gate in report.gates)]


def tables(report: Report, task: str) -> list[Table]:
    """Make the tables of the rules under each allocation and of the gain's parts for a task or a group."""
    found = []
    for item in report.decompositions:
        if item.task == task:
            title = f"{task}: rules at the size of {item.policy} ({percent(item.kept_share)} kept) by allocation"
            found.append(make(title, RULES, _rules(item)))
            parts = [part.model_dump() | {"meaning": MEANINGS[part.name]} for part in item.parts]
            found.append(make(f"{task}: gain of {item.policy} over random eviction in parts", PARTS, parts))
    return found


def _rules(item: Decomposition) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for entry in item.rules:
        row = rows.setdefault(entry.rule, dict.fromkeys((*ALLOCATIONS, "ahead", "ahead_ci")) | {"rule": entry.rule})
        row[entry.allocation] = entry.score
        if entry.allocation == "head":
            row |= {"ahead": entry.lender_ahead, "ahead_ci": entry.lender_ahead_ci}
    return list(rows.values())
