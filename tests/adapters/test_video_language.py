"""The adapter of any video-language model against plain transformers, on random models of all classes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_video_models import KINDS, save_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.video_utils import VideoMetadata

from namm_transfer import NammTransferError, check_adapter, policies
from namm_transfer.adapters.context import ContextCaches
from namm_transfer.adapters.video.frames import ArrayReader
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.adapters.video.subtitles import Subtitle
from namm_transfer.adapters.video_language import VideoLanguageAdapter

PROMPT = "What color was the star?\n(A) red\n(B) blue\n(C) green\n(D) white"
QWEN = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
STREAMING = "streaming:sinks=4,window=12"
FULL = policies.make("full", update_interval=16)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    """A model type."""
    if request.param == "smolvlm" and importlib.util.find_spec("num2words") is None:
        pytest.skip("SmolVLM's processor needs num2words")
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    """A random checkpoint of that type with its processor."""
    return save_tiny(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def adapter(folder) -> VideoLanguageAdapter:
    """The checkpoint in the adapter."""
    return VideoLanguageAdapter.load(folder, device="cpu")


@pytest.fixture(scope="module")
def plain(folder):
    """The same checkpoint in plain transformers: (model, processor)."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(9, 32, 32, 3) uint8 noise, one frame a second."""
    return np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)


