"""Prompt texts that training and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence

LEAD = "Best option: ("
"""The beginning of the answer, after MLVU's official prompt; the letter comes next."""


def head(video: str) -> str:
    """The part of the prompt up to the question; `video` stands where the frames go."""
    return f"USER: {video}\n"


def letters(options: Sequence[str]) -> tuple[str, ...]:
    """Names of the options: A, B, ..."""
    return tuple(chr(ord("A") + index) for index in range(len(options)))


def question(text: str, options: Sequence[str]) -> str:
    """Question and options as `(A) ...` lines."""
    return "\n".join(
        (text, *(f"({letter}) {option}" for letter, option in zip(letters(options), options, strict=True)))
    )
