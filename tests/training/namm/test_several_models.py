"""Learning of the deep scoring network on two base models: gates of heads, distillation, steps in turn, resuming."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_text import evolution_config, save_tiny_llama
from transformers import AutoModelForCausalLM

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.evals import evolve
from namm_transfer.moments import Moments
from namm_transfer.scorers import DEEP, FEATURES, RECENCY
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.distill import Distillation, Observation, fit
from namm_transfer.training.namm.gates import Gating, _Choice, learn_gates
from namm_transfer.training.namm.importance import RECENT, SINKS, RetrievalHeads
from namm_transfer.training.namm.learning import Learning
from namm_transfer.training.namm.multi_question import MultiQuestionPrompt, likelihood
from namm_transfer.training.namm.statistics import MomentsRecorder
from namm_transfer.training.namm.whitening import random_deep_start, unwhiten

CONFIG = EvolutionConfig(
    scorer="deep",
    learn_gate_steps=2,
    learn_random_rule=True,
    learn_important_heads=2,
    learn_distillation_prompts=2,
    learn_distillation_steps=5,
    learn_steps=6,
    learn_rate=1e-2,
    learn_prompts=1,
    learn_tokens=(700,),
    learn_intervals=(128,),
)
STATISTICS = Moments(1.0, torch.full((17,), -4.0).double(), torch.full((17,), 1.0).double())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two models that differ: the second has one layer."""
    torch.set_num_threads(1)
    first = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    second = save_tiny_llama(tmp_path_factory.mktemp("other"))
    AutoModelForCausalLM.from_pretrained(second, num_hidden_layers=1).save_pretrained(second)
    return [CausalLMAdapter.load(folder, dtype=torch.float32, device="cpu") for folder in (first, second)]


def learning(adapters, path, config=CONFIG, seed=3) -> Learning:
    options = dict(seed=seed, path=path, identity={"seed": seed}, accelerator=Accelerator(cpu=True))
    return Learning(adapters, config, STATISTICS, **options)


