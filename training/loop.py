"""The optimisation loop of all training: schedule, clipping, processes, checkpoints, log and progress bar.

A training is a module, an optimiser and a function `loss(step, part)`. That function must depend on the step and the
part alone (seed every random draw from them), so that a run that was killed goes on exactly as if it had not been.

A step averages the gradients of its parts (micro-batches), which the processes of an `Accelerator` share. Each part's
gradient is clipped by itself and the average is taken in the order of the parts, so the number of processes changes
the speed only; processes beyond the number of parts have nothing to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.files import write_atomic

_AVERAGED = 10  # last steps whose mean the progress bar shows
_LOG, _SECONDS = "log", "seconds"

Loss = Callable[[int, int], tuple[Tensor, Sequence[float]]]
"""Function of (step, part) that returns a scalar with a gradient and one number for each name in `Loop.metrics`."""


def warm_up_cosine(steps: int, warm_up: int, floor: float) -> Callable[[int], float]:
    """Return a schedule, the share of the peak learning rate at a step: linear warm-up times a cosine to `floor`."""
    return lambda step: min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) / 2 * (1 + cos(pi * step / steps)))


def progress_bar(accelerator: Accelerator, what: str, total: int | None = None, done: int = 0) -> tqdm[Any]:
    """Show a progress bar on the main process alone, until its stage ends; `total` is None if unknown."""
    silent = not accelerator.is_main_process
    return tqdm(total=total, initial=done, desc=what, leave=False, disable=silent, dynamic_ncols=True)


def check_identity(path: Path, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a file that another configuration or other data made.

    Args:
        stored, own: what decides the result, by name; values as JSON reads them back.

    Raises:
        NammTransferError: they differ; the message names each difference with both values.
    """
    own, absent = json.loads(json.dumps(own)), "nothing"
    names = [name for name in {**stored, **own} if stored.get(name, absent) != own.get(name, absent)]
    if names:
        found = "; ".join(
            f"it was made with {name}={stored.get(name, absent)!r}, this run has {name}={own.get(name, absent)!r}"
            for name in names
        )
        raise NammTransferError(f"{path} cannot be continued: {found}; expected the same, or another folder")


@dataclass
class Loop:
    """One training run. Constructing it loads the checkpoint in `path` if there is one; `run` trains to the end.

    Raises:
        NammTransferError: the checkpoint cannot be read, has another identity, or has more steps than `steps`.
    """

    module: nn.Module
    """The module, whose whole state dict is checkpointed; the optimiser decides which parameters are trained."""
    optimizer: Optimizer
    """The optimiser; its learning rate is the peak of the schedule."""
    loss: Loss
    steps: int
    schedule: Callable[[int], float]
    """Share of the peak learning rate at a step."""
    accelerator: Accelerator
    path: Path | None = None
    """The checkpoint, a safetensors file; its log stands beside it as JSON lines. None keeps nothing on disk."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Options and data digests that decide the result, without those that may change while training goes on."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `loss` returns; the loss itself is always logged."""
    parts: int = 1
    """Micro-batches of a step."""
    clip: float | None = None
    """Largest norm of each part's gradient."""
    save_every: int = 100
    """Steps between checkpoints."""
    label: str = "training"
    """Name on the progress bar and in errors."""

    def __post_init__(self) -> None:
        self.names = ("loss", *self.metrics)
        self.log = torch.zeros(0, len(self.names))
        """(steps done, metrics) float32: the loss and the metrics of each step, means over its parts"""
        self.seconds = torch.zeros(0)
        """(steps done,) float32: seconds that each step took"""
        self.weights: list[Tensor] = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.resumed = self.path is not None and self.path.exists()
        if self.path is not None and self.resumed:
            self._load(self.path)
        if self.step > self.steps:
            raise NammTransferError(f"{self.path} has {self.step} steps; expected at most steps={self.steps}")

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.log)

    def run(self) -> None:
        """Train to the last step."""
        if self.step:  # the scheduler starts from here
            for group in self.optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        scheduler = LambdaLR(self.optimizer, self.schedule, last_epoch=self.step - 1)
        with progress_bar(self.accelerator, self.label, self.steps, self.step) as bar:
            while self.step < self.steps:
                began = time.monotonic()
                measured = self._average()
                self.optimizer.step()
                scheduler.step()
                self.log = torch.cat([self.log, measured[None]])
                self.seconds = torch.cat([self.seconds, torch.tensor([time.monotonic() - began])])
                if self.step % self.save_every == 0 or self.step == self.steps:
                    self.save()
                recent = self.log[-_AVERAGED:].nanmean(0).tolist()
                shown = dict(zip(self.names, (f"{value:.3f}" for value in recent), strict=True))
                bar.set_postfix(shown, refresh=False)
                bar.update()

    def save(self) -> None:
        """Write checkpoint and log, each atomically; `run` does it by itself."""
        if self.path is None or not self.accelerator.is_main_process:
            return
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if torch.is_tensor(value)}
        tensors |= {_LOG: self.log, _SECONDS: self.seconds}
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path, save(copies, metadata={"identity": json.dumps(self.identity, sort_keys=True)}))
        lines = []
        for step, (row, seconds) in enumerate(zip(self.log.tolist(), self.seconds.tolist(), strict=True), start=1):
            entry = {"step": step, **dict(zip(self.names, row, strict=True)), "seconds": seconds}
            lines.append(json.dumps({name: value if isfinite(value) else None for name, value in entry.items()}))
        write_atomic(self.path.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))

    def _average(self) -> Tensor:
        """Set the weights' gradients to the mean over the parts, equal in every process.

        Returns:
            (metrics,) float32 on the CPU: means of loss and metrics over the parts.
        """
        sizes = [weight.numel() for weight in self.weights]
        extra = len(self.weights) + len(self.names)  # whether a weight has a gradient at all, and what was measured
        rows = torch.zeros(self.parts, sum(sizes) + extra, device=self.weights[0].device)
        for part in range(self.accelerator.process_index, self.parts, self.accelerator.num_processes):
            rows[part] = self._gradient(part)
        table = self.accelerator.reduce(rows.to(self.accelerator.device), "sum")  # one process filled each row
        mean = table.mean(0).to(rows.device)
        *gradients, used, measured = mean.split([*sizes, len(self.weights), len(self.names)])
        for weight, gradient, share in zip(self.weights, gradients, used.tolist(), strict=True):
            weight.grad = (
                gradient.view_as(weight).to(weight.dtype) if share else None
            )  # without one, no weight decay either
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise NammTransferError(f"{self.label}: the gradient of step {self.step} is not finite")
        return measured.cpu()

    def _gradient(self, part: int) -> Tensor:
        """Compute one row of the table: the gradient, which weights have one, loss and metrics."""
        self.optimizer.zero_grad()
        loss, metrics = self.loss(self.step, part)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip)
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        numbers = [*(float(weight.grad is not None) for weight in self.weights), float(loss.detach()), *metrics]
        return torch.cat([*(g.flatten() for g in gradients), torch.tensor(numbers, device=loss.device)])

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                stored = json.loads((file.metadata() or {})["identity"])
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            check_identity(path, stored, self.identity)
            self.log, self.seconds = tensors.pop(_LOG), tensors.pop(_SECONDS)
            module = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
            self.module.load_state_dict(module)
            state: dict[int, dict[str, Tensor]] = {}
            for key in tensors.keys() - {f"module.{name}" for name in module}:
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = tensors[key]
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise NammTransferError(f"{path} is no checkpoint of this training: {first}") from error
