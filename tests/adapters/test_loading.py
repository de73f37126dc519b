"""A model that is damaged, incomplete, of another type or not there is one error before the first question."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import save_tiny_llava
from tiny_text import save_tiny_llama
from transformers import FalconConfig, FalconForCausalLM

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter

ADAPTERS = {"text": CausalLMAdapter, "video": LlavaNextVideoAdapter}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model for each adapter."""
    return {
        "text": save_tiny_llama(tmp_path_factory.mktemp("text")),
        "video": save_tiny_llava(tmp_path_factory.mktemp("video"), "shipped"),
    }


def changed(folder, target, change):
    """A copy of a model whose tensors went through `change`."""
    copied = shutil.copytree(folder, target)
    save_file(change(load_file(copied / "model.safetensors")), copied / "model.safetensors", {"format": "pt"})
    return copied


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {key: value for key, value in tensors.items() if "q_proj" not in key}, "missing tensors"),
        (lambda tensors: {**tensors, "extra.weight": torch.zeros(2)}, "1 unexpected tensors"),
        (lambda tensors: {key: value[..., :-1].contiguous() for key, value in tensors.items()}, "holds no|mismatched"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(kind, change, message, folders, tmp_path):
    with pytest.raises(NammTransferError, match=message):
        ADAPTERS[kind].load(changed(folders[kind], tmp_path / "copy", change), device="cpu")


@pytest.mark.parametrize("model_type", ["llava_next", "llava_onevision", "qwen2_vl", "llama", "nothing"])
def test_another_model_type_is_refused(model_type, folders, tmp_path):
    copied = shutil.copytree(folders["video"], tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(NammTransferError, match=r"expected LLaVA-NeXT-Video|holds no LLaVA-NeXT-Video"):
        LlavaNextVideoAdapter.load(copied, device="cpu")


def test_a_model_with_attention_of_its_own_is_refused_by_name(folders, tmp_path):
    copied = shutil.copytree(folders["text"], tmp_path / "copy")
    config = FalconConfig(vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    FalconForCausalLM(config).save_pretrained(copied)
    with pytest.raises(NammTransferError, match="a 'falcon' has attention of its own"):
        CausalLMAdapter.load(copied, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_logits_that_are_not_finite_fail_the_sample(kind, value, folders, tmp_path):
    def damage(tensors):
        name = next(key for key in tensors if key.endswith("layers.0.mlp.down_proj.weight"))
        return {**tensors, name: torch.full_like(tensors[name], value)}

    adapter = ADAPTERS[kind].load(changed(folders[kind], tmp_path / "copy", damage), device="cpu")
    with pytest.raises(NammTransferError, match="logits are NaN or infinite"):
        adapter.answer(adapter.encode(adapter.example()), adapter.memory(policies.make("full")))


@pytest.mark.parametrize("name", ["owner/model/deeper", "./nothing here", "a\0b", ""])
def test_a_name_that_cannot_be_a_model_is_refused(name):
    with pytest.raises(NammTransferError, match="neither a folder nor a name"):
        CausalLMAdapter.load(name)


def test_with_no_hub_a_missing_model_is_said_within_five_seconds():
    """A hub that takes connections and never answers."""
    code = """
import socket, time
import os
server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen(50)
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
from namm_transfer import NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
for adapter in CausalLMAdapter, LlavaNextVideoAdapter:
    begun = time.perf_counter()
    try:
        adapter.load("nobody/no-such-model")
    except NammTransferError as error:
        assert "cannot be reached" in str(error), error
        print(time.perf_counter() - begun)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    seconds = [float(line) for line in done.stdout.split()]
    assert len(seconds) == 2, done.stderr
    assert max(seconds) < 5
