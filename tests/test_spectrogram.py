"""The streamed spectrogram against the full-matrix STFT of the paper (invariant 7)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namm_transfer.spectrogram import BINS, DECAY, HOP, WINDOW, fold, magnitudes, observe


def full_matrix(rows: torch.Tensor) -> torch.Tensor:
    """S of (queries, tokens) attention by torch.stft over whole columns and the closed form of the moving average."""
    signal = torch.nn.functional.pad(rows.T, (WINDOW - HOP, 0))
    frames = torch.stft(signal, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True).abs()
    count = frames.shape[-1]
    weights = (1 - DECAY) * DECAY ** torch.arange(count - 1, -1, -1)
    return (frames * weights).sum(-1).T


def causal_rows(queries: int, seed: int) -> torch.Tensor:
    scores = torch.randn(queries, queries, generator=torch.Generator().manual_seed(seed)) * 3
    return scores.masked_fill(torch.ones(queries, queries).triu(1).bool(), -torch.inf).softmax(-1)


def stream(rows: torch.Tensor, cuts: list[int]) -> dict[str, torch.Tensor]:
    """Feed rows in blocks of the given sizes, each over the tokens that exist by then."""
    state = {"spectrum": torch.zeros(1, 1, BINS, 0), "tail": torch.zeros(1, 1, HOP, 0)}
    done = 0
    for size in cuts:
        state = {name: torch.nn.functional.pad(tensor, (0, size)) for name, tensor in state.items()}
        observe(state, rows[None, None, done : done + size, : done + size], [done], [size])
        done += size
    return state


def legal(chunk: int, total: int) -> list[int]:
    """A chunk length as the attention hands it over: up to the next hop, whole hops, the rest."""
    cuts, done = [], 0
    while done < total:
        end = min(done + chunk, total)
        while done < end:
            inside = done % HOP
            size = min(end - done, HOP - inside) if inside or end - done < HOP else (end - done) // HOP * HOP
            cuts.append(size)
            done += size
    return cuts


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 512), seed=st.integers(0, 5))
def test_streamed_equals_full_matrix_for_every_chunk_length(chunk, seed):
    rows = causal_rows(512, seed)
    expected = full_matrix(rows)
    got = stream(rows, legal(chunk, 512))["spectrum"][0, 0]
    assert ((got - expected).abs() / expected.abs().clamp_min(1)).max() <= 1e-6


def test_each_frame_is_a_windowed_dft():
    rows = torch.rand(48, 3)
    got = magnitudes(torch.zeros(16, 3), rows)
    window = torch.hann_window(32)
    expected = torch.fft.rfft(rows[16:48] * window[:, None], dim=0).abs()
    torch.testing.assert_close(got[2], expected, atol=1e-5, rtol=1e-5)


def test_autocast_around_it_changes_nothing():
    rows, cuts = causal_rows(160, 0), [64, 5, 11, 80]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = stream(rows, cuts)
    assert torch.equal(inside["spectrum"], stream(rows, cuts)["spectrum"])


def test_fold_is_the_recursion_without_bias_correction():
    frames = torch.rand(5, BINS, 2)
    average = torch.rand(BINS, 2)
    expected = average
    for frame in frames:
        expected = DECAY * expected + (1 - DECAY) * frame
    torch.testing.assert_close(fold(average, frames), expected)


def test_an_unfinished_hop_waits():
    state = stream(causal_rows(40, 0), [32, 8])
    assert state["spectrum"][..., 32:].abs().max() == 0
    assert "pending" in state


@pytest.mark.parametrize("sizes", [[16, 0], [5, 16], [3, 0]])
def test_rows_of_a_batch_do_not_touch_each_other(sizes):
    rows = torch.rand(2, 1, 16, 16)
    clock = [0, 0]
    both = {"spectrum": torch.zeros(2, 1, BINS, 16), "tail": torch.zeros(2, 1, HOP, 16)}
    observe(both, rows, clock, sizes)
    for b, size in enumerate(sizes):
        alone = {"spectrum": torch.zeros(1, 1, BINS, 16), "tail": torch.zeros(1, 1, HOP, 16)}
        if size:
            observe(alone, rows[b : b + 1, :, :size], [0], [size])
        torch.testing.assert_close(both["spectrum"][b], alone["spectrum"][0])
        torch.testing.assert_close(both["tail"][b], alone["tail"][0])
