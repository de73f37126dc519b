"""The learned start: what it is learned from, that it is learned, and that a stopped run goes on as if it had not."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_text import save_tiny_llama

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.tasks.text.families import make_multi_question_prompt
from namm_transfer.moments import Moments
from namm_transfer.scorers import FEATURES, PUBLISHED, RECENCY, WIDTH
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.learning import Learning
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt
from namm_transfer.training.namm.whitening import random_start, unwhiten, whitening

CONFIG = EvolutionConfig(
    learn_importance_prompts=1,
    learn_important_heads=2,
    learn_distillation_steps=5,
    learn_steps=4,
    learn_rate=1e-2,
    learn_tokens=(700,),
    learn_intervals=(128,),
)
STATISTICS = Moments(1.0, torch.full((17,), 0.03).double(), torch.full((17,), 0.01).double())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    torch.set_num_threads(1)
    return CausalLMAdapter.load(save_tiny_llama(tmp_path_factory.mktemp("llama")), dtype=torch.float32, device="cpu")


def learning(adapter, path, config=CONFIG, seed=3) -> Learning:
    options = dict(seed=seed, path=path, identity={"seed": seed}, accelerator=Accelerator(cpu=True))
    return Learning([adapter], config, STATISTICS, **options)


@pytest.fixture(scope="module")
def spectra():
    """Two heads' spectra of tokens that differ much in one direction and little in the others."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, 1, 300, generator=generator)
    return [0.03 + 0.05 * common + 0.001 * torch.randn(2, 17, 300, generator=generator)]


def test_a_prompt_is_its_texts_and_knows_its_answers(adapter):
    parts = [("The key is", " 123"), ("\n\nThe price is", " 45")]
    prompt = MultiQuestionPrompt.encode(adapter, parts)
    assert adapter.tokenizer.decode(prompt.tokens) == "The key is 123\n\nThe price is 45"
    assert [adapter.tokenizer.decode(prompt.tokens[span]) for span in prompt.answers] == [" 123", " 45"]
    assert prompt.text == len("The key is")


def test_the_matrix_reaches_all_weights_that_read_features_and_no_others():
    matrix = torch.eye(FEATURES) + torch.rand(FEATURES, FEATURES, generator=torch.Generator().manual_seed(0))
    vector = torch.randn(PUBLISHED.size, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 1, 9, FEATURES)
    statistics = dict(mean=torch.zeros(17), var=torch.ones(17))
    plain, changed = (NAMM.from_vector(v, **statistics) for v in (vector, unwhiten(vector, matrix)))
    for layer in ("attention_in", "output"):
        torch.testing.assert_close(getattr(changed, layer)(x), getattr(plain, layer)(x @ matrix), atol=1e-4, rtol=1e-4)
    assert torch.equal(changed.attention_out.weight, plain.attention_out.weight)
    torch.testing.assert_close(
        unwhiten(unwhiten(vector, matrix), torch.linalg.inv(matrix)), vector, atol=1e-3, rtol=1e-3
    )


def test_whitened_tokens_differ_equally_in_all_directions(spectra):
    matrix = whitening(spectra, STATISTICS)
    assert torch.equal(matrix[:RECENCY, :RECENCY], torch.eye(RECENCY))
    tokens = spectra[0].transpose(1, 2).flatten(0, 1)
    normalised = ((tokens - STATISTICS.mean) / STATISTICS.var.sqrt()).float().clamp(-3, 3)
    spread = torch.cov((normalised @ matrix[RECENCY:, RECENCY:]).T)
    before = torch.cov(normalised.T)
    assert torch.linalg.cond(spread) < torch.linalg.cond(before) / 100


def test_the_first_scores_lie_around_zero_and_follow_attention(spectra):
    matrix = whitening(spectra, STATISTICS)
    vector = random_start(spectra, STATISTICS, matrix, seed=0)
    namm = NAMM.from_vector(unwhiten(vector, matrix), mean=STATISTICS.mean, var=STATISTICS.var)
    positions = torch.arange(300).expand(1, 2, -1)
    scores = namm.score(namm.features(spectra[0][None], positions)).flatten()
    assert abs(scores.median()) < 1e-3
    assert scores.abs().median() == pytest.approx(1.5, rel=1e-3)
    attention = spectra[0].sum(1).flatten()
    assert torch.corrcoef(torch.stack([scores, attention]))[0, 1] > 0.7
    assert not torch.equal(vector, random_start(spectra, STATISTICS, matrix, seed=1))


