"""Score a language model whose key/value cache a policy keeps small with the tasks of lm-eval (EleutherAI's harness).

    namm-transfer lm-eval --model namm --model_args pretrained=smollm2,policy=h2o:keep=0.5,update_interval=64 \
        --tasks arc_easy --batch_size 8 --output_path runs/lm-eval --log_samples

This is lm-eval's own command line with one more model, `namm`: lm-eval's `hf` with every request read through a
`MemoryCache` of its own, evicting on the way. lm-eval has no entry points for models; other programs import this module
and then know the name. `--model_args` takes the arguments of `hf` and

- `policy`: in this package's notation. lm-eval cuts its arguments at commas; the policy's options that are cut off this
  way find back to it, so that `policy=streaming:sinks=4,window=252,update_interval=64` means what it says everywhere
  else. With `policy="streaming:sinks=4,window=252"` in quotes, or all arguments as JSON, nothing is cut.
- `pretrained`: also `smollm2` or the path of a .gguf file.

A policy acts each time a request (context and continuation) has grown by `update_interval` tokens, 512 if nothing else
is said: on shorter requests it never acts. What it did stands in lm-eval's results file under `config.namm_transfer`,
for each task and, since scores of documents are what reports compare, for each document.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, islice
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from namm_transfer import MemoryCache, NammTransferError
from namm_transfer.adapters.base import default_device, finite
from namm_transfer.adapters.causal_lm import locate
from namm_transfer.adapters.loading import hub_options, in_short
from namm_transfer.cache.keyword import CACHE
from namm_transfer.evals.harness.one_policy import facts, one_policy

logger = logging.getLogger("lm_eval.namm")  # below lm-eval's own, which decides what is shown

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Key in lm-eval's cache of answers, tokens of the context, tokens of the continuation."""


class Memory(NamedTuple):
    """The memory of one sequence up to its continuation, or up to the first token of its answer."""

    seen: int
    updates: int
    kept_share: float  # tokens held over tokens seen, mean over layers and KV heads


