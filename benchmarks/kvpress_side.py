"""kvpress's ObservedAttentionPress on the toy model of `cases.py`: a side for an environment that has kvpress.

    OTHER/bin/python benchmarks/kvpress_side.py --tokens 4096

It needs eager attention and an older transformers than the memory does; prints the same line of JSON as `cases.py`.
"""

import argparse
import json
import time

import torch
from kvpress import ObservedAttentionPress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from namm_transfer.cache.keyword import CACHE


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=65536,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 1000, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(ids[:, :64], use_cache=False, logits_to_keep=1)
        before, clock = time.process_time(), time.perf_counter()
        with ObservedAttentionPress(compression_ratio=0.5)(model):
            model(ids, **{CACHE: DynamicCache()}, logits_to_keep=1, output_attentions=True)
    found = {"prefill_cpu_s": time.process_time() - before, "prefill_s": time.perf_counter() - clock}
    with open("/proc/self/status") as status:
        found["peak"] = 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps(found | {"prefill_peak": found["peak"]}))


if __name__ == "__main__":
    main()
