"""The learned start: what is learned from, and that it is learned, by any number of sittings."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_text import save_tiny_llama

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.tasks.text.families import make_quiz
from namm_transfer.moments import Moments
from namm_transfer.namm import FEATURES, RECENCY, SIZE, WIDTH
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.learning import Learning
from namm_transfer.training.namm.loop import start_vector
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.whitening import first, through, whitening

CONFIG = EvolutionConfig(
    learn_measured=1,
    learn_heads=2,
    learn_imitation=5,
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


def learning(adapter, path, config=CONFIG, settings="these") -> Learning:
    start = start_vector("attention")
    options = dict(seed=3, path=path, settings=settings, accelerator=Accelerator(cpu=True))
    return Learning(adapter, config, STATISTICS, start, **options)


@pytest.fixture(scope="module")
def spectra():
    """Two heads' spectra of tokens that differ much in one direction and little in the others."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, 1, 300, generator=generator)
    return [0.03 + 0.05 * common + 0.001 * torch.randn(2, 17, 300, generator=generator)]


def test_a_quiz_is_its_texts_and_knows_its_answers(adapter):
    parts = [("The key is", " 123"), ("\n\nThe price is", " 45")]
    quiz = Quiz.encode(adapter, parts)
    assert adapter.tokenizer.decode(quiz.tokens) == "The key is 123\n\nThe price is 45"
    assert [adapter.tokenizer.decode(quiz.tokens[span]) for span in quiz.answers] == [" 123", " 45"]
    assert quiz.text == len("The key is")


def test_the_matrix_reaches_all_weights_that_read_features_and_no_others():
    matrix = torch.eye(FEATURES) + torch.rand(FEATURES, FEATURES, generator=torch.Generator().manual_seed(0))
    vector = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 1, 9, FEATURES)
    statistics = dict(mean=torch.zeros(17), var=torch.ones(17))
    plain, changed = (NAMM.from_vector(v, **statistics) for v in (vector, through(vector, matrix)))
    for layer in ("attention_in", "output"):
        torch.testing.assert_close(getattr(changed, layer)(x), getattr(plain, layer)(x @ matrix), atol=1e-4, rtol=1e-4)
    assert torch.equal(changed.attention_out.weight, plain.attention_out.weight)
    torch.testing.assert_close(through(through(vector, matrix), torch.linalg.inv(matrix)), vector, atol=1e-3, rtol=1e-3)


def test_whitened_tokens_differ_equally_in_all_directions(spectra):
    matrix = whitening(spectra, STATISTICS)
    assert torch.equal(matrix[:RECENCY, :RECENCY], torch.eye(RECENCY))
    tokens = spectra[0].transpose(1, 2).flatten(0, 1)
    normalised = ((tokens - STATISTICS.mean) / STATISTICS.var.sqrt()).float().clamp(-3, 3)
    spread = torch.cov((normalised @ matrix[RECENCY:, RECENCY:]).T)
    before = torch.cov(normalised.T)
    assert torch.linalg.cond(spread) < torch.linalg.cond(before) / 100


def test_the_first_scores_lie_around_zero_and_follow_the_start(spectra):
    start = torch.tensor(start_vector("attention"))
    matrix = whitening(spectra, STATISTICS)
    vector = first(spectra, STATISTICS, matrix, start, seed=0)
    namm = NAMM.from_vector(through(vector, matrix), mean=STATISTICS.mean, var=STATISTICS.var)
    positions = torch.arange(300).expand(1, 2, -1)
    scores = namm.score(namm.features(spectra[0][None], positions)).flatten()
    assert abs(scores.median()) < 1e-3
    assert scores.abs().median() == pytest.approx(1.5, rel=1e-3)
    attention = spectra[0].sum(1).flatten()
    assert torch.corrcoef(torch.stack([scores, attention]))[0, 1] > 0.7
    assert not torch.equal(vector, first(spectra, STATISTICS, matrix, start, seed=1))


def test_less_is_held_the_less_is_asked_for(adapter, tmp_path):
    held = []
    for share in (0.2, 0.8):
        config = dataclasses.replace(CONFIG, learn_steps=30, learn_quizzes=1, learn_held=share)
        taught = learning(adapter, tmp_path / f"{share}.safetensors", config)
        taught.run()
        held.append(float(taught.log[-5:, 1].mean()))
    assert held[0] < held[1] - 0.2


def test_answers_get_likelier(adapter, tmp_path, monkeypatch):
    """One quiz again and again, with nothing else in the loss."""
    for name in ("_PRICE", "_PRICE_RATE", "_STIFFNESS", "_PROSE_WEIGHT"):
        monkeypatch.setattr(f"namm_transfer.training.namm.learning.{name}", 0.0)
    monkeypatch.setattr("namm_transfer.training.namm.learning._NOISE", (1e-6, 1e-6))
    quiz = Quiz.make(adapter, 0, 0, 700)
    monkeypatch.setattr(Quiz, "make", lambda *_: quiz)
    taught = learning(adapter, tmp_path / "state.safetensors", dataclasses.replace(CONFIG, learn_steps=30))
    taught.run()
    assert taught.log[-1, 0] > taught.log[0, 0] + 0.05


def test_several_sittings_are_one(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("namm_transfer.training.namm.learning._SAVE_EVERY", 2)
    whole, matrix = learning(adapter, tmp_path / "whole.safetensors").run()
    path = tmp_path / "parts.safetensors"
    steps = iter([1, 2, 3, 4])

    def stop():
        if next(steps) == 4:
            raise KeyboardInterrupt

    stopped = learning(adapter, path)
    monkeypatch.setattr(stopped, "_learn", lambda: (stop(), Learning._learn(stopped)))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert len(load_file(path)["log"]) == 2
    resumed = learning(adapter, path)
    assert resumed.step == 2
    vector, again = resumed.run()
    # A bias of all keys changes no softmax: its gradient is rounding, which Adam makes steps of.
    keys = FEATURES * 3 * WIDTH + WIDTH
    vector[keys : keys + WIDTH] = whole[keys : keys + WIDTH]
    np.testing.assert_allclose(vector, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(matrix, again)
    assert adapter.model.config._attn_implementation == "memory"


def test_a_state_of_other_settings_is_refused(adapter, tmp_path):
    path = tmp_path / "learning.safetensors"
    learning(adapter, path, dataclasses.replace(CONFIG, learn_steps=1)).run()
    with pytest.raises(NammTransferError, match="other settings"):
        learning(adapter, path, settings="others")


def test_a_quiz_hides_what_it_asks(adapter):
    (text, answer), *more = make_quiz("train", 0, 5, tokens=900, count=adapter.count)
    assert 1 <= 1 + len(more) <= 5
    for _, wanted in [("", answer), *more]:
        assert wanted.strip() in text
    assert make_quiz("train", 0, 5, tokens=900, count=adapter.count) == [(text, answer), *more]
    assert make_quiz("train", 0, 6, tokens=900, count=adapter.count) != [(text, answer), *more]


def test_quizzes_differ_in_what_they_hide(adapter):
    quizzes = [make_quiz("train", 0, n, tokens=900, count=adapter.count) for n in range(40)]
    assert len({len(quiz) for quiz in quizzes}) > 2
    texts = [quiz[0][0] for quiz in quizzes]
    for said in ("The pass key is", "Prices:", "The magic number of", "works as a", "was born in"):
        assert 0 < sum(said in text for text in texts) < len(texts)
