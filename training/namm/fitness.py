"""Scores of many members on many quizzes (a prompt is a quiz with one question), spread over processes.

All members read the same text, and nothing is evicted before the first update. So the first `update_interval` tokens go
through the model once a quiz; the members start from copies of that cache, several as the rows of one batch. What a
member costs is the rest of the text, however many questions follow it.
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

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.namm import NAMM
from namm_transfer.policies import FullCache
from namm_transfer.policy import EvictionPolicy
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.population import population
from namm_transfer.training.namm.statistics import Moments, Recorder


class Observer(NAMM):
    """Watches attention as a NAMM does and never acts: the policy of the part all members share."""

    evicts = False


@dataclass(frozen=True)
class Scores:
    """What members scored on quizzes, and the full cache beside them."""

    families: tuple[str, ...]
    """(quizzes,) each one's family"""
    logprob: np.ndarray
    """(quizzes, members) mean over answers of the mean log-probability of their tokens"""
    exact: np.ndarray
    """(quizzes, members) share of the answers that are exactly right"""
    kept: np.ndarray
    """(quizzes, members) tokens held over tokens seen when the first answer begins"""
    full_logprob: np.ndarray
    """(quizzes,)"""
    full_exact: np.ndarray
    """(quizzes,)"""

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

    def signal(self, config: EvolutionConfig) -> float:
        """How much of the members' differences is theirs: 1 if another draw of quizzes would show the same ones, 0 on
        average if the members are all as good and only chance tells them apart. NaN if it cannot be said.

        The factor by which James and Stein shrink means, 1 - (members - 3) / (members - 1) / F, where F is that of
        members in a two-way analysis of variance, quizzes by members, with the price counted a quiz at a time. A single
        generation's wavers, and may be negative; look at means over ten.
        """
        price = config.price * np.maximum(self.kept - config.allowed, 0)
        table = (self.exact if config.fitness == "exact" else self.logprob) - price
        quizzes, members = table.shape
        between = quizzes * table.mean(0).var(ddof=1)
        if quizzes < 2 or members < 4 or not between > 0:
            return float("nan")
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        noise = (rest**2).sum() / ((quizzes - 1) * (members - 1))
        return float(1 - (members - 3) / (members - 1) * noise / between)


def shared_prefix(adapter: CausalLMAdapter, quiz: Quiz, config: EvolutionConfig) -> MemoryCache:
    """A cache that has read the first `update_interval` tokens and waits for its first update."""
    cache = adapter.memory(Observer(config.update_interval, attention_dtype=config.attention_dtype))
    quiz.read(adapter.model, cache, min(config.update_interval, quiz.text - 1))
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
    quizzes: Sequence[Quiz],
    vectors: np.ndarray,
    statistics: Moments,
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Scores:
    """Scores of every vector on every quiz, the same in every process and for every number of processes.

    Args:
        vectors: (members, 4172).
        tick: called after every batch of members on this process.
    """
    members = torch.as_tensor(vectors, dtype=torch.float32, device=adapter.device)
    batches = list(members.split(config.batch))
    jobs = [(q, m) for q in range(len(quizzes)) for m in range(len(batches))]
    table = torch.zeros(len(quizzes), len(members) + 1, 3, dtype=torch.float64)
    options = config.memory
    mean, var = statistics.mean.float(), statistics.var.float()
    last = -1
    for q, m in share(jobs, accelerator):  # consecutive ones share a quiz
        quiz = quizzes[q]
        if q != last:
            prefix, last = shared_prefix(adapter, quiz, config), q
        if m == 0:
            full = fork(prefix, FullCache(config.update_interval), 1)
            table[q, -1:] = answers(adapter, quiz, full, 1)
        policy = population(batches[m], mean=mean, var=var, **options).to(adapter.device)
        first = m * config.batch
        rows = len(batches[m])
        table[q, first : first + rows] = answers(adapter, quiz, fork(prefix, policy, rows), rows)
        tick()
    table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()  # every cell was filled by one process
    logprob, exact, kept = table.numpy().transpose(2, 0, 1)
    names = tuple(quiz.family for quiz in quizzes)
    return Scores(names, logprob[:, :-1], exact[:, :-1], kept[:, :-1], logprob[:, -1], exact[:, -1])


def estimate_statistics(
    adapter: CausalLMAdapter,
    quizzes: Sequence[Quiz],
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Moments:
    """Statistics of the full cache over all layers, heads, tokens, updates and texts (spec section 4)."""
    rows = torch.zeros(len(quizzes), len(Moments().to_row()), dtype=torch.float64)
    for q in share(list(range(len(quizzes))), accelerator):
        recorder = Recorder(config.update_interval, attention_dtype=config.attention_dtype)
        quizzes[q].read(adapter.model, adapter.memory(recorder), quizzes[q].text)
        rows[q] = recorder.moments.to_row()
        tick()
    return Moments.from_rows(accelerator.reduce(rows.to(accelerator.device), "sum").cpu())


def held(adapter: CausalLMAdapter, quizzes: Sequence[Quiz], namm: NAMM, accelerator: Accelerator) -> float:
    """Mean share of their tokens that a cache holds when the first answer begins, the same in every process."""
    shares = torch.zeros(len(quizzes), dtype=torch.float64)
    for q in share(list(range(len(quizzes))), accelerator):
        cache = adapter.memory(namm)
        quizzes[q].read(adapter.model, cache, quizzes[q].text)
        shares[q] = cache.kept_share()[0]
    return float(accelerator.reduce(shares.to(accelerator.device), "sum").mean())


def answers(adapter: CausalLMAdapter, quiz: Quiz, cache: MemoryCache, rows: int) -> Tensor:
    """How `rows` equal rows do in a quiz, (rows, 3) float64: log-probability, exactness, kept share."""
    logprob, exact, kept = quiz.judge(adapter.model, cache, rows)
    # Rounded, so that the last bits of the arithmetic, which may depend on where memory lies, do not reach the search.
    said = logprob.double().cpu().round(decimals=4)
    return torch.stack([said, exact.cpu(), torch.tensor(kept, dtype=torch.float64)], dim=1)


def share(jobs: list[Any], accelerator: Accelerator) -> list[Any]:
    """This process's run of consecutive jobs."""
    count, index = accelerator.num_processes, accelerator.process_index
    return jobs[len(jobs) * index // count : len(jobs) * (index + 1) // count]
