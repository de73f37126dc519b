"""Which KV heads need their cache, learned for all of them together.

    accelerate launch --multi_gpu --num_processes 2 studies/gates.py

Each head has a gate: open, and it reads everything; shut, and it reads the first and the newest tokens only. They open
and shut at random around their values while the language model answers training quizzes, and Adam moves the values
(compare DuoAttention, Xiao et al. 2024, arXiv 2410.10819). `heads.py --worth` says what such a choice of heads scores.
Killed, it goes on from the --gates file when it is called again.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save
from subject import StudyOptions, load
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from namm_transfer import NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.heads import RECENT, SINKS
from namm_transfer.evolution.progress import progress
from namm_transfer.evolution.quiz import Quiz
from namm_transfer.files import write_atomic
from namm_transfer.options import parse

NAME = "gated"
_SEED, _FIRST = 1, 10_000  # of the quizzes; none that the shipped NAMM learned from has a number as high
_TOKENS, _INTERVALS = (560, 680, 800, 960), (64, 128, 128, 256)
_QUIZZES = 2  # a step
_RATE, _WARM_UP = 0.08, 10
_NOISE = (0.55, 0.05)  # of the gates, logistic; first and last step
_PRICE, _PRICE_RATE, _STIFFNESS = 2.0, 0.1, 30.0  # as in learning a NAMM: of heads that are open
_PROSE, _PROSE_WEIGHT = 48, 0.2
_BEGINS, _ENDS = 2.0, 3.0  # gates start and stay within these
_SAVE_EVERY = 10


@dataclass
class Options(StudyOptions):
    """Learn which KV heads need their cache."""

    steps: int = 240
    """Of Adam, about six seconds each on two cores."""
    opened: float = 0.42
    """Share of the heads that is to be open."""
    gates: Path = Path("runs/gates.safetensors")
    """File of the result, and until then of the state."""


@dataclass
class Gating:
    """One prompt's passage through a model that is called with ``gating=`` this object."""

    opened: Tensor
    """(layers, kv_heads) bool: which heads read everything."""
    gates: Tensor
    """(layers, kv_heads): receives the gradient, as if the output were mixed in this proportion."""
    update_interval: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention output of one layer, (1, query_heads, tokens, value_dim)."""
        place = torch.arange(query.shape[2], device=query.device)
        updated = (place // self.update_interval * self.update_interval)[:, None]
        stays = (place < SINKS) | (place >= updated - RECENT)
        shape: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
        whole = scaled_dot_product_attention(query, key, value, is_causal=True, **shape)
        little = scaled_dot_product_attention(query, key, value, attn_mask=stays & (place <= place[:, None]), **shape)
        return _Choice.apply(whole, little, self.opened[layer], self.gates[layer])


class _Choice(torch.autograd.Function):
    """One of two outputs for each KV head; backward, a gate has the gradient of the way from one to the other."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, little: Tensor, opened: Tensor, gates: Tensor) -> Tensor:
        chosen = opened.repeat_interleave(whole.shape[1] // len(opened))[None, :, None, None]
        ctx.save_for_backward(whole, little, chosen)
        ctx.kv_heads = len(opened)
        return torch.where(chosen, whole, little)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        (gradient,), (whole, little, chosen) = gradients, ctx.saved_tensors
        way = (gradient.float() * (whole.float() - little.float())).sum((0, 2, 3))
        way = way.view(ctx.kv_heads, -1).sum(-1)
        return torch.where(chosen, gradient, 0), torch.where(chosen, 0, gradient), None, way


def gated_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function registered as "gated"; shapes as transformers has them."""
    layer: Any = module.layer_idx
    return kwargs["gating"].attend(layer, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, gated_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


class Gates:
    """Adam on the gates of a frozen language model, spread over processes; goes on from the `gates` file.

    Args:
        worth: (layers, kv_heads), measured head by head: where the gates begin.

    Raises:
        NammTransferError: a share of open heads that is none, or a file that is no state of this model's gates.
    """

    def __init__(self, adapter: CausalLMAdapter, worth: Tensor, options: Options, accelerator: Accelerator) -> None:
        self.adapter, self.options, self.accelerator = adapter, options, accelerator
        if not 0 < options.opened < 1:
            raise NammTransferError(f"opened={options.opened}: expected a share between 0 and 1")
        count, ranked = max(1, round(options.opened * worth.numel())), worth.flatten().sort(descending=True).values
        edge = ranked[count - 1 : count + 3].mean().clamp_min(1e-4)
        self.values = (worth.clamp_min(1e-4) / edge).log().clamp(-_BEGINS, _BEGINS).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.values], betas=(0.9, 0.98))
        self.log = torch.zeros(0, 3)  # log-probability of the answers, share of the heads open, price
        if options.gates.exists():
            self._resume()

    def run(self) -> Tensor:
        """Learn to the end: (layers, kv_heads), the higher the more a head needs its cache."""
        model: Any = self.adapter.model
        model.requires_grad_(False)
        model.set_attn_implementation(NAME)
        try:
            with progress(self.accelerator, "gates", self.options.steps, len(self.log)) as bar:
                while len(self.log) < self.options.steps:
                    self._step(len(self.log))
                    if len(self.log) % _SAVE_EVERY == 0 or len(self.log) == self.options.steps:
                        self._save()
                    said, opened, _ = self.log[-_SAVE_EVERY:].mean(0).tolist()
                    bar.set_postfix(answers=f"{said:.2f}", open=f"{opened:.2f}")
                    bar.update()
        finally:
            model.set_attn_implementation("memory")
        return self.values.detach()

    def _step(self, step: int) -> None:
        """Every process takes some of the quizzes, all take the same step."""
        done, price = step / self.options.steps, float(self.log[-1, 2]) if step else _PRICE
        table = torch.zeros(_QUIZZES, self.values.numel() + 2)
        for number in range(self.accelerator.process_index, _QUIZZES, self.accelerator.num_processes):
            table[number] = self._lesson(step, _FIRST + step * _QUIZZES + number, done, price)
        table = self.accelerator.reduce(table.to(self.accelerator.device), "sum").cpu()
        mean = table.mean(0)
        self.values.grad, (said, opened) = mean[:-2].view_as(self.values), mean[-2:].tolist()
        self.optimizer.param_groups[0]["lr"] = _RATE * min(1, (step + 1) / _WARM_UP) * (1 - 0.9 * done)
        self.optimizer.step()
        with torch.no_grad():
            self.values.clamp_(-_ENDS, _ENDS)
        price = max(0.0, price + _PRICE_RATE * (opened - self.options.opened))
        self.log = torch.cat([self.log, torch.tensor([[said, opened, price]])])

    def _lesson(self, step: int, number: int, done: float, price: float) -> Tensor:
        """(heads + 2,): gradient of one quiz's loss, mean log-probability of its answers, share of the heads open."""
        common = random.Random(f"{step}")  # so that no process waits long for another
        tokens, interval = common.choice(_TOKENS), common.choice(_INTERVALS)
        quiz = Quiz.make(self.adapter, _SEED, number, tokens)
        uniform = torch.rand(self.values.shape, generator=torch.Generator().manual_seed(number))
        noise = (_NOISE[0] + (_NOISE[1] - _NOISE[0]) * done) * uniform.clamp(1e-4, 1 - 1e-4).logit()
        noisy = self.values + noise
        opened = noisy >= 0
        device, places = self.adapter.device, range(interval, quiz.text - 1)
        gating = Gating(opened.to(device), noisy.sigmoid().to(device), interval)
        beside = sorted(random.Random(number).sample(places, min(_PROSE, len(places))))
        answers, prose = quiz.likelihood(self.adapter.model, beside, gating=gating, use_cache=False)
        share = opened.float().mean()
        size = (price + _STIFFNESS * (share - self.options.opened)) * self.values.sigmoid().mean()
        loss = size.to(device) - answers - _PROSE_WEIGHT * prose
        (gradient,) = torch.autograd.grad(loss, self.values)
        gradient = gradient * (1 / gradient.norm()).clamp_max(1.0)
        return torch.cat([gradient.flatten(), torch.stack([answers.detach().cpu(), share])])

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {"worth": self.values.detach(), "log": self.log} | self.optimizer.state_dict()["state"][0]
            write_atomic(self.options.gates, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _resume(self) -> None:
        tensors = load_file(self.options.gates)
        shape = tensors["worth"].shape if "worth" in tensors else None
        if shape != self.values.shape or "log" not in tensors:
            raise NammTransferError(
                f"{self.options.gates} is no state to go on from: expected a log, and gates of shape "
                f"{tuple(self.values.shape)}, layers and heads; found {tuple(shape or ())}"
            )
        self.values.data, self.log = tensors.pop("worth"), tensors.pop("log")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {0: tensors}})


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(Options, arguments)
    accelerator, adapter, _, worth = load(options)
    gates = Gates(adapter, worth, options, accelerator).run()
    accelerator.print(f"{int((gates > 0).sum())} of {gates.numel()} heads open; gates in {options.gates}")


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
