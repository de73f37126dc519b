"""EgoSchema's layout on a stand-in folder."""

import json

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.video.egoschema import load_egoschema

ENTRY = {
    "q_uid": "uid-1", "google_drive_id": "x", "question": "What is C doing?",
    **{f"option {number}": f"C does {number}." for number in range(5)},
}  # fmt: skip


def write(root, entries, answers):
    (root / "questions.json").write_text(json.dumps(entries))
    (root / "subset_answers.json").write_text(json.dumps(answers))
    return root


def test_the_questions_with_public_answers(tmp_path):
    (question,) = load_egoschema(write(tmp_path, [{**ENTRY, "q_uid": "hidden"}, ENTRY], {"uid-1": 3}))
    assert question.prompt.splitlines() == ["What is C doing?", *(f"({'ABCDE'[n]}) C does {n}." for n in range(5))]
    assert (question.id, question.answer, question.choices) == ("uid-1", 3, tuple("ABCDE"))
    assert question.video == tmp_path / "videos/uid-1.mp4"
    assert question.flaw is None


@pytest.mark.parametrize(
    ("entry", "answers", "message"),
    [
        ({"option 4": None}, {"uid-1": 0}, r"questions\.json', entry 0: 'option 4' is None"),
        ({"q_uid": 1}, {"uid-1": 0}, "'q_uid' is 1"),
        ({}, {"uid-1": 5}, r"subset_answers\.json', entry 'uid-1' is 5"),
        ({}, {"uid-1": True}, "is True"),
        ({}, {"uid-1": 0, "lost": 1}, "answers 'lost', which"),
        ({}, [], "holds a list; expected a dict"),
    ],
)
def test_what_does_not_fit_is_named(entry, answers, message, tmp_path):
    with pytest.raises(NammTransferError, match=message):
        load_egoschema(write(tmp_path, [{**ENTRY, **entry}], answers))


def test_a_right_option_that_is_there_twice_fails_its_question_alone(tmp_path):
    same = {**ENTRY, "q_uid": "uid-2", "option 1": "C does 0."}
    first, second = load_egoschema(write(tmp_path, [ENTRY, same], {"uid-1": 0, "uid-2": 0}))
    assert first.flaw is None
    assert "entry 1: option 'C does 0.' is there twice" in second.flaw
