"""Random video-language models of two text layers, one of each class, with processor files made here."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor

from namm_transfer.cache.hybrid import STATES_SERVED

KINDS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", "internvl", *(("qwen3_5",) if STATES_SERVED else ()))
SPECIAL = {
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "llava_onevision": ("<image>", "<video>"),
    "smolvlm": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"),
    "internvl": ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
}
SPECIAL["qwen3_vl"] = SPECIAL["qwen3_5"] = SPECIAL["qwen2_5_vl"]
VIDEO = {
    "qwen2_5_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen3_5": "<|vision_start|><|video_pad|><|vision_end|>",
    "llava_onevision": "<video>",
    "smolvlm": "<video>",
    "internvl": "<video>\n",
}
TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
}  # fmt: skip


def template(kind: str) -> str:
    """A chat template as all of these models have one: videos where they stand in the message."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}" + VIDEO[kind].replace("\n", "{{ '\n' }}") + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token a character."""
    special = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *SPECIAL[kind])
    words = {word: index for index, word in enumerate((*special, *string.printable))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    named = {}
    if kind == "internvl":
        named = {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *SPECIAL[kind]], model_max_length=4096, padding_side="left", **named,
    )  # fmt: skip


def _qwen(kind: str, words: Any) -> tuple[Any, Any]:
    ids = {
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
    }  # fmt: skip
    ids = {name: words.convert_tokens_to_ids(token) for name, token in ids.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    text = {**TEXT, "vocab_size": len(words), "rope_parameters": rope}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    size = {"shortest_edge": 8 * 8, "longest_edge": 16 * 16}
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    chat = template(kind)
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 8, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        config: Any = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        film: Any = Qwen2VLVideoProcessor(size=size, **sizes)
        made: Any = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(size=size, **sizes), words, film, chat_template=chat)
        return config, made
    vision |= {"num_position_embeddings": 16}
    if kind == "qwen3_5":  # a layer of linear attention before two of full attention
        rope |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
        text |= {
            "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "full_attention"],
            "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "rope_parameters": rope,
        }  # fmt: skip
        config = Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    else:
        vision |= {"deepstack_visual_indexes": [0, 1]}
        config = Qwen3VLConfig(text_config={**text, "head_dim": 12}, vision_config=vision, **ids)
    film = Qwen3VLVideoProcessor(size={"shortest_edge": 64, "longest_edge": 256 * 12}, **sizes)
    return config, Qwen3VLProcessor(Qwen2VLImageProcessor(size=size, **sizes), words, film, chat_template=chat)


def _onevision(kind: str, words: Any) -> tuple[Any, Any]:
    side = {"height": 32, "width": 32}
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaOnevisionConfig(
        vision_config={**vision.to_dict(), "model_type": "clip_vision_model"},
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(words)},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="default", vision_feature_layer=-1, image_grid_pinpoints=[[32, 32]],
    )  # fmt: skip
    return config, LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=[[32, 32]]), words,
        LlavaOnevisionVideoProcessor(size=side), num_image_tokens=16, vision_feature_select_strategy="default",
        chat_template=template(kind),
    )  # fmt: skip


def _smolvlm(kind: str, words: Any) -> tuple[Any, Any]:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "initializer_range": 0.2,
    }  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "llama", "vocab_size": len(words)}, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    side = {"longest_edge": 32}
    sampling = {"max_frames": 12, "fps": 1, "video_size": side}
    return config, SmolVLMProcessor(
        SmolVLMImageProcessor(size=side, max_image_size=side), words,
        SmolVLMVideoProcessor(size=side, max_image_size=side, video_sampling=sampling), image_seq_len=4,
        chat_template=template(kind),
    )  # fmt: skip


def _internvl(kind: str, words: Any) -> tuple[Any, Any]:
    side = {"height": 32, "width": 32}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [32, 32], "patch_size": [8, 8], "initializer_range": 0.2,
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(words)},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )  # fmt: skip
    return config, InternVLProcessor(
        GotOcr2ImageProcessor(size=side), words, InternVLVideoProcessor(size=side), image_seq_length=4,
        chat_template=template(kind),
    )  # fmt: skip


MAKERS = {"llava_onevision": _onevision, "smolvlm": _smolvlm, "internvl": _internvl}


def save_tiny(folder: Path, kind: str) -> Path:
    """Write a random checkpoint of a model type with its processor; returns the folder."""
    torch.manual_seed(0)
    config, processor = MAKERS.get(kind, _qwen)(kind, tokenizer(kind))
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
