"""Streams: a video watched in parts answers as the same video read at once, for every class of model."""

import importlib.util

import numpy as np
import pytest
import torch
from tiny_llava import save_tiny_llava
from tiny_video_models import KINDS, save_tiny

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.adapters.video_language import VideoLanguageAdapter

QUESTION = VideoSample((), "What color was the star?\n(A) red\n(B) blue", choices=("A red", "B blue"))
POLICIES = ("full", "h2o:keep=0.5", "streaming:sinks=4,window=12")


@pytest.fixture(scope="module", params=["llava_next_video", *KINDS])
def adapter(request, tmp_path_factory) -> VideoLanguageAdapter:
    """A random model of each class."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llava_next_video":
        return LlavaNextVideoAdapter.load(save_tiny_llava(folder, "shipped"), device="cpu")
    if request.param == "smolvlm" and importlib.util.find_spec("num2words") is None:
        pytest.skip("SmolVLM's processor needs num2words")
    return VideoLanguageAdapter.load(save_tiny(folder, request.param), device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Three clips of 4 frames, 32 x 32 pixels of noise."""
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    return [frames[:4], frames[4:8], frames[8:]]


def make(spec: str):
    return policies.make(spec, update_interval=16)


def at_once(adapter, clips, policy, prefix) -> tuple[float, ...]:
    """The answer of a model that reads all clips, `prefix` tokens, in one call before it reads the question."""
    together = isinstance(adapter, LlavaNextVideoAdapter)
    video = np.concatenate(clips) if together else tuple(clips)
    sample = VideoSample(video, QUESTION.prompt, frames=len(video) if together else 4, choices=QUESTION.choices)
    encoded = adapter.encode(sample)
    cache = adapter.memory(policy)
    adapter.prefill(encoded, cache, prefix)
    cache.freeze()
    return adapter.choose(encoded, cache, adapter.prefill(encoded, cache)).logprobs


@pytest.mark.parametrize("spec", POLICIES)
def test_a_stream_answers_as_if_all_was_read_at_once(adapter, clips, spec):
    """With questions in between, which change nothing for the later ones; under M-RoPE too."""
    policy = make(spec)
    stream, again = adapter.stream(policy), adapter.stream(policy)
    for number, clip in enumerate(clips, 1):
        times = np.arange(len(clip))  # as the processor sees clips of a prompt with several videos
        stream.watch(clip, times)
        seen = stream.cache.get_seq_length()
        answer = stream.ask(QUESTION)
        assert answer.logprobs == pytest.approx(at_once(adapter, clips[:number], policy, seen), abs=1e-3)
        stream.ask("What was it?", max_new_tokens=3)
        assert stream.cache.get_seq_length() == seen
        assert stream.ask(QUESTION).logprobs == answer.logprobs
        again.watch(clip, times)
    assert again.ask(QUESTION).logprobs == answer.logprobs
    assert stream.frames == 12
    kept = [stream.cache.positions(layer) for layer in range(len(stream.cache.attention_layers))]
    assert all(torch.equal(held, again.cache.positions(layer)) for layer, held in enumerate(kept))


def test_a_single_frame_may_be_watched(adapter, clips):
    stream = adapter.stream(make("full"))
    for frames in (clips[0][:1], clips[0][1:], clips[1][:1]):
        stream.watch(frames)
    encoded, cache, _ = stream.read(QUESTION)
    assert (stream.frames, stream.seconds, encoded.frames) == (5, 5, 5)
    assert set(encoded.frame_of) - {-1} == set(encoded.shares)
    assert (adapter.kept(cache, encoded)["frames"] == 1).all()


def test_a_fork_goes_on_alone(adapter, clips):
    policy = make("h2o:keep=0.5")
    stream, other = adapter.stream(policy), adapter.stream(policy)
    stream.watch(clips[0])
    other.watch(clips[0])
    fork = stream.fork()
    fork.watch(clips[1])
    assert (stream.frames, stream.seconds, fork.frames, fork.seconds) == (4, 4, 8, 8)
    assert fork.ask(QUESTION).logprobs != stream.ask(QUESTION).logprobs
    stream.watch(clips[2])
    other.watch(clips[2])
    assert stream.ask(QUESTION).logprobs == other.ask(QUESTION).logprobs


