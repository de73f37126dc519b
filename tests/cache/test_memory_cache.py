"""MemoryCache as a transformers cache: lengths, positions, bytes, rows, cropping."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.keyword import CACHE

CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    with torch.no_grad():
        yield LlamaForCausalLM._from_config(copy.deepcopy(CONFIG), attn_implementation="memory").eval()


@pytest.fixture
def peaked(model):
    """Weights so large that tokens, and heads, differ in the attention they see."""
    for parameter in model.parameters():
        parameter.mul_(15 if parameter.dim() > 1 else 1)
    return model


def ids(rows=1, length=100):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(0))


def test_lengths_positions_and_bytes(model, random_namm):
    """Invariant 3."""
    cache = MemoryCache(model.config, policy=random_namm(update_interval=32, selection="head"))
    model(ids(), **{CACHE: cache})
    assert cache.get_seq_length() == 100
    report = cache.report()
    for layer in range(2):
        positions = cache.positions(layer)
        for head, kept in zip(positions[0], report.kept[layer, 0].tolist(), strict=True):
            real = head[head >= 0]
            assert len(real) == kept
            assert real.tolist() == sorted(set(real.tolist()))
            assert real[-4:].tolist() == [96, 97, 98, 99]
    groups = [group for layer in cache.layers for group in layer.groups]
    tensors = [t for g in groups for t in (g.keys, g.values, g.positions, *g.state.values())]
    assert report.bytes == sum(t.untyped_storage().nbytes() for t in tensors)
    assert report.bytes <= 1.03 * sum(t.nbytes for t in tensors)
    row = report.row(0)
    assert row.updates == 3
    assert row.kept_share == pytest.approx(float(report.kept.float().mean()) / 100)
    assert row.kept_share == pytest.approx(cache.kept_share()[0])
    assert row.kept_share < row.peak_share <= 1
    assert row.history.shape == (2, 3)


def test_evicting_really_frees_the_storage(model):
    sizes = {}
    for spec in ("full", "l2:keep=0.25"):
        cache = MemoryCache(model.config, policy=policies.make(spec, update_interval=20))
        model(ids(), **{CACHE: cache})
        sizes[spec] = sum(group.keys.untyped_storage().nbytes() for layer in cache.layers for group in layer.groups)
    assert sizes["l2:keep=0.25"] == sizes["full"] / 4


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_a_head_that_keeps_less_takes_less(peaked, random_namm, dtype, width):
    namm = random_namm(update_interval=32, selection="head", attention_dtype=dtype)
    cache = MemoryCache(peaked.config, policy=namm)
    peaked(ids(), **{CACHE: cache})
    report = cache.report()
    kept = report.kept.flatten().tolist()
    assert len(set(kept)) > 1, "the case needs heads of different sizes"
    token = 2 * 16 * 4 + 4 + 17 * 4 + 2 * 16 * width  # keys, values, position, spectrum, a hop and a begun one
    assert report.bytes == pytest.approx(sum(kept) * token, rel=0.03)


def test_heads_judged_and_stored_apart_are_heads_judged_together(peaked, random_namm, monkeypatch):
    namm = random_namm(update_interval=32, selection="head")
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, :23] = 0
    results = []
    for by_head in (True, False):
        monkeypatch.setattr(type(namm), "by_head", by_head)
        cache = MemoryCache(peaked.config, policy=namm)
        logits = peaked(ids(2), attention_mask=mask, **{CACHE: cache}).logits
        results.append((logits[mask.bool()], cache))
    (one, a), (other, b) = results
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert [layer.paged for layer in a.layers] == [True, True] != [layer.paged for layer in b.layers]
    for layer in range(2):
        assert torch.equal(a.positions(layer), b.positions(layer))
    assert a.report().history == b.report().history
    assert a.report().bytes < b.report().bytes


def test_the_cache_size_is_a_share_of_the_real_tokens(model):
    cache = MemoryCache(model.config, policy=policies.make("l2:keep=0.3", update_interval=50))
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, :45] = 0
    model(ids(2), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), **{CACHE: cache})
    assert cache.report().kept[:, 0].unique().tolist() == [30]
    assert cache.report().kept[:, 1].unique().tolist() == [15 + 5]
    assert cache.positions(0)[1, :, :10].eq(-1).all()
    assert cache.report().row(1).seen == 55


def test_reuse_over_several_calls_and_reset(model, random_namm):
    namm = random_namm(update_interval=32)
    cache, again = (MemoryCache(model.config, policy=namm) for _ in range(2))
    first = model(ids(), **{CACHE: cache}).logits
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(model(ids(), **{CACHE: cache}).logits, first)
    pieces = [model(part, **{CACHE: again}).logits for part in ids().split(30, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), first, atol=1e-5, rtol=0)
    with pytest.raises(NammTransferError, match="empty"):
        MemoryCache(model.config, policy=namm).report()


def test_log_likelihoods_of_several_answers_from_one_prompt(model, random_namm):
    prompt, answers = ids(1, 70), ids(1, 15).view(3, 5)
    namm = random_namm(update_interval=32)
    prefix = MemoryCache(model.config, policy=namm)
    model(prompt, **{CACHE: prefix})
    batch = copy.deepcopy(prefix)
    batch.batch_repeat_interleave(3)
    together = model(answers, **{CACHE: batch}).logits
    for row, answer in enumerate(answers):
        alone = model(answer[None], **{CACHE: copy.deepcopy(prefix)}).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)
    assert prefix.get_seq_length() == 70


def test_beam_search_moves_the_state_with_the_beams(model, random_namm):
    namm = random_namm(update_interval=16)
    options = dict(max_new_tokens=40, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=96)
    out = model.generate(ids(2, 50), **{CACHE: MemoryCache(model.config, policy=namm)}, **options)
    swapped = model.generate(ids(2, 50).flip(0), **{CACHE: MemoryCache(model.config, policy=namm)}, **options)
    width = min(out.shape[1], swapped.shape[1])
    assert torch.equal(out[:, :width], swapped.flip(0)[:, :width])


@pytest.mark.parametrize("padding", [0, 9])
def test_crop_is_exact_for_the_full_policy(model, padding):
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)

    def feed(cache, part):
        return model(
            ids(2)[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part], **{CACHE: cache}
        ).logits

    full = policies.make("full")
    cropped, plain = MemoryCache(model.config, policy=full), MemoryCache(model.config, policy=full)
    feed(cropped, slice(0, 80))
    cropped.crop(-30)
    assert cropped.get_seq_length() == 50
    feed(plain, slice(0, 50))
    torch.testing.assert_close(feed(cropped, slice(50, 100)), feed(plain, slice(50, 100)), atol=1e-5, rtol=0)


def test_a_crop_that_takes_all_padding_away_leaves_none(model):
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 15:] = 0
    cache, plain = (MemoryCache(model.config, policy=policies.make("full")) for _ in range(2))
    model(ids(2, 20), attention_mask=mask, **{CACHE: cache})
    cache.crop(-10)
    model(ids(2, 20)[:, :10], **{CACHE: plain})
    more = ids(2, 24)[:, 20:]
    logits = [model(more, attention_mask=torch.ones(2, 14), **{CACHE: some}).logits for some in (cache, plain)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_rows_of_an_empty_cache_may_be_chosen(model):
    cache = MemoryCache(model.config, policy=policies.make("full"))
    cache.batch_select_indices(torch.tensor([1]))
    assert model(ids(2), **{CACHE: cache}).logits.shape == (2, 100, 97)


@pytest.mark.parametrize("change", [copy.deepcopy, lambda cache: (cache.reorder_cache(torch.tensor([1, 0])), cache)[1]])
def test_a_cache_made_from_another_in_inference_mode_can_be_used_on_outside(model, change):
    cache = MemoryCache(model.config, policy=policies.make("full"))
    with torch.inference_mode():
        model(ids(2), **{CACHE: cache})
        model(ids(2, 1), **{CACHE: cache})  # which leaves room for more
        cache = change(cache)
    cache.crop(-1)
    assert model(ids(2, 1), **{CACHE: cache}).logits.shape == (2, 1, 97)


def test_reset_ends_a_call_that_was_interrupted_before_its_attention(model):
    cache = MemoryCache(model.config, policy=policies.make("full"))
    keys = torch.zeros(1, 2, 5, 16)
    cache.update(keys, keys, 0)
    cache.reset()
    assert model(ids(), **{CACHE: cache}).logits.shape == (1, 100, 97)


def test_an_evicting_cache_refuses_to_crop_before_anything_is_lost(model, random_namm):
    cache = MemoryCache(model.config, policy=random_namm(update_interval=32))
    model(ids(), **{CACHE: cache})
    before = cache.positions(0)
    with pytest.raises(NammTransferError, match="cropped"):
        cache.crop(-1)
    assert torch.equal(cache.positions(0), before)
    assert not any(layer.is_croppable for layer in cache.layers)


def test_assisted_decoding(model, random_namm):
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=96)
    plain = model.generate(ids(), **options)
    full = MemoryCache(model.config, policy=policies.make("full"))
    assert torch.equal(model.generate(ids(), assistant_model=copy.deepcopy(model), **{CACHE: full}, **options), plain)
    cache = MemoryCache(model.config, policy=random_namm(update_interval=32))
    with pytest.raises(NammTransferError, match="assisted"):
        model.generate(ids(), assistant_model=copy.deepcopy(model), **{CACHE: cache}, **options)


def test_a_cache_serves_one_model_and_one_batch(model):
    other = LlamaForCausalLM._from_config(copy.deepcopy(CONFIG), attn_implementation="memory").eval()
    cache = MemoryCache(model.config, policy=policies.make("full"))
    model(ids(), **{CACHE: cache})
    with pytest.raises(NammTransferError, match="another model"):
        other(ids(), **{CACHE: cache})
    with pytest.raises(NammTransferError, match="one batch"):
        model(ids(3), **{CACHE: cache})
    wide = copy.deepcopy(CONFIG)
    wide.num_hidden_layers = 3
    deeper = LlamaForCausalLM._from_config(wide, attn_implementation="memory").eval()
    with pytest.raises(NammTransferError, match="made for 2 layers"):
        deeper(ids(), **{CACHE: MemoryCache(model.config, policy=policies.make("full"))})


@pytest.mark.parametrize("where", ["in the policy", "in the model"])
def test_a_cache_that_an_error_left_in_mid_forward_is_refused(model, where):
    def fail(*_):
        raise MemoryError

    policy = policies.make("l2", update_interval=16)
    cache = MemoryCache(model.config, policy=policy)
    expected = model(ids(), **{CACHE: cache}).logits
    cache.reset()
    if where == "in the model":
        hook = model.model.layers[0].mlp.register_forward_pre_hook(fail)
    else:
        policy.select = fail
    with pytest.raises(MemoryError):
        model(ids(), **{CACHE: cache})
    hook.remove() if where == "in the model" else vars(policy).pop("select")
    with pytest.raises(NammTransferError, match="mid-forward"):
        model(ids(), **{CACHE: cache})
    cache.reset()
    torch.testing.assert_close(model(ids(), **{CACHE: cache}).logits, expected)


def test_what_is_no_policy_is_refused(model):
    with pytest.raises(NammTransferError, match="'h2o'"):
        MemoryCache(model.config, policy="h2o")
    with pytest.raises(NammTransferError, match="match='namm'"):
        MemoryCache(model.config, policy=policies.make("h2o:match=namm"))
