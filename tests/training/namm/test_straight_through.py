"""Straight-through eviction: forward it is the live cache, backward it says what difference each token makes."""

import pytest
import torch
from tiny_text import save_tiny_llama
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from namm_transfer import NAMM, MemoryCache, NammTransferError
from namm_transfer.cache.keyword import CACHE
from namm_transfer.moments import Moments
from namm_transfer.scorers import PUBLISHED
from namm_transfer.training.namm import gates, straight_through
from namm_transfer.training.namm.fitness import stacked_namm
from namm_transfer.training.namm.straight_through import StraightThrough

INTERVAL = 32
STATISTICS = dict(mean=torch.full((17,), 0.02), var=torch.full((17,), 0.01))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture
def read(model):
    """The model's logits under a memory that evicts: of the first row, or of all of them."""

    def reading(tokens, memory, rows=None):
        model.set_attn_implementation(straight_through.NAME)
        logits = model(tokens, straight_through=memory, use_cache=False).logits
        return logits[0] if rows is None else logits

    return reading


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 256, (1, 150), generator=torch.Generator().manual_seed(1))


def namm(seed: int, bias: float = 0.0, **options) -> NAMM:
    vector = 0.4 * torch.randn(PUBLISHED.size, generator=torch.Generator().manual_seed(seed))
    vector[-1] += bias
    return NAMM.from_vector(vector, **STATISTICS, update_interval=INTERVAL, **options)


def test_keeping_everything_is_plain_attention(model, read, tokens):
    memory = StraightThrough(namm(0, bias=1e4), INTERVAL, [150], temperature=0.5)
    found = read(tokens, memory)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, model(tokens, use_cache=False).logits[0], atol=1e-4, rtol=0)
    assert [float(share) for share in memory.kept_shares] == [1.0, 1.0]


@pytest.mark.parametrize("selection", ["head", "layer"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learning", [False, True])
def test_forward_is_the_live_cache(model, read, tokens, selection, seed, learning):
    """Logits, and how much each layer holds, whatever the temperature and whether or not gradients are taken."""
    policy = namm(seed, selection=selection)
    memory = StraightThrough(policy.requires_grad_(learning), INTERVAL, [150], temperature=0.7)
    found = read(tokens, memory)
    model.set_attn_implementation("memory")
    cache = MemoryCache(model.config, policy=policy)
    with torch.no_grad():
        expected = model(tokens, **{CACHE: cache}).logits[0]
    kept = cache.report().kept[:, 0].float().mean(-1) / tokens.shape[1]
    assert kept.min() < 0.9
    torch.testing.assert_close(torch.cat(memory.kept_shares).detach(), kept, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [straight_through.NAME, gates.NAME])
def test_a_sliding_window_that_a_prompt_exceeds_is_refused(name, tokens):
    """Attention here is causal over the whole prompt; a window within which the prompt lies changes nothing."""
    sizes = dict(vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)

    def read(window):
        config = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=window)
        memory = StraightThrough(namm(0), INTERVAL, [150], temperature=0.5)
        gating = gates.Gating(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2), INTERVAL)
        model = MistralForCausalLM(config)
        model.set_attn_implementation(name)
        model(tokens, straight_through=memory, gating=gating, use_cache=False)

    read(150)
    with pytest.raises(NammTransferError, match=r"sliding window of 149 tokens .* prompts of 150"):
        read(149)


def test_nothing_of_the_size_of_the_attention_waits_for_the_backward_pass():
    """So that what a step needs grows with the tokens of its prompt and not with their square."""
    query, key, value = torch.randn(1, 4, 64, 8), torch.randn(1, 2, 512, 8), torch.randn(1, 2, 512, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x):
        straight_through._attend(query.requires_grad_(True), key, value, torch.ones(1, 2, 512), 0.5)
    assert max(saved) == key.numel()


