"""A report from what lm-eval wrote about its model `namm`: one record for each document of a task and policy.

Every policy is a run of lm-eval with --log_samples and the same --output_path; runs of other models are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
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


@dataclass
class Scored:
    """One task under one policy, as lm-eval wrote it."""

    path: Path
    """The results file."""
    results: dict[str, Any]
    """Its content."""
    task: str
    samples: list[dict[str, Any]]
    """The lines of the samples file, those of the task's first filter, by document."""

    @property
    def memory(self) -> dict[str, Any]:
        """The facts that the model `namm` wrote into the results."""
        found: dict[str, Any] = self.results["config"]["namm_transfer"]
        return found

    @property
    def policy(self) -> Policy:
        """The policy that was evaluated."""
        return Policy(**self.memory["policy"])

    def setting(self) -> dict[str, Any]:
        """The facts that all policies of one task must share."""
        config = {key: value for key, value in self.results["configs"][self.task].items() if key != "metadata"}
        documents = [(sample["doc_id"], sample["doc_hash"], sample["prompt_hash"]) for sample in self.samples]
        return {"model": self.results["model_name"], "task configuration": config, "documents": documents}


def convert(folder: Path, out: Path, metric: str | None = None) -> None:
    """Write the ledgers of a report folder.

    Args:
        folder: an --output_path of lm-eval.
        out: folder of the records; a report can then be built from it.
        metric: the score; by default the first metric of each task of which more is better.

    Raises:
        NammTransferError: nothing of `namm` there, files that lm-eval did not write, a policy twice, or policies that
            did not answer the same documents.
    """
    by_task: dict[str, list[Scored]] = {}
    for scored in _find(folder):
        by_task.setdefault(scored.task, []).append(scored)
    if not by_task:
        raise NammTransferError(
            f"no results of lm-eval's model namm in {str(folder)!r}; expected the --output_path of "
            "namm-transfer lm-eval --model namm ... --log_samples"
        )
    make_folder(out)
    for runs in by_task.values():
        _write(runs, out, metric)


def _find(folder: Path) -> Iterator[Scored]:
    for path in sorted(folder.rglob("results_*.json"), key=lambda path: path.name):
        try:
            results = json.loads(path.read_bytes())
            for task in results["config"].get("namm_transfer", {}).get("documents", {}):
                lines = path.with_name(f"samples_{task}_{path.stem.removeprefix('results_')}.jsonl")
                if not lines.is_file():
                    raise NammTransferError(f"{str(lines)!r} is missing; expected lm-eval to be run with --log_samples")
                samples = [json.loads(line) for line in lines.read_bytes().splitlines()]
                kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
                yield Scored(path, results, task, sorted(kept, key=lambda sample: sample["doc_id"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NammTransferError(f"{str(path)!r} is no results file of lm-eval: {error!r}") from error


def _write(runs: list[Scored], out: Path, metric: str | None) -> None:
    """The ledger of one task under all policies."""
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
        task=f"lm-eval/{first.task}",
        samples=len(ids),
        samples_sha256=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        batch=int(config["batch_size"]) if str(config["batch_size"]).isdigit() else 1,
        policies=[scored.policy for scored in runs],
        options={},
        description={
            "model": first.results["model_name"],
            "dtype": str(config.get("model_dtype")),
            "score": unit,
            "lm_eval": str(first.results.get("lm_eval_version")),
            "commands": {spec: scored.memory["provenance"]["command"] for spec, scored in by_policy.items()},
        },
        provenance=Provenance(**first.memory["provenance"]),
    )
    ledger.prepare(out, run, resume=False)
    book = ledger.Ledger(ledger.path_of(out, run.task, 0), run)
    for record in _records(runs, metric):
        book.add(record)
    book.close()


def _records(runs: Iterable[Scored], metric: str) -> Iterator[Record]:
    for scored in runs:
        documents = scored.memory["documents"][scored.task]
        for index, sample in enumerate(scored.samples):
            memory = documents.get(str(sample["doc_id"]))
            if memory is None:
                raise NammTransferError(
                    f"{str(scored.path)!r} does not say what the memory did on document {sample['doc_id']} of "
                    f"{scored.task!r}: lm-eval answered it from --use_cache; run it without"
                )
            said = sample["filtered_resps"][0]
            yield Record(
                index=index,
                id=str(sample["doc_id"]),
                category=scored.task,
                policy=scored.policy.spec,
                score=_score(sample, metric, scored),
                answer=said if isinstance(said, str) else None,
                details={"right_answer": str(sample["target"])},
                **memory,
            )


def _metric(scored: Scored) -> str:
    """The first metric of which more is better, or the first that counts the log-likelihood of texts."""
    better = scored.results["higher_is_better"][scored.task]
    for metric in scored.samples[0]["metrics"]:
        if better.get(metric) or metric in PER:
            return str(metric)
    raise NammTransferError(
        f"no metric of {scored.task!r} is known to be better when higher; expected --metric with one of "
        f"{', '.join(scored.samples[0]['metrics'])}"
    )


def _score(sample: dict[str, Any], metric: str, scored: Scored) -> float:
    value = sample.get(metric)
    if metric in PER and isinstance(value, list) and len(value) == 2:
        value = value[0] / max(value[1], 1)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise NammTransferError(
            f"{metric!r} of document {sample['doc_id']} of {scored.task!r} is {value!r}: expected a metric that is a "
            f"number for each document, one of {', '.join(sample['metrics'])}"
        )
    return float(value)
