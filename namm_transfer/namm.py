"""The Neural Attention Memory Model with backward attention (NAMM-BAM), paper section 3 (arXiv 2410.13166).

To be read next to the paper. At every update, each cached token has a spectrogram S of the attention it received
(`spectrogram.py`). S is normalised and joined to sinusoidal features of the token's age; one attention layer lets each
token look at itself and at newer tokens; one linear output scores it. Tokens that score zero or more stay. The same
4,172 parameters serve all layers and KV heads. ``scorer="deep"`` exchanges the network, and nothing else, for this
project's own (`scorers.py`).

The paper finds the parameters by evolution; those of the shipped ``namm-text`` were learned on text by gradient through
the evictions, and then searched with CMA-ES.
"""

import json
import os
from functools import lru_cache
from math import inf, isfinite
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from namm_transfer.errors import NammTransferError
from namm_transfer.files import asset, write_atomic
from namm_transfer.key_difference import key_difference
from namm_transfer.policy import EvictionPolicy, LayerView, check_interval
from namm_transfer.scorers import (
    FEATURES,
    RECENCY,
    Affine,
    Scorer,
    backward_attention,
    check_pooled_tokens,
    deep_scores,
    pool_newest,
    scorer,
)
from namm_transfer.selection import CacheSize, Protection, top
from namm_transfer.spectrogram import BINS, HOP
from namm_transfer.statistics import Spectrum

SELECTIONS = ("layer", "head")
ATTENTION_DTYPES = ("float32", "bfloat16", "float16")


