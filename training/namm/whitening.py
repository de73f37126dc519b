"""The coordinates a NAMM is learned in: those in which ordinary tokens differ equally in all directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from namm_transfer.moments import Moments
from namm_transfer.namm import FEATURES, NAMM, RECENCY, SHAPES, SIZE

_SPREAD = 1.5  # median distance of the first scores from their median, in units of the score
_RIDGE = 0.01


def through(vector: Tensor, matrix: Tensor) -> Tensor:
    """The flat vector, (4172,), with the weights that read features multiplied from the left by `matrix`, (25, 25)."""
    changed, reading = vector.clone(), SHAPES["attention_in.weight"]
    changed[: reading[0] * reading[1]] = (matrix @ vector[: reading[0] * reading[1]].view(reading)).flatten()
    changed[-1 - FEATURES : -1] = matrix @ vector[-1 - FEATURES : -1]
    return changed


def gradient(loss: Tensor, namm: NAMM, matrix: Tensor) -> Tensor:
    """Gradient of a loss with respect to the vector that, read `through` the matrix, is this NAMM: (4172,)."""
    gradients = torch.autograd.grad(loss, list(namm.parameters()))
    return through(torch.cat([g.flatten() for g in gradients]), matrix.T)


def whitening(spectra: Sequence[Tensor], statistics: Moments) -> Tensor:
    """(25, 25): the features are multiplied by it before the network reads them.

    The statistics of section 4 are those of sinks; beside them all other tokens are nearly the same.

    Args:
        spectra: of full caches, each (heads, 17, tokens).
    """
    tokens = torch.cat([s.float().transpose(1, 2).flatten(0, 1) for s in spectra])
    normalised = ((tokens - statistics.mean) / statistics.var.sqrt().clamp_min(1e-7)).float().clamp(-3, 3)
    values, vectors = torch.linalg.eigh(torch.cov(normalised.T) + _RIDGE * torch.eye(len(statistics.mean)))
    matrix = torch.eye(FEATURES)
    matrix[RECENCY:, RECENCY:] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return matrix


def first(spectra: Sequence[Tensor], statistics: Moments, matrix: Tensor, start: Tensor, seed: int) -> Tensor:
    """Where learning begins, (4172,), to be read `through` the matrix: `start` with a random attention in front of its
    output layer, and scores of full caches that lie around 0."""
    generator = torch.Generator().manual_seed(seed)
    vector = through(start.float(), torch.linalg.inv(matrix))
    inside = SIZE - 1 - FEATURES
    sizes = [torch.Size(shape).numel() for shape in list(SHAPES.values())[:4]]
    spreads = torch.cat([torch.full((n,), s) for n, s in zip(sizes, (0.1, 0.0, 0.05, 0.0), strict=True)])
    vector[:inside] = spreads * torch.randn(inside, generator=generator)
    namm = NAMM.from_vector(through(vector, matrix), mean=statistics.mean, var=statistics.var)
    scores = torch.cat(
        [
            namm.score(namm.features(s.float()[None], torch.arange(s.shape[-1]).expand(1, len(s), -1))).flatten()
            for s in spectra
        ]
    )
    middle = scores.median()
    scale = _SPREAD / (scores - middle).abs().median()
    vector[inside:-1] *= scale
    vector[-1] = (vector[-1] - middle) * scale
    return vector
