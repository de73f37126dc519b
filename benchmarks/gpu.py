"""Speed and memory on a GPU, after checks of correctness there: one command, one table.

    python benchmarks/gpu.py                          at most six minutes; writes gpu.json and gpu.log to results/
    python benchmarks/gpu.py --budget 1200 --shapes SmolLM2 --spectra ieee
    python benchmarks/gpu.py --device cpu --tiny      the same program on models of two narrow layers

With torch 2.10 or newer; from a checkout, after `pip install --no-deps -e .`, with no package beyond the core's. Times
are medians by CUDA events. "limit" is the share of the physical limit, measured in the same run: in prefill the
arithmetic of the decoder with plain attention over the whole prompt by the rate of a large matrix product, in decoding
the bytes of weights and cache by the bandwidth of a copy. What the budget does not reach is named at the end.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_checks import checks
from gpu_models import SIDES, Shape, new_cache, shapes
from torch import Tensor
from transformers import PreTrainedModel

from namm_transfer import MemoryCache
from namm_transfer.cache import device as kernels
from namm_transfer.cache.keyword import CACHE

HERE = Path(__file__).parent
DECODED = 24
ROUNDS = 3
COLUMNS = ("prefill ms", "x", "limit", "decode ms", "x", "limit", "peak MiB", "held MiB", "x")
Row = dict[str, float]


@dataclass
class Timer:
    """Milliseconds of device time, or of the clock on a CPU."""

    device: torch.device

    def __call__(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Do some work; return how long it took and what it returned."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            result = work()
            return 1000 * (time.perf_counter() - start), result
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last), result


@dataclass
class Machine:
    """The limits of the device."""

    bandwidth: float
    """Bytes a second of a large copy, read and written."""
    rate: float
    """Floating-point operations a second of a large matrix product."""

    @classmethod
    def measure(cls, timer: Timer, dtype: torch.dtype, size: int) -> "Machine":
        """Multiply matrices of size x size, and copy as many numbers sixteen times over."""
        a, b = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
        source = torch.empty(16, size, size, dtype=dtype, device=timer.device)
        target = torch.empty_like(source)
        products = [timer(lambda: a @ b)[0] for _ in range(8)][2:]
        copies = [timer(lambda: target.copy_(source))[0] for _ in range(8)][2:]
        seconds = [statistics.median(some) / 1000 for some in (products, copies)]
        return cls(bandwidth=2 * source.nbytes / seconds[1], rate=2 * size**3 / seconds[0])


@dataclass
class Log:
    """Lines on the screen and in a file, written as they come."""

    path: Path
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)
        self.path.write_text("\n".join(self.lines) + "\n")


def measure(model: PreTrainedModel, spec: str, inputs: dict[str, Tensor], timer: Timer, rounds: int) -> Row:
    """Measure medians of one side: a prompt, then single tokens; the first round, for compilers, is not counted."""
    cuda = timer.device.type == "cuda"

    def call(cache: Any, **some: Tensor) -> float:
        return timer(lambda: model(**some, **{CACHE: cache}, logits_to_keep=1))[0]

    prefills: list[float] = []
    for _ in range(rounds + 1):
        cache = new_cache(model, spec)
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        prefills.append(call(cache, **inputs))
        peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    steps = [call(cache, input_ids=inputs["input_ids"][:, :1]) for _ in range(DECODED)]
    if isinstance(cache, MemoryCache):
        held, kept = cache.report().bytes, cache.report().kept_share
    else:
        layers: list[Any] = cache.layers
        held, kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers), 1.0
    middle = statistics.median(prefills[1:])
    return {"prefill": middle, "decode": statistics.median(steps[4:]), "peak": peak, "held": held, "kept": kept}


def add_limits(row: Row, machine: Machine, model: PreTrainedModel, tokens: int) -> None:
    """Add the shares of the physical limits that a row's times reach. The vision tower's work is not counted."""
    text = model.config.get_text_config(decoder=True)
    decoder = [p for name, p in model.named_parameters() if "vision" not in name and "embed" not in name]
    weights = sum(p.numel() for p in decoder)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * text.num_hidden_layers * text.num_attention_heads * head_dim * tokens**2
    row["prefill limit"] = 1000 * (2 * weights * tokens + attention) / machine.rate / row["prefill"]
    moved = sum(p.nbytes for p in decoder) + row["held"]
    row["decode limit"] = 1000 * moved / machine.bandwidth / row["decode"]


def line(name: str, row: Row, base: Row) -> str:
    """Format a side's line of the table."""
    mib = 2**20
    cells = [f"{row['prefill']:.1f}", f"{row['prefill'] / base['prefill']:.2f}", f"{row['prefill limit']:.0%}"]
    cells += [f"{row['decode']:.2f}", f"{row['decode'] / base['decode']:.2f}", f"{row['decode limit']:.0%}"]
    cells += [f"{row['peak'] / mib:.0f}", f"{row['held'] / mib:.1f}", f"{row['held'] / base['held']:.2f}"]
    return f"{name:<24}" + "".join(f"{cell:>11}" for cell in cells)


