"""What the cache of every single KV head is worth to a language model.

A few heads carry what stands far back; most need the first tokens and the newest ones only (compare DuoAttention, Xiao
et al. 2024, arXiv 2410.10819). How much likelihood is lost when one head alone keeps no others says which is which.
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
from namm_transfer.training.namm.multi_question import Quiz

SINKS, RECENT = 4, 64
"""First and newest tokens that every head keeps."""


@dataclass
class WholeHeads(EvictionPolicy):
    """Some KV heads keep everything, all others sinks and recent tokens."""

    whole: Tensor
    """(layers, kv_heads) bool: which keep everything."""
    update_interval: int = 128
    by_head = True

    def __post_init__(self) -> None:
        self.little = Streaming(sinks=SINKS, window=RECENT, update_interval=self.update_interval)

    def select(self, view: LayerView) -> Tensor:
        """All or little, by the head."""
        heads = slice(view.head, view.head + view.positions.shape[1])
        whole = self.whole[view.layer, heads].to(view.positions.device)
        return view.real & (self.little.select(view) | whole[:, None])


def worth(
    adapter: CausalLMAdapter,
    quizzes: Sequence[Quiz],
    update_interval: int,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Mean log-probability of the answers that is lost when one head keeps sinks and recent tokens only.

    Returns:
        (layers, kv_heads) float32, on the CPU; about 0, and now and then below, where nothing is lost.
    """
    config = adapter.model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    losses = torch.zeros(1 + layers * heads, dtype=torch.float64)  # the first with no head cut
    for job in share(list(range(len(losses))), accelerator):
        whole = torch.ones(layers * heads, dtype=torch.bool)
        if job:
            whole[job - 1] = False
        policy = WholeHeads(whole.view(layers, heads), update_interval)
        with torch.inference_mode():
            said = [quiz.likelihood(adapter.model, **{CACHE: adapter.memory(policy)})[0] for quiz in quizzes]
        losses[job] = -float(torch.stack(said).mean())
        tick()
    losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu()  # one process filled each
    return (losses[1:] - losses[0]).view(layers, heads).float()


def worthiest(worth: Tensor, count: int) -> Tensor:
    """Which heads are worth most, (layers, kv_heads) bool; more than `count` only where the last ones are equal.

    Raises:
        NammTransferError: `count` is not between 1 and the number of heads.
    """
    if not 1 <= count <= worth.numel():
        raise NammTransferError(f"the {count} worthiest heads: expected 1 to {worth.numel()}, as many as the model has")
    return worth >= worth.flatten().topk(count).values[-1]
