"""Many NAMMs as one policy: row b of the batch is judged by member b."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from namm_transfer.namm import NAMM, SHAPES, SIZE


def population(vectors: Tensor, *, mean: Tensor, var: Tensor, **options: Any) -> NAMM:
    """A policy for batches of `members` sequences that each have their own parameters.

    It is a `NAMM` whose parameters carry two leading axes, members and heads (1, shared), which its arithmetic
    broadcasts over; it can neither be saved nor serve another batch size.

    Args:
        vectors: (members, 4172), flat vectors.
        mean, var: (17,) statistics, the same for all.
        options: as for `NAMM`.
    """
    namm = NAMM.from_vector(torch.zeros(SIZE), mean=mean, var=var, **options)
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = vectors.to(torch.float32).split(sizes, dim=1)
    for (name, shape), part in zip(SHAPES.items(), parts, strict=True):
        layer, kind = name.split(".")
        # A bias gets an axis for the tokens as well: (members, heads, tokens, outputs).
        stacked = part.reshape(len(vectors), *([1] * (3 - len(shape))), *shape)
        setattr(getattr(namm, layer), kind, nn.Parameter(stacked.contiguous(), requires_grad=False))
    return namm
