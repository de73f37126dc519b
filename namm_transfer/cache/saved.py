"""Caches on disk: one safetensors file with what is stored, and a header that says under which model and policy.

The header is JSON text in the file's metadata, under the key ``memory_cache``. Tensors are named
``layer.GROUP.NAME``, where GROUP counts the layer's groups of KV heads or pages (`namm_transfer.cache.pages`), and
``padding``, (batch, columns) bool.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.report import Sequence
from namm_transfer.cache.storage import TokenStorage, token_axis
from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic
from namm_transfer.policy import EvictionPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from namm_transfer.cache.layer import MemoryLayer

_FORMAT = 4
_HEADER = "memory_cache"
_STATES = "states."
_SHAPE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")
_MODEL = ("model_type", *_SHAPE, "layer_types", "sliding_window", "rope_parameters")


def describe_model(config: PreTrainedConfig) -> dict[str, str]:
    """Describe a model by its type, its shape and its rotary embedding, as text to be compared."""
    described = {}
    for name in _MODEL:
        try:
            value = getattr(config, name, None)
        except Exception as error:  # some configurations have a value for each layer and raise an error of their own
            value = type(error).__name__
        if value is not None:
            described[name] = repr(value)
    return described


def describe_policy(policy: EvictionPolicy) -> dict[str, str]:
    """Describe a policy by its class, its options and a digest of its weights, as text to be compared."""
    options = {name: value for name, value in vars(policy).items() if not name.startswith("_") and name != "training"}
    tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    if isinstance(policy, nn.Module):
        tensors |= policy.state_dict()
    described = {name: repr(value) for name, value in options.items() if name not in tensors}
    described["class"] = f"{type(policy).__module__}.{type(policy).__qualname__}"
    if tensors:
        described["weights"] = digest_of(tensors)
    return described


def digest_of(tensors: Mapping[str, Tensor], about: Any = None) -> str:
    """Compute the SHA-256 of JSON-able facts and of named tensors: their names, dtypes, shapes and values."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str],
    layers: list[MemoryLayer],
    model: dict[str, str],
    policy: EvictionPolicy,
    identity: Mapping[str, str],
    states: dict[str, Tensor],
) -> None:
    """Write layers to a safetensors file; the file holds either the old or the new content, never half of one.

    Args:
        states: those of a hybrid model's recurrent layers, by name.
    """
    if not all(layer.is_initialized for layer in layers):
        raise NammTransferError(f"{path}: the cache is empty; expected one that has gone through a model")
    if any(layer.handover is not None or layer.columns != layers[0].columns for layer in layers):
        raise NammTransferError(f"{path}: an error ended the cache's last call in mid-forward; it cannot be saved")
    if any(layer.is_frozen for layer in layers):
        raise NammTransferError(
            f"{path}: a frozen cache cannot be saved; save the one that was copied, and freeze() after"
        )
    tensors = {_STATES + name: tensor.detach().cpu().contiguous() for name, tensor in states.items()}
    described = []
    for layer in layers:
        for number, group in enumerate(layer.groups):
            for name in group.storage.names:
                tensors[f"{layer.index}.{number}.{name}"] = group.storage.view(name).detach().cpu().contiguous()
        described.append(
            {
                "paged": layer.paged,
                "heads": [group.heads.tolist() for group in layer.groups],
                "spare": [group.storage.spare for group in layer.groups],
                "padding_slots": [group.padding_slots for group in layer.groups],
                "sequences": [asdict(s) for s in layer.sequences],
            }
        )
    if layers[0].padding is not None:
        tensors["padding"] = layers[0].padding.cpu().contiguous()
    header = {
        "format": _FORMAT,
        "model": model,
        "policy": describe_policy(policy),
        "identity": dict(identity),
        "columns": layers[0].columns,
        "layers": described,
    }
    header["sha256"] = digest_of(tensors, header)
    try:
        write_atomic(path, save(tensors, {_HEADER: json.dumps(header)}))
    except OSError as error:
        raise NammTransferError(f"{path}: the cache cannot be written: {error.strerror}") from None


def read(
    path: str | os.PathLike[str],
    layers: list[MemoryLayer],
    model: dict[str, str],
    policy: EvictionPolicy,
    device: torch.device,
    identity: Mapping[str, str] | None,
) -> dict[str, Tensor]:
    """Fill empty layers from a file that `write` wrote, and return the states of recurrent layers."""
    if not Path(path).is_file():
        raise NammTransferError(f"{path}: no such file; expected one that MemoryCache.save wrote")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
        if header["format"] != _FORMAT:
            raise NammTransferError(f"{path}: format {header['format']!r}; expected {_FORMAT}")
        _compare(path, "model", header["model"], model)
        _compare(path, "policy", header["policy"], describe_policy(policy))
        if identity is not None:
            _compare(path, "identity", header.get("identity", {}), identity)
        if header.pop("sha256") != digest_of(tensors, header):
            raise ValueError("its checksum is another, the file is damaged")
        states = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_STATES)}
        _fill(layers, header, tensors)
        return {name.removeprefix(_STATES): tensor for name, tensor in states.items()}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise NammTransferError(f"{path}: no cache that MemoryCache.save wrote: {error!r}") from None


def _compare(path: Any, what: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if names:
        differences = "; ".join(f"{name} {there.get(name)}, expected {here.get(name)}" for name in names)
        raise NammTransferError(f"{path}: the cache was filled under another {what}: {differences}")


def _fill(layers: list[MemoryLayer], header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give the layers what a file holds; every tensor must have the shape that the header implies."""
    padding, columns = tensors.pop("padding", None), int(header["columns"])
    for layer, entry in zip(layers, header["layers"], strict=True):
        sequences = [Sequence(**s | {"sizes": [int(size) for size in s["sizes"]]}) for s in entry["sequences"]]
        groups = []
        described = zip(entry["heads"], entry["spare"], entry["padding_slots"], strict=True)
        for number, (heads, spare, padding_slots) in enumerate(described):
            prefix = f"{layer.index}.{number}."
            own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            batch, rows, stored, _ = own["keys"].shape
            if (batch, rows) != (len(sequences), len(heads)) or own["positions"].dtype != torch.int32:
                raise ValueError(f"keys of layer {layer.index} are {tuple(own['keys'].shape)}")
            for name, tensor in own.items():
                tokens = tensor.shape[token_axis(name)]
                if (*tensor.shape[:2], tokens) != (batch, rows, stored):
                    raise ValueError(f"{prefix}{name} is {tuple(tensor.shape)}")
            storage = TokenStorage(own, stored)
            storage.spare = None if spare is None else int(spare)
            index = torch.tensor(heads, dtype=torch.int64, device=own["keys"].device)
            groups.append(HeadGroup(index, storage, bool(padding_slots)))
        _check_heads(layer.index, entry["heads"], paged=bool(entry["paged"]))
        layer.restore(groups, sequences, paged=bool(entry["paged"]))
        layer.columns, layer.padding = columns, None if padding is None else padding.clone()
    if tensors:
        raise ValueError(f"unknown tensors {', '.join(sorted(tensors))}")


def _check_heads(layer: int, heads: list[list[int]], *, paged: bool) -> None:
    """Refuse groups that are not every head once or, in pages, some of each and then every head once."""
    once = heads[1] if paged and len(heads) == 2 else [head for group in heads for head in group]
    if sorted(once) != list(range(len(once))) or not set().union(*heads) <= set(once) or paged != (once is heads[-1]):
        raise ValueError(f"groups of heads of layer {layer} are {heads}")
