"""Neural Attention Memory Models for any transformer: importing registers the attention implementation "memory"."""

from namm_transfer import policies
from namm_transfer.attention import register
from namm_transfer.cache import MemoryCache
from namm_transfer.conformance import check_adapter, check_policy
from namm_transfer.errors import NammTransferError
from namm_transfer.memory_report import MemoryReport, RowReport
from namm_transfer.namm import NAMM
from namm_transfer.policy import CacheSize, EvictionPolicy, LayerView

__all__ = [
    "NAMM",
    "CacheSize",
    "EvictionPolicy",
    "LayerView",
    "MemoryCache",
    "MemoryReport",
    "NammTransferError",
    "RowReport",
    "check_adapter",
    "check_policy",
    "policies",
]

register()
