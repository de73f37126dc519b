"""Evolve a NAMM on text with CMA-ES.

    accelerate launch evals/evolve.py --preset cpu --out runs/evolve
    accelerate launch evals/evolve.py --preset cpu --out runs/evolve --resume

Killed at any moment, it goes on with --resume exactly as if it had not been. More processes (`accelerate launch
--multi_gpu --num_processes 2`, machines as accelerate has them) change the speed and nothing else.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from pydantic import TypeAdapter, ValidationError

from namm_transfer import NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.harness import EvalOptions, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.training.namm.config import PRESETS, EvolutionConfig
from namm_transfer.training.namm.loop import Evolution


@dataclass
class Options:
    """Evolve a NAMM on text; the best by validation is in --out, ready for NAMM.from_pretrained."""

    preset: Literal["cpu", "paper"] = "cpu"
    """cpu: a start learned by gradient, then a search over the output layer with a graded score and a price on what is
    held above `allowed`; selection by threshold. paper: the published protocol on the families here."""

    seed: int = 0
    """Of the search and of the prompts."""

    out: Path = Path("runs/evolve")
    """Folder of the NAMM, evolution.jsonl, plot.svg and the state."""

    resume: bool = False
    """Go on from the state in --out."""

    config: Path | None = None
    """TOML file whose keys (fields of EvolutionConfig) overrule the preset's."""

    generations: int | None = None
    """Where to stop, if not where the preset says."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the base model's weights. auto: float32 on a CPU, bfloat16 elsewhere."""

    threads: int = 1
    """CPU threads a process. Another number may change the last bit of a score; for speed, start more processes."""


def configuration(options: Options) -> EvolutionConfig:
    """The preset with the file's and the command line's changes."""
    values = dataclasses.asdict(PRESETS[options.preset])
    if options.config is not None:
        try:
            changes = tomllib.loads(options.config.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise NammTransferError(f"--config {str(options.config)!r} cannot be read: {error}") from error
        changes = {key.replace("-", "_"): value for key, value in changes.items()}
        if unknown := changes.keys() - values.keys():
            raise NammTransferError(f"--config: unknown {sorted(unknown)}; expected some of {', '.join(values)}")
        values |= {key: None if value == "none" else value for key, value in changes.items()}  # TOML has no null
    if options.generations is not None:
        values["generations"] = options.generations
    try:
        return TypeAdapter(EvolutionConfig).validate_python(values)
    except ValidationError as error:
        raise NammTransferError(f"--config: {error}") from error


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    config = configuration(options)
    accelerator = start(EvalOptions(seed=options.seed, threads=options.threads))
    adapter = CausalLMAdapter.load(config.model, dtype=getattr(torch, options.dtype, None), device=accelerator.device)
    evolution = Evolution(
        adapter, config, seed=options.seed, out=options.out, resume=options.resume, accelerator=accelerator
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
