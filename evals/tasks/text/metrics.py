"""Metrics of LongBench and InfiniteBench, which score a generated answer against one reference from 0 to 1.

Right-or-wrong ones are in `matches.py`. The rules are those of LongBench's `metrics.py` and InfiniteBench's
`src/compute_scores.py`, oddities included. What needs a library says so with a `NammTransferError` where it is missing.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import string
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.text import matches

RECURSION = 50_000
"""Deepest recursion allowed to `rouge`, which needs as much as two sentences have words together."""


def protocol(benchmark: str) -> dict[str, Any]:
    """Read `BENCHMARK.toml` beside this file: the table `tasks` and the values that tasks share."""
    return tomllib.loads((resources.files(__package__) / f"{benchmark}.toml").read_text(encoding="utf-8"))


_DROPPED = str.maketrans("", "", string.punctuation)
_DROPPED_CHINESE = str.maketrans("", "", string.punctuation + protocol("longbench")["chinese_punctuation"])


def library(name: str) -> Any:
    """Import a module of the extra `longbench`.

    Raises:
        NammTransferError: it is not installed.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise NammTransferError(
            f"this metric needs {name!r}, which cannot be imported ({error}): pip install 'namm-transfer[longbench]'"
        ) from None
    if name == "jieba":
        module.setLogLevel(logging.WARNING)  # it reports on its dictionary, in the middle of a progress bar
    return module


def word_f1(answer: str, reference: str) -> float:
    """Compute the F1 of common words, ignoring case, ASCII punctuation and English articles."""
    return _f1(*(re.sub(r"\b(a|an|the)\b", " ", t.lower().translate(_DROPPED)).split() for t in (answer, reference)))


def chinese_word_f1(answer: str, reference: str) -> float:
    """Compute the F1 of common words as jieba segments them, ignoring case, punctuation and white space."""
    cut = library("jieba").cut
    return _f1(*([word for piece in cut(text) if (word := _bare(piece))] for text in (answer, reference)))


def chinese_character_f1(answer: str, reference: str) -> float:
    """Compute the F1 of common characters, ignoring case, punctuation and white space (InfiniteBench)."""
    return _f1(_bare(answer), _bare(reference))


def rouge_l(answer: str, reference: str) -> float:
    """Compute the F1 of ROUGE-L with the package `rouge`, which ends sentences at full stops; 0 for an empty text.

    LongBench also gives 0, in silence, where long texts without full stops exceed Python's limit of recursion, which
    depends on the caller's depth; here these get their score.
    """
    rouge = library("rouge").Rouge(metrics=["rouge-l"], stats=["f"])
    try:
        with _recursion(RECURSION):
            return rouge.get_scores(answer, reference)[0]["rouge-l"]["f"]
    except ValueError:  # no sentence in one of them
        return 0.0


def chinese_rouge_l(answer: str, reference: str) -> float:
    """Compute `rouge_l` of the words that jieba segments."""
    cut = library("jieba").cut
    return rouge_l(" ".join(cut(answer)), " ".join(cut(reference)))


def rouge_l_sum(answer: str, reference: str) -> float:
    """Compute the F1 of ROUGE-Lsum with the package `rouge-score`, without stemming (InfiniteBench)."""
    scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=False)
    return scorer.score(reference, answer)["rougeLsum"].fmeasure


def classification(answer: str, reference: tuple[str, Sequence[str]]) -> float:
    """Return one over the number of classes that the answer names if the right one is among them, else 0.

    Classes whose names are parts of the right one's do not count; but, as in LongBench, after one that was dropped the
    next is not looked at.

    Args:
        reference: the right class, and all of them.
    """
    right, classes = reference
    named = [name for name in classes if name in answer]
    place = 0
    while place < len(named):
        if named[place] in right and named[place] != right:
            del named[place]
        place += 1
    return 1 / len(named) if right in named else 0.0


def retrieval(answer: str, reference: str) -> float:
    """Return the share of the answer's numbers that equal the right paragraph's, given as `Paragraph 3` or `段落3`."""
    right = re.search(r"(?:Paragraph |段落)(\d+)", reference)
    if right is None:
        raise NammTransferError(f"reference {reference!r} names no paragraph; expected 'Paragraph N' or '段落N'")
    return count(answer, right[1])


def count(answer: str, reference: str) -> float:
    """Return the share of the answer's numbers that equal the reference."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def code_similarity(answer: str, reference: str) -> float:
    """Compute the similarity of the reference and the answer's first line without comment or markup, to whole percent.

    `difflib`'s, which is what LongBench's `fuzzywuzzy` gives with LongBench's requirements, and gave for the NAMM
    paper. With python-Levenshtein beside it, it computes something else: 67 instead of 33 % for ababab and aaaaab.
    """
    lines = answer.lstrip("\n").split("\n")
    first = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, first, reference).ratio()) / 100


def _bare(text: str) -> str:
    """Remove case, punctuation and white space."""
    return "".join(text.lower().translate(_DROPPED_CHINESE).split())


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Compute the F1 of two bags of words or characters."""
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


@contextmanager
def _recursion(limit: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, limit))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@dataclass(frozen=True)
class Metric:
    """A metric that scores answers."""

    score: Callable[[str, Any], float]
    """Function of a generated answer and one reference that returns a number from 0 to 1."""
    label: str
    """Name of the metric in reports."""
    needs: tuple[str, ...] = ()
    """Modules of the extra `longbench` that the metric needs."""


METRICS = {
    "word_f1": Metric(word_f1, "F1 of words"),
    "chinese_word_f1": Metric(chinese_word_f1, "F1 of Chinese words", ("jieba",)),
    "chinese_character_f1": Metric(chinese_character_f1, "F1 of characters"),
    "rouge_l": Metric(rouge_l, "ROUGE-L", ("rouge",)),
    "chinese_rouge_l": Metric(chinese_rouge_l, "ROUGE-L of Chinese words", ("rouge", "jieba")),
    "rouge_l_sum": Metric(rouge_l_sum, "ROUGE-Lsum", ("rouge_score.rouge_scorer",)),
    "classification": Metric(classification, "classification score"),
    "retrieval": Metric(retrieval, "retrieval score"),
    "count": Metric(count, "count score"),
    "code_similarity": Metric(code_similarity, "edit similarity"),
    **{
        rule.__name__: Metric(rule, "accuracy")
        for rule in (
            matches.first_integer, matches.first_number, matches.last_integer, matches.contained_word,
            matches.contained_name, matches.book_choice, matches.code_choice,
        )
    },
    "leading_integers": Metric(matches.leading_integers, "share of leading integers"),
}  # fmt: skip
"""Name in the protocol files -> metric."""
