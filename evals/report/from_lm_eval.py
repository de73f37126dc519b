"""A report from what lm-eval or lmms-eval wrote about the model `namm`: a record for each document, task and policy.

Every policy is a run of the harness with --log_samples and the same --output_path; runs of other models are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.schema import Policy, Provenance, Record, Run
from namm_transfer.files import make_folder

PER = {"word_perplexity": "word", "byte_perplexity": "byte", "bits_per_byte": "byte"}
"""Metrics of whole texts and what they are counted by."""
ADDRESS = re.compile(r"(<function \w+) at 0x[0-9a-f]+(?=>)")
"""Address of a task's function in the memory of lmms-eval's process."""


@dataclass
class Scored:
    """One task under one policy, as a harness wrote it."""

    harness: str
    """lm-eval or lmms-eval."""
    path: Path
    """The results file."""
    results: dict[str, Any]
    """Its content."""
    task: str
    samples: list[dict[str, Any]]
    """The lines of the samples file, those of the task's first filter, by document."""
    facts: dict[str, Any]
    """The facts that the model `namm` wrote: `policy`, `provenance`; of lmms-eval also `model` and `dtype`."""
    memories: dict[str, dict[str, Any]]
    """Document -> what the memory did; of lmms-eval also its `videos`."""

    @property
    def policy(self) -> Policy:
        """The policy that was evaluated."""
        return Policy(**self.facts["policy"])

    @property
    def model(self) -> str:
        """The folder or hub id of the model."""
        return str(self.facts.get("model") or self.results["model_name"])

    @property
    def metrics(self) -> list[str]:
        """The metrics of each document."""
        return list(self.samples[0].get("metrics") or self.results["higher_is_better"][self.task])

    def setting(self) -> dict[str, Any]:
        """Return the facts that all policies of one task must share."""
        config = {key: value for key, value in self.results["configs"][self.task].items() if key != "metadata"}
        config = json.loads(ADDRESS.sub(r"\1", json.dumps(config)))
        asked = [sample.get("prompt_hash", sample.get("input")) for sample in self.samples]
        documents = [(sample["doc_id"], sample["doc_hash"]) for sample in self.samples]
        return {"model": self.model, "task configuration": config, "documents": [documents, asked]}


def convert(folder: Path, out: Path, metric: str | None = None) -> None:
    """Write the ledgers of a report folder.

    Args:
        folder: an --output_path of lm-eval or lmms-eval.
        out: folder of the records; a report can then be built from it.
        metric: the score; by default the first metric of each task of which more is better.

    Raises:
        NammTransferError: nothing of `namm` there, files that the harness did not write, a policy twice, or policies
            that did not answer the same documents.
    """
    by_task: dict[str, list[Scored]] = {}
    for scored in _find(folder):
        by_task.setdefault(scored.task, []).append(scored)
    if not by_task:
        raise NammTransferError(
            f"no results of the model namm in {str(folder)!r}; expected the --output_path of "
            "namm-transfer lm-eval --model namm ... --log_samples, or of lmms-eval"
        )
    make_folder(out)
    for runs in by_task.values():
        _write(runs, out, metric)


def _find(folder: Path) -> Iterator[Scored]:
    files = [*folder.rglob("results_*.json"), *folder.rglob("*_results.json")]
    for path in sorted(files, key=lambda path: path.name):
        try:
            results = json.loads(path.read_bytes())
            if path.name.startswith("results_"):
                yield from _of_lm_eval(path, results)
            elif results["config"]["model"] == "namm":
                yield from _of_lmms_eval(path, results)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise NammTransferError(f"{str(path)!r} is no results file of lm-eval or lmms-eval: {error!r}") from error


def _of_lm_eval(path: Path, results: dict[str, Any]) -> Iterator[Scored]:
    facts = results["config"].get("namm_transfer", {})
    for task, memories in facts.get("documents", {}).items():
        samples = _samples(path.with_name(f"samples_{task}_{path.stem.removeprefix('results_')}.jsonl"))
        kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        yield Scored("lm-eval", path, results, task, kept, facts, memories)


