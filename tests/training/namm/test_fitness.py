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
from namm_transfer.moments import Moments
from namm_transfer.policies import FullCache
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.fitness import (
    Scores,
    estimate_statistics,
    evaluate,
    fork,
    shared_prefix,
    stacked_namm,
)
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood

CONFIG = EvolutionConfig(
    families=("passkey", "lookup"),
    tokens=(300,),
    validation_tokens=(300,),
    update_interval=128,
    batch=3,
    attention_dtype="float32",
)
VECTORS = np.random.default_rng(0).normal(size=(4, 4172)) * 0.3


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    return CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def prompts(adapter):
    made = [make_prompt(f, "train", 0, n, tokens=300, count=adapter.count) for f in CONFIG.families for n in range(2)]
    return [MultiQuestionPrompt.of(adapter, prompt) for prompt in made]


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
    found = [prompts[0].score(adapter.model, cache)[0] for cache in (shared, alone)]
    assert torch.equal(*found)
    for layer in range(2):
        assert torch.equal(shared.positions(layer), alone.positions(layer))
    assert shared.report().row(0).updates == 2
    assert shared.report().kept_share < 1


def test_reading_in_parts_changes_nothing(adapter, prompts):
    policy, prompt = policies.make("h2o:keep=0.5", update_interval=64), prompts[0]
    whole, parts = adapter.memory(policy), adapter.memory(policy)
    logprob, _ = prompt.score(adapter.model, whole)
    for upto in (50, 128, 200):
        prompt.read(adapter.model, parts, upto)
    torch.testing.assert_close(prompt.score(adapter.model, parts)[0], logprob, atol=1e-4, rtol=1e-4)
    assert torch.equal(whole.positions(1), parts.positions(1))


def test_a_prefix_can_be_forked_again_and_again(adapter, prompts, statistics):
    prefix = shared_prefix(adapter, prompts[0], CONFIG)
    policy = member(VECTORS[0], statistics)
    first, again = (prompts[0].score(adapter.model, fork(prefix, policy, 1))[0] for _ in range(2))
    full, _ = prompts[0].score(adapter.model, fork(prefix, FullCache(128), 1))
    alone, _ = prompts[0].score(adapter.model, adapter.memory(FullCache(128)))
    assert torch.equal(first, again)
    torch.testing.assert_close(full, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_scored_as_the_adapter_answers_it(adapter, statistics):
    """And its kept share is that of the cache when the answer begins, even if an update comes within the answer."""
    text = make_prompt("multikey", "train", 0, 0, tokens=300, count=adapter.count).text[-253:]  # a token is a character
    prompt = Prompt("any", "multikey", text, " 12345")
    encoded, memory = adapter.encode(prompt), adapter.memory(member(VECTORS[0], statistics))
    scores = evaluate(
        adapter, [MultiQuestionPrompt.of(adapter, prompt)], VECTORS[:1], statistics, CONFIG, Accelerator(cpu=True)
    )
    assert scores.families == ("multikey",)
    logits = adapter.read(encoded, memory)
    assert scores.kept[0, 0] == memory.kept_share()[0]
    judged = adapter.judge(encoded, memory, logits)
    assert memory.kept_share()[0] < scores.kept[0, 0] - 0.1
    assert scores.logprob[0, 0] == pytest.approx(judged.logprob, abs=2e-4)


def test_every_answer_of_a_prompt_counts_the_same(adapter):
    """Against a reading without any cache, token by token."""
    prompt = MultiQuestionPrompt.encode(
        adapter, [("A key is hidden here: 31. The key is", " 31"), ("\n\nIts colour is", " redder")]
    )
    with torch.inference_mode():
        scores = adapter.model(prompt.tokens[None], use_cache=False).logits[0].log_softmax(-1)
    given = [[scores[i - 1, prompt.tokens[i]] for i in range(span.start, span.stop)] for span in prompt.answers]
    expected = torch.stack([torch.stack(answer).mean() for answer in given]).mean()
    logprob, _ = prompt.score(adapter.model, adapter.memory(FullCache(128)), rows=2)
    torch.testing.assert_close(logprob, expected.expand(2), atol=1e-4, rtol=1e-4)
    together, _ = likelihood(adapter.model, [prompt], use_cache=False)
    torch.testing.assert_close(together, expected[None], atol=1e-4, rtol=1e-4)


def test_members_in_one_batch_are_scored_as_alone(adapter, prompts, statistics):
    together = evaluate(adapter, prompts, VECTORS, statistics, CONFIG, Accelerator(cpu=True))
    for i, vector in enumerate(VECTORS):
        alone = evaluate(adapter, prompts, vector[None], statistics, CONFIG, Accelerator(cpu=True))
        np.testing.assert_allclose(alone.logprob[:, 0], together.logprob[:, i], atol=1e-4)
        np.testing.assert_allclose(alone.kept[:, 0], together.kept[:, i])
        np.testing.assert_array_equal(alone.full_logprob, together.full_logprob)
    assert len(np.unique(together.logprob.round(6), axis=1).T) == 4, "the members differ"


def test_rows_of_a_stacked_namm_are_the_members(statistics):
    x = torch.randn(4, 3, 50, 25)
    many = stacked_namm(torch.tensor(VECTORS), statistics)
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
        kept=np.array([[0.5, 1.0]] * 3),
        full_logprob=np.array([-0.5, -1.5, -1.0]),
    )
    np.testing.assert_allclose(scores.fitness(0.0), [-0.5, -0.25])
    np.testing.assert_allclose(scores.fitness(0.2), [-0.6, -0.45])