def table(
    shape: Shape,
    model: PreTrainedModel,
    length: int,
    timer: Timer,
    machine: Machine,
    left: Callable[[], float],
    log: Log,
) -> tuple[dict[str, Row], list[str]]:
    """Measure all sides of one prompt length; return their rows, and the sides for which no time was left."""
    inputs = shape.inputs(length, timer.device, model.dtype)
    tokens = inputs["input_ids"].shape[1]
    log(f"\n{shape.name}, {f'{length} frames, ' if shape.video else ''}{tokens} tokens, {model.dtype}")
    log(f"{'':<24}" + "".join(f"{name:>11}" for name in COLUMNS))
    rows: dict[str, Row] = {}
    skipped, longest = [], 0.0
    for name, spec in SIDES.items():
        started = left()
        if started < 1.5 * longest:
            skipped.append(name)
            continue
        try:
            row = measure(model, spec, inputs, timer, ROUNDS)
        except torch.OutOfMemoryError:
            log(f"{name:<24}out of memory")
            continue
        add_limits(row, machine, model, tokens)
        rows[name] = row
        longest = max(longest, started - left())
        log(line(name, row, next(iter(rows.values()))))
    return rows, skipped


def main() -> None:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of two narrow layers and short prompts")
    parser.add_argument("--budget", type=float, default=360.0, help="seconds")
    parser.add_argument("--shapes", default="", help="only shapes whose name contains this")
    parser.add_argument("--spectra", default=kernels.PRODUCTS, help="float32 products of spectra: ieee or tf32x3")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for gpu.json and gpu.log")
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    kernels.PRODUCTS = options.spectra
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; --device cpu --tiny tries the program without one")
    options.out.mkdir(parents=True, exist_ok=True)
    log, timer = Log(options.out / "gpu.log"), Timer(device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    log(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    with torch.inference_mode():
        machine = Machine.measure(timer, dtype, 256 if options.tiny else 8192)
        log(f"a copy: {machine.bandwidth / 1e9:.0f} GB/s; a matrix product: {machine.rate / 1e12:.2f} TFLOP/s")
        chosen = [shape for shape in shapes(options.tiny) if options.shapes in shape.name]
        failed = []
        for text, met in checks(
            chosen, device, "triton" if device.type == "cuda" else "torch", 160 if options.tiny else 1024
        ):
            log(f"{'ok    ' if met else 'FAILED'} {text}")
            failed += [] if met else [text]
        tables: dict[str, dict[str, Row]] = {}
        skipped: list[str] = []
        for shape in chosen:
            model = shape.build(device, dtype)
            for length in shape.lengths:
                key = f"{shape.name}, {length}"
                if end - time.monotonic() < 5:
                    skipped.append(key)
                    continue
                tables[key], sides = table(shape, model, length, timer, machine, lambda: end - time.monotonic(), log)
                skipped += [f"{key}: {side}" for side in sides]
            del model
    if skipped:
        log("\nnot reached within the budget: " + "; ".join(skipped))
    found = {"machine": name, "torch": torch.__version__, "transformers": transformers.__version__} | vars(machine)
    (options.out / "gpu.json").write_text(
        json.dumps(found | {"failed": failed, "skipped": skipped, "tables": tables}, indent=1)
    )
    raise SystemExit(f"{len(failed)} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
