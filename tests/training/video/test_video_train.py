"""Training: packing many questions behind one film is exact, and a killed run ends at the same weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from namm_transfer.evals.tasks.video import scenes
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.versions import film_set
from namm_transfer.training.video import batches, event_batches, small, train


@pytest.fixture(scope="module", params=(1, 2))
def version(request) -> int:
    """Each version of the films."""
    return request.param


@pytest.fixture(scope="module")
def model(version):
    """The small model of a version with random weights."""
    torch.manual_seed(0)
    return small.model(version).eval()


class DrawnFrames:
    """Stands where the bank does, with frames drawn for the film instead of composed of takes."""

    def __init__(self, model):
        self.model, self.pixels = model, []
        self.size = model.config.vision_config.image_size

    @torch.no_grad()
    def film(self, film, rng):
        """Features of the film's frames, and their pixels aside."""
        drawn = draw(film, np.arange(film.seconds) + 0.5, self.size)
        self.pixels.append(batches.like_decoded(drawn, rng))
        return batches.pooled_frames(self.model, self.pixels[-1])


@torch.no_grad()
def test_packed_questions_are_answered_as_each_alone(model, version):
    bank = DrawnFrames(model)
    batch = batches.language_batch(bank, step=3, films=2, frames=16, version=version)
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


def test_targets_are_the_right_words(model, version):
    films = film_set(version)
    batch = batches.language_batch(DrawnFrames(model), step=0, films=1, frames=32, version=version)
    film, tokenizer = films.make_film("train", 0, 32), batches.words(version)
    words = tokenizer.convert_ids_to_tokens(batch.targets[batch.kinds >= 0].tolist())
    asked = films.questions(film, every=True)
    assert words == [question.options[question.answer] for question in asked]
    assert batch.kinds[batch.kinds >= 0].tolist() == [films.types.index(question.kind) for question in asked]
    hints = (batch.targets >= 0) & (batch.kinds < 0) & (batch.question > 0)
    assert set(tokenizer.convert_ids_to_tokens(batch.ids[hints].tolist())) <= set(scenes.SHAPES)
    hinted = dict(zip(batch.question[hints].tolist(), batch.targets[hints].tolist(), strict=True))
    named = {number: set(question.text[:-1].split()) & set(scenes.SHAPES) for number, question in enumerate(asked, 1)}
    expected = {n: asked[n - 1].options[asked[n - 1].answer] for n, shape in named.items() if shape and version == 2}
    assert {number: tokenizer.convert_ids_to_tokens(word) for number, word in hinted.items()} == expected


def test_vision_labels_are_what_the_frames_show():
    pixels, labels = batches.vision_batch(0)
    assert pixels.shape == (64, 3, batches.FRAME_SIZE, batches.FRAME_SIZE)
    disturbed = labels[:, 0] < 0
    assert 8 <= int(disturbed.sum()) <= 24
    assert (labels[disturbed, 3] < batches.CLEAR).all()
    assert (labels[~disturbed, 3] == batches.CLEAR).all()


def test_labels_of_tokens_are_what_their_quarter_shows():
    """A plate is black; the disc of a quarter with an event is dark, and no quarter without one is."""
    pixels, labels = event_batches.vision_batch(0)
    size = event_batches.FRAME_SIZE
    assert pixels.shape == (64, 3, size, size)
    quarters = pixels.unflatten(2, (2, -1)).unflatten(4, (2, -1)).amax(1).transpose(2, 3).flatten(1, 2)
    dark = (quarters < -0.9).float().mean((2, 3)) > 0.12
    holds = labels[..., 1] < len(scenes.SHAPES)
    night = labels[..., 0] == scenes.PLACES.index("night")
    assert 0.3 < holds.float().mean() < 0.7
    assert torch.equal(dark[~night], holds[~night])
    assert torch.equal(labels[..., 2] >= 0, holds)


def test_tokens_of_events_name_how_often_their_shape_came_so_far():
    model = small.model(2)
    batch = batches.language_batch(DrawnFrames(model), step=0, films=1, frames=32, version=2)
    film, words = film_set(2).make_film("train", 0, 32), batches.words(2)
    video = batch.ids[0] == model.config.video_token_id
    named = {
        divmod(at, 4): words.convert_ids_to_tokens(word)
        for at, word in enumerate(batch.targets[0, video].tolist())
        if word >= 0
    }
    shapes = [event.shape for event in film.events]
    assert named == {
        (event.second, event.corner): str(shapes[: at + 1].count(event.shape)) for at, event in enumerate(film.events)
    }


