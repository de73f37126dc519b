"""Who may read a cache, what a model may ask of it, and what stays when a call fails."""

import copy

import pytest
import torch
import transformers as tf
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, StaticCache
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

import namm_transfer
from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.guard import guarded, opened
from namm_transfer.cache.keyword import CACHE

SMALL = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
TOKENS = torch.arange(20)[None] + 3


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def build(config, attention="memory", auto=AutoModelForCausalLM):
    torch.manual_seed(0)
    return auto.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def full(model):
    return MemoryCache(model.config, policy=policies.make("full"))


def test_a_guarded_tensor_tells_its_shape_and_nothing_else():
    tensor = torch.randn(1, 2, 3, 4)
    guard = guarded(tensor, "owner", "not for you")
    assert guard.shape == (1, 2, 3, 4)
    assert (guard.dtype, guard.device, guard.ndim, guard.size(1), len(guard)) == (torch.float32, tensor.device, 4, 2, 1)
    assert guard.contiguous() is guard
    assert guard.to(torch.float32) is guard
    copied = guarded(tensor.transpose(1, 2), "owner", "not for you").contiguous()
    assert copied.owner == "owner"
    assert torch.equal(opened(copied), tensor.transpose(1, 2))
    reads = [
        lambda: guard + 1,
        lambda: guard[0],
        lambda: torch.cat([tensor, guard]),
        lambda: tensor @ guard.mT,
        lambda: guard.half(),
        lambda: guard.data,
        lambda: guard.add_(1),
        lambda: torch.nn.functional.scaled_dot_product_attention(tensor, tensor, guard),
    ]
    for read in reads:
        with pytest.raises(NammTransferError, match="not for you"):
            read()
    assert torch.equal(opened(guard), tensor)


