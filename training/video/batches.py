"""Training data of the small model: frames and token tables, each a function of the step number."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from namm_transfer.adapters.video import prompts
from namm_transfer.evals.tasks.video import scenes, versions
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.training.video import small

words = functools.cache(small.tokenizer)
"""The tokenizer of a version of the films."""
FRAME_SIZE = small.SIZES[1].frame
LABELS = (scenes.PLACES, scenes.SHAPES, scenes.COLORS, (*scenes.GLITCHES, "picture"))
"""Labels of a frame in words: place, shape, colour, and the disturbance or an undisturbed picture."""
ATTRIBUTES = ("place", "shape", "color", "disturbance")
"""Names of the labels."""
CLEAR = len(scenes.GLITCHES)
TAKE = 8  # frames of one take in the bank


def like_decoded(frames: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Prepare frames with the losses of a codec and the normalisation of the video processor.

    Args:
        frames: (n, size, size, 3) uint8.
        rng: Source of the noise.

    Returns:
        (n, 3, size, size) float32, normalised for CLIP: chroma at half resolution, noise in blocks and in pixels.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    luma = pixels.mean(1, keepdim=True)
    chroma = F.interpolate(F.avg_pool2d(pixels - luma, 2), scale_factor=2.0, mode="bilinear")
    blocks = torch.from_numpy(rng.normal(0, 4, size=(len(frames), 1, 8, 8)).astype(np.float32))
    grain = torch.from_numpy(rng.normal(0, 3, size=luma.shape).astype(np.float32))
    noise = F.interpolate(blocks, size=pixels.shape[-2:]) + grain
    noisy = (rng.uniform(0.92, 1.08) * (luma + chroma) + noise + rng.uniform(-8, 8)).clamp(0, 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (noisy / 255 - mean) / std


def vision_batch(step: int) -> tuple[Tensor, Tensor]:
    """Draw 64 single frames of eight films and their labels, (64, 4) indices; -100 is not trained."""
    rng = np.random.default_rng([1, step])
    frames, labels = [], []
    for index in range(8):
        film = scenes.make_film("train", 8 * step + index, 16)
        times = np.append(rng.uniform(0, film.seconds, size=7), film.glitch_start + rng.uniform(0, 2))
        frames.append(draw(film, times, FRAME_SIZE))
        for moment in times:
            shot, glitch = film.shot_at(moment), film.glitch_at(moment)
            shown = [scenes.PLACES.index(shot.place), scenes.SHAPES.index(shot.shape), scenes.COLORS.index(shot.color)]
            labels.append([-100, -100, -100, scenes.GLITCHES.index(glitch)] if glitch else [*shown, CLEAR])
    return like_decoded(np.concatenate(frames), rng), torch.tensor(labels)


def pooled_frames(model: LlavaNextVideoForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Compute the projector's inputs, (n, 4, vision width), from frames (n, 3, size, size)."""
    last = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return model.model.vision_resampler(last[:, 1:])


