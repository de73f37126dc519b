"""Models in, exact or refused; the live cache against recorded semantics; what importing does not change."""

import copy
import re
import subprocess
import sys

import pytest
import torch
import transformers as tf
from packaging.version import Version
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.blocks import plan
from namm_transfer.cache.kernels import explicit
from namm_transfer.cache.keyword import CACHE
from namm_transfer.parity import Carry, published_update
from namm_transfer.spectrogram import BINS, HOP

SMALL = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)
SERVED = {
    "llama": tf.LlamaConfig(**SMALL),
    "mistral": tf.MistralConfig(**SMALL, sliding_window=None),
    "mistral, sliding window": tf.MistralConfig(**SMALL, sliding_window=20),
    "qwen2": tf.Qwen2Config(**SMALL),
    "qwen3": tf.Qwen3Config(**SMALL, head_dim=16),
    "gpt2": tf.GPT2Config(vocab_size=97, n_embd=64, n_layer=3, n_head=4, n_positions=512),
    "gemma3, two kinds of layers": tf.Gemma3TextConfig(
        **SMALL,
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
REFUSED = {
    "gemma2": (tf.Gemma2Config(**SMALL, head_dim=16), "softcap"),
    "gpt-oss": (tf.GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, head_dim=16), "s_aux"),
    "deepseek-v3": (
        tf.DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
            first_k_dense_replace=1,
            moe_intermediate_size=32,
        ),
        "other keys",
    ),
    "jetmoe": (
        tf.JetMoeConfig(
            vocab_size=97,
            hidden_size=64,
            num_hidden_layers=2,
            num_key_value_heads=2,
            kv_channels=16,
            intermediate_size=64,
            num_local_experts=2,
            num_experts_per_tok=2,
        ),
        "other keys",
    ),
    "gemma3n": (
        tf.Gemma3nTextConfig(
            **SMALL | {"num_hidden_layers": 6},
            head_dim=16,
            num_kv_shared_layers=3,
            vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
            layer_types=["sliding_attention", "full_attention"] * 3,
            activation_sparsity_pattern=[0.0] * 6,
            laurel_rank=4,
        ),
        "other keys|another layer",
    ),
    "llama4, chunked": (
        tf.Llama4TextConfig(
            **SMALL, head_dim=16, attention_chunk_size=16, intermediate_size_mlp=64, num_local_experts=2
        ),
        "chunked_attention",
    ),
    "mamba": (
        tf.MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2),
        "no layer has keys|linear_attention|mamba",
    ),
}


def build(config, attention="memory", model_class=AutoModelForCausalLM):
    torch.manual_seed(0)
    return model_class.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def padded(length=90, padding=13):
    ids = torch.randint(0, 97, (2, length))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :padding] = 0
    return ids, mask, (mask.cumsum(1) - 1).clamp_min(0)


@pytest.mark.parametrize("selection", ["layer", "head"])
def test_tokens_that_left_a_sliding_window_are_released_at_updates(zero_namm, selection):
    """In layers with a window, in sequences of other lengths, and before the policy sees them; elsewhere nothing is."""
    model = build(SERVED["gemma3, two kinds of layers"])
    windows = [24, None, 24]
    cache = MemoryCache(model.config, policy=zero_namm(update_interval=16, selection=selection))
    seen = []
    decide = cache.policy.decide
    cache.policy.decide = lambda view: (
        seen.append((view.layer, view.seen, int(view.real.sum(-1).max()))) or decide(view)
    )
    ids, mask, positions = padded()
    for part in (slice(0, 70), slice(70, 90)):
        model(ids[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part], **{CACHE: cache})
    for layer, window in enumerate(windows):
        held = [row[row >= 0] for row in cache.positions(layer)[:, 0]]
        for row, tokens in zip(held, (77, 90), strict=True):
            first = 0 if window is None else tokens // 16 * 16 - window + 1
            assert row.tolist() == list(range(first, tokens))
        for number, lengths, shown in seen:
            if number == layer:
                assert shown == (max(lengths) if window is None else min(max(lengths), window - 1))


