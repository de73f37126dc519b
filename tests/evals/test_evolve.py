"""The command line of the evolution."""

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.evolve import Options, configuration
from namm_transfer.training.namm.config import PRESETS


def test_presets_are_taken_as_they_are():
    assert configuration(Options(preset="paper")) == PRESETS["paper"]


def test_paper_preset_has_the_published_values():
    paper = PRESETS["paper"]
    assert (paper.members, paper.sigma, paper.start, paper.keep, paper.price) == (32, 0.065, "zero", None, 0)
    assert (paper.update_interval, paper.prompts, paper.fitness, paper.attention_dtype) == (
        512,
        64,
        "exact",
        "bfloat16",
    )


def test_file_overrules_preset_and_flag_overrules_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('keep = "none"\nprompts = 3\ngenerations = 7\nfamilies = ["passkey"]\nintroduced = [0]\n')
    config = configuration(Options(config=file, generations=9))
    assert (config.keep, config.prompts, config.generations, config.families) == (None, 3, 9, ("passkey",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "cannot be read"),
        ("promts = 3", "promts"),
        ('prompts = "many"', "prompts"),
        ("prompts = 0", "prompts=0"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, message):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(NammTransferError, match=message):
        configuration(Options(config=file))
