"""Neural Attention Memory Models for the key/value cache of any transformer.

Importing this package registers the attention implementation "memory" with transformers and changes nothing else.
"""

from importlib.metadata import PackageNotFoundError, version

from namm_transfer import policies
from namm_transfer.cache.attention import register
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.cache.report import MemoryReport, RowReport
from namm_transfer.errors import NammTransferError
from namm_transfer.namm import NAMM
from namm_transfer.policy import EvictionPolicy, LayerView
from namm_transfer.selection import CacheSize
from namm_transfer.testing import check_adapter, check_policy

__all__ = [
    "NAMM",
    "CacheSize",
    "EvictionPolicy",
    "LayerView",
    "MemoryCache",
    "MemoryReport",
    "NammTransferError",
    "RowReport",
    "__version__",
    "check_adapter",
    "check_policy",
    "policies",
]

try:
    __version__ = version("namm-transfer")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"

register()
