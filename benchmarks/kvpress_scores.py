"""The presses of kvpress on the prompts of `evals/text.py`, at the cache size of a NAMM there and with the same score.

Three steps, since kvpress wants an older transformers than the memory does. `OTHER` is an environment of its own:

    python3 -m venv OTHER && OTHER/bin/pip install kvpress==0.5.5 'transformers<5.3' torch gguf tqdm
    python benchmarks/kvpress_scores.py export --model FILE.gguf --tasks trained,held-out --samples 2 --out runs/kvpress
    OTHER/bin/python benchmarks/kvpress_scores.py run --model FILE.gguf --kept 0.48 --out runs/kvpress
    python benchmarks/kvpress_scores.py table --out runs/kvpress --report runs/report-qwen-0.5b-950

`export` writes each prompt as token ids, context and question apart. `run` reads the context with the full cache,
compresses it as the press says, and reads the question uncompressed at its original positions: kvpress's own protocol,
and that of `evals/text.py --query-agnostic`. A press gets the ratio with which, question included, `--kept` of all
tokens are held when the answer begins. It goes on where it was stopped. What cannot be run is listed with the reason.
"""

# ruff: noqa: SIM905 - lists of names read better as words

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROMPTS, SCORES, TOKENIZER = "prompts.jsonl", "scores.jsonl", "tokenizer"
PLAIN = (
    "Random Knorm StreamingLLM SnapKV TOVA ExpectedAttention KeyDiff LeverageScore LagKV PyramidKV CUR Compactor "
    "NonCausalAttn Cap KVzip KVgrad KVCompose QFilter FastKVzip KVzap ObservedAttention RestoreKV"
).split()
"""Presses that take a compression ratio."""
WRAPPED = (
    "AdaKV:SnapKV AdaKV:ExpectedAttention AdaKV:KeyDiff CriticalKV:SnapKV CriticalKV:ExpectedAttention "
    "CriticalAdaKV:SnapKV CriticalAdaKV:ExpectedAttention Chunk:SnapKV ChunkKV:SnapKV EntropyGatedChunkKV:SnapKV "
    "Block:KeyDiff KeyRerotation:KeyDiff Merging:ExpectedAttention LUKV:ExpectedAttention"
).split()
"""Presses that wrap a scoring press."""
UNEQUAL = (
    "Left out, as no ratio makes them of equal size: DMS and SimLayerKV (a threshold decides), DuoAttention (learned "
    "head patterns), ThinK (removes channels), CAM, Decoding and PrefillDecoding (compress while decoding), Finch "
    "(knows the question), PerLayerCompression and Composed (settings of others)."
)


def export(options: argparse.Namespace) -> None:
    """Write the prompts of some families as token ids, and the tokenizer for the presses that need one."""
    from transformers import AutoTokenizer

    from namm_transfer.adapters.causal_lm import locate
    from namm_transfer.evals.tasks.text.families import make_prompt
    from namm_transfer.evals.text import Options, asked

    folder, keywords = locate(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, **keywords)
    families, _ = asked(Options(tasks=options.tasks))

    def ids(text: str, first: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=first).input_ids)

    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / PROMPTS).open("w") as file:
        for number in range(options.samples):
            for family in families:
                prompt = make_prompt(
                    family, "test", 0, number, tokens=options.tokens, count=lambda text: len(ids(text))
                )
                entry = {
                    "id": prompt.id,
                    "context": ids(prompt.text.removesuffix(prompt.question), first=True),
                    "question": ids(prompt.question),
                    "answer": ids(prompt.answer),
                    "expected": prompt.expected,
                }
                file.write(json.dumps(entry) + "\n")
    tokenizer.chat_template = None  # the prompts are plain text, and KVzip takes a template for a prefix of the context
    tokenizer.save_pretrained(options.out / TOKENIZER)


def presses() -> dict[str, Callable[[float], Any]]:
    """Name -> function of the compression ratio that makes the press, in the order in which they run."""
    import kvpress

    def maker(name: str) -> Callable[[float], Any]:
        outer, _, inner = name.partition(":")
        kind = getattr(kvpress, f"{outer}Press")

        def make(ratio: float) -> Any:
            press = kind(press=getattr(kvpress, f"{inner}Press")()) if inner else kind()
            press.compression_ratio = ratio
            return press

        return make

    return {"full": lambda ratio: None} | {name: maker(name) for name in [*PLAIN, *WRAPPED]}


