"""`check_policy` and `check_adapter`: checks of what every policy and every adapter must do, for anybody to call.

They run real models (a random Llama of two layers for policies, the adapter's own model for adapters) and raise
`NammTransferError` at the first requirement that is not met.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from namm_transfer.cache.keyword import CACHE
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.errors import NammTransferError
from namm_transfer.namm import NAMM
from namm_transfer.policies import FullCache
from namm_transfer.policy import EvictionPolicy

_PADDING = (0, 5, 23)
"""Left padding of the three sequences of a check; no two of them reach an update in the same call."""
_VOCABULARY = 61
_FEW_WORDS = 6


def check_policy(policy: EvictionPolicy) -> None:
    """Check that a policy can be relied on in a `MemoryCache`.

    It must keep its state along the token axis, choose with a bool mask and leave every head a token. It must decide
    the same again for the same sequence: whatever was processed before, alone or padded in a batch, in any place of the
    batch, however the prompt is cut into calls (also where words repeat and scores tie), and after rows of the cache
    were moved or the cache was saved and loaded. Attention after an eviction must be dense attention with the evicted
    tokens masked.

    Args:
        policy: as a user would give it to `MemoryCache`; a small update interval makes the check quick.

    Raises:
        NammTransferError: the first requirement that the policy does not meet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _random_llama(layers=2, attention="memory")
        length = 3 * policy.update_interval + policy.update_interval // 2 + 5
        tokens = torch.randint(3, _VOCABULARY, (len(_PADDING), length))
        with torch.no_grad():
            _check_state(policy)
            _check_acting(policy, model, tokens)
            _check_repeatable(policy, model, tokens)
            _check_ties(policy, tokens[:1])
            _check_padding(policy, model, tokens)
            _check_calls(policy, model, tokens[:1])
            _check_rows(policy, model, tokens)
            _check_saved(policy, model, tokens[:1])
            _check_dense(policy, tokens[:2])


def check_adapter(adapter: Any, sample: Any = None) -> None:
    """Check that an evaluation can rely on an adapter.

    The same sample must give the same answer twice, and once more under a memory that watches attention but keeps
    everything; a full cache must report that everything was kept; `kept` must return finite arrays.

    Args:
        adapter: a loaded `ModalityAdapter`.
        sample: something its ``encode`` takes; its own ``example()`` if left out.

    Raises:
        NammTransferError: the first requirement that the adapter does not meet.
    """
    name = type(adapter).__name__
    sample = adapter.example() if sample is None else sample
    with torch.no_grad():
        encoded = adapter.encode(sample)
        # A NAMM of zeros scores every token 0, which passes: it keeps all, through the code that watches attention.
        caches = [adapter.memory(FullCache()), adapter.memory(FullCache()), adapter.memory(NAMM(update_interval=16))]
        first, again, watched = (adapter.answer(encoded, cache) for cache in caches)
    _expect(_equal(first, again, 0), f"{name}: the same sample twice gives two answers: {first!r} and {again!r}")
    _expect(
        _equal(first, watched, 1e-4),
        f"{name}: a memory that keeps everything changes the answer from {first!r} to {watched!r}",
    )
    report = caches[0].report()
    _expect(
        report.row(0).kept_share == 1.0,
        f"{name}: the full policy reports a kept share of {report.row(0).kept_share}; expected 1.0",
    )
    for key, array in adapter.kept(caches[0], encoded).items():
        _expect(isinstance(array, np.ndarray), f"{name}.kept()[{key!r}] is {type(array).__name__}; expected an array")
        _expect(np.isfinite(array.astype(float)).all(), f"{name}.kept()[{key!r}] holds NaN or infinity")


def _expect(met: bool, broken: str) -> None:
    if not met:
        raise NammTransferError(broken)


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    """Compare answers: tensors and numbers within a tolerance, containers item by item, everything else exactly."""
    if isinstance(a, Tensor | np.ndarray | float):
        return np.allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), rtol=tolerance, atol=tolerance)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if hasattr(a, "__dataclass_fields__"):
        return _equal(vars(a), vars(b), tolerance)
    return bool(a == b)


def _random_llama(layers: int, attention: str, width: int = 32) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.3,  # attention with peaks, so that tokens differ in what they receive
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()


