"""Checks that `gpu.py` makes before it measures: each yields a line, and whether it is met."""

import os
from collections.abc import Iterator

import torch
from gpu_models import Shape, new_cache, set_attention
from torch import Tensor
from transformers import PreTrainedModel

from namm_transfer import NAMM, MemoryCache
from namm_transfer.cache.keyword import CACHE
from namm_transfer.kernel_choice import VARIABLE

WATCHED = ("namm:selection=head", "namm:selection=layer", "h2o:keep=0.5", "tova:keep=0.5", "snapkv:keep=0.5")
INTERVAL = 64
Line = tuple[str, bool]


def checks(shapes: list[Shape], device: torch.device, kernels: str, tokens: int) -> Iterator[Line]:
    """Check every text shape with two layers, over so many tokens, then the scorer."""
    for shape in shapes:
        if not shape.video:
            yield from _full(shape, device, kernels, tokens)
            yield from _fused(shape, device, kernels, tokens)
    yield _scorer(device, 32 * tokens)


def _run(model: PreTrainedModel, spec: str, ids: Tensor) -> tuple[MemoryCache, Tensor]:
    """Read a prompt, then four single tokens, and return the cache and all logits in float32."""
    cache, logits = new_cache(model, spec), []
    for part in (ids[:, :-4], *ids[:, -4:].split(1, 1)):
        logits.append(model(part, **{CACHE: cache}).logits.float())
    return cache, torch.cat(logits, 1)


def _full(shape: Shape, device: torch.device, kernels: str, tokens: int) -> Iterator[Line]:
    """Check that the full policy is plain attention: within 1e-4 of the logits' scale in float32, in bfloat16 at most
    1.5 times as far from the float32 logits as plain attention is."""
    os.environ[VARIABLE] = kernels
    exact = shape.build(device, torch.float32, layers=2)
    ids = shape.inputs(tokens, device, torch.float32)["input_ids"]
    expected = _run(exact, "", ids)[1]
    scale = float(expected.abs().max())
    error = float((_run(exact, "full", ids)[1] - expected).abs().max()) / scale
    yield f"{shape.name}: full policy against SDPA, float32: {error:.1e} of the largest logit", error < 1e-4
    half: PreTrainedModel = exact.bfloat16()
    plain, full = (float((_run(half, spec, ids)[1] - expected).abs().mean()) for spec in ("", "full"))
    ratio = full / plain
    yield f"{shape.name}: the same in bfloat16: {ratio:.2f} times SDPA's own error", ratio < 1.5


def _fused(shape: Shape, device: torch.device, kernels: str, tokens: int) -> Iterator[Line]:
    """Fused statistics decide as the reference does: 99.9 % of the first layer's kept tokens are the same.

    A score may differ by rounding, and lie so close to the threshold that it tells. Later layers read what the first
    one wrote, whose rounding to bfloat16 is no question of statistics.
    """
    for dtype in (torch.float32, torch.bfloat16):
        model = shape.build(device, dtype, layers=2)
        ids = shape.inputs(tokens, device, dtype)["input_ids"]
        for spec in WATCHED:
            kept, logits = [], []
            for path in ("torch", kernels):
                os.environ[VARIABLE] = path
                cache, found = _run(model, f"{spec},update_interval={INTERVAL}", ids)
                kept.append(_marks(cache, ids.shape[1]))
                logits.append(found)
            same = int((kept[0] & kept[1]).sum()) / int((kept[0] | kept[1]).sum())
            apart = float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
            name = f"{shape.name}, {spec}, {str(dtype).removeprefix('torch.')}"
            yield f"{name}: {same:.4%} of the kept tokens agree; logits within {apart:.1e}", same >= 0.999
    os.environ[VARIABLE] = kernels
    set_attention(model, "sdpa")


def _marks(cache: MemoryCache, tokens: int) -> Tensor:
    """Return the positions that the first layer's heads hold, (heads, tokens) bool."""
    positions = cache.positions(0)[0]
    marks = torch.zeros(len(positions), tokens + 1, dtype=torch.bool, device=positions.device)
    return marks.scatter_(1, positions.masked_fill(positions < 0, tokens), True)[:, :tokens]


def _scorer(device: torch.device, tokens: int) -> Line:
    """Backward attention over many tokens needs no matrix of tokens x tokens, and scores as it does over a mask."""
    namm = NAMM().to(device)
    generator = torch.Generator().manual_seed(0)
    for parameter in namm.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    x = torch.randn(1, 2, tokens, 25, generator=generator).to(device)
    some = x[:, :, -min(tokens, 2048) :]
    masked = namm.score(some, torch.ones(some.shape[:3], dtype=torch.bool, device=device))
    error = float((namm.score(some) - masked).abs().max() / masked.abs().max())
    if device.type != "cuda":
        return f"scorer: {error:.1e} from the one with a mask", error < 1e-5
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    namm.score(x)
    peak = torch.cuda.max_memory_allocated() - before
    return (
        f"scorer, {tokens} tokens: {error:.1e} from the one with a mask, peak {peak / 2**20:.0f} MiB",
        error < 1e-5 and peak < tokens * tokens,
    )
