"""Where a NAMM loses what it loses: the worthiest KV heads against the others, early updates, facts against prose.

    accelerate launch --multi_gpu --num_processes 2 studies/heads.py --samples 6

Prints two tables of the shipped NAMM's card, made on validation documents. The worthy heads are those whose cache was
measured to be worth most when the NAMM was made (`namm_transfer/evolution/heads.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from namm_transfer import NAMM, EvictionPolicy, LayerView, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evaluation import EvalOptions, start
from namm_transfer.evolution.heads import WholeHeads
from namm_transfer.evolution.progress import progress
from namm_transfer.evolution.scoring import share
from namm_transfer.evolution.tasks import TRAINED, Prompt, make_prompt
from namm_transfer.files import asset
from namm_transfer.options import parse
from namm_transfer.policies import FullCache

_FACTS = ("passkey", "multikey", "lookup")  # their answer stands in the text as it is


@dataclass
class Options(EvalOptions):
    """Take the decisions of a NAMM apart."""

    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2."""
    namm: str = "namm-text"
    """Name of a shipped NAMM, or folder of an evolution with a learned start."""
    samples: int = 6
    """Prompts of each trained family."""
    tokens: int = 950
    """Length of the prompts."""
    update_interval: int = 128
    """The policy acts each time a prompt has grown by this many tokens."""
    worthy: int = 30
    """How many KV heads count as worthy."""


