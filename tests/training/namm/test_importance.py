"""Head importance, and the distillation of a rule into a NAMM that recognises important heads."""

import pytest
import torch
from accelerate import Accelerator
from tiny_text import save_tiny_llama

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.moments import Moments
from namm_transfer.scorers import FEATURES, PUBLISHED
from namm_transfer.training.namm.distill import Distillation, Observation, fit, observe
from namm_transfer.training.namm.importance import RECENT, SINKS, RetrievalHeads, measure_importance
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood

STATISTICS = Moments(1.0, torch.full((17,), 0.03).double(), torch.full((17,), 0.01).double())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    torch.set_num_threads(1)
    return CausalLMAdapter.load(save_tiny_llama(tmp_path_factory.mktemp("llama")), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def prompt(adapter):
    return MultiQuestionPrompt.make(adapter, 0, 0, 600)


def test_retrieval_heads_keep_all_and_others_sinks_and_recent_tokens(adapter, prompt):
    retrieval = torch.tensor([[True, False], [False, False]])
    cache = adapter.memory(RetrievalHeads(retrieval, update_interval=128))
    with torch.inference_mode():
        adapter.model(prompt.tokens[None, :256], **{CACHE: cache})
    first, second = cache.positions(0)[0]
    assert first.tolist() == list(range(256))
    assert second[second >= 0].tolist() == [*range(SINKS), *range(256 - RECENT, 256)]


def test_importance_is_what_the_answers_lose(adapter, prompt):
    """By the head in question, not by another."""
    found = measure_importance(adapter, [prompt], 128, Accelerator(cpu=True))
    assert found.shape == (2, 2)
    for layer, head in [(0, 1), (1, 0)]:
        losses = []
        for cut in (False, True):
            retrieval = torch.ones(2, 2, dtype=torch.bool)
            retrieval[layer, head] = not cut
            with torch.inference_mode():
                memory = adapter.memory(RetrievalHeads(retrieval, 128))
                losses.append(-float(likelihood(adapter.model, [prompt], **{CACHE: memory})[0]))
        assert float(found[layer, head]) == pytest.approx(losses[1] - losses[0], abs=1e-4)
        assert found[layer, head] != 0


def test_every_update_of_every_layer_is_observed_under_the_rule(adapter, prompt):
    retrieval = torch.tensor([[True, False], [False, True]])
    seen = observe(adapter, prompt, retrieval, 128)
    updates = len(prompt.tokens) // 128
    expected = [(layer, 128 * (u + 1)) for layer in (0, 1) for u in range(updates)]
    assert [(s.layer, s.seen) for s in seen] == expected
    last = max((s for s in seen if s.layer == 0), key=lambda s: s.seen)
    real = (last.positions >= 0).sum(-1)
    assert real.tolist() == [last.seen, SINKS + RECENT + 128]


@pytest.mark.parametrize("count", [0, 5])
def test_more_heads_than_there_are(count):
    with pytest.raises(NammTransferError, match="expected 1 to 4"):
        Distillation(torch.rand(2, 2), count)


def test_the_fit_keeps_the_important_head():
    """Of two heads whose spectra differ; sinks and recent tokens stay in both."""
    generator = torch.Generator().manual_seed(0)
    tokens = 200
    places = torch.arange(tokens, dtype=torch.int32).expand(2, -1)
    seen = [
        Observation(
            0,
            tokens,
            (
                0.03 + 0.01 * torch.rand(2, 17, tokens, generator=generator) + torch.tensor([0.1, 0.0])[:, None, None]
            ).half(),
            places,
            (places < SINKS) | (places >= tokens - RECENT),
        )
        for _ in range(3)
    ]
    distillation = Distillation(torch.tensor([[0.2, 0.0]]), 1)
    assert distillation.retrieval.tolist() == [[True, False]]
    start = 0.05 * torch.randn(PUBLISHED.size, generator=generator)
    accelerator = Accelerator(cpu=True)
    options = dict(steps=150, seed=0, accelerator=accelerator)
    vector = fit([(distillation, seen)], start, torch.eye(FEATURES), STATISTICS, **options)
    namm = NAMM.from_vector(vector, mean=STATISTICS.mean, var=STATISTICS.var)
    kept = namm.score(namm.features(seen[0].spectrum.float()[None], seen[0].positions[None]))[0] >= 0
    old = slice(SINKS, tokens - RECENT)
    assert kept[0, old].float().mean() > 0.95
    assert kept[1, old].float().mean() < 0.05
    assert kept[:, tokens - RECENT :].float().mean() > 0.9
