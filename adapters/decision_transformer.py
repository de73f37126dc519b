"""Decision Transformers (Chen et al., 2021) in Hugging Face's format, acting from a key/value cache.

`DecisionTransformerModel.forward` has no cache path, its GPT-2 encoder has. The token order is return-to-go, state,
action, every time step; all position ids are 0 and time enters by the timestep embedding; the action is read at the
state's token. A step therefore feeds a(t-1), R(t), s(t) and reads a(t); the cached keys and values stand for the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DecisionTransformerModel
from transformers.cache_utils import Cache

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError
from namm_transfer.adapters.base import ModalityAdapter, default_device
from namm_transfer.adapters.loading import load_model
from namm_transfer.adapters.state_statistics import Statistics
from namm_transfer.cache.keyword import CACHE

KINDS = ("return", "state", "action")
"""Kinds of token in the order of a time step: position p of the cache is `KINDS[p % 3]` of time step `p // 3`."""


@dataclass
class Encoded:
    """A recorded trajectory as inputs of the encoder."""

    tokens: Tensor
    """Embeddings of R(0), s(0), a(0), R(1), s(1), ..., up to the last state: (rows, 3 steps - 1, width)."""

    @property
    def steps(self) -> int:
        """Number of time steps in the recording."""
        return (self.tokens.shape[1] + 1) // 3


@dataclass
class Recorded:
    """Observed states, actions and returns-to-go of one or more episodes of the same length."""

    states: np.ndarray
    """Unnormalised states, (rows, steps, state_size) float."""
    actions: np.ndarray
    """Actions, (rows, steps, action_size) float; the last one is ignored."""
    returns_to_go: np.ndarray
    """Unscaled returns-to-go, (rows, steps) float."""


class DecisionTransformerAdapter(ModalityAdapter):
    """Acts with a Decision Transformer from a key/value cache under an eviction policy.

    `answer` is open loop: it gives the actions at every state of a recording. `play` is closed loop: it
    acts step by step in environments.
    """

    model: DecisionTransformerModel

    def __init__(self, model: DecisionTransformerModel, statistics: Statistics) -> None:
        if statistics.state_mean.shape != (model.config.state_dim,):
            raise NammTransferError(
                f"the model takes states of {model.config.state_dim} numbers, "
                f"the state statistics have {statistics.state_mean.shape[0]}"
            )
        self.model = model.eval()
        self.statistics = statistics

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        statistics: Statistics | None = None,
    ) -> DecisionTransformerAdapter:
        """Load from a folder or a hub id, safetensors or PyTorch's own format without pickled objects.

        Args:
            source, dtype, device, device_map: see `ModalityAdapter.load`.
            statistics: used only if the model has none of its own.

        Raises:
            NammTransferError: nothing to load there, another kind of model, missing or unexpected weights, no
                statistics, or statistics of another size.
        """
        name = str(source)
        options = {"dtype": dtype or "auto", "device_map": device_map, "attn_implementation": "memory"}
        model = load_model(DecisionTransformerModel, name, "Decision Transformer", weights_only=True, **options)
        if device_map is None:
            model.to(device or default_device())
        size = model.config.state_dim
        if statistics is None:
            return cls(model, Statistics.read(name, size))
        return cls(model, Statistics.find(name, size) or statistics)

    @torch.inference_mode()
    def encode(self, sample: Recorded, first: int = 0) -> Encoded:
        """Encode a recording that starts at time step `first` as tokens, up to its last state.

        Raises `NammTransferError` for shapes or time steps the model cannot take.
        """
        model, (rows, steps) = self.model, sample.returns_to_go.shape
        found = (sample.states.shape, sample.actions.shape)
        expected = ((rows, steps, model.config.state_dim), (rows, steps, model.config.act_dim))
        if found != expected:
            raise NammTransferError(f"states and actions have shapes {found}, the model expects {expected}")
        if first + steps > model.config.max_ep_len:
            raise NammTransferError(f"the model has {model.config.max_ep_len} time steps, the episode {first + steps}")
        returns = self._tensor(sample.returns_to_go[..., None] / self.statistics.return_scale)
        states = self._tensor((sample.states - self.statistics.state_mean) / self.statistics.state_std)
        embedded = (
            model.embed_return(returns),
            model.embed_state(states),
            model.embed_action(self._tensor(sample.actions)),
        )
        time = model.embed_timestep(torch.arange(first, first + steps, device=self.device))[:, None]
        return Encoded(model.embed_ln(torch.stack(embedded, dim=2) + time).flatten(1, 2)[:, :-1])

    @torch.inference_mode()
    def answer(self, encoded: Encoded, cache: Cache | None) -> Tensor:
        """Compute the model's actions (rows, steps, action_size) at every recorded state in one call of the encoder."""
        return self.actions(encoded.tokens, cache)[:, 1::3]

    def example(self) -> Recorded:
        """Make a synthetic recording of one episode with 200 time steps."""
        config, generator = self.model.config, np.random.default_rng(0)
        noise = generator.normal(size=(1, 200, config.state_dim))
        states = self.statistics.state_mean + self.statistics.state_std * noise
        actions = generator.uniform(-1, 1, (1, 200, config.act_dim))
        return Recorded(states, actions, self.statistics.return_scale * np.linspace(2, 0, 200)[None])

    def kept(self, cache: MemoryCache, encoded: Encoded, row: int = 0) -> dict[str, np.ndarray]:
        """Return `kept`, (layers, steps, 3); see `kept_tokens`."""
        return {"kept": kept_tokens(cache, encoded.steps, row)}

    def play(
        self, memory: Cache | EvictionPolicy | None, target_returns: Sequence[float], window: int | None = None
    ) -> Stepper:
        """Start one episode for each target return.

        Whole-episode context by default, with `memory` the cache that holds it; with `window`, the last so many time
        steps are computed anew for every action, under the policy `memory` or, if it is None, without a cache.
        """
        return Stepper(self, memory, target_returns, window)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(self.device, self.dtype)

    def actions(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        """Run encoder and action head: tokens (rows, n, width) -> (rows, n, action_size) float32."""
        positions = torch.zeros(tokens.shape[:2], dtype=torch.long, device=self.device)
        mask = None if cache is not None else torch.ones_like(positions)  # without either, zeros would mean packed rows
        output = self.model.encoder(
            inputs_embeds=tokens,
            attention_mask=mask,
            position_ids=positions,
            **{CACHE: cache},
            use_cache=cache is not None,
        )
        return self.model.predict_action(output.last_hidden_state).float()


class Stepper:
    """Several episodes played side by side. The return-to-go falls by each reward."""

    def __init__(
        self,
        adapter: DecisionTransformerAdapter,
        memory: Cache | EvictionPolicy | None,
        target_returns: Sequence[float],
        window: int | None,
    ) -> None:
        if (window is None) != isinstance(memory, Cache):
            raise NammTransferError("whole-episode context needs a cache, a window needs a policy or None")
        self.adapter, self.memory, self.window = adapter, memory, window
        self.cache = memory if isinstance(memory, Cache) else None
        self.steps = 0
        self._returns = np.asarray(target_returns, dtype=np.float64)
        if not np.isfinite(self._returns).all():
            raise NammTransferError(f"target returns {list(target_returns)}: expected finite numbers")
        self._seen: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=window or 2)
        self._taken: deque[np.ndarray] = deque(maxlen=window or 2)

    @property
    def looked_at(self) -> int:
        """Number of time steps in the context of the last action, its own included."""
        return min(self.steps, self.window or self.steps)

    @torch.inference_mode()
    def act(self, states: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Compute actions (rows, action_size) float32 from states (rows, state_size) and the last rewards (rows,).

        `cache` is then the memory the actions were read from: the episode's, or this window's own.
        """
        self._returns = self._returns - rewards
        self._seen.append((states, self._returns))
        self._taken.append(np.zeros((len(states), self.adapter.model.config.act_dim), dtype=np.float32))
        recent = Recorded(
            states=np.stack([states for states, _ in self._seen], axis=1),
            actions=np.stack(self._taken, axis=1),
            returns_to_go=np.stack([returns for _, returns in self._seen], axis=1),
        )
        self.steps += 1
        tokens = self.adapter.encode(recent, first=self.steps - len(self._seen)).tokens
        if isinstance(self.memory, EvictionPolicy):
            self.cache = self.adapter.memory(self.memory)
        elif self.window is None and self.steps > 1:
            tokens = tokens[:, 2:]  # the return and the state of the step before are in the memory already
        action = self.adapter.actions(tokens, self.cache)[:, -1].cpu().numpy()
        self._taken[-1] = action
        return action


def kept_tokens(cache: MemoryCache, steps: int, row: int) -> np.ndarray:
    """Compute the share of heads that hold return, state and action of each time step, (layers, steps, 3) float32.

    The value is 0 for the action of the last step, which the model has not seen.
    """
    held = np.zeros((len(cache.layers), 3 * steps), dtype=np.float32)
    for layer, shares in enumerate(held):
        heads = cache.positions(layer)[row].cpu().numpy()
        for head in heads:
            shares[head[head >= 0]] += 1 / len(heads)
    return held.reshape(-1, steps, 3)