@dataclass
class Corrected(EvictionPolicy):
    """A NAMM whose decisions are overruled in some heads, or at the first updates."""

    namm: NAMM
    worthy: Tensor
    """(layers, kv_heads) bool"""
    in_worthy: str = "namm"
    """What decides there: namm, all (everything stays) or little (sinks and recent tokens)."""
    in_others: str = "namm"
    wait: int = 0
    """Updates at which everything stays."""
    by_head = True
    needs_attention = True
    hop = NAMM.hop
    rules: dict[str, EvictionPolicy] = field(init=False)

    def __post_init__(self) -> None:
        self.update_interval = self.namm.update_interval
        nowhere = torch.zeros_like(self.worthy)
        self.rules = {
            "namm": self.namm,
            "all": WholeHeads(~nowhere, self.update_interval),
            "little": WholeHeads(nowhere, self.update_interval),
        }

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The NAMM's."""
        return self.namm.state(batch, heads, tokens, device)

    def observe(self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """As the NAMM does."""
        self.namm.observe(state, rows, clock, sizes)

    def select(self, view: LayerView) -> Tensor:
        """By the rule of the head that the view shows."""
        if view.update < self.wait:
            return view.real
        return self.rules[self.in_worthy if self.worthy[view.layer, view.head] else self.in_others].select(view)


def lineup(namm: NAMM, worth: Tensor, worthy: int) -> dict[str, EvictionPolicy]:
    """What is compared, by the name that the table gives it."""

    def corrected(in_worthy: str, in_others: str, count: int = worthy, wait: int = 0) -> Corrected:
        return Corrected(namm, worth >= worth.flatten().topk(count).values[-1], in_worthy, in_others, wait)

    more = worthy * 6 // 5
    return {
        "full cache": FullCache(namm.update_interval),
        "the NAMM": namm,
        f"all of {worthy} worthy heads, the NAMM in the others": corrected("all", "namm"),
        f"the NAMM in {worthy} worthy heads, little of the others": corrected("namm", "little"),
        f"all of {worthy} worthy heads, little of the others": corrected("all", "little"),
        f"all of {more} worthy heads, little of the others": corrected("all", "little", more),
        "the NAMM, nothing lost at the first update": corrected("namm", "namm", wait=1),
        "the NAMM, nothing lost at the first three": corrected("namm", "namm", wait=3),
    }


def kept_of(held: Tensor, prompt: Prompt, offsets: Tensor, judged: int) -> Tensor:
    """How much some heads hold of a fact's tokens, of the rest of its sentence, and of all other text.

    Args:
        held: (heads, tokens) bool.
        offsets: (tokens, 2), first character of each token in the prompt's text and the one after its last.
        judged: how many of the tokens count, from the first.

    Returns:
        (3, 2) float64: tokens held, mean over heads, and how many there are.
    """
    fact = prompt.text.rfind(prompt.answer.strip())
    begin = max(prompt.text.rfind(stop, 0, fact) for stop in (". ", "\n")) + 1
    ends = (prompt.text.find(stop, fact) for stop in (". ", "\n"))
    end = min((e for e in ends if e > 0), default=len(prompt.text))

    def covers(first: int, last: int) -> Tensor:
        return (offsets[:judged, 1] > first) & (offsets[:judged, 0] < last)

    said, sentence = covers(fact, fact + len(prompt.answer.strip())), covers(begin, end)
    mean, parts = held[:, :judged].double().mean(0), (said, sentence & ~said, ~sentence)
    return torch.stack([torch.stack([mean[part].sum(), part.sum()]) for part in parts])


def facts(adapter: CausalLMAdapter, prompt: Prompt, namm: NAMM, worthy: Tensor) -> Tensor:
    """(2, 3, 2) float64: `kept_of` worthy heads, and of the others; tokens not yet judged twice do not count."""
    encoded, cache = adapter.encode(prompt), adapter.memory(namm)
    adapter.read(encoded, cache)
    held = torch.zeros(*worthy.shape, len(encoded.tokens), dtype=torch.bool)
    for layer in range(len(worthy)):
        positions = cache.positions(layer)[0].cpu().long()
        for head, kept in enumerate(positions):
            held[layer, head, kept[kept >= 0]] = True
    offsets = torch.tensor(adapter.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"])
    judged = (len(offsets) // namm.update_interval - 1) * namm.update_interval
    return torch.stack([kept_of(held[heads], prompt, offsets, judged) for heads in (worthy, ~worthy)])


def table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [title, ["---"] * len(title), *rows])


def scores(
    adapter: CausalLMAdapter, prompts: Sequence[Prompt], policies: Sequence[EvictionPolicy], accelerator: Accelerator
) -> Tensor:
    """(policies, 2): mean score (geometric mean probability of the answer's tokens, %) and share held (%)."""
    sums = torch.zeros(len(policies), 2, dtype=torch.float64)
    with progress(accelerator, "answers", len(prompts) // accelerator.num_processes) as bar:
        for prompt in share(list(prompts), accelerator):
            encoded = adapter.encode(prompt)
            for row, policy in enumerate(policies):
                cache = adapter.memory(policy)
                logits = adapter.read(encoded, cache)
                kept = cache.kept_share()[0]
                said = adapter.judge(encoded, cache, logits)[0].logprob
                sums[row] += 100 * torch.tensor([exp(said), kept], dtype=torch.float64)
            bar.update()
    return accelerator.reduce(sums.to(accelerator.device), "sum").cpu() / len(prompts)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(Options, arguments)
    accelerator = start(options)
    adapter = CausalLMAdapter.load(options.model, dtype=torch.bfloat16, device=accelerator.device)
    folder = Path(options.namm) if Path(options.namm).is_dir() else asset(options.namm)
    worth = load_file(folder / "state" / "learning.safetensors")["worth"]
    namm = NAMM.from_pretrained(folder, update_interval=options.update_interval).to(adapter.device)
    compared = lineup(namm, worth, options.worthy)

    def prompts(families: Sequence[str], each: int) -> list[Prompt]:
        return [
            make_prompt(f, "validation", options.seed, n, tokens=options.tokens, count=adapter.count)
            for f in families
            for n in range(each)
        ]

    means = scores(adapter, prompts(TRAINED, options.samples), list(compared.values()), accelerator)
    rows = zip(compared, means.tolist(), strict=True)
    accelerator.print(
        table(["", "score", "held"], [[name, f"{said:.1f}", f"{kept:.1f} %"] for name, (said, kept) in rows])
    )

    worthy, hidden = worth >= worth.flatten().topk(options.worthy).values[-1], prompts(_FACTS, options.samples)
    counts = torch.zeros(2, 3, 2, dtype=torch.float64)
    for prompt in share(hidden, accelerator):
        counts += facts(adapter, prompt, namm, worthy)
    held, all_of_them = accelerator.reduce(counts.to(accelerator.device), "sum").cpu().unbind(-1)
    rows = zip(("worthy", "others"), (100 * held / all_of_them).tolist(), strict=True)
    title = ["heads", "a fact's tokens", "the rest of its sentence", "all other text"]
    accelerator.print("\n" + table(title, [[name, *(f"{s:.0f} %" for s in row)] for name, row in rows]))


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
