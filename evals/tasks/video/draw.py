"""Drawing films: vector graphics at any resolution, so that training frames and H.264 files show the same scenes."""

from __future__ import annotations

import numpy as np

from namm_transfer.evals.tasks.video.scenes import COLORS, Event, Film, Shot

RGB = {
    "red": (215, 35, 35), "orange": (245, 140, 25), "yellow": (240, 225, 50), "green": (45, 205, 70),
    "cyan": (60, 215, 225), "blue": (45, 75, 235), "pink": (240, 95, 200), "white": (252, 252, 252),
}  # fmt: skip
GROUND = {
    "grass": (55, 105, 45), "water": (45, 85, 135), "sand": (200, 175, 120),
    "brick": (130, 65, 50), "snow": (215, 222, 230), "night": (22, 20, 45),
}  # fmt: skip


def draw(film: Film, times: np.ndarray, size: int) -> np.ndarray:
    """Draw frames of a film at the given times in seconds.

    Args:
        film: What to draw.
        times: (n,) seconds, each inside the film.
        size: Height and width of a frame in pixels.

    Returns:
        (n, size, size, 3) uint8 RGB.
    """
    frames = np.empty((len(times), size, size, 3), dtype=np.uint8)
    which = np.array([film.shots.index(film.shot_at(time)) for time in times], dtype=int)
    for index in np.unique(which):
        rows = np.flatnonzero(which == index)
        picture = _shot(film.shots[index], times[rows].astype(np.float32), size, film.seed)
        for event in film.events:
            shown = np.floor(times[rows]) == event.second
            if shown.any():
                picture[shown] = _event(event, picture[shown], size)
        frames[rows] = np.clip(picture, 0, 255).astype(np.uint8)
    for row, time in enumerate(times):
        if film.glitch_at(time):
            frames[row] = _glitch(film, float(time), size)
    return frames