def _run(
    model: PreTrainedModel,
    policy: EvictionPolicy,
    tokens: Tensor,
    mask: Tensor | None = None,
    chunks: Sequence[int] | None = None,
    between: Callable[[MemoryCache], MemoryCache] = lambda cache: cache,
) -> tuple[MemoryCache, Tensor]:
    """Feed tokens in calls of the sizes in ``chunks``; return the cache and the logits of the last token."""
    cache = MemoryCache(model.config, policy=policy)
    mask = torch.ones_like(tokens) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    done = 0
    for size in chunks or [tokens.shape[1]]:
        part = slice(done, done + size)
        logits = model(
            tokens[:, part],
            attention_mask=mask[:, : done + size],
            position_ids=positions[:, part],
            **{CACHE: cache},
        ).logits
        done += size
        cache = between(cache)
    return cache, logits[:, -1]


def _kept(cache: MemoryCache, row: int) -> list[list[list[int]]]:
    """List the original positions of a sequence's kept tokens by layer and head."""
    return [
        [[p for p in head.tolist() if p >= 0] for head in cache.positions(layer)[row]]
        for layer in range(len(cache.attention_layers))
    ]


def _check_state(policy: EvictionPolicy) -> None:
    """Check that the state of new tokens consists of tensors of zeros whose last axis is the token."""
    for tokens in (0, 7):
        for name, tensor in policy.state(2, 3, tokens, torch.device("cpu")).items():
            shape = tuple(tensor.shape)
            good = len(shape) >= 3 and shape[:2] == (2, 3) and shape[-1] == tokens and not tensor.any()
            _expect(
                good,
                f"{type(policy).__name__}.state(2, 3, {tokens}, ...)[{name!r}] has shape {shape}: "
                f"expected zeros of shape (2, 3, ..., {tokens}), the token last",
            )


