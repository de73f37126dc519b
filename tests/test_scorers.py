"""The deep scoring network: its arithmetic, that padding slots do not matter, and that it serves the whole library."""

import json
import math

import pytest
import torch

from namm_transfer import NAMM, LayerView, NammTransferError, check_policy
from namm_transfer.scorers import DEEP, FEATURES, NEWEST, PUBLISHED, RECENCY, pool, pool_newest
from namm_transfer.spectrogram import BINS

TOKENS = 90  # more than are pooled by themselves as the newest


def deep_namm(seed=0, **options) -> NAMM:
    generator, parts = torch.Generator().manual_seed(seed), []
    for name, shape in DEEP.shapes.items():
        spread = 0.1 if name.endswith("bias") else 1.5 / math.sqrt(shape[0])
        parts.append(spread * torch.randn(shape, generator=generator).flatten())
    statistics = dict(mean=torch.full((BINS,), -5.0), var=torch.full((BINS,), 1.5))
    return NAMM.from_vector(torch.cat(parts), **statistics, scorer="deep", **options)


def spectra(batch=2, heads=3, tokens=TOKENS):
    return torch.rand(batch, heads, BINS, tokens, generator=torch.Generator().manual_seed(1)).square() * 0.05


def reference(namm: NAMM, spectrum: torch.Tensor, positions: list[int]) -> list[float]:
    """Scores of one head, (17, tokens), token by token in double precision."""
    weight = {name: tensor.double() for name, tensor in namm.state_dict().items()}

    def apply(layer, x):
        return x @ weight[f"{layer}.weight"] + weight[f"{layer}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    x = []
    for token, position in enumerate(positions):
        angles = [(positions[-1] - position) * 50000.0 ** (-i / 4) for i in range(4)]
        logs = [math.log(float(s) + 1e-4) for s in spectrum[:, token]]
        normal = [
            (s - float(m)) / math.sqrt(float(v)) for s, m, v in zip(logs, weight["mean"], weight["var"], strict=True)
        ]
        x.append(torch.tensor([*map(math.sin, angles), *map(math.cos, angles), *normal], dtype=torch.float64))
    together = torch.stack(x)
    most = namm.pooled_tokens or len(x)
    shown = together[-most:]
    mean = shown.mean(0)
    mean[RECENCY:] += max(0.0, math.log(len(x) / most)) / weight["var"].sqrt()
    deviation = (shown[:, RECENCY:].var(0, correction=0) + 1e-6).sqrt()
    pooled = torch.cat([mean, shown[-NEWEST:].mean(0), deviation])
    head = gelu(apply("pooled_out", gelu(apply("pooled_in", pooled))))
    scores = []
    for token in range(len(x)):
        q, k, v = apply("attention_in", together[token:]).split(32, dim=-1)
        seen = (q[0] @ k.T / math.sqrt(32)).softmax(-1) @ v
        scores.append(float(apply("output", gelu(apply("hidden", torch.cat([x[token], seen, head]))))))
    return scores


@pytest.mark.parametrize(
    ("tokens", "pooled"), [(1, None), (NEWEST - 1, None), (TOKENS, None), (1, 70), (TOKENS, 70), (TOKENS, 20)]
)
def test_scores_are_those_of_a_plain_implementation(tokens, pooled):
    namm, spectrum = deep_namm(pooled_tokens=pooled), spectra(1, 2, tokens)
    positions = torch.arange(tokens) * 3 + torch.arange(2)[:, None]
    scores = namm.score(namm.features(spectrum, positions[None]))[0]
    for head in range(2):
        expected = reference(namm, spectrum[0, head], positions[head].tolist())
        assert scores[head].tolist() == pytest.approx(expected, abs=2e-4)


def test_sizes_are_those_stated():
    assert (PUBLISHED.size, DEEP.size) == (4172, 14753)
    for scorer, form in (("published", PUBLISHED), ("deep", DEEP)):
        assert sum(p.numel() for p in NAMM(scorer=scorer).parameters()) == form.size
    assert DEEP.size < 20_000


def test_vector_round_trip():
    vector = torch.arange(float(DEEP.size))
    namm = NAMM.from_vector(vector, mean=torch.zeros(17), var=torch.ones(17), scorer="deep")
    assert torch.equal(namm.to_vector(), vector)
    assert namm.output.bias == DEEP.size - 1


@pytest.mark.parametrize("pooled", [None, 75, 40])
def test_padding_slots_do_not_matter(pooled):
    """Whatever they hold, and however many there are: each head's scores are those it has alone."""
    namm, lengths = deep_namm(pooled_tokens=pooled), (TOKENS, 70, 9)
    spectrum = spectra(1)
    positions = torch.arange(TOKENS, dtype=torch.int32).expand(1, 3, -1).clone()
    for head, length in enumerate(lengths):
        positions[0, head, : TOKENS - length] = -1
        spectrum[0, head, :, : TOKENS - length] = 1e4
    padded = namm.score_held(spectrum, positions, positions >= 0)
    for head, length in enumerate(lengths):
        own = slice(TOKENS - length, None)
        alone = [t[:, head : head + 1, ..., own] for t in (spectrum, positions, positions >= 0)]
        torch.testing.assert_close(padded[:, head, own], namm.score_held(*alone)[:, 0], atol=1e-5, rtol=1e-4)


def test_a_head_as_a_whole_matters():
    """The same token is scored otherwise beside other tokens, older ones included."""
    namm, spectrum = deep_namm(), spectra(1, 1)
    positions = torch.arange(TOKENS).expand(1, 1, -1)
    scores = namm.score(namm.features(spectrum, positions))
    changed = spectrum.clone()
    changed[..., :5] *= 20
    again = namm.score(namm.features(changed, positions))
    assert (scores[..., -1] - again[..., -1]).abs() > 1e-3


def test_the_description_of_a_head_does_not_drift_with_the_length_of_the_text():
    """A head whose attention is spread evenly over all tokens is described alike, however many these are."""
    deviation, described, drifting = torch.full((BINS,), 1.5), [], []
    for tokens in (100, 800):
        x = torch.cat([torch.zeros(RECENCY), torch.tensor(4.0 / tokens).log() / deviation]).expand(1, 1, tokens, -1)
        described.append(pool_newest(x, None, 100, deviation)[..., RECENCY:FEATURES])
        drifting.append(pool(x)[..., RECENCY:FEATURES])
    torch.testing.assert_close(*described)
    assert (drifting[0] - drifting[1]).min() > 1


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_it_serves_as_a_policy(selection):
    namm = deep_namm(update_interval=32, selection=selection, attention_dtype="bfloat16")
    positions = torch.arange(TOKENS, dtype=torch.int32).expand(2, 3, -1)
    seen = LayerView(
        layer=0,
        heads=torch.arange(3).expand(2, 3),
        keys=torch.zeros(2, 3, TOKENS, 4),
        values=torch.zeros(2, 3, TOKENS, 4),
        positions=positions,
        state={"spectrum": spectra()},
        seen=[TOKENS] * 2,
        update=0,
    )
    assert 0.1 < namm.select(seen).float().mean() < 0.9
    check_policy(namm)


def test_saved_and_loaded(tmp_path):
    namm = deep_namm(update_interval=64, selection="head", pooled_tokens=50)
    namm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scorer"] == "deep"
    loaded = NAMM.from_pretrained(tmp_path, threshold=0.5)
    assert (loaded.scorer, loaded.pooled_tokens) == ("deep", 50)
    positions = torch.arange(TOKENS).expand(2, 3, -1)
    assert torch.equal(
        loaded.score(loaded.features(spectra(), positions)), namm.score(namm.features(spectra(), positions))
    )
    with pytest.raises(NammTransferError, match=r"unknown \['hidden"):
        NAMM.from_pretrained(tmp_path, scorer="published", pooled_tokens=None)


def test_an_unknown_form_is_named():
    with pytest.raises(NammTransferError, match="scorer='wide': expected one of published, deep"):
        NAMM(scorer="wide")


@pytest.mark.parametrize("tokens", [0, -640, 0.5, True, "640"])
def test_pooled_tokens_are_a_positive_number(tokens):
    with pytest.raises(NammTransferError, match=f"pooled_tokens={tokens!r}: expected a positive whole number"):
        NAMM(scorer="deep", pooled_tokens=tokens)


def test_the_published_form_pools_nothing():
    with pytest.raises(NammTransferError, match="pooled_tokens=640 with scorer='published': expected scorer='deep'"):
        NAMM(pooled_tokens=640)


def test_every_parameter_has_a_gradient():
    namm = deep_namm().requires_grad_(True)
    x = torch.randn(1, 2, TOKENS, FEATURES)
    namm.score(x).square().mean().backward()
    for name, parameter in namm.named_parameters():
        # A bias of all keys changes no softmax.
        where = parameter.grad[:32] if name == "attention_in.bias" else parameter.grad
        assert where.abs().max() > 1e-7, name
