"""Losses through a MemoryCache have the right gradient, or the call is refused."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.keyword import CACHE

TOKENS = torch.randint(0, 50, (2, 44), generator=torch.Generator().manual_seed(0))
POLICIES = ["full", "streaming:sinks=2,window=14", "l2:keep=0.5", "h2o:keep=0.5", "namm", "namm head"]


@pytest.fixture(params=POLICIES)
def policy(request, random_namm):
    if request.param.startswith("namm"):
        return random_namm(update_interval=16, selection="head" if "head" in request.param else "layer")
    return policies.make(request.param, **({} if request.param == "full" else {"update_interval": 16}))


@pytest.fixture
def model():
    """GPT-2 in float64, which rounds nothing to float32 on the way, as Llama's norm does."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0
    )
    model = GPT2LMHeadModel._from_config(config, attn_implementation="memory").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def loss(model, cache, cuts=(44,), mask=None, start=32):
    done, logits = 0, []
    for size in cuts:
        part = slice(done, done + size)
        done += size
        extra = {} if mask is None else {"attention_mask": mask[:, :done]}
        logits.append(model(TOKENS[:, part], **{CACHE: cache}, **extra).logits)
    return torch.cat(logits, 1)[:, start:].logsumexp(-1).sum()


def expect_finite_differences(value, weight):
    """Autograd of ``value()`` with regard to some entries of a weight against central differences."""
    weight.grad = None
    value().backward()
    for index in ((0, 3), (5, 40), (20, 90)):
        with torch.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                weight[index] += step
                ends.append(value())
            weight[index] += 1e-6
        expected = float((ends[0] - ends[1]) / 2e-6)
        assert float(weight.grad[index]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("cuts", [(44,), (32, 12), (20, 1, 1, 22)])
def test_gradients_are_finite_differences(model, policy, cuts, layer):
    """c_attn makes queries (0 to 31), keys (32 to 63) and values (64 to 95)."""
    weight = model.transformer.h[layer].attn.c_attn.weight
    expect_finite_differences(lambda: loss(model, MemoryCache(model.config, policy=policy), cuts), weight)


def test_gradients_of_a_padded_batch(model, policy):
    mask = torch.ones(2, 44, dtype=torch.long)
    mask[1, :9] = 0
    weight = model.transformer.h[0].attn.c_attn.weight
    expect_finite_differences(lambda: loss(model, MemoryCache(model.config, policy=policy), (30, 14), mask), weight)


def test_a_loss_after_a_prompt_without_gradient(model, policy):
    """A frozen prefix and a trained continuation."""

    def value():
        cache = MemoryCache(model.config, policy=policy)
        with torch.no_grad():
            frozen(TOKENS[:, :32], **{CACHE: cache})
        for layer in cache.layers:
            layer.reader = None  # two models in turn, which a cache otherwise refuses
        return model(TOKENS[:, 32:], **{CACHE: cache}).logits.logsumexp(-1).sum()

    frozen = copy.deepcopy(model)
    expect_finite_differences(value, model.transformer.h[0].attn.c_attn.weight)


def test_a_call_without_gradient_in_between_leaves_the_graph_alone(model, policy):
    """What an earlier graph saved is not written over; its own gradient is that of the earlier calls."""
    gradients = []
    for go_on in (False, True):
        model.zero_grad()
        cache = MemoryCache(model.config, policy=policy)
        value = loss(model, cache, (20, 12), start=20)
        if go_on:
            with torch.no_grad():
                for token in TOKENS[:, 32:].split(1, dim=1):
                    model(token, **{CACHE: cache})
                cache.reorder_cache(torch.tensor([1, 0]))
        value.backward()
        gradients.append(model.transformer.h[0].attn.c_attn.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_backward_twice_and_through_copied_and_repeated_rows(model, policy):
    cache = MemoryCache(model.config, policy=policy)
    model(TOKENS[:, :32], **{CACHE: cache})
    twin = copy.deepcopy(cache)
    twin.batch_repeat_interleave(2)
    value = model(TOKENS[:, 32:].repeat_interleave(2, 0), **{CACHE: twin}).logits.logsumexp(-1).sum()
    weight = model.transformer.h[0].attn.c_attn.weight
    (first,) = torch.autograd.grad(value, weight, retain_graph=True)
    (second,) = torch.autograd.grad(value, weight)
    assert torch.equal(first, second)
    (alone,) = torch.autograd.grad(loss(model, MemoryCache(model.config, policy=policy), (32, 12)), weight)
    torch.testing.assert_close(first, 2 * alone)


def test_queries_alone_may_be_trained(model, policy):
    """Keys and values that need no gradient are saved for the queries' all the same."""
    model.requires_grad_(False)
    adapter = torch.nn.Linear(32, 32).double()
    attention = model.transformer.h[1].attn.c_attn
    attention.register_forward_hook(
        lambda _, args, out: torch.cat([out[..., :32] + adapter(args[0]), out[..., 32:]], -1)
    )
    weight = adapter.weight
    value = lambda: loss(model, MemoryCache(model.config, policy=policy), (20, 24))  # noqa: E731
    value().backward()
    with torch.no_grad():
        ends = []
        for step in (1e-6, -2e-6):
            weight[3, 4] += step
            ends.append(value())
    assert float(weight.grad[3, 4]) == pytest.approx(float((ends[0] - ends[1]) / 2e-6), rel=1e-3, abs=1e-5)


def test_recording_changes_no_number(model, policy):
    with torch.no_grad():
        expected = loss(model, MemoryCache(model.config, policy=policy), (20, 1, 23))
    assert torch.equal(loss(model, MemoryCache(model.config, policy=policy), (20, 1, 23)), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_a_cache_made_inside_and_refuses_one_from_outside(model, use_reentrant):
    policy = policies.make("h2o:keep=0.5", update_interval=16)
    weight = model.transformer.h[0].attn.c_attn.weight
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def inside(scale):
        return scale * loss(model, MemoryCache(model.config, policy=policy))

    checkpoint(inside, scale, use_reentrant=use_reentrant).backward()
    (expected,) = torch.autograd.grad(inside(scale), weight)
    torch.testing.assert_close(weight.grad, expected)

    cache = MemoryCache(model.config, policy=policy)
    outside = checkpoint(lambda scale: scale * loss(model, cache), scale, use_reentrant=use_reentrant)
    with pytest.raises(NammTransferError, match="checkpointing"):
        outside.backward()


def test_a_model_under_gradient_checkpointing_is_refused():
    """It leaves the cache out, in training mode, with no more than a warning."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="memory")
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.24 on
    (enable or model.gradient_checkpointing_enable)()
    model.train()
    with pytest.raises(NammTransferError, match="checkpointing"):
        model(TOKENS, **{CACHE: MemoryCache(config, policy=policies.make("full"))}, use_cache=True)


def test_training_mode_has_the_gradient_of_evaluation_mode(model, policy):
    weight = model.transformer.h[0].attn.c_attn.weight
    gradients = [
        torch.autograd.grad(loss(mode, MemoryCache(model.config, policy=policy), (30, 14)), weight)[0]
        for mode in (model.eval(), model.train())
    ]
    assert torch.equal(*gradients)
