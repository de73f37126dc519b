"""Reading which option of a multiple-choice question a generated answer names.

An answer that names no option, or more than one, cannot be understood; it is never guessed at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

STATEMENT = r"\b(?:answer|(?:correct|right|best) (?:option|choice|letter|one))"
"""Words that announce the answer; a letter after them takes precedence over all others."""
CUE = (
    r"\b(?:options?|choices?|choose|chose|select(?:ed|ion)?|pick|say|guess|think|believe|go(?:ing)? with|letter|"
    r"correct|right|best|be|it'?s|is|probably|likely|definitely|clearly|certainly|therefore|thus|hence|so)\b"
)
"""Words after which a letter is an answer."""
FILLER = (
    r"(?:\s*(?:\b(?:is|was|be|would|should|must|to|that|it|it's|its|the|my|final|correct|right|best|most|likely|"
    r"probably|clearly|definitely|option|answer|choice|letter|one|number|here)\b|[:=>.-])){0,8}\s*"
)
LETTER = r"([(\[]?)\s*([A-Za-z])\b(?!['-]\w)"
REASON = re.compile(r"\b(?:because|since|instead of|rather than|not(?! (?:sure|certain|clear)))\b", re.I)
"""Words that introduce the reasons for an answer; letters after them are not answers."""
DENIAL = re.compile(
    r"\b(?:not|\w+n't|can(?:no|'?)t|never|neither|nor|none|no|except|wrong|incorrect|false|both|either|all|or|unsure|"
    r"unlikely)\b",
    re.I,
)
"""Words that deny an answer, or make it none or several."""
MARKS = {0x2018: "'", 0x2019: "'", 0x2013: "-", 0x2014: "-"} | dict.fromkeys((0x201C, 0x201D, 0x201E, 0xAB, 0xBB))
"""Quotation marks and dashes by their code points, and what stands for them."""
MARKUP = re.compile(
    r"<think>.*?</think>|<[^<>\n]{1,20}>|\\(?:boxed|text|textbf|mathbf|mathrm|rm|bf|left|right)\b|\\(?=[()\[\]])|"
    r'[*_`$~#{}"]',
    re.S,
)


def parse_choice(text: str, choices: Sequence[str], options: Sequence[str] = ()) -> int | None:
    r"""Return the index of the one choice that a generated answer names; None if it names none, or several.

    A letter counts where it stands as a label ("B", "(b)", "B. red") or is stated as the answer ("The answer is B."); a
    lower-case letter, which may be a word, only with a mark or an end beside it. The text of an option counts if no
    other one is named.

    Args:
        text: the generated answer.
        choices: the possible answers: letters, or the options themselves.
        options: the options behind the letters, where `choices` are letters.

    >>> parse_choice("The answer is (b).", ["A", "B"]), parse_choice("$\\boxed{B}$", ["A", "B"])
    (1, 1)
    >>> parse_choice("A or B", ["A", "B"]), parse_choice("It is red.", [" blue", " red"])
    (None, 1)
    """
    answer = _plain(text)
    names = [_plain(choice) for choice in choices]
    if not answer:
        return None
    if all(len(name) == 1 and name.isalpha() for name in names):
        return _lettered(answer, [name.upper() for name in names], [_plain(option) for option in options])
    return _worded(answer, names)


def _plain(text: str) -> str:
    """Normalise a text to compatibility form (full-width and circled letters become plain) without markup."""
    bare = MARKUP.sub("", unicodedata.normalize("NFKC", text).translate(MARKS))
    return re.sub(r"[ \t]+", " ", re.sub(r"'([A-Za-z])'", r"\1", bare)).strip()


def _words(text: str) -> str:
    """Normalise a text to lower-case words, single-spaced, without leading articles and surrounding punctuation."""
    bare = " ".join(re.findall(r"[^\W_]+(?:[.,:'/-][^\W_]+)*|[-+]?\d+%?", text.casefold()))
    return re.sub(r"^(?:the|an?) (?=.)", "", bare)


def _lettered(answer: str, letters: list[str], options: list[str]) -> int | None:
    """Implement `parse_choice` by a series of tests from the most to the least reliable."""
    exact = [index for index, option in enumerate(options) if _words(option) and _words(option) == _words(answer)]
    if len(exact) == 1 and answer.strip(" .()").upper() not in letters:
        return exact[0]
    for found in (_stated(STATEMENT, answer, letters), _label(answer, letters, options), _stated(CUE, answer, letters)):
        if found:
            return found.pop() if len(found) == 1 and min(found) >= 0 else None
    mentioned = set(_mentions(answer, letters))
    by_words = _worded(answer, options)
    if by_words is not None:
        return by_words if mentioned <= set(_mentions(options[by_words], letters)) else None
    alone = re.search(r"\(([A-Za-z])\)|(?:^|[,:;.\n]\s*|->\s*|=>\s*)\(?([A-Z])\)?[.!]?$", answer)
    return mentioned.pop() if alone and len(mentioned) == 1 and not DENIAL.search(answer) else None


def _stated(cue: str, answer: str, letters: list[str]) -> set[int]:
    """Find the letters that follow a cue: their indices, with -1 where one is denied or joined with another."""
    found: set[int] = set()
    for match in re.finditer(cue + FILLER + LETTER, answer, re.I):
        opened, letter, rest = match[1], match[2], answer[match.end() :]
        if letter.upper() not in letters or (not opened and _is_word(letter, rest)):
            continue
        if not opened and letter.islower() and re.match(r"\s*\w", rest) and not REASON.match(rest.lstrip()):
            continue
        denied = DENIAL.search(answer[max(0, match.start() - 12) : match.start(2)])
        found.add(-1 if denied or _joined(rest) or _taken_back(rest) else letters.index(letter.upper()))
    return found


def _label(answer: str, letters: list[str], options: list[str]) -> set[int]:
    """Find the letter that begins the answer as a label: its index, -1 if the rest contradicts it, or nothing."""
    begun = re.match(r"(?:option |choice |answer )?[(\[]?\s*([A-Za-z])\s*(?:[)\].,:;!?\n]| ?- |$)", answer, re.I)
    begun = begun or re.match(r"([A-Z])\s+(?=\S)", answer)
    if begun is None or begun[1].upper() not in letters:
        return set()
    index, rest = letters.index(begun[1].upper()), answer[begun.end() :].strip()
    own = options[index] if index < len(options) else ""
    own = own if _words(own) and _words(rest).startswith(_words(own)) else ""
    bare = begun[0].rstrip(" ") == begun[1] and bool(rest) and not own
    if bare and not re.match(r"(?:is|because|since|seems|looks)\b", rest):
        return set()  # a sentence that begins with a letter
    head = REASON.split(rest)[0]
    others = set(_mentions(head, letters)) - set(_mentions(own, letters)) - {index}
    elsewhere = any(_words(option) == _words(rest) != "" for option in options) and not own
    denied = not own and len(head.split()) <= 6 and not head[:1].isupper() and DENIAL.search(head)
    listed = re.match(r"\W*(?:and|or|&|/|nor)\b", head) or (re.match(LETTER, head) and not _is_word(head[0], head[1:]))
    return {-1 if others or elsewhere or denied or (listed and not own) or _taken_back(rest) else index}


def _joined(rest: str) -> bool:
    """Return True if the text after a letter joins another letter to it."""
    another = re.match(
        r"\s*[)\].]*\s*(?:,?\s*(?:and|or|nor)\b|[,/&+])\s*(?:option\s+)?[(\[]?([A-Za-z])\b(?!['-])(.*)",
        rest,
        re.I | re.S,
    )
    return another is not None and not _is_word(another[1], another[2])


def _taken_back(rest: str) -> bool:
    """Return True if the text after a letter says that the letter is wrong."""
    return bool(
        re.match(r"\s*[)\].]*\s*(?:is|was|seems|looks)(?:n't\b|\s+(?:\w+\s+)?(?:wrong|incorrect|false|not)\b)", rest)
    )


def _is_word(letter: str, rest: str) -> bool:
    """Return True if a letter before `rest` is the article "a" or the pronoun "I"."""
    follows = re.match(r"\s+([A-Za-z]+)", rest)
    if letter not in ("A", "a", "I", "i") or not follows:
        return False
    return follows[1].lower() not in ("and", "or", "is", "because", "since", "nor", "but", "with", "as")


def _mentions(answer: str, letters: list[str]) -> list[int]:
    """Find all letters that may name an option, in order: isolated capitals, and letters in brackets."""
    found = []
    for match in re.finditer(r"(?<![\w'-])([A-Z])(?![\w'-])|\(([A-Za-z])\)|(?<![\w'])([a-z])\)", answer):
        letter = next(filter(None, match.groups()))
        if letter.upper() in letters and not (match[1] and _is_word(letter, answer[match.end() :])):
            found.append(letters.index(letter.upper()))
    return found


def _worded(answer: str, options: Sequence[str]) -> int | None:
    """Find the one option whose words occur in the answer outside of longer options: its index, or None."""
    padded = f" {_words(answer)} "
    wanted = [_words(option) for option in options]
    equal = [index for index, words in enumerate(wanted) if words and f" {words} " == padded]
    if equal:
        return equal[0] if len(equal) == 1 else None
    there = [index for index, words in enumerate(wanted) if words and f" {words} " in padded]
    longest = [i for i in there if not any(i != j and f" {wanted[i]} " in f" {wanted[j]} " for j in there)]
    if len(longest) != 1:
        return None
    rest = padded.replace(f" {wanted[longest[0]]} ", " ")
    return None if DENIAL.search(rest) else longest[0]
