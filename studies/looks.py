"""Whether a KV head that needs its cache can be told by what a NAMM sees of it.

    accelerate launch --num_processes 1 studies/looks.py --worth studies/gates.safetensors

Reads the first tokens of training quizzes, as many as are seen at a first update, and says how well worthy heads are
told from others by the NAMM, and by two networks that are fitted to nothing else: a linear one and one with a hidden
layer. What they read is pooled over a head's tokens; they are fitted on half of the quizzes and judged on the other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from subject import StudyOptions, load
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.heads import RECENT, SINKS, worthiest
from namm_transfer.evolution.progress import progress
from namm_transfer.evolution.quiz import Quiz
from namm_transfer.evolution.statistics import Spectra
from namm_transfer.options import parse

_HIDDEN, _STEPS, _RATE, _DECAY = 32, 1500, 3e-3, 0.05
_FIRST, _LENGTH = 20_000, 560  # of the quizzes; learned from by nothing else


@dataclass
class Options(StudyOptions):
    """Tell heads by their looks."""

    worthy: int = 38
    """How many KV heads count as worthy."""
    quizzes: int = 200
    """Texts that are read, half to fit and half to judge by."""
    update_interval: int = 128
    """Tokens before the first update."""


def looks(spectra: Tensor) -> Tensor:
    """What a network may read of each head, (heads, 68): mean and spread of the logarithm of the spectra over the older
    and the newer half of the tokens that not every head keeps.

    Args:
        spectra: (heads, 17, tokens)
    """
    halves = spectra[..., SINKS:-RECENT].float().clamp_min(1e-6).log().chunk(2, -1)
    return torch.cat([f(half, -1) for half in halves for f in (torch.mean, torch.std)], 1)


def area(scores: Tensor, right: Tensor) -> float:
    """Under the ROC curve: how often one that is right scores above one that is not."""
    above = scores[right][:, None] - scores[~right][None]
    return float((above > 0).double().mean() + (above == 0).double().mean() / 2)


def told(network: nn.Module, seen: Tensor, right: Tensor, fitted: Tensor) -> float:
    """Area on what the network is not fitted on."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    for _ in range(_STEPS):
        loss = binary_cross_entropy_with_logits(network(seen[fitted])[:, 0], right[fitted].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return area(network(seen[~fitted])[:, 0], right[~fitted])


def read(adapter: CausalLMAdapter, namm: NAMM, options: Options, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Looks of every quiz's heads in turn, (quizzes * heads, 68), and the NAMM's mean score of the same tokens."""
    seen, scores = [], []
    with torch.inference_mode(), progress(accelerator, "quizzes", options.quizzes) as bar:
        for number in range(options.quizzes):
            policy = Spectra(options.update_interval)
            first = Quiz.make(adapter, 1, _FIRST + number, _LENGTH).tokens[None, : options.update_interval]
            adapter.model(first, past_key_values=adapter.memory(policy), logits_to_keep=1)
            spectra = torch.cat(policy.spectra)
            positions = torch.arange(spectra.shape[-1], device=spectra.device).expand(len(spectra), -1)
            judged = namm.score(namm.features(spectra[None], positions[None]))[0, :, SINKS:-RECENT]
            seen.append(looks(spectra).cpu())
            scores.append(judged.mean(-1).cpu())
            bar.update()
    table = torch.cat(seen)
    return (table - table.mean(0)) / table.std(0).clamp_min(1e-6), torch.cat(scores)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(Options, arguments)
    accelerator, adapter, folder, worth = load(options)
    namm = NAMM.from_pretrained(folder, update_interval=options.update_interval).to(adapter.device)
    seen, scores = read(adapter, namm, options, accelerator)
    right = worthiest(worth, options.worthy).flatten().repeat(options.quizzes)
    fitted = (torch.arange(options.quizzes) % 2 == 0).repeat_interleave(worth.numel())
    width = seen.shape[1]
    hidden = nn.Sequential(nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 1))
    accelerator.print("| told by | area under the curve |\n| --- | --- |")
    for name, found in {
        "the NAMM": area(scores[~fitted], right[~fitted]),
        "a linear network": told(nn.Linear(width, 1), seen, right, fitted),
        f"{_HIDDEN} hidden units": told(hidden, seen, right, fitted),
    }.items():
        accelerator.print(f"| {name} | {found:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
