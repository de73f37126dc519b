"""Replay recorded updates of the published NAMM and compare every number: ``python -m namm_transfer.parity DIR...``.

Format and tolerances are those of ``tests/data/parity/README.md``. The arithmetic is the library's own (`spectrogram`,
`NAMM.features`, `NAMM.score`, `selection.top`). Two things that the published code does and the cache of this package
deliberately does not are computed here: the sequences of a batch are coupled, and padding queries give attention.
"""

import argparse
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.scorers import PUBLISHED
from namm_transfer.selection import top
from namm_transfer.spectrogram import BINS, HOP, fold, magnitudes

TOLERANCES = {
    "spec_frames": 1e-6,
    "spec_ema": 1e-6,
    "spec_norm": 1e-5,
    "features": 1e-5,
    "scores": 2e-3,
    "running_mean": 1e-6,
    "running_var": 1e-6,
}
"""Largest absolute difference allowed, scaled by max(1, value) for the spectra, features and statistics."""
EXACT = ("cache_positions_before", "above_threshold", "kept_idx", "cache_positions_after", "running_num")
INPUTS = ("attn", "attention_mask", "position_ids")


@dataclass
class Carry:
    """State that one update hands to the next, for each kept token."""

    spectrum: Tensor
    """The spectrogram S, (batch, heads, 17, kept) float32."""
    tail: Tensor
    """The attention weights of the last 16 queries, (batch, heads, 16, kept) float32."""
    positions: Tensor
    """The original positions, (batch, heads, kept) int64."""


