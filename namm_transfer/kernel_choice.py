"""Decides whether a tensor goes to the Triton kernels: those on a GPU do, unless an environment variable forbids it."""

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError

VARIABLE = "NAMM_TRANSFER_KERNELS"
"""Environment variable: ``auto`` (Triton for CUDA tensors, where it is installed), ``triton`` or ``torch``."""
_OLDEST = (8, 0)
"""Compute capability from which on a multiprocessor has the fast memory that the tiles need."""


def serves(tensor: Tensor) -> bool:
    """Return True if kernels can take this tensor.

    Raises:
        NammTransferError: `VARIABLE` has a value that is not one of the three.
    """
    chosen = os.environ.get(VARIABLE, "auto")
    if chosen not in ("auto", "triton", "torch"):
        raise NammTransferError(f"{VARIABLE}={chosen!r}: expected auto, triton or torch")
    if chosen == "torch" or not _has_triton():
        return False
    on_gpu = tensor.device.type == "cuda" and torch.cuda.get_device_capability(tensor.device) >= _OLDEST
    return chosen == "triton" or on_gpu


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None
