"""Does a memory that forgets still understand a video? A video-language model answers questions, policy against policy.

    accelerate launch evals/video.py
    accelerate launch evals/video.py --frames 16 64 256 --films 12
    accelerate launch evals/video.py --streaming --frames 64 256 --films 8
    accelerate launch evals/video.py --model llava-hf/LLaVA-NeXT-Video-7B-hf --benchmark mlvu --data-root MLVU \\
        --frames 32 --update-interval 512 --dtype bfloat16
    accelerate launch evals/video.py --model Qwen/Qwen3-VL-8B-Instruct --benchmark mlvu --data-root MLVU \\
        --fps 1 --frames 256 --update-interval 512 --dtype bfloat16

By default the shipped small model watches generated films (real H.264 files, written on first use). Every policy gets
the same questions, so that differences are paired; questions about one video form a cluster. The score of a question is
100 or 0: right or wrong. An answer that cannot be understood is wrong and is counted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from namm_transfer import NAMM, EvictionPolicy, NammTransferError
from namm_transfer.adapters.context import ContextCaches
from namm_transfer.adapters.registry import find_adapter
from namm_transfer.adapters.video.load import load_video_model
from namm_transfer.adapters.video.sample import EncodedVideo, VideoSample
from namm_transfer.adapters.video.sampling import some_of
from namm_transfer.adapters.video_language import VideoLanguageAdapter
from namm_transfer.evals.harness import Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.agreement import sketch
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.options import ContextOptions
from namm_transfer.evals.report.samples import choose, in_turns
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.video.generated import GENERATED, load_generated
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.questions import VideoQuestion
from namm_transfer.evals.tasks.video.registry import known
from namm_transfer.evals.tasks.video.streaming import CLIP, Watcher, by_film, positions_for
from namm_transfer.evals.tasks.video.thumbnails import most_and_least, write_thumbnails
from namm_transfer.files import asset, safe_name

ANSWER_TOKENS = 8
"""Positions kept free behind a prompt for the answer."""
WRITTEN_TOKENS = 32
"""Most tokens of an answer that is generated as a letter: room for a sentence around it. Words get what they need."""
BLACK = np.zeros((1, 64, 64, 3), dtype=np.uint8)


@dataclass
class Options(ContextOptions):
    """Answer multiple-choice questions about videos under each policy."""

    model: str | None = None
    """Folder or hub id of a video-language model: LLaVA-NeXT-Video, Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision, SmolVLM2,
    InternVL3 and others of their kind; the small LLaVA-NeXT-Video that is shipped for the benchmark by default."""
    adapter: str = "auto"
    """Adapter class that loads the model and encodes its prompts. auto is this package's; another installed package may
    declare more by name, as entry points of the group namm_transfer.adapters."""
    benchmark: str = "generated"
    """"generated", "generated-v2" (films of which a memory must forget nothing), the name of a benchmark (mlvu,
    longvideobench, longvideobench-frames, videomme, egoschema, streamingbench, ovobench, or one of another package), or
    a .json file of your own (a list of objects with video, question, candidates, answer)."""
    data_root: Path | None = None
    """The benchmark's folder as it is downloaded, see docs/video.md; for a JSON file, the folder of its videos (by
    default the file's own); for generated films, where to write them (by default a cache folder)."""
    films: tuple[int, ...] = (24,)
    """Generated films of every length, each asked one question of every type; or so many for each of --frames."""
    frames: tuple[int, ...] = (64,)
    """Frames sampled uniformly from a video; with several numbers everything is asked at each. A generated film lasts
    as many seconds."""
    fps: float | None = None
    """Frames a second, chosen by the rule of the model's own processor in the place of the benchmark's; --frames is
    then the largest number."""
    pixels: int | None = None
    """Pixels of a frame at most, for models that take frames of any size (Qwen's); by default the processor's own."""
    show: str | None = None
    """Show some of the sampled frames alone: last:N, or even:N, evenly spaced ones. With --policy full these are the
    baselines that a compressed cache has to beat at as many tokens: few frames, chosen before the model reads any."""
    blind: bool = False
    """Show black frames instead of the videos: what the questions give away on their own."""
    answer: Literal["loglik", "generate"] = "loglik"
    """Take the most probable option, or read the option from generated words."""
    streaming: bool = False
    """Watch each film once, --fps frames a second (1 by default), and answer each question at its time (`asked_at`)
    from the cache as it is then: the policy evicts without knowing what will be asked, and no question stays in the
    cache. --frames is then the length of generated films in seconds, and nothing else."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the weights; "auto" takes what they were saved in."""
    device_map: str | None = None
    """Spread the model over devices as accelerate does ("auto"); by default it goes to one device."""
    backend: Literal["decord", "pyav"] = "decord"
    """Library that decodes the video files."""
    update_interval: int = 32
    """The policy acts each time a prompt has grown by this many tokens (8 frames of the shipped model)."""
    out: Path = Path("runs/video")
    """Folder of the records and of report.json, report.md and report.html."""