@torch.no_grad()
def test_the_bank_composes_the_film_that_is_asked_for(monkeypatch):
    """With a vision tower that returns the mean colour of each quarter, the features are near those of the film."""
    means = lambda model, pixels: F.avg_pool2d(pixels, pixels.shape[-1] // 2).flatten(2).transpose(1, 2)  # noqa: E731
    monkeypatch.setattr(event_batches, "pooled_frames", means)
    model = small.model(2)
    model.config.vision_config.hidden_size = 3
    bank, rng = event_batches.EventBank(model, 1), np.random.default_rng(0)
    film, other = (film_set(2).make_film("train", seed, 32) for seed in (0, 1))
    composed = bank.film(film, rng)
    truth, wrong = (
        means(model, batches.like_decoded(draw(shown, np.arange(32) + 0.5, event_batches.FRAME_SIZE), rng))
        for shown in (film, other)
    )
    assert composed.shape == (32, 4, 3)
    assert (composed - truth).abs().mean() < 0.25
    assert (composed - wrong).abs().mean() > 0.5
    features, labels = bank.frames(rng, 50)
    assert features.shape == (50, 4, 3)
    assert ((labels[..., 1] < len(scenes.SHAPES)).sum(1) <= 1).all()


def test_attention_starts_with_the_like():
    """A token's logit to itself is about `SELF_LOGIT` and far above those to random others; what it finds is copied."""
    torch.manual_seed(0)
    attention = small.model(2).model.language_model.layers[0].self_attn
    tokens = F.rms_norm(torch.randn(40, 256), (256,))
    query, key, value = (
        f(tokens).unflatten(1, (-1, 32)) for f in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = torch.einsum("qhgd,khd->hgqk", query.unflatten(1, (2, 4)), key) / 32**0.5
    itself = logits.diagonal(dim1=-2, dim2=-1)
    assert itself.mean().item() == pytest.approx(small.SELF_LOGIT, rel=0.15)
    assert itself.mean() > 3 * logits.std()
    copied = attention.o_proj(value.repeat_interleave(4, dim=1).flatten(1))
    assert F.cosine_similarity(copied, tokens).mean() > 0.4


def options(folder, version=1):
    """A run of a few steps."""
    return train.Options(
        version=version,
        out=folder / "model",
        work=folder / "work",
        vision_steps=2,
        projector_steps=2,
        language_steps=3,
        films=1,
        takes=1,
    )


def tiny_config(version=1):
    """The small model's configuration with next to no weights."""
    config = CONFIG(version)
    for part, width in ((config.vision_config, 16), (config.text_config, 32)):
        part.hidden_size, part.intermediate_size, part.num_hidden_layers = width, width, 1
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = 2
    config.text_config.head_dim = 16
    return config


CONFIG = small.config


def test_a_killed_run_goes_on_to_the_same_model(tmp_path, monkeypatch, version):
    monkeypatch.setattr(train.Trainer, "EVERY", 1)
    monkeypatch.setattr(small, "config", tiny_config)
    train.main(options(tmp_path / "whole", version))

    def kill(self, step, part):
        if self.stage == "language" and step == 2:
            raise KeyboardInterrupt
        return loss(self, step, part)

    loss = train.Trainer.loss
    monkeypatch.setattr(train.Trainer, "loss", kill)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(tmp_path / "killed", version))
    monkeypatch.setattr(train.Trainer, "loss", loss)
    train.main(options(tmp_path / "killed", version))
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    processor = AutoProcessor.from_pretrained(tmp_path / "killed" / "model")
    assert processor.tokenizer.convert_tokens_to_ids("star") > 5
    loaded = LlavaNextVideoForConditionalGeneration.from_pretrained(tmp_path / "killed" / "model")
    assert loaded.dtype == torch.float32
    assert {tensor.dtype for tensor in whole.values()} == {torch.float16}
    assert (processor.tokenizer.convert_tokens_to_ids("appear") != processor.tokenizer.unk_token_id) == (version == 2)