@pytest.mark.parametrize("name", SERVED)
def test_keeping_everything_is_the_plain_model(name, zero_namm):
    """Invariant 1 in float32: one call, calls of other lengths, left padding, both code paths of the attention."""
    reference, model = build(SERVED[name], "eager"), build(SERVED[name])
    ids, mask, positions = padded()
    expected = reference(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    for policy in (policies.make("full"), zero_namm(update_interval=16)):
        for cuts in ([90], [50, 1, 39]):
            cache, pieces, done = MemoryCache(model.config, policy=policy), [], 0
            for size in cuts:
                part = slice(done, done + size)
                done += size
                out = model(
                    ids[:, part], attention_mask=mask[:, :done], position_ids=positions[:, part], **{CACHE: cache}
                )
                pieces.append(out.logits)
            assert cache.get_seq_length() == 90
            torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_plain_models(name, beams, zero_namm):
    reference, model = build(SERVED[name], "sdpa"), build(SERVED[name])
    ids, mask, _ = padded(40)
    options = dict(
        attention_mask=mask, max_new_tokens=24, do_sample=False, num_beams=beams, pad_token_id=0, eos_token_id=96
    )
    expected = reference.generate(ids, **options)
    for policy in (policies.make("full"), zero_namm(update_interval=16)):
        cache = MemoryCache(model.config, policy=policy)
        assert torch.equal(model.generate(ids, **{CACHE: cache}, **options), expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_half_precision_is_as_close_to_float32_as_the_plain_model(name, zero_namm):
    exact = build(SERVED[name], "eager")
    ids = torch.randint(0, 97, (2, 200))
    expected = exact(ids).logits
    plain = build(SERVED[name], "sdpa").to(torch.bfloat16)
    distance = (plain(ids).logits.float() - expected).pow(2).mean().sqrt()
    model = build(SERVED[name]).to(torch.bfloat16)
    for policy in (policies.make("full"), zero_namm(update_interval=32)):
        logits = model(ids, **{CACHE: MemoryCache(model.config, policy=policy)}).logits.float()
        assert (logits - expected).pow(2).mean().sqrt() <= 1.5 * distance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 20.0, 60.0, 180.0])
def test_autocast_is_as_close_to_float32_as_the_plain_model(bias, dtype, zero_namm):
    """Also where products of queries and keys, before they are scaled, are more than half precision can hold."""
    model = build(tf.Qwen2Config(**SMALL, head_dim=64, initializer_range=0.1))
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.bias.data.view(-1, 64)[:, [30, 31, 62, 63]] = bias
    ids = torch.randint(0, 97, (1, 64))
    expected = model(ids).logits
    with torch.autocast("cpu", dtype=dtype):
        plain = model(ids).logits.float()
        logits = model(ids, **{CACHE: MemoryCache(model.config, policy=zero_namm(update_interval=16))}).logits
    distances = [(some.float() - expected).pow(2).mean().sqrt() for some in (logits, plain)]
    assert distances[0] <= 1.5 * distances[1]


def test_half_precision_holds_the_products_of_large_queries_and_keys():
    """In the open, where nothing is widened: on accelerators."""
    query, keys, values = 100 * torch.randn(1, 4, 8, 64), 100 * torch.randn(1, 2, 8, 64), torch.randn(1, 2, 8, 64)
    halves = [tensor.half() for tensor in (query, keys, values)]
    assert (halves[0] @ halves[1].repeat_interleave(2, 1).transpose(-1, -2)).isinf().any()
    output, rows = explicit(*halves, None, 0.125, "float32")
    expected, _ = explicit(*(tensor.float() for tensor in halves), None, 0.125, "float32")
    torch.testing.assert_close(output.float(), expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 2, 8))


def refusal(model, ids):
    """What a MemoryCache says to a model, or None if it serves it."""
    try:
        model(ids, **{CACHE: MemoryCache(model.config, policy=policies.make("full"))})
    except NammTransferError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused(name):
    config, says = REFUSED[name]
    model, ids = build(config), torch.randint(0, 97, (1, 20))
    message = refusal(model, ids)
    if message is None:  # DeepSeek-V3 and Gemma3n used to cache what they attend to: older versions can be served
        assert Version(tf.__version__) < Version("5.23")
        logits = model(ids, **{CACHE: MemoryCache(model.config, policy=policies.make("full"))}).logits
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=0)
    else:
        assert re.search(says, message)


def test_encoder_decoder_models_are_refused():
    config = tf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    with pytest.raises(NammTransferError, match="encoder-decoder"):
        MemoryCache(config, policy=policies.make("full"))


def test_a_model_with_another_attention_is_refused():
    model = build(SERVED["llama"], "sdpa")
    with pytest.raises(NammTransferError, match=r"'sdpa'.*memory"):
        MemoryCache(model.config, policy=policies.make("full"))
    cache = MemoryCache(tf.LlamaConfig(**SMALL), policy=policies.make("full"))
    with pytest.raises(NammTransferError, match="no memory attention read"):
        model(torch.randint(0, 97, (1, 20)), **{CACHE: cache})
    # the failure leaves nothing behind that would disturb the next model
    other = build(SERVED["llama"])
    other(torch.randint(0, 97, (1, 20)), **{CACHE: DynamicCache()})


