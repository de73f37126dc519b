"""The interface of adapters, which connect models of one modality (text, video, control) to the memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError
from namm_transfer.cache.keyword import CACHE


def default_device() -> torch.device:
    """Return the first accelerator, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def finite(output: Tensor, what: str = "logits") -> Tensor:
    """Return a model's output unchanged; raise `NammTransferError` if it contains NaN or infinity."""
    if not torch.isfinite(output).all():
        broken = int((~torch.isfinite(output)).sum())
        raise NammTransferError(
            f"{broken} of the model's {output.numel()} {what} are NaN or infinite; expected finite numbers: "
            "its weights are damaged, or too large for its dtype"
        )
    return output


class ModalityAdapter(ABC):
    """A model of one modality with its processor: encodes samples, runs the model with a cache, reads the answer.

    The memory sees nothing but attention, so an adapter brings a sample to the model as tokens and reports
    which of them were kept in the units of the modality: tokens, frames, time steps.
    """

    model: PreTrainedModel
    """The model in evaluation mode, with attention implementation "memory" in the part that has the cache."""

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
            dtype: dtype of the weights; None takes what they were saved in.
            device: where to put the model; None takes the first accelerator, or the CPU.
            device_map: spread the model with accelerate instead; excludes ``device``.

        Raises:
            NammTransferError: nothing to load there, or a model of another kind; see `loading.load_model`.
        """

    @property
    def device(self) -> torch.device:
        """Device that inputs are moved to."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return self.model.dtype

    def memory(self, policy: EvictionPolicy) -> MemoryCache:
        """Make an empty cache under ``policy`` for one sample, or one batch of samples, of this model."""
        return MemoryCache(self.model.config, policy=policy)

    @abstractmethod
    def example(self) -> Any:
        """Make a small synthetic sample for `encode`, long enough for a few updates; `check_adapter` uses it."""

    @abstractmethod
    def encode(self, sample: Any) -> Any:
        """Convert a sample to the model's inputs; these do not depend on the policy, so policies can share them."""

    @abstractmethod
    def answer(self, encoded: Any, cache: MemoryCache) -> Any:
        """Run the model on an encoded sample with ``cache`` and return what it answers or does.

        Raises:
            NammTransferError: the model's output is not finite; see `finite`.
        """

    @abstractmethod
    def kept(self, cache: MemoryCache, encoded: Any) -> dict[str, np.ndarray]:
        """Return kept shares in the units of the modality; the adapter's docstring states the axes of each array."""


class LanguageAdapter(ModalityAdapter):
    """An adapter of a model that generates text: greedy decoding, and log-probabilities of given continuations."""

    @property
    @abstractmethod
    def words(self) -> Any:
        """The tokenizer of the text model."""

    @property
    def control_tokens(self) -> list[str]:
        """Special and added tokens, as text."""
        return [*self.words.all_special_tokens, *map(str, self.words.added_tokens_decoder.values())]

    def harmless(self, text: str) -> str:
        """Return what others wrote without what the tokenizer would read as control tokens (`<video>`, `</s>`)."""
        control = [token for token in self.control_tokens if token.startswith("<")]
        while found := next((token for token in control if token in text), None):
            text = text.replace(found, "")
        return text

    @abstractmethod
    def read_context(self, encoded: Any, cache: MemoryCache) -> None:
        """Read a sample up to `encoded.prefix`, where the question begins, into an empty cache."""

    @torch.inference_mode()
    def logits(self, cache: Cache, *, last: bool = False, shift: int | None = None, **inputs: Tensor) -> Tensor:
        """Run one sequence through the model.

        Args:
            cache: earlier tokens; it grows by the tokens of this call.
            last: compute the logits of the last token alone.
            shift: what the position of `input_ids` exceeds the number of tokens before them by, for models that count
                something else (M-RoPE); by default the model numbers them.
            inputs: `input_ids` (1, n) int64 or `inputs_embeds` (1, n, width), and whatever else the model takes.

        Returns:
            (n, vocabulary) float32 logits, or (1, vocabulary) with `last`.
        """
        keep = {"logits_to_keep": 1} if last else {}
        if shift is not None:
            ids = inputs["input_ids"]
            positions = torch.arange(ids.shape[1], device=ids.device) + (cache.get_seq_length() + shift)
            inputs["position_ids"] = positions.expand(3, 1, -1)
        return finite(self.model(**inputs, **{CACHE: cache}, use_cache=True, **keep).logits[0]).float()

    @torch.inference_mode()
    def log_probabilities(self, cache: Cache, logits: Tensor, tokens: Tensor, shift: int | None = None) -> Tensor:
        """Compute natural log-probabilities of the vocabulary at each place of a continuation, (n, vocabulary) float32.

        Args:
            cache: earlier tokens; it grows by all but the last of `tokens`.
            logits: (vocabulary,) float32, after what was read.
            tokens: (n,) int64, the continuation.
            shift: see `logits`.
        """
        predicted = [logits[None]]
        if len(tokens) > 1:
            predicted.append(self.logits(cache, shift=shift, input_ids=tokens[None, :-1].to(self.device)))
        return torch.cat(predicted).log_softmax(-1)

    @torch.inference_mode()
    def decode_greedily(self, cache: Cache, logits: Tensor, limit: int, shift: int | None = None) -> str:
        """Generate greedily until an end-of-text token or `limit` tokens.

        Args:
            cache: earlier tokens; it grows by all generated tokens but the last.
            logits: (vocabulary,) float32, after what was read.
            shift: see `logits`.
        """
        ends = self.model.generation_config.eos_token_id
        ends = {self.words.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        tokens: list[int] = []
        while len(tokens) < limit and (token := int(logits.argmax())) not in ends:
            tokens.append(token)
            if len(tokens) < limit:
                ids = torch.tensor([[token]], device=self.device)
                logits = self.logits(cache, shift=shift, input_ids=ids)[-1]
        return str(self.words.decode(tokens, skip_special_tokens=True))
