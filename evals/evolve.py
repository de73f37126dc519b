"""Make a NAMM on text: learn it by gradient through its own evictions, then search on with CMA-ES.

    accelerate launch evals/evolve.py --out runs/evolve              # a new NAMM, hours on two cores
    accelerate launch evals/evolve.py --out runs/evolve --resume     # goes on where it was stopped or killed
    accelerate launch --multi_gpu --num_processes 2 evals/evolve.py --out runs/evolve    # more processes, same result

Five stages, each with a progress bar:

1. statistics   mean and variance of attention spectra under the full cache, then frozen;
2. importance   each KV head in turn forgets the middle of a text; what the answers lose is its importance;
3. distillation a NAMM is fitted to keep everything in the important heads and little in the others;
4. learning     the NAMM reads texts with questions while it evicts; the gradient goes through the evictions;
5. search       CMA-ES changes the output layer; --penalty is what a full cache costs.

--start zero skips 2 to 4. --learn-from NAMM skips 1 to 3: learning goes on from a saved one.

--out then holds model.safetensors and config.json, which NAMM.from_pretrained(OUT) and --policy namm:path=OUT load;
evolution.jsonl with a line a generation; plot.svg; a card; and state/, from which --resume goes on exactly as if
nothing had happened. Every flag below may stand in a TOML file for --config: penalty = 0.5, learn_tokens = [420, 960].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.harness import EvalOptions, parse, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.training.namm.config import EvolutionConfig
from namm_transfer.training.namm.evolution import Evolution


@dataclass(frozen=True)
class Options(EvolutionConfig):
    """Make a NAMM on text; the best by validation is in --out."""

    seed: int = 0
    """Seed of the search and of the prompts."""

    out: Path = Path("runs/evolve")
    """Folder of the NAMM, evolution.jsonl, plot.svg and the state."""

    resume: bool = False
    """Go on from the state in --out."""

    config: Path | None = None
    """TOML file with defaults for these flags (keys are the names of the flags); a flag overrules the file."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the base model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""

    threads: int = 1
    """CPU threads a process. Another number may change the last bit of a score; for speed, start more processes."""


def configuration(options: Options) -> EvolutionConfig:
    """Return the part of the options that decides what is made."""
    fields = dataclasses.fields(EvolutionConfig)
    return EvolutionConfig(**{field.name: getattr(options, field.name) for field in fields})


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(Options, arguments)
    accelerator = start(EvalOptions(seed=options.seed, threads=options.threads))
    sources, dtype = (options.model, *options.learn_also), getattr(torch, options.dtype, None)
    loaded = {s: CausalLMAdapter.load(s, dtype=dtype, device=accelerator.device) for s in dict.fromkeys(sources)}
    evolution = Evolution(
        [loaded[source] for source in sources],
        configuration(options),
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        accelerator=accelerator,
    )
    try:
        evolution.run()
    except KeyboardInterrupt:
        print(f"\nstopped; finished generations are in {options.out}, go on from them with --resume")
        raise SystemExit(130) from None
    if accelerator.is_main_process:
        best, count = evolution.state.best_generation.item(), accelerator.num_processes
        print(f"{count} processes; best validation at generation {best}; the NAMM is in {options.out}")


if __name__ == "__main__":
    script(main)
