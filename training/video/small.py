"""The small LLaVA-NeXT-Video: configuration, word-level tokenizer and processor, all of plain transformers' classes."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor

from namm_transfer.evals.tasks.video import scenes

FRAME_SIZE = 32
PATCH_SIZE = 8  # 4 x 4 patches, pooled by the video resampler to 2 x 2 tokens a frame
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


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token for each word of the generated benchmark; other words become `<unk>`."""
    names = (*scenes.PLACES, *scenes.SHAPES, *scenes.COLORS, *scenes.GLITCHES)
    words = dict.fromkeys((*SPECIAL, *(word for text in (*TEMPLATES, *names) for word in re.findall(WORDS, text))))
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        model_max_length=512, padding_side="left",
    )  # fmt: skip


def processor() -> LlavaNextVideoProcessor:
    """Make the processor: frames of 32 x 32 pixels, four `<video>` tokens a frame."""
    size, crop = {"shortest_edge": FRAME_SIZE}, {"height": FRAME_SIZE, "width": FRAME_SIZE}
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(size=size, crop_size=crop),
        image_processor=LlavaNextImageProcessor(
            size=size, crop_size=crop, image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]]
        ),
        tokenizer=tokenizer(), chat_template=CHAT_TEMPLATE, patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def config() -> LlavaNextVideoConfig:
    """Configure 3 vision layers of width 128 and 4 text layers of width 256 with grouped KV heads: 3.5 M parameters."""
    words = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        image_size=FRAME_SIZE, patch_size=PATCH_SIZE, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.04, tie_word_embeddings=False,
        # Of factor 1, YaRN changes nothing; it says how longer prompts are to be read.
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 1.0, "original_max_position_embeddings": 512,
        },
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return LlavaNextVideoConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1,
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=SPECIAL.index("<video>"),
        image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]], image_seq_length=16, video_seq_length=4,
    )  # fmt: skip
