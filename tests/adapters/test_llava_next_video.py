"""The LLaVA-NeXT-Video adapter against plain transformers: same logits, same choices, same words."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llava import save_tiny_llava
from transformers import AutoProcessor, DynamicCache, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from namm_transfer import NammTransferError, check_adapter, policies
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.adapters.video.subtitles import Subtitle
from namm_transfer.cache.keyword import CACHE
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.generate import write_film
from namm_transfer.evals.tasks.video.scenes import make_film

PROMPT = "What color was the star?\n(A) red\n(B) blue\n(C) green\n(D) white"


@pytest.fixture(scope="module", params=["shipped", "published"])
def folder(request, tmp_path_factory) -> Path:
    """A random checkpoint with processor files, in the layout of the shipped and of the published model."""
    return save_tiny_llava(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def adapter(folder) -> LlavaNextVideoAdapter:
    """The random checkpoint in the adapter."""
    return LlavaNextVideoAdapter.load(folder, device="cpu")


@pytest.fixture(scope="module")
def plain(folder):
    """The same checkpoint in plain transformers: (model, processor)."""
    return LlavaNextVideoForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(20, 96, 96, 3) uint8"""
    return draw(make_film("test", 2, 20), np.arange(20) + 0.5, 96)


def plain_inputs(plain, frames, sample):
    """What plain transformers is given for a sample."""
    _, processor = plain
    text = f"USER: <video>\n{sample.prompt} ASSISTANT: {sample.lead}"
    return processor(text=text, videos=[frames], return_tensors="pt")


@torch.no_grad()
def test_full_cache_gives_the_logits_of_plain_transformers(adapter, plain, frames):
    sample = VideoSample(frames, PROMPT, frames=20)
    inputs = plain_inputs(plain, frames, sample)
    expected = plain[0](**inputs).logits[0, -1]
    encoded = adapter.encode(sample)
    assert encoded.inputs["inputs_embeds"].shape[1] == inputs.input_ids.shape[1]
    logits = adapter.prefill(encoded, adapter.memory(policies.make("full", update_interval=32)))
    assert torch.allclose(logits, expected, atol=1e-5)
    letters = plain[1].tokenizer.convert_tokens_to_ids(list("ABCD"))
    answer = adapter.choose(encoded, DynamicCache(), logits)
    assert answer.logprobs == pytest.approx(expected.log_softmax(-1)[letters].tolist(), abs=1e-5)
    assert answer.choice == int(expected[letters].argmax())


@torch.no_grad()
def test_frames_in_batches_are_encoded_as_in_one_pass(adapter, plain, frames):
    sample = VideoSample(frames, PROMPT, frames=20)
    model, processor = plain
    pixels = processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
    expected = model.get_video_features(pixels).pooler_output[0]
    tokens, times, _ = adapter.video_tokens(sample)
    assert times.tolist() == list(range(20))
    assert tokens.shape == (20, adapter.tokens_per_frame, expected.shape[-1])
    assert torch.allclose(tokens.flatten(0, 1), expected, atol=1e-5)


