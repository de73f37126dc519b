"""InfiniteBench's right-or-wrong metrics: what counts as saying the answer."""

import pytest

from namm_transfer.evals.tasks.text import matches

BOOK = ("Mrs. Abel", "C")
CODE = ("read_line", "B")


@pytest.mark.parametrize(
    ("said", "right"),
    [(" is 71432.", 1), ("71432 or 9", 1), ("9 or 71432", 0), ("714321", 0), ("071432", 0), ("none", 0), ("", 0)],
)
def test_the_first_run_of_digits_is_the_pass_key(said, right):
    assert matches.first_integer(said, "71432") == right


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [("it is 7.", 7, 1), ("7.0", 7, 1), ("17", 7, 0), ("-7", 7, 1), ("2.5, not 3", 2.5, 1), ("3, not 2.5", 2.5, 0)],
)
def test_the_first_number_may_have_a_decimal_point(said, reference, right):
    assert matches.first_number(said, reference) == right


def test_no_number_is_wrong():
    assert matches.first_number("many", 7) == 0


@pytest.mark.parametrize(
    ("said", "right"),
    [("-9", 1), ("func_1(3) is: `-9`.", 1), ("-9 as said", 0), ("9", 0), ("-9 -8", 0), ("nine", 0), ("", 0)],
)
def test_the_last_word_is_the_value(said, right):
    assert matches.last_integer(said, -9) == right


@pytest.mark.parametrize(
    ("said", "share"),
    [("[1, 4, 8]", 1), ("1 4 9", 2 / 3), ("2 4 8", 0), ("1, 4", 2 / 3), ("1, 4, 8, 12", 1), ("", 0)],
)
def test_leading_integers_count_up_to_the_first_mistake(said, share):
    assert matches.leading_integers(said, (1, 4, 8)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("said", "right"), [('"ab-12",', 1), ("value:ab-12!", 1), ("ab-123", 0), ("AB-12", 0), ("ab 12", 0)]
)
def test_a_value_is_a_whole_word(said, right):
    assert matches.contained_word(said, "ab-12") == right


@pytest.mark.parametrize(("said", "right"), [("It's Ann.", 1), ("ANN", 1), ("Anna", 0), ("", 0)])
def test_a_name_is_a_word_in_any_case(said, right):
    assert matches.contained_name(said, "ANN") == right


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("C", 1),
        (" C. Mrs. Abel", 1),
        ("A or C", 0),
        ("Cats", 1),  # the first letter decides
        ("Mrs. Abel", 1),
        ("the answer is: C", 1),
        ("The answer is A, or C", 0),
        ("the option is C", 1),
        ("the answer is", 0),
        ("I think C", 1),
        ("I think A", 0),
        ("my guess: AB or C", 0),
        ("nobody", 0),
        ("", 0),
    ],
)
def test_a_choice_about_a_book(said, right):
    assert matches.book_choice(said, BOOK) == right


def test_of_several_phrases_the_list_decides_and_not_their_place():
    assert matches.book_choice("the option is C, answer: A", BOOK) == 0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B.", 1),
        (" B: read_line", 1),
        ("B", 0),  # neither a dot nor a colon
        ("A.", 0),
        ("The answer is: B", 1),
        ("The correct option is: `read_line`", 1),
        ("**answer: Option B**", 1),
        ("It is: A, or B", 0),
        ("The answer is:", 0),
        ("read_line", 0),
    ],
)
def test_a_choice_about_code(said, right):
    assert matches.code_choice(said, CODE) == right
