"""Speed and memory, side by side: every measurement in a fresh process, the sides of a case in turn.

    python benchmarks/run.py                              all cases, written to benchmarks/results/
    python benchmarks/run.py toy memory --rounds 15
    python benchmarks/run.py guard                        exits 1 if a ratio is far from what it should be

A figure is the median over rounds of the ratio to the first side in the same round. With one thread, times are
processor seconds, which a busy machine disturbs little; the clock's stand beside them in the JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from namm_transfer.files import write_atomic

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A row of work for `cases.py`; the first side is what the others are compared with."""

    program: str
    sides: tuple[str, ...]
    tokens: int
    threads: int = 1


MEMORIES = ("full", "namm", "namm:keep=0.5", "namm:keep=0.25", "h2o:keep=0.5", "l2:keep=0.5")
CASES = {
    "toy": Case("toy", ("sdpa", "sdpa-again", *MEMORIES, "dense"), 4096),
    "memory": Case("toy", ("sdpa", "no-cache", "namm:keep=0.25", "h2o:keep=0.25", "l2:keep=0.25"), 16384),
    "lm": Case("lm", ("sdpa", "sdpa-again", "full", "namm:keep=0.5", "namm:keep=0.25"), 8192, threads=2),
    "decision-transformer": Case("decision-transformer", ("1", "16"), 300),
    "evolution": Case("evolution", ("one-by-one", "shared"), 400),
    "guard": Case("toy", ("sdpa", "full", "namm", "namm:keep=0.25"), 2048),
}
GUARD = {"full": 1.4, "namm": 4.5, "namm:keep=0.25": 2.5}
"""Largest prefill ratios at 2,048 tokens: wide, for noisy machines."""


def measure(case: Case, side: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, str(HERE / "cases.py"), case.program, side]
    command += ["--tokens", str(case.tokens), "--threads", str(case.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every quantity of every side, and of its ratio to the first side's in the same round."""
    case = CASES[name]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in case.sides}
    for _ in tqdm(range(rounds), desc=name, disable=None):
        for side in case.sides:
            runs[side].append(measure(case, side))
    table = {}
    for side, found in runs.items():
        row = {key: statistics.median(run[key] for run in found) for key in found[0]}
        for key in sorted(row.keys() & runs[case.sides[0]][0].keys()):
            row[f"{key}_ratio"] = statistics.median(
                mine[key] / first[key] for mine, first in zip(found, runs[case.sides[0]], strict=True)
            )
        table[side] = row
    if "no-cache" in table:
        for row in table.values():
            row["cache_peak"] = row["prefill_peak"] - table["no-cache"]["prefill_peak"]
    return table


def show(name: str, table: dict[str, dict[str, float]]) -> None:
    """One line a side."""
    clock = "" if CASES[name].threads > 1 else "cpu_"
    print(f"\n{name}: {CASES[name].tokens} tokens or steps, {CASES[name].threads} thread(s)")
    for side, row in table.items():
        parts = [
            f"{part} {row[f'{part}_{clock}s']:8.2f} s {row[f'{part}_{clock}s_ratio']:6.2f} x"
            for part in ("prefill", "decode", "rollout", "evaluation")
            if f"{part}_{clock}s" in row
        ]
        parts += [f"cache {row['cache_peak'] / 2**20:7.0f} MiB"] if "cache_peak" in row else []
        print(f"  {side:16s} {'   '.join(parts)}   peak {row['peak'] / 2**20:6.0f} MiB")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[c for c in CASES if c != "guard"], help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="alternations; figures are medians over them")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of one JSON file a case")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}: expected some of {', '.join(CASES)}")
    versions = {name: version(name) for name in ("torch", "transformers")}
    for name in options.cases:
        table = compare(name, options.rounds)
        show(name, table)
        if name == "guard":
            bad = [side for side, most in GUARD.items() if table[side]["prefill_cpu_s_ratio"] > most]
            if bad:
                raise SystemExit(f"slower than {GUARD}: {', '.join(bad)}")
            continue
        case = CASES[name]
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": case.threads, **versions}
        found = machine | {"rounds": options.rounds, "tokens": case.tokens, "sides": table}
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out / f"{name}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
