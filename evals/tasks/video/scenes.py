"""Long videos as scene graphs, with multiple-choice questions about them; everything follows from a seed.

A film is a chain of shots. Each shot shows one place and one coloured shape moving through it; once somewhere the
picture is disturbed for two seconds. The question types follow MLVU and LongVideoBench: `needle` (what happened once),
`referring` (what was there while something else was on screen), `topic` (the whole film), `anomaly`, `order`.

Every attribute a question asks for is drawn uniformly and independently of the words of the question, wrong options are
as likely as right ones, and answer positions rotate with the seed: without the film all four options are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from namm_transfer.errors import NammTransferError

PLACES = ("grass", "water", "sand", "brick", "snow", "night")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "moon")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "pink", "white")
GLITCHES = ("flash", "blackout", "static", "bars", "checker")
TYPES = ("needle", "referring", "topic", "anomaly", "order")
SPLITS = {"train": 0, "validation": 1, "test": 2}

NEEDLE_SECONDS = 3  # a needle is on screen this long, whatever the length of the film
SHOT_SECONDS = 5  # mean length of a shot


@dataclass(frozen=True)
class Shot:
    """One place with one moving shape, from `start` to `end` in whole seconds."""

    start: int
    end: int
    place: str
    shape: str
    color: str
    path: tuple[float, float, float, float]
    """Centre (x, y) at the start and at the end, as shares of the frame."""
    radius: float
    """Half the shape's width as a share of the frame."""
    texture: float
    """Phase of the background's pattern."""
    needle: bool
    """True if this shape is on screen in no other shot of the film."""


@dataclass(frozen=True)
class Event:
    """One coloured shape that fills one quarter of the picture for one second (films of version 2)."""

    second: int
    corner: int
    """Quarter of the picture: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    shape: str
    color: str
    shift: tuple[float, float]
    """Distance (x, y) of the shape's centre from the centre of its quarter, as shares of the frame."""
    radius: float
    """Half the shape's width as a share of the frame."""


@dataclass(frozen=True)
class Film:
    """The scene graph of a whole video."""

    split: str
    seed: int
    seconds: int
    shots: tuple[Shot, ...]
    glitch: str
    glitch_start: int
    """Second at which the disturbance begins."""
    glitch_seconds: int = 2
    """Duration of the disturbance in seconds; 0 for none."""
    events: tuple[Event, ...] = ()
    """Events in the order of their seconds; films of version 1 have none."""

    def shot_at(self, second: float) -> Shot:
        """Return the shot on screen at a time in seconds."""
        return next(shot for shot in self.shots if second < shot.end)

    def glitch_at(self, second: float) -> str | None:
        """Return the disturbance on screen at a time in seconds, if there is one."""
        return self.glitch if 0 <= second - self.glitch_start < self.glitch_seconds else None


