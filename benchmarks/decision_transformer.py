"""Cost of a Decision Transformer's episode with the key/value cache, against recomputation at every step.

    python benchmarks/decision_transformer.py
    python benchmarks/decision_transformer.py --steps 200 --model assets/decision-transformer/hopper-medium

One process, one thread, a recorded episode (random states, so that no environment is timed), whole-episode context. All
sides act at every step before the next step comes, so that a noisy neighbour slows them alike; a figure is the sum over
the steps. "recomputed" is transformers' own `DecisionTransformerModel`, which has no cache.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm
from transformers import DecisionTransformerConfig, DecisionTransformerModel, DynamicCache

from namm_transfer import NAMM, policies
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter, Statistics

INTERVAL = 128


def loaded(source: str | None, steps: int) -> tuple[DecisionTransformerAdapter, DecisionTransformerModel]:
    """Load the same weights twice: with the memory, and as transformers runs them."""
    if source is not None:
        adapter = DecisionTransformerAdapter.load(source, device="cpu", dtype=torch.float32)
        return adapter, DecisionTransformerModel.from_pretrained(source, attn_implementation="sdpa").eval()
    config = DecisionTransformerConfig(state_dim=11, act_dim=3, max_ep_len=max(1000, steps), bos_token_id=None)
    torch.manual_seed(0)
    plain = DecisionTransformerModel._from_config(config, attn_implementation="sdpa").eval()
    memory = DecisionTransformerModel._from_config(config, attn_implementation="memory").eval()
    memory.load_state_dict(plain.state_dict())
    return DecisionTransformerAdapter(memory, Statistics(np.zeros(11), np.ones(11))), plain


def recomputing(adapter: DecisionTransformerAdapter, model: DecisionTransformerModel) -> Callable[..., np.ndarray]:
    """Act as Hugging Face's example does with whole-episode context: every step recomputes everything."""
    statistics = adapter.statistics
    seen: dict[str, list[Any]] = {"states": [], "actions": [], "returns_to_go": []}

    @torch.no_grad()
    def act(state: np.ndarray, return_to_go: float, taken: np.ndarray | None) -> np.ndarray:
        if taken is not None:
            seen["actions"][-1] = torch.from_numpy(taken)
        seen["states"].append(torch.from_numpy((state - statistics.state_mean) / statistics.state_std).float())
        seen["actions"].append(torch.zeros(model.config.act_dim))
        seen["returns_to_go"].append(torch.tensor([return_to_go / statistics.return_scale]).float())
        steps = torch.arange(len(seen["states"]))[None]
        inputs = {name: torch.stack(found)[None] for name, found in seen.items()}
        return model(**inputs, timesteps=steps, attention_mask=torch.ones_like(steps)).action_preds[0, -1].numpy()

    return act


def main(steps: int = 1000, model: str | None = None, threads: int = 1) -> None:
    """Run the benchmark and print its results.

    Args:
        steps: Time steps of the episode, three tokens each.
        model: Folder or hub id; random weights of the original's size by default.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    adapter, plain = loaded(model, steps)
    recompute = recomputing(adapter, plain)
    namm = NAMM(keep=0.25, update_interval=INTERVAL)
    h2o = policies.make("h2o:keep=0.25", update_interval=INTERVAL)
    caches = {
        "DynamicCache": DynamicCache(config=plain.config),
        "memory, full policy": adapter.memory(policies.make("full")),
        "memory, NAMM, 25 % kept": adapter.memory(namm),
        "memory, H2O, 25 % kept": adapter.memory(h2o),
    }
    players = {name: adapter.play(cache, [3600.0]) for name, cache in caches.items()}
    seconds = dict.fromkeys(["recomputed", *players], 0.0)
    generator, target, taken, worst = np.random.default_rng(0), 3600.0, None, 0.0
    for _ in tqdm(range(steps)):
        state = generator.normal(size=adapter.statistics.state_mean.shape)
        begun = time.perf_counter()
        taken = recompute(state, target, taken)
        seconds["recomputed"] += time.perf_counter() - begun
        for name, player in players.items():
            begun = time.perf_counter()
            action = player.act(state[None], np.zeros(1))
            seconds[name] += time.perf_counter() - begun
            if name == "memory, full policy":
                worst = max(worst, float(np.abs(action[0] - taken).max()))
    for name, spent in seconds.items():
        print(f"{name:26s} {spent:8.2f} s   {seconds['recomputed'] / spent:6.1f} x")
    print(f"largest difference of an action, full policy against recomputed: {worst:.1e}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
