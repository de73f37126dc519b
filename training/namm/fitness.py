"""Scores of many members of the search on many prompts, spread over processes.

All members read the same text, and nothing is evicted before the first update. So the first `update_interval` tokens of
a prompt go through the model once; the members start from copies of that cache, several as the rows of one batch. What
a member costs is the rest of the text, however many questions follow it.
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
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.policies import FullCache
from namm_transfer.policy import EvictionPolicy
from namm_transfer.scorers import scorer
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt
from namm_transfer.training.namm.statistics import MomentsRecorder


class Observer(NAMM):
    """Accumulates spectra as a NAMM does and never evicts: the policy of the part that all members share."""

    evicts = False


class StackedNAMM(NAMM):
    """Many NAMMs as one policy; see `stacked_namm`."""

    members = 1

    def score(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Run each member's network on its own row, whose heads may be shown as rows that follow each other."""
        shape = x.shape[:-1]
        by_member = (self.members, -1) if self.members > 1 else shape[:2]
        real = None if real is None else real.reshape(*by_member, shape[-1])
        return super().score(x.reshape(*by_member, *x.shape[-2:]), real).reshape(shape)


@dataclass(frozen=True)
class Scores:
    """Scores of the members and of the full cache on prompts."""

    families: tuple[str, ...]
    """Task family of each prompt, (prompts,)."""
    logprob: np.ndarray
    """Mean over answers of the mean log-probability of their tokens, (prompts, members)."""
    kept: np.ndarray
    """Tokens kept over tokens seen when the first answer begins, (prompts, members)."""
    full_logprob: np.ndarray
    """Log-probability under the full cache, (prompts,)."""

    def fitness(self, penalty: float) -> np.ndarray:
        """Compute the fitness, (members,): log-probability minus the full cache's, averaged over prompts, then over
        families, minus the penalty times the kept share."""
        names = np.array(self.families)
        gain = self.logprob - self.full_logprob[:, None]
        parts = [gain[names == family].mean(0) for family in dict.fromkeys(self.families)]
        return np.mean(parts, axis=0) - penalty * self.kept.mean(0)

    def signal(self, penalty: float) -> float:
        """Compute how reliable the members' differences are: 1 if other prompts would show the same ones, 0 on
        average if all members are equally good and differ by chance alone. NaN if it is undefined.

        The factor by which James and Stein shrink means, 1 - (members - 3) / (members - 1) / F, with F of the members
        in a two-way analysis of variance, prompts by members. One generation's value is noisy and may be negative:
        look at means over ten.
        """
        table = self.logprob - penalty * self.kept
        prompts, members = table.shape
        between = prompts * table.mean(0).var(ddof=1)
        if prompts < 2 or members < 4 or not between > 0:
            return float("nan")
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        noise = (rest**2).sum() / ((prompts - 1) * (members - 1))
        return float(1 - (members - 3) / (members - 1) * noise / between)


def stacked_namm(vectors: Tensor, statistics: Moments, **options: Any) -> NAMM:
    """Make one policy of many NAMMs: row b of a batch is scored with the parameters of member b.

    Its parameters carry two leading axes, members and heads (1), and keep the gradient of `vectors`. It can neither be
    saved nor serve another batch size, unless it has one member: then its parameters have their ordinary shapes.

    Args:
        vectors: (members, size) flat vectors.
        statistics: normalisation statistics, the same for all.
        options: as for `NAMM`.
    """
    form = scorer(options.get("scorer", "published"))
    namm = StackedNAMM.from_vector(torch.zeros(form.size), mean=statistics.mean, var=statistics.var, **options)
    namm = namm.to(vectors.device)
    namm.members = len(vectors)
    for name, part in form.split(vectors.float()).items():
        layer, kind = name.split(".")
        shape = form.shapes[name]
        # A bias gets an axis for the tokens as well: (members, heads, tokens, outputs).
        stacked = part.reshape(*([len(vectors)] + [1] * (3 - len(shape)) if len(vectors) > 1 else []), *shape)
        delattr(getattr(namm, layer), kind)  # a parameter cannot carry a gradient from elsewhere
        setattr(getattr(namm, layer), kind, stacked)
    return namm


