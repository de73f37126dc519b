"""The start vector that learns from hindsight: what it is shown, and that it learns it."""

import pytest
import torch
from tiny_text import save_tiny_llama
from transformers import AutoModelForCausalLM

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.hindsight import (
    Example,
    Witness,
    _attention_and_effect,
    gather,
    learn,
    lost,
    needed,
    witness,
)
from namm_transfer.evolution.loop import start_vector
from namm_transfer.evolution.statistics import Recorder
from namm_transfer.evolution.tasks import make_prompt
from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM

INTERVAL = 128


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    torch.set_num_threads(1)
    return CausalLMAdapter.load(save_tiny_llama(tmp_path_factory.mktemp("llama")), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def prompt(adapter):
    return make_prompt("passkey", "train", 0, 0, tokens=400, count=adapter.count)


def test_effect_is_what_changing_one_attention_logit_does_to_the_answer(adapter, prompt):
    encoded = adapter.encode(prompt)
    received, helped = _attention_and_effect(adapter, encoded)
    length = len(encoded.tokens) + len(encoded.answer) - 1
    assert [tuple(h.shape) for h in helped] == [(2, length, length)] * 2
    torch.testing.assert_close(received[0].sum(-1), torch.ones(2, length))

    def logprob(change: float, layer: int, query: int, token: int) -> float:
        """Mean log-probability of the answer with a logit of both query heads of KV head 1 changed."""
        model = AutoModelForCausalLM.from_pretrained(adapter.source, attn_implementation="eager").double()
        attention = model.model.layers[layer].self_attn
        mask = torch.full((length, length), -1e30, dtype=torch.float64).triu(1).expand(1, 4, -1, -1).clone()
        mask[:, 2:, query, token] += change
        original = attention.forward
        attention.forward = lambda *a, **k: original(*a, **k | {"attention_mask": mask})
        tokens = torch.cat([encoded.tokens, encoded.answer[:-1]])[None]
        with torch.no_grad():
            scores = model(tokens, use_cache=False).logits[0, -len(encoded.answer) :].log_softmax(-1)
        return float(scores.gather(-1, encoded.answer[:, None]).mean())

    for layer in (0, 1):
        query, token = divmod(int(helped[layer][1].abs().argmax()), length)
        slope = (logprob(0.1, layer, query, token) - logprob(-0.1, layer, query, token)) / 0.2
        assert helped[layer][1, query, token].item() == pytest.approx(slope, rel=2e-2)


def test_needed_is_what_helps_beside_some_attention():
    effect = torch.zeros(2, 100)
    effect[0, 10], effect[0, 11], effect[1, 12] = 3.0, -1.0, 1.0
    attention = torch.rand(2, 2, 100)
    weights = needed(effect, attention)
    assert weights[0, 10] > weights[1, 12] > weights[0, 11] > 0
    assert (weights[0, 10] / weights[1, 12]).item() == pytest.approx(3, rel=0.05)
    effect[0, 90] = 3.0  # as helpful, but recent
    assert needed(effect, attention)[0, 10] > 5 * needed(effect, attention)[0, 90]


def test_what_is_read_is_what_a_recorder_reads(adapter, prompt):
    shown = witness(adapter, prompt, INTERVAL)
    recorder = Recorder(INTERVAL)
    adapter.read(adapter.encode(prompt), adapter.memory(recorder))
    spectra = torch.cat([e.spectrum.transpose(-1, -2).reshape(-1, 17) for e in shown]).double()
    assert recorder.moments.count == len(spectra)
    torch.testing.assert_close(recorder.moments.mean, spectra.mean(0), rtol=1e-2, atol=1e-4)


def rare(seed: int) -> Example:
    """Tokens whose spectra are alike but for a weak fourth bin of those that are needed."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.rand(4, 17, 64, generator=generator) + 1
    wanted = torch.rand(4, 64, generator=generator) < 0.2
    spectrum[:, 3][wanted] -= 1
    return Example(spectrum.half(), wanted.float())


def test_learning_finds_what_attention_alone_would_drop_and_repeats():
    examples = [rare(seed) for seed in range(8)]
    moments = Moments()
    for example in examples:
        moments.add(example.spectrum.float().transpose(1, 2).flatten(0, 1))
    start = torch.tensor(start_vector("attention"))
    losses: list[float] = []
    learned = learn(examples, moments, start, steps=150, seed=0, tick=losses.append)
    assert len(losses) == 150

    def missed(vector: torch.Tensor) -> float:
        return float(lost(NAMM.from_vector(vector, mean=moments.mean, var=moments.var), rare(99), 0.5))

    assert missed(start) > 0.5
    assert missed(learned) < 0.1
    assert torch.equal(learned, learn(examples, moments, start, steps=150, seed=0))
    assert not torch.equal(learned, learn(examples, moments, start, steps=150, seed=1))


def test_examples_are_made_once_and_only_for_the_same_settings(adapter, prompt, tmp_path, monkeypatch):
    made = list(gather(adapter, [prompt], INTERVAL, tmp_path, "these"))
    monkeypatch.setattr("namm_transfer.evolution.hindsight.witness", lambda *_: [])
    again = list(gather(adapter, [prompt], INTERVAL, tmp_path, "these"))
    assert len(made[0]) == 3
    for old, new in zip(made[0], again[0], strict=True):
        assert torch.equal(old.spectrum, new.spectrum)
        assert torch.equal(old.needed, new.needed)
    assert list(gather(adapter, [prompt], INTERVAL, tmp_path, "others")) == [[]]


def test_a_witness_keeps_everything(adapter, prompt):
    cache = adapter.memory(Witness(INTERVAL))
    adapter.read(adapter.encode(prompt), cache)
    assert cache.kept_share() == [1.0]
