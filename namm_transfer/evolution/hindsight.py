"""A start vector that has learned from hindsight which tokens will be needed.

CMA-ES in 4,172 dimensions learns little from each costly answer. With hindsight, though, one backward pass through the
full cache tells for every token, layer and head how much attention to it has helped the right answer. So the scoring
network is first fitted by gradient descent to keep, at each update, the tokens that turn out to matter. It reads what
any NAMM reads, the past alone; the search goes on from there. This is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from namm_transfer.adapters.causal_lm import CausalLMAdapter, EncodedPrompt
from namm_transfer.evolution.tasks import Prompt
from namm_transfer.files import write_atomic
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM, RECENCY
from namm_transfer.policy import LayerView

QUESTION = 24
"""Tokens at the end of a prompt that count as its question."""
RECENT = 32
"""The newest tokens at an update hardly count: every rule keeps them, and what was said long before is what is lost."""
_RECENT_WEIGHT = 0.15
_CAP = 0.05  # no token counts for more than this share of a head's attention: sinks would be all that counts
_ATTENTION_WEIGHT = 0.15  # of attention as such, beside what helped: it protects sinks, whose effect is not linear
_SHARED = (
    0.9  # of what a token is needed for, by any head: keeping the same tokens everywhere beats a guess for each head
)
_KEEP = (0.5, 0.25)  # budgets learned for, in turn
_ROWS = 30  # heads a step
_EDGE = 0.15  # width of the soft edge between kept and lost, relative to the spread of the scores
_NOISE = 0.05
_RATE = 4e-3
_RIDGE = 0.01


@dataclass(frozen=True)
class Example:
    """All heads of all layers at one update of a full cache, and what mattered afterwards."""

    spectrum: Tensor
    """(layers x KV heads, 17, tokens) float16"""
    needed: Tensor
    """(layers x KV heads, tokens) float32: weight of each token, 0 or more; the rows sum to about 1"""


class Witness(NAMM):
    """Keeps everything and remembers the spectra of every layer and update."""

    def __init__(self, update_interval: int = 512, attention_dtype: str = "float32") -> None:
        super().__init__(update_interval, attention_dtype=attention_dtype)
        self.spectra: dict[int, list[Tensor]] = {}
        """Update -> spectra of the layers in their order, each (KV heads, 17, tokens) float16."""

    def select(self, view: LayerView) -> Tensor:
        """All of them."""
        self.spectra.setdefault(view.update, []).append(view.state["spectrum"][0].half())
        return view.real


def witness(adapter: CausalLMAdapter, prompt: Prompt, update_interval: int) -> list[Example]:
    """One example for each update of a prompt that comes before its answer, in order."""
    encoded = adapter.encode(prompt)
    policy = Witness(update_interval)
    adapter.read(encoded, adapter.memory(policy))
    received, helped = _attention_and_effect(adapter, encoded)
    examples = []
    for _, spectra in sorted(policy.spectra.items()):
        tokens = spectra[0].shape[-1]
        later = slice(tokens, None)
        question = slice(max(tokens, len(encoded.tokens) - QUESTION), None)
        effect = torch.cat([e[:, later, :tokens].sum(1) for e in helped])
        attention = torch.stack([torch.cat([a[:, q, :tokens].sum(1) for a in received]) for q in (later, question)], 1)
        if (effect > 0).any():
            examples.append(Example(torch.cat(spectra), needed(effect, attention)))
    return examples


def gather(
    adapter: CausalLMAdapter, prompts: Sequence[Prompt], update_interval: int, folder: Path, settings: str
) -> Iterator[list[Example]]:
    """The examples of each prompt; kept in `folder`, one file a prompt, so that a killed run makes none again.

    Args:
        settings: whatever decides the examples; files made with others are made anew.
    """
    for number, prompt in enumerate(prompts):
        path = folder / f"{number:04d}.safetensors"
        if not path.exists() or _settings(path) != settings:
            examples = witness(adapter, prompt, update_interval)
            tensors = {f"{i}.{k}": t.cpu() for i, e in enumerate(examples) for k, t in vars(e).items()}
            write_atomic(path, save(tensors, metadata={"settings": settings}))
        stored = load_file(path)
        yield [Example(stored[f"{i}.spectrum"], stored[f"{i}.needed"]) for i in range(len(stored) // 2)]


def _settings(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("settings", "")


def needed(effect: Tensor, attention: Tensor) -> Tensor:
    """How much each token mattered after an update, (rows, tokens), a row being a KV head of a layer.

    What a head looks up is hard to tell from its past attention alone; that a token will be looked up by some head is
    easier. So most of a token's weight is its mean over all heads.

    Args:
        effect: (rows, tokens), by how much the answer's log-probability grows with attention to the token.
        attention: (rows, 2, tokens), what the token received from all later queries, and from the question's.
    """
    recent = torch.ones(effect.shape[-1], device=effect.device)
    recent[-RECENT:] = _RECENT_WEIGHT
    helps = effect.clamp_min(0) * recent
    capped = (attention / attention.sum(-1, keepdim=True).clamp_min(1e-6)).clamp_max(_CAP)
    everyone, question = (capped / capped.sum(-1, keepdim=True).clamp_min(1e-6)).unbind(1)
    attended = (0.25 * everyone + 0.75 * question) * recent
    own = (1 - _ATTENTION_WEIGHT) * helps * (len(helps) / helps.sum()) + _ATTENTION_WEIGHT * attended
    return (1 - _SHARED) * own + _SHARED * own.sum(0) / own.sum()


def learn(
    examples: Sequence[Example],
    statistics: Moments,
    start: Tensor,
    *,
    steps: int,
    seed: int,
    tick: Callable[[float], object] = lambda loss: None,
) -> Tensor:
    """The flat vector, (4172,) float32, fitted to the examples.

    Args:
        start: (4172,); its output layer is where the fit begins, the attention in front of it begins at random.
        steps: of Adam, each on some heads of one example, drawn at random; the rate falls to zero along a cosine.
        tick: called with each step's loss, the share of what was needed that is lost.
    """
    generator = torch.Generator().manual_seed(seed)
    namm = NAMM.from_vector(start, mean=statistics.mean, var=statistics.var)
    weights = _whiten(namm, examples)
    nn.init.normal_(weights, std=2 * _NOISE, generator=generator)
    nn.init.normal_(namm.attention_out.weight, std=_NOISE, generator=generator)
    optimizer = torch.optim.Adam(namm.requires_grad_(True).parameters(), lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        example = examples[int(torch.randint(len(examples), (), generator=generator))]
        rows = torch.multinomial(example.needed.sum(-1), _ROWS, replacement=True, generator=generator)
        loss = lost(namm, Example(example.spectrum[rows], example.needed[rows]), _KEEP[step % len(_KEEP)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(namm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tick(loss.item())
    for affine in (namm.attention_in, namm.output):
        parametrize.remove_parametrizations(affine, "weight")
    return namm.to_vector()


def lost(namm: NAMM, example: Example, keep: float) -> Tensor:
    """Mean over heads of the share of what was needed that is lost, with a soft edge between kept and lost tokens."""
    spectrum = example.spectrum.float()[None]
    tokens = spectrum.shape[-1]
    scores = namm.score(namm.features(spectrum, torch.arange(tokens).expand(1, len(example.needed), -1)))[0]
    cut = scores.detach().topk(ceil(keep * tokens), dim=-1).values[:, -1:]
    width = _EDGE * (scores.detach() - cut).abs().median(-1, keepdim=True).values.clamp_min(1e-6)
    # The number of kept tokens is fixed: the cut moves with the scores of those that are near it.
    near = ((scores.detach() - cut) / width).sigmoid()
    near = near * (1 - near)
    pull = (near / near.sum(-1, keepdim=True).clamp_min(1e-9) * scores).sum(-1, keepdim=True)
    gates = ((scores - cut - pull + pull.detach()) / width).sigmoid()
    return (example.needed * (1 - gates)).sum(-1).div(example.needed.sum(-1)).mean()


class _Premultiplied(nn.Module):
    """A weight W that is learned as M^-1 W."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, original: Tensor) -> Tensor:
        return self.matrix @ original

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, weight)