@pytest.mark.parametrize("place", range(7))
def test_gradient_is_the_difference_a_token_makes(place):
    """To a linear function of the output: with the token and without it, whether or not it was kept."""
    generator = torch.Generator().manual_seed(place)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    query, key, value, wanted = draw(1, 2, 3, 8), draw(1, 1, 7, 8), draw(1, 1, 7, 5), draw(1, 2, 3, 5)
    stay = torch.ones(1, 1, 7)
    stay[..., [1, 4]] = 0
    rows, output = straight_through._attend(query, key, value, stay.requires_grad_(True), 0.5)
    (found,) = torch.autograd.grad((output * wanted).sum(), stay)

    def attended(held):
        unseen = torch.ones(3, 7).triu(5).bool() | (held == 0)
        return (query @ key.transpose(-1, -2) * 0.5).masked_fill(unseen, -torch.inf).softmax(-1) @ value

    here = torch.arange(7) == place
    held = stay.detach()[0, 0]
    difference = attended(held.masked_fill(here, 1)) - attended(held.masked_fill(here, 0))
    torch.testing.assert_close(output, attended(held), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0, 0, place], (difference * wanted).sum(), atol=1e-5, rtol=1e-4)
    assert not rows.requires_grad


def test_what_was_evicted_has_the_gradient_of_its_update_only(monkeypatch):
    """And what still stays has that of every update."""
    scores = [torch.tensor(s, requires_grad=True) for s in ([1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0])]  # of the living
    updates = iter(scores)
    policy = namm(0, selection="head")
    monkeypatch.setattr(policy, "score", lambda *_: next(updates)[None, None])
    memory = StraightThrough(policy, INTERVAL, [4], temperature=1.0)
    due = torch.tensor([True])
    stay, count = memory._update(torch.zeros(1, 1, 17, 4), torch.ones(1, 1, 4), due)
    assert stay[0, 0].tolist() == [1, 0, 1, 1]
    assert count == 3
    stay, count = memory._update(torch.zeros(1, 1, 17, 4), stay, due)
    assert stay[0, 0].tolist() == [1, 0, 0, 1]
    assert count == 2
    found = torch.autograd.grad(stay.sum(), scores)
    slope = float(torch.tensor(1.0).sigmoid() * (1 - torch.tensor(1.0).sigmoid()))
    expected = torch.tensor([slope, slope, 0, 0]), torch.tensor([slope, slope, 0])  # the newest always stays
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_the_size_has_a_gradient(read, tokens, selection):
    """More tokens would stay if the bias were higher."""
    policy = namm(1, selection=selection).requires_grad_(True)
    memory = StraightThrough(policy, INTERVAL, [150], temperature=0.5)
    read(tokens, memory)
    (slope,) = torch.autograd.grad(torch.cat(memory.kept_shares).mean(), policy.output.bias)
    assert slope > 0


def test_noise_is_the_generators(read, tokens):
    def seen(seed, noise):
        generator = torch.Generator().manual_seed(seed)
        return read(
            tokens, StraightThrough(namm(0), INTERVAL, [150], temperature=0.5, noise=noise, generators=[generator])
        )

    assert torch.equal(seen(0, 0.5), seen(0, 0.5))
    assert not torch.equal(seen(0, 0.5), seen(1, 0.5))
    assert torch.equal(seen(0, 0.0), seen(1, 0.0))


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_rows_of_a_batch_are_as_alone(read, selection):
    """Logits, kept shares and gradients, for lengths before, at and after an update; each row has its own noise."""
    lengths, generator = [150, 128, 97], torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 256, (length,), generator=generator) for length in lengths]
    statistics = Moments(1.0, STATISTICS["mean"], STATISTICS["var"])
    vectors = 0.4 * torch.randn(3, PUBLISHED.size, generator=generator)

    def run(rows):
        given = [vectors[row].clone().requires_grad_(True) for row in rows]
        memory = StraightThrough(
            stacked_namm(torch.stack(given), statistics, selection=selection),
            INTERVAL,
            [lengths[row] for row in rows],
            temperature=0.7,
            noise=0.3,
            generators=[torch.Generator().manual_seed(row) for row in rows],
        )
        tokens = torch.nn.utils.rnn.pad_sequence([prompts[row] for row in rows], batch_first=True)
        logits = read(tokens, memory, rows=len(rows))
        kept = torch.stack(memory.kept_shares).mean(0)
        last = [logits[n, : lengths[row]] for n, row in enumerate(rows)]
        loss = sum(kept) + sum(part.log_softmax(-1)[:, 7].mean() for part in last)
        return last, kept.detach(), torch.autograd.grad(loss, given)

    together = run([0, 1, 2])
    for row in range(3):
        for found, expected in zip(together, run([row]), strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=2e-4, rtol=1e-3)
    assert together[1].max() < 0.95
