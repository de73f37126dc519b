"""Films and questions follow from a seed, and the questions alone say nothing about the answers."""

from collections import Counter

import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.video import scenes
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.generate import manifest_entries


@pytest.mark.parametrize("seconds", [16, 32, 64, 256])
def test_films_follow_from_split_seed_and_length(seconds):
    film = scenes.make_film("test", 7, seconds)
    assert film == scenes.make_film("test", 7, seconds)
    assert film != scenes.make_film("test", 8, seconds)
    assert film != scenes.make_film("train", 7, seconds)
    assert scenes.questions(film) == scenes.questions(film)
    assert film.shots[0].start == 0
    assert film.shots[-1].end == seconds
    assert all(before.end == after.start for before, after in zip(film.shots, film.shots[1:], strict=False))


@pytest.mark.parametrize("seconds", [16, 64])
def test_every_question_has_one_right_option(seconds):
    for seed in range(40):
        film = scenes.make_film("validation", seed, seconds)
        where = {}
        for shot in film.shots:
            where.setdefault(shot.shape, []).append(shot)
        for question in scenes.questions(film):
            assert len(set(question.options)) == 4
            right = question.options[question.answer]
            if question.kind in ("needle", "referring"):
                (shot,) = where[question.text.rstrip("?").split()[-1]]
                assert right == (shot.color if question.kind == "needle" else shot.place)
                assert shot.end - shot.start == scenes.NEEDLE_SECONDS
                assert not any(film.glitch_at(second + 0.5) for second in range(shot.start, shot.end))
            if question.kind == "topic":
                seconds_of = Counter()
                for shot in film.shots:
                    seconds_of[shot.place] += shot.end - shot.start
                (main, most), (_, second) = seconds_of.most_common(2)
                assert right == main
                assert most >= 0.4 * film.seconds
                assert second <= most / 2 + 1
            if question.kind == "order":
                assert right == film.shots[0 if "first" in question.text else -1].shape
                assert set(question.options) <= set(where)


def test_right_answers_stand_at_all_positions_equally_often():
    asked = [question.answer for seed in range(40) for question in scenes.questions(scenes.make_film("test", seed))]
    assert set(Counter(asked).values()) == {len(asked) // 4}


def test_benchmark_has_every_type_once_a_film_and_balanced_answer_positions():
    entries = [entry for seed in range(40) for entry in manifest_entries(scenes.make_film("test", seed), "x.mp4")]
    places = Counter((entry["question_type"], entry["candidates"].index(entry["answer"])) for entry in entries)
    assert places == {(kind, place): 10 for kind in scenes.TYPES for place in range(4)}


def test_no_option_word_is_right_more_often_than_another():
    """Guessing by the words of a question, however well, is chance: each option is right a quarter of the time."""
    offered, right = Counter(), Counter()
    for seed in range(600):
        for entry in manifest_entries(scenes.make_film("train", seed), "x.mp4"):
            key = (entry["question_type"], entry["question"].split()[-1] if entry["question_type"] == "order" else "")
            offered.update((*key, option) for option in entry["candidates"])
            right[(*key, entry["answer"])] += 1
    for key, count in offered.items():
        deviation = abs(right[key] - count / 4) / np.sqrt(count * 3 / 16)
        assert deviation < 4.5, (key, right[key], count)


def test_drawing_is_the_same_film_at_any_resolution():
    film = scenes.make_film("test", 3, 16)
    times = np.arange(16) + 0.5
    small, large = draw(film, times, 32), draw(film, times, 128)
    assert small.shape == (16, 32, 32, 3)
    assert small.dtype == np.uint8
    assert np.array_equal(small, draw(film, times, 32))
    reduced = large.reshape(16, 32, 4, 32, 4, 3).mean((2, 4))
    clear = [not (film.glitch == "static" and film.glitch_at(time)) for time in times]
    assert np.abs(reduced - small)[clear].mean() < 8


def test_wrong_arguments_are_named():
    with pytest.raises(NammTransferError, match="'dev'"):
        scenes.make_film("dev", 0)
    with pytest.raises(NammTransferError, match="8 seconds"):
        scenes.make_film("test", 0, 8)
