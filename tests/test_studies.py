import sys

import pytest
import torch
from places import ROOT
from safetensors.torch import save_file
from tiny_text import save_tiny_llama

from namm_transfer import NAMM
from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evolution.heads import RECENT, SINKS
from namm_transfer.evolution.tasks import Prompt

sys.path.append(str(ROOT / "studies"))
import heads

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
