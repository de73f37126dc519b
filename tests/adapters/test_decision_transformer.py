"""Decision Transformers acting from a memory: equal to recomputing everything, and to Hugging Face's example."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter, Recorded, Statistics, kept_tokens
from namm_transfer.testing import check_adapter

STATES, ACTIONS, STEPS = 5, 2, 60
STATISTICS = Statistics(np.linspace(-1, 1, STATES), np.linspace(0.5, 2, STATES), 100.0, target_return=300.0)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=STATES,
        act_dim=ACTIONS,
        hidden_size=32,
        n_layer=2,
        n_head=2,
        max_ep_len=80,
        n_positions=8,
        initializer_range=0.3,  # peaked attention, so that tokens differ in what they receive
        bos_token_id=None,
        eos_token_id=None,
    )
    DecisionTransformerModel(config).save_pretrained(tmp_path)
    (tmp_path / "statistics.json").write_text(STATISTICS.to_json())
    return tmp_path


@pytest.fixture
def adapter(folder):
    return DecisionTransformerAdapter.load(folder, device="cpu")


def recording(rows: int, steps: int = STEPS) -> Recorded:
    generator = np.random.default_rng(1)
    returns = 300 - np.cumsum(generator.normal(5, 1, (rows, steps)), axis=1)
    return Recorded(
        generator.normal(size=(rows, steps, STATES)), generator.uniform(-1, 1, (rows, steps, ACTIONS)), returns
    )


def recomputed(folder, sample: Recorded) -> np.ndarray:
    """The actions of transformers' own model, which sees the whole recording at once."""
    model = DecisionTransformerModel.from_pretrained(folder).eval()
    rows, steps = sample.returns_to_go.shape
    states = (sample.states - STATISTICS.state_mean) / STATISTICS.state_std
    with torch.no_grad():
        return model(
            states=torch.tensor(states, dtype=torch.float32),
            actions=torch.tensor(sample.actions, dtype=torch.float32),
            returns_to_go=torch.tensor(sample.returns_to_go[..., None] / 100.0, dtype=torch.float32),
            timesteps=torch.arange(steps).repeat(rows, 1),
            attention_mask=torch.ones(rows, steps),
        ).action_preds.numpy()


def test_one_call_over_a_recording_equals_recomputing(folder, adapter):
    sample = recording(2)
    cache = adapter.memory(policies.make("full"))
    actions = adapter.answer(adapter.encode(sample), cache)
    np.testing.assert_allclose(actions.numpy(), recomputed(folder, sample), atol=1e-5)
    assert cache.report().row(0).seen == 3 * STEPS - 1


def test_stepping_from_the_memory_equals_recomputing(folder, adapter):
    sample = recording(2)
    stepper = adapter.play(adapter.memory(policies.make("full")), sample.returns_to_go[:, 0])
    rewards = -np.diff(sample.returns_to_go, axis=1, prepend=sample.returns_to_go[:, :1])
    taken = np.stack([stepper.act(sample.states[:, t], rewards[:, t]) for t in range(STEPS)], axis=1)
    sample.actions = taken
    np.testing.assert_allclose(taken, recomputed(folder, sample), atol=1e-5)
    assert stepper.cache.get_seq_length() == 3 * STEPS - 1


@torch.no_grad()
def hugging_face_action(model, states, actions, rewards, returns_to_go, timesteps, window):
    """`get_action` of the example in transformers (run_decision_transformer.py), its fixed 20 made an argument."""
    states = states.reshape(1, -1, model.config.state_dim)[:, -window:]
    actions = actions.reshape(1, -1, model.config.act_dim)[:, -window:]
    returns_to_go = returns_to_go.reshape(1, -1, 1)[:, -window:]
    timesteps = timesteps.reshape(1, -1)[:, -window:]
    padding = window - states.shape[1]
    attention_mask = torch.cat([torch.zeros(padding), torch.ones(states.shape[1])]).to(torch.long).reshape(1, -1)
    states = torch.cat([torch.zeros((1, padding, model.config.state_dim)), states], dim=1).float()
    actions = torch.cat([torch.zeros((1, padding, model.config.act_dim)), actions], dim=1).float()
    returns_to_go = torch.cat([torch.zeros((1, padding, 1)), returns_to_go], dim=1).float()
    timesteps = torch.cat([torch.zeros((1, padding), dtype=torch.long), timesteps], dim=1)
    _, action_preds, _ = model(
        states=states,
        actions=actions,
        rewards=rewards,
        returns_to_go=returns_to_go,
        timesteps=timesteps,
        attention_mask=attention_mask,
        return_dict=False,
    )
    return action_preds[0, -1]


