"""The bar of a stage that ends: shown by the main process, gone when the stage is over."""

from __future__ import annotations

from accelerate import Accelerator
from tqdm import tqdm


def progress(accelerator: Accelerator, what: str, total: int | None = None, done: int = 0) -> tqdm:
    """Of what this process does: `total` steps, or nobody knows how many, of which some are done."""
    silent = not accelerator.is_main_process
    return tqdm(total=total, initial=done, desc=what, leave=False, disable=silent, dynamic_ncols=True)
