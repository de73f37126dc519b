"""Functions of the task two_films; the films are written into this package's cache folder on first use."""

from functools import cache
from pathlib import Path
from typing import Any

from namm_transfer.evals.tasks.video.generate import cache_folder, generate


@cache
def folder() -> Path:
    return generate(cache_folder(), split="test", films=2, seconds=64).parent


def film(document: dict[str, Any]) -> list[str]:
    return [str(folder() / document["video"])]


def question(document: dict[str, Any]) -> str:
    return document["question"]


def right(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"right": float(answers[0].strip().casefold() == document["answer"].casefold())}
