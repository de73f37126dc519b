"""Normalisation statistics of the spectra on the full cache (spec section 4): estimated once, then frozen."""

from __future__ import annotations

from torch import Tensor

from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.policy import LayerView


class Spectra(NAMM):
    """A policy that keeps everything and remembers the spectra of every layer and update."""

    def __init__(self, update_interval: int = 512) -> None:
        super().__init__(update_interval)
        self.spectra: list[Tensor] = []
        """Each (KV heads, 17, tokens), of the first sequence of the batch."""

    def select(self, view: LayerView) -> Tensor:
        """All of them."""
        self.spectra.append(view.state["spectrum"][0].clone())
        return view.real


class Recorder(NAMM):
    """A policy that keeps everything and takes the moments of every spectrum it is shown at an update.

    Old tokens are shown again at each update and count again, as in the published training.
    """

    def __init__(self, update_interval: int = 512, attention_dtype: str = "float32") -> None:
        super().__init__(update_interval, attention_dtype=attention_dtype)
        self.moments = Moments()

    def select(self, view: LayerView) -> Tensor:
        """All of them."""
        spectrum = view.state["spectrum"].transpose(-1, -2)
        self.moments.add(spectrum[view.real])
        return view.real
