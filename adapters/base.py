"""What an adapter is: the one place where a modality meets the memory."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from namm_transfer import EvictionPolicy, MemoryCache


def default_device() -> torch.device:
    """The first accelerator, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


class ModalityAdapter(ABC):
    """A model of some modality, its processor, and how a sample goes in and an answer comes out.

    The memory sees nothing but attention, so an adapter's work is to bring a sample to the model as tokens and to say
    which of them were kept in the units of the modality: tokens, frames, time steps.
    """

    model: PreTrainedModel
    """In evaluation mode, with attention implementation "memory" in the part that has the cache."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | dict[str, Any] | None = None,
    ) -> Self:
        """Load model and processor from a folder or a hub id.

        Args:
            source: folder in transformers' format, or hub id.
            dtype: of the weights; None takes what they were saved in.
            device: where to put the model; None takes the first accelerator, or the CPU.
            device_map: spread the model with accelerate instead; excludes ``device``.

        Raises:
            NammTransferError: nothing to load there, or a model of another kind.
        """

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    def memory(self, policy: EvictionPolicy) -> MemoryCache:
        """An empty cache under ``policy`` for one sample, or one batch of samples, of this model."""
        return MemoryCache(self.model.config, policy=policy)

    @abstractmethod
    def example(self) -> Any:
        """A small made-up sample that `encode` takes, long enough for a few updates; `check_adapter` uses it."""

    @abstractmethod
    def encode(self, sample: Any) -> Any:
        """A sample as the model takes it; the part of the work no policy changes, so that it can be kept and shared."""

    @abstractmethod
    def answer(self, encoded: Any, cache: MemoryCache) -> Any:
        """Run the model on an encoded sample with ``cache`` and say what it answers or does."""

    @abstractmethod
    def kept(self, cache: MemoryCache, encoded: Any) -> dict[str, np.ndarray]:
        """What was kept, in the units of the modality; every array states its axes in the adapter's docstring."""