@pytest.mark.parametrize("policy", [None, "full"])
def test_window_equals_the_hugging_face_example(folder, adapter, policy):
    sample, window = recording(1, steps=14), 6
    rewards = -np.diff(sample.returns_to_go, axis=1, prepend=sample.returns_to_go[:, :1])
    memory = None if policy is None else policies.make(policy)
    stepper = adapter.play(memory, sample.returns_to_go[:, 0], window=window)

    model = DecisionTransformerModel.from_pretrained(folder).eval()
    states = torch.zeros(0, STATES)
    actions = torch.zeros(0, ACTIONS)
    for step in range(14):
        ours = stepper.act(sample.states[:, step], rewards[:, step])[0]
        normalised = (sample.states[0, step] - STATISTICS.state_mean) / STATISTICS.state_std
        states = torch.cat([states, torch.tensor(normalised, dtype=torch.float32)[None]])
        actions = torch.cat([actions, torch.zeros(1, ACTIONS)])
        returns = torch.tensor(sample.returns_to_go[:, : step + 1] / 100.0)
        theirs = hugging_face_action(model, states, actions, None, returns, torch.arange(step + 1)[None], window)
        actions[-1] = theirs
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_rows_of_a_batch_do_not_meet(adapter):
    sample, policy = recording(3), policies.make("h2o:keep=0.4", update_interval=16)
    together = adapter.memory(policy)
    actions = adapter.answer(adapter.encode(sample), together).numpy()
    alone = Recorded(sample.states[1:2], sample.actions[1:2], sample.returns_to_go[1:2])
    cache = adapter.memory(policy)
    np.testing.assert_allclose(actions[1:2], adapter.answer(adapter.encode(alone), cache).numpy(), atol=1e-5)
    for layer in range(2):
        assert torch.equal(together.positions(layer)[1], cache.positions(layer)[0])
    assert together.report().row(1).updates == (3 * STEPS - 1) // 16


def test_a_memory_that_forgets_acts_otherwise(adapter):
    encoded = adapter.encode(recording(1))
    full = adapter.answer(encoded, adapter.memory(policies.make("full")))
    short = adapter.answer(encoded, adapter.memory(policies.make("streaming:sinks=1,window=3", update_interval=16)))
    assert (full - short).abs().max() > 1e-2


def test_kept_names_time_steps_and_kinds(adapter):
    encoded = adapter.encode(recording(1, steps=11))  # 32 tokens: an update at the last one
    cache = adapter.memory(policies.make("streaming:sinks=4,window=3", update_interval=16))
    adapter.answer(encoded, cache)
    kept = adapter.kept(cache, encoded)["kept"]
    assert kept.shape == (2, 11, 3)
    expected = np.zeros((11, 3))
    expected[0] = 1  # sinks: return, state, action of step 0 ...
    expected[1, 0] = 1  # ... and the return of step 1
    expected[9, 2] = expected[10, 0] = expected[10, 1] = 1  # window: the last three tokens
    np.testing.assert_array_equal(kept, np.stack([expected, expected]))
    np.testing.assert_array_equal(kept, kept_tokens(cache, 11, 0))


def test_keeps_what_every_adapter_promises(adapter):
    adapter.model.config.max_ep_len = 200
    adapter.model.embed_timestep = torch.nn.Embedding(200, 32)
    check_adapter(adapter)


def test_statistics_come_from_the_folder_or_are_given(folder, adapter):
    np.testing.assert_array_equal(adapter.statistics.state_std, STATISTICS.state_std)
    assert adapter.statistics.target_return == 300.0
    (folder / "statistics.json").unlink()
    with pytest.raises(NammTransferError, match=r"no statistics\.json"):
        DecisionTransformerAdapter.load(folder, device="cpu")
    given = DecisionTransformerAdapter.load(folder, device="cpu", statistics=STATISTICS)
    assert given.statistics is STATISTICS


