"""Models saved in half the bytes."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from namm_transfer.files import write_atomic


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Save a model in Hugging Face's format with its weights in float16.

    config.json keeps the model's own dtype, float32, which loading makes of the weights again, so that nothing is
    computed in half precision.
    """
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {name: tensor.half() for name, tensor in load_file(file).items()}
    write_atomic(file, save(weights, metadata={"format": "pt"}))
