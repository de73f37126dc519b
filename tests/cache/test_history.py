"""The history of a cache says what reading in parts, and looking after each of them, finds."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.history import History, KeptHistory
from namm_transfer.cache.keyword import CACHE

INTERVAL = 32
TOKENS = torch.randint(0, 97, (1, 150), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    with torch.no_grad():
        yield LlamaForCausalLM._from_config(config, attn_implementation="memory").eval()


@pytest.fixture
def policy(request, random_namm):
    return random_namm(update_interval=INTERVAL) if request.param == "namm" else made(request.param)


def made(spec: str):
    return policies.make(spec, update_interval=INTERVAL)


def held_by(cache: MemoryCache, layer: int, head: int) -> list[int]:
    return [position for position in cache.positions(layer)[0, head].tolist() if position >= 0]


@pytest.mark.parametrize("policy", ["full", "h2o:keep=0.5", "h2o:keep=0.5,allocation=ada", "namm"], indirect=True)
@pytest.mark.parametrize("length", [150, 128])
def test_each_step_is_what_reading_in_parts_leaves(policy, length, model):
    cache, calls = MemoryCache(model.config, policy=policy), []
    recorder = History(cache, lambda: calls.append(None))
    model(TOKENS[:, :length], **{CACHE: cache})
    history, report = recorder.read(), cache.report()
    updates = length // INTERVAL if policy.evicts else 0
    assert len(calls) == 2 * updates
    steps = [INTERVAL * number for number in range(1, updates + 1)]
    steps += [length] if length not in steps else []
    assert history.seen.tolist() == steps
    assert history.updates.tolist() == [min(number, updates) for number in range(1, len(steps) + 1)]
    assert np.array_equal(history.counts()[-1], report.kept[:, 0].numpy())
    parts, start = MemoryCache(model.config, policy=policy), 0
    for step, stop in enumerate(steps):
        model(TOKENS[:, start:stop], **{CACHE: parts})
        start = stop
        for layer in range(2):
            for head in range(2):
                assert np.flatnonzero(history.held(step)[layer, head]).tolist() == held_by(parts, layer, head)
    assert all(held_by(cache, layer, head) == held_by(parts, layer, head) for layer in range(2) for head in range(2))
    if policy.evicts:
        assert (history.counts()[-1] < length).all()
    model(TOKENS[:, :64], **{CACHE: cache})
    assert len(calls) == 2 * updates, "reading it ends the recording"


def test_shares_are_of_the_tokens_of_a_unit_that_were_read():
    # One layer, one head, six tokens, two steps: token 0 never survives, 1 survives the first update, the rest stay.
    history = KeptHistory(np.array([[[0, 1, 2, 2, 2, 2]]]), np.array([4, 6]), np.array([1, 1]))
    shares = history.shares(np.array([0, 0, 1, 1, 1, -1]), 3)
    assert np.allclose(shares[:, 0, 0], [[0.5, 1, 0], [0, 1, 0]])
    assert history.counts()[:, 0, 0].tolist() == [3, 4]


def test_a_thinned_history_tells_the_same_at_the_steps_it_keeps():
    random = np.random.default_rng(0)
    whole = KeptHistory(random.integers(0, 10, (2, 3, 40)), 4 * np.arange(1, 11), np.arange(1, 11))
    thin = whole.thinned(4)
    assert len(thin.seen) == 4
    assert thin.seen[-1] == 40
    for step, seen in enumerate(thin.seen.tolist()):
        assert np.array_equal(thin.held(step), whole.held(seen // 4 - 1))
    assert whole.thinned(10) is whole


def test_what_cannot_be_recorded_is_refused(model):
    cache = MemoryCache(model.config, policy=made("h2o:keep=0.5"))
    with pytest.raises(NammTransferError, match="0 sequences"):
        History(cache).read()
    recorder = History(cache)
    model(TOKENS.repeat(2, 1), **{CACHE: cache})
    with pytest.raises(NammTransferError, match="2 sequences"):
        recorder.read()
    with pytest.raises(NammTransferError, match="not empty"):
        History(cache)
