"""The versions of the generated films: 1, which half a memory answers as well as a whole one, and 2, which needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video import events, scenes


class MakeFilm(Protocol):
    """Function that makes the film of a split, a seed and a length in seconds."""

    def __call__(self, split: str, seed: int, seconds: int) -> scenes.Film: ...


class Questions(Protocol):
    """Function that makes the questions of a film; with `every`, also those that are asked in training alone."""

    def __call__(self, film: scenes.Film, every: bool) -> list[scenes.Question]: ...


@dataclass(frozen=True)
class FilmSet:
    """One version of the films; its number is part of their file names."""

    types: tuple[str, ...]
    """Question types."""
    make_film: MakeFilm
    questions: Questions


FILM_SETS = {
    1: FilmSet(scenes.TYPES, scenes.make_film, scenes.questions),
    2: FilmSet(events.TYPES, events.make_film, events.questions),
}


def film_set(version: int) -> FilmSet:
    """Return a version of the films; `NammTransferError` if there is none of this number."""
    if version not in FILM_SETS:
        raise NammTransferError(f"version {version!r} of the films does not exist; choose one of {list(FILM_SETS)}")
    return FILM_SETS[version]