@pytest.fixture
def published(folder):
    """Laid out as the models on the hub are: PyTorch's own format, buffers of old versions, statistics in the card."""
    weights = dict(DecisionTransformerModel.from_pretrained(folder).state_dict())
    for layer in range(2):
        weights[f"encoder.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        weights[f"encoder.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "statistics.json").unlink()
    (folder / "README.md").write_text(
        "# A model\n\nCoefficients to normalise with:\n\nmean = [-1.0, -0.5,  0.,\n 5.0e-1, 1]\n\n"
        "std = [0.5, 0.875, 1.25, 1.625, 2.0 ]\n\nSee elsewhere for usage.\n"
    )
    return folder


def test_a_published_model_loads_with_the_statistics_of_its_card(published, adapter):
    found = DecisionTransformerAdapter.load(published, device="cpu")
    np.testing.assert_array_equal(found.statistics.state_mean, STATISTICS.state_mean)
    np.testing.assert_array_equal(found.statistics.state_std, STATISTICS.state_std)
    assert (found.statistics.return_scale, found.statistics.target_return) == (1000.0, None)
    for name, value in adapter.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("mean = [1, 2, 3, 4, 5]", r"std = \[\.\.\.\]"),
        ("mean = [1, 2, 3, 4, 1-1]\nstd = [1, 1, 1, 1, 1]", "cannot be read"),
        ("mean = [1, 2, 3]\nstd = [1, 1, 1]", "states of 5 numbers"),
    ],
)
def test_a_card_without_usable_statistics(published, card, complaint):
    (published / "README.md").write_text(card)
    with pytest.raises(NammTransferError, match=complaint):
        DecisionTransformerAdapter.load(published, device="cpu")


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_refused(published, tmp_path):
    torch.save({"weights": Trap(tmp_path / "sprung")}, published / "pytorch_model.bin")
    with pytest.raises(NammTransferError, match="more than tensors"):
        DecisionTransformerAdapter.load(published, device="cpu")
    assert not (tmp_path / "sprung").exists()


def test_missing_weights_are_named(published):
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    del weights["predict_action.0.weight"]
    torch.save(weights, published / "pytorch_model.bin")
    with pytest.raises(NammTransferError, match=r"1 missing tensors.*predict_action\.0\.weight"):
        DecisionTransformerAdapter.load(published, device="cpu")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        ('{"state_mean": [0], "state_std": [1], "colour": 3}', "cannot be read"),
        ('{"state_mean": [0, 1], "state_std": [1]}', "one length"),
        ('{"state_mean": [0], "state_std": [0]}', "above 0"),
        ('{"state_mean": [NaN], "state_std": [1]}', "finite"),
        ('{"state_mean": [0], "state_std": [1]}', "states of 5 numbers"),
    ],
)
def test_bad_statistics_are_refused(folder, content, complaint):
    (folder / "statistics.json").write_text(content)
    with pytest.raises(NammTransferError, match=complaint):
        DecisionTransformerAdapter.load(folder, device="cpu")


def test_cut_off_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(NammTransferError, match="no Decision Transformer"):
        DecisionTransformerAdapter.load(folder, device="cpu")


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(NammTransferError, match="no Decision Transformer"):
        DecisionTransformerAdapter.load(tmp_path)


def test_shapes_and_time_steps_the_model_cannot_take(adapter):
    with pytest.raises(NammTransferError, match="80 time steps"):
        adapter.encode(recording(1, steps=81))
    sample = recording(1)
    sample.states = sample.states[..., :-1]
    with pytest.raises(NammTransferError, match="the model expects"):
        adapter.encode(sample)
    with pytest.raises(NammTransferError, match="cache"):
        adapter.play(policies.make("full"), [1.0])


def test_heads_that_keep_different_numbers_of_tokens(adapter, random_namm):
    encoded = adapter.encode(recording(2))
    cache = adapter.memory(random_namm(seed=8, selection="head", update_interval=16))
    adapter.answer(encoded, cache)
    assert any((cache.positions(layer) < 0).any() for layer in range(2)), "ragged, or this test says nothing"
    for row in range(2):
        kept = adapter.kept(cache, encoded, row)["kept"]
        np.testing.assert_allclose(kept.sum((1, 2)), cache.report().row(row).kept.float().mean(1), rtol=1e-5)


CARDS = [(env, tier) for env in ("hopper", "halfcheetah", "walker2d") for tier in ("medium", "medium-replay", "expert")]


