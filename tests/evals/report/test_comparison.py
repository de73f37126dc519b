"""What changed between two reports."""

import numpy as np

from namm_transfer.evals.harness import cli
from namm_transfer.evals.report.comparison import diff, in_words

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


def test_the_command_prints_it(write_folder, tmp_path, capsys):
    folder = str(write_folder(tmp_path, {"full": NOISE}))
    assert cli.main(["report", "diff", folder, folder]) == 0
    assert "configuration:\n  the same" in capsys.readouterr().out