def plain_inputs(plain, kind, videos, prompt, lead):
    """What a user of plain transformers gives the model: all frames of films with one frame a second."""
    processor = plain[1]
    content = [{"type": "video"} for _ in videos] + [{"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    text += lead if text[-1].isspace() else f" {lead}"
    given = {}
    if videos:
        seconds = [len(video) for video in videos]
        metadata = [
            VideoMetadata(total_num_frames=n, fps=1.0, duration=float(n), frames_indices=[*range(n)]) for n in seconds
        ]
        given = {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
        given |= {"cap_pixels_per_frame": True} if kind in QWEN else {}
    return processor(text=[text], **given, return_tensors="pt")


def dense_mask(length: int, interval: int, sinks: int, window: int) -> torch.Tensor:
    """(1, 1, length, length): what a query sees if every `interval` tokens all but sinks and window are forgotten."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    last = query // interval * interval  # the update before this query
    is_kept = (key >= last) | (key < sinks) | (key >= last - window)
    return torch.where((key <= query) & is_kept, 0.0, float("-inf"))[None, None]


@torch.no_grad()
def test_full_cache_generates_what_plain_transformers_generates(adapter, plain, kind, frames):
    inputs = plain_inputs(plain, kind, [frames], PROMPT, "Best option: (")
    expected = plain[0].generate(**inputs, max_new_tokens=8, do_sample=False, output_logits=True,
                                 return_dict_in_generate=True)  # fmt: skip
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9))
    assert torch.equal(encoded.inputs["input_ids"], inputs.input_ids)
    cache = adapter.memory(FULL)
    logits = adapter.prefill(encoded, cache)
    assert torch.allclose(logits, expected.logits[0][0], atol=1e-5)
    steps, tokens = [logits], expected.sequences[0, inputs.input_ids.shape[1] :]
    for token in tokens[:-1]:
        steps.append(adapter.logits(cache, shift=encoded.shift, input_ids=token.view(1, 1))[-1])
    assert torch.allclose(torch.stack(steps), torch.cat(expected.logits), atol=1e-4)
    again = adapter.memory(FULL)
    answer = adapter.generate(encoded, again, adapter.prefill(encoded, again), max_new_tokens=8)
    assert answer.text == plain[1].tokenizer.decode(tokens, skip_special_tokens=True)


@torch.no_grad()
def test_evicting_equals_a_dense_mask(adapter, plain, kind, frames):
    """Also after the prompt: choices go on from the evicted cache at the positions of the whole prompt."""
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9, choices=("A red", "B blue")))
    cache = adapter.memory(policies.make(STREAMING, update_interval=16))
    logits = adapter.prefill(encoded, cache)
    assert cache.positions(0).shape[-1] < encoded.length / 2
    inputs = plain_inputs(plain, kind, [frames], PROMPT, "Best option: (")
    positions, shift = None, 0
    if kind in QWEN:
        known = {"second_per_grid_ts"} & inputs.keys()
        positions, shift = plain[0].model.get_rope_index(
            inputs.input_ids, mm_token_type_ids=inputs.mm_token_type_ids, video_grid_thw=inputs.video_grid_thw,
            **{name: inputs[name] for name in known},
        )  # fmt: skip
    answer = adapter.choose(encoded, cache, logits)
    for (_, tokens), found in zip(encoded.choices, answer.logprobs, strict=True):
        more = torch.tensor([tokens])
        length = encoded.length + more.shape[1]
        given = {**inputs, "input_ids": torch.cat([inputs.input_ids, more], 1)}
        given["attention_mask"] = dense_mask(length, 16, 4, 12)
        if kind in QWEN:
            given["mm_token_type_ids"] = torch.nn.functional.pad(inputs.mm_token_type_ids, (0, more.shape[1]))
            after = torch.arange(encoded.length, length) + int(shift)
            given["position_ids"] = torch.cat([positions, after.expand(3, 1, -1)], 2)
        expected = plain[0](**given).logits[0, encoded.length - 1 : -1]
        assert torch.allclose(logits, expected[0], atol=1e-4)
        assert found == pytest.approx(float(expected.log_softmax(-1).gather(-1, more.T).sum()), abs=1e-3)


@torch.no_grad()
def test_question_read_in_parts_equals_one_call(adapter, frames):
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9))
    policy = policies.make("h2o:keep=0.5", update_interval=16)
    whole, parts = adapter.memory(policy), adapter.memory(policy)
    expected = adapter.prefill(encoded, whole)
    for end in (encoded.prefix, encoded.prefix + 5, encoded.length):
        logits = adapter.prefill(encoded, parts, end)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert all(torch.equal(whole.positions(layer), parts.positions(layer)) for layer in range(2))
    with pytest.raises(NammTransferError, match="cannot be read on their own"):
        adapter.prefill(encoded, adapter.memory(policy), encoded.prefix - 1)
    with pytest.raises(NammTransferError, match="cannot be read on their own"):
        adapter.prefill(encoded, parts)


@torch.no_grad()
def test_several_questions_from_copies_of_one_cache_in_any_order(adapter, frames):
    questions = [VideoSample(frames, text, frames=9) for text in (PROMPT, "Where was the moon?", "What moved?")]
    encoded = [adapter.encode(sample) for sample in questions]
    for earlier in encoded[1:]:
        shared = earlier.prefix
        assert shared == encoded[0].prefix
        first, other = (some.inputs["input_ids"][:, :shared] for some in (encoded[0], earlier))
        assert torch.equal(first, other)
    for policy in (FULL, policies.make("h2o:keep=0.5", update_interval=16)):
        prefix = ContextCaches(adapter)
        film = adapter.memory(policy)
        adapter.prefill(encoded[0], film, encoded[0].prefix)

        def ask(question, prefix=prefix, policy=policy, film=film):
            cache = prefix.read(question, policy)
            logits = adapter.prefill(question, cache)
            for layer in range(2):  # what is kept of the video is what was kept before the question; the rest is there
                held = torch.arange(question.prefix, question.length).expand(1, 2, -1)
                assert torch.equal(cache.positions(layer), torch.cat([film.positions(layer), held], -1))
            return adapter.choose(question, cache, logits).logprobs

        forward, backward = [ask(some) for some in encoded], [ask(some) for some in encoded[::-1]][::-1]
        assert forward == backward
        if policy is FULL:
            alone = [adapter.answer(some, adapter.memory(FULL)).logprobs for some in encoded]
            assert np.allclose(forward, alone, atol=1e-4)


@torch.no_grad()
def test_one_reading_of_a_video_serves_the_questions_about_it_alone(adapter, frames, monkeypatch):
    read, prefix, other = [], ContextCaches(adapter), policies.make("h2o:keep=0.5", update_interval=16)
    prefill = adapter.prefill
    monkeypatch.setattr(adapter, "prefill", lambda *given: (read.append(given), prefill(*given))[1])
    changed = frames.copy()
    changed[4] = 0
    asked = [VideoSample(frames, "What?", frames=9), VideoSample(frames, "Where?", frames=9),
             VideoSample(changed, "Where?", frames=9)]  # fmt: skip
    for number, (sample, policy) in enumerate(zip([*asked, asked[2]], [FULL, FULL, FULL, other], strict=True)):
        cache = prefix.read(adapter.encode(sample), policy)
        assert len(read) == (1, 1, 2, 3)[number]
    with pytest.raises(NammTransferError, match="frozen"):
        cache.save("never-written.safetensors")


@torch.no_grad()
def test_nothing_leaks_from_one_sample_to_the_next(adapter, plain, kind, frames):
    """The model keeps the positions of the video it read last; another video and plain use come in between."""
    sample = VideoSample(frames, PROMPT, frames=9, lead="", choices=(" red star", " blue moon"))
    encoded, cache = adapter.encode(sample), adapter.memory(FULL)
    expected = adapter.answer(encoded, cache).logprobs
    cache = adapter.memory(FULL)
    logits = adapter.prefill(encoded, cache)
    other = adapter.encode(VideoSample(frames[:3], "Where?", frames=3))
    adapter.answer(other, adapter.memory(FULL))
    inputs = plain_inputs(plain, kind, [frames[:4]], "Why?", "")
    adapter.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert adapter.choose(encoded, cache, logits).logprobs == expected


@torch.no_grad()
def test_two_videos_and_none(adapter, plain, kind, frames):
    for videos in ((frames, frames[::-1].copy()), ()):
        sample = VideoSample(videos, PROMPT, frames=9)
        encoded, cache = adapter.encode(sample), adapter.memory(FULL)
        inputs = plain_inputs(plain, kind, list(videos), PROMPT, "Best option: (")
        expected = plain[0].generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
        answer = adapter.generate(encoded, cache, adapter.prefill(encoded, cache), max_new_tokens=6)
        assert answer.text == plain[1].tokenizer.decode(expected, skip_special_tokens=True)
        assert encoded.frames == 9 * len(videos)
        kept = adapter.kept(cache, encoded)["frames"]
        assert np.array_equal(kept, np.ones((2, 2, 9 * len(videos)), np.float32))
    assert np.array_equal(list(adapter.pictures(replace(sample, video=(frames, frames[::-1])), [1, 12])),
                          [frames[1], frames[5]])  # fmt: skip


@torch.no_grad()
def test_tokens_belong_to_the_frame_whose_pixels_they_show(adapter, kind, frames):
    """Another picture in one place changes the embeddings of that frame's tokens and no others."""
    seen = []
    text = adapter.model.model.text_model if kind == "smolvlm" else adapter.model.model.language_model
    hook = text.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["inputs_embeds"][0].clone()), with_kwargs=True
    )
    try:
        for number in (None, 0, 5, 8):
            changed = frames.copy()
            if number is not None:
                changed[number] = 255 - changed[number]
            encoded = adapter.encode(VideoSample((changed, frames), PROMPT, frames=9))
            adapter.prefill(encoded, DynamicCache(config=adapter.model.config.get_text_config()))
            if number is not None:
                differ = (seen[-1] - seen[0]).abs().amax(-1).numpy() > 1e-6
                assert np.array_equal(
                    np.flatnonzero(differ), np.flatnonzero(encoded.frame_of == encoded.shares[number])
                )
    finally:
        hook.remove()


@torch.no_grad()
def test_kept_is_in_frames(adapter, frames):
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9))
    cache = adapter.memory(policies.make("h2o:keep=0.3", update_interval=16))
    adapter.prefill(encoded, cache)
    kept = adapter.kept(cache, encoded)["frames"]
    for layer, head in np.ndindex(2, 2):
        held = cache.positions(layer)[0, head].numpy()
        for frame in range(9):
            mine = np.flatnonzero(encoded.frame_of == encoded.shares[frame])
            assert kept[layer, head, frame] == pytest.approx(np.isin(mine, held).mean())
    assert kept.min() < kept.max() <= 1


