"""What a memory costs: prefill and decoding against plain transformers with SDPA, in one process.

    python benchmarks/prefill.py
    python benchmarks/prefill.py --tokens 1024 4096 --rounds 15 --threads 2 --json prefill.json

The model is a random Llama (4 layers, width 512, 8 heads). Sides alternate within a round; a figure is the median over
rounds of the ratio to that round's SDPA run, so that a noisy neighbour slows both sides. "sdpa again" is the control.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM

from namm_transfer import NAMM, EvictionPolicy, MemoryCache, policies
from namm_transfer.files import write_atomic

DECODED = 32


def scored_by_zeros(keep: float | None = None) -> NAMM:
    """A NAMM whose scores are all 0: evicts nothing, or under ``keep`` the newest; the work is that of any other."""
    return NAMM(keep=keep)


POLICIES: dict[str, EvictionPolicy] = {
    "full policy": policies.make("full"),
    "NAMM, nothing evicted": scored_by_zeros(),
    "NAMM, 50 % kept": scored_by_zeros(0.5),
    "NAMM, 25 % kept": scored_by_zeros(0.25),
    "H2O, 50 % kept": policies.make("h2o:keep=0.5"),
    "L2, 50 % kept": policies.make("l2:keep=0.5"),
}


def build(attention: str) -> LlamaForCausalLM:
    """The toy model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=65536,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()


def timed(model: LlamaForCausalLM, ids: torch.Tensor, cache: Cache) -> tuple[float, float]:
    """Seconds for one prefill, and for decoding `DECODED` tokens after it."""
    start = time.perf_counter()
    model(ids, past_key_values=cache, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(DECODED):
        model(ids[:, :1], past_key_values=cache, logits_to_keep=1)
    return middle - start, time.perf_counter() - middle


def compare(tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians for one prompt length: seconds, and ratios to SDPA of the same round."""
    plain, memory = build("sdpa"), build("memory")
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    sides: dict[str, Callable[[], tuple[float, float]]] = {
        name: lambda: timed(plain, ids, DynamicCache(config=plain.config)) for name in ("sdpa", "sdpa again")
    }
    for name, policy in POLICIES.items():
        sides[name] = lambda policy=policy: timed(memory, ids, MemoryCache(memory.config, policy=policy))
    seen: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in sides}
    with torch.no_grad():
        timed(plain, ids[:, :64], DynamicCache(config=plain.config))
        for _ in tqdm(range(rounds), desc=f"{tokens} tokens", leave=False):
            results = {name: side() for name, side in sides.items()}
            base = results["sdpa"]
            for name, (prefill, decode) in results.items():
                seen[name].append((prefill, prefill / base[0], decode, decode / base[1]))
    columns = ("prefill_s", "prefill_ratio", "decode_s", "decode_ratio")
    return {
        name: {
            column: statistics.median(values) for column, values in zip(columns, zip(*runs, strict=True), strict=True)
        }
        for name, runs in seen.items()
    }


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096], help="prompt lengths")
    parser.add_argument("--rounds", type=int, default=5, help="alternations; figures are medians over them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, {options.rounds} rounds"
    print(machine)
    results = {}
    for tokens in options.tokens:
        results[str(tokens)] = compare(tokens, options.rounds)
        print(f"\n{tokens} tokens{'':18}prefill         ratio   {DECODED} decoded         ratio")
        for name, row in results[str(tokens)].items():
            print(
                f"{name:24s} {row['prefill_s']:9.3f} s {row['prefill_ratio']:9.2f} x {row['decode_s']:9.3f} s "
                f"{row['decode_ratio']:9.2f} x"
            )
    if options.json:
        write_atomic(options.json, json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
