"""Ask a video-language model a question about your own film, and see what the policy kept of it.

    namm-transfer ask film.mp4 "What does she pick up?" --model Qwen/Qwen2.5-VL-7B-Instruct
    namm-transfer ask film.mp4 "What does she pick up?" --options "a cup" "a book" --model Qwen/Qwen2.5-VL-7B-Instruct
    namm-transfer ask frames/ "What happens?" --frame-rate 2 --start 30 --end 60 --model Qwen/Qwen3-VL-8B-Instruct

Prints the answer and the share of the cache that was kept, and writes one HTML page that plays what was kept of each
frame, by layer and KV head, while the film was read. Without --model the small model that comes with this package
answers: it was made for generated films and knows nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from tyro.conf import Positional

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.loading import hub_options
from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.clip import check_span
from namm_transfer.adapters.video.load import load_video_model
from namm_transfer.adapters.video.sample import EncodedVideo, VideoSample
from namm_transfer.adapters.video_language import VideoLanguageAdapter
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.lineup import Entry, alone
from namm_transfer.evals.harness.single import check_page, described, finish, kept_share, parse_arguments, recorded, say
from namm_transfer.files import asset, safe_name

SMALL = "llava-next-video-small"
SMALL_NOTE = (
    "The small model of this package answered. It was made for generated films of painted scenes and cannot "
    "understand anything else; name a real one with --model."
)
OPTION_TOKENS = 8
"""Positions kept free behind a prompt for an option."""
PICTURES = 1_500_000
"""Bytes that the pictures of a page may take together."""
LARGEST, SMALLEST = 12_000, 2_000
"""Bytes of one picture, at most and at least."""


@dataclass
class Options:
    """Ask a question about a film."""

    video: Positional[Path]
    """A video file, or a folder of frames (pictures in the order of their names)."""
    question: Positional[str]
    """The question."""
    options: tuple[str, ...] = ()
    """Possible answers, of which the model takes the most probable one; without them it answers freely."""
    model: str | None = None
    """Folder or hub id of a video-language model; the small one of this package by default."""
    policy: str = "namm"
    """The policy that decides what stays in the cache, such as namm, full or h2o:keep=0.5."""
    update_interval: int | None = None
    """The policy acts each time the prompt has grown by this many tokens; by default 512, with the small model 32."""
    frames: int = 64
    """Number of frames that the model sees, the middles of equal parts of the film; with --fps, the largest number."""
    fps: float | None = None
    """Frames a second that the model sees, chosen by the rule of its own processor."""
    pixels: int | None = None
    """Most pixels of a frame, for models that take frames of any size (Qwen's)."""
    start: float | None = None
    """Second of the film at which the part to be shown begins."""
    end: float | None = None
    """Second of the film at which that part ends."""
    frame_rate: float = 1.0
    """Frames a second in a folder of frames."""
    answer_tokens: int | None = None
    """Most tokens of a free answer; by default 128, with the small model 1, since it answers in one word."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the weights; "auto" takes what they were saved in."""
    device_map: str | None = None
    """Spread the model over devices as accelerate does ("auto"); by default it goes to one device."""
    backend: Literal["decord", "pyav"] = "decord"
    """Library that decodes the video file."""
    out: Path | None = None
    """The page that is written; by default runs/ask/NAME.html."""


def checked(options: Options) -> tuple[VideoSample, Entry, str, Path]:
    """Check the options before anything is loaded: (the question as a sample, the policy, the model, the page).

    Raises:
        NammTransferError: no such video or model, or a value that is refused.
    """
    for flag in ("frames", "fps", "pixels", "frame_rate", "answer_tokens", "update_interval"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < math.inf:
            raise NammTransferError(f"--{flag.replace('_', '-')} {value}: expected a positive number")
    if not options.video.exists():
        raise NammTransferError(f"{str(options.video)!r}: no such video file or folder of frames")
    if not options.question.strip() or len(options.options) == 1 or len(options.options) > 26:
        raise NammTransferError(
            f"question {options.question!r} with {len(options.options)} options: expected a question, and none or 2 to "
            "26 options"
        )
    page = check_page(options.out or Path("runs/ask") / f"{safe_name(options.video.resolve().stem)}.html")
    interval = options.update_interval or (32 if options.model is None else 512)
    entry = alone(policies.parse(options.policy), interval)
    source = options.model or str(asset(SMALL))
    hub_options(source, VideoLanguageAdapter.kind)  # a model that cannot be had is said at once
    return as_sample(options), entry, source, page


def as_sample(options: Options) -> VideoSample:
    """The question as the adapter takes it: answered freely, by letter, or by the small model in its words."""
    prompt, lead, choices = options.question, "", tuple[str, ...]()
    if options.options and options.model is None:
        choices = tuple(f" {option}" for option in options.options)
    elif options.options:
        prompt, lead = prompts.question(options.question, options.options), prompts.LEAD
        choices = prompts.letters(options.options)
    return VideoSample(
        options.video,
        prompt,
        lead,
        choices,
        frames=options.frames,
        fps=options.fps,
        pixels=options.pixels,
        span=check_span(options.start, options.end),
        frame_times=options.frame_rate,
    )


def answer_tokens(options: Options) -> int:
    """Most tokens of the answer: of an option, or of a free answer."""
    return OPTION_TOKENS if options.options else options.answer_tokens or (1 if options.model is None else 128)


def answered(
    options: Options, adapter: VideoLanguageAdapter, encoded: EncodedVideo, cache: Any, logits: torch.Tensor
) -> str:
    """The model's answer in words, with the probability of each option if there are some."""
    if not options.options:
        return adapter.decode_greedily(cache, logits, answer_tokens(options), encoded.shift).strip()
    answer = adapter.choose(encoded, cache, logits)
    shares = torch.tensor(answer.logprobs).softmax(0).tolist()
    listed = ", ".join(f"{option} {share:.0%}" for option, share in zip(options.options, shares, strict=True))
    return f"{options.options[answer.choice or 0]} (of the options: {listed})"


def pictures(adapter: VideoLanguageAdapter, sample: VideoSample, count: int) -> list[bytes]:
    """Small JPEG pictures of the frames that the model saw; the smaller the more there are."""
    from namm_transfer.evals.tasks.video.thumbnails import jpeg

    limit = min(LARGEST, max(SMALLEST, PICTURES // max(count, 1)))
    side = 256 if limit > 8_000 else 160 if limit > 4_000 else 112
    shown = adapter.pictures(sample, range(count))
    bar = tqdm(shown, total=count, desc="pictures", unit="frame", disable=None, leave=False)
    return [jpeg(picture, side, limit) for picture in bar]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the film, answer, write the page."""
    options: Options = parse_arguments(Options, "ask", arguments)
    sample, entry, source, page = checked(options)
    say(f"loading {source}")
    adapter = load_video_model(
        source,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        device_map=options.device_map,
        backend=options.backend,
    )
    say(f"watching {options.video}")
    encoded = adapter.encode(sample)
    adapter.extend_positions(encoded.positions_needed + answer_tokens(options))
    cache = adapter.memory(entry.policy)
    with recorded(cache, encoded.length) as history:
        logits = adapter.prefill(encoded, cache)
    report, steps = cache.report(), history.read()  # when the first token of the answer is produced
    say("answering")
    answer = answered(options, adapter, encoded, cache, logits)

    from namm_transfer.evals.report.html import data_uri
    from namm_transfer.evals.report.kept import Frame, Kept

    small = pictures(adapter, sample, encoded.frames)
    frames = [Frame(data_uri("jpeg", data), second) for data, second in zip(small, adapter.times(sample), strict=True)]
    name = f"{SMALL}, a small model made for generated films" if options.model is None else source
    facts = described(report, name, entry.spec.text, entry.policy.update_interval)
    finish(
        Kept(
            title=f"What the cache kept of {options.video.name}",
            question=options.question,
            answer=answer,
            kept=kept_share(report),
            facts=[*facts, ("video", f"{options.video}, {encoded.frames} frames"), *encoded.facts.items()],
            history=steps,
            unit_of=encoded.frame_of,
            frames=frames,
            shares_of=encoded.shares,
            note=SMALL_NOTE if options.model is None else "",
        ),
        page,
    )


if __name__ == "__main__":
    script(main)
