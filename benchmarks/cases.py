"""One side of one case of `run.py`, measured in a process of its own: prints a line of JSON.

    python benchmarks/cases.py toy namm:keep=0.25 --tokens 4096

Processor seconds are reported beside wall-clock seconds: with one thread they hardly depend on other load.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from namm_transfer import NAMM, EvictionPolicy, MemoryCache, policies
from namm_transfer.cache.keyword import CACHE
from namm_transfer.policy import LayerView
from namm_transfer.spectrogram import BINS, DECAY, HOP, WINDOW

DECODED = 32
Measured = dict[str, float]


class TimedNAMM(NAMM):
    """A NAMM that measures the time of its scoring network."""

    spent = 0.0

    def scores(self, view: LayerView) -> Tensor:
        """Score as a NAMM does, and add the time it takes."""
        before = time.process_time()
        found = super().scores(view)
        TimedNAMM.spent += time.process_time() - before
        return found


class TogetherNAMM(NAMM):
    """A NAMM whose cache stores the heads of a layer together, whatever they keep."""

    by_head = False


def stopwatch() -> Callable[[str], Measured]:
    """Return a function that returns the time since its last call."""
    last = [time.perf_counter(), time.process_time()]

    def lap(name: str) -> Measured:
        now = [time.perf_counter(), time.process_time()]
        seconds = {f"{name}_s": now[0] - last[0], f"{name}_cpu_s": now[1] - last[1]}
        last[:] = now
        return seconds

    return lap


def policy(side: str) -> EvictionPolicy:
    """Make a policy from its notation; ``namm`` here scores every token 0, at the cost of any other NAMM.

    ``shipped`` is namm-text, ``shipped-together`` the same with the heads of a layer stored together, and
    ``shipped-layer`` with as many tokens in all heads of a layer.
    """
    if side == "shipped-layer":
        return NAMM.from_pretrained("namm-text", selection="layer")
    if side.startswith("shipped"):
        return (NAMM if side == "shipped" else TogetherNAMM).from_pretrained("namm-text")
    name, _, options = side.partition(":keep=")
    return TimedNAMM(keep=float(options) if options else None) if name == "namm" else policies.make(side)


def language_model(case: str, attention: str, tokens: int) -> tuple[Any, Tensor]:
    """Load the toy model and random tokens, or SmolLM2-135M in bfloat16 and Python's documentation:
    (1, tokens) int64.

    The case ``heads`` is a model of 32 layers x 32 KV heads, as Vicuna-7B's, so narrow that its time is calls and not
    arithmetic; some of its heads attend up to three times as sharply as others, so that they keep different numbers.
    """
    torch.manual_seed(0)
    if case == "lm":
        from namm_transfer.adapters.causal_lm import CausalLMAdapter

        adapter = CausalLMAdapter.load("smollm2", dtype=torch.bfloat16, device="cpu")
        adapter.model.set_attn_implementation(attention)
        return adapter.model, adapter.tokenizer("\n\n".join(topics.values()), return_tensors="pt").input_ids[:, :tokens]
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=65536,
    )
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    if case == "heads":
        config.update(dict(hidden_size=256, intermediate_size=256, num_hidden_layers=32))
        config.update(dict(num_attention_heads=32, num_key_value_heads=32, head_dim=8))
        many = LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
        for layer in many.model.layers:
            sharpness = torch.logspace(0, 0.5, 32)[torch.randperm(32)]
            layer.self_attn.q_proj.weight.unflatten(0, (32, 8)).mul_(sharpness[:, None, None])
        return many, ids
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval(), ids


def prefill(case: str, side: str, tokens: int) -> Measured:
    """Measure prefill and decoding. Sides: no-cache, sdpa, dense, or a policy."""
    plain = {"no-cache": "sdpa", "sdpa": "sdpa", "sdpa-again": "sdpa", "dense": "eager"}
    model, ids = language_model(case, plain.get(side, "memory"), tokens)
    model(ids[:, :64], use_cache=False, logits_to_keep=1)
    new = DynamicCache(config=model.config) if side in plain else MemoryCache(model.config, policy=policy(side))
    cache = None if side == "no-cache" else new
    lap = stopwatch()
    out = model(ids, **{CACHE: cache}, use_cache=cache is not None, logits_to_keep=1, output_attentions=side == "dense")
    if side == "dense":
        score_densely(NAMM(), out.attentions)
    del out
    found = lap("prefill")
    found |= {"prefill_peak": peak(), "scoring_cpu_s": TimedNAMM.spent}
    if cache is None or side == "dense":
        return found
    for _ in range(DECODED):
        model(ids[:, :1], **{CACHE: cache}, logits_to_keep=1)
    found |= lap("decode")
    if isinstance(cache, MemoryCache):
        report = cache.report()
        group = cache.attention_layers[0].groups[0]
        token = sum(t.nbytes for t in (group.keys, group.values, group.positions, *group.state.values())) / (
            group.positions.numel()
        )
        found |= {"bytes_held": report.bytes, "bytes_kept": float(report.kept.sum()) * token}
        found["kept_share"] = report.kept_share
    else:
        layers: list[Any] = cache.layers
        found |= {"bytes_held": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers), "kept_share": 1.0}
    return found


def score_densely(namm: NAMM, attentions: tuple[Tensor, ...]) -> None:
    """Measure the published formulation without evictions: whole attention rows, torch.stft, an N x N mask."""
    window = torch.hann_window(WINDOW)
    for weights in attentions:
        batch, heads, tokens, _ = weights.shape
        spectrum = torch.zeros(batch, heads, BINS, 0)
        for start in range(0, tokens - namm.update_interval + 1, namm.update_interval):
            seen = start + namm.update_interval
            rows = weights[:, :, max(0, start - HOP) : seen, :seen]
            columns = torch.nn.functional.pad(rows.transpose(-1, -2), (0 if start else HOP, 0))
            frames = torch.stft(
                columns.reshape(-1, columns.shape[-1]), WINDOW, HOP, window=window, center=False, return_complex=True
            ).abs()
            ages = torch.arange(frames.shape[-1] - 1, -1, -1)
            new = (frames @ ((1 - DECAY) * DECAY**ages)).view(batch, heads, seen, BINS).transpose(-1, -2)
            old = torch.nn.functional.pad(spectrum, (0, seen - spectrum.shape[-1]))
            spectrum = new + DECAY ** frames.shape[-1] * old
            positions = torch.arange(seen).expand(batch, heads, seen)
            namm.score(namm.features(spectrum, positions), torch.ones(batch, heads, seen, dtype=torch.bool))


def decision_transformer(side: str, steps: int) -> Measured:
    """Measure a Decision Transformer acting from its cache; the side is the number of environments in a batch."""
    from decision_transformer import loaded

    adapter, _ = loaded(None, steps)
    rows = int(side)
    player = adapter.play(adapter.memory(NAMM(keep=0.25, update_interval=128)), [3600.0] * rows)
    generator = np.random.default_rng(0)
    lap = stopwatch()
    for _ in range(steps):
        player.act(generator.normal(size=(rows, 11)), np.zeros(rows))
    found = lap("rollout")
    return found | {"rollout_per_row_cpu_s": found["rollout_cpu_s"] / rows}


def evolution(side: str, tokens: int) -> Measured:
    """Measure eight members of a population that answer five questions about a text.

    ``one-by-one``: each member reads the text anew for each question. ``prompts``: the members share the beginning of
    it, for each question. ``shared``: and answer all of its questions in one reading, as multi-question prompts do.
    """
    from accelerate import Accelerator

    from namm_transfer.adapters.causal_lm import CausalLMAdapter
    from namm_transfer.evals.tasks.text.families import make_multi_question_prompt
    from namm_transfer.moments import Moments
    from namm_transfer.training.namm.config import EvolutionConfig
    from namm_transfer.training.namm.fitness import evaluate
    from namm_transfer.training.namm.multi_question import MultiQuestionPrompt

    config = EvolutionConfig(members=8, attention_dtype="float32")
    adapter = CausalLMAdapter.load(config.model, dtype=torch.float32, device="cpu")
    made = (make_multi_question_prompt("train", 0, number, tokens=tokens, count=adapter.count) for number in range(100))
    parts = next(parts for parts in made if len(parts) == 5)
    together = [MultiQuestionPrompt.encode(adapter, parts)]
    singly = [MultiQuestionPrompt.encode(adapter, [part]) for part in apart(parts)]
    vectors = np.random.default_rng(0).normal(size=(config.members, 4172)) * 0.1
    moments = Moments()
    moments.add(torch.rand(100, BINS))
    lap = stopwatch()
    if side == "one-by-one":
        for vector in vectors:
            namm = NAMM.from_vector(vector, mean=moments.mean.float(), var=moments.var.float(), **config.memory)
            for prompt in singly:
                prompt.score(adapter.model, adapter.memory(copy.deepcopy(namm)))
    else:
        evaluate(adapter, together if side == "shared" else singly, vectors, moments, config, Accelerator(cpu=True))
    return lap("evaluation")


def apart(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Split a multi-question prompt into prompts with one question each."""
    text, _, first = parts[0][0].rpartition("\n\n")
    return [(f"{text}\n\n{question.lstrip()}", answer) for question, answer in [(first, parts[0][1]), *parts[1:]]]