class Bank:
    """Vision features of many short takes of every (place, shape, colour) and of every disturbance.

    The vision tower is frozen while the text model learns, so films are composed of takes whose features are computed
    once: a step then costs the text model alone.
    """

    def __init__(self, model: LlavaNextVideoForConditionalGeneration, takes: int) -> None:
        self.shots: dict[tuple[str, str, str], Tensor] = {}
        """Features of each shot's takes, (takes, TAKE, 4, vision width) float32."""
        self.glitches: dict[str, Tensor] = {}
        """Features of each disturbance, (takes * TAKE, 4, vision width) float32."""
        for number, key in enumerate(itertools.product(scenes.PLACES, scenes.SHAPES, scenes.COLORS)):
            rng = np.random.default_rng([3, number])
            features = [self._features(model, _take(key, rng), rng) for _ in range(takes)]
            self.shots[key] = torch.stack(features)
        for number, glitch in enumerate(scenes.GLITCHES):
            rng = np.random.default_rng([4, number])
            films = (_take(("sand", "star", "red"), rng, glitch) for _ in range(takes))
            self.glitches[glitch] = torch.cat([self._features(model, film, rng) for film in films])

    @staticmethod
    @torch.no_grad()
    def _features(model: LlavaNextVideoForConditionalGeneration, film: scenes.Film, rng: np.random.Generator) -> Tensor:
        times = np.sort(rng.uniform(0, TAKE, size=TAKE))
        with torch.autocast("cpu", enabled=False):  # the same features whichever stage builds the bank
            return pooled_frames(model, like_decoded(draw(film, times, FRAME_SIZE), rng))

    def frames(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Draw features (count, 4, vision width), an eighth of them disturbed, and (count, 4) indices into `LABELS`."""
        features, labels = [], []
        keys = list(self.shots)
        for _ in range(count):
            if rng.random() < 0.125:
                glitch = int(rng.integers(len(scenes.GLITCHES)))
                takes = self.glitches[scenes.GLITCHES[glitch]]
                labels.append([-100, -100, -100, glitch])
            else:
                key = keys[int(rng.integers(len(keys)))]
                takes = self.shots[key].flatten(0, 1)
                labels.append([*(names.index(name) for names, name in zip(LABELS, key, strict=False)), CLEAR])
            features.append(takes[int(rng.integers(len(takes)))])
        return torch.stack(features), torch.tensor(labels)

    def film(self, film: scenes.Film, rng: np.random.Generator) -> Tensor:
        """Compose the features of a film's frames, one a second: (seconds, 4, vision width)."""
        parts = []
        for shot in film.shots:
            takes = self.shots[shot.place, shot.shape, shot.color]
            frames = torch.from_numpy(np.arange(shot.end - shot.start) % TAKE)
            parts.append(takes[int(rng.integers(len(takes)))][frames])
        whole = torch.cat(parts)
        disturbed = self.glitches[film.glitch]
        picked = torch.from_numpy(rng.integers(len(disturbed), size=film.glitch_seconds))
        whole[film.glitch_start : film.glitch_start + film.glitch_seconds] = disturbed[picked]
        return whole


make_bank = Bank


def _take(key: tuple[str, str, str], rng: np.random.Generator, glitch: str | None = None) -> scenes.Film:
    """Make a film of a single shot, TAKE seconds long, disturbed throughout or not at all."""
    shot = scenes.random_shot(rng, 0, TAKE, *key, needle=False)
    seed = int(rng.integers(2**31))
    return scenes.Film("train", seed, TAKE, (shot,), glitch or "flash", 0, glitch_seconds=TAKE if glitch else 0)


@dataclass
class Batch:
    """A step's films with all their questions packed behind them."""

    features: Tensor
    """Frame features, (films * frames, 4, vision width)."""
    ids: Tensor
    """Token ids, (films, length), with `<video>` in the places of frames."""
    question: Tensor
    """Number of the question, (films, length): 0 for the video part, then 1, 2, ...; -1 for padding."""
    positions: Tensor
    """Position ids, (films, length)."""
    targets: Tensor
    """Tokens to predict, (films, length); -100 elsewhere."""
    kinds: Tensor
    """Index of the question type of each predicted word, (films, length); -1 elsewhere."""

    def mask(self) -> Tensor:
        """Causal attention mask, (films, 1, length, length) bool: each question sees the video and itself only."""
        key, query = self.question[:, None, None, :], self.question[:, None, :, None]
        length = self.ids.shape[1]
        return ((key == 0) | (key == query)) & torch.ones(length, length, dtype=torch.bool).tril()


class FilmBank(Protocol):
    """Source of the features of films' frames."""

    def film(self, film: scenes.Film, rng: np.random.Generator) -> Tensor:
        """Compose the features of a film's frames, one a second: (seconds, 4, vision width)."""


def language_batch(bank: FilmBank, step: int, films: int, frames: int, version: int = 1) -> Batch:
    """Make the films of a step, one frame a second.

    In version 2 the answer is also to be predicted from the shape's word in the question, where it takes one step of
    attention less, and from an event's token how often its shape came so far; these targets have no kind.
    """
    rng = np.random.default_rng([2, step])
    film_set, tokenizer = versions.film_set(version), words(version)
    head = tokenizer(prompts.head("<video>" * (4 * frames)))["input_ids"]
    first = head.index(tokenizer.get_vocab()["<video>"])
    rows, features = [], []
    for index in range(films):
        film = film_set.make_film("train", films * step + index, frames)
        features.append(bank.film(film, rng))
        row = [(token, 0, place, -100, -1) for place, token in enumerate(head)]
        seen: Counter[str] = Counter()
        for event in film.events:
            seen[event.shape] += 1
            place = first + 4 * event.second + event.corner
            row[place] = (head[place], 0, place, tokenizer.get_vocab()[str(seen[event.shape])], -1)
        for number, asked in enumerate(film_set.questions(film, every=True), start=1):
            row += _question_tokens(tokenizer, asked, film_set.types.index(asked.kind), number, len(head), version == 2)
        rows.append(row)
    length = max(map(len, rows))
    table = torch.tensor([row + [(0, -1, 0, -100, -1)] * (length - len(row)) for row in rows])
    return Batch(torch.cat(features), *table.unbind(-1))


def _question_tokens(
    tokenizer: PreTrainedTokenizerFast, asked: scenes.Question, kind: int, number: int, start: int, hint: bool
) -> list[tuple[int, int, int, int, int]]:
    """List (id, question, position, target, kind) of one question's tokens; the last target is the answer's word.

    With `hint`, it is also the target of the shape that the question names.
    """
    body = tokenizer(f"{asked.text} ASSISTANT:", add_special_tokens=False)["input_ids"]
    answer = tokenizer.get_vocab()[asked.options[asked.answer]]
    hints = {tokenizer.get_vocab()[shape] for shape in scenes.SHAPES} if hint else set()
    rows = [(token, number, start + place, answer if token in hints else -100, -1) for place, token in enumerate(body)]
    rows[-1] = (*rows[-1][:3], answer, kind)
    return rows
