"""Mean and variance of spectra, merged exactly over updates, layers, prompts and processes (spec section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.spectrogram import BINS


@dataclass
class Moments:
    """Count, mean and population variance of vectors of 17, merged exactly from batch to batch."""

    count: float = 0.0
    mean: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    """Mean, (17,) float64."""
    var: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    """Population variance, (17,) float64."""

    def add(self, values: Tensor) -> None:
        """Add more vectors, (n, 17), to the statistics."""
        if len(values):
            values = values.double().cpu()
            self.merge(Moments(float(len(values)), values.mean(0), values.var(0, correction=0)))

    def merge(self, other: Moments) -> None:
        """Merge two sets of statistics by the pairwise formula of Chan, Golub and LeVeque (1979)."""
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
        """Return the statistics as one vector, (35,) float64: count, 17 means, 17 variances."""
        return torch.cat([torch.tensor([self.count], dtype=torch.float64), self.mean, self.var])

    @classmethod
    def from_rows(cls, rows: Tensor) -> Moments:
        """Merge statistics from rows of `to_row`, (n, 35), in their order."""
        total = cls()
        for row in rows:
            total.merge(cls(float(row[0]), row[1 : 1 + BINS].clone(), row[1 + BINS :].clone()))
        if total.count == 0:
            raise NammTransferError("no update took place while statistics were estimated; expected longer prompts")
        return total
