"""Films of version 2: twelve events of one second in one quarter of the picture each, whatever the film's length.

A film is a chain of empty places as in version 1. In twelve different seconds a coloured shape stands in one quarter of
the picture: sampled once a second by a model with four tokens a frame, it is one token. Three of its five shapes come
once, the other two from two to seven times. Question types:

- `detail`: the colour of a shape that comes once;
- `setting`: the place in which it comes;
- `order`: the shape of the first or of the last event, drawn uniformly from the five;
- `count`: how often a shape comes, uniformly from two to seven.

No two tokens hold the same fact, so a memory that forgets a random half of them loses what was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from namm_transfer.evals.tasks.video.scenes import (
    COLORS,
    PLACES,
    SHAPES,
    SHOT_SECONDS,
    Asked,
    Event,
    Film,
    Question,
    film_rng,
    others,
    random_shot,
    with_options,
)

TYPES = ("detail", "setting", "order", "count")
EVENTS = 12
SINGLE = 3  # shapes that come once
COUNTS = tuple(str(number) for number in range(2, EVENTS - SINGLE - 1))
"""Numbers of times that each of the other two shapes may come."""
RANKS = ("first", "second", "third")


def make_film(split: str, seed: int, seconds: int = 64) -> Film:
    """Make the film of a split ("train", "validation", "test") and a seed; `seconds` (at least 16) is its length."""
    rng = film_rng(split, seed, seconds, 2)
    ends = [0, *sorted(rng.choice(np.arange(1, seconds), size=seconds // SHOT_SECONDS - 1, replace=False)), seconds]
    shots = [
        random_shot(rng, int(start), int(end), str(rng.choice(PLACES)), "", "", needle=False)
        for start, end in pairwise(ends)
    ]
    when = sorted(rng.choice(seconds, size=EVENTS, replace=False))
    events = [
        random_event(rng, int(second), int(rng.integers(4)), shape, str(rng.choice(COLORS)))
        for second, shape in zip(when, _shapes(rng), strict=True)
    ]
    return Film(split, seed, seconds, tuple(shots), "", 0, glitch_seconds=0, events=tuple(events))


def random_event(rng: np.random.Generator, second: int, corner: int, shape: str, color: str) -> Event:
    """Make an event of given content with a random size and position in its quarter."""
    dx, dy = (float(value) for value in rng.uniform(-0.01, 0.01, size=2))
    return Event(second, corner, shape, color, (dx, dy), float(rng.uniform(0.19, 0.205)))


def _shapes(rng: np.random.Generator) -> list[str]:
    """Draw the shapes of the events; the first and the last are any two of the five with equal probability."""
    *single, one, other = (str(shape) for shape in rng.permutation(SHAPES)[: SINGLE + 2])
    count = int(rng.choice(COUNTS))
    drawn = [*single, *[one] * count, *[other] * (EVENTS - SINGLE - count)]
    first, last = (str(shape) for shape in rng.permutation([*single, one, other])[:2])
    for shape in (first, last):
        drawn.remove(shape)
    return [first, *(str(shape) for shape in rng.permutation(drawn)), last]


def questions(film: Film, every: bool = False) -> list[Question]:
    """Make the questions of a film; the right answer's position rotates with seed and question.

    With `every`, also those that only training asks: which shape came second and third, whose answers are not uniform.
    """
    rng = film_rng(film.split, film.seed, film.seconds, 3)
    return with_options(film, rng, _asked(film, rng, every))


def _asked(film: Film, rng: np.random.Generator, every: bool) -> Iterator[Asked]:
    """List every question."""
    counts = Counter(event.shape for event in film.events)
    shapes = sorted(counts)
    for index in rng.permutation(len(film.events)):
        event = film.events[index]
        if counts[event.shape] == 1:
            yield "detail", f"What color was the {event.shape}?", event.color, others(COLORS, event.color)
            place = film.shot_at(event.second).place
            yield "setting", f"Where was the {event.shape}?", place, others(PLACES, place)
    for rank, event in zip((*RANKS, "last"), (*film.events[:3], film.events[-1]), strict=True):
        if every or rank in ("first", "last"):
            yield "order", f"Which shape came {rank}?", event.shape, others(shapes, event.shape)
    for index in rng.permutation(len(shapes)):
        shape = shapes[index]
        if counts[shape] > 1:
            count = str(counts[shape])
            yield "count", f"How many times did the {shape} appear?", count, others(COUNTS, count)