class Scorer:
    """A model that answers prompts after a press has compressed their context."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(options.threads)
        path = Path(options.model)
        where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent if where else path,
            dtype=getattr(torch, options.dtype),
            attn_implementation="sdpa",
            **where,
        ).eval()
        config = self.model.config
        config.head_dim = self.model.model.layers[0].self_attn.head_dim  # CriticalKV reads it; not every config has it
        config.name_or_path = str(options.out / TOKENIZER)
        self.tokenizer = AutoTokenizer.from_pretrained(options.out / TOKENIZER)
        self.torch = torch

    def answer(self, prompt: dict[str, Any], press: Any) -> dict[str, Any]:
        """Compress the context, read the question and score the right answer: likelihood, exactness, kept share."""
        from transformers import DynamicCache

        torch = self.torch
        cache: Any = DynamicCache()
        context, question, answer = (torch.tensor([prompt[key]]) for key in ("context", "question", "answer"))
        for layer in self.model.model.layers:
            layer.self_attn.masked_key_indices = None
        if press is None:
            self.model.model(input_ids=context, past_key_values=cache)
        else:
            with press(self.model):
                self.model.model(input_ids=context, past_key_values=cache)
        lengths = [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
        held = sum(lengths) - sum(map(self._masked, self.model.model.layers))
        start = lengths[0] if type(press).__name__ == "KeyRerotationPress" else context.shape[1]
        logits = self._read(torch.cat([question, answer[:, :-1]], 1), cache, start, one_by_one=len(set(lengths)) > 1)
        scores = logits[-answer.shape[1] :].log_softmax(-1)
        seen = context.shape[1] + question.shape[1]
        return {
            "likelihood": 100 * math.exp(scores.gather(-1, answer[0, :, None]).mean()),
            "exact": bool((scores.argmax(-1) == answer[0]).all()),
            "kept": (held / len(lengths) + question.shape[1]) / seen,
        }

    def _masked(self, layer: Any) -> float:
        """Tokens of a layer that are masked instead of removed, mean over KV heads."""
        masked = getattr(layer.self_attn, "masked_key_indices", None)
        return 0.0 if masked is None else len(masked[0]) / self.model.config.num_key_value_heads

    def _read(self, tokens: Any, cache: Any, start: int, one_by_one: bool) -> Any:
        """Logits (n, vocabulary) of tokens at positions from `start` on; one by one if layers differ in length."""
        torch, found = self.torch, []
        for first in range(0, tokens.shape[1], 1 if one_by_one else tokens.shape[1]):
            some = tokens[:, first : first + 1] if one_by_one else tokens
            positions = torch.arange(some.shape[1])[None] + start + first
            found.append(self.model(input_ids=some, past_key_values=cache, position_ids=positions).logits[0])
        return torch.cat(found).float()


def ratio(prompt: dict[str, Any], kept: float) -> float:
    """Compression ratio of the context with which `kept` of context and question together are held."""
    context, question = len(prompt["context"]), len(prompt["question"])
    return 1 - max(0.0, kept * (context + question) - question) / context


def run(options: argparse.Namespace) -> None:
    """Score every prompt under every press, a line of JSON each, going on where an earlier run stopped."""
    import torch
    from tqdm import tqdm

    prompts = [json.loads(line) for line in (options.out / PROMPTS).read_text().splitlines()][: options.limit]
    path = options.out / SCORES
    done = {(entry["press"], entry["id"]) for entry in _lines(path)}
    makers, scorer = presses(), Scorer(options)
    chosen = options.presses.split(",") if options.presses else list(makers)
    for name in tqdm(chosen, dynamic_ncols=True):
        if name == "ObservedAttention":  # it wants the attention weights
            scorer.model.set_attn_implementation("eager")
        for prompt in prompts:
            if (name, prompt["id"]) in done:
                continue
            torch.manual_seed(0)
            entry: dict[str, Any] = {"press": name, "id": prompt["id"], "asked": options.kept}
            try:
                with torch.no_grad():
                    entry |= scorer.answer(prompt, makers[name](ratio(prompt, options.kept)))
            except Exception as error:  # whatever a press does that cannot be run here
                entry["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            if "error" in entry:
                break
        scorer.model.set_attn_implementation("sdpa")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text().splitlines()) if path.exists() else iter(())


def summary(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean score and size of each press over its prompts, best first; then those that failed, with the reason."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(entry["press"] for entry in entries):
        own = [entry for entry in entries if entry["press"] == name]
        error = next((entry["error"] for entry in own if "error" in entry), None)
        means = (
            {key: sum(entry[key] for entry in own) / len(own) for key in ("likelihood", "kept")} if not error else {}
        )
        rows.append({"press": name, "prompts": len(own), "error": error, **means})
    return sorted(rows, key=lambda row: (row["error"] is not None, -row.get("likelihood", 0.0)))


def table(options: argparse.Namespace) -> None:
    """Print the presses and, with --report, the policies of a report in one Markdown table."""
    rows = summary(list(_lines(options.out / SCORES)))
    if options.report:
        found = json.loads((options.report / "report.json").read_text())["summary"]
        ours = [row for row in found if row["task"] == "text" and row["score"] is not None]
        rows += [
            {"press": r["policy"], "prompts": r["n"], "error": None, "likelihood": r["score"], "kept": r["kept_share"]}
            for r in ours
        ]
        rows.sort(key=lambda row: (row["error"] is not None, -row.get("likelihood", 0.0)))
    print("| press or policy | score | kept | prompts |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        if row["error"] is None:
            print(f"| {row['press']} | {row['likelihood']:.1f} | {100 * row['kept']:.1f} % | {row['prompts']} |")
    for row in rows:
        if row["error"] is not None:
            print(f"\nNot run: {row['press']} ({row['error']})")
    print(f"\n{UNEQUAL}")


def main() -> None:
    """Parse the command line and do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "run", "table"))
    parser.add_argument("--model", default="", help="a .gguf file or a folder in transformers' format")
    parser.add_argument("--out", type=Path, default=Path("runs/kvpress"))
    parser.add_argument("--tasks", default="trained,held-out", help="export: as in evals/text.py")
    parser.add_argument("--tokens", type=int, default=950, help="export: length of the prompts")
    parser.add_argument("--samples", type=int, default=2, help="export: prompts of each family")
    parser.add_argument("--kept", type=float, default=0.48, help="run: share of all tokens held when the answer begins")
    parser.add_argument("--presses", default="", help="run: some of them, separated by commas")
    parser.add_argument("--limit", type=int, help="run: only the first so many prompts")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="run: as in the report")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path, help="table: folder of a report on the same prompts")
    options = parser.parse_args()
    {"export": export, "run": run, "table": table}[options.step](options)


if __name__ == "__main__":
    main()
