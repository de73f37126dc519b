"""Synthetic text tasks that a small language model solves with its full cache, by recalling facts far back.

Every family is one function from a seeded generator, a split's prose and a number of filler tokens to a prompt and its
answer. The last paragraph of a prompt is its question. Prompts are plain text, no chat format. The base model's score
with its full cache on each family is in the card of `assets/namm-text`; a family that it cannot solve at all would only
add noise.
"""

# ruff: noqa: SIM905 - lists of words read better as words

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from namm_transfer.adapters.causal_lm import Prompt
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks import registry
from namm_transfer.evals.tasks.text.prose import Document, Split, documents

Count = Callable[[str], int]
"""Number of tokens of a text, by the tokenizer the prompts are meant for."""


CITIES = (
    "Paris London Madrid Berlin Rome Vienna Oslo Dublin Athens Lisbon Warsaw Prague Cairo Lima Tokyo Delhi Seoul "
    "Boston Chicago Denver Houston Dallas Toronto Sydney"
).split()
NAMES = "Anna Peter Maria John Laura David Sarah Paul Emma Tom Alice Mark Julia Simon Clara Henry Ruth George".split()
SHORTEST = 60
"""Tokens of the shortest prompt."""
_QUESTIONS = 5
"""Largest number of questions in a multi-question prompt."""
COLOURS = "red blue green yellow black white orange purple brown pink gray gold".split()
OBJECTS = "lamp clock chair bottle basket guitar camera ladder hammer pillow mirror candle kettle helmet ticket".split()
JOBS = "teacher baker farmer nurse painter driver singer lawyer gardener dentist butcher sailor tailor cook".split()
_FACTS: tuple[tuple[str, Callable[[random.Random], str], str], ...] = (
    ("{name} was born in", lambda rng: str(rng.randint(1900, 2020)), "When was {name} born?"),
    ("{name} works as a", lambda rng: rng.choice(JOBS), "What is the work of {name}?"),
    ("The telephone number of {name} is", lambda rng: draw_number(rng), "How can {name} be called?"),
    ("The train to {city} leaves from platform", lambda rng: str(rng.randint(10, 99)), "Where is the train to {city}?"),
    ("The {object} in the hall is", lambda rng: rng.choice(COLOURS), "What colour is the {object} in the hall?"),
    ("The word on the door is", lambda rng: rng.choice(OBJECTS), "Which word is on the door?"),
    ("The key to the house in {city} is with", lambda rng: rng.choice(NAMES), "Who has the key in {city}?"),
    ("The ticket to {city} costs", lambda rng: f"{rng.randint(100, 999)} dollars", "What does it cost to see {city}?"),
)
"""Statement, value and question of each kind of fact. There are more kinds than families, so that training on
multi-question prompts teaches a policy to keep facts in general, not passkeys."""
_KINDS = {
    "animal": "dog cat horse cow sheep goat lion tiger bear wolf rabbit mouse monkey elephant camel".split(),
    "fruit": "apple banana orange grape lemon peach pear cherry mango plum melon strawberry kiwi fig lime".split(),
    "country": "France Spain Italy Germany Poland Sweden Norway Japan China India Brazil Mexico Canada Egypt".split(),
    "metal": "iron copper silver gold zinc tin lead nickel steel bronze aluminum brass titanium platinum".split(),
    "sport": "football tennis golf hockey baseball basketball rugby cricket boxing swimming skiing rowing".split(),
}


def draw_number(rng: random.Random) -> str:
    return str(rng.randint(10000, 99999))


