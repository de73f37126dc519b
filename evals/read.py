"""Ask a language model a question about your own text file, and see which words the policy kept.

    namm-transfer read report.txt "When was the bridge opened?"
    namm-transfer read report.txt "When was the bridge opened?" --model Qwen/Qwen3-0.6B --policy h2o:keep=0.5

Prints the answer and the share of the cache that was kept, and writes one HTML page that plays what was kept of the
text, by layer and KV head, while it was read. A model with a chat template is asked in its format; any other reads the
text, then "Question: ... Answer:".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tyro.conf import Positional

from namm_transfer import NammTransferError, policies
from namm_transfer.adapters.causal_lm import CausalLMAdapter, EncodedPrompt
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.lineup import alone
from namm_transfer.evals.harness.single import check_page, described, finish, kept_share, parse_arguments, recorded, say
from namm_transfer.files import safe_name


@dataclass
class Options:
    """Ask a question about a text."""

    file: Positional[Path]
    """A text file in UTF-8."""
    question: Positional[str]
    """The question."""
    model: str = "smollm2"
    """Causal language model: folder, hub id, .gguf file, or smollm2 (SmolLM2-135M-Instruct)."""
    policy: str = "namm"
    """The policy that decides what stays in the cache, such as namm, full or h2o:keep=0.5."""
    update_interval: int = 256
    """The policy acts each time the prompt has grown by this many tokens."""
    answer_tokens: int = 128
    """Most tokens of the answer."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """The dtype of the model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""
    device_map: str | None = None
    """Spread the model over devices as accelerate does ("auto"); by default it goes to one device."""
    out: Path | None = None
    """The page that is written; by default runs/read/NAME.html."""


def text_of(file: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        NammTransferError: it cannot be read, is no UTF-8, or holds nothing.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "\0" in text:  # a binary file, or UTF-16
            raise ValueError(f"it has a NUL character at {text.index(chr(0))}")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8
        raise NammTransferError(f"{str(file)!r} cannot be read as text in UTF-8: {error}") from None
    if not text.strip():
        raise NammTransferError(f"{str(file)!r} holds no text")
    return text


def encode(adapter: CausalLMAdapter, text: str, question: str) -> tuple[EncodedPrompt, list[str], np.ndarray]:
    """Make the prompt of a text and a question about it.

    Returns:
        The prompt as the adapter takes it, its text in pieces, and the piece of each token, (tokens,) int64: one token
        each, or several where a character is made of several tokens.
    """
    tokenizer, text, question = adapter.tokenizer, adapter.harmless(text), adapter.harmless(question)
    chat = getattr(tokenizer, "chat_template", None) is not None
    prompt = f"{text}\n\nQuestion: {question}\nAnswer:"
    if chat:
        asked = [{"role": "user", "content": f"{text}\n\n{question}"}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    read = tokenizer(prompt, add_special_tokens=not chat, return_offsets_mapping=tokenizer.is_fast)
    tokens = torch.tensor(read["input_ids"], device=adapter.device)
    encoded = EncodedPrompt(tokens, tokens.new_empty(0))
    if not tokenizer.is_fast:
        return encoded, adapter.pieces(encoded).tolist(), np.arange(len(tokens))
    pieces, unit_of, end = [""], [], 0
    for _, stop in read["offset_mapping"]:
        if stop > end:
            pieces.append(prompt[end:stop])
            end = stop
        unit_of.append(len(pieces) - 1)
    used, numbers = np.unique(unit_of, return_inverse=True)
    return encoded, [pieces[index] for index in used], numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the text, answer, write the page."""
    options: Options = parse_arguments(Options, "read", arguments)
    if options.answer_tokens < 1 or not options.question.strip():
        raise NammTransferError(
            f"--answer-tokens {options.answer_tokens}, question {options.question!r}: expected a positive number and a "
            "question"
        )
    text = text_of(options.file)
    page = check_page(options.out or Path("runs/read") / f"{safe_name(options.file.resolve().stem)}.html")
    entry = alone(policies.parse(options.policy), options.update_interval)
    say(f"loading {options.model}")
    adapter = CausalLMAdapter.load(
        options.model, dtype=getattr(torch, options.dtype, None), device_map=options.device_map
    )
    encoded, pieces, unit_of = encode(adapter, text, options.question)
    cache, length = adapter.memory(entry.policy), len(encoded.tokens)
    positions = getattr(adapter.model.config.get_text_config(), "max_position_embeddings", math.inf)
    if length + options.answer_tokens > positions:
        raise NammTransferError(
            f"{str(options.file)!r}: text, question and answer take {length + options.answer_tokens:,} tokens; the "
            f"model has {positions:,} positions: expected a shorter text, or a model with more"
        )
    with recorded(cache, length) as history:
        logits = adapter.read(encoded, cache)
    report, steps = cache.report(), history.read()  # when the first token of the answer is produced
    say("answering")
    answer = adapter.generate(encoded, cache, options.answer_tokens, logits).strip()

    from namm_transfer.evals.report.kept import Kept

    facts = described(report, adapter.source, entry.spec.text, entry.policy.update_interval)
    finish(
        Kept(
            title=f"What the cache kept of {options.file.name}",
            question=options.question,
            answer=answer,
            kept=kept_share(report),
            facts=[*facts, ("text", str(options.file))],
            history=steps,
            unit_of=unit_of,
            pieces=pieces,
        ),
        page,
    )


if __name__ == "__main__":
    script(main)
