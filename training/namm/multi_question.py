"""A text and one or more questions about it, in tokens: what is learned from, and what members are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.evals.tasks.text.families import Prompt, make_quiz


@dataclass(frozen=True)
class Quiz:
    """A text and the questions about it in a row, each after the answer to the one before, in tokens."""

    tokens: Tensor
    """(length,) int64"""
    text: int
    """Tokens before the first answer."""
    answers: tuple[slice, ...]
    """Where the answers stand in `tokens`."""
    family: str = "quiz"
    """What it is counted with."""

    @classmethod
    def encode(cls, adapter: CausalLMAdapter, parts: Sequence[tuple[str, str]], family: str = "quiz") -> Quiz:
        """From (text, answer) of each question in turn."""
        texts = [text for part in parts for text in part]
        pieces = [
            adapter.tokenizer(text, add_special_tokens=number == 0, return_tensors="pt").input_ids[0].long()
            for number, text in enumerate(texts)
        ]
        ends = list(accumulate(len(piece) for piece in pieces))
        spans = tuple(slice(*span) for span in zip(ends[::2], ends[1::2], strict=True))
        return cls(torch.cat(pieces).to(adapter.device), ends[0], spans, family)

    @classmethod
    def of(cls, adapter: CausalLMAdapter, prompt: Prompt) -> Quiz:
        """A prompt: a text with one question."""
        return cls.encode(adapter, [(prompt.text, prompt.answer)], prompt.family)

    @classmethod
    def make(cls, adapter: CausalLMAdapter, seed: int, number: int, tokens: int) -> Quiz:
        """A training quiz of about this length; the same arguments make the same one."""
        return cls.encode(adapter, make_quiz("train", seed, number, tokens=tokens, count=adapter.count))

    @torch.inference_mode()
    def read(self, model: Any, cache: MemoryCache, upto: int) -> None:
        """Feed the tokens that `cache` has not seen, up to token `upto`."""
        tokens = self.tokens[None, cache.get_seq_length() : upto]
        model(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def judge(self, model: Any, cache: MemoryCache, rows: int = 1) -> tuple[Tensor, Tensor, list[float]]:
        """How each of `rows` equal rows of a cache answers, which has seen a part of the text and now gets the rest.

        Returns:
            (rows,) mean log-probability of the answers, each counting the same, given the right ones before; (rows,)
            share of them of which every token is the most probable one; each row's kept share when the first begins.
        """
        (first, *others), start = self._answered, cache.get_seq_length()
        begun = self._scores(model, [first], range(start, self.text), rows, **{CACHE: cache})
        kept = cache.kept_share()
        went_on = self._scores(model, others, range(self.text, len(self.tokens)), rows, **{CACHE: cache})
        right, best = (torch.cat(parts, -1) for parts in zip(begun, went_on, strict=True))
        logprob = torch.stack([answer.mean(-1) for answer in right.split(self._sizes, -1)], -1)
        exact = torch.stack([answer.all(-1) for answer in best.split(self._sizes, -1)], -1)
        return logprob.mean(-1), exact.double().mean(-1), kept

    def likelihood(self, model: Any, beside: Sequence[int] = (), **memory: Any) -> tuple[Tensor, Tensor]:
        """Mean log-probability of the answers, each counting the same, and of the tokens after the places `beside`.

        Args:
            model: reads the quiz in one forward pass.
            memory: what that pass is given to remember with.

        Returns:
            Two scalars; the second is NaN with no places.
        """
        right, _ = self._scores(model, [*beside, *self._answered], range(len(self.tokens)), **memory)
        first, *said = right[0].split([len(beside), *self._sizes])
        return torch.stack([answer.mean() for answer in said]).mean(), first.mean()

    @property
    def _answered(self) -> list[int]:
        """Places after which the tokens of the answers follow."""
        return [place for span in self.answers for place in range(span.start - 1, span.stop - 1)]

    @property
    def _sizes(self) -> list[int]:
        """Tokens of each answer."""
        return [span.stop - span.start for span in self.answers]

    def _scores(
        self, model: Any, places: Sequence[int], given: range, rows: int = 1, **memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of the token after each place, (rows, places), and whether no other is more probable.

        Args:
            given: tokens that `rows` equal rows read, the places among them.
        """
        at = torch.tensor(places, dtype=torch.int64, device=self.tokens.device)
        tokens = self.tokens[None, given.start : given.stop].expand(rows, -1)
        scores = model(tokens, logits_to_keep=at - given.start, **memory).logits.float().log_softmax(-1)
        right = self.tokens[at + 1].expand(rows, -1)
        return scores.gather(-1, right[..., None]).squeeze(-1), scores.argmax(-1) == right
