"""Questions about long texts in the manner of RULER (Hsieh et al., 2024, arXiv 2404.06654), made from any seed.

The paper's four categories: retrieval (needles among distractors), multi-hop tracing (variables), aggregation (common
and frequent words) and question answering (two facts in different documents). Code and words are this project's own;
the prose around the facts is that of `prose`. As in the paper, an answer is scored by the share of the expected texts
that it contains. Every fact is stated once, so that a cache that has lost it cannot answer.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from namm_transfer.evals.tasks.text.families import (
    CITIES,
    COLOURS,
    NAMES,
    OBJECTS,
    Count,
    FamilyGroup,
    draw_number,
    draw_prose,
    hide,
)
from namm_transfer.evals.tasks.text.prose import Document

DISTRACTORS = 6
"""Needles of other keys beside those that are asked for."""
VALUES = 4
"""Values of the key in the multi-value task, and keys that the multi-query task asks for."""
HOPS = 3
"""Assignments from one variable to the next in a chain."""
COMMON, UNCOMMON = 20, 1
"""Times that a common and an uncommon word occur in the list of common words extraction."""
TOP = 3
"""Words that common and frequent words extraction ask for."""
FEWEST_WORDS = 24
"""Words of the shortest list: in a shorter one the words of rank 3 and 4 occur equally often."""
ZETA = 2.0
"""Exponent of the frequencies in frequent words extraction: the word of rank k occurs in proportion to k^-ZETA."""
COMPANIES = "Aldermoor Brightwell Coldharbour Dunmore Eastleigh Fairholt Greystone Hartwell Ironbridge Kingsway".split()  # noqa: SIM905


def _needles(
    rng: random.Random, prose: Sequence[Document], tokens: int, count: Count, values: int, asked: int
) -> tuple[str, str]:
    """Make a prompt that hides numbers under names and asks for all numbers of some names.

    Args:
        values: numbers under each of the names that are asked for; the distractors have one each.
        asked: names in the question.
    """
    names = [f"{colour} {thing}" for colour in COLOURS for thing in OBJECTS]
    keys = rng.sample(names, asked + DISTRACTORS)
    facts = [(key, draw_number(rng)) for key in keys[:asked] for _ in range(values)]
    facts += [(key, draw_number(rng)) for key in keys[asked:]]
    hay = hide(rng, draw_prose(rng, prose, tokens, count), [f"The number of the {k} is {n}." for k, n in facts])
    wanted = [(hay.index(f"The number of the {k} is {n}."), k, n) for k, n in facts if k in keys[:asked]]
    wanted.sort(key=lambda fact: fact[0] if asked == 1 else keys.index(fact[1]))
    things = ", the ".join(keys[:asked])
    numbers = "number" if len(wanted) == 1 else f"{len(wanted)} numbers"
    verb = "is" if len(wanted) == 1 else "are, separated by commas,"
    return (
        f"Remember the numbers in this text.\n\n{hay}\n\nWhich {numbers} does the text give for the {things}? "
        f"The {numbers} of the {things} {verb}",
        " " + ", ".join(number for _, _, number in wanted),
    )


def niah_single(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt with one needle and no distractor."""
    name, number = f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}", draw_number(rng)
    hay = hide(rng, draw_prose(rng, prose, tokens, count), [f"The number of the {name} is {number}."])
    question = f"Which number does the text give for the {name}? The number of the {name} is"
    return f"Remember the number in this text.\n\n{hay}\n\n{question}", f" {number}"


