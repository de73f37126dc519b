"""Heads in groups and pages decide and attend as heads that are kept one at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_calls import call
from torch.nn.functional import pad

from namm_transfer import EvictionPolicy
from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.cache.pages import Layout, like_lengths
from namm_transfer.policies import RandomEviction

HEADS, GROUP, WIDTH = 5, 2, 4


class Uneven(EvictionPolicy):
    """Keeps a share of each head's tokens, by a hash and the attention they got, that differs from head to head."""

    needs_attention = True
    by_head = True
    update_interval = 12

    def __init__(self, least: float) -> None:
        self.shares = torch.linspace(least, 1, HEADS)[torch.randperm(HEADS, generator=torch.Generator().manual_seed(3))]

    def state(self, batch, heads, tokens, device):
        return {"seen": torch.zeros(batch, heads, tokens)}

    def observe(self, state, weights, tokens_seen, query_lengths):
        state["seen"] += weights.sum(2)

    def select(self, view):
        hashed = RandomEviction().scores(view).float() / 2**24
        chosen = hashed < self.shares[view.heads][..., None] - 0.2 * (view.state["seen"] > 0.9)
        chosen[..., -1] = True
        return chosen


class Unwatched(Uneven):
    """Uneven heads, chosen by the hash of positions alone, by a policy that reads no attention weights."""

    needs_attention = False

    def state(self, batch, heads, tokens, device):
        return {}

    def select(self, view):
        return RandomEviction().scores(view) < self.shares[view.heads][..., None] * 2**24


class Single(EvictionPolicy):
    """Shows one head of a layer to a policy, as the head that it is."""

    by_head = True

    def __init__(self, policy, head):
        self.policy, self.head = policy, head
        self.update_interval, self.needs_attention = policy.update_interval, policy.needs_attention
        self.state, self.observe, self.hop = policy.state, policy.observe, policy.hop
        self.attention_dtype = policy.attention_dtype

    def select(self, view):
        view.heads = torch.full_like(view.heads, self.head)
        return self.policy.select(view)


class Apart:
    """The reference: a layer of its own for every head, which is never in pages nor beside another head."""

    def __init__(self, policy):
        self.layers = [MemoryLayer(Single(policy, head), 0, 1) for head in range(HEADS)]

    def call(self, q, k, v, counts, window):
        parts = []
        for head, layer in enumerate(self.layers):
            own = slice(head * GROUP, (head + 1) * GROUP)
            parts.append(call(layer, q[:, own], k[:, head : head + 1], v[:, head : head + 1], counts, window))
            assert not layer.paged
        return torch.cat(parts, 1)

    def positions(self):
        most = max(layer.positions.shape[-1] for layer in self.layers)
        return torch.cat([pad(p, (most - p.shape[-1], 0), value=-1) for p in (x.positions for x in self.layers)], 1)


def tensors(generator, rows, new):
    shapes = (HEADS * GROUP, HEADS, HEADS)
    return [torch.randn(rows, heads, new, WIDTH, generator=generator) * 2 for heads in shapes]


@settings(max_examples=25, deadline=None)
@given(
    watched=st.booleans(),
    least=st.sampled_from([0.0, 0.1, 0.6]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    calls=st.lists(st.sampled_from([1, 1, 1, 2, 5, 16, 17, 30]), min_size=4, max_size=12),
    window=st.sampled_from([None, None, 9]),
    seed=st.integers(0, 99),
)
def test_heads_together_are_heads_one_at_a_time(watched, least, lengths, calls, window, seed):
    """Ragged rows and heads, left padding, calls of all lengths, rows reordered and repeated, copies."""
    generator = torch.Generator().manual_seed(seed)
    policy = (Uneven if watched else Unwatched)(least)
    layer, apart = MemoryLayer(policy, 0, 1), Apart(policy)
    counts, new = lengths, max(lengths)
    for number, following in enumerate(calls):
        q, k, v = tensors(generator, len(counts), new)
        together, single = call(layer, q, k, v, counts, window), apart.call(q, k, v, counts, window)
        torch.testing.assert_close(together, single, atol=2e-5, rtol=1e-4)
        assert torch.equal(layer.positions, apart.positions())
        for head, other in enumerate(apart.layers):
            assert layer.seen == other.seen
            assert len(layer.sequences[0].history) == len(other.sequences[0].history), head
        if number % 4 == 1:
            rows = torch.randint(0, len(counts), (len(counts) + number % 2,), generator=generator)
            for some in (layer, *apart.layers):
                some.select_rows(rows)
            counts = [1] * len(rows)
        if number % 4 == 2:
            layer = copy.deepcopy(layer)
        counts, new = [following] * len(counts), following


def test_gradients_through_heads_of_different_lengths():
    """Autograd goes through the groups, also where a prompt without gradient has left pages."""
    policy, gradients = Uneven(0.1), []
    for make in (lambda: MemoryLayer(policy, 0, 1), lambda: Apart(policy)):
        generator, some = torch.Generator().manual_seed(5), make()
        go = some.call if isinstance(some, Apart) else lambda *a, layer=some: call(layer, *a)
        with torch.no_grad():
            go(*tensors(generator, 2, 40), [40, 31], None)
        inputs = [tensor.requires_grad_() for new in (1, 20, 1) for tensor in tensors(generator, 2, new)]
        parts = [inputs[i : i + 3] for i in range(0, 9, 3)]
        if not isinstance(some, Apart):
            assert some.paged
        outputs = [go(*part, [part[0].shape[2]] * 2, None) for part in parts]
        gradients.append(torch.autograd.grad(torch.cat(outputs, 2).square().sum(), inputs))
    for mine, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("least", [0.05, 0.6])
def test_pages_take_what_is_kept(least):
    """At most 3 % beyond the kept tokens, right after a prompt and while tokens are decoded."""
    policy = Uneven(least)
    policy.update_interval = 500
    layer = MemoryLayer(policy, 0, 1)
    generator = torch.Generator().manual_seed(0)
    call(layer, *tensors(generator, 1, 2000), [2000], None)
    for _ in range(40):
        held = int((layer.positions >= 0).sum()) * layer.groups[0].token_bytes
        assert layer.paged
        assert held <= layer.bytes <= 1.03 * held
        call(layer, *tensors(generator, 1, 1), [1], None)


def test_a_layout_has_a_slot_for_every_token_and_few_more():
    """Also for heads that keep nothing, and equal ones, which make one group."""
    for counts in ([0, 1, 900, 64, 333], [1, 1, 1], [5, 0], [4096, 2048]):
        layout = Layout.paged(counts, 100)
        slots = torch.bincount(torch.tensor(layout.heads), minlength=len(counts)) * layout.width
        assert all(have >= count for have, count in zip(slots.tolist(), counts, strict=True))
        assert int(slots.sum()) <= 1.02 * sum(counts)
    groups = like_lengths([100, 10, 99, 55, 30, 4, 1, 1])
    assert [g.heads for g in groups] == [[0, 2], [3], [4], [1, 5, 6, 7]]
    assert [g.width for g in groups] == [100, 55, 30, 10]
    assert len(like_lengths([7] * 9)) == 1
