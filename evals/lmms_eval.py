"""Score a video-language model whose key/value cache a policy keeps small with the tasks of lmms-eval.

    lmms-eval --model namm --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,policy=h2o:keep=0.5,update_interval=512 \\
        --tasks videomme --output_path runs/lmms-eval --log_samples

lmms-eval finds the chat model `namm` through an entry point (`lmms_manifest`). A prompt is read in one call that evicts
on the way, and answered greedily. lmms-eval keeps nothing that a model says of itself; so the line of each document in
its samples file holds, among the `token_counts`, the policy, where it ran, and what the memory did.

An error is raised and ends the run. It never becomes an empty answer, which would count as a wrong one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from namm_transfer import NammTransferError
from namm_transfer.adapters.base import default_device
from namm_transfer.adapters.video.load import load_video_model
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.evals.harness.one_policy import facts, one_policy
from namm_transfer.evals.video import make_room
from namm_transfer.files import asset

SHIPPED = "llava-next-video-small"
NEW_TOKENS = 1024
"""Most tokens of an answer where the task does not say."""
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 0, "top_p": None, "top_k": None}
"""Arguments of generation that leave it greedy; at temperature 0, `top_p` and `top_k` change nothing."""


@dataclass
class Counts(TokenCounts):
    """The tokens of an answer and what the memory did, for the document's line in the samples file."""

    memory: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return lmms-eval's counts, and `namm_transfer`."""
        return {**super().to_dict(), "namm_transfer": self.memory}