def draw_prose(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> list[str]:
    """Draw runs of whole sentences from random places, `tokens` tokens in all or a few less."""
    chosen: list[str] = []
    left, misses = tokens, 0
    while left > 15 and misses < 20:
        sentences = rng.choice(prose).sentences
        start = rng.randrange(len(sentences) + 1)
        for sentence in sentences[start : start + 8]:
            size = count(" " + sentence)
            if size > left:
                misses += 1
                break
            left -= size
            chosen.append(sentence)
    return chosen


def hide(rng: random.Random, sentences: list[str], needles: Sequence[str], reach: float = 0.9) -> str:
    """Join sentences to a text with needles inserted in random order within its first `reach` (a share)."""
    places = sorted(rng.randrange(int(len(sentences) * reach) + 1) for _ in needles)
    order = rng.sample(list(needles), len(needles))
    for place, needle in reversed(list(zip(places, order, strict=True))):
        sentences.insert(place, needle)
    return " ".join(sentences)


def _pass_key(rng: random.Random) -> tuple[str, str, str]:
    """Make one fact: (needle, question, answer)."""
    key = draw_number(rng)
    return (
        f"The pass key is {key}. Remember it. {key} is the pass key.",
        "What is the pass key? The pass key is",
        f" {key}",
    )


def _magic_numbers(rng: random.Random) -> list[tuple[str, str, str]]:
    cities = rng.sample(CITIES, 3)
    known = [(f"The magic number of {city} is", f" {draw_number(rng)}") for city in cities]
    return [
        (f"{statement}{number}.", f"What is the magic number of {city}? {statement}", number)
        for city, (statement, number) in zip(cities, known, strict=True)
    ]


def _prices(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Make a price list, and the question and answer of each line."""
    keys = rng.sample(OBJECTS, 4)
    values = [f" {draw_number(rng)}" for _ in keys]
    lines = [f"{key}:{value}" for key, value in zip(keys, values, strict=True)]
    asked = [(f"The price list above says:\n{key}:", value) for key, value in zip(keys, values, strict=True)]
    return "\n".join(["Prices:", *lines]), asked


def _sentence(rng: random.Random, prose: Sequence[Document]) -> tuple[str, str, str]:
    sentence = rng.choice([s for d in prose for s in d.sentences if len(s) > 120])
    words = sentence.split()
    return sentence, " ".join(words[:6]), " " + " ".join(words[6:14])


def passkey(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for one number hidden in the text."""
    needle, question, key = _pass_key(rng)
    hay = hide(rng, draw_prose(rng, prose, tokens, count), [needle])
    return f"There is a pass key hidden in this text.\n\n{hay}\n\n{question}", key


def multikey(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for one of three named numbers hidden in the text."""
    facts = _magic_numbers(rng)
    hay = hide(rng, draw_prose(rng, prose, tokens, count), [needle for needle, _, _ in facts])
    _, question, number = facts[0]
    return f"Some magic numbers are hidden in this text.\n\n{hay}\n\n{question}", number


def lookup(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks for one value of a list of key-value pairs inside the text."""
    table, facts = _prices(rng)
    sentences = draw_prose(rng, prose, tokens, count)
    cut = rng.randrange(int(len(sentences) * 0.7) + 1)
    before, after = " ".join(sentences[:cut]), " ".join(sentences[cut:])
    question, value = facts[rng.randrange(len(facts))]
    return f"{before}\n\n{table}\n\n{after}\n\n{question}".lstrip(), value


def classification(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt with labelled words of two kinds, then text, that asks for the label of a new word."""
    kinds = rng.sample(sorted(_KINDS), 2)
    labels = rng.sample(COLOURS, 2)
    shown = [(w, la) for k, la in zip(kinds, labels, strict=True) for w in rng.sample(_KINDS[k], 8)]
    rng.shuffle(shown)
    asked = rng.randrange(2)
    used = {w for w, _ in shown}
    word = rng.choice([w for w in _KINDS[kinds[asked]] if w not in used])
    lines = "\n".join(f"The color of {w} is {la}." for w, la in shown)
    filler = draw_prose(rng, prose, max(0, tokens - count(lines)), count)
    cut = rng.randrange(len(filler) + 1)
    before, after = " ".join(filler[:cut]), " ".join(filler[cut:])
    return f"{before}\n\n{lines}\n\n{after}\n\nThe color of {word} is".lstrip(), f" {labels[asked]}"


def continuation(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that ends with the beginning of an earlier sentence; the answer continues that sentence."""
    sentences = draw_prose(rng, prose, tokens, count)
    last, question, answer = _sentence(rng, prose)
    text = hide(rng, [s for s in sentences if s != last], [last], reach=0.6)
    return f"{text}\n\n{question}", answer


def retrieval(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt with three signed passages that asks who signed the one with the sentence at the end."""
    names = rng.sample(NAMES, 3)
    parts: list[list[str]] = []
    while len(parts) < len(names):
        sentences = draw_prose(rng, prose, tokens // len(names), count)
        if sentences and not any(set(sentences) & set(part) for part in parts):
            parts.append(sentences)
    text = "\n\n".join(f"{' '.join(part)} (Written by {name})" for name, part in zip(names, parts, strict=True))
    asked = rng.randrange(len(names))
    return f"{text}\n\nOne of them again: {parts[asked][-1]} (Written by", f" {names[asked]}"


def multihop(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a two-hop prompt: a person has an object, the object has a number, and the question names the person."""
    people, things = rng.sample(NAMES, 2), rng.sample(OBJECTS, 2)
    numbers = [draw_number(rng) for _ in things]
    facts = zip(people, things, numbers, strict=True)
    needles = [f"{person} owns the {thing}. The number on the {thing} is {number}." for person, thing, number in facts]
    hay = hide(rng, draw_prose(rng, prose, tokens, count), needles)
    return f"{hay}\n\nQuestion: {people[0]} owns one thing. Which number is on it?\nAnswer: The number on the", (
        f" {things[0]} is {numbers[0]}"
    )


def meeting(rng: random.Random, prose: Sequence[Document], tokens: int, count: Count) -> tuple[str, str]:
    """Make a prompt that asks where two people will meet; its answer is words, not a number."""
    (first, second), city = rng.sample(NAMES, 2), rng.choice(CITIES)
    hay = hide(rng, draw_prose(rng, prose, tokens, count), [f"{first} will meet {second} in {city} next week."])
    return f"{hay}\n\nWhere will {first} meet {second}? {first} will meet {second} in", f" {city}"


Family = Callable[[random.Random, Sequence[Document], int, Count], tuple[str, str]]
FAMILIES: dict[str, Family] = {
    f.__name__: f for f in (passkey, multikey, lookup, classification, continuation, retrieval, multihop, meeting)
}
TRAINED = ("passkey", "multikey", "lookup", "continuation")
"""Families on which members are scored during the evolution."""
HELD_OUT = ("multihop", "meeting")
"""Families that evolution never used. Two others, classification and retrieval, were not used either, but are too hard
for the base model of the shipped NAMM to measure anything."""


def make_multi_question_prompt(
    split: Split, seed: int, number: int, *, tokens: int, count: Count
) -> list[tuple[str, str]]:
    """Make a multi-question prompt: one text that hides facts of the trained families and others, then questions.

    One reading of the text gives the training signal of several prompts.

    Returns:
        (text, answer) of each question in turn; the first text begins with everything that was hidden.
    """
    rng, prose = random.Random(f"quiz/{split}/{tokens}/{seed}/{number}"), documents(split)
    hidden, questions = _mixed_facts(rng, prose)
    asked = rng.sample(questions, min(_QUESTIONS, len(questions)))
    filler = tokens - sum(count(text) for text in [*hidden, *(f"{q}{a}\n\n" for q, a in asked)])
    sentences = [s for s in draw_prose(rng, prose, max(60, filler), count) if s not in hidden]
    text = hide(rng, sentences, hidden)
    return [(f"{text}\n\n{q}" if number == 0 else f"\n\n{q}", a) for number, (q, a) in enumerate(asked)]


def _mixed_facts(rng: random.Random, prose: Sequence[Document]) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw two to six kinds of facts: the needles, and (question, answer) of each possible question."""
    table, prices = _prices(rng)
    kinds = [_apart([_pass_key(rng)]), _apart([_sentence(rng, prose)]), _apart(_magic_numbers(rng))]
    kinds += [([f"\n\n{table}\n\n"], prices), *(_apart([_fact(rng, form)]) for form in rng.sample(_FACTS, 4))]
    chosen = rng.sample(kinds, rng.randint(2, 6))
    return [needle for needles, _ in chosen for needle in needles], [q for _, asked in chosen for q in asked]


def _apart(facts: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    return [needle for needle, _, _ in facts], [(question, answer) for _, question, answer in facts]


def _fact(rng: random.Random, form: tuple[str, Callable[[random.Random], str], str]) -> tuple[str, str, str]:
    statement, value, question = form
    slots = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "object": rng.choice(OBJECTS)}
    statement, answer = statement.format(**slots), f" {value(rng)}"
    return f"{statement}{answer}.", f"{question.format(**slots)} {statement}", answer


@dataclass(frozen=True)
class FamilyGroup:
    """Families that make a benchmark: `--tasks NAME` asks all of them, and their report has a row of its own.

    Answers are lists of texts separated by `", "`, and the score is the recall of these texts.
    """

    name: str
    """Name on the command line."""
    title: str
    """Name in reports."""
    families: Mapping[str, Family]


def groups() -> dict[str, FamilyGroup]:
    """Collect by name the groups that the modules of this package list in their tuple `BENCHMARKS`."""
    return registry.built_in(FamilyGroup)


def group_of(family: str) -> FamilyGroup | None:
    """Return the group of a family; None if it belongs to none."""
    return next((group for group in groups().values() if family in group.families), None)


def recall(answer: str, expected: Sequence[str]) -> float:
    """Compute the share of the expected texts that occur in an answer, upper and lower case being the same (RULER)."""
    return sum(text.lower() in answer.lower() for text in expected) / len(expected)


def make_prompt(family: str, split: Split, seed: int, number: int, *, tokens: int, count: Count) -> Prompt:
    """Make the prompt with this number; the same arguments always give the same prompt.

    Args:
        tokens: length of the prompt by `count`, which is met within a sentence.

    Returns:
        the prompt, whose id is `FAMILY/SPLIT/TOKENS/SEED/NUMBER`.
    """
    known = FAMILIES | {name: make for group in groups().values() for name, make in group.families.items()}
    if family not in known:
        raise NammTransferError(f"unknown task family {family!r}; there are {', '.join(known)}")
    if tokens < SHORTEST:
        raise NammTransferError(f"a prompt of {tokens} tokens: expected {SHORTEST} or more, or nothing fits into it")
    name = f"{family}/{split}/{tokens}/{seed}/{number}"
    make, prose = known[family], documents(split)
    first, _ = make(random.Random(name), prose, tokens, count)
    filler = max(60, 2 * tokens - count(first))  # less what the question and the needles take
    text, answer = make(random.Random(name), prose, filler, count)
    expected = tuple(answer.strip().split(", ")) if group_of(family) else ()
    return Prompt(name, family, text, answer, text[text.rindex("\n\n") :], expected)
