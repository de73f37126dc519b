"""Compare policies on a text of one's own: how well its second half is predicted from a small cache of the first.

python examples/compare_text.py FILE [MODEL]     # a folder, a hub id, a .gguf file or "smollm2"
"""

import sys
from pathlib import Path

import torch

from namm_transfer import policies
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE

adapter = CausalLMAdapter.load(sys.argv[2] if len(sys.argv) > 2 else "smollm2")
tokens = adapter.tokenizer(Path(sys.argv[1]).read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :1024]
first, second = tokens.tensor_split(2, dim=1)

print(f"{'policy':<24}{'held':>6}{'nats a token':>14}")
for spec in ("full", "namm", "h2o:keep=0.5", "snapkv:keep=0.5", "streaming:keep=0.5"):
    cache = adapter.memory(policies.make(spec, update_interval=128))
    with torch.inference_mode():
        adapter.model(first, **{CACHE: cache}, logits_to_keep=1)
        held = cache.report().row(0).kept_share
        logits = adapter.model(second, **{CACHE: cache}).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], second[0, 1:])
    print(f"{spec:<24}{held:>6.0%}{loss:>14.3f}")
