"""Task families: the same prompt for the same arguments, and an answer that can be found in it."""

import re

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.text import prose as text
from namm_transfer.evals.tasks.text.families import FAMILIES, HELD_OUT, TRAINED, make_prompt


def words(s: str) -> int:
    return len(s.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_a_function_of_their_arguments(family):
    first, again = (make_prompt(family, "train", 3, 5, tokens=400, count=words) for _ in range(2))
    others = [
        make_prompt(family, "train", 3, 6, tokens=400, count=words),
        make_prompt(family, "train", 4, 5, tokens=400, count=words),
        make_prompt(family, "test", 3, 5, tokens=400, count=words),
    ]
    assert first == again
    assert len({first.text, *(other.text for other in others)}) == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [300, 900])
def test_prompts_have_the_length_asked_for(family, tokens):
    for number in range(5):
        assert abs(words(make_prompt(family, "validation", 0, number, tokens=tokens, count=words).text) - tokens) < 60


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_in_the_prompt(family):
    for number in range(10):
        prompt = make_prompt(family, "train", 0, number, tokens=400, count=words)
        assert prompt.answer.startswith(" ")
        assert prompt.answer.strip() in prompt.text or family == "multihop"


def test_multihop_needs_both_hops():
    prompt = make_prompt("multihop", "train", 0, 0, tokens=400, count=words)
    thing, number = re.fullmatch(r" (\w+) is (\d+)", prompt.answer).groups()
    person = re.search(r"Question: (\w+) owns", prompt.text)[1]
    assert f"{person} owns the {thing}." in prompt.text
    assert f"The number on the {thing} is {number}." in prompt.text


@pytest.mark.parametrize("family", ["passkey", "multikey", "lookup"])
def test_the_right_one_of_several_is_asked_for(family):
    prompt = make_prompt(family, "train", 0, 1, tokens=400, count=words)
    number, question = prompt.answer.strip(), prompt.text[-60:].split()[-2 if family != "lookup" else -1]
    line = next(part for part in re.split(r"(?<=[.\n])", prompt.text) if number in part)
    assert question.rstrip(":") in line or family == "passkey"


def test_prompts_of_a_split_use_that_splits_text_only():
    held_out = {s for split in ("validation", "test") for d in text.documents(split) for s in d.sentences}
    train = {s for d in text.documents("train") for s in d.sentences}
    for family in FAMILIES:
        prompt = make_prompt(family, "train", 1, 1, tokens=400, count=words)
        assert any(s in prompt.text for s in train)
        assert not [s for s in held_out - train if s in prompt.text]


def test_some_families_are_never_trained_on():
    assert len(HELD_OUT) >= 2
    assert not set(HELD_OUT) & set(TRAINED)


def test_a_length_into_which_nothing_fits():
    with pytest.raises(NammTransferError, match="59 tokens: expected 60 or more"):
        make_prompt("retrieval", "train", 0, 0, tokens=59, count=words)
    assert make_prompt("retrieval", "train", 0, 0, tokens=60, count=words).answer


def test_unknown_family():
    with pytest.raises(NammTransferError, match="'poetry'"):
        make_prompt("poetry", "train", 0, 0, tokens=100, count=words)
