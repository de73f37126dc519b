"""The network itself: weights in and out, features, scores, selection."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from namm_transfer import NAMM, LayerView, NammTransferError, policies
from namm_transfer.spectrogram import BINS


def view(spectrum, positions=None, layer=0, seen=None):
    batch, heads, _, tokens = spectrum.shape
    positions = torch.arange(tokens, dtype=torch.int32).expand(batch, heads, -1) if positions is None else positions
    return LayerView(
        layer=layer,
        heads=torch.arange(heads).expand(batch, heads),
        keys=torch.zeros(batch, heads, tokens, 4),
        values=torch.zeros(batch, heads, tokens, 4),
        positions=positions,
        state={"spectrum": spectrum},
        seen=seen or [tokens] * batch,
        update=0,
    )


def test_exactly_4172_parameters_and_the_statistics_are_buffers():
    namm = NAMM()
    assert sum(p.numel() for p in namm.parameters()) == 4172
    assert {name: tuple(b.shape) for name, b in namm.named_buffers()} == {"mean": (17,), "var": (17,)}


def test_vector_round_trip_keeps_the_layout():
    vector = torch.arange(4172.0)
    namm = NAMM.from_vector(vector, mean=torch.zeros(17), var=torch.ones(17))
    assert torch.equal(namm.to_vector(), vector)
    assert namm.attention_in.weight[1, 0] == 96
    assert namm.output.bias == 4171


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vector": torch.zeros(4171)}, r"\(4171,\).*\(4172,\)"),
        ({"mean": None}, "mean is missing"),
        ({"var": torch.ones(16)}, r"var has shape \(16,\)"),
        ({"var": -torch.ones(17)}, "negative"),
        ({"vector": torch.full((4172,), math.nan)}, "NaN"),
        ({"update_interval": 500}, "update_interval=500.*16"),
        ({"selection": "row"}, "selection='row'"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": 0.5, "budget": 3}, "keep and budget"),
        ({"attention_dtype": "int8"}, "int8"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": 1.0, "keep": 0.5}, "threshold=1.0 and a size"),
    ],
)
def test_bad_input_is_named(options, says):
    given = {"vector": torch.zeros(4172), "mean": torch.zeros(17), "var": torch.ones(17)} | options
    with pytest.raises(NammTransferError, match=says):
        NAMM.from_vector(given.pop("vector"), **given)


def test_save_and_load_decide_alike(tmp_path, random_namm):
    namm = random_namm(update_interval=64, selection="head", attention_dtype="bfloat16")
    namm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["update_interval"] == 64
    loaded = NAMM.from_pretrained(tmp_path)
    assert (loaded.update_interval, loaded.selection, loaded.attention_dtype) == (64, "head", "bfloat16")
    seen = view(torch.rand(2, 3, BINS, 50) * 0.02)
    assert torch.equal(loaded.select(seen), namm.select(seen))
    smaller = NAMM.from_pretrained(tmp_path, keep=0.25, update_interval=128)
    assert smaller.size.keep == 0.25
    assert smaller.update_interval == 128


def test_a_size_that_is_asked_for_replaces_the_stored_one(tmp_path):
    NAMM.from_vector(torch.zeros(4172), mean=torch.zeros(17), var=torch.ones(17), keep=0.5).save_pretrained(tmp_path)
    assert NAMM.from_pretrained(tmp_path).size.keep == 0.5
    assert NAMM.from_pretrained(tmp_path, budget=7).size.budget == 7
    assert policies.make(f"namm:path={tmp_path},budget=7").size.keep is None
    assert not policies.make(f"namm:path={tmp_path},selection=head").size.asked
    assert not policies.make(f"namm:path={tmp_path},threshold=-1").size.asked
    assert policies.make(f"namm:path={tmp_path},selection=head,keep=0.3").size.keep == 0.3
    NAMM.from_pretrained(tmp_path, threshold=1.0).save_pretrained(tmp_path / "strict")
    assert NAMM.from_pretrained(tmp_path / "strict").threshold == 1
    assert NAMM.from_pretrained(tmp_path / "strict", keep=0.3).size.keep == 0.3


@pytest.mark.parametrize("damage", ["unknown", "missing", "shape", "dtype", "nan", "garbage", "gone"])
def test_damaged_weights_are_refused(tmp_path, zero_namm, damage):
    zero_namm().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    match damage:
        case "unknown":
            tensors["extra"] = torch.zeros(1)
        case "missing":
            del tensors["var"]
        case "shape":
            tensors["mean"] = torch.zeros(16)
        case "dtype":
            tensors["mean"] = tensors["mean"].half()
        case "nan":
            tensors["output.bias"] = torch.tensor([math.nan])
    save_file(tensors, file)
    if damage == "garbage":
        file.write_bytes(b"not safetensors")
    if damage == "gone":
        file.unlink()
    with pytest.raises(
        NammTransferError, match=str(tmp_path) if damage in ("garbage", "gone") else "extra|var|mean|output"
    ):
        NAMM.from_pretrained(tmp_path)


def test_an_unknown_key_in_the_configuration_is_refused(tmp_path, zero_namm):
    zero_namm().save_pretrained(tmp_path)
    for config, says in (
        ('{"update_interval": 64, "selection": "nobody"}', "nobody"),
        ('{"update_interval": 64, "temperature": 2}', "temperature"),
        ("[1]", "list"),
        ("{", "Expecting"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(NammTransferError, match=says):
            NAMM.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(NammTransferError, match=r"config\.json"):
        NAMM.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["assets/nowhere", "/nowhere/at/all", "nowhere"])
def test_what_is_not_there_is_named(source):
    with pytest.raises(NammTransferError, match=source):
        NAMM.from_pretrained(source)


def test_the_published_checkpoint_is_imported_without_unpickling(tmp_path):
    prefix = "stored_buffers_to_save.token_embedding_0_output_"
    state = {
        "_orig_mod.mean": torch.randn(4172),
        "_orig_mod.C": torch.zeros(3, 3),
        f"_orig_mod.{prefix}mean": torch.rand(1, 1, 1, 17),
        f"_orig_mod.{prefix}var": torch.rand(1, 1, 1, 17),
    }
    torch.save({"evolution_state": state, "iter_num": 3, "best_val_loss": 1.0}, tmp_path / "ckpt.pt")
    namm = NAMM.from_checkpoint(tmp_path / "ckpt.pt", update_interval=64)
    assert torch.equal(namm.to_vector(), state["_orig_mod.mean"])
    assert torch.equal(namm.var, state[f"_orig_mod.{prefix}var"].flatten())
    torch.save({"evolution_state": {"mean": torch.zeros(4172)}}, tmp_path / "bare.pt")
    with pytest.raises(NammTransferError, match="output_mean"):
        NAMM.from_checkpoint(tmp_path / "bare.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"evolution_state": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(NammTransferError, match="safely"):
        NAMM.from_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_features_are_age_then_normalised_spectrum():
    namm = NAMM.from_vector(torch.zeros(4172), mean=torch.full((17,), 2.0), var=torch.full((17,), 4.0))
    positions = torch.tensor([[[0, 7, 40000]]])
    x = namm.features(torch.full((1, 1, BINS, 3), 5.0), positions)
    age = 40000 - 7
    expected = [math.sin(age * 50000 ** (-i / 4)) for i in range(4)] + [
        math.cos(age * 50000 ** (-i / 4)) for i in range(4)
    ]
    torch.testing.assert_close(x[0, 0, 1, :8], torch.tensor(expected), atol=2e-7, rtol=0)
    assert torch.equal(x[..., 8:], torch.full((1, 1, 3, 17), 1.5))
    assert torch.equal(x[0, 0, 2, :8], torch.tensor([0.0] * 4 + [1.0] * 4))


def test_a_feature_that_never_varied_is_divided_by_1e_minus_7():
    namm = NAMM.from_vector(torch.zeros(4172), mean=torch.zeros(17), var=torch.tensor([0.0] * 8 + [1e-6] * 9))
    x = namm.features(torch.full((1, 1, BINS, 1), 1e-3), torch.zeros(1, 1, 1, dtype=torch.long))
    torch.testing.assert_close(x[0, 0, 0, 8:], torch.tensor([1e4] * 8 + [1.0] * 9))


def test_a_score_depends_on_newer_tokens_only(random_namm):
    namm = random_namm()
    x = torch.randn(1, 1, 20, 25)
    scores = namm.score(x)
    older, newer = x.clone(), x.clone()
    older[:, :, :10] += 1
    newer[:, :, 11:] += 1
    torch.testing.assert_close(namm.score(older)[..., 10:], scores[..., 10:])
    assert (namm.score(newer)[..., 10] - scores[..., 10]).abs().max() > 1e-3


def test_layer_selection_fills_heads_up_to_the_most_generous(random_namm):
    namm = random_namm()
    seen = view(torch.rand(2, 3, BINS, 60) * 0.03)
    scores = namm.scores(seen)
    passing = scores >= 0
    passing[..., -1] = True
    kept = namm.select(seen)
    counts = passing.sum(-1)
    assert len(set(counts.flatten().tolist())) > 1, "the case must tell the two selections apart"
    for row in range(2):  # K is each row's own, where the published code takes it over the batch
        assert kept[row].sum(-1).tolist() == [int(counts[row].max())] * 3
    assert (kept | ~passing).all(), "whatever passes stays"
    assert not namm.by_head
    namm.selection = "head"
    assert namm.by_head
    assert torch.equal(namm.select(seen), passing)


def test_a_higher_threshold_is_a_lower_bias(random_namm):
    seen = view(torch.rand(2, 3, BINS, 60) * 0.03)
    for selection in ("layer", "head"):
        strict, lowered = random_namm(selection=selection, threshold=3.0), random_namm(selection=selection)
        lowered.output.bias.sub_(3.0)
        assert torch.equal(strict.select(seen), lowered.select(seen))
        assert strict.select(seen).sum() < random_namm(selection=selection).select(seen).sum()


def test_the_newest_token_always_stays_and_padding_slots_never_do(random_namm):
    namm = random_namm()
    positions = torch.cat([torch.full((5,), -1), torch.arange(15)]).int().expand(1, 2, -1)
    for selection in ("layer", "head"):
        namm.selection = selection
        namm.output.bias.fill_(-1e6)
        kept = namm.select(view(torch.rand(1, 2, BINS, 20), positions))
        assert kept.sum(-1).tolist() == [[1, 1]]
        assert kept[..., -1].all()
        namm.output.bias.fill_(1e6)
        assert torch.equal(namm.select(view(torch.rand(1, 2, BINS, 20), positions)), positions >= 0)


def test_a_budget_keeps_the_top_scores(random_namm):
    seen = view(torch.rand(1, 2, BINS, 41) * 0.02)
    namm = random_namm(keep=0.5)
    kept = namm.select(seen)
    assert kept.sum(-1).tolist() == [[21, 21]]
    scores = namm.scores(seen)
    scores[..., -1] = math.inf
    assert (scores.masked_fill(~kept, math.inf).amin(-1) >= scores.masked_fill(kept, -math.inf).amax(-1)).all()


@pytest.mark.parametrize("options", [{"selection": "head"}, {"selection": "layer"}, {"keep": 0.4}])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_keys_that_differ_take_their_share_of_the_places(random_namm, options, share):
    """As many tokens stay in each head as by the scores alone: the best scores, then the keys that differ most."""
    generator = torch.Generator().manual_seed(4)
    positions = torch.cat([torch.full((6,), -1), torch.arange(54)]).int().expand(2, 3, -1)
    seen = view(torch.rand(2, 3, BINS, 60, generator=generator) * 0.03, positions)
    seen.keys = torch.randn(2, 3, 60, 8, generator=generator)
    plain, mixed = random_namm(**options), random_namm(**options, keydiff=share)
    counts, kept = plain.select(seen).sum(-1), mixed.select(seen)
    assert torch.equal(kept.sum(-1), counts)
    assert not torch.equal(kept, plain.select(seen))
    assert not (kept & ~seen.real).any()
    scores, difference = mixed.scores(seen), policies.KeyDiff().scores(seen)
    for row, head in [(row, head) for row in range(2) for head in range(3)]:
        count = int(counts[row, head])
        ranked = scores[row, head, 6:-1].argsort(descending=True)[: max(0, count - int(share * count) - 1)] + 6
        wanted = {59, *ranked.tolist()}
        for token in difference[row, head].argsort(descending=True).tolist():
            if len(wanted) < count and token >= 6:
                wanted.add(token)
        assert set(kept[row, head].nonzero().flatten().tolist()) == wanted


class Largest(TorchDispatchMode):
    """Notes the most numbers that any operation returned in one tensor."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_scoring_a_long_cache_makes_no_matrix_of_tokens_by_tokens(random_namm):
    """Also for heads of different lengths, whose padding slots need no mask."""
    tokens = 4096
    positions = torch.arange(tokens, dtype=torch.int32).repeat(1, 2, 1)
    positions[:, 1, :100] = -1
    with Largest() as largest:
        chosen = random_namm().decide(view(torch.rand(1, 2, BINS, tokens), positions))
    assert chosen[:, 1, 100:].any()
    assert 0 < largest.numbers <= 200 * tokens
