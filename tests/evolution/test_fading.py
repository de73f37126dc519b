"""A memory that fades: at its hard edge it is the live cache, at a soft one its gradient is right."""

import pytest
import torch
from tiny_text import save_tiny_llama
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from namm_transfer import NAMM, MemoryCache
from namm_transfer.evolution import fading
from namm_transfer.evolution.fading import Fading
from namm_transfer.namm import SIZE

INTERVAL = 32
STATISTICS = dict(mean=torch.full((17,), 0.02), var=torch.full((17,), 0.01))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture
def faded(model):
    """The model's logits, (tokens, vocabulary), under a fading memory."""

    def read(tokens, memory):
        model.set_attn_implementation(fading.NAME)
        return model(tokens, fading=memory, use_cache=False).logits[0]

    return read


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 256, (1, 150), generator=torch.Generator().manual_seed(1))


def namm(seed: int, bias: float = 0.0) -> NAMM:
    vector = 0.4 * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    vector[-1] += bias
    return NAMM.from_vector(vector, **STATISTICS, update_interval=INTERVAL)


def test_keeping_everything_is_plain_attention(model, faded, tokens):
    memory = Fading(namm(0, bias=1e4), INTERVAL, temperature=0.5)
    found = faded(tokens, memory)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, model(tokens, use_cache=False).logits[0], atol=1e-4, rtol=0)
    assert [float(h) for h in memory.held] == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_with_a_hard_edge_it_is_the_live_cache(model, faded, tokens, seed, monkeypatch):
    """Logits, and how much each layer holds, the heads that are filled up to the most generous one included."""
    monkeypatch.setattr(fading, "_FLOOR", -80.0)
    policy = namm(seed)
    memory = Fading(policy, INTERVAL, temperature=1e-6)
    found = faded(tokens, memory)
    model.set_attn_implementation("memory")
    cache = MemoryCache(model.config, policy=policy)
    expected = model(tokens, past_key_values=cache).logits[0]
    kept = cache.report().kept[:, 0].float().mean(-1) / tokens.shape[1]
    assert kept.min() < 0.9
    torch.testing.assert_close(torch.stack(memory.held), kept, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_gradient_says_what_a_change_does(tokens):
    """Finite differences along the gradient, with one KV head, whose edge is 0, and one update, whose spectra stay."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=fading.NAME).eval().requires_grad_(False)
    policy, short = namm(1), tokens[:, : INTERVAL + 20]

    def loss(shift: float) -> tuple[torch.Tensor, NAMM]:
        moved = NAMM.from_vector(policy.to_vector() + shift * direction, **STATISTICS).requires_grad_(True)
        memory = Fading(moved, INTERVAL, temperature=1.0)
        logits = model(short, fading=memory, use_cache=False).logits[0]
        value = 100 * logits[-5:].log_softmax(-1)[:, 7].mean() + torch.stack(memory.held).mean()
        return value, moved

    direction = torch.zeros(SIZE)
    value, moved = loss(0.0)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(moved.parameters()))])
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (loss(1e-3)[0] - loss(-1e-3)[0]) / 2e-3
    torch.testing.assert_close(slope, gradient.norm(), rtol=0.02, atol=0)


def test_noise_is_the_generators(faded, tokens):
    def read(seed, noise):
        generator = torch.Generator().manual_seed(seed)
        return faded(tokens, Fading(namm(0), INTERVAL, temperature=0.5, noise=noise, generator=generator))

    assert torch.equal(read(0, 0.5), read(0, 0.5))
    assert not torch.equal(read(0, 0.5), read(1, 0.5))
    assert torch.equal(read(0, 0.0), read(1, 0.0))
