"""Whitened parameters of a NAMM, which read features of equal variance in all directions among ordinary tokens.

The normalisation statistics (spec section 4) are dominated by attention sinks; all other tokens have nearly equal
features after normalisation. Learning and search change whitened parameters, from which `unwhiten` makes a NAMM's flat
vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.scorers import FEATURES, PUBLISHED, RECENCY, Scorer

_SPREAD = 1.5  # median distance of the first scores from their median
_RIDGE = 0.01
_FIRST_SCORES = 0.1  # size of the first scores of a network with hidden layers
_INIT = (0.1, 0.0, 0.05, 0.0)  # standard deviations of the weights and biases before the output layer


def unwhiten(vector: Tensor, matrix: Tensor, form: Scorer = PUBLISHED) -> Tensor:
    """Make the flat vector, (4172,) for the published form, of whitened parameters: the rows of weights that read
    features are multiplied by `matrix`.

    Differentiable; works in the dtype of its arguments.

    Args:
        vector: (size,) whitened parameters.
        matrix: (25, 25), from `whitening`.
        form: the form of the scoring network.
    """
    parts = form.split(vector)
    for name, blocks in form.reads.items():
        *reading, rest = parts[name].split([FEATURES] * blocks + [len(parts[name]) - FEATURES * blocks])
        parts[name] = torch.cat([*(matrix @ block for block in reading), rest])
    return torch.cat([part.flatten() for part in parts.values()])


def whitening(spectra: Sequence[Tensor], statistics: Moments, form: Scorer = PUBLISHED) -> Tensor:
    """Compute the whitening matrix, (25, 25) float32, which is the identity for the 8 recency features.

    Args:
        spectra: spectra of full caches, each (kv_heads, 17, tokens).
        statistics: the normalisation statistics.
        form: the form of the scoring network that reads them.
    """
    tokens = torch.cat([form.compress(s.float()).transpose(1, 2).flatten(0, 1) for s in spectra])
    normalised = ((tokens - statistics.mean) / statistics.var.sqrt().clamp_min(1e-7)).float().clamp(-3, 3)
    values, vectors = torch.linalg.eigh(torch.cov(normalised.T) + _RIDGE * torch.eye(len(statistics.mean)))
    matrix = torch.eye(FEATURES)
    matrix[RECENCY:, RECENCY:] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return matrix


def random_start(spectra: Sequence[Tensor], statistics: Moments, matrix: Tensor, seed: int) -> Tensor:
    """Draw initial whitened parameters of the published form, (4172,) float32: the output layer sums the spectrum, so
    that it prefers tokens that have received attention; the layers before it are random; and scores of full caches lie
    around 0."""
    generator, inside = torch.Generator().manual_seed(seed), PUBLISHED.size - 1 - FEATURES
    summing = torch.zeros(PUBLISHED.size)
    summing[inside + RECENCY : -1] = 1.0
    vector = unwhiten(summing, torch.linalg.inv(matrix))
    sizes = [torch.Size(shape).numel() for shape in list(PUBLISHED.shapes.values())[:4]]
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


def random_deep_start(form: Scorer, seed: int) -> Tensor:
    """Draw initial whitened parameters of a network with hidden layers, (size,) float32, whose outputs are about as
    large as its inputs, but for the scores, which begin near 0."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for name, shape in form.shapes.items():
        spread = 0.0 if name.endswith(".bias") else (_FIRST_SCORES if name == "output.weight" else 1.0) / sqrt(shape[0])
        parts.append(spread * torch.randn(shape, generator=generator).flatten())
    return torch.cat(parts)
