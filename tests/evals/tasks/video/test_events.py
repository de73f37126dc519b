"""Films of version 2: facts fill one quarter of one frame, and answers follow from what is drawn."""

from collections import Counter

import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.video import events, scenes, versions
from namm_transfer.evals.tasks.video.draw import GROUND, RGB, draw
from namm_transfer.evals.tasks.video.generate import generate, manifest_entries
from namm_transfer.evals.tasks.video.generated import load_generated


@pytest.mark.parametrize("seconds", [16, 64, 256])
def test_films_follow_from_split_seed_and_length(seconds):
    film = events.make_film("test", 7, seconds)
    assert film == events.make_film("test", 7, seconds)
    assert events.questions(film) == events.questions(film)
    others = [("test", 8, seconds), ("train", 7, seconds), ("validation", 7, seconds), ("test", 7, seconds + 1)]
    assert all(film.events != events.make_film(*other).events for other in others)
    assert [shot.start for shot in film.shots] == [0, *(shot.end for shot in film.shots[:-1])]
    assert film.shots[-1].end == seconds
    assert len({event.second for event in film.events}) == events.EVENTS == len(film.events)
    assert not any(film.glitch_at(second) for second in range(seconds))


def test_questions_ask_for_what_the_film_describes():
    for seed in range(40):
        film = events.make_film("validation", seed)
        shapes = [event.shape for event in film.events]
        assert sorted(Counter(shapes).values())[:3] == [1, 1, 1]
        for question in events.questions(film, every=True):
            right = question.options[question.answer]
            assert len(set(question.options)) == 4
            if question.kind == "order":
                rank = {"first": 0, "second": 1, "third": 2, "last": -1}[question.text.rstrip("?").split()[-1]]
                assert right == shapes[rank]
                assert set(question.options) <= set(shapes)
                continue
            (shape,) = set(question.text.rstrip("?").split()) & set(scenes.SHAPES)
            (event, *more) = [event for event in film.events if event.shape == shape]
            if question.kind == "count":
                assert right == str(1 + len(more))
            else:
                assert not more
                assert right == (event.color if question.kind == "detail" else film.shot_at(event.second).place)


def nearest(colors: dict[str, tuple[int, int, int]], pixel: np.ndarray) -> str:
    """The name of the colour nearest to a pixel's."""
    return min(colors, key=lambda name: np.abs(np.array(colors[name]) - pixel).sum())


def test_details_settings_and_counts_can_be_read_from_one_frame_a_second():
    """A plate is the black ring around a shape; within, the pixels that are not black have the shape's colour."""
    film = events.make_film("test", 5)
    frames = draw(film, np.arange(film.seconds) + 0.5, 64).astype(int)
    quarters = frames.reshape(-1, 2, 32, 2, 32, 3).swapaxes(2, 3).reshape(-1, 4, 32, 32, 3)
    dark = (quarters.max(-1) < 12).mean((2, 3))
    found = {(second, corner) for second, corner in zip(*np.nonzero(dark > 0.15), strict=True)}
    assert found == {(event.second, event.corner) for event in film.events}
    for event in film.events:
        quarter = quarters[event.second, event.corner].reshape(-1, 3)
        vivid = [nearest(RGB, pixel) for pixel in quarter[quarter.max(-1) - quarter.min(-1) > 130]]
        assert event.color == "white" or Counter(vivid).most_common(1)[0][0] == event.color
        beside = quarters[event.second, 3 - event.corner].mean((0, 1))
        if film.shot_at(event.second).place != "night":  # whose stars make it look like water on average
            assert nearest(GROUND, beside) == film.shot_at(event.second).place


def test_an_event_changes_nothing_outside_its_quarter_and_its_second():
    film = events.make_film("test", 3)
    event = film.events[4]
    without = scenes.Film(
        film.split, film.seed, film.seconds, film.shots, "", 0, 0, (*film.events[:4], *film.events[5:])
    )
    times = np.arange(0, film.seconds, 0.25) + 0.125
    changed = np.argwhere((draw(film, times, 64) != draw(without, times, 64)).any(-1))
    assert set(changed[:, 0] // 4) == {event.second}
    assert set(changed[:, 0] % 4) == {0, 1, 2, 3}
    assert set(map(tuple, changed[:, 1:] // 32)) == {(event.corner // 2, event.corner % 2)}


def test_manifest_has_every_type_once_a_film_and_balanced_answers():
    """Guessing by the words of a question, however well, is chance: each option is right a quarter of the time."""
    places, offered, right = Counter(), Counter(), Counter()
    for seed in range(600):
        for entry in manifest_entries(events.make_film("train", seed), "x.mp4", version=2):
            kind, answer = entry["question_type"], entry["answer"]
            places[kind, entry["candidates"].index(answer)] += 1
            offered.update((kind, option) for option in entry["candidates"])
            right[kind, answer] += 1
    assert places == {(kind, place): 150 for kind in events.TYPES for place in range(4)}
    for key, count in offered.items():
        assert abs(right[key] - count / 4) / np.sqrt(count * 3 / 16) < 4.5, (key, right[key], count)


def test_the_versions_lie_beside_each_other_in_one_folder(tmp_path):
    first, second = (generate(tmp_path, "test", 1, 16, size=32, version=version) for version in (1, 2))
    assert first.name == "test-16s-4fps-32px-v1-1.json"
    assert second.name == "test-16s-4fps-32px-v2-1.json"
    assert {path.name for path in tmp_path.glob("*.mp4")} == {f"test-00000-16s-4fps-32px-v{v}.mp4" for v in (1, 2)}
    asked = load_generated(1, 16, folder=tmp_path, version=2)
    assert [question.kind for question in asked] == list(events.TYPES)


def test_wrong_arguments_are_named():
    with pytest.raises(NammTransferError, match="'dev'"):
        events.make_film("dev", 0)
    with pytest.raises(NammTransferError, match="8 seconds"):
        events.make_film("test", 0, 8)
    with pytest.raises(NammTransferError, match="version 3"):
        versions.film_set(3)