def niah_multikey(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for one of several needles."""
    return _needles(rng, prose, tokens, count, values=1, asked=1)


def niah_multivalue(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for all values of one key."""
    return _needles(rng, prose, tokens, count, values=VALUES, asked=1)


def niah_multiquery(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for the values of several keys."""
    return _needles(rng, prose, tokens, count, values=1, asked=VALUES)


def variable_tracking(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt with two chains of assignments that asks for all variables of one value, in the chain's order."""
    names = list(dict.fromkeys("".join(rng.choices(string.ascii_uppercase, k=3)) for _ in range(50)))
    chains = [names[: HOPS + 1], names[HOPS + 1 : 2 * (HOPS + 1)]]
    values = [draw_number(rng) for _ in chains]
    sentences = draw_prose(rng, prose, tokens, count)
    for chain, value in zip(chains, values, strict=True):
        lines = [f"VAR {chain[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(chain)]
        places = sorted(rng.randrange(int(len(sentences) * 0.9) + 1) for _ in lines)
        for place, line in reversed(list(zip(places, lines, strict=True))):
            sentences.insert(place, line)
    question = f"Which variables have the value {values[0]}, directly or through another one? They are"
    return f"Follow the variables in this text.\n\n{' '.join(sentences)}\n\n{question}", " " + ", ".join(chains[0])


@cache
def _vocabulary(prose: tuple[Document, ...]) -> tuple[str, ...]:
    """List the plain lower-case words of 4 to 8 letters in a split's prose, sorted."""
    words = {word for document in prose for sentence in document.sentences for word in sentence.split()}
    return tuple(sorted(word for word in words if re.fullmatch("[a-z]{4,8}", word)))


def _listed(draw: Callable[[int], list[str]], tokens: int, count: Count) -> list[str]:
    """Draw the longest list of words of at most `tokens` tokens, by bisection on its number of words."""
    low, high = FEWEST_WORDS, max(FEWEST_WORDS + 1, tokens)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(" ".join(draw(middle))) <= tokens else (low, middle)
    return draw(low)


def common_words(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for the words that occur most often in a numbered list."""
    vocabulary = _vocabulary(tuple(prose))
    pool, seed = rng.sample(vocabulary, len(vocabulary)), rng.random()

    def draw(size: int) -> list[str]:
        more = 1 + size // (UNCOMMON * len(pool))  # a list longer than the vocabulary allows repeats all words
        rare = max(1, (size - TOP * COMMON * more) // (UNCOMMON * more))
        words = [*pool[:TOP] * COMMON * more, *pool[TOP : TOP + rare] * UNCOMMON * more]
        random.Random(seed).shuffle(words)
        return [f"{place}. {word}" for place, word in enumerate(words, 1)]

    lines = _listed(draw, tokens, count)
    found = dict.fromkeys(word for line in lines if (word := line.partition(" ")[2]) in pool[:TOP])
    question = f"Which {TOP} words occur most often in the list above? The {TOP} most common words are"
    return f"Some words occur often in this list, others hardly.\n\n{' '.join(lines)}\n\n{question}", " " + ", ".join(
        found
    )


def frequent_words(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for the most frequent of made-up words, whose frequencies follow a zeta distribution."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    coined = list(
        dict.fromkeys("".join(rng.choice(letters) for letters in (consonants, vowels) * 3) for _ in range(tokens))
    )
    seed = rng.random()

    def draw(size: int) -> list[str]:
        shares = [(rank + 1) ** -ZETA for rank in range(size)]
        scale = size / sum(shares)
        times = [max(1, round(scale * share)) for share in shares]
        words = [word for word, n in zip(coined, times, strict=False) for _ in range(n)][:size]
        random.Random(seed).shuffle(words)
        return words

    question = f"Which {TOP} words occur most often in the text above? The {TOP} most frequent words are"
    text = " ".join(_listed(draw, tokens, count))
    return f"This text is in a language of its own.\n\n{text}.\n\n{question}", " " + ", ".join(coined[:TOP])


def two_facts(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt of documents that asks for two facts of which one leads to the other: a company, and its city."""
    size = 4
    people, firms, cities = rng.sample(NAMES, size), rng.sample(COMPANIES, size), rng.sample(CITIES, size)
    facts = [f"{person} works for {firm}." for person, firm in zip(people, firms, strict=True)]
    facts += [f"The office of {firm} is in {city}." for firm, city in zip(firms, cities, strict=True)]
    rng.shuffle(facts)
    sentences = draw_prose(rng, prose, tokens, count)
    step = len(sentences) / len(facts)
    texts = []
    for number, fact in enumerate(facts):
        own = sentences[int(number * step) : int((number + 1) * step)]
        own.insert(rng.randrange(len(own) + 1), fact)
        texts.append(f"Document {number + 1}: {' '.join(own)}")
    question = f"For which company does {people[0]} work, and in which city is its office? Company and city are"
    return "\n".join(texts) + f"\n\n{question}", f" {firms[0]}, {cities[0]}"


RULER = FamilyGroup(
    "ruler",
    "RULER-like (after arXiv 2404.06654)",
    {
        f.__name__: f
        for f in (
            niah_single,
            niah_multikey,
            niah_multivalue,
            niah_multiquery,
            variable_tracking,
            common_words,
            frequent_words,
            two_facts,
        )
    },
)
BENCHMARKS = (RULER,)