def questions(options: Options) -> list[VideoQuestion]:
    """Load the benchmark's questions at each number of frames; these take turns, so that --limit cuts all alike."""
    films = options.films * len(options.frames) if len(options.films) == 1 else options.films
    if len(films) != len(options.frames):
        raise NammTransferError(
            f"--films {options.films} for --frames {options.frames}: expected one number, or as many"
        )
    if min(*films, *options.frames) < 1:
        raise NammTransferError(f"--films {options.films} --frames {options.frames}: expected positive numbers")
    if options.fps is not None and not 0 < options.fps < float("inf"):
        raise NammTransferError(f"--fps {options.fps}: expected a positive number")
    some_of(np.arange(1), options.show)  # a misspelt value should not wait for the first film
    if options.streaming and (options.query_agnostic or options.blind):
        raise NammTransferError("--streaming is a protocol of its own: expected neither --query-agnostic nor --blind")
    several = len(options.frames) > 1
    by_frames = []
    for count, frames in zip(films, options.frames, strict=True):
        by_frames.append(
            [
                replace(
                    question,
                    id=f"{question.id}@{frames}" if several else question.id,
                    frames=min(frames, question.frames or frames),
                    groups=(*question.groups, *([f"{frames} frames"] if several else [])),
                )
                for question in load_questions(options, count, frames)
            ]
        )
    return in_turns(by_frames)


def load_questions(options: Options, films: int, frames: int) -> list[VideoQuestion]:
    """Load the benchmark's questions; where it has several tasks, these take turns."""
    if options.benchmark in GENERATED:
        version, _ = GENERATED[options.benchmark]
        if options.streaming and version != 1:
            raise NammTransferError(
                f"--streaming: {options.benchmark} has no questions with a time; expected generated"
            )
        return load_generated(films, frames, folder=options.data_root, version=version, streaming=options.streaming)
    benchmark = known(options.benchmark)
    if benchmark is None:
        return load_json(Path(options.benchmark), options.data_root)
    if options.data_root is None:
        needed = f"its folder, with {' and '.join(benchmark.annotations)} in it"
        raise NammTransferError(f"--benchmark {options.benchmark} needs --data-root: {needed}")
    tasks: dict[str, list[VideoQuestion]] = {}
    for question in benchmark.load(options.data_root):
        tasks.setdefault(question.kind, []).append(question)
    return in_turns(tasks.values())


def as_sample(options: Options, question: VideoQuestion) -> VideoSample:
    """Make the sample that the adapter takes; `NammTransferError` if it names files outside its folder."""
    return VideoSample(
        BLACK if options.blind else question.video,
        question.prompt,
        question.lead,
        question.choices,
        question.options if question.by_letter else (),
        question.frames or options.frames[0],
        "uniform" if options.blind else question.sampling,
        question.subtitles.read() if question.subtitles else (),
        question.duration,
        None if options.blind else options.fps,
        options.pixels,
        None if options.blind else question.span,
        question.frame_times,
        options.show,
    )


def check_choices(adapter: VideoLanguageAdapter, asked: Sequence[VideoQuestion]) -> None:
    """Raise `NammTransferError`, naming the question, if the model cannot tell the options of one apart."""
    for question in asked:
        try:
            adapter.choices_of(VideoSample(BLACK, question.prompt, question.lead, question.choices))
        except NammTransferError as error:
            raise NammTransferError(f"question {question.id!r}: {error}") from None


def load(options: Options, device: torch.device) -> tuple[VideoLanguageAdapter, str]:
    """Load the model; return its adapter and the folder or hub id that it came from."""
    _, shipped = GENERATED.get(options.benchmark, GENERATED["generated"])
    source = options.model or str(asset(shipped))
    adapter = load_video_model(
        source,
        adapter=find_adapter(options.adapter, VideoLanguageAdapter),
        feature_folder=options.out / "features",
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        device=None if options.device_map else device,
        device_map=options.device_map,
        backend=options.backend,
    )
    adapter.resolution(options.pixels, 1)  # refuses --pixels before the first question
    return adapter, source


