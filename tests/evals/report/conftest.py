"""Report folders written through the ledger, without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from namm_transfer.evals.report import statistics
from namm_transfer.evals.report.ledger import Ledger, path_of
from namm_transfer.evals.report.schema import Policy, Provenance, Record, Run
from namm_transfer.policies import parse


@pytest.fixture(autouse=True)
def _few_resamples(request, monkeypatch) -> None:
    """A few hundred draws are enough for what these tests look at; those of the statistics themselves keep all."""
    if not request.module.__name__.endswith("test_report_statistics"):
        monkeypatch.setattr(statistics, "RESAMPLES", 499)


def _policy(spec: str) -> Policy:
    """What a run would record of a policy; the one it matches is called by its name."""
    parsed = parse(spec)
    shared = {key: parsed.options.get(key) for key in ("match", "allocation")}
    interval = parsed.options.get("update_interval", 16)
    return Policy(spec=spec, name=parsed.name, update_interval=interval, baseline=parsed.name == "full", **shared)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run of the given policies."""

    def make(policies: Sequence[str], samples: int, task: str = "video", **description) -> Run:
        provenance = Provenance(
            command="video.py --out there",
            started="2030-01-01T00:00:00+00:00",
            versions={"python": "3.11.7"},
            platform="Linux",
            cpu="a CPU",
            cores=2,
            accelerator="none",
            processes=1,
            git_hash="0" * 40,
            git_dirty=False,
        )
        return Run(
            task=task,
            samples=samples,
            samples_sha256="0" * 64,
            batch=1,
            policies=[_policy(spec) for spec in policies],
            options={"seed": 0, "threads": 1},
            description={"score": "accuracy", **description},
            provenance=provenance,
        )

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A record of 4 updates that held half of 100 tokens; anything can be said otherwise."""

    def make(index: int, policy: str, score: float | None, **other) -> Record:
        values = {
            "id": f"sample {index}",
            "category": "plot",
            "updates": 4,
            "seen": 100,
            "kept_share": 0.5,
            "peak_share": 0.9,
            "kept": [[40, 60], [50, 50]],
            "history": [[50.0] * 4] * 2,
            "answer": "(A)",
            "seconds": 0.5,
        }
        return Record(index=index, policy=policy, score=score, **{**values, **other})

    return make


@pytest.fixture
def write_folder(make_run, make_record) -> Callable[..., Path]:
    """A folder with one run of the given scores; `other` goes into its records, `description` into the run.

    `room` is how many samples more the run has than there are scores, for records that a test appends.
    """

    def write(
        folder: Path,
        scores: dict[str, Sequence[float | None]],
        *,
        task: str = "video",
        description=None,
        room: int = 0,
        **other,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        run = make_run(list(scores), max(map(len, scores.values())) + room, task=task, **(description or {}))
        ledger = Ledger(path_of(folder, task, 0), run)
        for policy, values in scores.items():
            for index, score in enumerate(values):
                ledger.add(make_record(index, policy, score, **other))
        ledger.close()
        return folder

    return write