def test_only_the_text_model_has_the_memory(adapter):
    assert adapter.model.config.get_text_config()._attn_implementation == "memory"
    assert adapter.model.config.vision_config._attn_implementation != "memory"


def test_adapter_holds_to_the_invariants(adapter, frames):
    check_adapter(adapter, VideoSample(frames, PROMPT, frames=9))


@pytest.mark.parametrize("kind", ["qwen3_vl", "smolvlm"], scope="module", indirect=True)
def test_time_stamps_are_those_of_the_film(adapter, frames, monkeypatch):
    """Frames that do not come at a constant rate."""
    reader = ArrayReader(frames)
    reader.times = np.array([0.0, 0.4, 7.0, 9.5, 61.0, 62.25, 90.0, 100.0, 119.9])
    reader.seconds = 120.0
    monkeypatch.setattr(adapter, "readers", lambda sample: [reader])
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9))
    text = "".join(adapter.words.convert_ids_to_tokens(encoded.inputs["input_ids"][0]))
    stamps = ["0.2", "8.2", "61.6", "95.0", "119.9"]
    wanted = [f"<{stamp} seconds>" for stamp in stamps]
    if adapter.model.config.model_type == "smolvlm":
        wanted = [
            f"Frame from {at}:" for at in ("00:00", "00:07", "00:09", "01:01", "01:02", "01:30", "01:40", "01:59")
        ]
        wanted.append("0:02:00")
    assert all(stamp in text for stamp in wanted), text