def test_a_four_dimensional_mask_is_refused():
    model = build(SERVED["llama"])
    cache = MemoryCache(model.config, policy=policies.make("full"))
    with pytest.raises(NammTransferError, match=r"mask of shape \(1, 1, 8, 8\)"):
        model(torch.randint(0, 97, (1, 8)), attention_mask=torch.ones(1, 1, 8, 8).bool(), **{CACHE: cache})


def test_attention_dropout_is_refused():
    model = build(tf.LlamaConfig(**SMALL, attention_dropout=0.1)).train()
    with pytest.raises(NammTransferError, match="dropout"):
        model(torch.randint(0, 97, (1, 8)), **{CACHE: MemoryCache(model.config, policy=policies.make("full"))})


@pytest.mark.parametrize("name", SERVED)
def test_without_a_memory_cache_it_is_sdpa(name):
    """Dynamic and static caches, right padding, no cache, training: all as with SDPA."""
    plain, model = build(SERVED[name], "sdpa"), build(SERVED[name])
    ids, mask, positions = padded()
    cases = {
        "no cache": lambda m: m(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()],
        "no mask": lambda m: m(ids).logits,
        "right padding": lambda m: m(ids, attention_mask=mask.flip(1)).logits[mask.flip(1).bool()],
        "dynamic": lambda m: m(ids, **{CACHE: DynamicCache(config=m.config)}).logits,
        "static": lambda m: m(ids, **{CACHE: StaticCache(config=m.config, max_cache_len=128)}).logits,
        "training": lambda m: m.train()(ids, labels=ids).loss,
    }
    for case, run in cases.items():
        torch.manual_seed(0)  # dropout in training
        got = run(model)
        torch.manual_seed(0)
        torch.testing.assert_close(got, run(plain), msg=lambda text, case=case: f"{case}: {text}")


