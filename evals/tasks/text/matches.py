"""InfiniteBench's right-or-wrong metrics, which find the answer inside a generated text.

Each takes the generated text and a reference and returns 1 or 0, or a share. The rules are those of InfiniteBench's
`src/compute_scores.py`, oddities included: another rule would be another benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCD"
"""Names of the options of a multiple choice."""
_MARKS = "\n:\"'.,?!{}"


def first_integer(answer: str, reference: object) -> float:
    """Return 1 if the first run of digits is the reference, digit by digit."""
    found = re.search(r"[0-9]+", answer)
    return float(found is not None and found[0] == str(reference))


def first_number(answer: str, reference: object) -> float:
    """Return 1 if the first number (integer or decimal, without its sign) equals the reference."""
    found = re.search(r"\d+\.\d+|\d+", answer)
    return float(found is not None and float(found[0]) == float(str(reference)))


def last_integer(answer: str, reference: object) -> float:
    """Return 1 if the last word is an integer that equals the reference."""
    words = _blank(answer, "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == int(str(reference)))
    except ValueError:
        return 0.0


def leading_integers(answer: str, reference: Sequence[object]) -> float:
    """Return the share of the reference's integers that the text lists from the start without a mistake."""
    right = 0
    for mine, theirs in zip(re.findall(r"[0-9]+", answer), reference, strict=False):
        if int(mine) != int(str(theirs)):
            break
        right += 1
    return right / len(reference)


def contained_word(answer: str, reference: object) -> float:
    """Return 1 if the reference is one of the words."""
    return float(str(reference) in _blank(answer, _MARKS).split())


def contained_name(answer: str, reference: object) -> float:
    """Return 1 if the reference, a name in capitals, is one of the words, ignoring case."""
    return float(str(reference) in _blank(answer, _MARKS).upper().split())


def book_choice(answer: str, reference: tuple[str, str]) -> float:
    """Return 1 if the option chosen is the right one.

    That is the first letter if it is one of A to D, or the option itself, or what follows the first phrase like
    "answer is", or the first word made of these letters.

    Args:
        reference: the right option's text and its letter.
    """
    answer = answer.strip()
    if answer[:1] and answer[0] in LETTERS:
        return float(answer[0] in reference)
    if answer in reference:
        return 1.0
    plain = _single_spaced(_blank(answer, "\n\"'.,?!{}"))
    after = _after(plain, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(after.startswith(reference))
    word = next((word for word in plain.split() if word in LETTERS), None)
    return float(word in reference)


def code_choice(answer: str, reference: tuple[str, str]) -> float:
    """Return 1 if the text starts with the right letter and a dot or colon, or has it or the function after "is:".

    Args:
        reference: the right function's name and its letter.
    """
    answer = answer.strip()
    if answer[:2] in (f"{reference[1]}.", f"{reference[1]}:"):
        return 1.0
    plain = _blank(answer, "\n`'\"-*").replace("Option", " ").replace("option", " ")
    after = _after(_single_spaced(plain), ("answer is:", "is:", "answer:"))
    return float(after is not None and after.startswith(reference))


def _blank(text: str, marks: str) -> str:
    """Replace each of these characters in a text by a space."""
    return text.translate(dict.fromkeys(map(ord, marks), " "))


def _single_spaced(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _after(text: str, phrases: Sequence[str]) -> str | None:
    """Return the text that follows the first of these phrases in it and one more character; None if it has none."""
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    return None if phrase is None else text[text.index(phrase) + len(phrase) + 1 :]
