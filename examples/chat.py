"""Read a long document once into half the cache, then chat about it.

python examples/chat.py [MODEL]     # a folder, a hub id, a .gguf file or "smollm2"
"""

import sys

import torch

from namm_transfer import NAMM, MemoryCache
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE

adapter = CausalLMAdapter.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
model, tokenizer = adapter.model, adapter.tokenizer

cache = MemoryCache(model.config, policy=NAMM.from_pretrained("namm-text", update_interval=128))
document = "The harbour log, day by day. " + "The wind was calm and nothing came in. " * 60
document += "On the ninth the Albatross brought salt. " + "The wind was calm and nothing came in. " * 40
text = document
for question in ("Question: What did the Albatross bring? Answer:", " Question: How was the wind? Answer:"):
    text += question
    tokens = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():  # tokens the cache has seen are not read again
        output = model.generate(tokens, **{CACHE: cache}, max_new_tokens=8, do_sample=False)
    reply = tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)
    text += reply
    report = cache.report()
    print(f"{question.strip()}{reply}")
    print(f"  {report.row(0).kept_share:.0%} of {report.row(0).seen} tokens held, {report.bytes / 2**20:.1f} MiB")
