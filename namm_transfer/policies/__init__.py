"""Eviction policies by name: rules from the literature, and NAMM.

``policies.make("h2o:keep=0.5")`` reads the command line's notation; the classes serve the same from Python, for example
``policies.H2O(keep=0.5)``. Each rule's class names the paper it comes from.
"""

from namm_transfer.policies.full import FullCache
from namm_transfer.policies.h2o import H2O
from namm_transfer.policies.infinipot import InfiniPotV
from namm_transfer.policies.keydiff import KeyDiff
from namm_transfer.policies.leverage import Leverage
from namm_transfer.policies.norms import L2Norm, ValueNorm
from namm_transfer.policies.random_eviction import RandomEviction
from namm_transfer.policies.recent import Recent, Streaming
from namm_transfer.policies.registry import GROUP, REGISTRY, PolicySpec, make, names, option_names, parse
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policies.snapkv import SnapKV
from namm_transfer.policies.tova import TOVA
from namm_transfer.selection import with_schedule

__all__ = [
    "GROUP",
    "H2O",
    "REGISTRY",
    "TOVA",
    "FullCache",
    "InfiniPotV",
    "KeyDiff",
    "L2Norm",
    "Leverage",
    "PolicySpec",
    "RandomEviction",
    "Recent",
    "ScoredPolicy",
    "SnapKV",
    "Streaming",
    "ValueNorm",
    "make",
    "names",
    "option_names",
    "parse",
    "with_schedule",
]
