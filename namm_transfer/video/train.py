"""Trains the shipped small model: `python -m namm_transfer.video.train --out assets/llava-next-video-small`.

Two stages. The vision tower first learns to name what single frames show (place, shape, colour, disturbance), read off
each of the four pooled tokens by linear heads that are thrown away. Then, with the vision tower at rest, projector and
text model learn to answer, on films of 16, then 32, then 64 frames. All questions of a film share one pass: behind the
video's tokens each question sees the video and itself only, at the positions it would have alone, so packing is exact.

Frames are drawn straight from the scenes, with noise like a codec's; they never were a file. Everything is a function
of the step, so that a killed run goes on from its last checkpoint to the same model.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaNextVideoForConditionalGeneration

from namm_transfer.files import write_atomic
from namm_transfer.video import scenes, small
from namm_transfer.video.batches import LABELS, Bank, language_batch, pooled_frames, vision_batch

CURRICULUM = ((16, 0.35), (32, 0.25), (64, 0.40))
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
    language_steps: int = 5000
    """Steps of `films` films for projector and text model."""
    films: int = 4
    """Films a language step."""
    takes: int = 12
    """Takes of 8 frames of every place, shape and colour that the language stage composes its films of."""
    learning_rate: float = 1e-3
    """Peak learning rate of both stages."""
    seed: int = 0
    """Of the initial weights; films are numbered from 0 in any case."""
    threads: int = 1
    """CPU threads."""


def vision_loss(model: LlavaNextVideoForConditionalGeneration, heads: nn.Module, step: int) -> tuple[Tensor, float]:
    """Mean cross-entropy of naming what a frame shows from each of its tokens, and the share named right."""
    pixels, labels = vision_batch(step)
    tokens = model.model.multi_modal_projector(pooled_frames(model, pixels))
    logits = heads(F.rms_norm(tokens, tokens.shape[-1:]))
    parts = logits.split([len(names) for names in LABELS[:3]] + [len(LABELS[3]) + 1], dim=-1)
    truth = labels[:, None].expand(-1, parts[0].shape[1], -1)
    loss = sum(F.cross_entropy(part.flatten(0, 1), truth[..., i].flatten()) for i, part in enumerate(parts))
    right = [(part.argmax(-1) == truth[..., i])[truth[..., i] >= 0].float().mean() for i, part in enumerate(parts)]
    return loss, float(torch.stack(right).mean())


def language_loss(
    model: LlavaNextVideoForConditionalGeneration, bank: Bank, step: int, films: int, frames: int
) -> tuple[Tensor, list[float]]:
    """Cross-entropy of words and letters, and the share of right words and of right letters by question type."""
    batch = language_batch(bank, step, films, frames)
    tokens = model.model.multi_modal_projector(batch.features.float())
    embeds = model.get_input_embeddings()(batch.ids)
    is_video = (batch.ids == model.config.video_token_id)[..., None]
    embeds = embeds.masked_scatter(is_video, tokens.to(embeds.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    asked = batch.targets >= 0
    logits = model.lm_head(hidden[asked]).float()
    truth, kinds = batch.targets[asked], batch.kinds[asked]
    right = (logits.argmax(-1) == truth).float()
    return F.cross_entropy(logits, truth), [float(right[kinds == kind].mean()) for kind in range(-1, len(scenes.TYPES))]


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


def run_stage(options: Options, model: LlavaNextVideoForConditionalGeneration, stage: str) -> float:
    """Train one stage, going on from its checkpoint; returns the seconds it took, earlier sessions included."""
    torch.manual_seed(options.seed)
    width, outputs = model.config.text_config.hidden_size, sum(map(len, LABELS)) + 1
    heads = nn.Linear(width, outputs)
    if stage == "vision":
        steps = options.vision_steps
        parts = (model.model.vision_tower, model.model.multi_modal_projector, heads)
        trained = [parameter for part in parts for parameter in part.parameters()]
    else:
        steps = options.language_steps
        trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.02)
    file, first, spent = options.work / f"{stage}.pt", 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    began = time.monotonic()
    bank = Bank(model, options.takes) if stage == "language" else None
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=5)
    recent: list[list[float]] = []
    for step in progress:
        optimizer.param_groups[0]["lr"] = schedule(step, steps, options.learning_rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=stage == "language"):
            if stage == "vision":
                loss, share = vision_loss(model, heads, step)
                shares = [share]
            else:
                loss, shares = language_loss(model, bank, step, options.films, frames_at(step, steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent.append([float(loss.detach()), *shares])
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = np.nanmean(np.array(recent[-100:]), axis=0)
            progress.write(f"{stage} {step + 1} loss {mean[0]:.4f} right " + " ".join(f"{v:.3f}" for v in mean[1:]))
            buffer = io.BytesIO()
            seconds = spent + time.monotonic() - began
            torch.save({"model": model.state_dict(), "heads": heads.state_dict(), "step": step + 1, "seconds": seconds,
                        "optimizer": optimizer.state_dict()}, buffer)  # fmt: skip
            write_atomic(file, buffer.getvalue())
    return spent + time.monotonic() - began


def main(options: Options) -> None:
    """Train both stages and write model and processor to `options.out`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = LlavaNextVideoForConditionalGeneration(small.config())
    model.model.vision_tower.train()
    for stage in ("vision", "language"):
        seconds = run_stage(options, model, stage)
        print(f"{stage}: {seconds / 60:.1f} minutes")
    model.save_pretrained(options.out)
    small.processor().save_pretrained(options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options))
