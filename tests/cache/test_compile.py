"""torch.compile: one graph for a call where nothing is evicted, and the untraced path for all other calls."""

import pytest
import torch
import transformers as tf
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.keyword import CACHE

SMALL = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SLIDING = tf.Qwen3Config(
    **SMALL,
    head_dim=16,
    use_sliding_window=True,
    sliding_window=12,
    layer_types=["full_attention", "sliding_attention"],
)
PROMPT = 20


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield


def build(config=None):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        return AutoModelForCausalLM.from_config(config or tf.LlamaConfig(**SMALL), attn_implementation="memory").eval()


def compiled_and_eager(spec, calls, config=None, batch=1, mask=None, backend="eager", **options):
    """The caches of a compiled and of an eager model after the same calls, whose logits must agree; and the model."""
    model = build(config)
    compiled = torch.compile(model, backend=backend, **options)
    caches = [MemoryCache(model.config, policy=policies.make(spec)) for _ in range(2)]
    tokens = torch.randint(3, 90, (batch, sum(calls)))
    for end, new in zip(torch.tensor(calls).cumsum(0).tolist(), calls, strict=True):
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        got, expected = (
            some(tokens[:, end - new : end], **given, **{CACHE: cache}).logits
            for some, cache in zip((compiled, model), caches, strict=True)
        )
        real = slice(None) if mask is None else mask[:, end - new : end].bool()
        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=0)
    return *caches, model


def agree(cache, eager):
    report, expected = cache.report(), eager.report()
    assert (report.seen, report.peak, report.history) == (expected.seen, expected.peak, expected.history)
    assert (report.kept.tolist(), report.bytes) == (expected.kept.tolist(), expected.bytes)
    for layer in range(2):
        assert cache.positions(layer).equal(eager.positions(layer))


def test_the_plain_path_is_one_graph():
    model = build()
    tokens = torch.arange(20)[None] + 3
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_cache_that_evicts_nothing_is_one_graph_a_call_and_four_over_64_tokens(dynamic):
    calls = [PROMPT] + [1] * 64
    cache, eager, _ = compiled_and_eager("full", calls, batch=2, fullgraph=True, dynamic=dynamic)
    assert counters["stats"]["unique_graphs"] <= 4
    agree(cache, eager)


def test_several_tokens_behind_others_under_a_sliding_window_are_one_graph():
    agree(*compiled_and_eager("full", [PROMPT, 7, 1, 5], SLIDING, fullgraph=True)[:2])


@pytest.mark.parametrize(
    ("mode", "cropped"), [(torch.no_grad, -10), (torch.inference_mode, -10), (torch.inference_mode, 0)]
)
def test_a_cache_that_a_compiled_model_filled_goes_on_without_it(mode, cropped, tmp_path):
    with mode():
        backend = "eager" if mode is torch.no_grad else "aot_eager"  # which makes inference tensors
        cache, eager, model = compiled_and_eager("full", [PROMPT, 1], backend=backend, fullgraph=True)
    cache.save(tmp_path / "cache")
    loaded = MemoryCache.load(tmp_path / "cache", model.config, policy=policies.make("full"))
    more = torch.arange(3)[None] + 5
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    caches = (cache, eager, loaded)
    for some in caches:
        some.crop(cropped)
    for run in (model, compiled, model):
        first, *others = (run(more, **{CACHE: some}).logits for some in caches)
        for logits in others:
            torch.testing.assert_close(logits, first, atol=1e-5, rtol=0)
    agree(cache, eager)
    agree(loaded, eager)
    with torch.enable_grad():
        model(more, **{CACHE: cache}).logits.sum().backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
    model(more, **{CACHE: eager})
    torch.testing.assert_close(*(compiled(more, **{CACHE: some}).logits for some in (cache, eager)), atol=1e-5, rtol=0)


def test_other_calls_run_outside_of_graphs():
    """Padding, a policy that evicts, and gradients: as before, also with dynamic shapes from the start."""
    mask = torch.ones(2, PROMPT + 3, dtype=torch.long)
    agree(*compiled_and_eager("full", [PROMPT, 1, 1, 1], batch=2, mask=mask, dynamic=True)[:2])
    mask[0, :4] = 0
    agree(*compiled_and_eager("full", [PROMPT, 1, 1, 1], batch=2, mask=mask)[:2])
    agree(*compiled_and_eager("h2o:keep=0.5,update_interval=8", [PROMPT, 1, 3, 1], dynamic=True)[:2])
    with torch.enable_grad():
        agree(*compiled_and_eager("full", [PROMPT, 1])[:2])


def test_one_graph_of_other_calls_is_refused_by_torch():
    model = build()
    tokens = torch.ones(2, PROMPT, dtype=torch.long)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for given in ({"attention_mask": tokens}, {}):
        with torch.set_grad_enabled(not given), pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
            compiled(tokens, **given, **{CACHE: MemoryCache(model.config, policy=policies.make("full"))})


def test_calls_that_change_between_padded_and_plain_or_compiled_and_eager_agree():
    model = build()
    compiled = torch.compile(model, backend="eager")
    tokens, mask = torch.arange(40).view(2, 20) + 3, torch.ones(2, 20, dtype=torch.long)
    mask[0, :4] = 0
    for ends in ([(5, True), (9, False), (10, True), (20, True)], [(8, False), (12, True), (13, False), (20, True)]):
        for padded in (mask, None):
            cache, eager = (MemoryCache(model.config, policy=policies.make("full")) for _ in range(2))
            start = 0
            for end, traced in ends:
                given = {} if padded is None else {"attention_mask": padded[:, :end]}
                got = (compiled if traced else model)(tokens[:, start:end], **given, **{CACHE: cache}).logits
                expected = model(tokens[:, start:end], **given, **{CACHE: eager}).logits
                real = slice(None) if padded is None else padded[:, start:end].bool()
                torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=0)
                start = end
            agree(cache, eager)


def test_what_a_trace_can_see_is_refused():
    model = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    tokens = torch.arange(20)[None] + 3
    interrupted = MemoryCache(model.config, policy=policies.make("full"))
    compiled(tokens, **{CACHE: interrupted})
    interrupted.update(torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 1, 16), 0)
    other = MemoryCache(model.config, policy=policies.make("full"))
    build(tf.LlamaConfig(**SMALL | {"num_key_value_heads": 1}))(tokens, **{CACHE: other})
    for cache, says in ((interrupted, "mid-forward"), (other, "one MemoryCache serves one model")):
        with pytest.raises((NammTransferError, torch._dynamo.exc.Unsupported), match=says):
            compiled(tokens, **{CACHE: cache})
    padded = MemoryCache(model.config, policy=policies.make("full"))
    model(tokens, attention_mask=(tokens > 5).long(), **{CACHE: padded})
    graphs = torch.compile(model, backend="eager")
    with pytest.raises(NammTransferError, match="differs from what it was"):
        graphs(tokens, **{CACHE: padded})