@torch.no_grad()
def test_choices_of_several_tokens_are_scored_exactly_and_leave_the_cache_alone(adapter, plain, frames):
    choices = ("A", "red star", "blue water", "the first shape")
    sample = VideoSample(frames, PROMPT, lead="", choices=tuple(f" {choice}" for choice in choices), frames=20)
    encoded, cache = adapter.encode(sample), adapter.memory(policies.make("h2o:keep=0.5", update_interval=16))
    logits = adapter.prefill(encoded, cache)
    before = copy.deepcopy(cache)
    evicted = adapter.choose(encoded, cache, logits)
    assert adapter.choose(encoded, before, logits) == evicted
    assert cache.get_seq_length() == encoded.inputs["inputs_embeds"].shape[1]
    full = adapter.answer(encoded, adapter.memory(policies.make("full", update_interval=16)))
    model, processor = plain
    start = len(plain_inputs(plain, frames, sample).input_ids[0])
    for choice, score in zip(choices, full.logprobs, strict=True):
        text = f"USER: <video>\n{PROMPT} ASSISTANT: {choice}"
        inputs = processor(text=text, videos=[frames], return_tensors="pt")
        wanted = inputs.input_ids[0, start:]
        logprobs = model(**inputs).logits[0, start - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(float(logprobs.gather(-1, wanted[:, None]).sum()), abs=1e-4)


@torch.no_grad()
def test_generated_words_are_those_of_plain_generate(adapter, plain, frames):
    sample = VideoSample(frames, PROMPT, frames=20)
    model, processor = plain
    inputs = plain_inputs(plain, frames, sample)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
    encoded, cache = adapter.encode(sample), adapter.memory(policies.make("full", update_interval=16))
    answer = adapter.generate(encoded, cache, adapter.prefill(encoded, cache), max_new_tokens=6)
    assert answer.text == processor.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("policy", ["full", "zeros"])
def test_transformers_own_generate_takes_the_cache(adapter, plain, frames, zero_namm, policy, beams):
    """Without the adapter: a left-padded batch of two prompts about two videos, greedy and by beam search."""
    model, processor = plain
    texts = [f"USER: <video>\n{PROMPT} ASSISTANT:", "USER: <video>\nWhat color was the star? ASSISTANT:"]
    inputs = processor(
        text=texts, videos=[frames, frames[::-1].copy()], padding=True, padding_side="left", return_tensors="pt"
    )
    assert (inputs.attention_mask == 0).any(), "the case must pad"
    options = dict(max_new_tokens=10, num_beams=beams, do_sample=False)
    expected = model.generate(**inputs, **options)
    cache = adapter.memory(policies.make("full") if policy == "full" else zero_namm(update_interval=16))
    assert torch.equal(adapter.model.generate(**inputs, **{CACHE: cache}, **options), expected)


def test_only_the_text_model_has_the_memory(adapter):
    assert adapter.model.config.text_config._attn_implementation == "memory"
    assert adapter.model.config.vision_config._attn_implementation != "memory"


def test_adapter_holds_to_the_invariants(adapter):
    check_adapter(adapter)


def test_kept_is_in_frames(adapter, frames):
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=20))
    cache = adapter.memory(policies.make("full", update_interval=16))
    adapter.prefill(encoded, cache)
    layers, heads = len(cache.layers), cache.positions(0).shape[1]
    assert np.array_equal(adapter.kept(cache, encoded)["frames"], np.ones((layers, heads, 20), np.float32))
    window = 32
    cache = adapter.memory(policies.make(f"streaming:sinks=4,window={window}", update_interval=16))
    adapter.prefill(encoded, cache)
    kept = adapter.kept(cache, encoded)["frames"]
    held = cache.positions(0)[0, 0].numpy()
    for frame in range(20):
        mine = np.flatnonzero(encoded.frame_of == frame)
        assert kept[0, 0, frame] == pytest.approx(np.isin(mine, held).mean())
    assert kept.max() <= 1
    assert kept[:, :, 5:10].max() == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
def test_longer_prompts_need_and_get_more_positions(folder, frames, kind):
    """As transformers reads a configuration with that scaling; and a short prompt afterwards finds what it had."""
    limit = 96
    rope = {"rope_theta": 10000.0, "rope_type": kind, "factor": 1.0, "original_max_position_embeddings": limit}
    config = LlavaNextVideoConfig.from_pretrained(folder)
    config.text_config.max_position_embeddings = limit
    config.text_config.rope_parameters = rope
    plain = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, config=config).eval()
    processor = AutoProcessor.from_pretrained(folder)
    adapter = LlavaNextVideoAdapter(copy.deepcopy(plain), processor)
    short, sample = VideoSample(frames, PROMPT, frames=2), VideoSample(frames, PROMPT, frames=20)
    encoded = adapter.encode(short)
    before = adapter.prefill(encoded, DynamicCache()) if encoded.inputs["inputs_embeds"].shape[1] <= limit else None
    inputs = plain_inputs((plain, processor), frames, sample)
    length = inputs.input_ids.shape[1]
    with pytest.raises(NammTransferError, match=rf"{length} tokens passes .* {limit} positions"):
        adapter.prefill(adapter.encode(sample), DynamicCache())
    adapter.extend_positions(2 * length)
    adapter.extend_positions(length)
    logits = adapter.prefill(adapter.encode(sample), DynamicCache())

    scaling = {"rope_type": "yarn" if kind == "yarn" else "linear", "factor": length / limit}
    config.text_config.rope_parameters = {**rope, **scaling}
    scaled = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, config=config).eval()
    assert torch.allclose(logits, scaled(**inputs).logits[0, -1], atol=1e-5)
    if before is not None:
        adapter.extend_positions(limit)
        assert torch.equal(adapter.prefill(encoded, DynamicCache()), before)


def test_positions_scaled_otherwise_cannot_be_extended(folder):
    config = LlavaNextVideoConfig.from_pretrained(folder)
    config.text_config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, config=config)
    adapter = LlavaNextVideoAdapter(model, AutoProcessor.from_pretrained(folder))
    adapter.extend_positions(100)
    with pytest.raises(NammTransferError, match="'dynamic'"):
        adapter.extend_positions(10_000)


