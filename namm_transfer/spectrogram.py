"""Attention rows to spectra: the streamed short-time Fourier transform of NAMM (paper section 3.1; window 32, hop 16).

Pure functions on tensors whose last axis is the cached token, so that a block of attention rows (queries x tokens) is
transformed in place, without a transpose. All arithmetic is float32.
"""

from functools import lru_cache

import torch
from torch import Tensor

HOP = 16
WINDOW = 32
BINS = 17
DECAY = 0.99**HOP  # per frame: the published 0.99 is per token


@lru_cache(maxsize=8)
def hann_dft(device: torch.device) -> Tensor:
    """Windowed real DFT matrix, (32, 32) float32: 17 cosine rows, then the 15 sine rows of bins 1 to 15.

    The sines of bins 0 and 16 vanish. Columns 0-15 meet the previous hop, columns 16-31 the current one.
    """
    n = torch.arange(WINDOW, dtype=torch.float64)
    angle = 2 * torch.pi * torch.arange(BINS, dtype=torch.float64)[:, None] * n / WINDOW
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * n / WINDOW)
    return (torch.cat([angle.cos(), angle[1:-1].sin()]) * window).float().to(device)


def magnitudes(tail: Tensor, rows: Tensor) -> Tensor:
    """STFT magnitudes of every frame that ends in ``rows``.

    Args:
        tail: the hop of attention rows before ``rows``, (..., 16, tokens).
        rows: whole hops of attention rows, oldest first, (..., 16 * frames, tokens).

    Returns:
        (..., frames, 17, tokens) float32.
    """
    *lead, length, tokens = rows.shape
    kernel, frames = hann_dft(rows.device), length // HOP
    before, now = kernel[:, :HOP], kernel[:, HOP:]
    hops = rows.float().reshape(-1, HOP, tokens)
    spectrum = now @ hops
    if frames > 1:  # all hops follow the one before in memory, and the first of each row of the batch are done again
        spectrum[1:].baddbmm_(before.expand(len(hops) - 1, -1, -1), hops[:-1])
        spectrum[::frames] = now @ hops[::frames]
    spectrum[::frames] += before @ tail.float().reshape(-1, HOP, tokens)
    cosine, sine = spectrum[:, :BINS], spectrum[:, BINS:].square_()
    cosine[:, :: BINS - 1].square_()  # bins 0 and 16 have no sine
    inner = cosine[:, 1 : BINS - 1]
    torch.addcmul(sine, inner, inner, out=inner)
    return cosine.sqrt_().view(*lead, frames, BINS, tokens)


def fold(average: Tensor, frames: Tensor) -> Tensor:
    """Continue the exponential moving average over frames: S <- g S + (1 - g) m, g = 0.99^16, without bias correction.

    Args:
        average: S so far, (..., 17, tokens); written in place.
        frames: magnitudes, (..., frames, 17, tokens).

    Returns:
        ``average``, the new S.
    """
    *lead, count, bins, tokens = frames.shape
    ages = torch.arange(count - 1, -1, -1, dtype=torch.float32, device=frames.device)
    weights = ((1 - DECAY) * DECAY**ages).expand(*lead, 1, count)
    folded = (weights @ frames.reshape(*lead, count, bins * tokens)).view(*lead, bins, tokens)
    return torch.add(folded, average, alpha=DECAY**count, out=average)


def observe(state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
    """Fold a block of attention rows into the per-token state, in place.

    ``state`` holds ``spectrum`` (batch, heads, 17, tokens) float32, ``tail`` (batch, heads, 16, tokens), the last hop,
    in a dtype that holds the rows exactly, and, while some sequence is inside a hop, ``pending``, as ``tail``, the rows
    of that hop so far.

    Args:
        rows: group-averaged attention, (batch, heads, queries, tokens) float32; row b has ``sizes[b]`` real queries.
        clock: real tokens each sequence had processed before this block.
        sizes: real queries of each sequence. Either a sequence stays inside one hop, or all sequences that have any
            queries start on a hop and have the same whole number of hops (`attention.plan` sees to it).
    """
    active = [b for b, size in enumerate(sizes) if size]
    whole = rows.shape[2] % HOP == 0 and all(sizes[b] == rows.shape[2] and clock[b] % HOP == 0 for b in active)
    with torch.autocast(rows.device.type, enabled=False):  # float32, whatever the model around it computes in
        if not whole:
            _wait(state, rows, clock, sizes)
        elif len(active) == len(sizes):
            fold(state["spectrum"], magnitudes(state["tail"], rows))
            state["tail"].copy_(rows[:, :, -HOP:])
        else:
            _advance(state, active, rows[active])


def _wait(state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
    """Collect rows of unfinished hops; sequences that complete theirs are folded."""
    if "pending" not in state:
        state["pending"] = torch.zeros_like(state["tail"])
    pending = state["pending"]
    for b, size in enumerate(sizes):
        start = clock[b] % HOP
        pending[b, :, start : start + size] = rows[b, :, :size]
    complete = [b for b, size in enumerate(sizes) if size and (clock[b] + size) % HOP == 0]
    if complete:
        _advance(state, complete, pending[complete])
    if all((c + size) % HOP == 0 for c, size in zip(clock, sizes, strict=True)):
        del state["pending"]


def _advance(state: dict[str, Tensor], chosen: list[int], rows: Tensor) -> None:
    """Fold whole hops of some sequences of the batch."""
    tail, spectrum = state["tail"][chosen], state["spectrum"][chosen]
    state["spectrum"][chosen] = fold(spectrum, magnitudes(tail, rows))
    state["tail"][chosen] = rows[:, :, -HOP:].to(state["tail"].dtype)