def test_positions_stay_those_of_the_whole_prompt_over_many_clips(adapter, clips):
    """24 clips: the model gets the positions that its own code computes for the prompt as a whole."""
    if not adapter.has_three_positions:
        pytest.skip("counts tokens")
    stream, seen, logits = adapter.stream(make("streaming:sinks=4,window=28")), [], adapter.logits
    adapter.logits = lambda cache, **given: (seen.append(given.get("position_ids")), logits(cache, **given))[1]
    try:
        for _ in range(24):
            stream.watch(clips[1], range(4))
    finally:
        del adapter.logits
    found = torch.cat([positions for positions in seen if positions is not None], -1)
    whole = adapter.encode(VideoSample((clips[1],) * 24, QUESTION.prompt, frames=4))
    head = len(adapter.around_video(QUESTION)[0])
    assert torch.equal(found, whole.positions[..., head : head + found.shape[-1]])
    assert found.shape[-1] >= 24 * 4
    assert stream.cache.positions(0).shape[-1] <= 32 + 16


def test_what_is_kept_is_told_by_frame(adapter, clips):
    stream = adapter.stream(make("streaming:sinks=4,window=12"))
    for clip in clips:
        stream.watch(clip)
    encoded, cache, _ = stream.read(QUESTION)
    kept = adapter.kept(cache, encoded)["frames"]
    assert kept.shape == (len(cache.attention_layers), cache.positions(0).shape[1], 12)
    assert kept[..., -1].min() > 0
    assert kept[..., 1].max() < 1
    assert encoded.length == cache.get_seq_length()
    assert np.array_equal(np.unique(encoded.frame_of[encoded.frame_of >= 0]), np.unique(encoded.shares))


def test_a_question_before_the_first_frame(adapter):
    stream = adapter.stream(make("full"))
    answer = stream.ask(QUESTION)
    assert len(answer.logprobs) == 2
    assert stream.cache.get_seq_length() == 0


def test_positions_that_are_used_up_are_said_and_nothing_is_read(adapter, clips):
    probe = adapter.stream(make("full"))
    probe.watch(clips[0])
    each = max(probe._next, probe._highest) + 1
    stream = adapter.stream(make("full"), positions=each)
    stream.watch(clips[0])
    seen = stream.cache.get_seq_length()
    for more in (lambda: stream.watch(clips[2]), lambda: stream.ask(QUESTION)):
        with pytest.raises(
            NammTransferError, match=rf"after 4 frames need \d+ positions, but \d+ of the stream's {each}"
        ):
            more()
    assert stream.cache.get_seq_length() == seen
    assert stream.frames == 4


def test_wrong_frames_and_times_are_refused(adapter, clips):
    stream = adapter.stream(make("full"))
    for frames in (clips[0][0], clips[0][:0], clips[0].astype(np.float32), clips[0][..., :1]):
        with pytest.raises(NammTransferError, match=r"expected uint8 \(n, height, width, 3\)"):
            stream.watch(frames)
    for times in ([0, 1], [3, 2, 1, 0], [0, 1, 2, float("nan")], [-1, 0, 1, 2]):
        with pytest.raises(NammTransferError, match="expected as many ascending numbers"):
            stream.watch(clips[0], times)
    assert stream.cache.get_seq_length() == 0


@pytest.mark.parametrize("adapter", ["qwen3_vl", "smolvlm"], indirect=True)
def test_time_stamps_are_those_of_the_stream(adapter, clips):
    seen, encode = [], adapter.encode_clip
    adapter.encode_clip = lambda *given: (seen.append(encode(*given)), seen[-1])[1]
    try:
        stream = adapter.stream(make("full"))
        stream.watch(clips[0], [3600, 3601, 3602, 3603])
        stream.watch(clips[1])
    finally:
        del adapter.encode_clip
    texts = ["".join(adapter.words.convert_ids_to_tokens(part.inputs["input_ids"][0])) for part in seen]
    if adapter.model.config.model_type == "smolvlm":
        assert "Frame from 60:02:" in texts[0] or "Frame from 00:02:" in texts[0], texts[0]
    else:
        assert "<3600.5 seconds>" in texts[0]
        assert "<3604.5 seconds>" in texts[1]


def test_memory_of_a_long_stream_is_bounded_by_the_budget(tmp_path):
    """1,000 frames; the model reads no more positions than it was told to expect."""
    adapter = LlavaNextVideoAdapter.load(save_tiny_llava(tmp_path, "shipped"), device="cpu")
    stream = adapter.stream(policies.make("h2o:budget=64", update_interval=32), positions=4200)
    frames = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3), dtype=np.uint8)
    tokens, held = [], []
    for _ in range(20):
        stream.watch(frames)
        report = stream.cache.report()
        tokens.append(int(report.kept.max()))
        held.append(report.bytes)
    assert stream.cache.get_seq_length() >= 4000
    assert max(tokens) <= 64 + 32
    assert max(held) <= 1.02 * max(held[:4]), "updates fall at every fourth call alike"
    assert stream.ask("What?", max_new_tokens=2).text is not None
