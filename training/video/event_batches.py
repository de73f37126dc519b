"""Training data of the small model for films of version 2: labels of single tokens, and features of every event."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration

from namm_transfer.evals.tasks.video import events, scenes
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.training.video import small
from namm_transfer.training.video.batches import like_decoded, pooled_frames

LABELS = (scenes.PLACES, (*scenes.SHAPES, "picture"), scenes.COLORS)
"""Labels of a token in words: place, shape (a picture without one), colour."""
ATTRIBUTES = ("place", "shape", "color")
"""Names of the labels."""
EMPTY = 32  # frames without an event that the bank holds of every place, beside one of every event and quarter
AT_ONCE = 32  # frames that share a brightness, as those of a file do
FRAME_SIZE = small.SIZES[2].frame


def vision_batch(step: int) -> tuple[Tensor, Tensor]:
    """Draw 64 frames of eight films, whose quarters hold an event or none with equal probability.

    Returns:
        Pixels (64, 3, size, size), and labels of the tokens (64, 4, 3); -100 is not trained.
    """
    rng = np.random.default_rng([6, step])
    frames, labels = [], torch.full((64, 4, 3), -100)
    for number in range(8):
        place = int(rng.integers(len(scenes.PLACES)))
        shown = []
        for second, corner in itertools.product(range(8), range(4)):
            row = labels[8 * number + second, corner]
            row[0], row[1] = place, len(scenes.SHAPES)
            if rng.random() < 0.5:
                shape, color = int(rng.integers(len(scenes.SHAPES))), int(rng.integers(len(scenes.COLORS)))
                shown.append(events.random_event(rng, second, corner, scenes.SHAPES[shape], scenes.COLORS[color]))
                row[1], row[2] = shape, color
        frames.append(_frames(rng, scenes.PLACES[place], 8, shown))
    return like_decoded(np.concatenate(frames), rng), labels


def _frames(rng: np.random.Generator, place: str, seconds: int, shown: list[scenes.Event]) -> np.ndarray:
    """Draw one frame of each second of a film of a single shot, (seconds, size, size, 3) uint8."""
    shot = scenes.random_shot(rng, 0, seconds, place, "", "", needle=False)
    seed = int(rng.integers(2**31))
    film = scenes.Film("train", seed, seconds, (shot,), "", 0, glitch_seconds=0, events=tuple(shown))
    return draw(film, np.arange(seconds) + rng.uniform(0, 1, size=seconds), FRAME_SIZE)


class EventBank:
    """Vision features of frames of every place, without an event and with every event in every quarter.

    The vision tower is frozen while the text model learns, so films are composed of frames whose features are computed
    once: a step then costs the text model alone.
    """

    CONTENTS = (*[None] * EMPTY, *itertools.product(range(4), scenes.SHAPES, scenes.COLORS))
    """Events that a frame can show: none, or a (quarter, shape, colour)."""

    def __init__(self, model: LlavaNextVideoForConditionalGeneration, takes: int) -> None:
        places = []
        for number, place in enumerate(scenes.PLACES):
            rng = np.random.default_rng([7, number])
            places.append(torch.stack([self._take(model, place, rng) for _ in range(takes)]))
        self.features = torch.stack(places)
        """Features of the frames, (places, takes, contents, 4, vision width) float32."""

    @classmethod
    @torch.no_grad()
    def _take(cls, model: LlavaNextVideoForConditionalGeneration, place: str, rng: np.random.Generator) -> Tensor:
        """Compute the features of one frame of each content, (contents, 4, vision width), drawn in random order."""
        order = rng.permutation(len(cls.CONTENTS))
        vision: Any = model.config.vision_config
        features = torch.empty(len(order), 4, vision.hidden_size)
        for part in np.split(order, len(order) // AT_ONCE):
            contents = [cls.CONTENTS[index] for index in part]
            shown = [events.random_event(rng, second, *content) for second, content in enumerate(contents) if content]
            with torch.autocast("cpu", enabled=False):  # the same features whichever stage builds the bank
                pixels = like_decoded(_frames(rng, place, len(part), shown), rng)
                features[torch.from_numpy(part)] = pooled_frames(model, pixels)
        return features

    def frames(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Draw features (count, 4, vision width), a ninth without an event, and labels of tokens (count, 4, 3)."""
        place = torch.from_numpy(rng.integers(len(scenes.PLACES), size=count))
        content = torch.from_numpy(rng.integers(len(self.CONTENTS), size=count))
        take = torch.from_numpy(rng.integers(self.features.shape[1], size=count))
        labels = torch.full((count, 4, 3), -100)
        labels[..., 0], labels[..., 1] = place[:, None], len(scenes.SHAPES)
        for row, index in enumerate(content.tolist()):
            if (shown := self.CONTENTS[index]) is not None:
                corner, shape, color = shown
                labels[row, corner, 1] = scenes.SHAPES.index(shape)
                labels[row, corner, 2] = scenes.COLORS.index(color)
        return self.features[place, take, content], labels

    def film(self, film: scenes.Film, rng: np.random.Generator) -> Tensor:
        """Compose the features of a film's frames, one a second: (seconds, 4, vision width)."""
        place = [scenes.PLACES.index(film.shot_at(second).place) for second in range(film.seconds)]
        content = rng.integers(EMPTY, size=film.seconds)
        for event in film.events:
            content[event.second] = self.CONTENTS.index((event.corner, event.shape, event.color))
        take = rng.integers(self.features.shape[1], size=film.seconds)
        return self.features[torch.tensor(place), torch.from_numpy(take), torch.from_numpy(content)]


make_bank = EventBank
