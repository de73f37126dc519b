"""Where a NAMM loses what it loses: the worthiest KV heads against the others, early updates, facts against prose.

    accelerate launch --multi_gpu --num_processes 2 studies/heads.py --samples 6

Prints two tables of the shipped NAMM's card, made on validation documents. The worthy heads are those whose cache was
measured to be worth most when the NAMM was made (`namm_transfer/evolution/heads.py`), or with --worth others, such as
those that `gates.py` learns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
from accelerate import Accelerator
from subject import StudyOptions, load
from torch import Tensor

from namm_transfer import NAMM, EvictionPolicy, LayerView, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.heads import RECENT, SINKS, WholeHeads, worthiest
from namm_transfer.evolution.progress import progress
from namm_transfer.evolution.quiz import Quiz
from namm_transfer.evolution.scoring import answers, share
from namm_transfer.evolution.tasks import TRAINED, Prompt, make_prompt
from namm_transfer.options import parse
from namm_transfer.policies import FullCache, Streaming

_FACTS = ("passkey", "multikey", "lookup")  # their answer stands in the text as it is


@dataclass
class Options(StudyOptions):
    """Take the decisions of a NAMM apart."""

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
    whole: Tensor
    """(layers, kv_heads) bool: where everything stays"""
    cut: Tensor
    """(layers, kv_heads) bool: where sinks and recent tokens do"""
    wait: int = 0
    """Updates at which everything stays."""
    by_head = True
    needs_attention = True
    hop = NAMM.hop

    def __post_init__(self) -> None:
        self.update_interval, self.attention_dtype = self.namm.update_interval, self.namm.attention_dtype
        self.little = Streaming(SINKS, RECENT, update_interval=self.update_interval)

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The NAMM's."""
        return self.namm.state(batch, heads, tokens, device)

    def observe(self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """As the NAMM does."""
        self.namm.observe(state, rows, clock, sizes)

    def select(self, view: LayerView) -> Tensor:
        """By what is said of the head that the view shows."""
        if view.update < self.wait or self.whole[view.layer, view.head]:
            return view.real
        return (self.little if self.cut[view.layer, view.head] else self.namm).select(view)


def lineup(namm: NAMM, worth: Tensor, count: int) -> dict[str, EvictionPolicy]:
    """What is compared, by the name that the table gives it."""
    interval, more = namm.update_interval, count * 6 // 5
    worthy, none = worthiest(worth, count), torch.zeros_like(worth, dtype=torch.bool)
    return {
        "full cache": FullCache(interval),
        "the NAMM": namm,
        f"all of {count} worthy heads, the NAMM in the others": Corrected(namm, worthy, none),
        f"the NAMM in {count} worthy heads, little of the others": Corrected(namm, none, ~worthy),
        f"all of {count} worthy heads, little of the others": WholeHeads(worthy, interval),
        f"all of {more} worthy heads, little of the others": WholeHeads(worthiest(worth, more), interval),
        "the NAMM, nothing lost at the first update": Corrected(namm, none, none, wait=1),
        "the NAMM, nothing lost at the first three": Corrected(namm, none, none, wait=3),
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
            quiz = Quiz.of(adapter, prompt)
            for row, policy in enumerate(policies):
                logprob, _, kept = answers(adapter, quiz, adapter.memory(policy), 1)[0].tolist()
                sums[row] += 100 * torch.tensor([exp(logprob), kept], dtype=torch.float64)
            bar.update()
    return accelerator.reduce(sums.to(accelerator.device), "sum").cpu() / len(prompts)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(Options, arguments)
    accelerator, adapter, folder, worth = load(options)
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

    worthy, hidden = worthiest(worth, options.worthy), prompts(_FACTS, options.samples)
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