def published_update(
    namm: NAMM, attn: Tensor, mask: Tensor, position_ids: Tensor, carry: Carry, moments: Moments | None = None
) -> tuple[dict[str, Tensor], Carry]:
    """Compute one update as the published code does: all sequences keep equally many tokens, padding among them.

    Args:
        namm: parameters and statistics; the statistics are replaced if ``moments`` is given.
        attn: (batch, query_heads, new, tokens) float32, attention weights after the softmax.
        mask: (batch, seen), 1 at real tokens.
        position_ids: (batch, new), positions of the new tokens.
        carry: state from the previous update.
        moments: if given, this update's S is added to these statistics, and S is normalised with the result.

    Returns:
        The intermediate results by their recorded names, and what the next update needs.
    """
    batch, _, new, tokens = attn.shape
    heads, old = carry.positions.shape[1:]
    rows = attn.view(batch, heads, -1, new, tokens).mean(2)
    frames = magnitudes(torch.nn.functional.pad(carry.tail, (0, new)), rows)
    birth = torch.cat([torch.zeros(old), torch.arange(new) // HOP])
    # A frame counts from a token's own frame on; only padding queries attend to tokens that come after them.
    counted = frames * (torch.arange(new // HOP)[:, None] >= birth)[:, None]
    spectrum = fold(torch.nn.functional.pad(carry.spectrum, (0, new)), counted)
    positions = torch.cat([carry.positions, position_ids[:, None].expand(-1, heads, -1)], dim=-1)
    real = mask[:, None, -tokens:].bool().expand(-1, heads, -1)
    if moments is not None:
        moments.add(spectrum.transpose(-1, -2)[real])
        namm.mean, namm.var = moments.mean.float(), moments.var.float()
    features = namm.features(spectrum, positions)
    scores = namm.score(features, real)
    ranked = scores.masked_fill(~real, -inf)
    ranked[..., -1] = inf
    passing = ranked >= 0
    # Padding scores below every real token, but is not excluded: it may fill up the number to keep.
    filled = ranked.masked_fill(~real, torch.finfo(torch.float32).min)
    kept = top(filled, passing.sum(-1).max().expand(batch, heads)).nonzero()[:, -1].view(batch, heads, -1)
    result = {
        "cache_positions_before": carry.positions,
        "spec_frames": frames.transpose(-1, -2),
        "spec_ema": spectrum.transpose(-1, -2),
        "spec_norm": features[..., -BINS:],
        "features": features,
        "scores": scores,
        "above_threshold": passing,
        "kept_idx": kept,
        "cache_positions_after": positions.gather(-1, kept),
    }
    if moments is not None:
        result |= {"running_mean": namm.mean, "running_var": namm.var, "running_num": torch.tensor(moments.count)}
    along = kept[:, :, None]
    return result, Carry(
        spectrum.gather(-1, along.expand(-1, -1, BINS, -1)),
        rows[:, :, -HOP:].gather(-1, along.expand(-1, -1, HOP, -1)),
        result["cache_positions_after"],
    )


def replay(folder: Path) -> dict[str, float]:
    """Replay a folder and return the largest error of every recorded array, by the array's name.

    Errors are absolute for scores and relative to max(1, value) for everything else; arrays that are compared exactly
    have error 0, or infinity if anything differs.

    Raises:
        NammTransferError: the folder does not hold recorded updates.
    """
    setup = _load(folder / "setup.npz")
    interval, batch = int(setup["delay"]), int(setup["batch"])
    heads = int(setup["n_kv_heads"])
    estimating = "params" not in setup
    params = torch.zeros(PUBLISHED.size) if estimating else setup["params"]
    namm = NAMM.from_vector(params, mean=setup["norm_mean"], var=setup["norm_var"], update_interval=interval)
    moments = Moments() if estimating else None
    empty = torch.zeros(batch, heads, 0, dtype=torch.long)
    carry = Carry(torch.zeros(batch, heads, BINS, 0), torch.zeros(batch, heads, HOP, 0), empty)
    worst: dict[str, float] = {}
    for update in range(int(setup["n_updates"])):
        recorded = _load(folder / f"update_{update}.npz")
        inputs = [torch.from_numpy(recorded[name]) for name in INPUTS]
        if carry.positions.shape[-1] + interval != inputs[0].shape[-1]:
            worst["kept_idx"] = inf  # an earlier update kept another number of tokens: the rest cannot be replayed
            break
        computed, carry = published_update(namm, inputs[0].float(), inputs[1], inputs[2].long(), carry, moments)
        for name, expected in recorded.items():
            if name not in INPUTS:
                worst[name] = max(worst.get(name, 0.0), _error(name, computed.get(name), expected))
    if estimating:
        for name, own in (("norm_mean", namm.mean), ("norm_var", namm.var)):
            worst[name] = _error("running_mean", own, setup[name])
    return worst


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise NammTransferError(f"{path}: no such file; expected a folder of recorded updates") from None
    except (ValueError, OSError) as error:
        raise NammTransferError(f"{path}: not a readable .npz file: {error}") from error


def _error(name: str, computed: Tensor | None, recorded: np.ndarray) -> float:
    """Return the largest difference; infinity for a missing array, another shape, another exact value or a NaN."""
    expected = torch.from_numpy(np.asarray(recorded))
    if computed is None or computed.reshape(-1).shape != expected.reshape(-1).shape:
        return inf
    if name not in EXACT and computed.shape != expected.shape:
        return inf
    if name in EXACT:
        return 0.0 if torch.equal(computed.reshape(-1).long(), expected.reshape(-1).long()) else inf
    difference = (computed - expected).abs()
    if name != "scores":
        difference = difference / expected.abs().clamp_min(1)
    worst = float(difference.max()) if difference.numel() else 0.0
    return worst if worst == worst else inf


def main(arguments: list[str] | None = None) -> int:
    """Replay folders and print the largest error of every array; return 0 only if all are inside the tolerances."""
    parser = argparse.ArgumentParser(prog="namm-transfer parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder with setup.npz and update_*.npz")
    failed = False
    for folder in parser.parse_args(arguments).folders:
        try:
            worst = replay(folder)
        except NammTransferError as error:
            print(f"{folder.name}: {error}")
            failed = True
            continue
        for name, largest in worst.items():
            allowed = TOLERANCES.get(name, 0.0 if name in EXACT else TOLERANCES["running_mean"])
            good = largest <= allowed
            failed |= not good
            print(f"{folder.name:18s} {name:24s} {largest:9.2e}  allowed {allowed:7.1e}  {'ok' if good else 'FAILED'}")
    print("parity: FAILED" if failed else "parity: ok")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
