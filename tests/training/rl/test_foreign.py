"""Checkpoints of other projects, laid out as theirs are, act as their own forward pass does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter, Recorded
from namm_transfer.training.rl import foreign

WIDTH, STEPS, HEADS = 16, 12, 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.register_buffer("causal_mask", torch.ones(3 * STEPS, 3 * STEPS).triu(1).bool())

    def forward(self, tokens):
        seen = self.norm1(tokens)
        tokens = tokens + self.attention(seen, seen, seen, attn_mask=self.causal_mask, need_weights=False)[0]
        return tokens + self.mlp(self.norm2(tokens))


class Corl(nn.Module):
    """The names, shapes and arithmetic of CORL's checkpoints, written anew."""

    def __init__(self):
        super().__init__()
        self.emb_norm, self.out_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.timestep_emb = nn.Embedding(1020, WIDTH)
        self.state_emb, self.action_emb, self.return_emb = (
            nn.Linear(11, WIDTH),
            nn.Linear(3, WIDTH),
            nn.Linear(1, WIDTH),
        )
        self.blocks = nn.ModuleList([Block(), Block()])
        self.action_head = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh())

    def forward(self, returns, states, actions):
        time = self.timestep_emb(torch.arange(STEPS))
        parts = (self.return_emb(returns[..., None]), self.state_emb(states), self.action_emb(actions))
        tokens = self.emb_norm(torch.stack([part + time for part in parts], 2).flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return self.action_head(self.out_norm(tokens)[:, 1::3])


@pytest.fixture
def corl(tmp_path):
    torch.manual_seed(0)
    model = Corl().eval()
    mean, std = np.full((1, 11), 0.5, np.float32), np.full((1, 11), 2.0, np.float32)
    torch.save({"model_state": model.state_dict(), "state_mean": mean, "state_std": std}, tmp_path / "dt_checkpoint.pt")
    return model, tmp_path / "dt_checkpoint.pt"


def recorded():
    generator = np.random.default_rng(0)
    states, actions = generator.normal(size=(1, STEPS, 11)), generator.uniform(-1, 1, (1, STEPS, 3))
    return Recorded(states, actions, generator.uniform(0, 3000, (1, STEPS)))


def test_corl(corl, tmp_path):
    model, path = corl
    foreign.main(foreign.Options(path, "hopper", tmp_path / "out", heads=HEADS))
    adapter = DecisionTransformerAdapter.load(tmp_path / "out", device="cpu")
    assert (adapter.statistics.env, adapter.statistics.target_return) == ("hopper", 3600.0)
    sample = recorded()
    ours = adapter.answer(adapter.encode(sample), adapter.memory(policies.make("full")))
    with torch.no_grad():
        inputs = (sample.returns_to_go / 1000, (sample.states - 0.5) / 2, sample.actions)
        theirs = model(*(torch.tensor(array, dtype=torch.float32) for array in inputs))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_kzl(tmp_path):
    """Its modules have Hugging Face's names but for `transformer`, buffers of masks, and no position embedding."""
    torch.manual_seed(0)
    sizes = {"state_dim": 11, "act_dim": 3, "hidden_size": WIDTH, "n_layer": 2, "n_head": 1, "max_ep_len": 1000}
    source = DecisionTransformerModel(DecisionTransformerConfig(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    nn.init.zeros_(source.encoder.wpe.weight)
    weights = {name.replace("encoder.", "transformer.", 1): value for name, value in source.state_dict().items()}
    weights = {name: value for name, value in weights.items() if ".wpe." not in name}
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    model, statistics = foreign.convert(weights, 1, "kzl.pt")
    assert statistics is None
    for name, value in source.state_dict().items():
        if "wpe" not in name:
            assert torch.equal(value, model.state_dict()[name]), name
    assert not model.encoder.wpe.weight.any()
    torch.save(weights, tmp_path / "kzl.pt")
    with pytest.raises(NammTransferError, match="holds no state statistics; expected --dataset"):
        foreign.main(foreign.Options(tmp_path / "kzl.pt", "hopper", tmp_path / "out"))


class D3rlpyBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self._layer_norm1, self._layer_norm2 = nn.LayerNorm(WIDTH, eps=0.003), nn.LayerNorm(WIDTH, eps=0.003)
        self._attention = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("_q", "_k", "_v", "_proj")})
        self._mlp = nn.ModuleDict({"_l1": nn.Linear(WIDTH, 4 * WIDTH), "_l2": nn.Linear(4 * WIDTH, WIDTH)})
        self._attention.register_buffer("_mask", torch.ones(3 * STEPS, 3 * STEPS).tril())

    def forward(self, tokens):
        seen, part = self._layer_norm1(tokens), self._attention
        q, k, v = (part[name](seen).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("_q", "_k", "_v"))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        tokens = tokens + part["_proj"](mixed.transpose(1, 2).flatten(2))
        return tokens + self._mlp["_l2"](self._mlp["_l1"](self._layer_norm2(tokens)).relu())


class D3rlpy(nn.Module):
    """The names, shapes and arithmetic of d3rlpy's ContinuousDecisionTransformer, written anew."""

    def __init__(self):
        super().__init__()
        self._position_encoding = nn.ModuleDict({"_embed": nn.Embedding(1001, WIDTH)})
        self._embed_ln = nn.LayerNorm(WIDTH)
        blocks = nn.Sequential(D3rlpyBlock(), D3rlpyBlock())
        self._gpt2 = nn.ModuleDict({"_transformer": blocks, "_layer_norm": nn.LayerNorm(WIDTH, eps=0.003)})
        self._encoder = nn.ModuleDict({"_layers": nn.Sequential(nn.Linear(11, WIDTH))})
        self._rtg_embed, self._action_embed = nn.Linear(1, WIDTH), nn.Linear(3, WIDTH)
        self._output = nn.Linear(WIDTH, 3)

    def forward(self, returns, states, actions):
        time = self._position_encoding["_embed"](1 + torch.arange(STEPS))
        parts = self._rtg_embed(returns[..., None]), self._encoder["_layers"](states), self._action_embed(actions)
        tokens = self._embed_ln(torch.stack([part + time for part in parts], 2).flatten(1, 2))
        return self._output(self._gpt2["_layer_norm"](self._gpt2["_transformer"](tokens))[:, 1::3]).tanh()


@pytest.fixture
def d3rlpy(tmp_path):
    torch.manual_seed(0)
    model = D3rlpy().eval()
    for part in model.parameters():
        nn.init.normal_(part, std=0.3)
    torch.save({"transformer": model.state_dict(), "optim": {"optim": {"step": 3}}}, tmp_path / "model.pt")
    encoder = {"hidden_units": [WIDTH], "activation": "relu", "use_batch_norm": False, "use_layer_norm": False}
    encoder |= {"dropout_rate": None, "exclude_last_activation": True, "last_activation": None}
    scaler = {"mean": [0.5] * 11, "std": [2.0] * 11, "eps": 0.001}
    params = {
        "observation_scaler": {"type": "standard", "params": scaler},
        "action_scaler": {"type": "none", "params": {}},
        "reward_scaler": {"type": "multiply", "params": {"multiplier": 0.002}},
        "encoder_factory": {"type": "vector", "params": encoder},
        "num_heads": HEADS,
        "activation_type": "relu",
        "position_encoding_type": "simple",
    }
    return model, tmp_path / "model.pt", {"config": {"type": "decision_transformer", "params": params}}


def test_d3rlpy(d3rlpy, tmp_path):
    model, path, params = d3rlpy
    with pytest.raises(NammTransferError, match=r"is d3rlpy's; expected --params with the params\.json"):
        foreign.main(foreign.Options(path, "hopper", tmp_path / "out"))
    (tmp_path / "params.json").write_text(json.dumps(params))
    foreign.main(foreign.Options(path, "hopper", tmp_path / "out", params=tmp_path / "params.json"))
    adapter = DecisionTransformerAdapter.load(tmp_path / "out", device="cpu")
    sample = recorded()
    ours = adapter.answer(adapter.encode(sample), adapter.memory(policies.make("full")))
    with torch.no_grad():
        inputs = (sample.returns_to_go / 500, (sample.states - 0.5) / 2.001, sample.actions)
        theirs = model(*(torch.tensor(array, dtype=torch.float32) for array in inputs))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("encoder_factory", "params", "exclude_last_activation"), False, "state encoder"),
        (("encoder_factory", "params", "hidden_units"), [256, 256], "state encoder"),
        (("position_encoding_type",), "global", "position_encoding_type is 'global', expected simple"),
        (("reward_scaler", "type"), "return", "reward_scaler is 'return', expected none or multiply"),
        (("action_scaler", "type"), "min_max", "action_scaler is 'min_max', expected none"),
        (("activation_type",), "geglu", "activation_type is 'geglu'"),
    ],
)
def test_a_d3rlpy_model_that_computes_something_else_is_refused(d3rlpy, tmp_path, place, value, complaint):
    _, path, params = d3rlpy
    inner = params["config"]["params"]
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(NammTransferError, match=complaint):
        foreign.main(foreign.Options(path, "hopper", tmp_path / "out", params=tmp_path / "params.json"))
    assert not (tmp_path / "out").exists()


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_objects_and_other_files_are_refused(corl, tmp_path):
    torch.save({"model_state": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"_encoder._layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    content = torch.load(corl[1], weights_only=False)
    content["model_state"]["state_emb.weight"] = torch.full((WIDTH, 11), float("nan"))
    torch.save(content, tmp_path / "nan.pt")
    del content["model_state"]["action_head.0.weight"]
    torch.save(content, tmp_path / "missing.pt")
    for name, complaint in (
        ("trap", "more than tensors"),
        ("text", "more than tensors|cannot be read"),
        ("none", "cannot be read"),
        ("other", r"has the entries \['_encoder"),
        ("nan", "not finite"),
        ("missing", r"predict_action\.0\.weight"),
    ):
        with pytest.raises(NammTransferError, match=complaint):
            foreign.main(foreign.Options(tmp_path / f"{name}.pt", "hopper", tmp_path / "out", heads=HEADS))
    with pytest.raises(NammTransferError, match="not those of walker2d"):
        foreign.main(foreign.Options(corl[1], "walker2d", tmp_path / "out", heads=HEADS))
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()
