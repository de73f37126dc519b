"""Numbers from papers that a report sets beside its own, each with its source and what it was measured on."""

from __future__ import annotations

from namm_transfer.evals.report.schema import Published

CORL = "CORL (Tarasov et al., 2022, arXiv 2210.07105), Decision Transformer, last checkpoint"
D4RL = "D4RL v2 data and environments"

DECISION_TRANSFORMER = {
    "hopper": {"medium": 65.1, "medium-replay": 81.8, "medium-expert": 110.4},
    "halfcheetah": {"medium": 42.2, "medium-replay": 38.9, "medium-expert": 91.6},
    "walker2d": {"medium": 67.6, "medium-replay": 59.9, "medium-expert": 107.1},
}
"""Environment -> data -> normalised score with the usual context of 20 steps."""


def beside(task: str) -> list[Published]:
    """What was published about a task, by its name; where the name says which data, about these data alone."""
    parts = task.replace("-v5", "").split("/")
    name = next((env for env in DECISION_TRANSFORMER if env in "/".join(parts)), None)
    if parts[0] != "rl" or name is None:
        return []
    known = DECISION_TRANSFORMER[name]
    tier = next((data for data in sorted(known, key=len, reverse=True) if task.endswith(data)), None)
    return [
        Published(task=task, name=f"{name} {data}, full context of 20 steps", value=value, world=D4RL, source=CORL)
        for data, value in known.items()
        if tier in (None, data)
    ]
