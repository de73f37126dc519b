"""The full cache, which evicts nothing."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from namm_transfer.policy import EvictionPolicy, LayerView


@dataclass
class FullCache(EvictionPolicy):
    """Keeps everything: the ordinary key/value cache, the baseline of every comparison."""

    name = "full"
    update_interval: int = 512
    evicts: ClassVar[bool] = False

    def select(self, view: LayerView) -> Tensor:
        """Mark all tokens."""
        return view.real
