"""Tokenised multi-question prompts, on which a NAMM is trained and members of the search are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.evals.tasks.text.families import Prompt, make_multi_question_prompt


@dataclass(frozen=True)
class MultiQuestionPrompt:
    """A text and one or more questions about it, each after the answer to the one before, in tokens."""

    tokens: Tensor
    """Tokens of text, questions and answers, (length,) int64."""
    text: int
    """Tokens before the first answer."""
    answers: tuple[slice, ...]
    """Positions of the answers in `tokens`."""
    family: str = "multi-question"
    """Task family within which the score is averaged."""

    @classmethod
    def encode(
        cls, adapter: CausalLMAdapter, parts: Sequence[tuple[str, str]], family: str = "multi-question"
    ) -> MultiQuestionPrompt:
        """Tokenise the (text, answer) pairs of all questions in turn."""
        texts = [text for part in parts for text in part]
        pieces = [
            adapter.tokenizer(text, add_special_tokens=number == 0, return_tensors="pt").input_ids[0].long()
            for number, text in enumerate(texts)
        ]
        ends = list(accumulate(len(piece) for piece in pieces))
        spans = tuple(slice(*span) for span in zip(ends[::2], ends[1::2], strict=True))
        return cls(torch.cat(pieces).to(adapter.device), ends[0], spans, family)

    @classmethod
    def of(cls, adapter: CausalLMAdapter, prompt: Prompt) -> MultiQuestionPrompt:
        """Tokenise an ordinary prompt: a text with one question."""
        return cls.encode(adapter, [(prompt.text, prompt.answer)], prompt.family)

    @classmethod
    def make(cls, adapter: CausalLMAdapter, seed: int, number: int, tokens: int) -> MultiQuestionPrompt:
        """Make a training prompt of about this many tokens with up to five questions, determined by the arguments."""
        return cls.encode(
            adapter, make_multi_question_prompt("train", seed, number, tokens=tokens, count=adapter.count)
        )

    @torch.inference_mode()
    def read(self, model: Any, cache: MemoryCache, upto: int) -> None:
        """Feed the tokens that `cache` has not seen, up to token `upto`."""
        tokens = self.tokens[None, cache.get_seq_length() : upto]
        model(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def score(self, model: Any, cache: MemoryCache, rows: int = 1) -> tuple[Tensor, list[float]]:
        """Feed the rest of the prompt to `rows` equal rows of a cache that has seen a part of the text.

        Returns:
            (rows,) mean log-probability of the answers, each counting the same, given the right ones before; each row's
            kept share when the first answer begins.
        """
        (first, *others), start = self.answer_places, cache.get_seq_length()
        begun = self._forward(model, [first], range(start, self.text), rows, cache)
        kept = cache.kept_share()
        rest = self._forward(model, others, range(self.text, len(self.tokens)), rows, cache)
        return self.mean_over_answers(torch.cat([begun, rest], -1)), kept

    @property
    def answer_places(self) -> list[int]:
        """List the positions after which the tokens of the answers follow."""
        return [place for span in self.answers for place in range(span.start - 1, span.stop - 1)]

    def mean_over_answers(self, logprobs: Tensor) -> Tensor:
        """Average over answers the mean over their tokens: (..., answer tokens) -> (...)."""
        answers = logprobs.split([span.stop - span.start for span in self.answers], -1)
        return torch.stack([answer.mean(-1) for answer in answers], -1).mean(-1)

    def _forward(self, model: Any, places: Sequence[int], given: range, rows: int, cache: MemoryCache) -> Tensor:
        tokens = self.tokens[None, given.start : given.stop].expand(rows, -1)
        at = torch.tensor(places, dtype=torch.int64, device=tokens.device)
        logits = model(tokens, logits_to_keep=at - given.start, **{CACHE: cache}).logits
        return _chosen(logits, self.tokens[at + 1].expand(rows, -1))


def likelihood(
    model: Any, prompts: Sequence[MultiQuestionPrompt], beside: Sequence[Sequence[int]] = (), **memory: Any
) -> tuple[Tensor, Tensor]:
    """Read whole prompts in one forward pass, as a batch that is padded on the right.

    Args:
        beside: places in each prompt after which a token's likelihood counts, besides the answers.
        memory: keywords of the forward pass that say how it remembers.

    Returns:
        (prompts,) mean log-probability of the answers, each counting the same; (prompts,) mean log-probability of the
        tokens after the places `beside`, NaN where there are none.
    """
    beside = beside or [[]] * len(prompts)
    tokens = pad_sequence([prompt.tokens for prompt in prompts], batch_first=True)
    wanted = [[*places, *prompt.answer_places] for places, prompt in zip(beside, prompts, strict=True)]
    union = {place: n for n, place in enumerate(sorted({place for places in wanted for place in places}))}
    logits = model(tokens, logits_to_keep=torch.tensor(list(union), device=tokens.device), **memory).logits
    answers, others = [], []
    for row, (prompt, places) in enumerate(zip(prompts, wanted, strict=True)):
        at = torch.tensor([union[place] for place in places], device=tokens.device)
        following = prompt.tokens[torch.tensor(places, device=tokens.device) + 1]
        logprobs = _chosen(logits[row, at], following)
        more = len(places) - len(prompt.answer_places)
        others.append(logprobs[:more].mean())
        answers.append(prompt.mean_over_answers(logprobs[more:]))
    return torch.stack(answers), torch.stack(others)


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    """Compute log-probabilities of tokens: (..., vocabulary) and (...) -> (...) float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