@pytest.mark.parametrize(("layers", "new"), [(2, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_switched_under_a_used_cache_is_refused(layers, new, attention):
    model = build(tf.LlamaConfig(**SMALL | {"num_hidden_layers": layers}))
    cache = full(model)
    model(TOKENS, **{CACHE: cache})
    model.set_attn_implementation(attention)
    with pytest.raises(NammTransferError, match='attn_implementation="memory"'):
        model(TOKENS[:, :new], **{CACHE: cache})


def test_a_failed_call_disturbs_no_other_model():
    """Not after a model on SDPA, and not after an error between the keys and their attention."""
    other = build(tf.Qwen2Config(**SMALL))
    expected = other(TOKENS).logits
    for layers in (1, 2):
        config = tf.LlamaConfig(**SMALL | {"num_hidden_layers": layers})
        with pytest.raises(NammTransferError):
            build(config, "sdpa")(TOKENS, **{CACHE: MemoryCache(config, policy=policies.make("full"))})
        assert torch.equal(other(TOKENS).logits, expected)
        torch.testing.assert_close(other(TOKENS, **{CACHE: full(other)}).logits, expected, atol=1e-5, rtol=0)
    interrupted = full(other)
    interrupted.update(torch.zeros(1, 2, 20, 16), torch.zeros(1, 2, 20, 16), 0)
    assert torch.equal(other(TOKENS).logits, expected)
    assert other(TOKENS, **{CACHE: full(other)}).logits.shape == expected.shape
    with pytest.raises(NammTransferError, match="mid-forward"):
        other(TOKENS, **{CACHE: interrupted})


def test_a_refused_call_leaves_the_cache_as_it_was():
    model = build(tf.LlamaConfig(**SMALL))
    cache, other = full(model), full(model)
    for some in (cache, other):
        model(TOKENS, **{CACHE: some})
    with pytest.raises(NammTransferError, match="softcap"):
        model(TOKENS[:, :2], **{CACHE: cache}, softcap=30.0)
    after = [model(TOKENS[:, :2], **{CACHE: some}).logits for some in (cache, other)]
    assert torch.equal(*after)


HARMLESS = {
    "output_hidden_states": True,
    "logits_to_keep": 1,
    "token_type_ids": torch.zeros(1, 20, dtype=torch.long),
    "shift_labels": TOKENS,
    "num_items_in_batch": torch.tensor(3),
    "a_flag_of_some_model": True,
    "vision_feature_layer": -2,
    "a_name": "default",
    "something_unset": None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_change_attention_is_ignored(name):
    model = build(tf.LlamaConfig(**SMALL))
    expected = model(TOKENS, logits_to_keep=1).logits
    got = model(TOKENS, **{CACHE: full(model)}, **{name: HARMLESS[name]}).logits[:, -1:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(TOKENS, **{name: HARMLESS[name]}).logits[:, -1:], expected)


CHANGING = {
    "softcap": 30.0,
    "s_aux": torch.zeros(4),
    "sinks": torch.zeros(4),
    "position_bias": torch.zeros(1, 4, 20, 20),
    "head_mask": torch.ones(4),
    "attention_chunk_size": 4,
    "a_factor_of_some_model": 0.5,
    "some_tensor": torch.zeros(3),
    "some_pair": (torch.zeros(3), torch.zeros(3)),
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_may_change_attention_is_refused_with_and_without_a_memory_cache(name):
    model = build(tf.LlamaConfig(**SMALL))
    with pytest.raises(NammTransferError, match=name):
        model(TOKENS, **{CACHE: full(model)}, **{name: CHANGING[name]})
    if name == "position_bias" and "position_bias" in namm_transfer.cache.attention._SDPA_TAKES:
        sdpa = build(tf.LlamaConfig(**SMALL), "sdpa")
        expected = sdpa(TOKENS, **{name: CHANGING[name]}).logits
        torch.testing.assert_close(model(TOKENS, **{name: CHANGING[name]}).logits, expected)
        return
    with pytest.raises(NammTransferError, match=name):
        model(TOKENS, **{name: CHANGING[name]})


def test_attention_weights_cannot_be_asked_for():
    model = build(tf.LlamaConfig(**SMALL))
    with pytest.raises(NammTransferError, match="output_attentions"):
        model(TOKENS, **{CACHE: full(model)}, output_attentions=True)


def test_models_that_pass_arguments_down_are_served():
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    text = SMALL | dict(model_type="qwen2")
    onevision = tf.LlavaOnevisionConfig(text_config=text, vision_config=vision, image_token_index=96)
    got = tf.GotOcr2Config(
        text_config=text,
        vision_config=dict(
            hidden_size=32, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, mlp_dim=32
        ),
        image_token_index=96,
    )
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=95)
    for config in (onevision, got):
        model = build(config, auto=AutoModelForImageTextToText)
        expected = model.generate(TOKENS, **options)
        assert torch.equal(model.generate(TOKENS, **{CACHE: full(model)}, **options), expected)
    mixtral = build(tf.MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1))
    logits = mixtral(TOKENS, **{CACHE: full(mixtral)}, output_router_logits=True).logits
    torch.testing.assert_close(logits, mixtral(TOKENS).logits, atol=1e-5, rtol=0)


def test_generation_with_static_caches_is_sdpas():
    model, plain = build(tf.LlamaConfig(**SMALL)), build(tf.LlamaConfig(**SMALL), "sdpa")
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=96)
    expected = plain.generate(TOKENS, **options)
    assert torch.equal(model.generate(TOKENS, cache_implementation="static", **options), expected)
    static = StaticCache(config=model.config, max_cache_len=40)
    assert torch.equal(model.generate(TOKENS, **{CACHE: static}, **options), expected)


OWN_ATTENTION = {
    "bloom": tf.BloomConfig(vocab_size=97, hidden_size=64, n_layer=1, n_head=4),
    "mpt": tf.MptConfig(vocab_size=97, d_model=64, n_heads=4, n_layers=1, max_seq_len=64),
}


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_models_that_read_their_mask_or_keys_themselves_are_refused(name):
    model = build(OWN_ATTENTION[name])
    with pytest.raises(NammTransferError, match=f"'{name}' reads its mask"):
        model(TOKENS)
    with pytest.raises(NammTransferError):
        model(TOKENS, **{CACHE: full(model)})


def test_a_model_that_relies_on_its_mask_is_causal_without_a_memory_cache():
    sizes = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96)
    config = tf.NllbMoeConfig(
        vocab_size=97,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        max_position_embeddings=128,
        pad_token_id=0,
        decoder_start_token_id=2,
        num_experts=2,
        expert_capacity=64,
        router_ignore_padding_tokens=False,
        **sizes,
    )
    source = TOKENS[:, :9]
    logits = [
        build(config, attention, tf.AutoModelForSeq2SeqLM)(input_ids=TOKENS, decoder_input_ids=source).logits
        for attention in ("eager", "memory")
    ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_wrong_arguments_say_what_was_expected():
    model = build(tf.LlamaConfig(**SMALL))
    for what, says in (
        (model, r"LlamaForCausalLM.*its \.config"),
        (None, "NoneType"),
        ("llama", "str"),
        (tf.EncodecConfig(), "encodec"),
    ):
        with pytest.raises(NammTransferError, match=says):
            MemoryCache(what, policy=policies.make("full"))
    crossing = MllamaTextConfig(**SMALL | {"num_hidden_layers": 4}, cross_attention_layers=[2], pad_token_id=0)
    with pytest.raises(NammTransferError, match="cross-attention"):
        MemoryCache(crossing, policy=policies.make("full"))
    without = build(tf.OpenAIGPTConfig(vocab_size=97, n_embd=64, n_layer=1, n_head=4))
    with pytest.raises(NammTransferError, match="take no key/value cache"):
        full(without)


def test_the_rest_of_the_cache_interface_is_served_or_refused():
    model = build(tf.LlamaConfig(**SMALL))
    cache = MemoryCache(model.config, policy=policies.make("h2o:keep=0.5", update_interval=8))
    model(TOKENS.repeat(3, 1), **{CACHE: cache})
    assert cache.layers[0].batch_size == 3
    cache.batch_select_indices([0, 2])
    assert cache.layers[0].batch_size == len(cache.positions(0)) == 2
    assert not hasattr(cache.layers[0], "keys")
    refused = [
        lambda: cache.layers[0].keys,
        lambda: cache.layers[0].values,
        lambda: cache.layers[0].crop(-1),
        lambda: cache.layers[0].offload(),
        lambda: cache.layers[0].prefetch(),
        lambda: cache.offload(0),
        lambda: cache.prefetch(0),
        lambda: list(cache),
        lambda: cache[0],
        lambda: cache.update_conv_state(torch.zeros(1), 0),
        lambda: cache.has_previous_state(0),
    ]
    for call in refused:
        with pytest.raises(NammTransferError):
            call()


def test_the_cache_can_be_initialised_early():
    model = build(tf.LlamaConfig(**SMALL))
    cache = full(model)
    for layer in cache.layers:
        empty = torch.zeros(1, 2, 0, 16)
        layer.lazy_initialization(empty, empty)
    torch.testing.assert_close(model(TOKENS, **{CACHE: cache}).logits, model(TOKENS).logits, atol=1e-5, rtol=0)
