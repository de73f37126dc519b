"""A random Llama of two layers with a tokenizer of bytes, for tests that need a causal language model in a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EVOLUTION = """
model = "{model}"
families = ["passkey", "lookup"]
prompts = 2
tokens = [300]
update_interval = 128
members = 4
dimensions = 76
learn_importance_prompts = 1
learn_important_heads = 2
learn_distillation_steps = 3
learn_steps = 3
learn_prompts = 2
learn_tokens = [900]
learn_intervals = [128]
generations = 4
validation_every = 2
statistics_prompts = 1
validation_prompts = 1
validation_tokens = [300]
batch = 3
"""
"""TOML of an evolution that takes about a second a generation."""


def save_tiny_llama(folder: Path) -> Path:
    """Write model and tokenizer; every byte is a token, so prompts are short."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,  # peaked attention, so that tokens differ in what they receive
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def evolution_config(folder: Path) -> Path:
    """The tiny model and `evolve.toml` for it, in `folder`."""
    model = save_tiny_llama(folder / "model")
    path = folder / "evolve.toml"
    path.write_text(EVOLUTION.format(model=model))
    return path
