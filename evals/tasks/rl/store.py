"""Access to Minari's data sets without executing anything that a data set's metadata names.

Minari makes the environment that `metadata.json` describes where the spaces are missing, and Gymnasium calls whatever
the description's entry point names. A data set is a download, so descriptions are only compared with what is installed.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError

EXTRAS = "pip install 'namm-transfer[rl]' (goal environments and mazes: 'namm-transfer[robotics]')"


def minari() -> Any:
    """Import Minari; raises `NammTransferError` if it is not installed."""
    try:
        import minari as package
    except ImportError as problem:
        raise NammTransferError(f"data sets need {EXTRAS}: {problem}") from problem
    return package


def folder(dataset_id: str) -> Path:
    """Return the folder of a data set, which need not exist; raises `NammTransferError` for a malformed id."""
    package = minari()
    try:
        _, _, version = package.dataset.minari_dataset.parse_dataset_id(dataset_id)
        found = Path(package.storage.get_dataset_path(dataset_id))
        root = Path(package.storage.get_dataset_path(""))
    except (ValueError, TypeError, OSError) as problem:
        raise NammTransferError(
            f"data set id {dataset_id!r}: expected a name with a version such as me/hopper/medium-v0 ({problem})"
        ) from problem
    if version is None or root.resolve() not in found.resolve().parents:
        raise NammTransferError(f"data set id {dataset_id!r} leaves {str(root)!r}; expected a name such as me/data-v0")
    return found


def open_dataset(dataset_id: str) -> Any:
    """Open the `minari.MinariDataset` of a local id.

    Raises:
        FileNotFoundError: there is none.
        NammTransferError: its metadata cannot be read, or its spaces are missing.
    """
    package, path = minari(), folder(dataset_id) / "data" / "metadata.json"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"nothing at {path.parent}")
    try:
        facts = json.loads(path.read_text())
        lacking = [name for name in ("observation_space", "action_space") if not isinstance(facts.get(name), str)]
        if lacking:
            raise NammTransferError(f"data set {dataset_id!r}: its metadata.json lacks {' and '.join(lacking)}")
        return package.load_dataset(dataset_id)
    except NammTransferError:
        raise
    except Exception as problem:  # each storage format raises its own, a missing library among them
        reason = f"{type(problem).__name__}: {problem}"
        raise NammTransferError(f"data set {dataset_id!r} cannot be read: {reason}") from problem


def registered(name: str) -> Any:
    """Return Gymnasium's EnvSpec of an id, registering this project's and, if installed, the robotics
    environments; None if unknown."""
    try:
        import gymnasium
    except ImportError as problem:
        raise NammTransferError(f"{name} needs {EXTRAS}: {problem}") from problem
    for package in ("namm_transfer.evals.tasks.rl.cued", "gymnasium_robotics"):
        # They need MuJoCo, which may not be installed, or whose MUJOCO_GL may name what is not: errors of many types.
        with contextlib.suppress(Exception):
            gymnasium.register_envs(importlib.import_module(package))
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ValueError, ImportError):
        return None


def environment_of(source: Any, dataset_id: str) -> Any:
    """Return the installed EnvSpec that a data set names, with the data set's arguments and step limit.

    Raises `NammTransferError` if it names none, or one that is not registered here.
    """
    named = getattr(source, "_eval_env_spec", None) or source.env_spec
    if named is None:
        raise NammTransferError(f"data set {dataset_id!r} does not name its environment; expected --env beside it")
    found = registered(named.id)
    if found is None:
        raise NammTransferError(
            f"data set {dataset_id!r} was recorded in {named.id!r}, which is not registered here; {EXTRAS}"
        )
    spec = copy.deepcopy(found)
    spec.kwargs.update(named.kwargs)
    spec.max_episode_steps = named.max_episode_steps or spec.max_episode_steps
    return spec