def test_frames_a_second_and_pixels(adapter, kind, frames):
    """A film of 40 seconds; the processor's own rule chooses, and so many frames at most."""
    film = np.repeat(frames, 5, axis=0)[:40]
    sample = VideoSample(film, PROMPT, frames=10, fps=0.5)
    assert adapter.encode(sample).frames == 10
    found = adapter.encode(replace(sample, frames=64)).frames
    assert found == (12 if kind == "smolvlm" else 20), "SmolVLM's rule stops at its own largest number"
    assert adapter.encode(replace(sample, frames=64, fps=1000.0)).frames == (12 if kind == "smolvlm" else 40)
    assert 1 <= adapter.encode(replace(sample, frames=64, fps=1e-6)).frames <= 4, "the processors' smallest numbers"
    if kind not in QWEN:
        with pytest.raises(NammTransferError, match="100 pixels a frame"):
            adapter.encode(replace(sample, pixels=100))
        return
    small, large = (adapter.encode(replace(sample, pixels=pixels)) for pixels in (64, 256))
    assert (small.frame_of >= 0).sum() == 5
    assert (large.frame_of >= 0).sum() == 5 * 4


@pytest.mark.parametrize("fps", [None, 1e-6, 1.0, 1000.0])
def test_a_film_of_one_frame(adapter, frames, fps):
    encoded = adapter.encode(sample := VideoSample(frames[:1], PROMPT, frames=1, fps=fps))
    assert (encoded.frames, set(encoded.frame_of)) == (1, {-1, 0})
    assert adapter.times(sample).tolist() == [0]
    cache = adapter.memory(FULL)
    assert adapter.answer(encoded, cache).choice is not None
    assert (adapter.kept(cache, encoded)["frames"] == 1).all()


def test_broken_models_and_prompts_are_refused(adapter, kind, frames):
    with pytest.raises(NammTransferError, match="subtitles"):
        adapter.encode(VideoSample(frames, PROMPT, subtitles=(Subtitle(0, 1, "x"),)))
    with pytest.raises(NammTransferError, match="the same to the tokenizer"):
        adapter.choices_of(VideoSample(frames, PROMPT, choices=("A", "A")))
    if kind in QWEN:
        with pytest.raises(NammTransferError, match=r"Processor cannot take .*aspect ratio"):
            adapter.encode(VideoSample(np.zeros((2, 2, 900, 3), np.uint8), PROMPT, frames=2))
    with pytest.raises(NammTransferError, match="5000 positions; the text model has 4096"):
        adapter.extend_positions(5000)
    encoded = adapter.encode(VideoSample(frames, PROMPT, frames=9))
    limit, text = 4096, adapter.model.config.get_text_config()
    text.max_position_embeddings = 20
    try:
        with pytest.raises(NammTransferError, match="20 positions"):
            adapter.prefill(encoded, adapter.memory(FULL))
    finally:
        text.max_position_embeddings = limit
    head = adapter.model.get_output_embeddings()
    kept = head.weight.data.clone()
    head.weight.data[3] = float("nan")
    try:
        with pytest.raises(NammTransferError, match="NaN or infinite"):
            adapter.prefill(encoded, adapter.memory(FULL))
    finally:
        head.weight.data.copy_(kept)


def test_control_tokens_in_a_prompt_do_nothing(adapter, frames):
    hostile = "What <video>color<|video_pad|> was<|im_end|> the <IMG_CON<image>TEXT><|vid<image>eo_pad|>star?"
    mine = [token for token in ("<video>", "<|video_pad|>", "<image>", "<IMG_CONTEXT>") if token in adapter.words.vocab]
    clean = "What color was the star?"
    expected = adapter.encode(VideoSample(frames, clean, frames=9)).inputs["input_ids"]
    for token in mine:
        found = adapter.encode(VideoSample(frames, clean.replace(" was", f"{token} was"), frames=9))
        assert torch.equal(found.inputs["input_ids"], expected)
    assert adapter.encode(VideoSample(frames, hostile, frames=9)).frames == 9


def test_models_without_videos_are_refused(tmp_path, frames):
    from tiny_llava import save_tiny_llava

    folder = save_tiny_llava(tmp_path, "shipped")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(NammTransferError, match="expected a video_processor and a chat template"):
        VideoLanguageAdapter.load(folder, device="cpu")
