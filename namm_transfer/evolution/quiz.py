"""A text and several questions about it, in tokens: what the learned start is measured on and learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.tasks import make_quiz


@dataclass(frozen=True)
class Quiz:
    """A text and several questions in a row, in tokens."""

    tokens: Tensor
    """(length,) int64"""
    text: int
    """Tokens before the first answer."""
    answers: tuple[slice, ...]
    """Where the answers stand in `tokens`."""

    @classmethod
    def encode(cls, adapter: CausalLMAdapter, parts: Sequence[tuple[str, str]]) -> Quiz:
        """From (text, answer) of each question in turn."""
        texts = [text for part in parts for text in part]
        pieces = [
            adapter.tokenizer(text, add_special_tokens=number == 0, return_tensors="pt").input_ids[0].long()
            for number, text in enumerate(texts)
        ]
        ends = list(accumulate(len(piece) for piece in pieces))
        spans = tuple(slice(*span) for span in zip(ends[::2], ends[1::2], strict=True))
        return cls(torch.cat(pieces).to(adapter.device), ends[0], spans)

    @classmethod
    def make(cls, adapter: CausalLMAdapter, seed: int, number: int, tokens: int) -> Quiz:
        """A training quiz of about this length; the same arguments make the same one."""
        return cls.encode(adapter, make_quiz("train", seed, number, tokens=tokens, count=adapter.count))

    def likelihood(self, model: Any, beside: Sequence[int] = (), **memory: Any) -> tuple[Tensor, Tensor]:
        """Mean log-probability of the answers, each counting the same, and of the tokens after the places `beside`.

        Args:
            model: reads the quiz in one forward pass.
            memory: what that pass is given to remember with.

        Returns:
            Two scalars; the second is NaN with no places.
        """
        answers = [list(range(span.start - 1, span.stop - 1)) for span in self.answers]
        at = torch.tensor([p for part in (beside, *answers) for p in part], device=self.tokens.device)
        logits = model(self.tokens[None], logits_to_keep=at, **memory).logits[0]
        right = logits.float().log_softmax(-1).gather(-1, self.tokens[at + 1, None]).squeeze(-1)
        first, *said = right.split([len(beside), *map(len, answers)])
        return torch.stack([answer.mean() for answer in said]).mean(), first.mean()
