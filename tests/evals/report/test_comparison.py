"""What changed between two reports."""

import numpy as np

from namm_transfer.evals.harness import cli
from namm_transfer.evals.report.comparison import diff, in_words
from namm_transfer.evals.report.records import ArrayStore

NOISE = np.random.default_rng(0).normal(50, 10, 40).tolist()


def test_paired_samples_show_a_change_that_their_spread_would_hide(write_folder, tmp_path):
    first = write_folder(tmp_path / "a", {"full": NOISE, "namm": NOISE})
    second = write_folder(tmp_path / "b", {"full": NOISE, "namm": [value + 1 for value in NOISE]})
    full, namm = diff(first, second).changes
    assert (full.difference, full.significant, full.paired) == (0.0, False, 40)
    assert (round(namm.difference, 9), namm.significant) == (1.0, True)
    words = in_words(diff(first, second))
    assert ": the same; cache held 50.0 % -> 50.0 %" in words
    assert "40 paired samples): significant" in words
    assert "of 2 comparisons 1 are significant at 5 %; about 0.1 would be by chance alone" in words


def test_samples_without_a_partner_are_compared_all_with_all(write_folder, tmp_path):
    first = write_folder(tmp_path / "a", {"full": NOISE})
    second = write_folder(tmp_path / "b", {"full": [value + 1 for value in NOISE]})
    ledger = next(second.glob("records-*"))
    ledger.write_text(ledger.read_text().replace('"id":"sample ', '"id":"other '))
    (change,) = diff(first, second).changes
    assert (change.paired, change.significant) == (0, False)
    assert "no sample in common, all against all): not significant" in in_words(diff(first, second))


def test_configuration_and_missing_parts_are_named(write_folder, tmp_path):
    first = write_folder(tmp_path / "a", {"full": NOISE[:6], "l2": NOISE[:6]}, description={"model_sha256": "a"})
    second = write_folder(tmp_path / "b", {"full": NOISE[:6], "h2o": NOISE[:6]}, description={"model_sha256": "b"})
    write_folder(second, {"full": NOISE[:3]}, task="text")
    result = diff(first, second)
    assert "video: description.model_sha256: 'a' there, 'b' here" in result.configuration
    assert result.missing == [f"video: l2 only in {first}", f"video: h2o only in {second}", f"text: only in {second}"]


def test_few_draws_are_not_called_significant(write_folder, tmp_path):
    first = write_folder(tmp_path / "a", {"full": [0.0] * 4})
    second = write_folder(tmp_path / "b", {"full": [1.0] * 4})
    assert not diff(first, second).changes[0].significant
    assert "fewer than 5 independent draws" in in_words(diff(first, second))


def test_two_models_agree_on_some_of_the_tokens_to_keep(write_folder, tmp_path):
    first, second = np.zeros((2, 1000), np.float32)  # the share of the heads that keep each token
    first[:200], second[:100], second[900:] = 1.0, 0.5, 1.0
    folders = []
    for name, kept in (("a", first), ("b", second), ("c", first[:-1])):
        digest = ArrayStore(tmp_path / name).put(kept)
        folders.append(write_folder(tmp_path / name, {"namm": NOISE[:1]}, arrays={"tokens": digest}))
    (change,) = diff(folders[0], folders[1]).changes
    assert change.overlap == 50 / 300
    assert 0.05 < change.by_chance < 0.12  # of 200 tokens 30 would be kept by both, 20 wholly and 20 by half
    assert f"overlap of what is kept 16.7 %, by chance {100 * change.by_chance:.1f} %" in in_words(diff(*folders[:2]))
    assert diff(folders[0], folders[2]).changes[0].overlap is None  # another tokenizer counts other tokens


def test_the_command_prints_it(write_folder, tmp_path, capsys):
    folder = str(write_folder(tmp_path, {"full": NOISE}))
    assert cli.main(["report", "diff", folder, folder]) == 0
    assert "configuration:\n  the same" in capsys.readouterr().out
