"""The two scoring networks that a NAMM can have: what they read, and the layout of their parameters.

``published`` is the paper's backward attention with a linear output (section 3.2, arXiv 2410.13166). ``deep`` is this
project's: it reads logarithms of the spectra, looks beside each token at its head's features pooled over all tokens
that the head holds, and has a hidden layer between the backward attention and the output. Which heads reach far back
can be told from pooled spectra far better by a hidden layer than by the published form.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from namm_transfer import kernel_choice
from namm_transfer.errors import NammTransferError
from namm_transfer.spectrogram import BINS

RECENCY = 8  # features of a token's age
FEATURES = RECENCY + BINS
WIDTH = 32  # of queries, keys and values in the scoring network
NEWEST = 64
"""Newest tokens of a head that are pooled by themselves, before any policy has chosen among them."""
_POOLED = 2 * FEATURES + BINS
_HIDDEN = 64
_FLOOR = 1e-4  # added to spectra before the logarithm; attention of 1/1000 gives magnitudes of 1e-2 to 1e-3


@dataclass(frozen=True)
class Scorer:
    """The form of a scoring network."""

    shapes: Mapping[str, tuple[int, ...]]
    """Names and shapes (inputs x outputs, row-major) of the parts of the flat parameter vector, in its order."""
    reads: Mapping[str, int]
    """The weights that read features: how often the 25 features stand at the top of their inputs."""
    logarithm: bool
    """True if spectra are replaced by their logarithms before they are normalised."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def compress(self, spectrum: Tensor) -> Tensor:
        """Return what is normalised, of the same shape: the spectra S, or log(S + 1e-4)."""
        return spectrum.clamp_min(0).add(_FLOOR).log() if self.logarithm else spectrum

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut flat parameters, (..., size), into parts by name, (..., *shape)."""
        parts = vector.split([torch.Size(shape).numel() for shape in self.shapes.values()], dim=-1)
        lead = vector.shape[:-1]
        return {name: part.reshape(*lead, *self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}


def _affine(**layers: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """List weight and bias of layers, each (inputs, outputs)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in layers.items():
        shapes |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    return shapes


PUBLISHED = Scorer(
    _affine(attention_in=(FEATURES, 3 * WIDTH), attention_out=(WIDTH, 2 * FEATURES), output=(FEATURES, 1)),
    reads={"attention_in.weight": 1, "output.weight": 1},
    logarithm=False,
)
"""4,172 parameters."""
DEEP = Scorer(
    _affine(
        pooled_in=(_POOLED, _HIDDEN),
        pooled_out=(_HIDDEN, WIDTH),
        attention_in=(FEATURES, 3 * WIDTH),
        hidden=(FEATURES + 2 * WIDTH, _HIDDEN),
        output=(_HIDDEN, 1),
    ),
    reads={"pooled_in.weight": 2, "attention_in.weight": 1, "hidden.weight": 1},
    logarithm=True,
)
"""14,753 parameters."""
SCORERS = {"published": PUBLISHED, "deep": DEEP}


def scorer(name: str) -> Scorer:
    """Return a form of the scoring network by its name.

    Raises:
        NammTransferError: there is none of this name.
    """
    if name not in SCORERS:
        raise NammTransferError(f"scorer={name!r}: expected one of {', '.join(SCORERS)}")
    return SCORERS[name]


def check_pooled_tokens(tokens: int | None, form: str) -> None:
    """Check the number of newest tokens that describe a head.

    Raises:
        NammTransferError: it is not a positive whole number, or the form of this name does not pool.
    """
    if tokens is None:
        return
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise NammTransferError(f"pooled_tokens={tokens!r}: expected a positive whole number")
    if scorer(form) is not DEEP:
        raise NammTransferError(f"pooled_tokens={tokens} with scorer={form!r}: expected scorer='deep', which pools")