def test_moments_row_round_trip(statistics):
    again = Moments.from_rows(statistics.to_row()[None])
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.var, statistics.var)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("poetry",)}, "poetry"),
        ({"tokens": (100,)}, "update_interval=128"),
        ({"members": 0}, "members=0"),
        ({"members": 1}, "members=1"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"validation_every": 0}, "validation_every=0"),
        ({"tokens": ()}, "tokens is empty"),
        ({"learn_intervals": (100,)}, "update_interval=100"),
        ({"multi_question_prompts": -1}, "multi_question_prompts=-1"),
        ({"learn_prompts": 2, "learn_batch": 4}, "learn_batch=4.*learn_prompts=2"),
        ({"kept_share": 1.0}, "kept_share=1.0"),
        ({"learn_tokens": (900, 256), "learn_intervals": (128, 256)}, r"learn_tokens=\(900, 256\)"),
        ({"learn_tokens": (900, 300), "learn_intervals": (128, 256)}, r"learn_tokens=\(900, 300\)"),
    ],
)
def test_configurations_that_cannot_work_are_refused(change, message):
    with pytest.raises(NammTransferError, match=message):
        dataclasses.replace(CONFIG, **change)


def drawn(spread: float, draw: int = 0) -> Scores:
    """Eight members that differ by `spread`, alike in draws 0 and 1, 2 and 3, ..., on 100 prompts; noise 1."""
    quality = spread * np.random.default_rng((0, draw // 2)).standard_normal(8)
    random = np.random.default_rng((1, draw))
    logprob = quality + 5 * random.standard_normal((100, 1)) + random.standard_normal((100, 8))
    nothing = np.zeros((100, 8))
    return Scores(("multi-question",) * 100, logprob, nothing, nothing[:, 0])


def test_signal_is_how_much_of_the_members_differences_another_draw_shows_again():
    draws = [drawn(0.1, draw) for draw in range(2000)]
    means = np.array([scores.fitness(0.0) for scores in draws])
    means -= means.mean(1, keepdims=True)
    again = (means[::2] * means[1::2]).mean() / (means**2).mean()
    assert 0.3 < again < 0.7
    assert np.mean([scores.signal(0.0) for scores in draws]) == pytest.approx(again, abs=0.08)
    assert drawn(10.0).signal(0.0) > 0.99
    assert np.mean([drawn(0.0, draw).signal(0.0) for draw in range(2000)]) == pytest.approx(0, abs=0.08)


def test_the_penalty_counts_in_the_signal():
    scores = drawn(0.0)
    larger = dataclasses.replace(scores, kept=np.tile(np.linspace(0, 1, 8), (100, 1)))
    assert larger.signal(1.0) > 0.9
    assert larger.signal(0.0) == scores.signal(0.0)


@pytest.mark.parametrize(("prompts", "logprob"), [(1, [[0.0, 1.0]]), (2, [[0.0, 0.0], [1.0, 1.0]])])
def test_one_prompt_or_equal_members_give_no_signal(prompts, logprob):
    table = np.array(logprob)
    assert np.isnan(Scores(("multi-question",) * prompts, table, table * 0, np.zeros(prompts)).signal(0.0))
