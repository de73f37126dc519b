"""Measures beside the score: distances of distributions, and overlap of the tokens that two policies keep."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from tiny_evaluation import Evaluator, main

from namm_transfer import MemoryCache, policies
from namm_transfer.cache.keyword import CACHE
from namm_transfer.evals.harness import agreement
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.schema import Record

POLICIES = ["--policy", "streaming:keep=0.5,full,h2o:keep=0.3,random:match=h2o"]


class Measuring(Evaluator):
    """The tiny evaluation, which also gives what is compared between policies."""

    @torch.inference_mode()
    def score(self, sample, policy):
        outcome = super().score(sample, policy)
        cache = MemoryCache(self.model.config, policy=policy)
        outcome.next_token = 40 * self.model(sample.payload[None, :-1], **{CACHE: cache}).logits[0, -1]
        outcome.held = agreement.sketch(cache)
        return outcome


def records(folder) -> dict[tuple[str, int], Record]:
    lines = [line for path in ledger.find(folder) for line in path.read_text().splitlines()[1:]]
    return {(record.policy, record.index): record for record in map(Record.model_validate_json, lines)}


def test_divergence_is_scipys(monkeypatch):
    first, second = (torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))
    p, q = agreement.distribution(first), agreement.distribution(second)
    expected = jensenshannon(p, q, base=2) ** 2
    assert agreement.divergence(agreement.most_probable(p), q) == pytest.approx(expected, abs=1e-9)
    assert agreement.divergence(agreement.most_probable(p), p) == pytest.approx(0, abs=1e-12)
    apart = agreement.divergence(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]))
    assert apart == pytest.approx(1)
    monkeypatch.setattr(agreement, "MOST_TOKENS", 100)  # the rest counts as one token, which can only lose
    assert 0.8 * expected < agreement.divergence(agreement.most_probable(p), q) <= expected


def test_overlap_is_the_jaccard_index_of_what_is_held():
    model = Evaluator().model
    ids = torch.randint(0, 50, (1, 60))
    caches = [MemoryCache(model.config, policy=policies.make(spec, update_interval=16))
              for spec in ("random:keep=0.5", "recent:keep=0.4")]  # fmt: skip
    with torch.no_grad():
        for cache in caches:
            model(ids, **{CACHE: cache})
    first, second = map(agreement.sketch, caches)
    found = agreement.overlap(first, second)
    for layer, head in np.ndindex(2, 2):
        a, b = ({*cache.positions(layer)[0, head].tolist()} for cache in caches)
        assert found[layer][head] == pytest.approx(len(a & b) / len(a | b), abs=1e-4)
    assert agreement.overlap(first, first) == [[1.0, 1.0]] * 2


def test_a_run_records_and_reports_both(tmp_path):
    report = main(["--out", str(tmp_path), "--limit", "4", *POLICIES], Measuring())
    found = records(tmp_path)
    assert all((record.divergence is None) == (policy == "full") for (policy, _), record in found.items())
    assert max(record.divergence or 0 for record in found.values()) > 1e-3
    assert not any(record.overlaps for (policy, _), record in found.items() if policy in ("full", "streaming:keep=0.5"))
    assert list(found["random:match=h2o", 0].overlaps) == ["streaming:keep=0.5", "h2o:keep=0.3"]
    rows = {row.policy: row.divergence for row in report.summary}
    assert rows["full"] is None
    assert rows["h2o:keep=0.3"] == pytest.approx(
        np.mean([record.divergence for (policy, _), record in found.items() if policy == "h2o:keep=0.3"])
    )
    pairs = {(item.policy, item.other): item for item in report.overlaps}
    assert len(pairs) == 3
    chance = pairs["random:match=h2o", "h2o:keep=0.3"]
    assert chance.jaccard == pytest.approx(chance.chance, abs=0.12)
    assert len(chance.by_layer) == 2
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "JS div." in text
        assert "tokens that two policies keep in common" in text


def test_a_resumed_run_compares_with_what_is_on_disk(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(["--out", str(whole), "--limit", "4", *POLICIES], Measuring())
    main(["--out", str(parts), "--limit", "4", *POLICIES], Measuring())
    (path,) = ledger.find(parts)
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, *lines[:7]]))
    main(["--out", str(parts), "--limit", "4", "--resume", *POLICIES], Measuring())
    strip = {"seconds": 0.0}
    assert {key: record.model_copy(update=strip) for key, record in records(parts).items()} == {
        key: record.model_copy(update=strip) for key, record in records(whole).items()
    }


def test_an_evaluation_that_measures_neither_has_no_columns(tmp_path):
    main(["--out", str(tmp_path), "--limit", "2"])
    rows = [line for line in (tmp_path / "report.md").read_text().split("\n") if line.startswith("|")]
    assert rows
    assert not any("JS div." in row for row in rows)
    assert json.loads((tmp_path / "report.json").read_text())["overlaps"] == []
