"""Head importance: log-probability that answers lose when one KV head alone evicts the middle of the text.

A few heads, retrieval heads, carry information from far back; most are streaming heads that need the first and the
newest tokens only (DuoAttention, Xiao et al. 2024, arXiv 2410.10819).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic
from namm_transfer.policies import Streaming
from namm_transfer.policy import EvictionPolicy, LayerView
from namm_transfer.training.loop import check_identity
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
    among: Tensor | None = None,
) -> Tensor:
    """Measure the mean log-probability that the answers lose when one head becomes a streaming head.

    Args:
        among: (layers, kv_heads) bool, which heads are retrieval heads while the others are measured; all if left out.
            A streaming head's importance is what the answers gain when it becomes a retrieval head.

    Returns:
        (layers, kv_heads) float32 on the CPU; near 0, sometimes below, for an unimportant head.
    """
    config = adapter.model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    start = torch.ones(layers * heads, dtype=torch.bool) if among is None else among.flatten()
    losses = torch.zeros(1 + layers * heads, dtype=torch.float64)  # the first with no head changed
    for job in share(list(range(len(losses))), accelerator):
        retrieval = start.clone()
        if job:
            retrieval[job - 1] ^= True
        policy = RetrievalHeads(retrieval.view(layers, heads), update_interval)
        with torch.inference_mode():
            found = [likelihood(adapter.model, [p], (), **{CACHE: adapter.memory(policy)})[0] for p in prompts]
        losses[job] = -float(torch.cat(found).mean())
        tick()
    losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu()  # one process filled each
    lost = (losses[1:] - losses[0]) * torch.where(start, 1.0, -1.0)
    return lost.view(layers, heads).float()


def recorded_importance(
    path: Path,
    identity: Mapping[str, Any],
    adapter: CausalLMAdapter,
    prompts: Sequence[MultiQuestionPrompt],
    update_interval: int,
    accelerator: Accelerator,
    tick: Callable[[], object] = lambda: None,
    among: Tensor | None = None,
) -> Tensor:
    """Read the importance in `path`, or measure it and write it there: it takes long, and a run may be killed after it.

    Args:
        identity: all that decides the result.

    Raises:
        NammTransferError: the file was made with another identity, or is something else.
    """
    if not path.exists():
        found = measure_importance(adapter, prompts, update_interval, accelerator, tick, among)
        if accelerator.is_main_process:
            write_atomic(path, save({"importance": found}, metadata={"identity": json.dumps(identity, sort_keys=True)}))
        accelerator.wait_for_everyone()
        return found
    try:
        with safe_open(path, framework="pt") as file:
            check_identity(path, json.loads((file.metadata() or {})["identity"]), identity)
            stored: Tensor = file.get_tensor("importance")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise NammTransferError(f"{path} holds no importance of heads: {str(error).splitlines()[0]}") from error
    return stored


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