def test_importing_changes_nothing():
    """Invariant 2: the classes and defaults of transformers are what they were."""
    code = """
import transformers, torch
from transformers.cache_utils import Cache
from transformers.models.llama import modeling_llama as llama
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as A
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as M
classes = (Cache, llama.LlamaAttention, llama.LlamaModel, LlamaForCausalLM)
def state(): return ([vars(c).copy() for c in classes], dict(A), dict(M))
before = state()
import namm_transfer
after = state()
assert before[0] == after[0]
assert {k: v for k, v in after[1].items() if k != "memory"} == before[1]
assert {k: v for k, v in after[2].items() if k != "memory"} == before[2]
small = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
assert LlamaForCausalLM(small).config._attn_implementation == "sdpa"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_live_cache_is_the_published_update(random_namm, dtype):
    """Dense attention of an eager model, evicted columns masked, drives the one-update function: same tokens."""
    config = tf.LlamaConfig(**SMALL | {"num_hidden_layers": 1}, initializer_range=0.2)
    dense, model = build(config, "eager"), build(config)
    interval, updates, heads = 64, 4, config.num_key_value_heads
    namm = random_namm(update_interval=interval, attention_dtype=dtype)
    ids = torch.randint(0, 97, (1, interval * updates))
    carry = Carry(
        torch.zeros(1, heads, BINS, 0), torch.zeros(1, heads, HOP, 0), torch.zeros(1, heads, 0, dtype=torch.long)
    )
    allowed = torch.ones(interval * updates, interval * updates).tril().bool().expand(1, 4, -1, -1).clone()
    cache, shares = MemoryCache(model.config, policy=namm), []
    for update in range(updates):
        start, end = update * interval, (update + 1) * interval
        model(ids[:, start:end], **{CACHE: cache})
        bias = torch.zeros(1, 4, end, end).masked_fill(~allowed[:, :, :end, :end], -torch.inf)
        weights = dense(ids[:, :end], attention_mask=bias, output_attentions=True).attentions[0][:, :, start:]
        columns = torch.cat([carry.positions, torch.arange(start, end).expand(1, heads, -1)], -1)
        rows = weights.gather(-1, columns.repeat_interleave(2, 1)[:, :, None].expand(-1, -1, interval, -1))
        if dtype == "bfloat16":
            rows = rows.bfloat16().view(1, heads, 2, interval, -1).mean(2).float().repeat_interleave(2, 1)
        mask, position_ids = torch.ones(1, end), torch.arange(start, end)[None]
        _, carry = published_update(namm, rows, mask, position_ids, carry)
        assert torch.equal(cache.positions(0), carry.positions)
        torch.testing.assert_close(cache.layers[0].groups[0].state["spectrum"], carry.spectrum, atol=1e-6, rtol=0)
        held = torch.zeros(1, heads, end, dtype=torch.bool).scatter(-1, carry.positions, True)
        allowed[:, :, end:, :end] &= held.repeat_interleave(2, 1)[:, :, None]
        shares.append(held.float().mean())
    assert 0.02 < min(shares) < max(shares) < 0.98, "the case must evict, and not everything"


def test_the_update_after_a_token_is_seen_from_the_next_one(random_namm):
    model = build(SERVED["llama"])
    namm = random_namm(update_interval=16)
    ids = torch.randint(0, 97, (1, 17))
    full = model(ids, **{CACHE: MemoryCache(model.config, policy=policies.make("full"))}).logits
    cut = model(ids, **{CACHE: MemoryCache(model.config, policy=namm)}).logits
    torch.testing.assert_close(cut[:, :16], full[:, :16], atol=1e-5, rtol=0)
    assert (cut[:, 16] - full[:, 16]).abs().max() > 1e-4


def test_padding_between_turns_is_never_stored(random_namm):
    model = build(SERVED["llama"])
    first, second = torch.randint(0, 97, (1, 41)), torch.randint(0, 97, (1, 30))
    namm = random_namm(update_interval=16)
    alone = MemoryCache(model.config, policy=namm)
    expected = model(torch.cat([first, second], 1), **{CACHE: alone}).logits[:, -1]
    cache = MemoryCache(model.config, policy=namm)
    gap = torch.zeros(1, 7, dtype=torch.long)
    mask = torch.cat([torch.ones(1, 41), torch.zeros(1, 7), torch.ones(1, 30)], 1).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    model(torch.cat([first, gap], 1), attention_mask=mask[:, :48], position_ids=positions[:, :48], **{CACHE: cache})
    out = model(second, attention_mask=mask, position_ids=positions[:, 48:], **{CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert all(torch.equal(cache.positions(i), alone.positions(i)) for i in range(3))
    assert cache.get_seq_length() == 78
    assert cache.report().seen == [71]


def test_a_mask_that_changes_the_past_is_refused():
    model = build(SERVED["llama"])
    ids, mask, positions = padded()
    cache = MemoryCache(model.config, policy=policies.make("full"))
    model(ids, attention_mask=mask, position_ids=positions, **{CACHE: cache})
    with pytest.raises(NammTransferError, match="90 columns already seen"):
        model(ids[:, :1], **{CACHE: cache})
    with pytest.raises(NammTransferError, match="attention_mask has 4 columns"):
        model(ids[:, :1], attention_mask=mask[:, :4] * 0, **{CACHE: cache})


@pytest.mark.parametrize("hop", [1, 16])
def test_the_plan_never_passes_an_update_and_keeps_to_hops(hop):
    clock, remaining = [5, 16, 0, 47], [100, 3, 0, 64]
    while any(remaining):
        sizes = plan(clock, remaining, 48, hop)
        assert any(sizes)
        for b, size in enumerate(sizes):
            assert size <= remaining[b]
            assert clock[b] // 48 == max(clock[b], clock[b] + size - 1) // 48
        if hop == 16:
            active = {b for b, size in enumerate(sizes) if size}
            inside = all(clock[b] // 16 == (clock[b] + sizes[b] - 1) // 16 for b in active)
            assert inside or (len({sizes[b] for b in active}) == 1 and all(clock[b] % 16 == 0 for b in active))
        clock = [c + s for c, s in zip(clock, sizes, strict=True)]
        remaining = [r - s for r, s in zip(remaining, sizes, strict=True)]
    assert clock == [105, 19, 0, 111]


def test_a_rule_that_drops_the_sink_is_seen_to_fail():
    """Invariant 14: in a model whose heads park their attention on the first token, sinks carry the result."""
    config = tf.LlamaConfig(**SMALL | {"num_hidden_layers": 2}, attention_bias=True)
    model = build(config)
    sink_id = 3
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            direction = torch.zeros(16)
            direction[7] = direction[15] = 1.0  # the slowest rotary pair hardly turns
            attention.q_proj.bias.copy_(direction.repeat(4) * 6)
            attention.k_proj.bias.zero_()
            attention.k_proj.weight[[7, 15, 23, 31]] = 0
            attention.k_proj.weight[[7, 15, 23, 31], 0] = 1.0
            attention.v_proj.weight[:, 0] = 0
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[sink_id] = 0
        model.model.embed_tokens.weight[sink_id, 0] = 1.0
    ids = torch.randint(4, 97, (1, 200))
    ids[0, 0] = sink_id

    def distance(spec):
        logits = model(ids, **{CACHE: MemoryCache(model.config, policy=policies.make(spec, update_interval=16))}).logits
        full = model(ids, **{CACHE: MemoryCache(model.config, policy=policies.make("full"))}).logits
        return float((logits - full)[:, -50:].abs().mean())

    assert distance("streaming:sinks=0,window=24") > 5 * distance("streaming:sinks=4,window=20")
