"""Normalisation statistics of the spectra on the full cache (spec section 4): estimated once, then frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.namm import NAMM
from namm_transfer.policy import LayerView
from namm_transfer.spectrogram import BINS


@dataclass
class Moments:
    """Count, mean and population variance of vectors of 17, merged exactly from batch to batch."""

    count: float = 0.0
    mean: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    """(17,) float64"""
    var: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    """(17,) float64, population variance"""

    def add(self, values: Tensor) -> None:
        """Take more vectors, (n, 17)."""
        if len(values):
            values = values.double().cpu()
            self.merge(Moments(float(len(values)), values.mean(0), values.var(0, correction=0)))

    def merge(self, other: Moments) -> None:
        """Pairwise formula of Chan, Golub and LeVeque (1979)."""
        count = self.count + other.count
        if self.count == 0:
            self.count, self.mean, self.var = other.count, other.mean.clone(), other.var.clone()
            return
        delta = other.mean - self.mean
        self.mean = (self.count * self.mean + other.count * other.mean) / count
        self.var = (self.count * self.var + other.count * other.var) / count
        self.var = self.var + self.count * other.count * delta**2 / count**2
        self.count = count

    def to_row(self) -> Tensor:
        """All in one vector, (35,) float64: count, means, variances."""
        return torch.cat([torch.tensor([self.count], dtype=torch.float64), self.mean, self.var])

    @classmethod
    def from_rows(cls, rows: Tensor) -> Moments:
        """Merged from rows of `to_row`, (n, 35), in their order."""
        total = cls()
        for row in rows:
            total.merge(cls(float(row[0]), row[1 : 1 + BINS].clone(), row[1 + BINS :].clone()))
        if total.count == 0:
            raise NammTransferError("no update took place while statistics were estimated; expected longer prompts")
        return total


class Recorder(NAMM):
    """A policy that keeps everything and takes the moments of every spectrum it is shown at an update.

    Old tokens are shown again at each update and count again, as in the published training.
    """

    def __init__(self, update_interval: int = 512, attention_dtype: str = "float32") -> None:
        super().__init__(update_interval, attention_dtype=attention_dtype)
        self.moments = Moments()

    def select(self, view: LayerView) -> Tensor:
        """All of them."""
        spectrum = view.state["spectrum"].transpose(-1, -2)
        self.moments.add(spectrum[view.real])
        return view.real
