"""Import a Decision Transformer checkpoint of kzl/decision-transformer, CORL or d3rlpy as a model folder.

    python -m namm_transfer.training.rl.foreign --file dt_checkpoint.pt --env hopper --out runs/corl-hopper
    python -m namm_transfer.training.rl.foreign --file kzl.pt --env hopper --dataset me/data-v0 --out runs/kzl
    python -m namm_transfer.training.rl.foreign --file model.pt --params params.json --env hopper --out runs/d3rlpy

The file is read without unpickling objects: tensors, and NumPy arrays of numbers, or it is refused. CORL's checkpoints
carry the state statistics of their data; those of kzl/decision-transformer (a state dict saved by its user) do not, and
take them from a Minari data set. What d3rlpy's `save_model` writes needs the `params.json` beside it, see
`foreign_d3rlpy`.
"""

from __future__ import annotations

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer.adapters.state_statistics import STATISTICS_FILE, Statistics
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import write_atomic
from namm_transfer.training.rl.checks import run_command, writing_to
from namm_transfer.training.rl.foreign_d3rlpy import EPSILON, Weights, from_d3rlpy, read_params, statistics_of

_CORE: Any = np._core if hasattr(np, "_core") else np.core  # renamed by NumPy 2
_ARRAYS = [_CORE.multiarray._reconstruct, np.ndarray, np.dtype, codecs.encode]
_ARRAYS += [type(np.dtype(kind)) for kind in ("f4", "f8")]
"""Globals by which `torch.save` stores NumPy arrays of floats, the only ones allowed in a file."""


@dataclass
class Options:
    """Import a checkpoint."""

    file: Path
    """The checkpoint, written by `torch.save`."""
    env: str
    """hopper, halfcheetah, walker2d, a Gymnasium id, or the id of a Minari data set."""
    out: Path
    """Folder of the model."""
    dataset: str | None = None
    """Minari id of the data it was trained on; needed where the checkpoint holds no state statistics."""
    heads: int = 1
    """Attention heads, which the weights do not tell; 1 in the configurations of kzl and CORL."""
    params: Path | None = None
    """The params.json that d3rlpy wrote for the training of its checkpoint."""
    target_return: float | None = None
    """Return to ask for; the task's own by default."""


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; raises `NammTransferError` unless it maps names to tensors and arrays of floats."""
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise NammTransferError(f"{path} holds more than tensors and arrays, which is refused") from problem
    except Exception as problem:  # zip archives, the operating system and torch each have their own
        raise NammTransferError(f"{path} cannot be read as a checkpoint: {problem}") from problem
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise NammTransferError(f"{path} holds a {type(found).__name__}, expected tensors by name")
    return found


def from_kzl(weights: Weights) -> Weights:
    """Rename weights of kzl/decision-transformer to Hugging Face's names; its GPT-2 has no position embedding."""
    masks = (".attn.bias", ".attn.masked_bias")
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(masks)}
    return {name.replace("transformer.", "encoder.", 1): tensor for name, tensor in kept.items()}


def from_corl(weights: Weights) -> Weights:
    """Rename weights of CORL to Hugging Face's names; linear layers of GPT-2 are stored transposed."""
    direct = {"emb_norm": "embed_ln", "out_norm": "encoder.ln_f", "timestep_emb": "embed_timestep"}
    direct |= {"state_emb": "embed_state", "action_emb": "embed_action", "return_emb": "embed_return"}
    direct |= {"action_head.0": "predict_action.0"}
    blocks = {"norm1": "ln_1", "norm2": "ln_2", "attention.out_proj": "attn.c_proj", "mlp.0": "mlp.c_fc"}
    blocks |= {"mlp.2": "mlp.c_proj", "attention.in_proj": "attn.c_attn"}
    made: Weights = {}
    for name, tensor in weights.items():
        if name.endswith("causal_mask"):
            continue
        stem, _, kind = name.replace("in_proj_", "in_proj.").rpartition(".")
        if stem.startswith("blocks."):
            _, number, part = stem.split(".", 2)
            transposed = tensor.ndim == 2
            made[f"encoder.h.{number}.{blocks.get(part, part)}.{kind}"] = tensor.T if transposed else tensor
        else:
            made[f"{direct.get(stem, stem)}.{kind}"] = tensor
    return made


