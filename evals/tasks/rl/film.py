"""Films of episodes, rendered offscreen by the environment and written with PyAV."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.environments import Act
from namm_transfer.evals.tasks.rl.tasks import flat, make, task
from namm_transfer.files import make_folder


def prepare(path: Path, env: str) -> None:
    """Check, before anything is played, that task `env` can be rendered.

    On Linux without a display and without MUJOCO_GL, EGL is asked for. Raises `NammTransferError` naming MUJOCO_GL.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    if path.suffix != ".mp4":
        raise NammTransferError(f"--render {path}: expected the name of an .mp4 file")
    make_folder(path.parent)
    _av()
    camera = _camera(env)
    camera.reset(seed=0)
    _picture(camera, env)
    camera.close()


def film(path: Path, env: str, seed: int, act: Act) -> tuple[int, float]:
    """Play one episode and write it to `path`, a picture a step at the environment's own rate.

    Args:
        path: the .mp4 file; a half-written one never has this name.
        env: name of the task.
        seed: what the environment is reset with.
        act: the agent, called with one row.

    Returns:
        Number of steps, undiscounted return.
    """
    camera, (low, high), av = _camera(env), task(env).bounds, _av()
    state, reward, steps, total, over = flat(camera.reset(seed=seed)[0]), 0.0, 0, 0.0, False
    draft = path.with_name(f".{path.name}")
    try:
        with av.open(str(draft), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=int(camera.metadata.get("render_fps", 30)))
            picture = _picture(camera, env)
            stream.height, stream.width = (side - side % 2 for side in picture.shape[:2])  # yuv420p needs even sides
            stream.pix_fmt = "yuv420p"
            while True:
                picture = _picture(camera, env)
                cut = np.ascontiguousarray(picture[: stream.height, : stream.width])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
                if over:
                    break
                action = act(state[None].astype(np.float64), np.array([reward])).astype(np.float32)[0]
                observation, reward, terminated, truncated, _ = camera.step(np.clip(action, low, high))
                state, reward, over = flat(observation), float(reward), terminated or truncated
                steps, total = steps + 1, total + reward
            file.mux(stream.encode())
        os.replace(draft, path)
    except (OSError, av.error.FFmpegError) as problem:
        raise NammTransferError(f"--render {path}: cannot be written ({problem})") from problem
    finally:
        draft.unlink(missing_ok=True)
        camera.close()
    return steps, total


def _camera(env: str) -> Any:
    try:
        return make(env, render_mode="rgb_array")
    except NammTransferError as problem:
        raise NammTransferError(f"{env} cannot be rendered: {problem}; {_advice()}") from problem


def _picture(camera: Any, env: str) -> np.ndarray:
    try:
        picture = camera.render()
    except Exception as problem:  # OpenGL, EGL, OSMesa and MuJoCo each raise their own
        reason = f"{type(problem).__name__}: {problem}"
        raise NammTransferError(f"{env} cannot be rendered: {reason}; {_advice()}") from problem
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise NammTransferError(f"{env} cannot be rendered: it gave {type(picture).__name__}, expected a picture")
    return picture


def _advice() -> str:
    return f"MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}, expected egl (a GPU or Mesa) or osmesa, installed here"


def _av() -> Any:
    try:
        import av
    except ImportError as problem:
        raise NammTransferError(f"--render needs pip install 'namm-transfer[video]': {problem}") from problem
    return av
