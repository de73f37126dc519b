"""The mask function of the attention functions that training registers with transformers: causal, or refused."""

from typing import Any

from namm_transfer.cache.masks import MemoryMask
from namm_transfer.errors import NammTransferError


def causal_only(**arguments: Any) -> None:
    """Make no mask, as attention functions that are causal by themselves need none.

    Raises:
        NammTransferError: the model's attention is not causal, or has a sliding window that the prompt exceeds.
    """
    window = MemoryMask(arguments).window
    if window is not None:
        raise NammTransferError(
            f"a base model with a sliding window of {window} tokens cannot be learned on with prompts of "
            f"{arguments['kv_length']}: expected causal attention to the whole prompt"
        )
