"""`benchmarks/gpu.py` end to end on models of two narrow layers, on the CPU."""

import json
import sys

import pytest
import torch
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu
import gpu_checks
import gpu_models

CPU = torch.device("cpu")


def run(monkeypatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", *arguments])
    with pytest.raises(SystemExit) as exit_:
        gpu.main()
    return exit_.value.code


def test_the_whole_program(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DECODED", 6)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    assert run(monkeypatch, "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == found["skipped"] == []
    assert list(found["tables"]) == [f"{shape.name}, {n}" for shape in gpu_models.shapes(True) for n in shape.lengths]
    for rows in found["tables"].values():
        assert rows.keys() == gpu_models.SIDES.keys()
        assert rows["full"]["kept"] == rows["namm, all kept"]["kept"] == 1
        assert rows["h2o, keep 0.5"]["held"] > 0
        assert all(0 < row["decode limit"] < 10 and row["prefill"] > 0 for row in rows.values())
    log = (tmp_path / "gpu.log").read_text()
    assert "FAILED" not in log
    assert log.count("100.0000% of the kept tokens agree") >= 15
    assert "LLaVA-NeXT-Video-7B, frames, 4 frames, 56 tokens" in log


def test_a_budget_that_is_spent_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "checks", lambda *some: iter([("made up", False)]))
    assert run(monkeypatch, "--out", str(tmp_path), "--budget", "0", "--shapes", "Smol") == "1 checks failed"
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["failed"], found["skipped"], found["tables"]) == (["made up"], ["SmolLM2-135M, 160"], {})


def test_checks_see_what_is_wrong(monkeypatch):
    shape = gpu_models.shapes(True)[0]
    run, others = gpu_checks._run, iter(range(100))

    def disturbed(model, spec, ids):
        """Every other run reads other tokens."""
        return run(model, spec, (ids + next(others) % 2) % 1000)

    monkeypatch.setattr(gpu_checks, "_run", disturbed)
    with torch.inference_mode():
        met = [met for _, met in gpu_checks._fused(shape, CPU, "torch", 160)]
        assert len(met) == 10
        assert not any(met[2:5] + met[7:])  # the NAMMs may keep all of so few tokens
        assert not next(gpu_checks._full(shape, CPU, "torch", 160))[1]


def test_the_shapes_are_the_published_ones(monkeypatch):
    """Parameters of the decoders: Vicuna-7B, SmolLM2-135M and Qwen2.5-7B, without allocating any."""
    sizes = {}
    for shape in gpu_models.shapes(False):
        with torch.device("meta"):
            kind = gpu_models.LlavaNextVideoForConditionalGeneration if shape.video else gpu_models.Causal
            model = kind._from_config(shape.config) if shape.video else kind.from_config(shape.config)
        sizes[shape.name] = sum(p.numel() for p in model.parameters()) / 1e6
    assert sizes == {
        "LLaVA-NeXT-Video-7B, text": pytest.approx(6738, rel=1e-3),
        "LLaVA-NeXT-Video-7B, frames": pytest.approx(7063, rel=2e-3),
        "SmolLM2-135M": pytest.approx(134.5, rel=1e-3),
        "Qwen2.5-7B": pytest.approx(7616, rel=1e-3),
    }
