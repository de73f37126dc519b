"""The small LLaVA-NeXT-Video: configuration, word-level tokenizer and processor, all of plain transformers' classes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor

from namm_transfer.evals.tasks.video import scenes


@dataclass(frozen=True)
class Size:
    """What differs between the models of the two versions of the films."""

    frame: int
    """Height and width of a frame in pixels."""
    patch: int
    """Height and width of a patch: 4 x 4 patches, pooled by the video resampler to 2 x 2 tokens a frame."""
    layers: int
    """Layers of the text model."""
    kv_heads: int
    positions: int
    """Positions that the text model is trained for."""
    theta: float
    """Base of the rotary positions."""
    tied: bool
    """True if a word has the same embedding in the prompt and as an answer."""
    templates: tuple[str, ...] = ()
    """Questions whose words version 1 does not have."""


SIZES = {
    1: Size(32, 8, 4, 4, 512, 1e4, False),
    # Few KV heads and no rotation to speak of in half of the dimensions: a fact is stored once, and found however far
    # away it is.
    2: Size(64, 16, 3, 2, 1152, 1e6, True, ("How many times did the appear? Which shape came second? third?",)),
}
"""Sizes by version of the films."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
TEMPLATES = (
    "USER: ASSISTANT: Best option: ( ) A B C D E (A) (B) (C) (D) (E) 1 2 3 4 5 6 7 8 9 0 , .",
    "What color was the ? Where was the ? What is the main place of the video? What disturbed the picture?",
    "Which shape came first? Which shape came last? Question Options Only give the best option.",
)
WORDS = r"\([A-E]\)|\w+|[^\w\s]"
# The published checkpoint's template, reduced to what a video question needs.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(version: int = 1) -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token for each word of the generated benchmark; other words become `<unk>`."""
    size = SIZES[version]
    texts = (*TEMPLATES, *scenes.PLACES, *scenes.SHAPES, *scenes.COLORS, *scenes.GLITCHES, *size.templates)
    words = dict.fromkeys((*SPECIAL, *(word for text in texts for word in re.findall(WORDS, text))))
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        model_max_length=size.positions, padding_side="left",
    )  # fmt: skip


def processor(version: int = 1) -> LlavaNextVideoProcessor:
    """Make the processor: small square frames, four `<video>` tokens a frame."""
    frame = SIZES[version].frame
    size, crop = {"shortest_edge": frame}, {"height": frame, "width": frame}
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(size=size, crop_size=crop),
        image_processor=LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=[[frame, frame]]),
        tokenizer=tokenizer(version), chat_template=CHAT_TEMPLATE, patch_size=SIZES[version].patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def config(version: int = 1) -> LlavaNextVideoConfig:
    """Configure 3 vision layers of width 128 and 4 or 3 text layers of width 256 with grouped KV heads.

    Version 1 has 3.4 million parameters, version 2 has 2.7 million.
    """
    words, size = tokenizer(version), SIZES[version]
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        image_size=size.frame, patch_size=size.patch, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=640, num_hidden_layers=size.layers,
        num_attention_heads=8, num_key_value_heads=size.kv_heads, max_position_embeddings=size.positions,
        initializer_range=0.04, tie_word_embeddings=size.tied,
        # Of factor 1, YaRN changes nothing; it says how longer prompts are to be read.
        rope_parameters={
            "rope_type": "yarn", "rope_theta": size.theta, "factor": 1.0,
            "original_max_position_embeddings": size.positions,
        },
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return LlavaNextVideoConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1,
        tie_word_embeddings=size.tied,
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=SPECIAL.index("<video>"),
        image_grid_pinpoints=[[size.frame, size.frame]], image_seq_length=16, video_seq_length=4,
    )  # fmt: skip


SELF_LOGIT = 6.0
"""Mean attention logit of a token to itself under `attend_to_the_like`."""


def model(version: int = 1) -> LlavaNextVideoForConditionalGeneration:
    """Make the model with random weights, from torch's global random state."""
    made = LlavaNextVideoForConditionalGeneration(config(version))
    if version == 2:
        for layer in made.model.language_model.layers:
            attend_to_the_like(layer.self_attn)
    return made


@torch.no_grad()
def attend_to_the_like(attention: LlamaAttention) -> None:
    """Start an attention so that tokens attend to tokens like themselves and copy what they find.

    This is mimetic initialisation (Trockman and Kolter, 2023, arXiv 2305.09828): queries project as keys do, and the
    output projection undoes that of the values. From independent random weights the model did not learn in 2,000 steps
    to find the one token that holds a shape; from these it does in 200.
    """
    width, head, groups = attention.config.hidden_size, attention.head_dim, attention.num_key_value_groups

    def repeated(weight: Tensor) -> Tensor:
        """Repeat each KV head's rows for the query heads of its group."""
        return weight.unflatten(0, (-1, 1, head)).expand(-1, groups, -1, -1).flatten(0, 2)

    key = torch.randn_like(attention.k_proj.weight) * (SELF_LOGIT / width / head**0.5) ** 0.5
    value = torch.linalg.qr(torch.randn_like(attention.v_proj.weight).T).Q.T
    query = repeated(key)
    attention.k_proj.weight.copy_(key)
    attention.v_proj.weight.copy_(value)
    attention.q_proj.weight.copy_(query + 0.3 * query.std() * torch.randn_like(query))
    attention.o_proj.weight.copy_(0.5 / groups * repeated(value).T)
