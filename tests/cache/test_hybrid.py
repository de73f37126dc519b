"""Hybrid models: what their recurrent layers cannot do is refused, and what they can moves their states along."""

import copy

import pytest
import torch
from hybrid_models import HYBRID, SMALL
from model_checks import build, kept, memory, read, tokens
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, MambaConfig

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.keyword import CACHE

pytestmark = pytest.mark.skipif(not HYBRID, reason="needs a transformers whose caches hold recurrent states")
NAMES = [name for name in ("qwen3.5", "lfm2", "falcon-h1", "jamba") if name in HYBRID]
RANDOM = "random:keep=0.4"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_cache_goes_on_as_the_original(name, tmp_path):
    model, ids = build(HYBRID[name]), tokens(2)
    cache = memory(model, RANDOM)
    read(model, cache, ids[:, :50], [50])
    cache.save(tmp_path / "cache.safetensors")
    loaded = MemoryCache.load(tmp_path / "cache.safetensors", model.config, policy=cache.policy)
    first, second = read(model, cache, ids[:, 50:], [1, 39]), read(model, loaded, ids[:, 50:], [1, 39])
    assert torch.equal(first, second)
    assert kept(cache) == kept(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_moved_repeated_and_selected_with_their_states(name):
    model, ids = build(HYBRID[name]), tokens(3)
    cache = memory(model, RANDOM)
    read(model, cache, ids[:, :50], [50])
    plain = copy.deepcopy(cache)
    expected = read(model, plain, ids[:, 50:], [1, 39])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([False, True, False, True, True, False]))
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    order = [2, 0, 1]
    found = read(model, cache, ids[order, 50:], [1, 39])
    torch.testing.assert_close(found, expected[order], atol=1e-4, rtol=1e-4)
    assert [kept(cache, row) for row in range(3)] == [kept(plain, row) for row in order]


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_cache_is_as_new_for_another_batch(name):
    model, ids = build(HYBRID[name]), tokens(2)
    used, new = memory(model, RANDOM), memory(model, RANDOM)
    read(model, used, ids[:, :40], [40])
    used.reset()
    assert torch.equal(read(model, used, ids[:1], [60, 30]), read(model, new, ids[:1], [60, 30]))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_cannot_be_taken_back(name):
    model, cache = build(HYBRID[name]), memory(build(HYBRID[name]), "full")
    read(model, cache, tokens(), [30])
    before = kept(cache)
    for refused in (lambda: cache.crop(-1), cache.activate_past_recording):
        with pytest.raises(NammTransferError, match="recurrent layers cannot be cropped"):
            refused()
    assert not cache.is_croppable
    assert kept(cache) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", range(4))
def test_a_call_that_an_error_ended_half_way_is_noticed(name, place):
    """Whichever layer fails, the states before it are ahead of those behind it."""
    model, ids = build(HYBRID[name]), tokens()
    if place >= len(model.model.layers):
        pytest.skip("it has fewer layers")
    cache = memory(model, RANDOM)
    read(model, cache, ids, [20])
    read(model, cache, ids[:, 20:], [1])

    def fail(module, given):
        raise KeyboardInterrupt

    hook = model.model.layers[place].register_forward_pre_hook(fail)
    for size in (10, 1):
        with pytest.raises((KeyboardInterrupt, NammTransferError)):
            read(model, cache, ids[:, 21:], [size])
    hook.remove()
    if place == 0:  # nothing has changed yet
        read(model, cache, ids[:, 21:], [9])
        return
    with pytest.raises(NammTransferError, match="make a new MemoryCache or reset"):
        read(model, cache, ids[:, 21:], [9])
    cache.reset()
    read(model, cache, ids, [9])


def test_a_refused_call_is_not_forgotten():
    """The mask of a second turn is wrong: the attention layer stores nothing, but the layer before it has."""
    model, ids = build(HYBRID["qwen3.5"]), tokens()
    cache = memory(model, RANDOM)
    read(model, cache, ids, [20])
    wrong = torch.ones(1, 30, dtype=torch.long)
    wrong[0, 3] = 0
    with pytest.raises(NammTransferError, match="attention_mask differs"):
        model(ids[:, 20:30], attention_mask=wrong, **{CACHE: cache})
    with pytest.raises(NammTransferError, match="make a new MemoryCache or reset"):
        read(model, cache, ids[:, 20:], [10])


def test_gradients_are_refused():
    model = build(HYBRID["qwen3.5"])
    with torch.enable_grad(), pytest.raises(NammTransferError, match="gives no gradients"):
        model(tokens(), **{CACHE: memory(model, RANDOM)})


def test_a_cache_of_another_model_is_refused():
    model = build(HYBRID["qwen3.5"])
    llama = AutoModelForCausalLM.from_config(HYBRID["jamba"], attn_implementation="memory").eval()
    with pytest.raises(NammTransferError, match="one MemoryCache serves one model"):
        read(llama, memory(model, RANDOM), tokens(), [30])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2), "no layer has keys and values"),
        (
            Gemma3nTextConfig(
                **SMALL | {"num_hidden_layers": 6}, head_dim=16, num_kv_shared_layers=3, vocab_size_per_layer_input=97,
                hidden_size_per_layer_input=8, layer_types=["sliding_attention", "full_attention"] * 3,
                activation_sparsity_pattern=[0.0] * 6, laurel_rank=4,
            ),
            "keys and values of another layer",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_when_the_cache_is_made(config, says):
    with pytest.raises(NammTransferError, match=says):
        MemoryCache(config, policy=policies.make("full"))
