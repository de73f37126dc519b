"""The state of an evolution on disk: one safetensors file of a few hundred kB, written atomically every generation."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic

FIELDS = ("generation", "fitness", "validation", "kept", "sigma", "signal")
"""Columns of the log, keys of `evolution.jsonl`. `signal` is the reliability of the members' differences;
see `fitness.Scores.signal`."""


@dataclass
class State:
    """The state from which an interrupted evolution continues exactly."""

    identity: dict[str, Any]
    """Configuration, seed and text fingerprint; a run with another identity is refused."""
    statistics: np.ndarray
    """Normalisation statistics, (35,) float64: count, 17 means, 17 variances."""
    start: np.ndarray
    """(size,) float64: where the search began, in whitened parameters"""
    matrix: np.ndarray
    """Whitening matrix, (25, 25) float32; see `whitening.unwhiten`."""
    learning: np.ndarray
    """(steps, 3) float32: log of the learned start, columns `learning.METRICS`; no rows without one"""
    history: np.ndarray
    """(generations, members) float64: the fitness of every member ever, from which the search is replayed"""
    mean: np.ndarray
    """Flat vector of the search's mean, (size,) float64, which a replay must reproduce."""
    log: np.ndarray
    """(generations + 1, 6) float64, columns `FIELDS`; row 0 is the start; NaN where there was no validation"""
    best: np.ndarray
    """(size,) float64: the mean with the best validation so far"""
    best_generation: np.ndarray
    """(1,) int64: generation of `best`"""

    def write(self, path: Path) -> None:
        """Write to `path`, atomically."""
        arrays = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in dataclasses.fields(self)[1:]}
        write_atomic(path, save(arrays, metadata={"identity": json.dumps(self.identity, sort_keys=True)}))

    @classmethod
    def read(cls, path: Path) -> State:
        """Read a state that `write` has written.

        Raises:
            NammTransferError: no such file, or something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                state = cls(identity=json.loads((file.metadata() or {})["identity"]), **arrays)
        except FileNotFoundError:
            raise NammTransferError(f"{path}: no evolution to go on with; start without --resume") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise NammTransferError(f"{path}: not the state of an evolution: {error}") from error
        if state.log.shape[1:] != (len(FIELDS),):
            raise NammTransferError(f"{path}: log of shape {state.log.shape}; expected {len(FIELDS)} columns")
        return state

    def jsonl(self) -> str:
        """Return the content of `evolution.jsonl`, one line a generation."""
        lines = []
        for row in self.log:
            entry = dict(zip(FIELDS, (None if np.isnan(v) else float(v) for v in row), strict=True))
            lines.append(json.dumps(entry | {"generation": int(row[0])}) + "\n")
        return "".join(lines)