def video(side: str, frames: int) -> Measured:
    """Measure the shipped video model on a generated film: reading and encoding the frames, then the prefill."""
    from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
    from namm_transfer.adapters.video.sample import VideoSample
    from namm_transfer.evals.tasks.video.generated import load_generated
    from namm_transfer.files import asset

    adapter = LlavaNextVideoAdapter.load(asset("llava-next-video-small"), device="cpu", dtype=torch.float32)
    question = load_generated(1, 60)[0]
    sample = VideoSample(question.video, question.prompt, lead=question.lead, choices=question.choices, frames=frames)
    cache = DynamicCache() if side == "sdpa" else adapter.memory(policy(side))
    adapter.extend_positions(8 * frames + 200)
    lap = stopwatch()
    encoded = adapter.encode(sample)
    found = lap("reading")
    adapter.prefill(encoded, cache)
    return found | lap("prefill")


def reading(side: str, frames: int) -> Measured:
    """Measure opening a film of 3 minutes and reading uniform frames with a backend, in the adapter's batches.

    The side "unchecked" is decord's own `get_batch` on the same numbers after a look at the header, without an index
    or verification.
    """
    from namm_transfer.adapters.video.frames import in_batches, open_video, uniform_indices
    from namm_transfer.evals.tasks.video.generated import load_generated

    path = load_generated(1, 180)[0].video
    lap = stopwatch()
    if side == "unchecked":
        import av
        import decord

        with av.open(str(path)):
            pass
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        for part in np.array_split(uniform_indices(len(reader), frames), max(1, frames // 16)):
            reader.get_batch(part.tolist()).asnumpy()
        return lap("reading")
    film = open_video(path, side)
    for _ in in_batches(film, uniform_indices(film.count, frames)):
        pass
    if film.backend != side:
        raise SystemExit(f"{side} did not read the film: {film.fallback}")
    return lap("reading")


def peak() -> float:
    """Return the peak memory of this process in bytes: device memory, or the resident set on a CPU."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    with open("/proc/self/status") as status:
        return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Measure one side and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    programs: dict[str, Callable[[str, int], Measured]] = {
        "toy": partial(prefill, "toy"),
        "lm": partial(prefill, "lm"),
        "heads": partial(prefill, "heads"),
        "decision-transformer": decision_transformer,
        "evolution": evolution,
        "video": video,
        "reading": reading,
    }
    parser.add_argument("case", choices=programs)
    parser.add_argument("side")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        found = programs[options.case](options.side, options.tokens)
    print(json.dumps(found | {"peak": peak()}))


if __name__ == "__main__":
    main()