def evaluator(
    options: Options, adapter: VideoLanguageAdapter, shown: Set[str]
) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Make the function that answers one question under a policy.

    Of the samples in `shown` it also writes thumbnails of the frames that a NAMM kept most and least of.
    """
    contexts, watcher = (
        ContextCaches(adapter, options.context_cache),
        Watcher(adapter, options.fps or 1, options.pixels),
    )

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        question: VideoQuestion = sample.payload
        if question.flaw:
            raise NammTransferError(question.flaw)
        asked = as_sample(options, question)
        choices = adapter.choices_of(asked)
        limit = WRITTEN_TOKENS if question.by_letter else max(len(tokens) for _, tokens in choices)
        room = limit if options.answer == "generate" else ANSWER_TOKENS
        if options.streaming:
            encoded, cache, logits = watcher.read(asked, question.asked_at, policy, room)
        else:
            encoded = adapter.encode(asked)
            make_room(adapter, encoded, room, options.query_agnostic)
            cache = contexts.read(encoded, policy) if options.query_agnostic else adapter.memory(policy)
            logits = adapter.prefill(encoded, cache)
        memory, kept, held = cache.report(), adapter.kept(cache, encoded), sketch(cache)
        if isinstance(policy, NAMM) and sample.id in shown and not options.streaming:
            numbers = most_and_least(kept["frames"])
            folder = options.out / "thumbnails" / safe_name(sample.id)
            write_thumbnails(folder, numbers, adapter.pictures(asked, numbers))
        if options.answer == "generate":
            answer = adapter.generate(encoded, cache, logits, limit)
        else:
            answer = adapter.choose(encoded, cache, logits)
        return [
            Outcome(
                score=100.0 * (answer.choice == question.answer),
                memory=memory.row(0),
                answer=answer.text if answer.choice is None else question.options[answer.choice],
                unparsed=answer.choice is None,
                details={
                    "video": question.name,
                    "question": question.prompt,
                    "frames": encoded.frames,
                    "groups": list(question.groups),
                    "options": list(question.options),
                    "chosen": answer.choice,
                    "right": question.answer,
                    "logprobs": [round(value, 5) for value in answer.logprobs],
                    "duration": question.duration,
                    **({} if question.asked_at is None else {"asked_at": question.asked_at}),
                    "bytes": memory.bytes,
                    **encoded.facts,
                    **({"span": list(question.span)} if question.span else {}),
                    **({"extra": dict(question.extra)} if question.extra else {}),
                },
                arrays=kept,
                next_token=logits,
                held=held,
            )
        ]

    return evaluate


def make_room(adapter: VideoLanguageAdapter, encoded: EncodedVideo, room: int, query_agnostic: bool) -> None:
    """Give a prompt the positions that it needs alone, so that no other sample has a say in its answer.

    Those of a video that is read before its questions are known depend on the video alone.
    """
    needed = encoded.positions_needed + room
    if query_agnostic:
        film = needed - room - encoded.length + encoded.prefix
        ready = positions_for(film, adapter.trained_positions)
        if needed > ready:
            raise NammTransferError(
                f"question and answer take {needed - film} positions; --query-agnostic has {ready - film} behind the "
                "video: sample fewer frames"
            )
        needed = ready
    adapter.extend_positions(needed)


def absent(options: Options, asked: Sequence[VideoQuestion]) -> str:
    """Name the parts of the benchmark's official score that no question belongs to; an empty text if there are none."""
    benchmark = known(options.benchmark)
    there = {name for question in asked for name in (question.kind, *question.groups)}
    lost = [name for name in benchmark.headline["categories"] if name not in there] if benchmark else []
    if not benchmark or not lost:
        return ""
    named = ", ".join(f"{name} ({benchmark.files[name]})" if name in benchmark.files else name for name in lost)
    return f"{benchmark.name}: no question of {named}; the official score is over the rest"


def described(
    options: Options, adapter: VideoLanguageAdapter, source: str, asked: Sequence[VideoQuestion]
) -> dict[str, Any]:
    """Describe this run for the report; part of its identity."""
    benchmark, text = known(options.benchmark), adapter.model.config.get_text_config()
    files = [f"{options.data_root}/{name}" for name in benchmark.annotations] if benchmark else [options.benchmark]
    return {
        "model": source,
        "data": files[0] if len(files) == 1 else files,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": "accuracy, %",
        "chance": float(np.mean([100 / len(question.options) for question in asked])),
        "world": "films drawn by this package, test split" if options.benchmark in GENERATED else None,
        "tokens_per_frame": adapter.tokens_per_frame,
        "positions": text.max_position_embeddings,
        "rope": dict(text.rope_parameters or {}),
        "cache_size": "tokens held over tokens seen when the first answer token is produced",
        "prompt": asked[0].prompt,
        **({"streaming": f"{options.fps or 1} frames a second, in clips of {CLIP}"} if options.streaming else {}),
        **({"headline": dict(benchmark.headline)} if benchmark else {}),
    }


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, watch, answer, report."""
    options = parse(Options, arguments)
    options.check_context()
    find_adapter(options.adapter, VideoLanguageAdapter)  # a misspelt name should not wait for the films
    accelerator = start(options)
    with accelerator.main_process_first():  # which writes the films that the others then find
        asked = questions(options)[: options.limit]
        asked = by_film(asked, streaming=options.streaming, query_agnostic=options.query_agnostic)
    if not asked:
        raise NammTransferError(f"benchmark {options.benchmark!r} holds no questions, or --limit leaves none")
    if accelerator.is_main_process and (lost := absent(options, asked)):
        print(lost)
    samples = [Sample(q.id, q.kind, q, cluster=q.cluster, prompt=f"{q.prompt} {list(q.options)}") for q in asked]
    adapter, source = load(options, accelerator.device)
    check_choices(adapter, asked)
    report = run(
        options, task="video", samples=samples, description=described(options, adapter, source, asked),
        evaluate=evaluator(options, adapter, shown=set(choose((sample.id, sample.category) for sample in samples))),
    )  # fmt: skip
    if accelerator.is_main_process:
        shutil.rmtree(options.out / "features", ignore_errors=True)
    return report


if __name__ == "__main__":
    script(main)
