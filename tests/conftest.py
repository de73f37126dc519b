"""Fixtures shared by all tests: offline, single-threaded, and nothing left behind."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from places import ROOT

from namm_transfer import NAMM
from namm_transfer.spectrogram import BINS


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind():
    """Tests write to tmp_path only."""
    before = set(ROOT.iterdir())
    yield
    left = {p.name for p in set(ROOT.iterdir()) - before} - {".pytest_cache", ".hypothesis"}
    assert not left, f"tests left {sorted(left)} in the checkout"


@pytest.fixture
def random_namm():
    """A NAMM with random weights that keeps some tokens and drops others; options as for `NAMM`."""

    def make(seed: int = 7, **options) -> NAMM:
        vector = torch.randn(4172, generator=torch.Generator().manual_seed(seed)) * 0.5
        return NAMM.from_vector(vector, mean=torch.zeros(BINS), var=torch.full((BINS,), 1e-4), **options)

    return make


@pytest.fixture
def zero_namm():
    """The NAMM the search starts from: every score is 0, which passes."""

    def make(**options) -> NAMM:
        return NAMM.from_vector(torch.zeros(4172), mean=torch.zeros(BINS), var=torch.ones(BINS), **options)

    return make
