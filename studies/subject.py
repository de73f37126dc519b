"""What a study looks at: a base model, a NAMM made on it, and what the cache of each of its heads is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evaluation import EvalOptions, start
from namm_transfer.files import asset


@dataclass
class StudyOptions(EvalOptions):
    """Flags that every study has."""

    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2."""
    namm: str = "namm-text"
    """Name of a shipped NAMM, or folder of an evolution with a learned start."""
    worth: Path | None = None
    """Safetensors file whose `worth`, (layers, kv_heads), says which heads are worthy; the NAMM's own if not given."""


def load(options: StudyOptions) -> tuple[Accelerator, CausalLMAdapter, Path, Tensor]:
    """The processes of `accelerate launch`, the base model in bfloat16, the NAMM's folder, what its heads are worth."""
    accelerator = start(options)
    adapter = CausalLMAdapter.load(options.model, dtype=torch.bfloat16, device=accelerator.device)
    folder = Path(options.namm) if Path(options.namm).is_dir() else asset(options.namm)
    worth = load_file(options.worth or folder / "state" / "learning.safetensors")["worth"]
    return accelerator, adapter, folder, worth