def published_card(env: str, tier: str) -> tuple[str, np.ndarray, np.ndarray]:
    """A card laid out as that of the nine published models (edbeeching/decision-transformer-gym-ENV-TIER).

    Facts taken over: 11 or 17 numbers; spaces inside the brackets; a comma after a space; exponents (walker2d-expert);
    a stray 18th deviation, 5, in halfcheetah-medium-replay. The numbers are made up.
    """
    size = 11 if env == "hopper" else 17
    mean, std = np.linspace(-1, 3, size, dtype=np.float32), np.linspace(0.1, 6, size, dtype=np.float32)
    number = "{:.7e}" if (env, tier) == ("walker2d", "expert") else "{:.7f}"
    stray = ", 5" if (env, tier) == ("halfcheetah", "medium-replay") else ""
    texts = [", ".join(number.format(value) for value in vector) for vector in (mean, std)]
    text = (
        f"---\ntags:\n- decision-transformer\n---\n# Decision Transformer model trained on {tier} trajectories sampled "
        f"from the Gym {env} environment\n\nThe following normlization coeficients are required to use this model:\n\n"
        f"mean = [ {texts[0]}] \n\nstd = [{texts[1].replace(', ', ' ,', 1)}{stray} ]\n\nSee our [Blog Post](https://x)."
    )
    return text, mean, std


@pytest.mark.parametrize(("env", "tier"), CARDS)
def test_the_nine_published_cards(tmp_path, env, tier, recwarn):
    text, mean, std = published_card(env, tier)
    (tmp_path / "README.md").write_text(text)
    found = Statistics.read(str(tmp_path), 11 if env == "hopper" else 17)
    np.testing.assert_allclose(found.state_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.state_std, std, rtol=1e-5, atol=1e-6)
    assert (found.return_scale, found.found_in) == (1000.0, "README.md")
    warned = [str(warning.message) for warning in recwarn]
    stray = (env, tier) == ("halfcheetah", "medium-replay")
    assert warned == (["the card's std has 18 numbers for states of 17; 5, the last, is cut"] if stray else [])


def test_the_models_own_statistics_come_before_given_ones(published):
    given = Statistics(np.zeros(STATES), np.ones(STATES), found_in="data set me/data-v0")
    found = DecisionTransformerAdapter.load(published, device="cpu", statistics=given).statistics
    np.testing.assert_array_equal(found.state_std, STATISTICS.state_std)
    assert found.found_in == "README.md"
    (published / "README.md").write_text("# A model\n")
    assert DecisionTransformerAdapter.load(published, device="cpu", statistics=given).statistics is given


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"return_scale": float("inf")}, "return scale inf"),
        ({"return_scale": float("nan")}, "return scale nan"),
        ({"return_scale": -1}, "return scale -1"),
        ({"return_scale": "x"}, r"statistics\.json of .* cannot be read"),
        ({"target_return": float("nan")}, "target return nan"),
        ({"target_return": "much"}, r"statistics\.json of .* cannot be read"),
        ({"env": ["hopper"]}, r"environment \['hopper'\]"),
    ],
)
def test_impossible_statistics_are_refused(folder, change, complaint):
    (folder / "statistics.json").write_text(json.dumps({**json.loads(STATISTICS.to_json()), **change}))
    with pytest.raises(NammTransferError, match=complaint):
        DecisionTransformerAdapter.load(folder, device="cpu")


def test_the_file_that_cannot_be_read_is_named(published):
    (published / "README.md").write_bytes(b"mean = [1]\n\xff\xfe")
    with pytest.raises(NammTransferError, match=r"^README\.md of"):
        DecisionTransformerAdapter.load(published, device="cpu")


@pytest.mark.parametrize("change", [{"model_type": "gpt2"}, {"hidden_size": "wide"}, {"n_head": 0}, {"n_head": 5}])
def test_configurations_of_other_models(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(NammTransferError, match=r"(holds no|expected) Decision Transformer"):
        DecisionTransformerAdapter.load(folder, device="cpu")


def test_unknown_weights_are_named(published):
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "value_head.weight": torch.zeros(1)}, published / "pytorch_model.bin")
    with pytest.raises(NammTransferError, match=r"1 unexpected tensors.*value_head\.weight"):
        DecisionTransformerAdapter.load(published, device="cpu")


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_target_returns_are_finite(adapter, target):
    with pytest.raises(NammTransferError, match="target returns"):
        adapter.play(adapter.memory(policies.make("full")), [1.0, target])