def _of_lmms_eval(path: Path, results: dict[str, Any]) -> Iterator[Scored]:
    """Read a results file of lmms-eval.

    Its lines name no filter, and those of the first filter come first. They also say what the memory did.
    """
    for task in results["configs"]:
        samples = _samples(path.with_name(f"{path.name.removesuffix('_results.json')}_samples_{task}.jsonl"))
        kept = [*{sample["doc_id"]: sample for sample in reversed(samples)}.values()]
        told = {str(sample["doc_id"]): (sample["token_counts"][0] or {}).get("namm_transfer") for sample in kept}
        facts: dict[str, Any] = next(filter(None, told.values()), {})
        memories = {document: found["memory"] for document, found in told.items() if found}
        yield Scored("lmms-eval", path, results, task, sorted(kept, key=lambda one: one["doc_id"]), facts, memories)


def _samples(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise NammTransferError(f"{str(path)!r} is missing; expected the harness to be run with --log_samples")
    return sorted(map(json.loads, path.read_bytes().splitlines()), key=lambda sample: int(sample["doc_id"]))


def _write(runs: list[Scored], out: Path, metric: str | None) -> None:
    """Write the ledger of one task under all policies."""
    first = runs[0]
    by_policy: dict[str, Scored] = {}
    for scored in runs:
        spec = scored.policy.spec
        if spec in by_policy:
            raise NammTransferError(
                f"{spec!r} was run twice on {first.task!r}: {str(by_policy[spec].path)!r} and {str(scored.path)!r}; "
                "expected each policy once"
            )
        by_policy[spec] = scored
        for what, value in scored.setting().items():
            if value != first.setting()[what]:
                raise NammTransferError(
                    f"{str(scored.path)!r} and {str(first.path)!r} differ in the {what} of {first.task!r}; expected "
                    "the same for all policies"
                )
    metric = metric or _metric(first)
    unit = f"log-likelihood per {PER[metric]}" if metric in PER else metric
    ids = [str(sample["doc_id"]) for sample in first.samples]
    config = first.results["config"]
    run = Run(
        task=f"{first.harness}/{first.task}",
        samples=len(ids),
        samples_sha256=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        batch=int(config["batch_size"]) if str(config["batch_size"]).isdigit() else 1,
        policies=[scored.policy for scored in runs],
        options={},
        description={
            "model": first.model,
            "dtype": first.facts.get("dtype") or str(config.get("model_dtype")),
            "score": unit,
            first.harness: str(first.results.get(f"{first.harness.replace('-', '_')}_version")),
            "commands": {spec: scored.facts["provenance"]["command"] for spec, scored in by_policy.items()},
        },
        provenance=Provenance(**first.facts["provenance"]),
    )
    ledger.prepare(out, run, resume=False)
    book = ledger.Ledger(ledger.path_of(out, run.task, 0), run)
    for record in _records(runs, metric):
        book.add(record)
    book.close()


def _records(runs: Iterable[Scored], metric: str) -> Iterator[Record]:
    for scored in runs:
        for index, sample in enumerate(scored.samples):
            memory = dict(scored.memories.get(str(sample["doc_id"]), {}))
            if not memory:
                raise NammTransferError(
                    f"{str(scored.path)!r} does not say what the memory did on document {sample['doc_id']} of "
                    f"{scored.task!r}: {scored.harness} answered it from --use_cache; run it without"
                )
            said, videos = sample["filtered_resps"], memory.pop("videos", [])
            said = said[0] if isinstance(said, list) else said
            yield Record(
                index=index,
                id=str(sample["doc_id"]),
                category=scored.task,
                cluster=", ".join(videos) or None,
                policy=scored.policy.spec,
                score=_score(sample, metric, scored),
                answer=said if isinstance(said, str) else None,
                details={"right_answer": str(sample["target"])},
                **memory,
            )


def _metric(scored: Scored) -> str:
    """Choose the first metric of which more is better, or the first that counts the log-likelihood of texts."""
    better = scored.results["higher_is_better"][scored.task]
    for metric in scored.metrics:
        if better.get(metric) or metric in PER:
            return str(metric)
    raise NammTransferError(
        f"no metric of {scored.task!r} is known to be better when higher; expected --metric with one of "
        f"{', '.join(scored.metrics)}"
    )


def _score(sample: dict[str, Any], metric: str, scored: Scored) -> float:
    value = sample.get(metric)
    if isinstance(value, dict):  # of lmms-eval's tasks, with the groups that they average over
        value = value.get("score")
    if metric in PER and isinstance(value, list) and len(value) == 2:
        value = value[0] / max(value[1], 1)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise NammTransferError(
            f"{metric!r} of document {sample['doc_id']} of {scored.task!r} is {value!r}: expected a metric that is a "
            f"number for each document, one of {', '.join(scored.metrics)}"
        )
    return float(value)
