"""Decision Transformers of d3rlpy: what `save_model` wrote, with the `params.json` of the same training.

A state dict does not say which activation follows the state encoder, or how observations and returns are scaled;
`params.json`, which d3rlpy writes when a training begins, does. `.d3` files are pickled objects and are not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from namm_transfer.adapters.state_statistics import Statistics
from namm_transfer.errors import NammTransferError

Weights = dict[str, Tensor]
EPSILON = 0.003
"""Epsilon of d3rlpy's layer norms within the transformer."""
EXPECTED = {
    "type": ("decision_transformer",),
    "position_encoding_type": ("simple",),
    "activation_type": ("relu", "gelu", "tanh", "swish"),
    "action_scaler": ("none",),
    "observation_scaler": ("none", "standard"),
    "reward_scaler": ("none", "multiply"),
}
"""Settings -> the values with which Hugging Face's `DecisionTransformerModel` computes the same."""
ENCODER = {"exclude_last_activation": True, "use_batch_norm": False, "use_layer_norm": False, "last_activation": None}
"""Settings of a state encoder that is one linear layer, if it has one hidden unit size."""
NAMES = {
    "_position_encoding._embed": "embed_timestep",
    "_embed_ln": "embed_ln",
    "_encoder._layers.0": "embed_state",
    "_action_embed": "embed_action",
    "_rtg_embed": "embed_return",
    "_output": "predict_action.0",
    "_gpt2._layer_norm": "encoder.ln_f",
}
BLOCK = {
    "_layer_norm1": "ln_1",
    "_layer_norm2": "ln_2",
    "_attention._proj": "attn.c_proj",
    "_mlp._l1": "mlp.c_fc",
    "_mlp._l2": "mlp.c_proj",
}
"""d3rlpy's modules -> Hugging Face's, outside and inside of the blocks."""


def read_params(path: Path) -> dict[str, Any]:
    """Read `params.json`: the settings by name, `type` among them, of a model that can be converted exactly.

    Raises:
        NammTransferError: no such file, or a model that Hugging Face's format cannot hold; the message says why.
    """
    try:
        config = json.loads(path.read_text())["config"]
        settings = {**config["params"], "type": config["type"]}
        found = {name: settings[name] for name in EXPECTED}
        found = {name: value["type"] if isinstance(value, dict) else value for name, value in found.items()}
        encoder = settings["encoder_factory"]["params"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise NammTransferError(f"{path} is no params.json of d3rlpy: {problem!r}") from problem
    for name, known in EXPECTED.items():
        if found[name] not in known:
            raise NammTransferError(f"{path}: {name} is {found[name]!r}, expected {' or '.join(known)}")
    linear = len(encoder.get("hidden_units") or ()) == 1 and all(
        encoder.get(name) == value for name, value in ENCODER.items()
    )
    if not linear:
        raise NammTransferError(
            f"{path}: a state encoder {encoder}, which Hugging Face's format cannot hold; expected one linear layer: "
            "VectorEncoderFactory([WIDTH], exclude_last_activation=True)"
        )
    return settings


def statistics_of(settings: dict[str, Any], size: int) -> Statistics:
    """Read the statistics in `params.json` for states of `size` numbers: d3rlpy divides by std + eps."""
    observations, rewards = settings["observation_scaler"], settings["reward_scaler"]
    scale = 1 / rewards["params"]["multiplier"] if rewards["type"] == "multiply" else 1.0
    if observations["type"] == "none":
        return Statistics(np.zeros(size, np.float32), np.ones(size, np.float32), scale)
    facts = observations["params"]
    mean, std = (np.asarray(facts[name], np.float32) for name in ("mean", "std"))
    return Statistics(mean, std + np.float32(facts["eps"]), scale)


def from_d3rlpy(weights: Weights) -> Weights:
    """Rename weights of d3rlpy to Hugging Face's names; its time steps count from 1, and row 0 is for padding."""
    made: Weights = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind == "_mask":
            continue
        if not stem.startswith("_gpt2._transformer."):
            made[f"{NAMES.get(stem, stem)}.{kind}"] = tensor
            continue
        number, part = stem.removeprefix("_gpt2._transformer.").split(".", 1)
        transposed = tensor.T if tensor.ndim == 2 else tensor
        if part in ("_attention._q", "_attention._k", "_attention._v"):
            parts.setdefault(f"encoder.h.{number}.attn.c_attn.{kind}", {})[part[-1]] = transposed
        else:
            made[f"encoder.h.{number}.{BLOCK.get(part, part)}.{kind}"] = transposed
    made |= {name: torch.cat([found[which] for which in "qkv"], -1) for name, found in parts.items()}
    if "embed_timestep.weight" in made:
        made["embed_timestep.weight"] = made["embed_timestep.weight"][1:]
    return made