def _whiten(namm: NAMM, examples: Sequence[Example]) -> nn.Parameter:
    """Let weights that read spectra be learned in coordinates where ordinary tokens differ equally in all directions.

    The statistics of section 4 are those of sinks; beside them all other tokens are nearly the same.

    Returns:
        what `attention_in.weight` is learned as.
    """
    spectra = torch.cat([e.spectrum[::9].float().transpose(1, 2).flatten(0, 1) for e in examples[:40]])
    normalised = ((spectra - namm.mean) / namm.var.sqrt().clamp_min(1e-7)).clamp(-3, 3)
    values, vectors = torch.linalg.eigh(torch.cov(normalised.T) + _RIDGE * torch.eye(len(namm.mean)))
    matrix = torch.eye(RECENCY + len(namm.mean))
    matrix[RECENCY:, RECENCY:] = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    for affine in (namm.attention_in, namm.output):
        parametrize.register_parametrization(affine, "weight", _Premultiplied(matrix))
    learned: Any = namm.attention_in.parametrizations
    return learned.weight.original


def _attention_and_effect(adapter: CausalLMAdapter, encoded: EncodedPrompt) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer, (KV heads, queries, tokens): attention, averaged over the group, and its effect on the answer.

    The effect is the gradient of the answer's mean log-probability with respect to the attention logit: how much is won
    by attending more to a token at the others' cost.
    """
    model = adapter.model
    model.set_attn_implementation("eager")
    try:
        tokens = torch.cat([encoded.tokens, encoded.answer[:-1]])[None]
        inputs = model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        out = model(inputs_embeds=inputs, output_attentions=True, use_cache=False)
        logprobs = out.logits[0, -len(encoded.answer) :].float().log_softmax(-1)
        gradients = torch.autograd.grad(logprobs.gather(-1, encoded.answer[:, None]).mean(), out.attentions)
    finally:
        model.set_attn_implementation("memory")
    heads = model.config.num_key_value_heads
    received, helped = [], []
    for attention, gradient in zip(out.attentions, gradients, strict=True):
        weights, gradient = attention.detach()[0].float(), gradient[0].float()
        effect = weights * (gradient - (weights * gradient).sum(-1, keepdim=True))
        received.append(weights.unflatten(0, (heads, -1)).mean(1))
        helped.append(effect.unflatten(0, (heads, -1)).sum(1))
    return received, helped