class NAMM(nn.Module, PyTorchModelHubMixin, EvictionPolicy, library_name="namm-transfer", license="apache-2.0"):
    """An eviction policy: a frozen scoring network, and the statistics that its inputs are normalised with.

    Args:
        update_interval: number of real tokens between two updates; a multiple of 16.
        selection: ``"layer"``: all KV heads of a layer keep as many tokens as pass in the head where most do, as
            published; ``"head"``: each keeps exactly those that pass. Without effect if a size is given.
        keep: keep this share of the tokens seen, those of the best scores, instead of those that pass the threshold.
        budget: keep this number of tokens instead.
        match: keep as many as the named policy kept instead.
        attention_dtype: the dtype that attention weights are rounded to before the spectrogram; ``"bfloat16"`` is the
            published runs' "half attention".
        threshold: the score from which a token stays; 0 as published, higher for a smaller cache.
        protect: ``"A:B"``: the first A and the last B tokens are never evicted. They pass whatever their score, and
            count into a size.
        scorer: ``"published"`` or ``"deep"``; which form the scoring network has, see `scorers`.
        pooled_tokens: with the deep form, describe a head that holds more tokens than this by its newest ones, see
            `scorers.pool_newest`; by default by all that it holds.
        keydiff: share, from 0 to 1, of a head's places that go to the tokens whose keys differ most from the head's
            others (`key_difference`) in place of those of the best scores. The scores still say how many tokens a head
            keeps: the NAMM decides where, and at 1 KeyDiff which. 0 as published.

    Attributes:
        mean, var: (17,) float32 buffers, mean and variance of the spectrogram S on the full cache, or of its logarithm
            if that is what the scoring network reads.

    Raises:
        NammTransferError: an option has a value that is not listed here.
    """

    name = "namm"
    needs_attention = True
    hop = HOP
    mean: Tensor
    var: Tensor
    attention_in: Affine
    attention_out: Affine
    output: Affine

    def __init__(
        self,
        update_interval: int = 512,
        selection: str = "layer",
        keep: float | None = None,
        budget: int | None = None,
        match: str | None = None,
        attention_dtype: str = "float32",
        threshold: float = 0.0,
        protect: str | None = None,
        scorer: str = "published",
        pooled_tokens: int | None = None,
        keydiff: float = 0.0,
    ) -> None:
        super().__init__()
        check_interval(update_interval, HOP)
        if selection not in SELECTIONS:
            raise NammTransferError(f"selection={selection!r}: expected one of {', '.join(SELECTIONS)}")
        if attention_dtype not in ATTENTION_DTYPES:
            raise NammTransferError(
                f"attention_dtype={attention_dtype!r}: expected one of {', '.join(ATTENTION_DTYPES)}"
            )
        if not isfinite(threshold):
            raise NammTransferError(f"threshold={threshold!r}: expected a finite score")
        self.update_interval = update_interval
        self.selection = selection
        self.threshold = threshold
        self.match = match
        self.size = CacheSize(keep, budget, match)
        Protection.parse(protect, budget)
        self.protect = protect
        if threshold and self.size.asked:
            raise NammTransferError(f"threshold={threshold} and a size ({self.size}): expected one of the two")
        self.attention_dtype = attention_dtype
        self.scorer = scorer
        check_pooled_tokens(pooled_tokens, scorer)
        self.pooled_tokens = pooled_tokens
        if not 0 <= keydiff <= 1:
            raise NammTransferError(f"keydiff={keydiff!r}: expected a share from 0 to 1")
        self.keydiff = keydiff
        for name, shape in self.form.shapes.items():
            if name.endswith(".weight"):
                self.add_module(name.removesuffix(".weight"), Affine(*shape))
        self.register_buffer("mean", torch.zeros(BINS))
        self.register_buffer("var", torch.ones(BINS))
        self.requires_grad_(False)

    @property
    def form(self) -> Scorer:
        """The form of the scoring network."""
        return scorer(self.scorer)

    @property
    def by_head(self) -> bool:
        """True if KV heads are independent: each keeps exactly the tokens that pass the threshold."""
        return self.selection == "head" and not self.size.asked

    # -- the method -------------------------------------------------------------------------------------------------

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Return the state of new tokens: ``spectrum`` S, (batch, heads, 17, tokens) float32, and ``tail``, the last 16
        attention weights of each token, (batch, heads, 16, tokens), in the dtype they were rounded to."""
        rounded = getattr(torch, self.attention_dtype)
        return {
            "spectrum": torch.zeros(batch, heads, BINS, tokens, device=device),
            "tail": torch.zeros(batch, heads, HOP, tokens, dtype=rounded, device=device),
        }

    @property
    def statistic(self) -> Spectrum:
        """S, the moving average of the short-time spectra of a token's attention weights (paper section 3.1)."""
        return Spectrum()

    @property
    def deviation(self) -> Tensor:
        """(17,) float32, what normalised spectra are divided by."""
        return self.var.sqrt().clamp_min(1e-7)

    def features(self, spectrum: Tensor, positions: Tensor, oldest: int | None = None) -> Tensor:
        """Compute what the network reads: a token's age and its normalised spectrogram (paper section 3.1).

        Args:
            spectrum: S, (batch, heads, 17, tokens) float32.
            positions: (batch, heads, tokens), original positions, oldest first.
            oldest: an age that no token exceeds; without it, the device is asked.

        Returns:
            (batch, heads, tokens, 25) float32: 4 sines and 4 cosines of the age, then the normalised S.
        """
        age = (positions[..., -1:] - positions).long()
        oldest = int(age.max()) if oldest is None else oldest
        recency = _sinusoids(1 << oldest.bit_length(), age.device)[age]
        s = (self.form.compress(spectrum) - self.mean[:, None]) / self.deviation[:, None]
        return torch.cat([recency, s.transpose(-1, -2)], dim=-1)

    def score(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Run the scoring network: backward attention, then one linear output (paper section 3.2).

        Args:
            x: (batch, heads, tokens, 25), oldest token first, padding slots in front of all.
            real: (batch, heads, tokens) bool, which tokens are no padding slots. The published form may be spared it
                (see `backward_attention`); the deep one pools over these tokens.

        Returns:
            (batch, heads, tokens) scores.
        """
        if self.scorer == "deep":
            return deep_scores(self, x, pool_newest(x, real, self.pooled_tokens or x.shape[2], self.deviation))
        o = backward_attention(self.attention_in, x, real)
        a, u = self.attention_out(o).split(FEATURES, dim=-1)
        h = x * (1 + u) + a
        return self.output(h).squeeze(-1)

    def score_held(self, spectrum: Tensor, positions: Tensor, real: Tensor, oldest: int | None = None) -> Tensor:
        """Score the tokens that heads hold, (batch, heads, tokens), padding slots in front of all."""
        return self.score(self.features(spectrum, positions, oldest), real if self.scorer == "deep" else None)

    @torch.no_grad()
    def scores(self, view: LayerView) -> Tensor:
        """Score all cached tokens of a layer: (batch, heads, tokens) float32, meaningless at padding slots."""
        with torch.autocast(view.positions.device.type, enabled=False):
            if self.mean.device != view.positions.device:
                self.to(view.positions.device)
            return self.score_held(view.state["spectrum"], view.positions, view.real, max(view.seen))

    def select(self, view: LayerView) -> Tensor:
        """Choose the tokens that stay, (batch, heads, tokens) bool; the newest always does. How many a layer keeps is
        each sequence's own, where the published code takes the largest of the batch."""
        scores = self.scores(view).masked_fill(~view.real, -inf).masked_fill(self.protected(view), inf)
        scores[..., -1] = inf
        chosen = self._best(view, scores)
        return self._exchanged(view, scores, chosen.sum(-1)) if self.keydiff else chosen

    def _best(self, view: LayerView, scores: Tensor) -> Tensor:
        """Choose by the scores alone."""
        if self.size.asked:
            return top(scores, self.size.counts(view).clamp_min((scores == inf).sum(-1)))
        passing = scores >= self.threshold
        if self.selection == "head":
            return passing
        return top(scores, passing.sum(-1).amax(-1, keepdim=True).expand(scores.shape[:2]))

    def _exchanged(self, view: LayerView, scores: Tensor, counts: Tensor) -> Tensor:
        """Choose ``counts`` tokens of each head, a share of them by their keys."""
        by_score = (counts - (self.keydiff * counts).long()).clamp_min((scores == inf).sum(-1))
        first = top(scores, by_score)
        return top(key_difference(view).masked_fill(~view.real, -inf).masked_fill(first, inf), counts)

    # -- in and out -------------------------------------------------------------------------------------------------

    @classmethod
    def from_vector(cls, vector: Any, *, mean: Any, var: Any, **options: Any) -> Self:
        """Make a NAMM from a flat parameter vector.

        Args:
            vector: 4,172 numbers, array or tensor (14,753 with ``scorer="deep"``); `Scorer.shapes` is the layout.
            mean: 17 numbers, the mean of S that the parameters were found with.
            var: 17 numbers, its variance.
            options: as for the constructor.

        Raises:
            NammTransferError: another length, a value that is not finite, or a negative variance.
        """
        namm = cls(**options)
        with torch.no_grad():
            statistics = {"mean": _numbers("mean", mean, BINS), "var": _numbers("var", var, BINS)}
            namm._load(namm.form.split(_numbers("vector", vector, namm.form.size)) | statistics)
        return namm

    def to_vector(self) -> Tensor:
        """Return the flat parameter vector, (4172,) float32 (14753 of the deep form); `from_vector` takes it."""
        return torch.cat([self.get_parameter(name).detach().reshape(-1) for name in self.form.shapes])

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Make a NAMM from the published training code's ``ckpt.pt``, of which nothing but tensors is unpickled.

        Raises:
            NammTransferError: the file is not there, is unsafe or damaged, or holds no evolution state.
        """
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise NammTransferError(f"{path}: no such checkpoint") from None
        except Exception as error:  # what torch raises on a damaged or unsafe file differs by version
            raise NammTransferError(f"{path}: not a checkpoint that can be read safely: {error}") from error
        evolved = loaded.get("evolution_state") if isinstance(loaded, dict) else None
        if not isinstance(evolved, dict):
            raise NammTransferError(f"{path}: no 'evolution_state' in it; expected the training code's ckpt.pt")
        state = {str(key).removeprefix("_orig_mod."): value for key, value in evolved.items()}
        prefix = "stored_buffers_to_save.token_embedding_0_output_"
        names = {"vector": "mean", "mean": prefix + "mean", "var": prefix + "var"}
        missing = [name for name in names.values() if name not in state]
        if missing:
            raise NammTransferError(f"{path}: evolution_state lacks {', '.join(missing)}")
        parts = {key: torch.as_tensor(state[name]).reshape(-1) for key, name in names.items()}
        return cls.from_vector(parts["vector"], mean=parts["mean"], var=parts["var"], **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load a NAMM from a folder, a hub id, or the name of one that is shipped (``"namm-text"``).

        Args:
            pretrained_model_name_or_path: the folder, id or name.
            revision: branch, tag or commit of a hub repository; this and the next three are as in huggingface_hub.
            cache_dir: folder in which downloads are stored.
            token: access token for a private repository.
            local_files_only: whether to download nothing.
            options: override the stored configuration. ``keep``, ``budget`` and ``match`` replace each other, and a
                ``selection`` or ``threshold`` given without one of them replaces a stored one.

        Raises:
            NammTransferError: nothing is there, or its configuration or weights are not exactly a NAMM's.
        """
        source = str(pretrained_model_name_or_path)
        if not Path(source).is_dir() and "/" not in source and "\\" not in source:
            source = str(asset(source))
        hub = dict(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
        sizes = ("keep", "budget", "match")
        if any(options.get(size) is not None for size in sizes):
            options = dict.fromkeys(sizes) | {"threshold": 0.0} | options
        elif options.keys() & {"selection", "threshold"}:
            options = dict.fromkeys(sizes) | options
        try:
            config = json.loads(_locate(source, "config.json", hub).read_text())
            namm = cls(**config | options)
            namm._load(load_file(_locate(source, "model.safetensors", hub)))
        except (SafetensorError, OSError, TypeError, ValueError, RecursionError, NammTransferError) as error:
            raise NammTransferError(f"no NAMM can be loaded from {source!r}: {str(error).splitlines()[0]}") from error
        return namm

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights; the hub mixin, which calls this, has written the configuration."""
        write_atomic(save_directory / "model.safetensors", save(self.state_dict()))

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors if they are exactly the expected ones, else refuse them."""
        own = self.state_dict()
        if tensors.keys() != own.keys():
            unknown, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
            raise NammTransferError(f"weights do not fit: unknown {unknown}, missing {missing}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape or tensor.dtype != torch.float32:
                raise NammTransferError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}; expected torch.float32 {tuple(own[name].shape)}"
                )
            if not torch.isfinite(tensor).all():
                raise NammTransferError(f"{name} holds NaN or infinity; expected finite numbers")
        if (tensors["var"] < 0).any():
            raise NammTransferError(f"var has a negative entry: {tensors['var'].min():g}; expected variances")
        self.load_state_dict(tensors)


def _locate(source: str, name: str, hub: dict[str, Any]) -> Path:
    """Find a file of a folder or of a hub repository."""
    return Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name, **hub))


@lru_cache(maxsize=32)
def _sinusoids(ages: int, device: torch.device) -> Tensor:
    """Compute the features of ages 0 to ``ages`` - 1, (ages, 8) float32; the published table ends at age 32,768."""
    # The angles are float64: float32 would round away those of large ages.
    frequencies = 50000.0 ** (-torch.arange(RECENCY // 2, dtype=torch.float64) / 4)
    angles = torch.arange(ages, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(device)


def _numbers(name: str, values: Any, count: int) -> Tensor:
    if values is None:
        raise NammTransferError(f"{name} is missing: a NAMM needs its statistics; expected {count} numbers")
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().cpu()
    if tensor.shape != (count,):
        raise NammTransferError(f"{name} has shape {tuple(tensor.shape)}; expected ({count},)")
    return tensor.clone()