def convert(
    found: dict[str, Any], heads: int, what: str, params: Path | None = None
) -> tuple[DecisionTransformerModel, Statistics | None]:
    """Build the model from a checkpoint's content, and its statistics if they are included.

    Args:
        found: the content, as `read` returns it.
        heads: attention heads, for kzl's and CORL's.
        what: names the checkpoint in errors.
        params: d3rlpy's params.json, for a checkpoint of d3rlpy.

    Raises:
        NammTransferError: another layout, missing or unknown weights, or numbers that are not finite.
    """
    content = found.get("model_state", found.get("transformer", found))
    content = content if isinstance(content, dict) else found
    weights = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    settings = read_params(params) if params is not None and "_rtg_embed.weight" in weights else None
    named, shape = _renamed(weights, heads, what, settings)
    try:
        width, states = named["embed_state.weight"].shape
        config = DecisionTransformerConfig(
            state_dim=states,
            act_dim=named["embed_action.weight"].shape[1],
            hidden_size=width,
            max_ep_len=named["embed_timestep.weight"].shape[0],
            n_layer=1 + max(int(name.split(".")[2]) for name in named if name.startswith("encoder.h.")),
            n_positions=1,
            bos_token_id=None,
            eos_token_id=None,
            **shape,
        )
        model = DecisionTransformerModel(config)
        own = model.state_dict()
        idle = {"encoder.wpe.weight", "encoder.wte.weight"}  # Hugging Face adds wpe[0] to every token
        idle |= {name for name in own if name.startswith(("predict_state", "predict_return"))}
        model.load_state_dict({**{name: torch.zeros_like(own[name]) for name in idle}, **named})
        statistics = None if settings is None else statistics_of(settings, states)
        if {"state_mean", "state_std"} <= found.keys():
            mean, std = (np.asarray(found[name], np.float32).reshape(states) for name in ("state_mean", "state_std"))
            statistics = Statistics(mean, std)
    except Exception as problem:  # shapes, names and configurations that do not fit each other
        raise NammTransferError(f"{what} does not hold a Decision Transformer's weights: {problem}") from problem
    if not all(bool(tensor.isfinite().all()) for tensor in named.values()):
        raise NammTransferError(f"{what} holds weights that are not finite")
    return model.eval(), statistics


def _renamed(
    weights: Weights, heads: int, what: str, settings: dict[str, Any] | None
) -> tuple[Weights, dict[str, Any]]:
    """Return the weights under Hugging Face's names, and the settings that they do not tell."""
    if "state_emb.weight" in weights:
        return from_corl(weights), {"activation_function": "gelu", "n_head": heads}
    if "embed_state.weight" in weights and any(name.startswith("transformer.h.") for name in weights):
        return from_kzl(weights), {"activation_function": "relu", "n_head": heads}
    if "_rtg_embed.weight" not in weights:
        raise NammTransferError(
            f"{what} has the entries {sorted(weights)[:5]}; expected those of kzl/decision-transformer, CORL or d3rlpy"
        )
    if settings is None:
        raise NammTransferError(f"{what} is d3rlpy's; expected --params with the params.json of its training")
    known = {"activation_function": settings["activation_type"], "n_head": settings["num_heads"]}
    return from_d3rlpy(weights), {**known, "layer_norm_epsilon": EPSILON}


def main(options: Options) -> str:
    """Import a checkpoint and return what was written."""
    reference = task(options.env)
    if (options.out / "model.safetensors").exists():
        raise NammTransferError(f"{options.out} holds a model; expected another --out")
    model, statistics = convert(read(options.file), options.heads, str(options.file), options.params)
    sizes = (model.config.state_dim, model.config.act_dim)
    if sizes != (reference.observation_size, reference.action_size):
        raise NammTransferError(f"{options.file} has states and actions of {sizes} numbers, not those of {options.env}")
    if statistics is None:
        if options.dataset is None:
            raise NammTransferError(f"{options.file} holds no state statistics; expected --dataset to take them from")
        statistics = Statistics(*datasets.load(options.dataset, reference.name).state_statistics)
    statistics.env, statistics.target_return = reference.name, options.target_return or reference.target_return
    with writing_to(options.out):
        write_atomic(options.out / STATISTICS_FILE, statistics.to_json())
        model.save_pretrained(options.out)
    return f"{options.out}: {sum(weight.numel() for weight in model.parameters()):,} weights for {reference.gym_id}"


if __name__ == "__main__":
    run_command(main, Options)
