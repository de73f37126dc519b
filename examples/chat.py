"""Shrink a chat's cache: a long document is read once, most of it is evicted, and two questions are asked about it.

python examples/chat.py [MODEL] [FILE]     # a folder, a hub id, a .gguf file or "smollm2"; a text of one's own
"""

import sys
from pathlib import Path

import torch

from namm_transfer import NAMM, MemoryCache
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE

adapter = CausalLMAdapter.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
model, tokenizer = adapter.model, adapter.tokenizer
week = (
    "Monday. The wind turned north and two boats stayed in. Tuesday. Fog until noon; the lamp was lit by day. "
    "Wednesday. The baker's daughter was married. Thursday. Rain, and a wall fell down. Friday. The price of flour "
    "rose again. "
)
log = f"The harbour log. {week * 4}The Albatross brought salt from Cadiz. {week * 10}"
document = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else log
cache = MemoryCache(model.config, policy=NAMM.from_pretrained("namm-text", update_interval=128))
chat = []
for question in ("What did the Albatross bring?", "Where did it come from?"):
    chat.append({"role": "user", "content": question if chat else f"{document}\n\n{question}"})
    text = "\n".join(turn["content"] for turn in chat)
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
    with torch.inference_mode():  # what the cache has seen is not read again
        output = model.generate(tokens, **{CACHE: cache}, max_new_tokens=24, do_sample=False)
    reply = tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True).strip()
    chat.append({"role": "assistant", "content": reply})
    report = cache.report()
    print(
        f"{question} {reply}\n  {report.kept_share:.0%} of {report.seen[0]} tokens held, {report.bytes / 2**20:.1f} MiB"
    )
