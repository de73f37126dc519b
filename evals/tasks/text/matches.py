"""InfiniteBench's right-or-wrong metrics: where in what a model said its answer is looked for.

Each takes what was said and a reference and gives 1 or 0, or a share. The rules are those of InfiniteBench's
`src/compute_scores.py`, oddities included: another rule would be another benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCD"
"""Names of the options of a multiple choice."""
_MARKS = "\n:\"'.,?!{}"


def first_integer(said: str, reference: object) -> float:
    """1 if the first run of digits is the reference, digit by digit."""
    found = re.search(r"[0-9]+", said)
    return float(found is not None and found[0] == str(reference))


def first_number(said: str, reference: object) -> float:
    """1 if the first number, whole or with a decimal point and without its sign, equals the reference."""
    found = re.search(r"\d+\.\d+|\d+", said)
    return float(found is not None and float(found[0]) == float(str(reference)))


def last_integer(said: str, reference: object) -> float:
    """1 if the last word is an integer that equals the reference."""
    words = _blank(said, "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == int(str(reference)))
    except ValueError:
        return 0.0


def leading_integers(said: str, reference: Sequence[object]) -> float:
    """Share of the reference's integers that come in its order from the very first one on, up to the first mistake."""
    right = 0
    for mine, theirs in zip(re.findall(r"[0-9]+", said), reference, strict=False):
        if int(mine) != int(str(theirs)):
            break
        right += 1
    return right / len(reference)


def contained_word(said: str, reference: object) -> float:
    """1 if the reference is one of the words."""
    return float(str(reference) in _blank(said, _MARKS).split())


def contained_name(said: str, reference: object) -> float:
    """1 if the reference, a name in capitals, is one of the words, however those are written."""
    return float(str(reference) in _blank(said, _MARKS).upper().split())


def book_choice(said: str, reference: tuple[str, str]) -> float:
    """1 if the option chosen is the right one.

    That is the first letter if it is one of A to D, or the option itself, or what follows the first phrase like
    "answer is", or the first word made of these letters.

    Args:
        reference: the right option's text and its letter.
    """
    said = said.strip()
    if said[:1] and said[0] in LETTERS:
        return float(said[0] in reference)
    if said in reference:
        return 1.0
    plain = _single_spaced(_blank(said, "\n\"'.,?!{}"))
    after = _after(plain, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(after.startswith(reference))
    word = next((word for word in plain.split() if word in LETTERS), None)
    return float(word in reference)


def code_choice(said: str, reference: tuple[str, str]) -> float:
    """1 if the answer begins with the right letter and a dot or colon, or has it or the function's name after "is:".

    Args:
        reference: the right function's name and its letter.
    """
    said = said.strip()
    if said[:2] in (f"{reference[1]}.", f"{reference[1]}:"):
        return 1.0
    plain = _blank(said, "\n`'\"-*").replace("Option", " ").replace("option", " ")
    after = _after(_single_spaced(plain), ("answer is:", "is:", "answer:"))
    return float(after is not None and after.startswith(reference))


def _blank(text: str, marks: str) -> str:
    """The text with each of these characters made a space."""
    return text.translate(dict.fromkeys(map(ord, marks), " "))


def _single_spaced(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _after(text: str, phrases: Sequence[str]) -> str | None:
    """What follows the first of these phrases that the text has, and the character after it; None if it has none."""
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    return None if phrase is None else text[text.index(phrase) + len(phrase) + 1 :]
