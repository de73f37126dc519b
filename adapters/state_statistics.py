"""Data that a Decision Transformer needs besides its weights: state statistics, return scale, target return.

They are read from `statistics.json`, or from the model card of the models that were published without one.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from namm_transfer.errors import NammTransferError

STATISTICS_FILE, CARD_FILE = "statistics.json", "README.md"


@dataclass
class Statistics:
    """Normalisation statistics and target return of a Decision Transformer: `statistics.json` in its folder."""

    state_mean: np.ndarray
    """Mean that is subtracted from every state, (state_size,) float32."""
    state_std: np.ndarray
    """Standard deviation by which states are divided, (state_size,) float32."""
    return_scale: float = 1000.0
    """Scale by which returns-to-go and rewards are divided."""
    target_return: float | None = None
    """Unscaled target return to condition on; None if the model's authors named none."""
    env: str | None = None
    """Name of the environment the model was trained for, if known."""
    found_in: str = field(default="given", compare=False)
    """Source of the statistics: `statistics.json`, `README.md`, or the name of a data set; not saved."""

    def __post_init__(self) -> None:
        self.state_mean = np.asarray(self.state_mean, dtype=np.float32)
        self.state_std = np.asarray(self.state_std, dtype=np.float32)
        if self.state_mean.ndim != 1 or self.state_mean.shape != self.state_std.shape:
            raise NammTransferError(
                f"state mean and deviation have shapes {self.state_mean.shape} and {self.state_std.shape}, "
                "expected two vectors of one length"
            )
        finite = np.isfinite(self.state_mean).all() and np.isfinite(self.state_std).all()
        if not finite or not (self.state_std > 0).all() or not 0 < self.return_scale < float("inf"):
            raise NammTransferError(
                "state statistics must be finite, standard deviations and return scale above 0; found the return "
                f"scale {self.return_scale} and deviations from {self.state_std.min(initial=np.inf)}"
            )
        if self.target_return is not None and not np.isfinite(self.target_return):
            raise NammTransferError(f"target return {self.target_return}: expected a finite number")
        if not isinstance(self.env, str | None):
            raise NammTransferError(f"environment {self.env!r}: expected a name")

    def to_json(self) -> str:
        """Return the content of `statistics.json`."""
        facts = {name: value for name, value in vars(self).items() if name != "found_in"}
        vectors = {"state_mean": self.state_mean.tolist(), "state_std": self.state_std.tolist()}
        return json.dumps({**facts, **vectors}, indent=2) + "\n"

    @classmethod
    def find(cls, source: str, state_size: int | None = None) -> Statistics | None:
        """Read the statistics of a model folder or hub id from its `statistics.json` or, failing that, its model card.

        Args:
            source: folder or hub id.
            state_size: length the vectors should have. One published card has a stray number behind its last; with
                `state_size` it is dropped, with a warning.

        Returns:
            None if neither file holds them.

        Raises:
            NammTransferError: a file is there and cannot be read, or holds other values than these.
        """
        path = file_of(source, STATISTICS_FILE)
        try:
            if path is not None:
                facts = json.loads(path.read_text())
                return cls(**{**facts, "found_in": STATISTICS_FILE})
            path = file_of(source, CARD_FILE)
            card = "" if path is None else path.read_text()
            mean, std = (_vector(name, card, state_size) for name in ("mean", "std"))
        except (OSError, ValueError, TypeError, RecursionError, OverflowError) as problem:
            name = STATISTICS_FILE if path is None else path.name
            raise NammTransferError(f"{name} of {source!r} cannot be read: {problem}") from problem
        return None if mean is None or std is None else cls(mean, std, found_in=CARD_FILE)

    @classmethod
    def read(cls, source: str, state_size: int | None = None) -> Statistics:
        """Read the statistics as `find` does; raise `NammTransferError` if there are none."""
        found = cls.find(source, state_size)
        if found is None:
            raise NammTransferError(
                f"{source!r} has no {STATISTICS_FILE}, and no `mean = [...]` and `std = [...]` in its card; name the "
                "data set it was trained on to take its statistics"
            )
        return found


def file_of(source: str, name: str) -> Path | None:
    """Locate a file of a model folder or a hub repository; None if it does not exist.

    Raises `NammTransferError` if `source` is neither a folder nor a well-formed hub id, or the hub refuses.
    """
    try:
        path = Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name))
        return path if path.is_file() else None
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as problem:
        raise NammTransferError(f"{name} of {source!r} cannot be read: {problem}") from problem


def _vector(name: str, card: str, size: int | None) -> np.ndarray | None:
    """Read the numbers of `NAME = [1.0, -2.0e-1, ...]` from a model card, the form of the published models."""
    found = re.search(rf"\b{name}\s*=\s*\[([-+.,eE\d\s]+)\]", card)
    if found is None:
        return None
    numbers = np.array(found[1].replace(",", " ").split(), dtype=np.float32)
    if size is not None and len(numbers) == size + 1:
        warnings.warn(
            f"the card's {name} has {len(numbers)} numbers for states of {size}; {numbers[-1]:g}, the last, is cut",
            stacklevel=4,
        )
        return numbers[:-1]
    return numbers
