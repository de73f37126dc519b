"""Head importance: log-probability that answers lose when one KV head alone evicts the middle of the text.

A few heads, retrieval heads, carry information from far back; most are streaming heads that need the first and the
newest tokens only (DuoAttention, Xiao et al. 2024, arXiv 2410.10819).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.errors import NammTransferError
from namm_transfer.policies import Streaming
from namm_transfer.policy import EvictionPolicy, LayerView
from namm_transfer.training.namm.fitness import share
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood

SINKS, RECENT = 4, 64
"""First and newest tokens that a streaming head keeps."""


@dataclass
class RetrievalHeads(EvictionPolicy):
    """Some KV heads keep everything; all others are streaming heads, which keep sinks and recent tokens."""

    retrieval: Tensor
    """(layers, kv_heads) bool: the heads that keep everything."""
    update_interval: int = 128
    by_head = True

    def __post_init__(self) -> None:
        self.streaming = Streaming(sinks=SINKS, window=RECENT, update_interval=self.update_interval)

    def select(self, view: LayerView) -> Tensor:
        """Keep all real tokens of a retrieval head, and sinks and recent tokens of the others."""
        retrieval = self.retrieval[view.layer].to(view.heads.device)[view.heads]
        return view.real & (self.streaming.select(view) | retrieval[..., None])


def measure_importance(
    adapter: CausalLMAdapter,
    prompts: Sequence[MultiQuestionPrompt],
    update_interval: int,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Measure the mean log-probability that the answers lose when one head becomes a streaming head.

    Returns:
        (layers, kv_heads) float32 on the CPU; near 0, sometimes below, for an unimportant head.
    """
    config = adapter.model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    losses = torch.zeros(1 + layers * heads, dtype=torch.float64)  # the first with every head a retrieval head
    for job in share(list(range(len(losses))), accelerator):
        retrieval = torch.ones(layers * heads, dtype=torch.bool)
        if job:
            retrieval[job - 1] = False
        policy = RetrievalHeads(retrieval.view(layers, heads), update_interval)
        with torch.inference_mode():
            found = [likelihood(adapter.model, [p], (), **{CACHE: adapter.memory(policy)})[0] for p in prompts]
        losses[job] = -float(torch.cat(found).mean())
        tick()
    losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu()  # one process filled each
    return (losses[1:] - losses[0]).view(layers, heads).float()


def most_important(importance: Tensor, count: int) -> Tensor:
    """Mark the most important heads, (layers, kv_heads) bool; more than `count` only if the last ones tie.

    Raises:
        NammTransferError: `count` is not between 1 and the number of heads.
    """
    if not 1 <= count <= importance.numel():
        raise NammTransferError(
            f"{count} important heads: expected 1 to {importance.numel()}, as many as the model has"
        )
    return importance >= importance.flatten().topk(count).values[-1]
