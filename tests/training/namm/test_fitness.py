"""Members on prompts: sharing the beginning and batching change nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_text import save_tiny_llama

from namm_transfer import NAMM, NammTransferError, policies
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.tasks.text.families import Prompt, make_prompt
from namm_transfer.policies import FullCache
from namm_transfer.training.namm.config import PRESETS, EvolutionConfig
from namm_transfer.training.namm.fitness import Scores, estimate_statistics, evaluate, fork, shared_prefix
from namm_transfer.training.namm.loop import start_vector
from namm_transfer.training.namm.multi_question import Quiz
from namm_transfer.training.namm.population import population
from namm_transfer.training.namm.statistics import Moments

CONFIG = EvolutionConfig(
    families=("passkey", "lookup"),
    introduced=(0, 0),
    tokens=(300,),
    validation_tokens=(300,),
    update_interval=128,
    batch=3,
)
VECTORS = np.random.default_rng(0).normal(size=(4, 4172)) * 0.3


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    return CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def prompts(adapter):
    made = [make_prompt(f, "train", 0, n, tokens=300, count=adapter.count) for f in CONFIG.families for n in range(2)]
    return [Quiz.of(adapter, prompt) for prompt in made]


@pytest.fixture(scope="module")
def statistics(adapter, prompts):
    return estimate_statistics(adapter, prompts, CONFIG, Accelerator(cpu=True))


def member(vector, statistics, **options) -> NAMM:
    return NAMM.from_vector(vector, mean=statistics.mean, var=statistics.var, **(CONFIG.memory | options))


@pytest.mark.parametrize("keep", [0.5, None])
def test_shared_beginning_equals_reading_it_under_the_members_own_policy(adapter, prompts, statistics, keep):
    namm = member(VECTORS[0], statistics, keep=keep)
    shared = fork(shared_prefix(adapter, prompts[0], CONFIG), namm, 1)
    alone = adapter.memory(namm)
    prompts[0].read(adapter.model, alone, CONFIG.update_interval)
    said = [prompts[0].judge(adapter.model, cache) for cache in (shared, alone)]
    assert torch.equal(said[0][0], said[1][0])
    for layer in range(2):
        assert torch.equal(shared.positions(layer), alone.positions(layer))
    assert shared.report().row(0).updates == 2
    assert shared.report().kept_share < 1


def test_reading_in_parts_changes_nothing(adapter, prompts):
    policy, quiz = policies.make("h2o:keep=0.5", update_interval=64), prompts[0]
    whole, parts = adapter.memory(policy), adapter.memory(policy)
    logprob, *_ = quiz.judge(adapter.model, whole)
    for upto in (50, 128, 200):
        quiz.read(adapter.model, parts, upto)
    torch.testing.assert_close(quiz.judge(adapter.model, parts)[0], logprob, atol=1e-4, rtol=1e-4)
    assert torch.equal(whole.positions(1), parts.positions(1))


def test_a_prefix_can_be_forked_again_and_again(adapter, prompts, statistics):
    prefix = shared_prefix(adapter, prompts[0], CONFIG)
    policy = member(VECTORS[0], statistics)
    first, again = (prompts[0].judge(adapter.model, fork(prefix, policy, 1))[0] for _ in range(2))
    full, *_ = prompts[0].judge(adapter.model, fork(prefix, FullCache(128), 1))
    alone, *_ = prompts[0].judge(adapter.model, adapter.memory(FullCache(128)))
    assert torch.equal(first, again)
    torch.testing.assert_close(full, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_scored_as_the_adapter_answers_it(adapter, statistics):
    """And its kept share is that of the cache when the answer begins, even if an update comes within the answer."""
    text = make_prompt("multikey", "train", 0, 0, tokens=300, count=adapter.count).text[-253:]  # a token is a character
    prompt = Prompt("any", "multikey", text, " 12345")
    encoded, memory = adapter.encode(prompt), adapter.memory(member(VECTORS[0], statistics))
    scores = evaluate(adapter, [Quiz.of(adapter, prompt)], VECTORS[:1], statistics, CONFIG, Accelerator(cpu=True))
    assert scores.families == ("multikey",)
    logits = adapter.read(encoded, memory)
    assert scores.kept[0, 0] == memory.kept_share()[0]
    said = adapter.judge(encoded, memory, logits)
    assert memory.kept_share()[0] < scores.kept[0, 0] - 0.1
    assert scores.logprob[0, 0] == pytest.approx(said.logprob, abs=2e-4)
    assert scores.exact[0, 0] == said.exact


def test_every_answer_of_a_quiz_counts_the_same(adapter):
    """Against a reading without any cache, token by token."""
    quiz = Quiz.encode(adapter, [("A key is hidden here: 31. The key is", " 31"), ("\n\nIts colour is", " redder")])
    with torch.inference_mode():
        scores = adapter.model(quiz.tokens[None], use_cache=False).logits[0].log_softmax(-1)
    given = [[scores[i - 1, quiz.tokens[i]] for i in range(span.start, span.stop)] for span in quiz.answers]
    expected = torch.stack([torch.stack(answer).mean() for answer in given]).mean()
    logprob, *_ = quiz.judge(adapter.model, adapter.memory(FullCache(128)), rows=2)
    torch.testing.assert_close(logprob, expected.expand(2), atol=1e-4, rtol=1e-4)
    best = scores.argmax(-1)
    easy = dataclasses.replace(quiz, tokens=quiz.tokens.clone(), answers=(quiz.answers[0], slice(40, 41)))
    easy.tokens[40] = best[39]
    _, exact, _ = easy.judge(adapter.model, adapter.memory(FullCache(128)))
    assert exact.tolist() == [0.5]


def test_members_in_one_batch_are_scored_as_alone(adapter, prompts, statistics):
    together = evaluate(adapter, prompts, VECTORS, statistics, CONFIG, Accelerator(cpu=True))
    for i, vector in enumerate(VECTORS):
        alone = evaluate(adapter, prompts, vector[None], statistics, CONFIG, Accelerator(cpu=True))
        np.testing.assert_allclose(alone.logprob[:, 0], together.logprob[:, i], atol=1e-4)
        np.testing.assert_allclose(alone.kept[:, 0], together.kept[:, i])
        np.testing.assert_array_equal(alone.full_logprob, together.full_logprob)
    assert len(np.unique(together.logprob.round(6), axis=1).T) == 4, "the members differ"


def test_population_rows_are_the_members(statistics):
    x = torch.randn(4, 3, 50, 25)
    many = population(torch.tensor(VECTORS), mean=statistics.mean.float(), var=statistics.var.float())
    scores = many.score(x)
    for b, vector in enumerate(VECTORS):
        torch.testing.assert_close(
            scores[b : b + 1], member(vector, statistics).score(x[b : b + 1]), atol=1e-4, rtol=1e-4
        )


def test_statistics_are_of_the_full_cache_and_of_all_updates(adapter, prompts, statistics):
    seen = [p.text // 128 * 128 for p in prompts]
    expected = sum(2 * 2 * (128 + 256 if n >= 256 else 128) for n in seen)  # layers x heads x tokens
    assert statistics.count == expected
    assert (statistics.var > 0).all()


def test_fitness():
    scores = Scores(
        families=("a", "a", "b"),
        logprob=np.array([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]]),
        exact=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        kept=np.array([[0.5, 1.0]] * 3),
        full_logprob=np.array([-0.5, -1.5, -1.0]),
        full_exact=np.array([1.0, 1.0, 1.0]),
    )
    fitness = lambda **options: scores.fitness(dataclasses.replace(CONFIG, **options))  # noqa: E731
    np.testing.assert_allclose(fitness(), [-0.5, -0.25])
    np.testing.assert_allclose(fitness(price=0.2), [-0.6, -0.45])
    np.testing.assert_allclose(fitness(price=0.2, allowed=0.8), [-0.5, -0.29])
    np.testing.assert_allclose(fitness(fitness="exact"), [0.75, 0.25], atol=1e-6)


def test_start_vectors():
    zero, attention = start_vector("zero"), start_vector("attention")
    assert not zero.any()
    namm = NAMM.from_vector(attention, mean=torch.zeros(17), var=torch.ones(17))
    x = torch.rand(1, 1, 5, 25)
    torch.testing.assert_close(namm.score(x), x[..., 8:].sum(-1))


def test_moments_row_round_trip(statistics):
    again = Moments.from_rows(statistics.to_row()[None])
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.var, statistics.var)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("poetry",)}, "poetry"),
        ({"introduced": (1, 2)}, "one of them 0"),
        ({"tokens": (100,)}, "update_interval=128"),
        ({"members": 0}, "members=0"),
        ({"members": 1}, "members=1"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"validation_every": 0}, "validation_every=0"),
        ({"tokens": ()}, "tokens is empty"),
        ({"learn_intervals": (100,)}, "update_interval=100"),
        ({"quizzes": -1}, "quizzes=-1"),
        ({"quizzes": 4, "introduced": (0, 5)}, r"quizzes=4.*introduced=\(0, 5\)"),
        ({"learn_tokens": (900, 256), "learn_intervals": (128, 256)}, r"learn_tokens=\(900, 256\)"),
        ({"learn_tokens": (900, 300), "learn_intervals": (128, 256)}, r"learn_tokens=\(900, 300\)"),
    ],
)
def test_configurations_that_cannot_work_are_refused(change, message):
    with pytest.raises(NammTransferError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_schedule():
    paper = PRESETS["paper"]
    assert paper.active(0) == ["retrieval"]
    assert paper.active(100) == ["retrieval", "lookup"]
    assert len(paper.active(500)) == 3


def drawn(spread: float, draw: int = 0) -> Scores:
    """Eight members that differ by `spread`, alike in draws 0 and 1, 2 and 3, ..., on 100 quizzes; noise 1."""
    quality = spread * np.random.default_rng((0, draw // 2)).standard_normal(8)
    random = np.random.default_rng((1, draw))
    logprob = quality + 5 * random.standard_normal((100, 1)) + random.standard_normal((100, 8))
    nothing = np.zeros((100, 8))
    return Scores(("quiz",) * 100, logprob, nothing, nothing, nothing[:, 0], nothing[:, 0])


def test_signal_is_how_much_of_the_members_differences_another_draw_shows_again():
    draws = [drawn(0.1, draw) for draw in range(2000)]
    means = np.array([scores.fitness(CONFIG) for scores in draws])
    means -= means.mean(1, keepdims=True)
    again = (means[::2] * means[1::2]).mean() / (means**2).mean()
    assert 0.3 < again < 0.7
    assert np.mean([scores.signal(CONFIG) for scores in draws]) == pytest.approx(again, abs=0.08)
    assert drawn(10.0).signal(CONFIG) > 0.99
    assert np.mean([drawn(0.0, draw).signal(CONFIG) for draw in range(2000)]) == pytest.approx(0, abs=0.08)


def test_what_is_held_counts_in_the_signal_at_its_price():
    scores = drawn(0.0)
    held = dataclasses.replace(scores, kept=np.tile(np.linspace(0, 1, 8), (100, 1)))
    assert held.signal(dataclasses.replace(CONFIG, price=1.0)) > 0.9
    assert held.signal(CONFIG) == scores.signal(CONFIG)


@pytest.mark.parametrize(("quizzes", "logprob"), [(1, [[0.0, 1.0]]), (2, [[0.0, 0.0], [1.0, 1.0]])])
def test_one_quiz_or_members_all_alike_say_nothing_of_the_signal(quizzes, logprob):
    table, row = np.array(logprob), np.zeros(quizzes)
    assert np.isnan(Scores(("quiz",) * quizzes, table, table * 0, table * 0, row, row).signal(CONFIG))