def shared_prefix(adapter: CausalLMAdapter, prompt: MultiQuestionPrompt, config: EvolutionConfig) -> MemoryCache:
    """Read the first `update_interval` tokens into a cache that then waits for its first update."""
    cache = adapter.memory(Observer(config.update_interval, attention_dtype=config.attention_dtype))
    prompt.read(adapter.model, cache, min(config.update_interval, prompt.text - 1))
    return cache


@torch.inference_mode()
def fork(prefix: MemoryCache, policy: EvictionPolicy, rows: int) -> MemoryCache:
    """Copy a shared prefix to `rows` equal rows under another policy, which acts at once if an update is due."""
    cache = copy.deepcopy(prefix)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    cache.policy = policy
    for layer in cache.attention_layers:
        layer.policy = policy
        if policy.evicts:
            layer.evict()
    return cache


def evaluate(
    adapter: CausalLMAdapter,
    prompts: Sequence[MultiQuestionPrompt],
    vectors: np.ndarray,
    statistics: Moments,
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Scores:
    """Score every vector on every prompt; the result does not depend on the process or the number of processes.

    Args:
        vectors: (members, size).
        tick: called after every batch of members on this process.
    """
    members = torch.as_tensor(vectors, dtype=torch.float32, device=adapter.device)
    batches = list(members.split(config.batch))
    jobs = [(p, m) for p in range(len(prompts)) for m in range(len(batches))]
    table = torch.zeros(len(prompts), len(members) + 1, 2, dtype=torch.float64)
    last = -1
    for p, m in share(jobs, accelerator):  # consecutive ones share a prompt
        prompt = prompts[p]
        if p != last:
            prefix, last = shared_prefix(adapter, prompt, config), p
        if m == 0:
            table[p, -1:] = _score(adapter, prompt, fork(prefix, FullCache(config.update_interval), 1), 1)
        policy = stacked_namm(batches[m], statistics, **config.memory)
        first, rows = m * config.batch, len(batches[m])
        table[p, first : first + rows] = _score(adapter, prompt, fork(prefix, policy, rows), rows)
        tick()
    table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()  # one process filled each cell
    logprob, kept = table.numpy().transpose(2, 0, 1)
    return Scores(tuple(prompt.family for prompt in prompts), logprob[:, :-1], kept[:, :-1], logprob[:, -1])


def estimate_statistics(
    adapter: CausalLMAdapter,
    prompts: Sequence[MultiQuestionPrompt],
    config: EvolutionConfig,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Moments:
    """Estimate full-cache statistics over all layers, heads, tokens, updates and prompts (spec section 4)."""
    rows = torch.zeros(len(prompts), len(Moments().to_row()), dtype=torch.float64)
    for p in share(list(range(len(prompts))), accelerator):
        recorder = MomentsRecorder(config.update_interval, config.attention_dtype, config.scorer)
        prompts[p].read(adapter.model, adapter.memory(recorder), prompts[p].text)
        rows[p] = recorder.moments.to_row()
        tick()
    return Moments.from_rows(accelerator.reduce(rows.to(accelerator.device), "sum").cpu())


def kept_share(
    adapter: CausalLMAdapter, prompts: Sequence[MultiQuestionPrompt], namm: NAMM, accelerator: Accelerator
) -> float:
    """Compute the mean share of tokens kept when the first answer begins, the same in every process."""
    shares = torch.zeros(len(prompts), dtype=torch.float64)
    for p in share(list(range(len(prompts))), accelerator):
        cache = adapter.memory(namm)
        prompts[p].read(adapter.model, cache, prompts[p].text)
        shares[p] = cache.kept_share()[0]
    return float(accelerator.reduce(shares.to(accelerator.device), "sum").mean())


def share(jobs: list[Any], accelerator: Accelerator) -> list[Any]:
    """Return this process's run of consecutive jobs."""
    count, index = accelerator.num_processes, accelerator.process_index
    return jobs[len(jobs) * index // count : len(jobs) * (index + 1) // count]


def _score(adapter: CausalLMAdapter, prompt: MultiQuestionPrompt, cache: MemoryCache, rows: int) -> Tensor:
    """Compute answer log-probability and kept share of `rows` equal rows on a prompt, (rows, 2) float64."""
    logprob, kept = prompt.score(adapter.model, cache, rows)
    # Rounded, so that the last bits of the arithmetic, which may depend on where memory lies, do not reach the search.
    rounded = logprob.double().cpu().round(decimals=4)
    return torch.stack([rounded, torch.tensor(kept, dtype=torch.float64)], dim=1)
