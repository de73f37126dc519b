"""The mask function of the attention functions that training registers with transformers: causal, or refused."""

from typing import Any

from transformers.masking_utils import causal_mask_function

from namm_transfer.errors import NammTransferError


def causal_only(*, mask_function: Any, kv_length: int, local_size: int | None = None, **arguments: Any) -> None:
    """Make no mask, as attention functions that are causal by themselves need none.

    Raises:
        NammTransferError: the model's attention is another one, or has a sliding window that the prompt exceeds.
    """
    if mask_function is causal_mask_function or (local_size is not None and local_size >= kv_length):
        return
    raise NammTransferError(
        f"a base model with a sliding window of {local_size} tokens cannot be learned on with prompts of {kv_length}: "
        "expected causal attention to the whole prompt"
        if local_size is not None
        else "a base model whose attention is not causal cannot be learned on"
    )
