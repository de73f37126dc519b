"""Trains the shipped small model: `python -m namm_transfer.training.video.train --out assets/llava-next-video-small`.

Three stages. The vision tower learns to name what single frames show (place, shape, colour, disturbance), read off each
of the four pooled tokens by linear heads that are thrown away. The projector learns to say the same in the text model's
own word embeddings. Then projector and text model learn to answer, on films of 16, then 32, then 64 frames, with the
vision tower at rest. All questions of a film share one pass: behind the video's tokens each question sees the video and
itself only, at the positions it would have alone, so packing is exact.

Frames are drawn straight from the scenes, with noise like a codec's; they never were a file. Everything is a function
of the step, so that a killed run goes on from its last checkpoint to the same model.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaNextVideoForConditionalGeneration

from namm_transfer.evals.tasks.video import scenes
from namm_transfer.files import write_atomic
from namm_transfer.training.video import small
from namm_transfer.training.video.batches import LABELS, WORDS, Bank, language_batch, pooled_frames, vision_batch

STAGES = ("vision", "projector", "language")
CURRICULUM = ((16, 0.4), (32, 0.3), (64, 0.3))
"""(frames a film, share of the language steps)"""


@dataclass
class Options:
    """What to train and where to put it."""

    out: Path = Path("assets/llava-next-video-small")
    """Folder of the finished model, processor and tokenizer."""
    work: Path = Path("runs/llava-next-video-small")
    """Folder of the checkpoints; a run with the same folder goes on from them."""
    vision_steps: int = 1600
    """Steps of 64 frames for the vision tower."""
    projector_steps: int = 800
    """Steps of 64 frames for the projector."""
    language_steps: int = 3000
    """Steps of `films` films for projector and text model."""
    films: int = 4
    """Films a language step."""
    takes: int = 12
    """Takes of 8 frames of every place, shape and colour that the last two stages compose their films of."""
    learning_rate: float = 1e-3
    """Peak learning rate of every stage."""
    seed: int = 0
    """Of the initial weights; films are numbered from 0 in any case."""
    threads: int = 1
    """CPU threads."""


class Trainer:
    """One stage of training: which weights move, and the loss of a step."""

    EVERY = 100
    """Steps between checkpoints"""

    def __init__(
        self, options: Options, model: LlavaNextVideoForConditionalGeneration, stage: str, bank: Bank | None = None
    ) -> None:
        torch.manual_seed(options.seed)
        self.options, self.model, self.stage = options, model, stage
        self.steps: int = getattr(options, f"{stage}_steps")
        self.heads = nn.Linear(model.config.get_text_config().hidden_size, sum(map(len, LABELS)))
        core = model.model
        parts = {
            "vision": (core.vision_tower, core.multi_modal_projector, self.heads),
            "projector": (core.multi_modal_projector,),
            "language": (core.multi_modal_projector, core.language_model, model.lm_head),
        }[stage]
        self.weights = [parameter for part in parts for parameter in part.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, betas=(0.9, 0.98), weight_decay=0.02)
        self.bank = bank

    def loss(self, step: int) -> tuple[Tensor, list[float]]:
        """The loss of a step and the shares of right answers, by attribute or question type."""
        if self.stage == "vision":
            pixels, labels = vision_batch(step)
            return self._naming(pooled_frames(self.model, pixels), labels, self.heads.weight, self.heads.bias)
        if self.bank is None:
            self.bank = Bank(self.model, self.options.takes)
        if self.stage == "projector":
            words = WORDS.convert_tokens_to_ids([word for names in LABELS for word in names])
            embedded = self.model.get_input_embeddings()(torch.tensor(words)).detach()
            return self._naming(*self.bank.frames(np.random.default_rng([5, step]), 64), embedded, None)
        return self._answering(self.bank, step)

    def _naming(
        self, pooled: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, list[float]]:
        """Cross-entropy of naming what a frame shows from each of its tokens."""
        tokens = self.model.model.multi_modal_projector(pooled)
        logits = F.linear(F.rms_norm(tokens, tokens.shape[-1:]), weight, bias)
        parts = logits.split([len(names) for names in LABELS], dim=-1)
        truth = labels[:, None].expand(-1, tokens.shape[1], -1).unbind(-1)
        losses = [F.cross_entropy(part.flatten(0, 1), t.flatten()) for part, t in zip(parts, truth, strict=True)]
        right = [(part.argmax(-1) == t)[t >= 0].float().mean() for part, t in zip(parts, truth, strict=True)]
        return torch.stack(losses).sum(), [float(share) for share in right]

    def _answering(self, bank: Bank, step: int) -> tuple[Tensor, list[float]]:
        """Cross-entropy of the answers' words."""
        batch = language_batch(bank, step, self.options.films, frames_at(step, self.steps))
        core = self.model.model
        tokens = core.multi_modal_projector(batch.features)
        embeds = self.model.get_input_embeddings()(batch.ids)
        is_video = (batch.ids == self.model.config.video_token_id)[..., None]
        embeds = embeds.masked_scatter(is_video, tokens.to(embeds.dtype))
        hidden = core.language_model(
            inputs_embeds=embeds, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        asked = batch.targets >= 0
        logits, truth, kinds = self.model.lm_head(hidden[asked]).float(), batch.targets[asked], batch.kinds[asked]
        right = (logits.argmax(-1) == truth).float()
        return F.cross_entropy(logits, truth), [float(right[kinds == kind].mean()) for kind in range(len(scenes.TYPES))]

    def run(self) -> float:
        """Train, from the last checkpoint if there is one; returns the seconds it took, earlier sessions included."""
        file = self.options.work / f"{self.stage}.pt"
        first, spent = self._restore(file)
        began = time.monotonic()
        progress = tqdm(range(first, self.steps), initial=first, total=self.steps, desc=self.stage, mininterval=5)
        recent: list[list[float]] = []
        for step in progress:
            self.optimizer.param_groups[0]["lr"] = schedule(step, self.steps, self.options.learning_rate)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.stage == "language"):
                loss, shares = self.loss(step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            recent.append([float(loss.detach()), *shares])
            if (step + 1) % self.EVERY == 0 or step + 1 == self.steps:
                mean = np.nanmean(np.array(recent[-self.EVERY :]), axis=0)
                right = " ".join(f"{share:.3f}" for share in mean[1:])
                progress.write(f"{self.stage} {step + 1} loss {mean[0]:.4f} right {right}")
                self._save(file, step + 1, spent + time.monotonic() - began)
        return spent + time.monotonic() - began

    def _save(self, file: Path, step: int, seconds: float) -> None:
        buffer = io.BytesIO()
        parts: dict[str, Any] = {"model": self.model, "heads": self.heads, "optimizer": self.optimizer}
        torch.save(
            {**{key: part.state_dict() for key, part in parts.items()}, "step": step, "seconds": seconds}, buffer
        )
        write_atomic(file, buffer.getvalue())

    def _restore(self, file: Path) -> tuple[int, float]:
        """(steps done, seconds they took)"""
        if not file.exists():
            return 0, 0.0
        state = torch.load(file, weights_only=True)
        for key, part in (("model", self.model), ("heads", self.heads), ("optimizer", self.optimizer)):
            part.load_state_dict(state[key])
        return state["step"], state["seconds"]


def schedule(step: int, steps: int, peak: float) -> float:
    """Learning rate: 100 steps of warm-up, then a cosine to a twentieth of the peak."""
    return peak * min(1, (step + 1) / 100) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


def frames_at(step: int, steps: int) -> int:
    """Frames a film at a language step."""
    done = 0.0
    for frames, share in CURRICULUM:
        done += share
        if step < done * steps:
            return frames
    return CURRICULUM[-1][0]


def main(options: Options) -> None:
    """Train all stages and write model and processor to `options.out`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = LlavaNextVideoForConditionalGeneration(small.config())
    bank = None
    for stage in STAGES:
        trainer = Trainer(options, model, stage, bank)
        print(f"{stage}: {trainer.run() / 60:.1f} minutes")
        bank = trainer.bank
    model.save_pretrained(options.out)
    small.processor().save_pretrained(options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options))
