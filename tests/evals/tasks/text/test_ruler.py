"""RULER-like prompts: every answer follows from facts that the text states, with distractors beside them."""

import re
from collections import Counter

import pytest

from namm_transfer.evals.tasks.text import prose as text
from namm_transfer.evals.tasks.text.families import make_prompt, recall
from namm_transfer.evals.tasks.text.ruler import DISTRACTORS, HOPS, RULER, TOP, VALUES


def words(s: str) -> int:
    return len(s.split())


def made(family: str, number: int, tokens: int = 400, split: str = "test"):
    """A prompt as (text without the question, question, expected texts)."""
    prompt = make_prompt(family, split, 0, number, tokens=tokens, count=words)
    assert prompt.text.endswith(prompt.question)
    return prompt.text.removesuffix(prompt.question), prompt.question.strip(), list(prompt.expected)


@pytest.mark.parametrize("family", RULER.families)
def test_prompts_are_a_function_of_their_arguments(family):
    first, again = (make_prompt(family, "train", 3, 5, tokens=400, count=words) for _ in range(2))
    others = [
        make_prompt(family, split, seed, number, tokens=400, count=words)
        for split, seed, number in (("train", 3, 6), ("train", 4, 5), ("test", 3, 5))
    ]
    assert first == again
    assert len({first.text, *(other.text for other in others)}) == 4


@pytest.mark.parametrize("family", RULER.families)
@pytest.mark.parametrize("tokens", [300, 2000, 12000])
def test_prompts_have_the_length_asked_for(family, tokens):
    assert abs(words(make_prompt(family, "validation", 0, 1, tokens=tokens, count=words).text) - tokens) < 60


@pytest.mark.parametrize("family", RULER.families)
def test_the_text_holds_every_expected_answer_and_the_question_none(family):
    for number in range(5):
        body, question, expected = made(family, number)
        assert expected
        assert recall(body, expected) == 1
        assert recall(question, expected) == 0


@pytest.mark.parametrize(
    ("family", "wanted", "stated"),
    [
        ("niah_single", 1, 1),
        ("niah_multikey", 1, 1 + DISTRACTORS),
        ("niah_multivalue", VALUES, VALUES + DISTRACTORS),
        ("niah_multiquery", VALUES, VALUES + DISTRACTORS),
    ],
)
def test_needles_are_those_of_the_names_asked_for(family, wanted, stated):
    for number in range(5):
        body, question, expected = made(family, number)
        facts = re.findall(r"The number of the ([a-z]+ [a-z]+) is (\d+)\.", body)
        asked = re.findall(r"the ([a-z]+ [a-z]+)(?=[,?])", question.partition("? ")[0] + "?")
        assert (len(facts), len(expected)) == (stated, wanted)
        if family == "niah_multiquery":  # in the question's order
            assert expected == [dict(facts)[name] for name in asked]
        else:  # in the text's order
            assert expected == [value for name, value in facts if name == asked[0]]


def test_variables_are_those_of_one_chain_in_order():
    body, question, expected = made("variable_tracking", 0)
    lines = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", body)
    assert len(lines) == 2 * (HOPS + 1)
    value, found = re.search(r"value (\d+)", question)[1], []
    for name, source in lines:  # each variable is assigned after the one it comes from
        if source == value or source in found:
            found.append(name)
    assert found == expected


@pytest.mark.parametrize("tokens", [300, 4000])
def test_the_words_asked_for_occur_most_often(tokens):
    for family in ("common_words", "frequent_words"):
        body, _, expected = made(family, 0, tokens)
        listed = body.split("\n\n")[1]
        ranked = Counter(re.findall(r"[a-z]+", listed)).most_common()
        assert {word for word, _ in ranked[:TOP]} == set(expected)
        assert ranked[TOP - 1][1] > ranked[TOP][1], "the words asked for must stand out"


def test_two_facts_stand_in_different_documents():
    for number in range(5):
        body, question, (firm, city) = made("two_facts", number)
        person = re.search(r"does (\w+) work", question)[1]
        documents = body.split("\n")
        (first,) = [i for i, line in enumerate(documents) if f"{person} works for {firm}." in line]
        (second,) = [i for i, line in enumerate(documents) if f"The office of {firm} is in {city}." in line]
        assert first != second
        assert firm not in question


def test_prompts_of_a_split_use_that_splits_text_only():
    held_out = {s for split in ("validation", "test") for d in text.documents(split) for s in d.sentences}
    train = {s for d in text.documents("train") for s in d.sentences}
    for family in RULER.families:
        body, _, _ = made(family, 1, split="train")
        assert not [s for s in held_out - train if s in body]


def test_recall_is_the_share_of_the_expected_texts():
    assert recall("the numbers are 12345, and 77", ["12345", "777"]) == 0.5
    assert recall("OSLO.", ["Oslo"]) == 1
    assert recall("", ["Oslo"]) == 0
