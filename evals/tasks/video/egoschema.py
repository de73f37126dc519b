"""EgoSchema (Mangalam et al., 2023): five options about three minutes of first-person video, reported as accuracy."""

from __future__ import annotations

from pathlib import Path

from namm_transfer.adapters.video import prompts
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, read_json
from namm_transfer.evals.tasks.video.questions import VideoBenchmark, VideoQuestion, check_options, flaw_of

QUESTIONS, ANSWERS, OPTIONS = "questions.json", "subset_answers.json", tuple(f"option {number}" for number in range(5))


def load_egoschema(root: Path) -> list[VideoQuestion]:
    """Load the 500 questions with public answers: `questions.json`, `subset_answers.json`, `videos/Q_UID.mp4`.

    The authors publish no prompt: options are listed as letters, as for a file of one's own.

    Raises:
        NammTransferError: a file is missing, an entry does not fit, or an answer has no question.
    """
    answers = read_json(root / ANSWERS, dict)
    found = []
    for at, entry in enumerate(read_json(root / QUESTIONS, list)):
        where = f"{str(root / QUESTIONS)!r}, entry {at}"
        expect(entry, {"q_uid": str}, where)
        if entry["q_uid"] not in answers:
            continue
        expect(entry, {"question": str, **dict.fromkeys(OPTIONS, str)}, where)
        options, answer = tuple(entry[key] for key in OPTIONS), answers[entry["q_uid"]]
        check_options(options, where)
        if isinstance(answer, bool) or answer not in range(len(OPTIONS)):
            raise NammTransferError(f"{str(root / ANSWERS)!r}, entry {entry['q_uid']!r} is {answer!r}; expected 0 to 4")
        found.append(
            VideoQuestion(
                id=entry["q_uid"],
                root=root / "videos",
                name=f"{entry['q_uid']}.mp4",
                prompt=prompts.question(entry["question"], options),
                options=options,
                answer=answer,
                kind="egoschema",
                duration=None,
                flaw=flaw_of(options, answer, where),
            )
        )
    if lost := sorted(answers.keys() - {question.id for question in found}):
        raise NammTransferError(f"{str(root / ANSWERS)!r} answers {lost[0]!r}, which {QUESTIONS} does not ask")
    return found


HEADLINE = {"name": "accuracy, subset", "rule": "mean over samples", "categories": ["egoschema"]}
BENCHMARKS = (VideoBenchmark("egoschema", (QUESTIONS, ANSWERS), load_egoschema, HEADLINE),)
