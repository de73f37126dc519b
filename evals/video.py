"""Does a memory that forgets still understand a video? LLaVA-NeXT-Video answering questions, policy against policy.

    accelerate launch evals/video.py
    accelerate launch evals/video.py --frames 16 64 256 --films 12
    accelerate launch evals/video.py --model llava-hf/LLaVA-NeXT-Video-7B-hf --benchmark mlvu --data-root MLVU \\
        --frames 32 --update-interval 512 --dtype bfloat16

By default the shipped small model watches generated films (real H.264 files, written on first use). Every policy gets
the same questions, so that differences are paired; questions about one video form a cluster. The score of a question is
100 or 0: right or wrong. An answer that cannot be understood is wrong and is counted.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from namm_transfer import NAMM, EvictionPolicy, NammTransferError
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter, VideoSample
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.report.samples import choose
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.video.benchmarks import VideoQuestion, load_generated, load_json, load_mlvu
from namm_transfer.evals.tasks.video.longvideobench import load_longvideobench
from namm_transfer.evals.tasks.video.thumbnails import most_and_least, write_thumbnails
from namm_transfer.files import asset, safe_name

ANSWER_TOKENS = 8
"""Most tokens of an answer that is generated as a letter: room to be misunderstood in. Words get what they need."""
ANNOTATIONS = {"mlvu": "json", "longvideobench": "lvb_val.json"}
"""Benchmarks in a folder of their own -> where in it the questions are."""
BLACK = np.zeros((1, 64, 64, 3), dtype=np.uint8)


@dataclass
class Options(EvalOptions):
    """Answer multiple-choice questions about videos under each policy."""

    model: str | None = None
    """Folder or hub id of a LLaVA-NeXT-Video; the shipped small one by default."""
    benchmark: str = "generated"
    """"generated", "mlvu", "longvideobench", or a JSON file of your own (a list of objects with video, question,
    candidates, answer)."""
    data_root: Path | None = None
    """The folder of MLVU (json/ and video/ in it) or LongVideoBench (lvb_val.json, videos and subtitles as folders or
    as the tar files they come in); for a JSON file, the folder of its videos (by default the file's own); for generated
    films, where to write them (by default a cache folder)."""
    films: tuple[int, ...] = (24,)
    """Generated films of every length, each asked one question of every type; or so many for each of --frames."""
    frames: tuple[int, ...] = (64,)
    """Frames sampled uniformly from a video; with several numbers everything is asked at each. A generated film lasts
    as many seconds."""
    blind: bool = False
    """Show black frames instead of the videos: what the questions give away on their own."""
    answer: Literal["loglik", "generate"] = "loglik"
    """Take the most probable option, or read the option from generated words."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; "auto" takes what they were saved in."""
    device_map: str | None = None
    """Spread the model over devices as accelerate does ("auto"); by default it goes to one device."""
    backend: Literal["decord", "pyav"] = "decord"
    """What decodes the video files."""
    update_interval: int = 32
    """The policy acts each time a prompt has grown by this many tokens (8 frames of the shipped model)."""
    out: Path = Path("runs/video")
    """Folder of the records and of report.json, report.md and report.html."""


def questions(options: Options) -> list[VideoQuestion]:
    """The benchmark's questions at each number of frames; these take turns, so that --limit cuts all of them alike."""
    films = options.films * len(options.frames) if len(options.films) == 1 else options.films
    if len(films) != len(options.frames):
        raise NammTransferError(
            f"--films {options.films} for --frames {options.frames}: expected one number, or as many"
        )
    if min(*films, *options.frames) < 1:
        raise NammTransferError(f"--films {options.films} --frames {options.frames}: expected positive numbers")
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
    """The benchmark's questions; where it has several tasks, these take turns."""
    if options.benchmark == "generated":
        return load_generated(films, frames, folder=options.data_root)
    if options.benchmark not in ANNOTATIONS:
        return load_json(Path(options.benchmark), options.data_root)
    if options.data_root is None:
        needed = f"its folder, with {ANNOTATIONS[options.benchmark]} in it"
        raise NammTransferError(f"--benchmark {options.benchmark} needs --data-root: {needed}")
    load = load_mlvu if options.benchmark == "mlvu" else load_longvideobench
    tasks: dict[str, list[VideoQuestion]] = {}
    for question in load(options.data_root):
        tasks.setdefault(question.kind, []).append(question)
    return in_turns(tasks.values())


def in_turns(lists: Iterable[Sequence[VideoQuestion]]) -> list[VideoQuestion]:
    """The first of each list, the second of each, and so on."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return [question for question in turns if question is not None]


def as_sample(options: Options, question: VideoQuestion) -> VideoSample:
    """A question as the adapter takes it; `NammTransferError` if it names files outside its folder."""
    return VideoSample(
        BLACK if options.blind else question.video,
        question.prompt,
        question.lead,
        question.choices,
        question.frames or options.frames[0],
        question.sampling,
        question.subtitles.read() if question.subtitles else (),
    )


def load(options: Options, device: torch.device) -> tuple[LlavaNextVideoAdapter, str]:
    """The model, and where it came from."""
    source = options.model or str(asset("llava-next-video-small"))
    adapter = LlavaNextVideoAdapter.load(
        source,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        device=None if options.device_map else device,
        device_map=options.device_map,
        backend=options.backend,
        feature_folder=options.out / "features",
    )
    return adapter, source


def evaluator(
    options: Options, adapter: LlavaNextVideoAdapter, shown: Set[str]
) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Answers one question under a policy; of samples with an id in `shown`, draws what NAMM kept most and least of."""

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        question: VideoQuestion = sample.payload
        asked = as_sample(options, question)
        encoded = adapter.encode(asked)
        # Each prompt gets the positions it needs alone, so that no other sample has a say in its answer.
        adapter.extend_positions(encoded.embeds.shape[1] + ANSWER_TOKENS)
        cache = adapter.memory(policy)
        logits = adapter.prefill(encoded, cache)
        memory, kept = cache.report(), adapter.kept(cache, encoded)
        if isinstance(policy, NAMM) and sample.id in shown:
            numbers = most_and_least(kept["frames"])
            folder = options.out / "thumbnails" / safe_name(sample.id)
            write_thumbnails(folder, numbers, adapter.pictures(asked, numbers))
        if options.answer == "generate":
            answer = adapter.generate(encoded, cache, logits, ANSWER_TOKENS if question.by_letter else None)
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
                    "bytes": memory.bytes,
                },
                arrays=kept,
            )
        ]

    return evaluate


