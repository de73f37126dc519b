"""Any video-language model of transformers' `AutoModelForImageTextToText`: questions about videos, from a memory.

The model's own processor writes the prompt, chooses the resolution and writes the time stamps; the frames come from
this package's readers with the times at which they are shown. The text model reads the prompt through the memory.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.video_utils import VideoMetadata

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError, policies
from namm_transfer.adapters.base import LanguageAdapter, default_device
from namm_transfer.adapters.loading import hub_options, in_short, load_model
from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.answers import parse_choice
from namm_transfer.adapters.video.frames import SAMPLING, FrameReader, facts_of, in_batches
from namm_transfer.adapters.video.layout import fill_up, kept_shares, lay_out, timed
from namm_transfer.adapters.video.reading import readers_of
from namm_transfer.adapters.video.sample import EncodedVideo, VideoAnswer, VideoSample
from namm_transfer.adapters.video.sampling import model_indices, some_of
from namm_transfer.adapters.video.stream import VideoStream

FRAMES_AT_ONCE = 16
"""Frames decoded together; bounds memory, changes no result."""


class VideoLanguageAdapter(LanguageAdapter):
    """Answers questions about videos with any video-language model that the memory can serve exactly."""

    kind = "video-language model"
    """The kind of model, in words for the errors."""
    model_class: Any = AutoModelForImageTextToText

    def __init__(self, model: PreTrainedModel, processor: Any, *, backend: str = "decord") -> None:
        self.model = model.eval()
        self.processor = processor
        self.backend = backend
        """Reader of video files, see `namm_transfer.adapters.video.frames`"""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        backend: str = "decord",
    ) -> Self:
        """Load model and processor from a folder or a hub id; only the text model gets the memory attention."""
        source = str(source)
        model = load_model(cls.model_class, source, cls.kind, dtype=dtype or "auto", device_map=device_map)
        try:
            processor = AutoProcessor.from_pretrained(source, **hub_options(source, cls.kind))
        except Exception as error:  # a damaged file can break the loading code anywhere
            raise NammTransferError(f"{source!r} holds no processor that can be loaded: {in_short(error)}") from error
        cls.check(model, processor, source)
        model.set_attn_implementation({"text_config": "memory"})
        if device_map is None:
            torch.nn.Module.to(model, device or default_device())
        adapter = cls(model, processor, backend=backend)
        adapter.memory(policies.make("full"))  # a model that cannot be served is refused before the first question
        return adapter

    @classmethod
    def check(cls, model: Any, processor: Any, source: str) -> None:
        """Raise `NammTransferError` unless these are a model and a processor that can be served."""
        if not getattr(processor, "video_processor", None) or not getattr(processor, "chat_template", None):
            name = type(processor).__name__
            raise NammTransferError(f"{source!r}: expected a video_processor and a chat template in its {name}")
        core = model.base_model
        if hasattr(core, "rope_deltas") and not hasattr(core, "get_rope_index"):
            raise NammTransferError(f"{source!r}: the positions of a {model.config.model_type!r} are not served")

    @property
    def words(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def tokens_per_frame(self) -> int | None:
        """Tokens of every frame; None where they depend on the video."""
        return None

    @property
    def has_three_positions(self) -> bool:
        """True if the text model counts time, rows and columns (M-RoPE) instead of tokens."""
        return hasattr(self.model.base_model, "get_rope_index")

    @property
    def trained_positions(self) -> int:
        """Positions that the text model was trained for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def example(self) -> VideoSample:
        """Make a question about 64 frames of a bright square that crosses a dark ground."""
        frames = np.full((64, 64, 64, 3), 20, dtype=np.uint8)
        for second, frame in enumerate(frames):
            frame[24:40, max(0, second - 8) : second + 8] = (240, 200, 60)
        return VideoSample(frames, prompts.question("What moved?", ("a square", "a circle", "a star", "a ring")))

    def extend_positions(self, length: int) -> None:
        """Make room for a prompt of `length` positions, where an adapter can.

        Raises:
            NammTransferError: more than the text model was trained for.
        """
        if length > self.trained_positions:
            raise NammTransferError(
                f"prompt and answer take {length} positions; the text model has {self.trained_positions}: sample fewer "
                "frames, or set fewer pixels a frame"
            )

    @torch.inference_mode()
    def encode(self, sample: VideoSample) -> EncodedVideo:
        """Decode the sampled frames and let the model's processor make the prompt.

        Raises:
            VideoError: a file cannot be read.
            NammTransferError: choices that are no continuations of the prompt, or what the processor cannot take.
        """
        if sample.subtitles:
            raise NammTransferError(
                "subtitles between the frames are served for LLaVA-NeXT-Video alone; expected a sample without "
                "subtitles (--benchmark longvideobench-frames)"
            )
        text = self._text(sample)
        films, metadata, readers = [], [], self.readers(sample)
        for reader in readers:
            indices = self._chosen(reader, sample)
            films.append(np.concatenate(list(in_batches(reader, indices, FRAMES_AT_ONCE))))
            metadata.append(timed(reader, indices))
        read = self._processed(text, films, metadata, sample.pixels)
        return replace(
            read, choices=self.choices_of(sample), options=sample.options, facts=facts_of(readers, sample.duration)
        )

    @torch.inference_mode()
    def encode_clip(self, piece: str, reader: FrameReader, pixels: int | None = None) -> EncodedVideo:
        """Encode all frames of a reader as the video in `piece`, the part of a prompt that `around_video` returns.

        Positions begin at 0; there are no choices.
        """
        indices = np.arange(reader.count)
        films = [np.concatenate(list(in_batches(reader, indices, FRAMES_AT_ONCE)))]
        return self._processed(piece, films, [timed(reader, indices)], pixels, add_special_tokens=False)

    def _processed(
        self, text: str, films: list[np.ndarray], metadata: list[VideoMetadata], pixels: int | None, **options: bool
    ) -> EncodedVideo:
        """Let the model's processor make the inputs of a text with these videos in it."""
        videos: dict[str, Any] = {}
        counts = list(map(len, films))
        if films:
            fill_up(films, metadata, self.processor)
            videos = {"videos": films, "video_metadata": metadata, "do_sample_frames": False}
            videos |= self.resolution(pixels, max(map(len, films)))
        try:
            inputs = self.processor(text=[text], **videos, **options, return_tensors="pt").to(self.device, self.dtype)
        except Exception as error:  # every model's processor has demands of its own
            raise NammTransferError(
                f"{type(self.processor).__name__} cannot take {[film.shape for film in films]} frames, heights, widths "
                f"and colours: {in_short(error)}"
            ) from error
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        positions, shift = self._positions(inputs)
        frame_of, shares, prefix = lay_out(self.processor, self.model.config.model_type, tensors, counts)
        return EncodedVideo(tensors, frame_of, shares, prefix, (), (), positions, shift)

    def stream(self, policy: EvictionPolicy, *, positions: int | None = None, pixels: int | None = None) -> VideoStream:
        """Begin to watch a video a few frames at a time; see `VideoStream`."""
        return VideoStream(self, policy, positions=positions, pixels=pixels)

    def around_video(self, sample: VideoSample) -> tuple[list[int], str, list[int]]:
        """Split a sample's prompt at its video: tokens before it, its text for the processor, tokens behind it.

        Raises:
            NammTransferError: the tokens around a video depend on how many there are.
        """
        one, two = (self._text(replace(sample, video=("",) * count)) for count in (1, 2))
        return prompts.around_video(
            one, two, self._tokens, lambda text: list(self.words(text, add_special_tokens=False).input_ids)
        )

    def times(self, sample: VideoSample) -> np.ndarray:
        """Return the times at which the sampled frames are shown, in seconds of their video: (frames,) float64."""
        return np.concatenate([reader.times[self._chosen(reader, sample)] for reader in self.readers(sample)])

    def pictures(self, sample: VideoSample, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield some of the sampled frames, (height, width, 3) uint8 each, by their ascending numbers among these."""
        first = 0
        for reader in self.readers(sample):
            indices = self._chosen(reader, sample)
            mine = [number - first for number in numbers if first <= number < first + len(indices)]
            first += len(indices)
            yield from itertools.chain.from_iterable(in_batches(reader, indices[mine], FRAMES_AT_ONCE))

    def prefill(self, encoded: EncodedVideo, cache: Cache, end: int | None = None) -> Tensor:
        """Read what `cache` has not read of the prompt: (vocabulary,) float32 logits of the token that follows.

        Args:
            end: read only so many of the prompt's tokens: `encoded.prefix`, to ask several questions about a video
                with copies of the cache.

        Raises:
            NammTransferError: more tokens than the text model has positions, logits that are not finite, or a part that
                begins or ends within a video.
        """
        needed, limit = encoded.positions_needed, self.model.config.get_text_config().max_position_embeddings
        if needed > limit:
            raise NammTransferError(
                f"a prompt of {needed} tokens passes the text model's {limit} positions: call "
                f"extend_positions({needed}) first, or sample fewer than {encoded.frames} frames"
            )
        start, end = cache.get_seq_length(), encoded.length if end is None else end
        if not start < end <= encoded.length or 0 < start < encoded.prefix or end < encoded.prefix:
            raise NammTransferError(
                f"tokens {start} to {end} of a prompt of {encoded.length} cannot be read on their own: expected parts "
                f"that begin at 0 or from {encoded.prefix} on, where its videos end"
            )
        inputs: dict[str, Any] = {}
        for name, value in encoded.inputs.items():
            if encoded.runs_along(name):
                inputs[name] = value[:, start:end]
            elif start < encoded.prefix:
                inputs[name] = value
        inputs.pop("attention_mask", None)  # one sequence, without padding
        if encoded.positions is not None:
            inputs["position_ids"] = encoded.positions[..., start:end]
        return self.logits(cache, last=True, **inputs)[-1]

    def read_context(self, encoded: EncodedVideo, cache: Cache) -> None:
        """Read a sample's videos, but not its question."""
        self.prefill(encoded, cache, encoded.prefix)

    def choose(self, encoded: EncodedVideo, cache: Cache, logits: Tensor) -> VideoAnswer:
        """Find the most probable choice after `prefill`; `cache` stays as it is, each choice continues a copy of it."""
        scores = []
        for _, tokens in encoded.choices:
            ids = torch.tensor(tokens, device=logits.device)
            copied = copy.deepcopy(cache) if len(tokens) > 1 else cache
            steps = self.log_probabilities(copied, logits, ids, encoded.shift).gather(-1, ids[:, None])
            scores.append(float(steps[0] + steps[1:].sum()))
        return VideoAnswer(int(np.argmax(scores)), logprobs=tuple(scores))

    def generate(
        self, encoded: EncodedVideo, cache: Cache, logits: Tensor, max_new_tokens: int | None = None
    ) -> VideoAnswer:
        """Generate greedily after `prefill`, which goes on in `cache`, and find the choice that the words name, if any.

        At most `max_new_tokens` tokens, or as many as the longest choice has.
        """
        limit = max_new_tokens or max(len(tokens) for _, tokens in encoded.choices)
        text = self.decode_greedily(cache, logits, limit, encoded.shift)
        names = [choice for choice, _ in encoded.choices]
        return VideoAnswer(parse_choice(text, names, encoded.options), text=text)

    def answer(self, encoded: EncodedVideo, cache: MemoryCache) -> VideoAnswer:
        """Read the prompt and take the most probable choice."""
        return self.choose(encoded, cache, self.prefill(encoded, cache))

    def kept(self, cache: MemoryCache, encoded: EncodedVideo) -> dict[str, np.ndarray]:
        """`frames`: (layers, kv_heads, frames) float32, the share of each frame's tokens that is still held."""
        return {"frames": kept_shares(cache, encoded)}

    def choices_of(self, sample: VideoSample) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the sample's choices with their tokens; `NammTransferError` if the tokenizer cannot tell two apart."""
        return prompts.choice_tokens(self._text(sample), sample.choices, self._tokens, self.words.unk_token_id)

    def _text(self, sample: VideoSample) -> str:
        videos = len(sample.video) if isinstance(sample.video, tuple) else 1
        content: Any = [{"type": "video"}] * videos + [{"type": "text", "text": self.harmless(sample.prompt)}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text + ("" if text[-1].isspace() else " ") + sample.lead if sample.lead else text

    @property
    def control_tokens(self) -> list[str]:
        """Those of the tokenizer, and what stands for videos and images."""
        own = [getattr(self.processor, f"{name}_token", None) for name in ("video", "image")]
        return [*super().control_tokens, *filter(None, own)]

    def _tokens(self, text: str) -> list[int]:
        return list(self.words(text).input_ids)

    def readers(self, sample: VideoSample) -> list[FrameReader]:
        """Open the sample's videos; `VideoError` if one cannot be read."""
        return readers_of(sample, self.backend)

    def _chosen(self, reader: FrameReader, sample: VideoSample) -> np.ndarray:
        """Return the numbers of the frames that are shown, ascending: (n,) int64."""
        if sample.fps is None:
            found = SAMPLING[sample.sampling](reader, sample.frames, sample.duration)
        else:
            found = model_indices(self.processor.video_processor, reader, sample.fps, sample.frames)
        return some_of(found, sample.shown)

    def resolution(self, pixels: int | None, frames: int) -> dict[str, Any]:
        """Return keywords for the processor: most pixels of a frame, where the model takes frames of different sizes.

        Raises:
            NammTransferError: its frames have a fixed size, or no positive number.
        """
        processor = self.processor.video_processor
        # What Qwen's own loader does and transformers is about to: long films get smaller frames.
        known = {"cap_pixels_per_frame": True} if hasattr(processor, "cap_pixels_per_frame") else {}
        if pixels is None:
            return known
        if not known or pixels < 1:
            raise NammTransferError(
                f"{pixels} pixels a frame for a {type(processor).__name__}: expected a positive number, and a "
                "processor of Qwen's, whose frames have no fixed size"
            )
        least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        budget = pixels * (frames if "Qwen3" in type(processor).__name__ else 1)  # of the film, or of a frame
        return known | {"size": {"shortest_edge": min(least, int(pixels / 1.05)), "longest_edge": min(most, budget)}}

    def _positions(self, inputs: Any) -> tuple[Tensor | None, int | None]:
        """Compute positions under M-RoPE and their lead over the tokens counted; see `EncodedVideo`.

        They are made here and given to every call, so that nothing depends on what the model read before.
        """
        core: Any = self.model.base_model
        ids = inputs["input_ids"]
        if not self.has_three_positions:
            return None, None
        if inputs.get("video_grid_thw") is None:
            return torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1), 0
        known = inspect.signature(core.get_rope_index).parameters
        positions, shift = core.get_rope_index(**{name: inputs[name] for name in known if name in inputs})
        return positions, int(shift)