def test_an_open_head_reads_everything_and_a_closed_one_as_a_streaming_head(adapters):
    adapter, opened = adapters[0], torch.tensor([[True, False], [False, True]])
    prompt = MultiQuestionPrompt.make(adapter, 0, 0, 600)
    with torch.no_grad():
        expected, _ = likelihood(adapter.model, [prompt], **{CACHE: adapter.memory(RetrievalHeads(opened, 128))})
        adapter.model.set_attn_implementation("gated")
        gated, _ = likelihood(adapter.model, [prompt], gating=Gating(opened, opened.float(), 128), use_cache=False)
        adapter.model.set_attn_implementation("memory")
    torch.testing.assert_close(gated, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("opened", [[True, False], [False, True]])
def test_the_gradient_of_a_gate_is_that_of_the_way_from_closed_to_open(opened):
    """Two query heads for each of two KV heads; the output itself is one of both."""
    all_read, few_read = torch.randn(2, 1, 4, 5, 3).requires_grad_(True)
    gates, chosen = torch.zeros(2, requires_grad=True), torch.tensor(opened).repeat_interleave(2)[None, :, None, None]
    output = _Choice.apply(all_read, few_read, torch.tensor(opened), gates)
    assert torch.equal(output, torch.where(chosen, all_read, few_read))
    everything, few, gradient = torch.autograd.grad(output.square().sum(), (all_read, few_read, gates))
    way = (2 * output * (all_read - few_read)).view(2, -1).sum(-1)
    torch.testing.assert_close(gradient, way)
    assert torch.equal(everything, torch.where(chosen, 2 * all_read, 0))
    assert torch.equal(few, torch.where(chosen, 0, 2 * few_read))


def test_fewer_gates_open_the_fewer_are_asked_for(adapters, tmp_path):
    found = [
        learn_gates(
            adapters[0],
            share=share,
            steps=6,
            tokens=(600,),
            intervals=(128,),
            seed=0,
            path=tmp_path / f"{share}.safetensors",
            identity={},
            accelerator=Accelerator(cpu=True),
        )
        for share in (0.05, 0.95)
    ]
    assert found[0].shape == (2, 2)
    assert found[0].mean() < found[1].mean() - 0.3
    assert adapters[0].model.config._attn_implementation == "memory"


def test_statistics_are_of_what_the_network_reads(adapters):
    prompt = MultiQuestionPrompt.make(adapters[0], 0, 0, 600)
    found = []
    for scorer in ("published", "deep"):
        recorder = MomentsRecorder(128, scorer=scorer)
        prompt.read(adapters[0].model, adapters[0].memory(recorder), prompt.text)
        found.append(recorder.moments)
    assert (found[0].mean > 0).all()
    assert (found[1].mean < -1).all()
    assert (found[1].mean < (found[0].mean + 1e-4).log()).all()  # Jensen's inequality


def test_unwhitening_changes_what_reads_features_and_nothing_else():
    matrix = torch.eye(FEATURES) + 0.1 * torch.rand(FEATURES, FEATURES)
    matrix[:RECENCY], matrix[:, :RECENCY] = torch.eye(FEATURES)[:RECENCY], torch.eye(FEATURES)[:, :RECENCY]
    vector = random_deep_start(DEEP, 0)
    before, after = DEEP.split(vector), DEEP.split(unwhiten(vector, matrix, DEEP))
    x = torch.randn(5, FEATURES)
    for name, blocks in {"pooled_in.weight": 2, "attention_in.weight": 1, "hidden.weight": 1}.items():
        for block in range(blocks):
            rows = slice(block * FEATURES, (block + 1) * FEATURES)
            torch.testing.assert_close(x @ after[name][rows], x @ matrix @ before[name][rows], atol=1e-4, rtol=1e-4)
        assert torch.equal(after[name][blocks * FEATURES :], before[name][blocks * FEATURES :])
    for name in ("pooled_out.weight", "hidden.bias", "output.weight", "output.bias"):
        assert torch.equal(after[name], before[name])


def test_the_fit_keeps_the_heads_whose_gates_are_open_in_both_models():
    """They receive attention that varies more from token to token; in the second model it is another head."""
    generator, tokens = torch.Generator().manual_seed(0), 200
    places = torch.arange(tokens, dtype=torch.int32).expand(2, -1)
    always = (places < SINKS) | (places >= tokens - RECENT)
    gates, parts = [torch.tensor([[2.0, -2.0]]), torch.tensor([[-2.0, 2.0]])], []
    for values in gates:
        spread = torch.where(values[0] > 0, 2.0, 0.5)[:, None, None]
        spectrum = (-4 + spread * torch.randn(2, 17, tokens, generator=generator)).exp().half()
        parts.append((Distillation(values, 1, gates=True), [Observation(0, tokens, spectrum, places, always)]))
    options = dict(steps=150, seed=0, accelerator=Accelerator(cpu=True), scorer="deep")
    vector = fit(parts, random_deep_start(DEEP, 0), torch.eye(FEATURES), STATISTICS, **options)
    namm = NAMM.from_vector(vector, mean=STATISTICS.mean, var=STATISTICS.var, scorer="deep")
    for (_, (seen,)), values in zip(parts, gates, strict=True):
        scores = namm.score(namm.features(seen.spectrum.float()[None], seen.positions[None]))[0]
        kept = (scores >= 0)[:, SINKS : tokens - RECENT].float().mean(-1)
        assert ((kept - 0.5).abs() > 0.4).all()
        assert ((kept > 0.5) == (values[0] > 0)).all()


def test_models_take_turns_and_each_has_its_own_penalty(adapters, tmp_path):
    taught = learning([adapters[0], adapters[0], adapters[1]], tmp_path / "state.safetensors")
    assert taught.models == adapters
    turns = [taught.adapter(step) is adapters[1] for step in range(300)]
    assert 0.25 < np.mean(turns) < 0.42
    taught.run()
    kept, penalties = taught.loop.log[:, 2], taught.loop.log[:, 3]
    for model in adapters:
        steps = [step for step in range(6) if taught.adapter(step) is model]
        assert steps
        assert penalties[steps[0]] == 3.0
        for before, step in pairwise(steps):
            expected = penalties[before] + 0.1 * (kept[before] - 0.5)
            torch.testing.assert_close(penalties[step], expected, atol=1e-5, rtol=0)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(adapters, tmp_path, monkeypatch):
    monkeypatch.setattr("namm_transfer.training.namm.learning._SAVE_EVERY", 2)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole, matrix = learning(adapters, tmp_path / "whole" / "learning.safetensors").run()
    path = tmp_path / "parts" / "learning.safetensors"

    def stop(step, part):
        if step == 3:
            raise KeyboardInterrupt
        return stopped._loss(step, part)

    stopped = learning(adapters, path)
    stopped.loop.loss = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert len(load_file(path)["log"]) == 2
    resumed = learning(adapters, path)
    assert resumed.loop.step == 2
    vector, again = resumed.run()
    assert torch.equal(matrix, again)
    np.testing.assert_allclose(vector, whole, rtol=1e-4, atol=1e-5)
    gates = load_file(path.with_name("gates-1.safetensors"))["module.values"]
    assert torch.equal(load_file(path)["module.importance_1"], gates)


def test_gates_of_another_run_are_refused(adapters, tmp_path):
    learning(adapters, tmp_path / "learning.safetensors", dataclasses.replace(CONFIG, learn_steps=1))
    (tmp_path / "learning.safetensors").unlink()
    with pytest.raises(NammTransferError, match=r"gates-0.*made with seed=3, this run has seed=4"):
        learning(adapters, tmp_path / "learning.safetensors", seed=4)


def test_the_whole_command_makes_a_deep_namm_and_refuses_to_mix(tmp_path):
    config = evolution_config(tmp_path)
    other = save_tiny_llama(tmp_path / "other")
    more = f'scorer = "deep"\nlearn_also = ["{other}"]\nlearn_gate_steps = 1\nlearn_random_rule = true\n'
    more += "learn_distillation_prompts = 2\n"
    more += 'dtype = "float32"\npooled_tokens = 200\n'
    config.write_text(config.read_text().replace("generations = 4", "generations = 1") + more)
    out = tmp_path / "out"
    evolve.main(["--config", str(config), "--out", str(out)])
    namm = NAMM.from_pretrained(out)
    assert (namm.scorer, namm.selection, namm.pooled_tokens) == ("deep", "head", 200)
    assert namm.to_vector().shape == (DEEP.size,)
    for flags, says in (
        (["--scorer", "published"], "made with dimensions|made with scorer='deep'|scorer"),
        (["--learn-also", str(other), str(other)], "learn_also"),
        (["--pooled-tokens", "100"], "pooled_tokens"),
    ):
        with pytest.raises(NammTransferError, match=says):
            evolve.main(["--config", str(config), "--out", str(out), "--resume", *flags])


def test_learning_goes_on_from_a_saved_namm(adapters, tmp_path):
    """The first step starts from its parameters; nothing is distilled, and its statistics are kept."""
    drawn = torch.randn(DEEP.size, generator=torch.Generator().manual_seed(5)) / 10
    saved = NAMM.from_vector(drawn, mean=STATISTICS.mean, var=STATISTICS.var, scorer="deep")
    saved.save_pretrained(tmp_path / "saved")
    config = dataclasses.replace(CONFIG, learn_from=str(tmp_path / "saved"))
    begun = learning(adapters, tmp_path / "state.safetensors", config).namm
    torch.testing.assert_close(unwhiten(begun.vector.detach(), begun.matrix, DEEP), drawn, atol=1e-4, rtol=1e-4)
    assert not begun.importance.any()
    evolve.main(
        [
            *("--config", str(evolution_config(tmp_path)), "--out", str(tmp_path / "out"), "--scorer", "deep"),
            *("--learn-from", config.learn_from, "--learn-steps", "1", "--generations", "0", "--dtype", "float32"),
        ]
    )
    made = NAMM.from_pretrained(tmp_path / "out")
    assert torch.equal(made.mean, saved.mean)
    assert torch.equal(made.var, saved.var)


def test_a_saved_namm_of_another_form_is_refused(adapters, tmp_path):
    config = dataclasses.replace(CONFIG, learn_from="namm-text")
    with pytest.raises(NammTransferError, match=r"learn_from='namm-text' has scorer='published'; expected .*'deep'"):
        learning(adapters, tmp_path / "state.safetensors", config)
