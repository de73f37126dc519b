"""InfiniteBench (Zhang et al., 2024): 12 tasks of 100,000 tokens; prompts and metrics are in infinitebench.toml.

A line has `context`, `input`, `answer` and `options`.
"""

from __future__ import annotations

import re
from typing import Any

from namm_transfer.evals.tasks.text.matches import LETTERS
from namm_transfer.evals.tasks.text.questions import Entry, Place, Task, TextBenchmark, tasks_of


def read(task: Task, entry: Entry) -> tuple[dict[str, str], tuple[Any, ...]]:
    """Return the template's fields and the references of a line (InfiniteBench's `create_prompt`, `get_answer`)."""
    fields = {name: entry.text(name) for name in ("context", "input")}
    fields["question"] = fields["input"]
    answer = entry.values.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(item, str | int | float | list) for item in answers):
        raise entry.refusal("answer", "a text, a number or a list of these")
    if "{OPTION_A}" in task.prompt:
        options = entry.texts("options")
        if len(options) != len(LETTERS):
            raise entry.refusal("options", "four texts")
        fields |= {f"OPTION_{letter}": option for letter, option in zip(LETTERS, options, strict=True)}
        same = next((option for option in options if options.count(option) > 1 and option in answers), None)
        if same is not None:
            raise entry.refusal("options", f"options that differ, and {same!r}, the right one, is there twice")
        if len(answers) == 1 and answers[0] in options:
            answers = [answers[0], LETTERS[options.index(answers[0])]]
        if len(answers) != 2 or answers[1] not in tuple(LETTERS):
            raise entry.refusal("answer", "one of the options")
        return fields, (tuple(answers),)
    if task.name == "math_find":
        fields["prefix"] = f"What is {_match(entry, r'The .+ of').lower()[:-3]} in the following list?"
    elif task.name == "code_run":
        fields["func_call"] = _match(entry, r"func_[0-9]+\(-?[0-9]+\)")
        fields["func"] = fields["func_call"].partition("(")[0]
    elif task.name == "math_calc":
        return fields, (tuple(answers[0] if isinstance(answers[0], list) else answers),)
    several = task.name in ("longbook_qa_eng", "longbook_qa_chn", "longbook_sum_eng")
    return fields, tuple(answers if several else answers[:1])


def _match(entry: Entry, pattern: str) -> str:
    found = re.search(pattern, entry.text("input"))
    if found is None:
        raise entry.refusal("input", f"a text with {pattern!r} in it")
    return found[0]


TASKS = tasks_of("infinitebench", Place("xinrongzhang2022/InfiniteBench"), read)
BENCHMARKS = (TextBenchmark("infinitebench", "InfiniteBench (arXiv 2402.13718)", TASKS),)
