"""LLaVA-NeXT-Video (Zhang et al., 2024) in Hugging Face's format: questions about a video, answered from a memory.

Frames are decoded and encoded a few at a time, so what grows with the film is its tokens alone. The prompt's embeddings
are then put together as the model's own forward does it, and the text model reads them through the memory in one call.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import FrameReader, facts_of, in_batches
from namm_transfer.adapters.video.reading import identity
from namm_transfer.adapters.video.sample import EncodedVideo, VideoSample
from namm_transfer.adapters.video.subtitles import interleave
from namm_transfer.adapters.video_language import FRAMES_AT_ONCE, VideoLanguageAdapter
from namm_transfer.files import write_atomic


class LlavaNextVideoAdapter(VideoLanguageAdapter):
    """Answers questions about videos with any `LlavaNextVideoForConditionalGeneration`."""

    kind = "LLaVA-NeXT-Video"
    model_class = LlavaNextVideoForConditionalGeneration
    model: LlavaNextVideoForConditionalGeneration
    feature_folder: Path | None = None
    """Folder in which the tokens of videos are kept between calls of `encode`; None keeps none"""

    def __init__(
        self,
        model: LlavaNextVideoForConditionalGeneration,
        processor: LlavaNextVideoProcessor,
        *,
        backend: str = "decord",
    ) -> None:
        super().__init__(model, processor, backend=backend)
        text = model.config.get_text_config()
        self._trained = text.max_position_embeddings, dict(text.rope_parameters)

    @classmethod
    def load(cls, source: str | Path, *, feature_folder: Path | None = None, **options: Any) -> Self:
        """See `VideoLanguageAdapter.load`; the tokens of videos are kept in `feature_folder`, if it is given."""
        adapter = super().load(source, **options)
        adapter.feature_folder = feature_folder
        return adapter

    @classmethod
    def check(cls, model: Any, processor: Any, source: str) -> None:
        """Raise `NammTransferError` unless the processor is a LLaVA-NeXT-Video's."""
        if not isinstance(processor, LlavaNextVideoProcessor) or processor.chat_template is None:
            raise NammTransferError(f"{source!r}: expected a LlavaNextVideoProcessor with a chat template")

    @property
    def tokens_per_frame(self) -> int:
        """Number of tokens that the patches of one frame are pooled to."""
        vision: Any = self.model.config.vision_config
        return (vision.image_size // vision.patch_size // self.model.config.spatial_pool_stride) ** 2

    @property
    def trained_positions(self) -> int:
        """Positions that the text model was trained for, whatever they were extended to since."""
        return int(self._trained[0])

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
        features, times, facts = self.video_tokens(sample)
        token = self.processor.video_token
        text = self._text(sample)
        pictures = [token * features.shape[1]] * features.shape[0]
        said = [replace(line, text=self.harmless(line.text)) for line in sample.subtitles]
        ids = self._tokens(text.replace(token, interleave(pictures, times.tolist(), said), 1))
        read = self._embedded(ids, features)
        return replace(read, choices=self.choices_of(sample), options=sample.options, facts=facts)

    @torch.inference_mode()
    def encode_clip(self, piece: str, reader: FrameReader, pixels: int | None = None) -> EncodedVideo:
        """Encode all frames of a reader; see `VideoLanguageAdapter.encode_clip`."""
        features = self._features(reader, np.arange(reader.count))
        return self._embedded([self.processor.video_token_id] * features[..., 0].numel(), features)

    def around_video(self, sample: VideoSample) -> tuple[list[int], str, list[int]]:
        """Split a sample's prompt at its video; all clips of a stream are one video to this model."""
        ids = self._tokens(self._text(replace(sample, video="")))
        place = ids.index(self.processor.video_token_id)
        return ids[:place], self.processor.video_token, ids[place + 1 :]

    def _embedded(self, ids: list[int], features: Tensor) -> EncodedVideo:
        """Put the tokens of frames, (frames, tokens a frame, width), into a prompt."""
        input_ids = torch.tensor([ids], device=self.device)
        is_video = input_ids == self.processor.video_token_id
        embeds = self.model.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter(is_video[..., None], features.to(embeds.device, embeds.dtype))
        frame_of = np.full(len(ids), -1, dtype=np.int64)
        frame_of[is_video[0].cpu().numpy()] = np.repeat(np.arange(features.shape[0]), features.shape[1])
        prefix = int(np.flatnonzero(frame_of >= 0)[-1]) + 1
        return EncodedVideo({"inputs_embeds": embeds}, frame_of, np.arange(features.shape[0]), prefix, (), ())

    @torch.inference_mode()
    def video_tokens(self, sample: VideoSample) -> tuple[Tensor, Tensor, dict[str, str]]:
        """Decode the sampled frames and embed them, or load what an earlier call left in `feature_folder`.

        Returns:
            Projected tokens (frames, tokens a frame, width), times of the frames (frames,) in seconds, and `facts_of`
            the reading.
        """
        if isinstance(sample.video, tuple):
            raise NammTransferError(f"{len(sample.video)} videos in one prompt: {self.kind} is served with one")
        self.resolution(sample.pixels, sample.frames)  # refuses pixels: its frames have a fixed size
        file = None
        if self.feature_folder is not None and not isinstance(sample.video, np.ndarray):
            file = self.feature_folder / f"{self._fingerprint(sample)}.safetensors"
            try:
                found = load_tensors(file.read_bytes())
                return found["tokens"], found["times"], json.loads(bytes(found["facts"].tolist()))
            except (FileNotFoundError, SafetensorError, KeyError, ValueError):
                pass
        (reader,) = self.readers(sample)
        indices = self._chosen(reader, sample)
        tokens = self._features(reader, indices)
        times = torch.from_numpy(reader.times[indices])
        facts = facts_of([reader], sample.duration)
        if file is not None:
            text = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
            write_atomic(file, save_tensors({"tokens": tokens, "times": times, "facts": text}))
        return tokens, times, facts

    def _features(self, reader: FrameReader, indices: np.ndarray) -> Tensor:
        """Decode and embed frames a few at a time: (frames, tokens a frame, width) on the CPU."""
        parts = []
        for frames in in_batches(reader, indices, FRAMES_AT_ONCE):
            pixels = self.processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
            features = self.model.get_video_features(pixels.to(self.device, self.dtype)).pooler_output
            parts.append(features[0].unflatten(0, (len(frames), -1)))
        return torch.cat(parts).cpu().contiguous()

    def _fingerprint(self, sample: VideoSample) -> str:
        """Return a name made of everything that a video's tokens depend on."""
        parts = (
            identity(Path(sample.video).resolve()),  # type: ignore[arg-type]
            sample.frames, sample.sampling, sample.duration, sample.fps, sample.span, sample.frame_times,
            sample.shown, self.backend, self.model.name_or_path, self.dtype,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