def _shot(shot: Shot, times: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw frames of one shot, (n, size, size, 3) float32."""
    x, y = _grid(size)
    time = times[:, None, None]
    picture = _ground(shot, x, y, time, size)

    rng = np.random.default_rng([seed, shot.start])
    speck = np.float32(1)
    for px, py, vx, vy in rng.uniform((0, 0, -0.05, -0.05), (1, 1, 0.05, 0.05), size=(3, 4)).astype(np.float32):
        away = (x - (px + vx * time) % 1) ** 2 + (y - (py + vy * time) % 1) ** 2
        speck = np.minimum(speck, away)
    # Grey specks drift through every shot and mean nothing.
    picture = _paint(picture, np.sqrt(speck) - 0.03, (128, 128, 128), size)
    if not shot.shape:
        return picture

    done = (time - shot.start) / (shot.end - shot.start)
    x0, y0, x1, y1 = shot.path
    u = (x - x0 - (x1 - x0) * done) / shot.radius
    v = (y - y0 - (y1 - y0) * done) / shot.radius
    tilt = 0.08 * np.sin(2 * time + 6.28 * shot.texture)
    u, v = u * np.cos(tilt) - v * np.sin(tilt), u * np.sin(tilt) + v * np.cos(tilt)
    return _figure(picture, u, v, shot, size)


def _event(event: Event, picture: np.ndarray, size: int) -> np.ndarray:
    """Draw an event into frames (n, size, size, 3) float32."""
    x, y = _grid(size)
    u = (x - 0.25 - 0.5 * (event.corner % 2) - event.shift[0]) / event.radius
    v = (y - 0.25 - 0.5 * (event.corner // 2) - event.shift[1]) / event.radius
    return _figure(picture, u, v, event, size)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, 1, size) and y (1, size, 1) of the pixels' centres as shares of the frame, float32."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, None, :], axis[None, :, None]


def _figure(picture: np.ndarray, u: np.ndarray, v: np.ndarray, what: Shot | Event, size: int) -> np.ndarray:
    """Draw a coloured shape at coordinates (u, v) in units of its radius, on a black plate that sets colours off."""
    picture = _paint(picture, (np.hypot(u, v) - 1.15) * what.radius, (6, 6, 6), size)
    return _paint(picture, _outline(what.shape, u, v) * what.radius, RGB[what.color], size)


def _paint(picture: np.ndarray, distance: np.ndarray, color: tuple[int, int, int], size: int) -> np.ndarray:
    """Fill where `distance` (in shares of the frame) is negative, with an edge one pixel soft."""
    cover = np.clip(0.5 - distance * size, 0, 1)[..., None]
    picture += cover * (np.asarray(color, dtype=np.float32) - picture)
    return picture


def _ground(shot: Shot, x: np.ndarray, y: np.ndarray, time: np.ndarray, size: int) -> np.ndarray:
    """Draw the slowly drifting texture of a place, (n, size, size, 3) float32."""
    x = x + shot.texture + 0.02 * time
    two_pi = np.float32(2 * np.pi)
    match shot.place:
        case "grass":
            wave = np.sin(two_pi * (12 * x + 0.7 * np.sin(two_pi * 2 * y)))
        case "water":
            wave = np.sin(two_pi * (7 * y + 0.5 * np.sin(two_pi * 2 * x + time)))
        case "sand":
            wave = np.sin(two_pi * 9 * (x + 0.9 * y)) * np.sin(two_pi * 10 * (x - 0.8 * y))
        case "brick":
            row = np.floor(y * 6)
            joint = np.minimum(np.abs((y * 6) % 1 - 0.5), np.abs((x * 4 + 0.5 * (row % 2)) % 1 - 0.5))
            wave = 2 * np.clip(1 - joint * 7, 0, 1) - 0.3
        case "snow":
            wave = np.sin(two_pi * (3 * x + 0.3 * np.sin(two_pi * 2 * y)))
        case "night":
            wave = 6 * np.clip(np.sin(two_pi * 5 * x) * np.sin(two_pi * 5 * y + 2) - 0.85, 0, 1) * 6
        case _:
            raise AssertionError(shot.place)
    ground = np.asarray(GROUND[shot.place], dtype=np.float32)
    wave = np.broadcast_to(wave, (len(time), size, size)).astype(np.float32)
    return ground + 22 * wave[..., None]


def _outline(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute a signed distance-like function of a shape with half-width about 1, negative inside."""
    r = np.hypot(u, v)
    match shape:
        case "circle":
            return r - 0.9
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.8
        case "diamond":
            return (np.abs(u) + np.abs(v) - 1.1) * 0.707
        case "ring":
            return np.abs(r - 0.7) - 0.22
        case "cross":
            return np.minimum(
                np.maximum(np.abs(u) - 0.28, np.abs(v) - 0.95), np.maximum(np.abs(v) - 0.28, np.abs(u) - 0.95)
            )
        case "triangle":
            return np.maximum(v - 0.7, 0.873 * np.abs(u) - 0.488 * (v + 1))
        case "star":
            turn = (np.arctan2(u, -v) * (5 / (2 * np.pi))) % 1
            return (r - 0.38 - 0.72 * np.abs(turn - 0.5) * 2) * 0.6
        case "moon":
            return np.maximum(r - 0.95, 0.8 - np.hypot(u - 0.5, v + 0.1))
        case _:
            raise AssertionError(shape)


def _glitch(film: Film, time: float, size: int) -> np.ndarray:
    """Draw the picture of a disturbance, (size, size, 3) uint8, which shows nothing of the film."""
    axis = (np.arange(size) + 0.5) / size
    match film.glitch:
        case "flash":
            return np.full((size, size, 3), 250, dtype=np.uint8)
        case "blackout":
            return np.full((size, size, 3), 4, dtype=np.uint8)
        case "static":
            rng = np.random.default_rng([film.seed, int(time * 1000)])
            grain = rng.integers(0, 256, size=(32, 32), dtype=np.uint8)
            cell = (axis * 32).astype(int)
            return np.repeat(grain[cell][:, cell, None], 3, axis=2)
        case "bars":
            colors = np.array([RGB[name] for name in COLORS], dtype=np.uint8)
            return np.broadcast_to(colors[(axis * 8).astype(int)][None], (size, size, 3)).copy()
        case "checker":
            cell = ((axis + 0.01 * time) * 8).astype(int)
            board = ((cell[:, None] + cell[None]) % 2 * 235 + 10).astype(np.uint8)
            return np.repeat(board[..., None], 3, axis=2)
        case _:
            raise AssertionError(film.glitch)
