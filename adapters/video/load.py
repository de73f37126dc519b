"""The adapter of any video-language model, by the type that its configuration states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.loading import read_model_type
from namm_transfer.adapters.video_language import VideoLanguageAdapter


def load_video_model(
    source: str,
    *,
    adapter: type[VideoLanguageAdapter] = VideoLanguageAdapter,
    feature_folder: Path | None = None,
    **options: Any,
) -> VideoLanguageAdapter:
    """Load a video-language model from a folder or a hub id.

    Args:
        adapter: class that loads it; by default the one of this package that fits the model.
        feature_folder: where LLaVA-NeXT-Video keeps the tokens of videos between calls; None keeps none.
        options: see `VideoLanguageAdapter.load`.

    Raises:
        NammTransferError: nothing to load there, or a model that cannot be served.
    """
    if adapter is VideoLanguageAdapter and read_model_type(source, adapter.kind) == "llava_next_video":
        return LlavaNextVideoAdapter.load(source, **options, feature_folder=feature_folder)
    return adapter.load(source, **options)
