"""Policies that keep everything and record the spectra of the full cache (spec section 4)."""

from __future__ import annotations

from torch import Tensor

from namm_transfer.moments import Moments
from namm_transfer.namm import NAMM
from namm_transfer.policy import LayerView


class SpectrumRecorder(NAMM):
    """Keeps every token, and records the spectra of every layer at every update."""

    def __init__(self, update_interval: int) -> None:
        super().__init__(update_interval)
        self.spectra: list[Tensor] = []
        """One (kv_heads, 17, tokens) for each layer and update, of the first sequence of the batch."""

    def select(self, view: LayerView) -> Tensor:
        """Keep every token."""
        self.spectra.append(view.state["spectrum"][0].clone())
        return view.real


class MomentsRecorder(NAMM):
    """Keeps everything and accumulates mean and variance of what `scorer` normalises, at every update.

    Old tokens are shown again at each update and count again, as in the published training.
    """

    def __init__(self, update_interval: int = 512, attention_dtype: str = "float32", scorer: str = "published") -> None:
        super().__init__(update_interval, attention_dtype=attention_dtype, scorer=scorer)
        self.moments = Moments()

    def select(self, view: LayerView) -> Tensor:
        """Keep every token."""
        spectrum = self.form.compress(view.state["spectrum"]).transpose(-1, -2)
        self.moments.add(spectrum[view.real])
        return view.real