@register_model("namm")
class NammLM(HFLM):
    """A causal language model of transformers under a policy.

    Args:
        pretrained: folder, hub id, .gguf file or `smollm2`; or a model loaded with `attn_implementation="memory"`.
        policy: the policy, in the command line's notation.
        device: by default the accelerator if there is one, else the CPU.
        options: options of the policy, and the arguments of lm-eval's `hf`.

    Raises:
        NammTransferError: no such policy, or one that wants to match another; or a model that cannot be served exactly.
    """

    def __init__(self, pretrained: Any, policy: str = "full", device: str | None = None, **options: Any) -> None:
        self.entry = one_policy(str(policy), options)
        self.documents: dict[str, dict[int, dict[int, Memory]]] = defaultdict(lambda: defaultdict(dict))
        """task -> document -> number of the request: what the memory did."""
        self._latest: list[Memory] = []
        if isinstance(pretrained, str):
            pretrained, located = locate(pretrained)
            hub_options(pretrained)  # a model that cannot be had is said at once
            options |= {"attn_implementation": "memory"} | located
        try:
            super().__init__(pretrained, device=device or str(default_device()), **options)
        except Exception as error:  # lm-eval, transformers and a damaged file each raise their own
            raise NammTransferError(
                f"no model from {str(pretrained)[:200]!r} with {', '.join(options)}: {in_short(error)}; expected "
                "arguments of lm-eval's hf, policy, and the policy's own options"
            ) from error
        self._memory()  # a model that cannot be served is refused before the tasks are loaded

    def _memory(self) -> MemoryCache:
        return MemoryCache(self.model.config, policy=self.entry.policy)

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _read(self, tokens: Tensor, mask: Tensor | None = None, first: int = 0) -> tuple[Tensor, MemoryCache]:
        """Read a batch, (batch, length) int64, through a fresh cache: (batch, length - first, vocabulary) logits.

        Args:
            mask: (batch, length) int64, 0 for padding.
            first: column of the first logits wanted; all logits of a long context may not fit the memory.
        """
        cache = self._memory()
        columns, half = torch.arange(first, tokens.shape[1], device=tokens.device), self.mixed_precision_dtype
        arguments: dict[str, Any] = {CACHE: cache, "use_cache": True, "logits_to_keep": columns}
        with torch.no_grad(), torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            return self.model(tokens, attention_mask=mask, **arguments).logits, cache

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of a batch without padding; lm-eval finds the largest batch with it."""
        return self._read(inps)[0]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Answer a left-padded batch of prompts, (batch, length) int64, and note what its memory did."""
        cache = self._memory()
        looker = _AtFirstToken(cache)
        options |= {CACHE: cache, "logits_processor": LogitsProcessorList([looker])}
        tokens: Tensor = super()._model_generate(context, max_length, stop, **options)
        self._latest += looker.found[:: len(looker.found) // len(context)]  # the first beam of each prompt
        return tokens

    # -- what lm-eval asks -------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self._note(requests, [1] * len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's length with a cache of its own each."""
        totals: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._note(requests, [-(-len(self.tok_encode(request.args[0])) // self.max_length) for request in requests])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each context, up to a stop sequence."""
        kinds = [*dict.fromkeys(repr(request.args[1]) for request in requests)]

        def place(index: int) -> tuple[int, int, str]:
            """The order in which `hf` answers requests: given in it, they leave their memories in the same order."""
            context, options = requests[index].args
            return kinds.index(repr(options)), -len(self.tok_encode(context)), context

        order = sorted(range(len(requests)), key=place)
        ordered = [requests[index] for index in order]
        answers = dict(zip(order, super().generate_until(ordered, disable_tqdm=disable_tqdm), strict=True))
        self._note(ordered, [1] * len(ordered))
        return [answers[index] for index in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As `hf`'s, but padding is masked, so that the memory of a row is that of the row alone."""
        inputs: dict[tuple[int, ...], list[int]] = defaultdict(list)  # one-token choices share what the model reads
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise NammTransferError(
                    f"a continuation of {len(continuation)} tokens: expected 1 to {self.max_length}"
                )
            if len(context) + len(continuation) > self.max_length + 1:
                logger.warning("a request is longer than the model's %d tokens: its beginning is cut", self.max_length)
            inputs[tuple((context + continuation)[-(self.max_length + 1) : -1])].append(index)
        ordered = sorted(inputs, key=len, reverse=True)
        size = self.batch_size if self.batch_size != "auto" else (override_bs or self._detect_batch_size(requests))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        memories = [Memory(0, 0, 1.0)] * len(requests)
        for start in tqdm(range(0, len(ordered), size), disable=disable_tqdm or self.rank != 0):
            chunk = ordered[start : start + size]
            longest = len(chunk[0])
            first = min(len(row) - len(requests[index][2]) for row in chunk for index in inputs[row])
            tokens = torch.tensor([row + (0,) * (longest - len(row)) for row in chunk], device=self.device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in chunk], device=self.device)
            logits, cache = self._read(tokens, mask, first)
            for row, memory, scores in zip(chunk, _memories(cache), logits, strict=True):
                scores = F.log_softmax(finite(scores[: len(row) - first]), dim=-1, dtype=self.softmax_dtype)
                for index in inputs[row]:
                    answers[index], memories[index] = _judge(scores, requests[index][2]), memory
        for (key, *_), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        self._latest += memories
        return answers

    # -- what the memory did -----------------------------------------------------------------------------------------

    def _note(self, requests: Sequence[Instance], windows: Sequence[int]) -> None:
        """Remember what became of the requests just answered, each read in so many sequences."""
        latest = iter(self._latest)
        found = [[*islice(latest, count)] for count in windows]
        own = [
            (str(request.task_name), int(request.doc_id or 0), request.idx, _together(memories))
            for request, memories in zip(requests, found, strict=True)
            if memories
        ]
        self._latest = []
        for task, document, number, memory in chain.from_iterable(self.gather_object(own) or ()):  # first process only
            self.documents[task][document][number] = memory
        for task in dict.fromkeys(task for task, *_ in own):
            logger.info("%s under %s: %s", task, self.entry.spec.text, self._in_numbers(task))

    def _in_numbers(self, task: str) -> dict[str, float]:
        every = [memory for numbered in self.documents[task].values() for memory in numbered.values()]
        shares, updates = [memory.kept_share for memory in every], [memory.updates for memory in every]
        return {"requests": len(every), "kept_share": fmean(shares), "updates": fmean(updates)}

    def get_model_info(self) -> dict[str, Any]:
        """Return the facts of `hf`, the policy and its memories, for `config` in lm-eval's results."""
        own = {
            **facts(self.entry, self.world_size),
            "tasks": {task: self._in_numbers(task) for task in self.documents},
            "documents": {
                task: {number: _together([*requests.values()])._asdict() for number, requests in sorted(found.items())}
                for task, found in self.documents.items()
            },
        }
        return {**super().get_model_info(), "namm_transfer": own}


class _AtFirstToken(LogitsProcessor):
    """Looks at the cache when the first token of the answers is produced; changes nothing."""

    def __init__(self, cache: MemoryCache) -> None:
        self.cache = cache
        self.found: list[Memory] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.found = self.found or _memories(self.cache)
        return scores


def _judge(scores: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Log-probability of a continuation, and whether it is the greedy one.

    Args:
        scores: (length, vocabulary) log-probabilities of the tokens that end with it.
    """
    own, wanted = scores[-len(continuation) :], torch.tensor(continuation, device=scores.device)
    return float(own.gather(-1, wanted[:, None]).sum()), bool((own.argmax(-1) == wanted).all())


def _memories(cache: MemoryCache) -> list[Memory]:
    report = cache.report()
    rows = [report.row(number) for number in range(len(report.seen))]
    return [Memory(row.seen, row.updates, row.kept_share) for row in rows]


def _together(memories: Sequence[Memory]) -> Memory:
    """Several sequences as one: the longest, the fewest updates, the mean kept share."""
    share = fmean(memory.kept_share for memory in memories)
    return Memory(max(memory.seen for memory in memories), min(memory.updates for memory in memories), share)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lm-eval's command line, which reads `sys.argv`.

    Raises:
        NammTransferError: what lm-eval refuses, such as the name of a task that it does not have.
    """
    before = sys.argv
    sys.argv = ["lm-eval", *(before[1:] if arguments is None else arguments)]
    try:
        cli_evaluate()
    except (ValueError, AssertionError) as error:  # lm-eval's own for arguments, tasks and lengths that do not fit
        raise NammTransferError(f"lm-eval stopped: {in_short(error)}") from error
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
