"""LLaVA-NeXT-Video (Zhang et al., 2024) in Hugging Face's format: questions about a video, answered from a memory.

Frames are decoded and encoded a few at a time, so what grows with the film is its tokens alone. The prompt's embeddings
are then put together as the model's own forward does it, and the text model reads them through the memory in one call.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor
from transformers.cache_utils import Cache

from namm_transfer import MemoryCache, NammTransferError
from namm_transfer.adapters.base import LanguageAdapter, default_device
from namm_transfer.adapters.loading import hub_options, in_short, load_model
from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.answers import parse_choice
from namm_transfer.adapters.video.frames import SAMPLING, ArrayReader, FrameReader, in_batches, open_video
from namm_transfer.adapters.video.subtitles import Subtitle, interleave
from namm_transfer.files import write_atomic

FRAMES_AT_ONCE = 16
"""Frames decoded and encoded together; bounds memory, changes no result beyond rounding."""


@dataclass(frozen=True)
class VideoSample:
    """A question about a video, with the continuations among which the answer is looked for."""

    video: str | Path | np.ndarray
    """A file, or frames that are decoded already, one a second: (count, height, width, 3) uint8 RGB"""
    prompt: str
    """What the user says after the video"""
    lead: str = prompts.LEAD
    """How the answer begins; the choices continue it"""
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    """Continuations of `lead`; the most probable one is the answer"""
    options: tuple[str, ...] = ()
    """The options behind `choices`, where these are letters; a generated answer may name them instead"""
    frames: int = 64
    """Frames sampled from the video"""
    sampling: Literal["uniform", "mlvu", "longvideobench"] = "uniform"
    """The rule that chooses them, see `video.sampling`"""
    subtitles: tuple[Subtitle, ...] = ()
    """What is said; the model reads it between the frames"""
    duration: float | None = None
    """Seconds that the annotations give the video; LongVideoBench's rule samples within them"""


@dataclass(frozen=True)
class EncodedVideo:
    """A sample as the text model reads it."""

    embeds: Tensor
    """(1, length, width): prompt and video in the model's dtype"""
    frame_of: np.ndarray
    """(length,) int64: the frame a token belongs to, -1 for text"""
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    """Each choice and its tokens"""
    options: tuple[str, ...]
    """The options behind the choices, where these are letters"""
    frames: int
    """Frames sampled"""


@dataclass(frozen=True)
class VideoAnswer:
    """What the model answered."""

    choice: int | None
    """Index of the choice; None if a generated answer could not be understood"""
    logprobs: tuple[float, ...] = ()
    """Log-probability (natural) of each choice, if that decided"""
    text: str | None = None
    """The generated answer behind `lead`, if that decided"""


