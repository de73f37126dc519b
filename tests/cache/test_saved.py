"""A cache that is saved and loaded, pickled or copied goes on as the original would."""

import copy
import io
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import MemoryCache, NammTransferError, policies
from namm_transfer.cache.keyword import CACHE

CONFIG = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
TOKENS = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(120) >= torch.tensor([[0], [23]])).long()
POLICIES = ["full", "h2o:keep=0.5", "l2:budget=20", "tova:keep=0.3", "snapkv:keep=0.5,window=8", "namm", "namm head"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    with torch.no_grad():
        yield LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), attn_implementation="memory").eval()


@pytest.fixture
def make(random_namm):
    def policy(spec, **options):
        if spec == "full":
            return policies.make(spec)
        if not spec.startswith("namm"):
            return policies.make(spec, update_interval=16)
        selection = "head" if "head" in spec else "layer"
        return random_namm(update_interval=16, selection=selection, **options)

    return policy


def feed(model, cache, start, stop, rows=slice(None)):
    mask, positions = MASK[rows, :stop], (MASK.cumsum(1) - 1).clamp_min(0)[rows, start:stop]
    return model(TOKENS[rows, start:stop], attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits


def through_pickle(cache, policy, model, path):
    return pickle.loads(pickle.dumps(cache))


def through_torch_save(cache, policy, model, path):
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_a_file(cache, policy, model, path):
    cache.save(path / "prefix.safetensors")
    return MemoryCache.load(path / "prefix.safetensors", model.config, policy=policy)


@pytest.mark.parametrize("way", [through_pickle, through_torch_save, through_a_file, copy.deepcopy])
@pytest.mark.parametrize("spec", POLICIES)
@pytest.mark.parametrize("cut", [64, 77])
def test_a_cache_goes_on_as_the_original(model, make, spec, way, cut, tmp_path):
    """A padded batch, heads of different lengths; 77 is inside of a hop and of an interval."""
    policy = make(spec)
    original = MemoryCache(model.config, policy=policy)
    feed(model, original, 0, cut)
    feed(model, original, cut, cut + 1)  # which leaves room to grow
    other = way(original) if way is copy.deepcopy else way(original, make(spec), model, tmp_path)
    assert other.get_seq_length() == cut + 1
    for start, stop in ((cut + 1, 100), (100, 101), (101, 120)):
        assert torch.equal(feed(model, original, start, stop), feed(model, other, start, stop))
    for layer in range(2):
        assert torch.equal(original.positions(layer), other.positions(layer))
    a, b = original.report(), other.report()
    assert (a.seen, a.peak, a.history) == (b.seen, b.peak, b.history)
    other.reorder_cache(torch.tensor([1, 0]))


def test_a_loaded_prefix_serves_several_continuations(model, make, tmp_path):
    prefix = MemoryCache(model.config, policy=make("namm head"))
    feed(model, prefix, 0, 70, slice(0, 1))
    prefix.save(tmp_path / "prefix.safetensors")
    options = dict(max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=96)
    options["attention_mask"] = MASK[:1, :80]

    def answer(cache):
        return model.generate(TOKENS[:1, :80], **{CACHE: cache}, **options)

    whole = answer(MemoryCache(model.config, policy=make("namm head")))
    for _ in range(2):
        cache = MemoryCache.load(tmp_path / "prefix.safetensors", model.config, policy=make("namm head"))
        assert torch.equal(answer(cache), whole)


@pytest.fixture
def file(model, make, tmp_path):
    cache = MemoryCache(model.config, policy=make("namm"))
    feed(model, cache, 0, 64)
    cache.save(tmp_path / "prefix.safetensors")
    return tmp_path / "prefix.safetensors"


def test_another_policy_or_model_is_refused_by_name(model, make, file):
    with pytest.raises(NammTransferError, match=r"another policy.*class .*NAMM, expected .*H2O"):
        MemoryCache.load(file, model.config, policy=make("h2o:keep=0.5"))
    with pytest.raises(NammTransferError, match="another policy: selection 'layer', expected 'head'"):
        MemoryCache.load(file, model.config, policy=make("namm head"))
    with pytest.raises(NammTransferError, match="another policy: weights"):
        MemoryCache.load(file, model.config, policy=make("namm", seed=8))
    for change in ({"num_hidden_layers": 3}, {"num_key_value_heads": 4}, {"hidden_size": 96}):
        with pytest.raises(NammTransferError, match=f"another model.*{next(iter(change))}"):
            MemoryCache.load(file, LlamaConfig(**CONFIG | change), policy=make("namm"))


def test_what_the_caller_saved_a_cache_with_is_compared_where_it_is_asked_for(model, make, file, tmp_path):
    cache = MemoryCache.load(file, model.config, policy=make("namm"))
    path, identity = tmp_path / "named.safetensors", {"context": "a", "model_sha256": "b"}
    cache.save(path, identity=identity)
    for asked in (None, identity):
        assert MemoryCache.load(path, model.config, policy=make("namm"), identity=asked).get_seq_length() == 64
    with pytest.raises(NammTransferError, match="another identity: context a, expected c"):
        MemoryCache.load(path, model.config, policy=make("namm"), identity=identity | {"context": "c"})
    with pytest.raises(NammTransferError, match="another identity: context None, expected a"):
        MemoryCache.load(file, model.config, policy=make("namm"), identity=identity)


def test_files_that_are_no_saved_cache_are_refused(model, make, file, tmp_path):
    def expect_refusal(path):
        with pytest.raises(NammTransferError, match=str(path)):
            MemoryCache.load(path, model.config, policy=make("namm"))

    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    expect_refusal(tmp_path / "missing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:-100])
    expect_refusal(damaged)
    header = json.loads(metadata["memory_cache"])
    some = "0.0.keys"
    variants = [
        (tensors, {}),
        (tensors, {"memory_cache": "{"}),
        (tensors, {"memory_cache": "[" * 100_000}),
        (tensors, {"memory_cache": json.dumps(header | {"format": 1})}),
        (tensors, {"memory_cache": json.dumps(header | {"layers": header["layers"][:1]})}),
        (tensors, {"memory_cache": json.dumps(header | {"layers": [None, None]})}),
        ({name: tensor for name, tensor in tensors.items() if name != some}, metadata),
        (tensors | {some: tensors[some][:, :, 1:].contiguous()}, metadata),
        (tensors | {some: tensors[some][:1].contiguous()}, metadata),
        (tensors | {"more": torch.zeros(1)}, metadata),
    ]
    for contents, text in variants:
        save_file(contents, damaged, metadata=text)
        expect_refusal(damaged)
    saved = file.read_bytes()
    for place in (len(saved) - 1, len(saved) // 2):  # numbers of a tensor
        damaged.write_bytes(saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :])
        with pytest.raises(NammTransferError, match="its checksum is another"):
            MemoryCache.load(damaged, model.config, policy=make("namm"))
    header["layers"][0]["sequences"][0]["seen"] += 1
    save_file(tensors, damaged, metadata={"memory_cache": json.dumps(header)})
    expect_refusal(damaged)


def test_an_empty_or_interrupted_cache_is_not_saved(model, make, tmp_path):
    cache = MemoryCache(model.config, policy=make("namm"))
    with pytest.raises(NammTransferError, match="empty"):
        cache.save(tmp_path / "prefix.safetensors")
    feed(model, cache, 0, 30)
    cache.update(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16), 0)
    with pytest.raises(NammTransferError, match="mid-forward"):
        cache.save(tmp_path / "prefix.safetensors")
    assert not list(tmp_path.iterdir())
