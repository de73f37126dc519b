"""Parsing of generated answers: many forms that name one option, and many that name none or several."""

# ruff: noqa: RUF001 -- letters that only look like Latin ones are the point

import time

import pytest

from namm_transfer.adapters.video.answers import parse_choice

LETTERS = ["A", "B", "C", "D"]
OPTIONS = ["a red car", "the blue house", "Vitamin C", "None of the above"]


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        " B\n",
        "(B)",
        "(b)",
        "[B]",
        "b)",
        "B)",
        "B.",
        "b.",
        "B:",
        "B,",
        "B;",
        "B!",
        "**B**",
        "*B*",
        "`B`",
        '"B"',
        "__B__",
        "B</s>",
        "<answer>B</answer>",
        "Ｂ",
        "（B）",
        "Ⓑ",
        "⒝",
        "\\boxed{B}",
        "$\\boxed{B}$",
        "$\\boxed{\\text{B}}$",
        "\\(B\\)",
        "Answer: B",
        "answer: b",
        "ANSWER: B",
        "Answer: (B)",
        "Answer:B",
        "Answer - B",
        "Answer = B",
        "**Answer:** B",
        "Answer:\nB",
        "The answer is B.",
        "The answer is: B",
        "The answer is (B).",
        "the answer is b",
        "The correct answer is B",
        "The correct answer is (B)",
        "The correct answer is option B.",
        "The best option is B",
        "The best answer is: B",
        "Best option: (B)",
        "Option B",
        "option b",
        "Option (B)",
        "Option B.",
        "Choice B",
        "Final answer: B",
        "The final answer is $\\boxed{B}$.",
        "I think B",
        "I think it is B.",
        "It is B",
        "It's B.",
        "I would say B.",
        "I choose B",
        "I'd go with B.",
        "My answer is B",
        "Correct: B",
        "B is correct.",
        "B is the answer",
        "B is it",
        "B because it is blue",
        "B, because A is wrong",
        "B, not A",
        "The answer is B, not A.",
        "The answer is B because A shows a car.",
        "B) blue",
        "B. the blue house",
        "B. The blue house",
        "(B) the blue house",
        "B: the blue house",
        "B - the blue house",
        "B the blue house",
        "B\nthe blue house",
        "B, I think",
        "The answer is B) the blue house.",
        "Answer: B. the blue house",
        "the blue house",
        "The blue house.",
        "blue house",
        "THE BLUE HOUSE",
        "The answer is the blue house.",
        "It is a blue house",
        "B.\n\nThe man walks to a house.",
        "Sure! The answer is B.",
        "Looking at the video, the answer is B.",
        "B. A man walks in.",
        "The letter is B",
        "ANSWER IS B",
        "So the answer must be B",
        "Answer is B)",
        "(B) is correct",
        "I pick (b) here",
        "'B'",
        "The answer is 'B'.",
        "<think>A or C?</think>B",
        "Yes, B",
        "Therefore, B.",
        "Probably B",
        "ASSISTANT: (B)",
        "B (the blue house)",
        "B = the blue house",
        "The answer is B and the reason is the color.",
        "A. a red car\nB. the blue house\nAnswer: B",
        "I believe the correct answer to the question is B.",
        "The answer seems to be B",
    ],
)
def test_one_option_named(text):
    assert parse_choice(text, LETTERS, OPTIONS) == 1


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("C. Vitamin C", 2),
        ("Vitamin C", 2),
        ("The answer is Vitamin C.", 2),
        ("D. None of the above", 3),
        ("None of the above.", 3),
        ("D", 3),
        ("A", 0),
        ("a", 0),
        ("a)", 0),
        ("A.", 0),
        ("A. a red car", 0),
        ("A red car", 0),
        ("The answer is A.", 0),
        ("The answer is a.", 0),
        ("A is correct", 0),
        ("A: a red car is seen", 0),
        ("The answer is A because I saw it", 0),
        ("It is a red car.", 0),
    ],
)
def test_letters_that_are_words_too(text, choice):
    assert parse_choice(text, LETTERS, OPTIONS) == choice


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "?",
        "...",
        "Because",
        "E",
        "E)",
        "(E)",
        "The answer is E.",
        "None",
        "Both",
        "All of them",
        "I do not know",
        "unknown",
        "A, B and C",
        "A) or B)",
        "A or B",
        "A and B",
        "A/B",
        "A & B",
        "A, B",
        "A B",
        "A B C D",
        "ABCD",
        "A-D",
        "A to D",
        "(A)(B)",
        "(A) (B)",
        "A) B)",
        "(A) and (B)",
        "A\nB",
        "A. B. C. D.",
        "Both A and B",
        "Either A or B",
        "Neither A nor B",
        "Not A",
        "A is wrong",
        "B is wrong",
        "B is not correct",
        "The answer is not B",
        "The answer isn't B",
        "It is not (B)",
        "Option B is wrong",
        "I think A is wrong, B",
        "The answer is A or B.",
        "The answer is A and B",
        "The answer is A, B",
        "The answer is A/B",
        "The answer is A. No, the answer is B.",
        "Answer: A or B",
        "Options A and B",
        "B or E",
        "not B",
        "all except B",
        "no B",
        "A man walks in",
        "A dog",
        "I see a man",
        "a",
        "The answer is a dog.",
        "The answer is A dog.",
        "Red",
        "the red car and the blue house",
        "B. a red car",
        "B or maybe C",
        "either (A) or (B)",
        "B?? or A",
        "B'",
        "B2",
        "Could be B or D",
        "I don't think it's B",
        "It can't be B",
        "B, no wait, C",
        "A... B",
        "A. a red car\nB. the blue house",
        "B: None of the above",
        "B isn't right",
        "option A or option B",
        "The answer is A or option B",
        "a or b",
        "(a) or (b)",
        "a, b",
        "a) or b)",
    ],
)
def test_none_or_several(text):
    letters = LETTERS[1:] if text == "a" else LETTERS
    assert parse_choice(text, letters, OPTIONS[-len(letters) :]) is None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("red", 1),
        (" Red.", 1),
        ("**red**", 1),
        ("The answer is red.", 1),
        ("It was red", 1),
        ("red!", 1),
        ("dark red", 2),
        ("red and blue", None),
        ("red or blue", None),
        ("not red", None),
        ("green", None),
        ("reddish", None),
        ("", None),
        ("The color is dark red.", 2),
    ],
)
def test_choices_that_are_words(text, choice):
    assert parse_choice(text, [" blue", " red", " dark red"]) == choice


def test_numbers_as_options():
    counts = ["1", "2", "3", "10"]
    assert parse_choice("3", LETTERS, counts) == 2
    assert parse_choice("There are 10.", LETTERS, counts) == 3
    assert parse_choice("3 of 10", LETTERS, counts) is None


def test_more_than_four_letters():
    letters = [chr(ord("A") + index) for index in range(26)]
    assert parse_choice("Z", letters) == 25
    assert parse_choice("I", letters) == 8
    assert parse_choice("The answer is I.", letters) == 8
    assert parse_choice("I think it is K.", letters) == 10
    assert parse_choice("I am not sure", letters) is None


@pytest.mark.parametrize(
    "text", ["is " * 3000, "answer " * 2000, "answer" + " is" * 3000, "(A) " * 2000, "answer: " + "-> " * 3000]
)
def test_no_answer_takes_long_to_read(text):
    begun = time.perf_counter()
    parse_choice(text, LETTERS, OPTIONS)
    assert time.perf_counter() - begun < 5