class NammVideo(lmms):
    """A video-language model of transformers under a policy.

    Args:
        pretrained: folder or hub id; by default the small model that this package ships.
        policy: the policy, in the command line's notation.
        device: by default the accelerator if there is one, else the CPU.
        batch_size: 1.
        dtype: of the weights; "auto" takes what they were saved in.
        max_num_frames: frames sampled uniformly from a video; with `fps`, the largest number.
        fps: frames a second, chosen by the rule of the model's own processor.
        max_pixels: pixels of a frame at most, for models that take frames of any size.
        backend: reader of the video files, "decord" or "pyav".
        options: options of the policy.

    Raises:
        NammTransferError: an argument that is not known, no such policy, or a model that cannot be served exactly.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        policy: str = "full",
        device: str | None = None,
        batch_size: int | str = 1,
        dtype: str = "auto",
        max_num_frames: int = 64,
        fps: float | None = None,
        max_pixels: int | None = None,
        backend: str = "decord",
        **options: Any,
    ) -> None:
        super().__init__()
        self.entry = one_policy(str(policy), options)
        options.pop("max_batch_size", None)  # lmms-eval's own
        kind = None if dtype == "auto" else getattr(torch, str(dtype), dtype)
        if options or str(batch_size) != "1" or not isinstance(kind, torch.dtype | None):
            raise NammTransferError(
                f"model namm got batch_size={batch_size} dtype={dtype} {options}: expected batch_size=1, a dtype such "
                "as bfloat16, pretrained, max_num_frames, fps, max_pixels, backend, policy or the policy's own options"
            )
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device else default_device()
        if self._world_size > 1 and self.device.type != "cpu":
            self.device = self.accelerator.device
        self.adapter = load_video_model(
            pretrained or str(asset(SHIPPED)),
            dtype=kind,
            device=self.device,
            backend=backend,
        )
        self.adapter.resolution(max_pixels, 1)  # refuses max_pixels before the first question
        self.sampled: dict[str, Any] = {"frames": max_num_frames, "fps": fps, "pixels": max_pixels}
        self.facts: dict[str, Any] = {
            "model": pretrained or SHIPPED,
            "dtype": str(self.adapter.dtype).removeprefix("torch."),
            **facts(self.entry, self._world_size),
        }

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise: lmms-eval's chat models answer in words."""
        raise NammTransferError("model namm answers in words; expected a task of output_type generate_until")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer each request in words."""
        found = []
        for request in self._shown(requests):
            _, messages, options, document, task, split = request.args
            text, memory = self._answer(messages(self.task_dict[task][split][document]), options)
            found.append(GenerationResult(text, self._counts(text, [memory])))
        return self._noted(found)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the rounds of each request one after the other, each with a cache of its own."""
        found = []
        for request in self._shown(requests):
            _, messages, options, number, task, split = request.args
            document, answers, memories = self.task_dict[task][split][number], list[str](), list[dict[str, Any]]()
            asked, done, info = messages(document), False, None
            while not done:
                text, memory = self._answer(asked, options)
                answers.append(text)
                memories.append(memory)
                asked, done, _, info = messages(
                    document, round_idx=len(answers), previous_output=[*answers], previous_round_info=info
                )
            found.append(GenerationResult(answers, self._counts(" ".join(answers), memories)))
        return self._noted(found)

    def _shown(self, requests: list[Instance]) -> tqdm[Instance]:
        self.started = time.perf_counter()
        return tqdm(requests, desc=self.entry.spec.text, disable=self.rank != 0)

    def _answer(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The words that follow a prompt, and the memory when the first of them is produced."""
        limit, stops = generation(options)
        video, prompt = parts(messages)
        encoded = self.adapter.encode(VideoSample(video, prompt, lead="", choices=(), **self.sampled))
        make_room(self.adapter, encoded, limit, query_agnostic=False)
        cache = self.adapter.memory(self.entry.policy)
        logits = self.adapter.prefill(encoded, cache)
        row = cache.report().row(0)
        text = self.adapter.decode_greedily(cache, logits, limit, encoded.shift)
        files = video if isinstance(video, tuple) else (video,)
        memory = {
            "seen": row.seen,
            "updates": row.updates,
            "kept_share": row.kept_share,
            "videos": [Path(file).name for file in files],
        }
        return min((text.partition(stop)[0] for stop in stops), key=len, default=text), memory

    def _counts(self, text: str, memories: Sequence[dict[str, Any]]) -> Counts:
        """Several rounds as one: the longest, the fewest updates, the mean kept share, all videos."""
        memory = {
            "seen": max(memory["seen"] for memory in memories),
            "updates": min(memory["updates"] for memory in memories),
            "kept_share": fmean(memory["kept_share"] for memory in memories),
            "videos": list(dict.fromkeys(chain.from_iterable(memory["videos"] for memory in memories))),
        }
        words = len(self.adapter.words(text, add_special_tokens=False).input_ids)
        seen = sum(memory["seen"] for memory in memories)
        return Counts(input_tokens=seen, output_tokens=words, memory={**self.facts, "memory": memory})

    def _noted(self, found: list[GenerationResult]) -> list[GenerationResult]:
        """Give lmms-eval's results file the means over all requests: `throughput.avg_kept_share`, `avg_updates`."""
        counts = [result.token_counts for result in found]
        tokens, seconds = sum(one.output_tokens for one in counts), time.perf_counter() - self.started
        memories = [one.memory["memory"] for one in counts]
        means = {name: fmean(memory[name] for memory in memories) for name in ("kept_share", "updates") if memories}
        log_metrics(seconds, tokens, tokens / seconds, additional_metrics=means)
        logging.getLogger(__name__).info("under %s: %s", self.entry.spec.text, means)
        return found


def parts(messages: list[dict[str, Any]]) -> tuple[Any, str]:
    """The videos and the text of a chat: one file, or a tuple of them, and what is asked.

    Raises:
        NammTransferError: anything but one message of the user with videos and then one text.
    """
    content = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else []
    kinds = [part["type"] for part in content]
    whole = all(part.get("start_time") is part.get("end_time") is None for part in content)
    if kinds != ["video"] * (len(kinds) - 1) + ["text"] or not whole:
        told = [f"{message['role']}: {', '.join(part['type'] for part in message['content'])}" for message in messages]
        raise NammTransferError(
            f"a chat of {told}: model namm is served with one message of the user, whole videos and then one text"
        )
    videos = tuple(part["url"] for part in content[:-1])
    return videos[0] if len(videos) == 1 else videos, content[-1]["text"]


def generation(options: dict[str, Any]) -> tuple[int, list[str]]:
    """The most tokens of an answer and the texts that end it, from a task's `generation_kwargs`.

    Raises:
        NammTransferError: sampling, beams, or an argument that is not known.
    """
    rest = dict(options)
    limit, until = rest.pop("max_new_tokens", NEW_TOKENS), rest.pop("until", [])
    sampled = rest.get("do_sample") or rest.get("temperature") or rest.get("num_beams", 1) != 1
    if sampled or not rest.keys() <= GREEDY.keys():
        raise NammTransferError(
            f"generation_kwargs {options}: model namm answers greedily; expected max_new_tokens, until and "
            f"{GREEDY} at most"
        )
    return int(limit), [stop for stop in ([until] if isinstance(until, str) else until) if stop]
