"""Does a memory that forgets still understand a video? LLaVA-NeXT-Video answering questions, policy against policy.

    accelerate launch evals/video.py
    accelerate launch evals/video.py --model llava-hf/LLaVA-NeXT-Video-7B-hf --benchmark mlvu --data-root MLVU \\
        --frames 32 --update-interval 512 --dtype bfloat16

By default the shipped small model watches generated films (real H.264 files, written on first use). Every policy gets
the same questions, so that differences are paired; questions about one video form a cluster. The score of a question is
100 or 0: right or wrong. An answer that cannot be understood is wrong and is counted.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter, VideoSample
from namm_transfer.evaluation import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.files import asset
from namm_transfer.report.schema import Report
from namm_transfer.video.benchmarks import VideoQuestion, load_generated, load_json, load_mlvu

ANSWER_TOKENS = 8
"""Most tokens of an answer that is generated as a letter: room to be misunderstood in. Words get what they need."""


@dataclass
class Options(EvalOptions):
    """Answer multiple-choice questions about videos under each policy."""

    model: str | None = None
    """Folder or hub id of a LLaVA-NeXT-Video; the shipped small one by default."""
    benchmark: str = "generated"
    """"generated", "mlvu", or a JSON file of your own (a list of objects with video, question, candidates, answer)."""
    data_root: Path | None = None
    """MLVU's folder, with json/ and video/ in it; for a JSON file, the folder of its videos (by default the
    file's own); for generated films, where to write them (by default a cache folder)."""
    films: int = 24
    """Generated films, each asked one question of every type."""
    frames: int = 64
    """Frames sampled uniformly from a video. A generated film lasts as many seconds."""
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
    """The benchmark's questions; several tasks take turns, so that --limit cuts all of them alike."""
    if options.benchmark == "generated":
        return load_generated(options.films, options.frames, folder=options.data_root)
    if options.benchmark != "mlvu":
        return load_json(Path(options.benchmark), options.data_root)
    if options.data_root is None:
        raise NammTransferError("--benchmark mlvu needs --data-root: MLVU's folder, with json/ and video/ in it")
    tasks: dict[str, list[VideoQuestion]] = {}
    for question in load_mlvu(options.data_root):
        tasks.setdefault(question.kind, []).append(question)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*tasks.values()))
    return [question for question in turns if question is not None]


def as_sample(options: Options, question: VideoQuestion) -> VideoSample:
    """A question as the adapter takes it."""
    return VideoSample(question.video, question.prompt, question.lead, question.choices, options.frames)


def load(options: Options, asked: Sequence[VideoQuestion], device: torch.device) -> tuple[LlavaNextVideoAdapter, str]:
    """The model, with positions enough for the longest prompt, and where it came from."""
    source = options.model or str(asset("llava-next-video-small"))
    adapter = LlavaNextVideoAdapter.load(
        source,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        device=None if options.device_map else device,
        device_map=options.device_map,
        backend=options.backend,
        feature_folder=options.out / "features",
    )
    longest = max(adapter.prompt_length(as_sample(options, question)) for question in asked)
    adapter.extend_positions(longest + ANSWER_TOKENS)
    return adapter, source


def evaluator(
    options: Options, adapter: LlavaNextVideoAdapter
) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Answers one question under a policy."""

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        (sample,) = samples
        question: VideoQuestion = sample.payload
        encoded = adapter.encode(as_sample(options, question))
        cache = adapter.memory(policy)
        logits = adapter.prefill(encoded, cache)
        memory, kept = cache.report(), adapter.kept(cache, encoded)
        if options.answer == "generate":
            answer = adapter.generate(encoded, cache, logits, ANSWER_TOKENS if question.lead else None)
        else:
            answer = adapter.choose(encoded, cache, logits)
        return [
            Outcome(
                score=100.0 * (answer.choice == question.answer),
                memory=memory.row(0),
                answer=answer.text if answer.choice is None else question.options[answer.choice],
                unparsed=answer.choice is None,
                details={
                    "video": question.video.name,
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


def averages(report: Report) -> str:
    """Accuracy of each policy as MLVU reports it: M-Avg (mean over the question types) and micro, failures as wrong."""
    lines = []
    for policy in dict.fromkeys(record.policy for record in report.records):
        kinds: dict[str, list[float]] = {}
        for record in report.records:
            if record.policy == policy:
                kinds.setdefault(record.category, []).append(record.score or 0.0)
        macro = np.mean([np.mean(scores) for scores in kinds.values()])
        micro = np.mean(list(itertools.chain.from_iterable(kinds.values())))
        lines.append(f"{policy:40} M-Avg {macro:5.1f}   micro {micro:5.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, watch, answer, report."""
    options = parse(Options, arguments)
    accelerator = start(options)
    with accelerator.main_process_first():  # which writes the films that the others then find
        asked = questions(options)[: options.limit]
    if not asked:
        raise NammTransferError(f"benchmark {options.benchmark!r} holds no questions, or --limit leaves none")
    samples = [Sample(q.id, q.kind, q, cluster=f"{q.video.parent.name}/{q.video.name}") for q in asked]
    adapter, source = load(options, asked, accelerator.device)
    description: dict[str, Any] = {
        "model": source,
        "data": f"{options.data_root}/json" if options.benchmark == "mlvu" else options.benchmark,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": "accuracy, %",
        "chance": float(np.mean([100 / len(question.options) for question in asked])),
        "world": "films drawn by this package, test split" if options.benchmark == "generated" else None,
        "tokens_per_frame": adapter.tokens_per_frame,
        "rope": adapter.model.config.get_text_config().rope_parameters,
        "cache_size": "tokens held over tokens seen when the first answer token is produced",
        "prompt": asked[0].prompt,
    }
    report = run(
        options, task="video", samples=samples, evaluate=evaluator(options, adapter), description=description
    )  # fmt: skip
    if accelerator.is_main_process:
        shutil.rmtree(options.out / "features", ignore_errors=True)
        print(averages(report))
    return report


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