def averages(report: Report, asked: Sequence[VideoQuestion]) -> str:
    """Accuracy of each policy in the benchmarks' official forms, failures as wrong.

    MLVU's M-Avg is the mean over the question types, micro the mean over the questions; LongVideoBench reports the
    latter, overall and by duration group.
    """
    by_id = {question.id: question for question in asked}
    lines = []
    for policy in dict.fromkeys(record.policy for record in report.records):
        kinds: dict[str, list[float]] = {}
        groups: dict[str, list[float]] = {}
        for record in report.records:
            if record.policy == policy and record.task == "video":
                kinds.setdefault(record.category, []).append(record.score or 0.0)
                for group in by_id[record.id].groups:
                    groups.setdefault(group, []).append(record.score or 0.0)
        macro = np.mean([np.mean(scores) for scores in kinds.values()])
        micro = np.mean(list(itertools.chain.from_iterable(kinds.values())))
        lines.append(f"{policy:40} M-Avg {macro:5.1f}   micro {micro:5.1f}")
        lines += [f"    {group:36} {np.mean(scores):11.1f}   of {len(scores)}" for group, scores in groups.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, watch, answer, report."""
    options = parse(Options, arguments)
    accelerator = start(options)
    with accelerator.main_process_first():  # which writes the films that the others then find
        asked = questions(options)[: options.limit]
    if not asked:
        raise NammTransferError(f"benchmark {options.benchmark!r} holds no questions, or --limit leaves none")
    samples = [
        Sample(q.id, q.kind, q, cluster=f"{q.root.name}/{q.name}", prompt=f"{q.prompt} {list(q.options)}")
        for q in asked
    ]
    adapter, source = load(options, accelerator.device)
    annotations = ANNOTATIONS.get(options.benchmark)
    text = adapter.model.config.get_text_config()
    description: dict[str, Any] = {
        "model": source,
        "data": f"{options.data_root}/{annotations}" if annotations else options.benchmark,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": "accuracy, %",
        "chance": float(np.mean([100 / len(question.options) for question in asked])),
        "world": "films drawn by this package, test split" if options.benchmark == "generated" else None,
        "tokens_per_frame": adapter.tokens_per_frame,
        "positions": text.max_position_embeddings,
        "rope": dict(text.rope_parameters),
        "cache_size": "tokens held over tokens seen when the first answer token is produced",
        "prompt": asked[0].prompt,
    }
    report = run(
        options, task="video", samples=samples, description=description,
        evaluate=evaluator(options, adapter, shown=set(choose((sample.id, sample.category) for sample in samples))),
    )  # fmt: skip
    if accelerator.is_main_process:
        shutil.rmtree(options.out / "features", ignore_errors=True)
        print(averages(report, asked))
    return report


if __name__ == "__main__":
    script(main)
