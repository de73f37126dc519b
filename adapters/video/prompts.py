"""Prompt texts that training and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence

LEAD = "Best option: ("
"""Given beginning of the answer, as in MLVU's official prompt; the letter follows."""


def head(video: str) -> str:
    """Return the prompt up to the question, with `video` in the place of the frames."""
    return f"USER: {video}\n"


def letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return the letters of the options: A, B, ..."""
    return tuple(chr(ord("A") + index) for index in range(len(options)))


def question(text: str, options: Sequence[str]) -> str:
    """Format the question, and the options as `(A) ...` lines."""
    return "\n".join(
        (text, *(f"({letter}) {option}" for letter, option in zip(letters(options), options, strict=True)))
    )
