"""Random LLaVA-NeXT-Videos with their processor files, in the layout of the shipped and of the published checkpoint."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from namm_transfer.training.video import small


def save_tiny_llava(folder: Path, layout: str) -> Path:
    """Write a checkpoint of layout "shipped", "shipped-v2" or "published"; returns the folder."""
    torch.manual_seed(0)
    version = 2 if layout == "shipped-v2" else 1
    processor = small.processor(version)
    if layout != "published":
        config = small.config(version)
        config.text_config.initializer_range = 0.2
    else:
        config = published_layout()
        processor.video_processor.size = {"shortest_edge": 112}
        processor.video_processor.crop_size = {"height": 112, "width": 112}
        processor.patch_size = 14
    LlavaNextVideoForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def published_layout() -> LlavaNextVideoConfig:
    """The published checkpoint's in miniature: patches of 14, second-last vision layer, no grouped KV heads."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=112, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(small.tokenizer()), hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=4096, initializer_range=0.2,
    )  # fmt: skip
    return LlavaNextVideoConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=4, video_token_index=5
    )
