"""Training: packing many questions behind one film is exact, and a killed run ends at the same weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from namm_transfer.evals.tasks.video import scenes
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.training.video import batches, small, train


@pytest.fixture(scope="module")
def model():
    """The small model with random weights."""
    torch.manual_seed(0)
    return LlavaNextVideoForConditionalGeneration(small.config()).eval()


class DrawnFrames:
    """Stands where the bank does, with frames drawn for the film instead of composed of takes."""

    def __init__(self, model):
        self.model, self.pixels = model, []

    @torch.no_grad()
    def film(self, film, rng):
        """Features of the film's frames, and their pixels aside."""
        drawn = draw(film, np.arange(film.seconds) + 0.5, small.FRAME_SIZE)
        self.pixels.append(batches.like_decoded(drawn, rng))
        return batches.pooled_frames(self.model, self.pixels[-1])


@torch.no_grad()
def test_packed_questions_are_answered_as_each_alone(model):
    bank = DrawnFrames(model)
    batch = batches.language_batch(bank, step=3, films=2, frames=16)
    embeds = model.get_input_embeddings()(batch.ids)
    tokens = model.model.multi_modal_projector(batch.features)
    embeds = embeds.masked_scatter((batch.ids == model.config.video_token_id)[..., None], tokens)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    for film in range(2):
        for question in (1, int(batch.question[film].max())):
            chosen = (batch.question[film] == 0) | (batch.question[film] == question)
            alone = model(input_ids=batch.ids[film, chosen][None], pixel_values_videos=bank.pixels[film][None])
            assert torch.allclose(model.lm_head(hidden[film, chosen]), alone.logits[0], atol=1e-4)


def test_targets_are_the_right_words(model):
    batch = batches.language_batch(DrawnFrames(model), step=0, films=1, frames=32)
    film = scenes.make_film("train", 0, 32)
    words = batches.WORDS.convert_ids_to_tokens(batch.targets[batch.targets >= 0].tolist())
    asked = scenes.questions(film, every=True)
    assert words == [question.options[question.answer] for question in asked]
    assert batch.kinds[batch.kinds >= 0].tolist() == [scenes.TYPES.index(question.kind) for question in asked]


def test_vision_labels_are_what_the_frames_show():
    pixels, labels = batches.vision_batch(0)
    assert pixels.shape == (64, 3, small.FRAME_SIZE, small.FRAME_SIZE)
    disturbed = labels[:, 0] < 0
    assert 8 <= int(disturbed.sum()) <= 24
    assert (labels[disturbed, 3] < batches.CLEAR).all()
    assert (labels[~disturbed, 3] == batches.CLEAR).all()


def options(folder):
    """A run of a few steps."""
    return train.Options(
        out=folder / "model",
        work=folder / "work",
        vision_steps=2,
        projector_steps=2,
        language_steps=3,
        films=1,
        takes=1,
    )


def tiny_config():
    """The small model's configuration with next to no weights."""
    config = CONFIG()
    for part, width in ((config.vision_config, 16), (config.text_config, 32)):
        part.hidden_size, part.intermediate_size, part.num_hidden_layers = width, width, 1
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = 2
    config.text_config.head_dim = 16
    return config


CONFIG = small.config


def test_a_killed_run_goes_on_to_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr(train.Trainer, "EVERY", 1)
    monkeypatch.setattr(small, "config", tiny_config)
    train.main(options(tmp_path / "whole"))

    def kill(self, step, part):
        if self.stage == "language" and step == 2:
            raise KeyboardInterrupt
        return loss(self, step, part)

    loss = train.Trainer.loss
    monkeypatch.setattr(train.Trainer, "loss", kill)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(tmp_path / "killed"))
    monkeypatch.setattr(train.Trainer, "loss", loss)
    train.main(options(tmp_path / "killed"))
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert AutoProcessor.from_pretrained(tmp_path / "killed" / "model").tokenizer.convert_tokens_to_ids("star") > 5