def test_subtitles_stand_between_the_frames(adapter, frames):
    """One frame a second: a line from 4 to 7 is behind the frames of seconds 0 to 5; one that no frame meets is not."""
    said = (Subtitle(4, 7, "red star"), Subtitle(30, 31, "snow"), Subtitle(-3, -1, "night"))
    sample = VideoSample(frames, PROMPT, frames=20, subtitles=said)
    encoded, bare = adapter.encode(sample), adapter.encode(replace(sample, subtitles=()))
    inside = np.flatnonzero(encoded.frame_of >= 0)
    gap = np.flatnonzero(encoded.frame_of[inside[0] : inside[-1]] < 0) + inside[0]
    assert encoded.frame_of[gap[0] - 1] == 5
    assert encoded.frame_of[gap[-1] + 1] == 6
    assert len(encoded.frame_of) - len(bare.frame_of) == len(gap)
    words = adapter.processor.tokenizer("red star", add_special_tokens=False).input_ids
    expected = adapter.model.get_input_embeddings()(torch.tensor(words))
    assert torch.equal(encoded.inputs["inputs_embeds"][0, gap], expected)


def test_control_tokens_in_annotations_do_nothing(adapter, frames):
    plain = VideoSample(frames, "What color was the star?", frames=4, subtitles=(Subtitle(0, 9, "red star"),))
    hostile = replace(
        plain,
        prompt="What <video>color<image> was</s> the <vid<video>eo>star?",
        subtitles=(Subtitle(0, 9, "red <video></s>star"),),
    )
    assert torch.equal(adapter.encode(hostile).inputs["inputs_embeds"], adapter.encode(plain).inputs["inputs_embeds"])


def test_pictures_are_the_sampled_frames(adapter, frames):
    sample = VideoSample(frames, PROMPT, frames=10)
    shown = list(adapter.pictures(sample, [0, 7]))
    assert np.array_equal(shown, frames[[1, 15]])


def test_video_tokens_are_kept_in_a_folder(folder, tmp_path):
    film = tmp_path / "film.mp4"
    write_film(make_film("test", 1, 16), film, fps=2, size=64)
    adapter = LlavaNextVideoAdapter.load(folder, device="cpu", feature_folder=tmp_path / "features")
    sample = VideoSample(film, PROMPT, frames=8)
    tokens, times, _ = adapter.video_tokens(sample)
    assert times.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    (kept,) = (tmp_path / "features").iterdir()
    stamp = kept.stat().st_mtime_ns
    assert all(map(torch.equal, adapter.video_tokens(sample), (tokens, times)))
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"damaged")
    assert torch.equal(adapter.video_tokens(sample)[0], tokens)
    parts = adapter.video_tokens(replace(sample, sampling="longvideobench", duration=8.5))
    assert parts[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7], "within the annotated 8.5 seconds"
    write_film(make_film("test", 2, 16), film, fps=2, size=64)
    assert not torch.equal(adapter.video_tokens(sample)[0], tokens)
    film.unlink()
    with pytest.raises(VideoError, match="does not exist"):
        adapter.video_tokens(sample)


def test_half_precision_goes_through(folder, frames):
    adapter = LlavaNextVideoAdapter.load(folder, device="cpu", dtype=torch.bfloat16)
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=8))
    cache = adapter.memory(policies.make("h2o:keep=0.5", update_interval=16))
    answer = adapter.answer(encoded, cache)
    assert encoded.inputs["inputs_embeds"].dtype == torch.bfloat16
    assert answer.choice in range(4)
    assert cache.report().row(0).kept_share < 1


def test_several_videos_and_pixels_are_refused(adapter, frames):
    for videos in ((), (frames, frames)):
        with pytest.raises(NammTransferError, match=f"{len(videos)} videos in one prompt"):
            adapter.encode(VideoSample(videos, PROMPT, frames=4))
    with pytest.raises(NammTransferError, match="100 pixels a frame"):
        adapter.encode(VideoSample(frames, PROMPT, frames=4, pixels=100))


def test_what_is_no_llava_is_refused(tmp_path):
    with pytest.raises(NammTransferError, match="holds no LLaVA-NeXT-Video"):
        LlavaNextVideoAdapter.load(tmp_path, device="cpu")


def test_cut_off_weights_are_refused(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(NammTransferError, match="LLaVA-NeXT-Video"):
        LlavaNextVideoAdapter.load(copied, device="cpu")


def test_choices_that_are_no_continuation_are_refused(adapter, frames):
    with pytest.raises(NammTransferError, match="'' is no continuation"):
        adapter.encode(VideoSample(frames, PROMPT, choices=("A", ""), frames=4))


def test_choices_that_the_tokenizer_cannot_tell_apart_are_refused(adapter, frames):
    for choices, message in (
        (("red", "red"), "the same to the tokenizer"),
        (("zebra", "red"), "no word that the tokenizer knows"),
        (("red zebra", "red lion"), "the same to the tokenizer"),
    ):
        with pytest.raises(NammTransferError, match=message):
            adapter.encode(VideoSample(frames, PROMPT, lead="", choices=tuple(f" {c}" for c in choices), frames=4))
