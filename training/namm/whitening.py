"""Whitened parameters of a NAMM, which read features of equal variance in all directions among ordinary tokens.

The normalisation statistics (spec section 4) are dominated by attention sinks; all other tokens have nearly equal
features after normalisation. Learning and search change whitened parameters, from which `unwhiten` makes a NAMM's flat
vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from namm_transfer.moments import Moments
from namm_transfer.namm import FEATURES, NAMM, RECENCY, SHAPES, SIZE

_SPREAD = 1.5  # median distance of the first scores from their median
_RIDGE = 0.01
_INIT = (0.1, 0.0, 0.05, 0.0)  # standard deviations of the weights and biases before the output layer


def unwhiten(vector: Tensor, matrix: Tensor) -> Tensor:
    """Make the flat vector, (4172,), of whitened parameters: weights that read features are multiplied by `matrix`.

    Differentiable; works in the dtype of its arguments.

    Args:
        vector: (4172,) whitened parameters.
        matrix: (25, 25), from `whitening`.
    """
    shape = SHAPES["attention_in.weight"]
    reading, between, output, bias = vector.split([shape[0] * shape[1], _inside() - shape[0] * shape[1], FEATURES, 1])
    return torch.cat([(matrix @ reading.view(shape)).flatten(), between, matrix @ output, bias])


def whitening(spectra: Sequence[Tensor], statistics: Moments) -> Tensor:
    """Compute the whitening matrix, (25, 25) float32, which is the identity for the 8 recency features.

    Args:
        spectra: spectra of full caches, each (kv_heads, 17, tokens).
        statistics: the normalisation statistics.
    """
    tokens = torch.cat([s.float().transpose(1, 2).flatten(0, 1) for s in spectra])
    normalised = ((tokens - statistics.mean) / statistics.var.sqrt().clamp_min(1e-7)).float().clamp(-3, 3)
    values, vectors = torch.linalg.eigh(torch.cov(normalised.T) + _RIDGE * torch.eye(len(statistics.mean)))
    matrix = torch.eye(FEATURES)
    matrix[RECENCY:, RECENCY:] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return matrix


def random_start(spectra: Sequence[Tensor], statistics: Moments, matrix: Tensor, seed: int) -> Tensor:
    """Draw initial whitened parameters, (4172,) float32: the output layer sums the spectrum, so that it prefers tokens
    that have received attention; the layers before it are random; and scores of full caches lie around 0."""
    generator, inside = torch.Generator().manual_seed(seed), _inside()
    summing = torch.zeros(SIZE)
    summing[inside + RECENCY : -1] = 1.0
    vector = unwhiten(summing, torch.linalg.inv(matrix))
    sizes = [torch.Size(shape).numel() for shape in list(SHAPES.values())[:4]]
    spreads = torch.cat([torch.full((n,), s) for n, s in zip(sizes, _INIT, strict=True)])
    vector[:inside] = spreads * torch.randn(inside, generator=generator)
    namm = NAMM.from_vector(unwhiten(vector, matrix), mean=statistics.mean, var=statistics.var)
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


def _inside() -> int:
    """Count the parameters before the output layer."""
    return SIZE - 1 - FEATURES
