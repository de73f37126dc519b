"""Caches of contexts (videos, long texts) that are read and compressed before the questions about them are known."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError
from namm_transfer.adapters.base import LanguageAdapter
from namm_transfer.cache.saved import describe_model, describe_policy, digest_of


class EncodedContext(Protocol):
    """The part of an encoded sample that does not depend on its question."""

    @property
    def prefix(self) -> int:
        """Number of tokens in the context; 0 if there is none."""

    @property
    def context(self) -> dict[str, Tensor]:
        """Everything that the model reads of the context, by name."""


class ContextCaches:
    """The cache of the previous sample's context; samples with the same context get copies of it.

    A copy equals the cache that reading the context again would give, so the order of questions changes no answer.

    Args:
        adapter: the model.
        folder: where caches are also kept for other runs, each as ``DIGEST.safetensors``; None keeps none.
    """

    def __init__(self, adapter: LanguageAdapter, folder: Path | None = None) -> None:
        self._adapter, self._folder = adapter, folder
        self._held: tuple[EvictionPolicy, str, MemoryCache] | None = None

    def read(self, encoded: EncodedContext, policy: EvictionPolicy) -> MemoryCache:
        """Read a sample's context, but not its question, into a cache under `policy`, and freeze that cache.

        The question is later kept in full, and does not influence which tokens of the context are kept.

        Raises:
            NammTransferError: a file in the folder is damaged, or of another model, policy or context.
        """
        if not encoded.prefix:
            return self._adapter.memory(policy)
        digest = digest_of(encoded.context)
        if self._held is None or self._held[0] is not policy or self._held[1] != digest:
            self._held = None  # before the next one takes up memory
            self._held = (policy, digest, self._filled(encoded, policy, digest))
        cache = copy.deepcopy(self._held[2])
        cache.freeze()
        return cache

    def _filled(self, encoded: EncodedContext, policy: EvictionPolicy, digest: str) -> MemoryCache:
        """Make a cache that has read the context, from a file if there is one."""
        config = self._adapter.model.config
        if self._folder is not None:
            identity = {"context": digest, "model_sha256": self._model_sha256}
            known = [identity, describe_model(config.get_text_config(decoder=True)), describe_policy(policy)]
            name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            path = self._folder / f"{name}.safetensors"
            if path.exists():
                return MemoryCache.load(path, config, policy=policy, device=self._adapter.device, identity=identity)
        cache = self._adapter.memory(policy)
        self._adapter.read_context(encoded, cache)
        if self._folder is not None:
            cache.save(path, identity=identity)
        return cache

    @cached_property
    def _model_sha256(self) -> str:
        """Digest of all weights of the model."""
        weights: dict[str, Tensor] = self._adapter.model.state_dict()
        if any(tensor.is_meta for tensor in weights.values()):
            raise NammTransferError("saved context caches need a model whose weights are all in memory, not offloaded")
        return digest_of(weights)