class LlavaNextVideoAdapter(LanguageAdapter):
    """Answers questions about videos with any `LlavaNextVideoForConditionalGeneration`."""

    model: LlavaNextVideoForConditionalGeneration

    def __init__(
        self,
        model: LlavaNextVideoForConditionalGeneration,
        processor: LlavaNextVideoProcessor,
        *,
        backend: str = "decord",
        feature_folder: Path | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.backend = backend
        """Reader of video files, see `namm_transfer.adapters.video.frames`"""
        self.feature_folder = feature_folder
        """Where the tokens of videos are kept between calls of `encode`; None keeps none"""
        text = model.config.get_text_config()
        self._trained = text.max_position_embeddings, dict(text.rope_parameters)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        backend: str = "decord",
        feature_folder: Path | None = None,
    ) -> LlavaNextVideoAdapter:
        """Model and processor from a folder or a hub id; only the text model gets the memory attention."""
        source, kind = str(source), "LLaVA-NeXT-Video"
        model = load_model(
            LlavaNextVideoForConditionalGeneration, source, kind, dtype=dtype or "auto", device_map=device_map
        )
        try:
            processor = AutoProcessor.from_pretrained(source, **hub_options(source, kind))
        except Exception as error:  # a damaged file can break the loading code anywhere
            raise NammTransferError(f"{source!r} holds no processor that can be loaded: {in_short(error)}") from error
        if not isinstance(processor, LlavaNextVideoProcessor) or processor.chat_template is None:
            raise NammTransferError(f"{source!r}: expected a LlavaNextVideoProcessor with a chat template")
        model.set_attn_implementation({"text_config": "memory"})
        if device_map is None:
            torch.nn.Module.to(model, device or default_device())
        return cls(model, processor, backend=backend, feature_folder=feature_folder)

    @property
    def words(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def example(self) -> VideoSample:
        """A question about 64 frames of a bright square that crosses a dark ground."""
        frames = np.full((64, 64, 64, 3), 20, dtype=np.uint8)
        for second, frame in enumerate(frames):
            frame[24:40, max(0, second - 8) : second + 8] = (240, 200, 60)
        return VideoSample(frames, prompts.question("What moved?", ("a square", "a circle", "a star", "a ring")))

    @property
    def tokens_per_frame(self) -> int:
        """What the vision tower's patches are pooled to."""
        vision: Any = self.model.config.vision_config
        return (vision.image_size // vision.patch_size // self.model.config.spatial_pool_stride) ** 2

    def extend_positions(self, length: int) -> None:
        """Make room for a prompt of `length` tokens, whatever came before: beyond the positions the text model was
        trained for they are compressed, by YaRN (arXiv 2309.00071) where the checkpoint's `rope_type` says so and else
        linearly, as LLaVA-NeXT-Video's authors do it. A shorter prompt finds the positions it was trained with.
        """
        limit, rope = self._trained
        kind = {"default": "linear"}.get(known := rope.get("rope_type", "default"), known)
        if length > limit and kind not in ("linear", "yarn"):
            raise NammTransferError(
                f"cannot extend {limit} positions to {length}: the model scales them already ({kind!r})"
            )
        stretched = {**rope, "rope_type": kind, "factor": rope.get("factor", 1.0) * length / limit}
        config = self.model.config.get_text_config()
        config.rope_parameters = stretched if length > limit else dict(rope)
        config.max_position_embeddings = self.processor.tokenizer.model_max_length = max(length, limit)
        text = self.model.model.language_model
        text.rotary_emb = type(text.rotary_emb)(config).to(text.rotary_emb.inv_freq.device)

    @torch.inference_mode()
    def encode(self, sample: VideoSample) -> EncodedVideo:
        """Decode the sampled frames and embed the prompt.

        Raises:
            VideoError: the file cannot be read.
            NammTransferError: choices that are no continuations of the prompt.
        """
        features, times = self.video_tokens(sample)
        token = self.processor.video_token
        text = self._text(sample)
        pictures = [token * features.shape[1]] * features.shape[0]
        said = [replace(line, text=self._harmless(line.text)) for line in sample.subtitles]
        ids = self._tokens(text.replace(token, interleave(pictures, times.tolist(), said), 1))
        input_ids = torch.tensor([ids], device=self.device)
        is_video = input_ids == self.processor.video_token_id
        embeds = self.model.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter(is_video[..., None], features.to(embeds.device, embeds.dtype))
        frame_of = np.full(len(ids), -1, dtype=np.int64)
        frame_of[is_video[0].cpu().numpy()] = np.repeat(np.arange(features.shape[0]), features.shape[1])
        return EncodedVideo(embeds, frame_of, self._choices(sample, text), sample.options, features.shape[0])

    @torch.inference_mode()
    def video_tokens(self, sample: VideoSample) -> tuple[Tensor, Tensor]:
        """The video's projected tokens, (frames, tokens a frame, width), and its frames' times, (frames,) seconds.

        From `feature_folder` if they are there.
        """
        file = None
        if self.feature_folder is not None and not isinstance(sample.video, np.ndarray):
            file = self.feature_folder / f"{self._fingerprint(sample)}.safetensors"
            try:
                found = load_tensors(file.read_bytes())
                return found["tokens"], found["times"]
            except (FileNotFoundError, SafetensorError, KeyError):
                pass
        reader = self._reader(sample)
        indices = SAMPLING[sample.sampling](reader, sample.frames, sample.duration)
        parts = []
        for frames in in_batches(reader, indices, FRAMES_AT_ONCE):
            pixels = self.processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
            features = self.model.get_video_features(pixels.to(self.device, self.dtype)).pooler_output
            parts.append(features[0].unflatten(0, (len(frames), -1)))
        tokens = torch.cat(parts).cpu().contiguous()
        times = torch.from_numpy(reader.times[indices])
        if file is not None:
            write_atomic(file, save_tensors({"tokens": tokens, "times": times}))
        return tokens, times

    def pictures(self, sample: VideoSample, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Some of the sampled frames, (height, width, 3) uint8 each, by their ascending numbers among those sampled."""
        reader = self._reader(sample)
        indices = SAMPLING[sample.sampling](reader, sample.frames, sample.duration)[list(numbers)]
        return itertools.chain.from_iterable(in_batches(reader, indices, FRAMES_AT_ONCE))

    def prefill(self, encoded: EncodedVideo, cache: Cache) -> Tensor:
        """Read the whole prompt into an empty `cache`: (vocabulary,) float32 logits of the first answer token.

        Raises:
            NammTransferError: more tokens than the text model has positions, or logits that are not finite.
        """
        length, limit = encoded.embeds.shape[1], self.model.config.get_text_config().max_position_embeddings
        if length > limit:
            raise NammTransferError(
                f"a prompt of {length} tokens passes the text model's {limit} positions: call "
                f"extend_positions({length}) first, or sample fewer than {encoded.frames} frames"
            )
        return self.logits(cache, inputs_embeds=encoded.embeds, last=True)[-1]

    def choose(self, encoded: EncodedVideo, cache: Cache, logits: Tensor) -> VideoAnswer:
        """The most probable choice after `prefill`; `cache` stays as it is, each choice continues a copy of it."""
        scores = []
        for _, tokens in encoded.choices:
            ids = torch.tensor(tokens, device=logits.device)
            copied = copy.deepcopy(cache) if len(tokens) > 1 else cache
            steps = self.log_probabilities(copied, logits, ids).gather(-1, ids[:, None])
            scores.append(float(steps[0] + steps[1:].sum()))
        return VideoAnswer(int(np.argmax(scores)), logprobs=tuple(scores))

    def generate(
        self, encoded: EncodedVideo, cache: Cache, logits: Tensor, max_new_tokens: int | None = None
    ) -> VideoAnswer:
        """Greedy words after `prefill`, which go on in `cache`, and the choice they name, if they name one.

        At most `max_new_tokens` tokens, or as many as the longest choice has.
        """
        limit = max_new_tokens or max(len(tokens) for _, tokens in encoded.choices)
        text = self.decode_greedily(cache, logits, limit)
        names = [choice for choice, _ in encoded.choices]
        return VideoAnswer(parse_choice(text, names, encoded.options), text=text)

    def answer(self, encoded: EncodedVideo, cache: MemoryCache) -> VideoAnswer:
        """Read the prompt and take the most probable choice."""
        return self.choose(encoded, cache, self.prefill(encoded, cache))

    def kept(self, cache: MemoryCache, encoded: EncodedVideo) -> dict[str, np.ndarray]:
        """`frames`: (layers, kv_heads, frames) float32, the share of each frame's tokens that is still held."""
        total = np.bincount(encoded.frame_of[encoded.frame_of >= 0], minlength=encoded.frames)
        layers = []
        for layer in range(len(cache.layers)):
            heads = []
            for positions in cache.positions(layer)[0].cpu().numpy():
                inside = positions[(positions >= 0) & (positions < len(encoded.frame_of))]
                frames = encoded.frame_of[inside]
                heads.append(np.bincount(frames[frames >= 0], minlength=encoded.frames) / total)
            layers.append(heads)
        return {"frames": np.array(layers, dtype=np.float32)}

    def _text(self, sample: VideoSample) -> str:
        content: Any = [{"type": "video"}, {"type": "text", "text": self._harmless(sample.prompt)}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return f"{text} {sample.lead}" if sample.lead else text

    def _harmless(self, text: str) -> str:
        """Words of an annotation without what the tokenizer would read as control tokens (`<video>`, `</s>`)."""
        control = [token for token in self.processor.tokenizer.all_special_tokens if token.startswith("<")]
        while found := next((token for token in control if token in text), None):
            text = text.replace(found, "")
        return text

    def _tokens(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text).input_ids)

    def check_choices(self, sample: VideoSample) -> None:
        """Raise `NammTransferError` if the tokenizer cannot tell the sample's choices apart."""
        self._choices(sample, self._text(sample))

    def _choices(self, sample: VideoSample, text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Tokens by which each choice continues the prompt."""
        before, found, unknown = self._tokens(text), dict[tuple[int, ...], str](), self.words.unk_token_id
        for choice in sample.choices:
            whole = self._tokens(text + choice)
            tokens = tuple(whole[len(before) :])
            if whole[: len(before)] != before or not tokens:
                raise NammTransferError(
                    f"choice {choice!r} is no continuation in tokens of a prompt ending {text[-16:]!r}"
                )
            if tokens in found:
                raise NammTransferError(f"choices {found[tokens]!r} and {choice!r} are the same to the tokenizer")
            if set(tokens) == {unknown}:
                raise NammTransferError(f"choice {choice!r} holds no word that the tokenizer knows")
            found[tokens] = choice
        return tuple((choice, tokens) for tokens, choice in found.items())

    def _reader(self, sample: VideoSample) -> FrameReader:
        if isinstance(sample.video, np.ndarray):
            return ArrayReader(sample.video)
        return open_video(sample.video, self.backend)

    def _fingerprint(self, sample: VideoSample) -> str:
        """A name made of everything that a video's tokens depend on."""
        path = Path(sample.video).resolve()  # type: ignore[arg-type]
        if not path.is_file():
            return "missing"
        stat = path.stat()
        parts = (
            path, stat.st_size, stat.st_mtime_ns, sample.frames, sample.sampling, sample.duration,
            self.backend, self.model.name_or_path, self.dtype,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
