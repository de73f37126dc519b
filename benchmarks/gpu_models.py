"""Random models of the shapes that `gpu.py` measures, their prompts, and the sides of the comparison."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
)

from namm_transfer import NAMM, EvictionPolicy, MemoryCache, policies

SIDES = {
    "sdpa": "",
    "full": "full",
    "namm, all kept": "zero",
    "namm as shipped": "namm",
    "namm, selection=layer": "namm:selection=layer",
    "namm, keep 0.5": "namm:keep=0.5,update_interval=512",
    "namm, keep 0.25": "namm:keep=0.25,update_interval=512",
    "h2o, keep 0.5": "h2o:keep=0.5,update_interval=512",
    "l2, keep 0.5": "l2:keep=0.5,update_interval=512",
}
"""The sides by name, the baseline first."""


def policy(spec: str) -> EvictionPolicy:
    """Make the policy of a side; ``zero`` is a NAMM that scores every token 0, so that all stay."""
    return NAMM(update_interval=512) if spec == "zero" else policies.make(spec)


@dataclass
class Shape:
    """A model's shape and the prompt lengths to measure."""

    name: str
    config: Any
    lengths: tuple[int, ...]
    """Prompt lengths in tokens, or in frames."""
    video: bool = False

    def build(self, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
        """Make the model with random weights; some heads attend up to three times as sharply as others, so that a NAMM
        keeps different numbers of tokens in them.

        Args:
            layers: build so many decoder layers instead of all.
        """
        torch.manual_seed(0)
        config = type(self.config).from_dict(self.config.to_dict())
        text = config.get_text_config(decoder=True)
        if layers:
            text.num_hidden_layers = layers
            text.layer_types = None if getattr(text, "layer_types", None) is None else text.layer_types[:layers]
        kind: Any = LlavaNextVideoForConditionalGeneration if self.video else Causal
        make = kind._from_config if self.video else kind.from_config
        with torch.device(device):
            model = make(config, dtype=dtype).eval()
        for name, module in model.named_modules():
            if name.endswith("q_proj") and "vision" not in name:
                heads = text.num_attention_heads
                sharpness = torch.logspace(0, 0.5, heads)[torch.randperm(heads)].to(device, dtype)
                with torch.no_grad():
                    module.weight.unflatten(0, (heads, -1)).mul_(sharpness[:, None, None])
        return model

    def inputs(self, length: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Make a random prompt of so many tokens, or of so many random frames and 40 tokens."""
        generator = torch.Generator().manual_seed(length)
        if not self.video:
            return {"input_ids": torch.randint(10, 900, (1, length), generator=generator).to(device)}
        vision = self.config.vision_config
        tokens = length * (vision.image_size // vision.patch_size // 2) ** 2
        ids = torch.randint(10, 900, (1, tokens + 40), generator=generator)
        ids[:, 20 : 20 + tokens] = self.config.video_token_index
        frames = torch.rand(1, length, 3, vision.image_size, vision.image_size, generator=generator)
        return {"input_ids": ids.to(device), "pixel_values_videos": frames.to(device, dtype)}


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Let the decoder, and only it, use an attention implementation."""
    composite = model.config.get_text_config(decoder=True) is not model.config
    model.set_attn_implementation({"text_config": name} if composite else name)


def new_cache(model: PreTrainedModel, spec: str) -> Any:
    """Make the cache of a side."""
    set_attention(model, "memory" if spec else "sdpa")
    return (
        MemoryCache(model.config, policy=policy(spec)) if spec else DynamicCache(config=model.config.get_text_config())
    )


def shapes(tiny: bool) -> list[Shape]:
    """Return the shapes in the order in which they are measured: the 7B's decoder first."""
    if tiny:
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56,
            patch_size=14,
        )  # fmt: skip
        sizes: dict[str, Any] = dict(vocab_size=1000, hidden_size=32, intermediate_size=32, num_hidden_layers=2)
        sizes |= dict(num_attention_heads=4, initializer_range=0.3)  # attention with peaks, as wide models have
        text = LlamaConfig(**sizes, num_key_value_heads=4, max_position_embeddings=4096)
        grouped = LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=4096)
        lengths: tuple[int, ...] = (160,)
        frames: tuple[int, ...] = (4,)
        qwen = Qwen2Config(**sizes, num_key_value_heads=2, max_position_embeddings=4096)
    else:
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14, projection_dim=768,
        )  # fmt: skip
        text = LlamaConfig(
            vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            max_position_embeddings=65536,
        )  # fmt: skip
        grouped = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=65536, tie_word_embeddings=True,
        )  # fmt: skip
        qwen = Qwen2Config(
            vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, max_position_embeddings=65536,
        )  # fmt: skip
        lengths, frames = (8192, 16384, 4096, 32768), (32, 64, 128)
    llava = LlavaNextVideoConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), video_token_index=5, image_token_index=4
    )
    return [
        Shape("LLaVA-NeXT-Video-7B, text", text, lengths),
        Shape("LLaVA-NeXT-Video-7B, frames", llava, frames, video=True),
        Shape("SmolLM2-135M", grouped, lengths),
        Shape("Qwen2.5-7B", qwen, lengths),
    ]
