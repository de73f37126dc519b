"""Write an eviction policy: keep the tokens that ever received the single largest attention weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import LayerView, MemoryCache, check_policy
from namm_transfer.cache.keyword import CACHE
from namm_transfer.policies import ScoredPolicy


@dataclass
class PeakAttention(ScoredPolicy):
    """Keeps the tokens with the largest attention weight they ever received."""

    needs_attention: ClassVar[bool] = True

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"peak": torch.zeros(batch, heads, tokens, device=device)}

    def observe(self, state, weights, tokens_seen, query_lengths) -> None:  # weights: (batch, heads, queries, tokens)
        state["peak"] = torch.maximum(state["peak"], weights.amax(2))

    def scores(self, view: LayerView) -> torch.Tensor:
        return view.state["peak"]


policy = PeakAttention(keep=0.25, update_interval=64)
check_policy(policy)  # padding, batches, chunks, beams, eviction against a dense mask: raises if a promise is broken

torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
model = LlamaForCausalLM._from_config(config, attn_implementation="memory").eval()
cache = MemoryCache(config, policy=policy)
model(torch.randint(0, 100, (1, 256)), **{CACHE: cache})
print("tokens held in each layer and head:", cache.report().kept[:, 0].tolist())
