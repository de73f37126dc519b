"""Scores of many members on many prompts, spread over processes.

All members read the same prompt, and nothing is evicted before the first update. So the first `update_interval` tokens
go through the model once a prompt; the members start from copies of that cache, several as the rows of one batch. What
a member costs is the rest of the prompt only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter, EncodedPrompt
from namm_transfer.cache import MemoryCache
from namm_transfer.evolution.config import EvolutionConfig
from namm_transfer.evolution.population import population
from namm_transfer.evolution.statistics import Moments, Recorder
from namm_transfer.evolution.tasks import Prompt
from namm_transfer.namm import NAMM
from namm_transfer.policies import FullCache
from namm_transfer.policy import EvictionPolicy


class Observer(NAMM):
    """Watches attention as a NAMM does and never acts: the policy of the part all members share."""

    evicts = False


@dataclass(frozen=True)
class Scores:
    """What members scored on prompts, and the full cache beside them."""

    families: tuple[str, ...]
    """(prompts,) each prompt's family"""
    logprob: np.ndarray
    """(prompts, members) mean log-probability of the answer's tokens"""
    exact: np.ndarray
    """(prompts, members) 1 where the answer is exactly right"""
    kept: np.ndarray
    """(prompts, members) tokens held over tokens seen when the answer begins"""
    full_logprob: np.ndarray
    """(prompts,)"""
    full_exact: np.ndarray
    """(prompts,)"""

    def fitness(self, config: EvolutionConfig) -> np.ndarray:
        """Fitness of each member, (members,); see `EvolutionConfig.fitness`, `price` and `allowed`."""
        parts = []
        for family in dict.fromkeys(self.families):
            own = [i for i, name in enumerate(self.families) if name == family]
            if config.fitness == "exact":
                parts.append(self.exact[own].mean(0) / (self.full_exact[own].mean() + 1e-7))
            else:
                parts.append((self.logprob[own] - self.full_logprob[own, None]).mean(0))
        return np.mean(parts, axis=0) - config.price * np.maximum(self.kept.mean(0) - config.allowed, 0)


def shared_prefix(adapter: CausalLMAdapter, encoded: EncodedPrompt, config: EvolutionConfig) -> MemoryCache:
    """A cache that has read the first `update_interval` tokens and waits for its first update."""
    cache = adapter.memory(Observer(config.update_interval, attention_dtype=config.attention_dtype))
    adapter.read(encoded, cache, min(config.update_interval, len(encoded.tokens) - 1))
    return cache


@torch.inference_mode()
def fork(prefix: MemoryCache, policy: EvictionPolicy, rows: int) -> MemoryCache:
    """A copy of a shared prefix as `rows` equal rows under another policy, which acts at once if an update is due."""
    cache = copy.deepcopy(prefix)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    cache.policy = policy
    for layer in cache.layers:
        layer.policy = policy
        if policy.evicts:
            layer.evict()
    return cache


def evaluate(
    adapter: CausalLMAdapter,
    prompts: Sequence[Prompt],
    vectors: np.ndarray,
    statistics: Moments,
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Scores:
    """Scores of every vector on every prompt, the same in every process and for every number of processes.

    Args:
        vectors: (members, 4172).
        tick: called after every batch of members on this process.
    """
    members = torch.as_tensor(vectors, dtype=torch.float32, device=adapter.device)
    batches = list(members.split(config.batch))
    jobs = [(p, m) for p in range(len(prompts)) for m in range(len(batches))]
    table = torch.zeros(len(prompts), len(members) + 1, 3, dtype=torch.float64)
    options = config.memory
    mean, var = statistics.mean.float(), statistics.var.float()
    last = -1
    for p, m in share(jobs, accelerator):  # consecutive ones share a prompt
        if p != last:
            encoded = adapter.encode(prompts[p])
            prefix, last = shared_prefix(adapter, encoded, config), p
        if m == 0:
            full = fork(prefix, FullCache(config.update_interval), 1)
            table[p, -1:] = answers(adapter, encoded, full, 1)
        policy = population(batches[m], mean=mean, var=var, **options).to(adapter.device)
        first = m * config.batch
        rows = len(batches[m])
        table[p, first : first + rows] = answers(adapter, encoded, fork(prefix, policy, rows), rows)
        tick()
    table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()  # every cell was filled by one process
    logprob, exact, kept = table.numpy().transpose(2, 0, 1)
    names = tuple(prompt.family for prompt in prompts)
    return Scores(names, logprob[:, :-1], exact[:, :-1], kept[:, :-1], logprob[:, -1], exact[:, -1])


def estimate_statistics(
    adapter: CausalLMAdapter,
    prompts: Sequence[Prompt],
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Moments:
    """Statistics of the full cache over all layers, heads, tokens, updates and prompts (spec section 4)."""
    rows = torch.zeros(len(prompts), len(Moments().to_row()), dtype=torch.float64)
    for p in share(list(range(len(prompts))), accelerator):
        recorder = Recorder(config.update_interval, attention_dtype=config.attention_dtype)
        adapter.read(adapter.encode(prompts[p]), adapter.memory(recorder))
        rows[p] = recorder.moments.to_row()
        tick()
    return Moments.from_rows(accelerator.reduce(rows.to(accelerator.device), "sum").cpu())


def held(adapter: CausalLMAdapter, prompts: Sequence[Prompt], namm: NAMM, accelerator: Accelerator) -> float:
    """Mean share of their tokens that a cache holds when it has read these prompts, the same in every process."""
    shares = torch.zeros(len(prompts), dtype=torch.float64)
    for p in share(list(range(len(prompts))), accelerator):
        cache = adapter.memory(namm)
        adapter.read(adapter.encode(prompts[p]), cache)
        shares[p] = cache.kept_share()[0]
    return float(accelerator.reduce(shares.to(accelerator.device), "sum").mean())


def answers(adapter: CausalLMAdapter, encoded: EncodedPrompt, cache: MemoryCache, rows: int) -> Tensor:
    """What `rows` equal rows that read a prompt say, (rows, 3) float64: log-probability, exactness, kept share."""
    logits = adapter.read(encoded, cache, rows=rows)
    kept = cache.kept_share()
    said = adapter.judge(encoded, cache, logits)
    # Rounded, so that the last bits of the arithmetic, which may depend on where memory lies, do not reach the search.
    table = [[round(a.logprob, 4), float(a.exact), share] for a, share in zip(said, kept, strict=True)]
    return torch.tensor(table, dtype=torch.float64)


def share(jobs: list[Any], accelerator: Accelerator) -> list[Any]:
    """This process's run of consecutive jobs."""
    count, index = accelerator.num_processes, accelerator.process_index
    return jobs[len(jobs) * index // count : len(jobs) * (index + 1) // count]
