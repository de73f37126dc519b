"""The spectrogram of the attention that a token receives: NAMM's features (paper section 3.1, arXiv 2410.13166).

The attention weights that successive queries give to one cached token are a signal. It is transformed as it comes in: a
short-time Fourier transform with window 32 and hop 16, its magnitudes averaged over time. The functions work on tensors
whose last axis is the cached token, so that a block of attention weights (queries x tokens) needs no transpose. All
arithmetic is float32.
"""

from functools import lru_cache

import torch
from torch import Tensor

HOP = 16
"""Queries from one frame to the next."""
WINDOW = 32
"""Queries in a frame."""
BINS = 17
"""Frequencies of a frame, from 0 to half a cycle a query."""
DECAY = 0.99**HOP  # the published 0.99 is per token, this is per frame


@lru_cache(maxsize=8)
def hann_dft(device: torch.device) -> Tensor:
    """Build the Hann-windowed real DFT, (32, 32) float32: 17 rows of cosines, then 15 of sines, of bins 1 to 15.

    The sines of bins 0 and 16 vanish. Columns 0-15 belong to the previous hop, columns 16-31 to the current one.
    """
    n = torch.arange(WINDOW, dtype=torch.float64)
    angle = 2 * torch.pi * torch.arange(BINS, dtype=torch.float64)[:, None] * n / WINDOW
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * n / WINDOW)
    return (torch.cat([angle.cos(), angle[1:-1].sin()]) * window).float().to(device)


def magnitudes(tail: Tensor, weights: Tensor) -> Tensor:
    """Compute the STFT magnitudes of every frame that ends in ``weights``.

    Args:
        tail: (..., 16, tokens), the attention weights of the 16 queries before ``weights``.
        weights: (..., 16 * frames, tokens), the attention weights of complete hops of queries, oldest first.

    Returns:
        (..., frames, 17, tokens) float32.
    """
    *lead, length, tokens = weights.shape
    kernel, frames = hann_dft(weights.device), length // HOP
    before, now = kernel[:, :HOP], kernel[:, HOP:]
    hops = weights.float().reshape(-1, HOP, tokens)
    spectrum = now @ hops
    if frames > 1:  # in memory every hop follows the one before it; the first of each sequence and head is done again
        spectrum[1:].baddbmm_(before.expand(len(hops) - 1, -1, -1), hops[:-1])
        spectrum[::frames] = now @ hops[::frames]
    spectrum[::frames] += before @ tail.float().reshape(-1, HOP, tokens)
    cosine, sine = spectrum[:, :BINS], spectrum[:, BINS:].square_()
    cosine[:, :: BINS - 1].square_()  # bins 0 and 16 have no sine
    inner = cosine[:, 1 : BINS - 1]
    torch.addcmul(sine, inner, inner, out=inner)
    return cosine.sqrt_().view(*lead, frames, BINS, tokens)


def fold(average: Tensor, frames: Tensor) -> Tensor:
    """Continue the exponential moving average S <- g S + (1 - g) m over frames m, with g = 0.99^16, from S = 0.

    Args:
        average: S so far, (..., 17, tokens) float32; written in place.
        frames: (..., frames, 17, tokens) magnitudes.

    Returns:
        ``average``, which now holds the new S.
    """
    *lead, count, bins, tokens = frames.shape
    ages = torch.arange(count - 1, -1, -1, dtype=torch.float32, device=frames.device)
    weights = ((1 - DECAY) * DECAY**ages).expand(*lead, 1, count)
    folded = (weights @ frames.reshape(*lead, count, bins * tokens)).view(*lead, bins, tokens)
    return torch.add(folded, average, alpha=DECAY**count, out=average)


def observe(state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]) -> None:
    """Fold a block of attention weights into the state of each token, in place.

    Args:
        state: ``spectrum``, (batch, heads, 17, tokens) float32; ``tail``, (batch, heads, 16, tokens), the weights of
            the last complete hop, in a dtype that holds them exactly; and, while some sequence is inside a hop,
            ``pending``, like ``tail``, the weights of that hop so far.
        weights: (batch, heads, queries, tokens) float32, averaged over each KV group.
        tokens_seen: number of real tokens that each sequence had processed before this block.
        query_lengths: number of real queries of each sequence. Either every sequence stays inside one hop, or all that
            have any queries start on a hop and have the same number of complete hops (the cache sees to it).
    """
    queries = weights.shape[2]
    active = [b for b, length in enumerate(query_lengths) if length]
    complete = queries % HOP == 0 and all(query_lengths[b] == queries and tokens_seen[b] % HOP == 0 for b in active)
    with torch.autocast(weights.device.type, enabled=False):  # float32, whatever the model around it computes in
        if not complete:
            _wait(state, weights, tokens_seen, query_lengths)
        elif len(active) == len(query_lengths):
            fold(state["spectrum"], magnitudes(state["tail"], weights))
            state["tail"].copy_(weights[:, :, -HOP:])
        else:
            _advance(state, active, weights[active])


def _wait(state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]) -> None:
    """Collect the weights of unfinished hops; a hop that becomes complete is folded."""
    if "pending" not in state:
        state["pending"] = torch.zeros_like(state["tail"])
    pending = state["pending"]
    for b, length in enumerate(query_lengths):
        start = tokens_seen[b] % HOP
        pending[b, :, start : start + length] = weights[b, :, :length]
    ends = [seen + length for seen, length in zip(tokens_seen, query_lengths, strict=True)]
    complete = [b for b, length in enumerate(query_lengths) if length and ends[b] % HOP == 0]
    if complete:
        _advance(state, complete, pending[complete])
    if all(end % HOP == 0 for end in ends):
        del state["pending"]


def _advance(state: dict[str, Tensor], chosen: list[int], weights: Tensor) -> None:
    """Fold complete hops of some sequences of the batch."""
    tail, spectrum = state["tail"][chosen], state["spectrum"][chosen]
    state["spectrum"][chosen] = fold(spectrum, magnitudes(tail, weights))
    state["tail"][chosen] = weights[:, :, -HOP:].to(state["tail"].dtype)
