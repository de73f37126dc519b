"""The studies: a NAMM's decisions taken apart, gates of heads, and what heads look like."""

import sys

import pytest
import torch
from accelerate import Accelerator
from places import ROOT
from safetensors.torch import load_file, save_file
from tiny_text import save_tiny_llama

from namm_transfer import NAMM, NammTransferError
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.heads import RECENT, SINKS, WholeHeads
from namm_transfer.evolution.tasks import Prompt

sys.path.append(str(ROOT / "studies"))
import gates
import heads
import looks

WORTH = torch.tensor([[0.5, 0.0], [0.1, 0.3]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.set_num_threads(1)
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def never() -> NAMM:
    """Keeps the newest token only."""
    namm = NAMM(update_interval=128, selection="head")
    namm.output.bias.data.fill_(-1.0)
    return namm


def test_a_fact_is_told_from_its_sentence_and_the_text_around():
    text = "Some prose. The pass key is 42. More prose\nto end with"
    offsets = torch.tensor([(i, i + 1) for i in range(len(text))])
    held = torch.zeros(2, len(text), dtype=torch.bool)
    held[0] = True
    held[1, text.index("42")] = True
    parts = heads.kept_of(held, Prompt("", "passkey", text, " 42"), offsets, judged=len(text) - 3)
    sentence = len(" The pass key is 42")
    expected = [
        [1.5, 2],
        [(sentence - 2) / 2, sentence - 2],
        [(len(text) - 3 - sentence) / 2, len(text) - 3 - sentence],
    ]
    assert parts.tolist() == expected


def test_decisions_are_overruled_in_the_heads_and_updates_that_are_named(llama):
    adapter = CausalLMAdapter.load(llama, dtype=torch.float32, device="cpu")
    tokens = torch.arange(256)[None] % 256
    little = [*range(SINKS), *range(256 - RECENT, 256)]
    kept = {}
    for name, policy in heads.lineup(never(), WORTH, 2).items():
        cache = adapter.memory(policy)
        with torch.inference_mode():
            adapter.model(tokens, past_key_values=cache)
        kept[name] = [[p[p >= 0].tolist() for p in cache.positions(layer)[0]] for layer in (0, 1)]
    everything, newest = list(range(256)), [255]
    assert kept["full cache"] == [[everything] * 2] * 2
    assert kept["the NAMM"] == [[newest] * 2] * 2
    assert kept["all of 2 worthy heads, the NAMM in the others"] == [[everything, newest], [newest, everything]]
    assert kept["the NAMM in 2 worthy heads, little of the others"] == [[newest, little], [little, newest]]
    assert kept["all of 2 worthy heads, little of the others"] == [[everything, little], [little, everything]]
    assert kept["the NAMM, nothing lost at the first three"] == [[everything] * 2] * 2


def test_it_prints_both_tables(llama, tmp_path, capsys):
    never().save_pretrained(tmp_path)
    (tmp_path / "state").mkdir()
    save_file({"worth": WORTH}, tmp_path / "state" / "learning.safetensors")
    sizes = ["--samples", "1", "--tokens", "700", "--worthy", "2", "--out", str(tmp_path / "out")]
    heads.main(["--model", str(llama), "--namm", str(tmp_path), *sizes])
    printed = capsys.readouterr().out
    assert "| full cache |" in printed
    assert printed.count("| 100.0 % |") == 1
    assert "| worthy | 0 % | 0 % | 0 % |" in printed


def test_worthy_heads_are_those_of_the_file_that_is_named(llama, tmp_path, capsys):
    never().save_pretrained(tmp_path)
    save_file({"worth": WORTH}, tmp_path / "gates.safetensors")  # and no state/learning.safetensors
    options = ["--samples", "1", "--tokens", "700", "--worthy", "2", "--worth", str(tmp_path / "gates.safetensors")]
    heads.main(["--model", str(llama), "--namm", str(tmp_path), *options])
    assert "all of 2 worthy heads, little of the others" in capsys.readouterr().out


@pytest.fixture
def adapter(llama):
    return CausalLMAdapter.load(llama, dtype=torch.float32, device="cpu")


def test_gated_attention_is_the_live_cache(adapter):
    opened, tokens = torch.tensor([[True, False], [False, True]]), torch.arange(300)[None] % 256
    with torch.inference_mode():
        cache = adapter.memory(WholeHeads(opened, update_interval=64))
        expected = adapter.model(tokens, past_key_values=cache).logits
        adapter.model.set_attn_implementation(gates.NAME)
        gating = gates.Gating(opened, torch.zeros(2, 2), 64)
        found = adapter.model(tokens, gating=gating, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_gate_has_the_gradient_of_what_it_opens():
    generator = torch.Generator().manual_seed(0)
    draw = lambda heads: torch.randn(1, heads, 200, 8, generator=generator)  # noqa: E731
    query, key, value, wanted = draw(4), draw(2), draw(2), draw(4)

    def attended(opened, values):
        return gates.Gating(opened, values, 64).attend(0, query, key, value, 0.3)

    values = torch.zeros(1, 2, requires_grad=True)
    (found,) = torch.autograd.grad((attended(torch.tensor([[True, False]]), values) * wanted).sum(), values)
    both = [(attended(torch.full((1, 2), state), values.detach()) * wanted) for state in (True, False)]
    difference = (both[0] - both[1]).unflatten(1, (2, 2)).sum((0, 2, 3, 4))
    torch.testing.assert_close(found[0], difference, atol=1e-3, rtol=1e-4)


def learned(adapter, path, **options) -> gates.Gates:
    options = gates.Options(gates=path, **options)
    return gates.Gates(adapter, WORTH, options, Accelerator(cpu=True))


def test_more_heads_open_when_more_are_asked_for(adapter, tmp_path):
    opened = []
    for share in (0.25, 0.75):
        taught = learned(adapter, tmp_path / f"{share}.safetensors", steps=40, opened=share)
        taught.run()
        opened.append(float(taught.log[-10:, 1].mean()))
    assert opened[0] < opened[1] - 0.2


def test_gates_learned_in_several_sittings_are_those_of_one(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "_SAVE_EVERY", 2)
    whole = learned(adapter, tmp_path / "whole.safetensors", steps=4).run()
    path = tmp_path / "parts.safetensors"
    stopped = learned(adapter, path, steps=4)

    def step(number):
        if number == 3:
            raise KeyboardInterrupt
        gates.Gates._step(stopped, number)

    monkeypatch.setattr(stopped, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert len(load_file(path)["log"]) == 2
    torch.testing.assert_close(learned(adapter, path, steps=4).run(), whole)
    assert adapter.model.config._attn_implementation == "memory"


@pytest.mark.parametrize("tensors", [{"worth": torch.zeros(3, 2), "log": torch.zeros(1, 3)}, {"worth": WORTH}, {}])
def test_a_file_of_another_model_or_without_a_state_is_refused(adapter, tmp_path, tensors):
    path = tmp_path / "gates.safetensors"
    save_file(tensors, path)
    with pytest.raises(NammTransferError, match=r"expected a log.*\(2, 2\)"):
        learned(adapter, path)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_heads_or_all_of_them_are_refused(adapter, tmp_path, share):
    with pytest.raises(NammTransferError, match=f"opened={share}"):
        learned(adapter, tmp_path / "gates.safetensors", opened=share)


def test_the_area_counts_pairs_in_the_right_order():
    scores, right = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert looks.area(scores, right) == pytest.approx((2 + 0.5) / 4)


def test_what_only_a_hidden_layer_can_tell():
    seen = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    right, fitted = seen.prod(-1) > 0, torch.arange(400) % 2 == 0
    torch.manual_seed(0)
    hidden = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    assert looks.told(hidden, seen, right, fitted) > 0.95
    assert looks.told(torch.nn.Linear(2, 1), seen, right, fitted) < 0.7


def test_looks_are_printed_beside_the_namm(llama, tmp_path, capsys):
    never().save_pretrained(tmp_path)
    save_file({"worth": WORTH}, tmp_path / "gates.safetensors")
    where = ["--namm", str(tmp_path), "--worth", str(tmp_path / "gates.safetensors")]
    looks.main(["--model", str(llama), *where, "--quizzes", "4", "--worthy", "2"])
    printed = capsys.readouterr().out
    assert "| the NAMM | 0.50 |" in printed  # it scores all alike
    assert "| 32 hidden units |" in printed
