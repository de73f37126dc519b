"""The command line of the making of a NAMM."""

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.evolve import Options, configuration
from namm_transfer.evals.harness.options import parse
from namm_transfer.training.namm.config import EvolutionConfig


def test_the_defaults_are_those_of_the_configuration():
    assert configuration(parse(Options, [])) == EvolutionConfig()


def test_file_overrules_default_and_flag_overrules_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('prompts = 3\ngenerations = 7\nfamilies = ["passkey"]\nseed = 5\n')
    options = parse(Options, ["--config", str(file), "--generations", "9"])
    config = configuration(options)
    assert (config.prompts, config.generations, config.families, options.seed) == (3, 9, ("passkey",), 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is no TOML"),
        ("promts = 3", "did you mean 'prompts'"),
        ('prompts = "many"', "prompts"),
        ("prompts = 0", "prompts=0"),
        ("penalty = nan", "penalty=nan"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, message):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(NammTransferError, match=message):
        parse(Options, ["--config", str(file)])


def test_a_flag_that_does_not_fit_is_one_error():
    with pytest.raises(NammTransferError, match="members=1"):
        parse(Options, ["--members", "1"])


def test_help_names_the_stages_and_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("1. statistics", "5. search", "--learn-steps", "--resume", "Peak learning rate of Adam"):
        assert word in text