@dataclass(frozen=True)
class Question:
    """A question with four one-word options; `answer` is the index of the right one."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: int

    def turned_to(self, place: int) -> Question:
        """Return this question with the right answer moved to another place, the wrong ones in unchanged order."""
        others = [option for option in self.options if option != self.options[self.answer]]
        others.insert(place, self.options[self.answer])
        return Question(self.kind, self.text, tuple(others), place)


def make_film(split: str, seed: int, seconds: int = 64) -> Film:
    """Make the film of a split ("train", "validation", "test") and a seed; `seconds` (at least 16) is its length."""
    rng = film_rng(split, seed, seconds)
    count = max(4, round(seconds / SHOT_SECONDS))
    needles = min(3, count - 3)
    shapes = list(rng.permutation(SHAPES))
    once, often = shapes[:needles], shapes[needles:]

    is_needle = np.zeros(count, dtype=bool)
    is_needle[rng.permutation(count)[:needles]] = True
    lengths = _lengths(rng, is_needle, seconds)
    places = _places(rng, lengths)
    # The first shapes of `often` appear at least once each, so that short films too show four different ones.
    fill = often[: count - needles] + list(rng.choice(often, size=max(0, count - needles - len(often))))
    fill = list(rng.permutation(fill))

    shots, start = [], 0
    for index in range(count):
        shape = once.pop() if is_needle[index] else fill.pop()
        end = start + int(lengths[index])
        color = str(rng.choice(COLORS))
        shots.append(random_shot(rng, start, end, places[index], str(shape), color, bool(is_needle[index])))
        start = end
    # The disturbance hides the middle of a long shot, never a needle.
    host = max((shot for shot in shots if not shot.needle), key=lambda shot: (shot.end - shot.start, rng.random()))
    glitch_start = int(rng.integers(host.start, host.end - 1))
    return Film(split, seed, seconds, tuple(shots), str(rng.choice(GLITCHES)), glitch_start)


def film_rng(split: str, seed: int, seconds: int, *stream: int) -> np.random.Generator:
    """Make the source of a film's random draws; other numbers in `stream` give independent draws.

    Raises:
        NammTransferError: no such split, or a film of less than 16 seconds.
    """
    if split not in SPLITS:
        raise NammTransferError(f"split {split!r} does not exist; choose one of {', '.join(SPLITS)}")
    if seconds < 16:
        raise NammTransferError(f"a film of {seconds} seconds is too short for the questions; at least 16 are needed")
    return np.random.default_rng([SPLITS[split], seed, seconds, *stream])


def random_shot(
    rng: np.random.Generator, start: int, end: int, place: str, shape: str, color: str, needle: bool
) -> Shot:
    """Make a shot of given content with a random path, size and texture."""
    x0, y0, x1, y1 = (float(value) for value in rng.uniform(0.42, 0.58, size=4))
    radius, texture = float(rng.uniform(0.3, 0.36)), float(rng.uniform(0, 1))
    return Shot(start, end, place, shape, color, (x0, y0, x1, y1), radius, texture, needle)


def _lengths(rng: np.random.Generator, is_needle: np.ndarray, seconds: int) -> np.ndarray:
    """Draw shot lengths in whole seconds: NEEDLE_SECONDS for needles, at least 2 for others, `seconds` in all."""
    lengths = np.where(is_needle, NEEDLE_SECONDS, 2)
    share = np.where(is_needle, 0.0, rng.uniform(0.5, 1.5, size=len(lengths)))
    return lengths + rng.multinomial(seconds - int(lengths.sum()), share / share.sum())


def _places(rng: np.random.Generator, lengths: np.ndarray) -> list[str]:
    """Draw a place for each shot; the main one fills 40 % to 60 % of the film, each other at most half of that."""
    total = int(lengths.sum())
    while True:
        main, *minor = rng.permutation(PLACES)
        chosen = rng.choice(minor, size=len(lengths))
        filled = 0
        for index in rng.permutation(len(lengths)):
            if filled + lengths[index] <= 0.6 * total:
                chosen[index] = main
                filled += lengths[index]
            if filled >= 0.45 * total:
                break
        largest = max(int(lengths[chosen == other].sum()) for other in minor)
        if filled >= 0.4 * total and largest <= 0.5 * filled + 1:
            return [str(place) for place in chosen]


def questions(film: Film, every: bool = False) -> list[Question]:
    """Make the questions of a film, needles first; the right answer's position rotates with seed and question.

    With `every`, each shape that is on screen in one shot only is asked about, not just the short needles.
    """
    rng = film_rng(film.split, film.seed, film.seconds, 1)
    return with_options(film, rng, _asked(film, rng, every))


Asked = tuple[str, str, str, list[str]]
"""Kind and text of a question, its right option, and at least three wrong ones."""


def with_options(film: Film, rng: np.random.Generator, asked: Iterable[Asked]) -> list[Question]:
    """Give each question its right option and three wrong ones, drawn once all questions are."""
    found = []
    for index, (kind, text, right, wrong) in enumerate(list(asked)):
        options = [str(option) for option in rng.permutation(wrong)[:3]]
        answer = (film.seed + index) % 4
        options.insert(answer, right)
        found.append(Question(kind, text, tuple(options), answer))
    return found


def _asked(film: Film, rng: np.random.Generator, every: bool) -> Iterator[Asked]:
    """List every question."""
    seen = [shot.shape for shot in film.shots]
    needles = [shot for shot in film.shots if shot.needle or (every and seen.count(shot.shape) == 1)]
    for index in rng.permutation(len(needles)):
        shot = needles[index]
        yield "needle", f"What color was the {shot.shape}?", shot.color, others(COLORS, shot.color)
    for index in rng.permutation(len(needles)):
        shot = needles[index]
        yield "referring", f"Where was the {shot.shape}?", shot.place, others(PLACES, shot.place)
    seconds = dict.fromkeys(PLACES, 0)
    for shot in film.shots:
        seconds[shot.place] += shot.end - shot.start
    main = max(seconds, key=lambda place: seconds[place])
    yield "topic", "What is the main place of the video?", main, others(PLACES, main)
    yield "anomaly", "What disturbed the picture?", film.glitch, others(GLITCHES, film.glitch)
    shapes = sorted(set(seen))
    for word, shot in (("first", film.shots[0]), ("last", film.shots[-1])):
        if len(shapes) >= 4:
            yield "order", f"Which shape came {word}?", shot.shape, others(shapes, shot.shape)


def others(values: Sequence[str], right: str) -> list[str]:
    """Return the values other than the right one."""
    return [value for value in values if value != right]