def _check_acting(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that the policy acts exactly at multiples of its interval and leaves every head at least one token."""
    name = type(policy).__name__
    row = _run(model, policy, tokens[:1])[0].report().row(0)
    acted = row.seen // policy.update_interval if policy.evicts else 0
    _expect(row.updates == acted, f"{name} acted {row.updates} times on {row.seen} tokens; expected {acted}")
    _expect(bool((row.history >= 1).all()), f"{name} left heads without any token: {row.history.tolist()}")
    early = _run(model, policy, tokens[:1, : policy.update_interval - 1])[0].report().row(0)
    _expect(early.updates == 0 and early.kept_share == 1.0, f"{name} evicts before its first update")


def _check_repeatable(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that a sequence gets the same decisions again after another sequence and under another random seed."""
    first, expected = _run(model, policy, tokens[:1])
    torch.manual_seed(1)
    _run(model, policy, tokens[1:])
    again, logits = _run(model, policy, tokens[:1])
    same = _kept(first, 0) == _kept(again, 0) and torch.equal(expected, logits)
    _expect(same, f"{type(policy).__name__} decides differently when it processes the same sequence again")


def _check_padding(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that each padded sequence of a batch gets the decisions it gets alone, also in a second call."""
    mask = (torch.arange(tokens.shape[1]) >= torch.tensor(_PADDING)[:, None]).long()
    first = policy.update_interval + 7
    batch, together = _run(model, policy, tokens, mask, chunks=[first, tokens.shape[1] - first])
    for row, padding in enumerate(_PADDING):
        single, alone = _run(model, policy, tokens[row : row + 1, padding:])
        same = _kept(batch, row) == _kept(single, 0) and torch.allclose(together[row], alone[0], atol=1e-4)
        _expect(same, f"{type(policy).__name__}: a row with {padding} paddings in a batch differs from the row alone")


def _check_calls(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that decisions do not depend on how a prompt is split into calls of the model."""
    at_once, expected = _run(model, policy, tokens)
    length = tokens.shape[1]
    cuts = [length // 3, 1, 1, 7]
    pieces, logits = _run(model, policy, tokens, chunks=[*cuts, length - sum(cuts)])
    same = _kept(at_once, 0) == _kept(pieces, 0) and torch.allclose(expected, logits, atol=1e-4)
    _expect(same, f"{type(policy).__name__}: splitting the prompt into other calls changes the kept tokens")


def _check_ties(policy: EvictionPolicy, tokens: Tensor) -> None:
    """Check that ties (scores equal up to rounding) are decided alike in one call and in calls of one token each."""
    # In the first layer equal words have equal keys but for rounding, which differs by the call in a wider model.
    model = _random_llama(layers=1, attention="memory", width=64)
    repeated = tokens % _FEW_WORDS
    at_once, _ = _run(model, policy, repeated)
    one_by_one, _ = _run(model, policy, repeated, chunks=[1] * tokens.shape[1])
    _expect(
        _kept(at_once, 0) == _kept(one_by_one, 0),
        f"{type(policy).__name__}: where words repeat, rounding decides which of two equal tokens stays; "
        "ScoredPolicy keeps the older, or see namm_transfer.selection.merge_ties",
    )


def _check_rows(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that permuting, repeating, selecting and copying sequences moves the policy's state with them."""
    name = type(policy).__name__
    order = torch.LongTensor([2, 0, 1])
    half = policy.update_interval + policy.update_interval // 2 + 3
    cuts = [half, tokens.shape[1] - half]
    plain, logits = _run(model, policy, tokens, chunks=cuts)

    def shuffle(cache: MemoryCache) -> MemoryCache:
        cache = copy.deepcopy(cache)
        cache.reorder_cache(order)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 3, 4]))
        cache.reorder_cache(torch.LongTensor([1, 2, 0]))
        return cache

    moved, shuffled = _run(model, policy, tokens, chunks=cuts, between=shuffle)
    permuted, others = _run(model, policy, tokens[order], chunks=cuts)
    for row in range(len(order)):
        same = _kept(plain, row) == _kept(moved, row) and torch.allclose(logits, shuffled, atol=1e-4)
        _expect(same, f"{name}: the policy's state is not moved together with the rows of the cache")
        there = int(order.argsort()[row])
        same = _kept(plain, row) == _kept(permuted, there) and torch.allclose(logits[row], others[there], atol=1e-4)
        _expect(same, f"{name}: a row's result depends on its place in the batch")


def _check_saved(policy: EvictionPolicy, model: PreTrainedModel, tokens: Tensor) -> None:
    """Check that a saved and loaded cache continues like the original: the policy object holds no state of it."""

    def save_and_load(cache: MemoryCache) -> MemoryCache:
        with tempfile.TemporaryDirectory() as folder:
            cache.save(Path(folder) / "cache.safetensors")
            return MemoryCache.load(Path(folder) / "cache.safetensors", model.config, policy=copy.deepcopy(policy))

    half = policy.update_interval + policy.update_interval // 2 + 3
    cuts = [half, tokens.shape[1] - half]
    original, expected = _run(model, policy, tokens, chunks=cuts)
    loaded, logits = _run(model, policy, tokens, chunks=cuts, between=save_and_load)
    same = _kept(original, 0) == _kept(loaded, 0) and torch.allclose(expected, logits, atol=1e-4)
    _expect(same, f"{type(policy).__name__}: a saved and loaded cache continues differently")


def _check_dense(policy: EvictionPolicy, tokens: Tensor) -> None:
    """Check that attention after evictions equals dense attention with the evicted tokens masked."""
    memory = _random_llama(layers=1, attention="memory")
    dense = _random_llama(layers=1, attention="eager")
    dense.load_state_dict(memory.state_dict())
    batch, length = tokens.shape
    groups = memory.config.num_attention_heads // memory.config.num_key_value_heads
    allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 2, -1, -1).clone()
    done, interval = 0, policy.update_interval

    def mask_evicted(cache: MemoryCache) -> MemoryCache:
        nonlocal done
        done = min(done + interval, length)
        held = torch.zeros(batch, 2, length + 1, dtype=torch.bool)
        held.scatter_(-1, cache.positions(0).masked_fill(cache.positions(0) < 0, length), True)
        allowed[:, :, done:, :done] &= held[:, :, None, :done]
        return cache

    sizes = [min(interval, length - start) for start in range(0, length, interval)]
    _, logits = _run(memory, policy, tokens, chunks=sizes, between=mask_evicted)
    bias = torch.zeros(batch, 4, length, length).masked_fill(~allowed.repeat_interleave(groups, 1), -torch.inf)
    expected = dense(tokens, attention_mask=bias).logits[:, -1]
    _expect(
        torch.allclose(logits, expected, atol=1e-4),
        f"{type(policy).__name__}: attention after eviction differs from dense attention with evicted columns masked",
    )
