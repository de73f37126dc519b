"""Train the shipped small model: `python -m namm_transfer.training.video.train --out assets/llava-next-video-small`.

Three stages. The vision tower learns to name what single frames show (place, shape, colour, disturbance), read off each
of the four pooled tokens by linear heads that are thrown away. The projector learns to say the same in the text model's
own word embeddings. Then projector and text model learn to answer, on films of 16, then 32, then 64 frames, with the
vision tower frozen. All questions of a film share one pass: each question sees the video and itself only, at the
positions it would have alone, so packing is exact.

Frames are drawn straight from the scenes, with noise like a codec's; they are never encoded. Each step depends on its
number alone, so that the same command continues a run that was killed, to the same model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaNextVideoForConditionalGeneration

from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.options import read_flags
from namm_transfer.evals.tasks.video.versions import film_set
from namm_transfer.training.half import save_half
from namm_transfer.training.loop import Loop, warm_up_cosine
from namm_transfer.training.video import batches, event_batches, small
from namm_transfer.training.video.batches import language_batch, pooled_frames, words

STAGES = ("vision", "projector", "language")
CURRICULA = {
    1: (((16,), 0.4), ((32,), 0.3), ((64,), 0.3)),
    2: (((16,), 0.3), ((32,), 0.15), ((64,), 0.26), ((128,), 0.1), ((64, 128, 256), 0.19)),
}
"""Curriculum of each version of the films: (frames a film, which take turns; share of the language steps)."""
LONGEST = 64
"""Frames a film beyond which a step has fewer films, so that it takes no longer."""


@dataclass
class Options:
    """Options of the training."""

    version: int = 1
    """Version of the films, 1 or 2; each has a model of its own."""
    out: Path = Path("assets/llava-next-video-small")
    """Folder of the finished model, processor and tokenizer."""
    work: Path = Path("runs/llava-next-video-small")
    """Folder of the checkpoints and logs; a run with the same folder continues them."""
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
    """Seed of the initial weights; films are numbered from 0 in any case."""
    threads: int = 1
    """CPU threads."""


class Trainer:
    """One stage of training: its trained weights and its loss."""

    EVERY = 100
    """Steps between checkpoints"""

    def __init__(
        self,
        options: Options,
        model: LlavaNextVideoForConditionalGeneration,
        stage: str,
        bank: batches.Bank | event_batches.EventBank | None = None,
    ) -> None:
        torch.manual_seed(options.seed)
        self.options, self.model, self.stage, self.bank = options, model, stage, bank
        self.steps: int = getattr(options, f"{stage}_steps")
        self.data = event_batches if options.version == 2 else batches
        self.heads = nn.Linear(model.config.get_text_config().hidden_size, sum(map(len, self.data.LABELS)))
        core = model.model
        parts = {
            "vision": (core.vision_tower, core.multi_modal_projector, self.heads),
            "projector": (core.multi_modal_projector,),
            "language": (core.multi_modal_projector, core.language_model, model.lm_head),
        }[stage]
        later = [f"{name}_steps" for name in STAGES[STAGES.index(stage) + 1 :]]
        unused = ("out", "work", "threads", *later)
        weights = list(dict.fromkeys(parameter for part in parts for parameter in part.parameters()))
        rate = options.learning_rate
        self.loop = Loop(
            nn.ModuleDict({"model": model, "heads": self.heads}),
            torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.02),
            self.loss,
            self.steps,
            schedule=warm_up_cosine(self.steps, 100, 0.05),
            accelerator=Accelerator(cpu=True),
            path=options.work / f"{stage}.safetensors",
            identity={name: value for name, value in asdict(options).items() if name not in unused},
            metrics=film_set(options.version).types if stage == "language" else self.data.ATTRIBUTES,
            clip=1.0,
            save_every=self.EVERY,
            label=stage,
        )

    def loss(self, step: int, part: int) -> tuple[Tensor, list[float]]:
        """Compute the loss of a step and the shares of right answers, by attribute or question type."""
        half = self.stage == "language" and self.options.version == 1
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return self._loss(step)

    def _loss(self, step: int) -> tuple[Tensor, list[float]]:
        if self.stage == "vision":
            pixels, labels = self.data.vision_batch(step)
            return self._naming(pooled_frames(self.model, pixels), labels, self.heads.weight, self.heads.bias)
        if self.bank is None:
            self.bank = self.data.make_bank(self.model, self.options.takes)
        if self.stage == "projector":
            names = [word for names in self.data.LABELS for word in names]
            ids = words(self.options.version).convert_tokens_to_ids(names)
            embedded = self.model.get_input_embeddings()(torch.tensor(ids)).detach()
            features, labels = self.bank.frames(np.random.default_rng([5, step]), 64)
            return self._naming(features, labels, embedded, None)
        return self._answering(self.bank, step)

    def _naming(
        self, pooled: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, list[float]]:
        """Compute the cross-entropy of labels, of a frame or of each token, predicted from each token."""
        tokens = self.model.model.multi_modal_projector(pooled)
        logits = F.linear(F.rms_norm(tokens, tokens.shape[-1:]), weight, bias)
        parts = logits.split([len(names) for names in self.data.LABELS], dim=-1)
        by_token = labels if labels.dim() == 3 else labels[:, None].expand(-1, tokens.shape[1], -1)
        truth = by_token.unbind(-1)
        losses = [F.cross_entropy(part.flatten(0, 1), t.flatten()) for part, t in zip(parts, truth, strict=True)]
        right = [(part.argmax(-1) == t)[t >= 0].float().mean() for part, t in zip(parts, truth, strict=True)]
        return torch.stack(losses).sum(), [float(share) for share in right]

    def _answering(self, bank: batches.FilmBank, step: int) -> tuple[Tensor, list[float]]:
        """Compute the cross-entropy of the answers' words."""
        version = self.options.version
        frames = frames_at(step, self.steps, version)
        films = max(1, min(self.options.films, self.options.films * LONGEST // frames))
        batch = language_batch(bank, step, films, frames, version)
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
        shares = [float(right[kinds == kind].mean()) for kind in range(len(film_set(version).types))]
        return F.cross_entropy(logits, truth), shares


def frames_at(step: int, steps: int, version: int = 1) -> int:
    """Return the number of frames a film at a language step."""
    ends = accumulate(share for _, share in CURRICULA[version])
    stages = zip(CURRICULA[version], ends, strict=True)
    lengths = next((lengths for (lengths, _), end in stages if step < end * steps), CURRICULA[version][-1][0])
    return lengths[step % len(lengths)]


def main(options: Options) -> None:
    """Train all stages and write model and processor to `options.out`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    film_set(options.version)  # refuses a version that does not exist
    model = small.model(options.version)
    bank = None
    for stage in STAGES:
        trainer = Trainer(options, model, stage, bank)
        trainer.loop.run()
        print(f"{stage}: {trainer.loop.seconds.sum() / 60:.1f} minutes")
        bank = trainer.bank
    save_half(model, options.out)
    small.processor(options.version).save_pretrained(options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    script(lambda: main(read_flags(Options)))
