"""LongBench (Bai et al., 2023): 21 tasks in English, Chinese and code; prompts and metrics are in longbench.toml.

A line has `input`, `context`, `answers` and `all_classes`.
"""

from __future__ import annotations

from typing import Any

from namm_transfer.evals.tasks.text.metrics import METRICS
from namm_transfer.evals.tasks.text.questions import Entry, Place, Task, TextBenchmark, tasks_of


def read(task: Task, entry: Entry) -> tuple[dict[str, str], tuple[Any, ...]]:
    """Return the template's fields and the references of a line."""
    fields = {name: entry.text(name) for name in ("context", "input")}
    answers = entry.texts("answers")
    if task.metric is not METRICS["classification"]:
        return fields, tuple(answers)
    classes = tuple(entry.texts("all_classes"))
    return fields, tuple((answer, classes) for answer in answers)


TASKS = tasks_of("longbench", Place("THUDM/LongBench", "data.zip"), read)
BENCHMARKS = (TextBenchmark("longbench", "LongBench (arXiv 2308.14508)", TASKS),)
