"""Prompt texts that training and evaluation share, and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from namm_transfer.errors import NammTransferError

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


def choice_tokens(
    text: str, choices: Sequence[str], tokens: Callable[[str], list[int]], unknown: int | None
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Compute the tokens by which each choice continues a prompt.

    Args:
        text: the prompt.
        choices: its continuations.
        tokens: tokenizer of whole prompts.
        unknown: the tokenizer's token for what it does not know.

    Raises:
        NammTransferError: a choice is no continuation in tokens, or the tokenizer cannot tell the choices apart.
    """
    before, found = tokens(text), dict[tuple[int, ...], str]()
    for choice in choices:
        whole = tokens(text + (choice.lstrip() if text[-1].isspace() else choice))
        more = tuple(whole[len(before) :])
        if whole[: len(before)] != before or not more:
            raise NammTransferError(f"choice {choice!r} is no continuation in tokens of a prompt ending {text[-16:]!r}")
        if more in found:
            raise NammTransferError(f"choices {found[more]!r} and {choice!r} are the same to the tokenizer")
        if set(more) == {unknown}:
            raise NammTransferError(f"choice {choice!r} holds no word that the tokenizer knows")
        found[more] = choice
    return tuple((choice, more) for more, choice in found.items())


def around_video(
    one: str, two: str, tokens: Callable[[str], list[int]], tokens_inside: Callable[[str], list[int]]
) -> tuple[list[int], str, list[int]]:
    """Split a prompt at its video.

    Args:
        one: the prompt with one video.
        two: the same with two.
        tokens: tokenizer of whole prompts.
        tokens_inside: tokenizer of parts of a prompt, which adds no special tokens.

    Returns:
        tokens before the video, text of the video, tokens behind it.

    Raises:
        NammTransferError: the tokens around a video depend on how many there are.
    """
    ids, both = tokens(one), tokens(two)
    size, length = len(both) - len(ids), len(two) - len(one)
    for start in (at for at in range(len(ids)) if ids[:at] + both[at : at + size] + ids[at:] == both):
        for at in (at for at in range(len(one)) if one[:at] + two[at : at + length] + one[at:] == two):
            video = two[at : at + length]
            if tokens_inside(video) == both[start : start + size]:
                return ids[:start], video, ids[start + size :]
    raise NammTransferError(
        f"the prompt {two[:200]!r} cannot be read in parts: its tokens depend on how many videos it has"
    )