def test_less_is_kept_the_less_is_asked_for(adapter, tmp_path):
    kept = []
    for share in (0.2, 0.8):
        config = dataclasses.replace(CONFIG, learn_steps=30, learn_prompts=1, learn_kept_share=share)
        taught = learning(adapter, tmp_path / f"{share}.safetensors", config)
        taught.run()
        kept.append(float(taught.loop.log[-5:, 2].mean()))
    assert kept[0] < kept[1] - 0.2


def test_answers_get_likelier(adapter, tmp_path, monkeypatch):
    """One prompt again and again, with nothing else in the loss."""
    for name in ("_PENALTY_RATE", "_STIFFNESS", "_PROSE_WEIGHT"):
        monkeypatch.setattr(f"namm_transfer.training.namm.learning.{name}", 0.0)
    monkeypatch.setattr("namm_transfer.training.namm.learning._NOISE", (1e-6, 1e-6))
    prompt = MultiQuestionPrompt.make(adapter, 0, 0, 700)
    monkeypatch.setattr(MultiQuestionPrompt, "make", lambda *_: prompt)
    config = dataclasses.replace(CONFIG, learn_steps=30, learn_penalty=0.0)
    taught = learning(adapter, tmp_path / "state.safetensors", config)
    taught.run()
    assert taught.loop.log[-1, 1] > taught.loop.log[0, 1] + 0.05


def test_a_stopped_run_goes_on_as_if_it_had_not_been(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("namm_transfer.training.namm.learning._SAVE_EVERY", 2)
    whole, matrix = learning(adapter, tmp_path / "whole.safetensors").run()
    path = tmp_path / "parts.safetensors"

    def stop(step, part):
        if step == 3:
            raise KeyboardInterrupt
        return stopped._loss(step, part)

    stopped = learning(adapter, path)
    stopped.loop.loss = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert len(load_file(path)["log"]) == 2
    resumed = learning(adapter, path)
    assert resumed.loop.step == 2
    vector, again = resumed.run()
    # A bias of all keys changes no softmax: its gradient is rounding, which Adam makes steps of.
    keys = FEATURES * 3 * WIDTH + WIDTH
    vector[keys : keys + WIDTH] = whole[keys : keys + WIDTH]
    np.testing.assert_allclose(vector, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(matrix, again)
    assert adapter.model.config._attn_implementation == "memory"


def test_prompts_in_one_batch_teach_the_same_as_one_by_one(adapter, tmp_path):
    """The first step's gradient and metrics, within rounding."""
    found = []
    for batch in (1, 2):
        config = dataclasses.replace(CONFIG, learn_steps=1, learn_prompts=4, learn_batch=batch)
        taught = learning(adapter, tmp_path / f"{batch}.safetensors", config)
        assert taught.loop.parts == 4 // batch
        taught.run()
        found.append((taught.namm.vector.grad, taught.loop.log))
    (one, log), (two, again) = found
    assert one.norm() > 1e-3
    assert float((one - two).norm() / one.norm()) < 1e-3
    torch.testing.assert_close(log, again, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_another_run_is_refused(adapter, tmp_path):
    path = tmp_path / "learning.safetensors"
    learning(adapter, path, dataclasses.replace(CONFIG, learn_steps=1)).run()
    with pytest.raises(NammTransferError, match="made with seed=3, this run has seed=4"):
        learning(adapter, path, seed=4)


def test_a_text_hides_what_is_asked(adapter):
    (text, answer), *more = make_multi_question_prompt("train", 0, 5, tokens=900, count=adapter.count)
    assert 1 <= 1 + len(more) <= 5
    for _, wanted in [("", answer), *more]:
        assert wanted.strip() in text
    assert make_multi_question_prompt("train", 0, 5, tokens=900, count=adapter.count) == [(text, answer), *more]
    assert make_multi_question_prompt("train", 0, 6, tokens=900, count=adapter.count) != [(text, answer), *more]


def test_prompts_differ_in_what_they_hide(adapter):
    prompts = [make_multi_question_prompt("train", 0, n, tokens=900, count=adapter.count) for n in range(40)]
    assert len({len(prompt) for prompt in prompts}) > 2
    texts = [prompt[0][0] for prompt in prompts]
    for said in ("The pass key is", "Prices:", "The magic number of", "works as a", "was born in"):
        assert 0 < sum(said in text for text in texts) < len(texts)
