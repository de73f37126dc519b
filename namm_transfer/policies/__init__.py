"""Eviction policies by name: hand-written rules after the papers they come from, and NAMM."""

from namm_transfer.policies.registry import REGISTRY, PolicySpec, make, parse
from namm_transfer.policies.rules import (
    H2O,
    TOVA,
    FullCache,
    L2Norm,
    RandomEviction,
    ScoredPolicy,
    SnapKV,
    Streaming,
)
from namm_transfer.policy import with_schedule

__all__ = [
    "H2O",
    "REGISTRY",
    "TOVA",
    "FullCache",
    "L2Norm",
    "PolicySpec",
    "RandomEviction",
    "ScoredPolicy",
    "SnapKV",
    "Streaming",
    "make",
    "parse",
    "with_schedule",
]