class Affine(nn.Module):
    """A linear layer x W + b with W stored as (inputs, outputs), the layout of the published vector."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return x @ self.weight + self.bias


def backward_attention(layer: nn.Module, x: Tensor, real: Tensor | None = None) -> Tensor:
    """Let each token look at itself and at newer tokens.

    Args:
        layer: makes queries, keys and values side by side, (..., 96), of features.
        x: (batch, heads, tokens, 25), oldest token first.
        real: (batch, heads, tokens) bool, which tokens may be attended to. Leaving it out avoids an N x N mask: newer
            tokens never depend on older ones, so padding slots in front of all touch no output but their own.

    Returns:
        (batch, heads, tokens, 32).
    """
    if real is None and not torch.is_grad_enabled() and x.dtype == torch.float32 and kernel_choice.serves(x):
        from namm_transfer import scorer_kernel  # Triton exists for few platforms

        return scorer_kernel.attend(layer(x), WIDTH)
    # With the newest token first, "itself and newer tokens only" is an ordinary causal mask.
    q, k, v = layer(x.flip(-2)).split(WIDTH, dim=-1)
    if real is None:
        o = scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        allowed = real.flip(-1)[..., None, :].expand(*real.shape, real.shape[-1]).tril()
        o = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return o.flip(-2)


def pool(x: Tensor, real: Tensor | None = None) -> Tensor:
    """Describe each head by what it holds: means over all tokens and over the newest, and standard deviations.

    Args:
        x: features, (batch, heads, tokens, 25), oldest token first, padding slots in front of all.
        real: (batch, heads, tokens) bool, False at padding slots.

    Returns:
        (batch, heads, 1, 67): the mean of the 25 features, their mean over the newest 64 tokens, and the standard
        deviation of the normalised spectrum. Padding slots and their number do not matter.
    """
    there = torch.ones_like(x[..., :1]) if real is None else real[..., None].to(x.dtype)
    x = x * there
    mean = x.sum(-2, keepdim=True) / there.sum(-2, keepdim=True)
    newest = x[..., -NEWEST:, :].sum(-2, keepdim=True) / there[..., -NEWEST:, :].sum(-2, keepdim=True)
    apart = (x - mean)[..., RECENCY:] * there
    variance = apart.square().sum(-2, keepdim=True) / there.sum(-2, keepdim=True)
    return torch.cat([mean, newest, (variance + 1e-6).sqrt()], dim=-1)


def pool_newest(x: Tensor, real: Tensor | None, tokens: int, deviation: Tensor) -> Tensor:
    """Describe each head as `pool` does, a head that holds more than `tokens` tokens by the newest of them.

    The attention that these receive is shared with all others that the head holds. Their mean logarithm is raised by
    log(held / tokens), as if they had it to themselves. So a head's description does not drift as a text grows longer
    than those on which the network was made.

    Args:
        x, real: as for `pool`.
        deviation: (17,), what logarithms were divided by.

    Returns:
        (batch, heads, 1, 67).
    """
    held = x.new_full(x.shape[:2], x.shape[2]) if real is None else real.sum(-1).to(x.dtype)
    head = pool(x[..., -tokens:, :], None if real is None else real[..., -tokens:])
    mean, rest = head.split([FEATURES, FEATURES + BINS], dim=-1)
    alone = (held / tokens).clamp_min(1).log()[..., None, None] / deviation
    return torch.cat([mean[..., :RECENCY], mean[..., RECENCY:] + alone, rest], dim=-1)


def deep_scores(network: nn.Module, x: Tensor, pooled: Tensor) -> Tensor:
    """Run the deep scoring network.

    Args:
        network: a module with the layers of `DEEP`.
        x: (batch, heads, tokens, 25), oldest token first, padding slots in front of all.
        pooled: (batch, heads, 1, 67), each head's description.

    Returns:
        (batch, heads, tokens) scores, which do not depend on what padding slots hold if `pooled` does not.
    """
    layer = network.get_submodule
    head = gelu(layer("pooled_out")(gelu(layer("pooled_in")(pooled))))
    seen = backward_attention(layer("attention_in"), x)
    hidden = gelu(layer("hidden")(torch.cat([x, seen, head.expand(*x.shape[:-1], -1)], dim=-1)))
    scores: Tensor = layer("output")(hidden).squeeze(-1)
    return scores
