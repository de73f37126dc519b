"""Policies of other packages: found by their entry points, refused one by one, never a danger to the others."""

import re
import shutil
import subprocess
import sys

import pytest
from places import ROOT
from tiny_text import save_tiny_llama

from namm_transfer import NammTransferError, plugins, policies
from namm_transfer.evals import text, video

EXAMPLE = ROOT / "examples" / "package"

RULE = """
from namm_transfer.policies import {base}
class Rule({base}):
    {body}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that "installs" a package with a module and entry points of a group, by default that of policies."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(module: str, source: str, group: str = policies.GROUP, **entries: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))

    yield install
    for name in [name for name in sys.modules if name.startswith("plug_")]:
        del sys.modules[name]


def test_a_policy_of_another_package_is_found_by_its_name(package):
    source = "from __future__ import annotations\n" + RULE.format(base="Recent", body="alpha: float = 1.0")
    package(
        "plug_good", source.replace("class", "import dataclasses\n@dataclasses.dataclass\nclass"), mine="plug_good:Rule"
    )
    policy = policies.make("mine:budget=7,alpha=0.5", update_interval=32)
    assert (type(policy).__name__, policy.name, policy.size.budget, policy.alpha) == ("Rule", "mine", 7, 0.5)
    assert "mine" in policies.names()
    with pytest.raises(NammTransferError, match=r"'thine'.*full, .*namm, mine"):
        policies.make("thine")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise RuntimeError('no GPU here')", "'broken' of plug_broken.*RuntimeError: no GPU here"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def Rule(", "SyntaxError"),
        ("", "AttributeError"),
        ("Rule = 3", "expected a subclass of EvictionPolicy"),
        (
            RULE.format(base="EvictionPolicy", body="pass").replace("policies import", "policy import"),
            "update_interval",
        ),
        (RULE.format(base="Recent", body="name = 'other'"), "names itself 'other'"),
    ],
)
def test_a_broken_plug_in_is_named_and_harms_no_other(package, source, says):
    package("plug_broken", source, broken="plug_broken:Rule")
    package("plug_other", RULE.format(base="Recent", body="pass"), fine="plug_other:Rule")
    with pytest.raises(NammTransferError, match=says):
        policies.make("broken")
    assert policies.make("fine").name == "fine"
    assert policies.make("h2o").name == "h2o"
    assert {"broken", "fine"} <= set(policies.names())


def test_a_name_that_two_packages_use_is_refused(package):
    package("plug_one", RULE.format(base="Recent", body="pass"), l2="plug_one:Rule", twice="plug_one:Rule")
    package("plug_two", RULE.format(base="Recent", body="pass"), twice="plug_two:Rule")
    with pytest.raises(NammTransferError, match=r"'l2'.*namm-transfer itself and by plug_one \(plug_one:Rule\)"):
        policies.make("l2")
    with pytest.raises(NammTransferError, match=r"'twice'.*plug_one .* and by plug_two "):
        policies.make("twice")
    assert policies.names().count("l2") == policies.names().count("twice") == 1
    assert policies.make("h2o").name == "h2o"


def test_a_required_option_is_asked_for(package):
    body = "alpha: float\n    beta: bool = False\n    shape: tuple = ()"
    source = "import dataclasses\n" + RULE.format(base="Recent", body=body).replace(
        "class", "@dataclasses.dataclass\nclass"
    )
    package("plug_needy", source, needy="plug_needy:Rule")
    with pytest.raises(NammTransferError, match=r"'needy' lacks alpha="):
        policies.make("needy")
    assert policies.make("needy:alpha=2,beta=true").beta is True
    with pytest.raises(NammTransferError, match=r"beta='1'.*true or false"):
        policies.make("needy:alpha=2,beta=1")
    with pytest.raises(NammTransferError, match=r"shape='3'.*Python only"):
        policies.make("needy:alpha=2,shape=3")


def test_nothing_is_imported_to_list_names(package):
    package("plug_silent", "raise RuntimeError", silent="plug_silent:Rule")
    assert plugins.discover("namm_transfer.policies")["silent"].value == "plug_silent:Rule"
    assert "plug_silent" not in sys.modules
    assert plugins.discover("namm_transfer.nothing") == {}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A function that runs Python code where the example package is installed, and returns what it printed."""
    place = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, place / "source")  # building leaves files there
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(place / "site")]
    subprocess.run([*pip, *options, str(source)], check=True)

    def run(code: str) -> str:
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(place / 'site')!r})\n{code}"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    return run


def test_the_policy_of_the_example_package_is_used(example):
    printed = example(
        "from namm_transfer import check_policy, policies\n"
        "policy = policies.make('peak:keep=0.5', update_interval=32)\n"
        "check_policy(policy)\n"
        "print(type(policy).__module__, policy.name, 'peak' in policies.names())"
    )
    assert printed.split() == ["peak_policy", "peak", "True"]


def test_help_names_the_policies_of_other_packages(example):
    printed = example("from namm_transfer.evals import text\ntext.main(['--help'])")
    assert re.search(r"full, recent, .*namm, peak, each written", " ".join(re.sub("[│|]", "", printed).split()))


def test_the_adapter_of_the_example_package_asks_the_questions(example, tmp_path):
    model = save_tiny_llama(tmp_path / "model")
    (model / "chat_template.jinja").write_text("<user>{{ messages[0].content }}</user>")
    flags = ["--model", str(model), "--tasks", "passkey", "--samples", "1", "--tokens", "300", "--policy", "full"]
    code = (
        "from namm_transfer.evals import text\nreport = text.main({flags})\nprint('seen', report.costs[0].tokens_seen)"
    )
    seen = {}
    for name in ("auto", "chat"):
        printed = example(code.format(flags=[*flags, "--adapter", name, "--out", str(tmp_path / name)]))
        seen[name] = float(printed.split("seen ")[-1])
    assert seen["chat"] == seen["auto"] + len("<user></user>"), "the tiny model's tokens are bytes"


def test_a_video_model_is_loaded_by_the_adapter_that_is_named(package, tmp_path):
    source = """
from namm_transfer.adapters.video_language import VideoLanguageAdapter
class Mine(VideoLanguageAdapter):
    @classmethod
    def load(cls, source, **options):
        raise RuntimeError(f"asked for {source} {sorted(options)}")
"""
    package("plug_video", source, group="namm_transfer.adapters", mine="plug_video:Mine")
    films = ["--films", "1", "--frames", "16", "--data-root", str(tmp_path / "films"), "--out", str(tmp_path / "out")]
    with pytest.raises(RuntimeError, match=r"asked for nowhere \['backend', 'device', 'device_map', 'dtype'\]"):
        video.main(["--adapter", "mine", "--model", "nowhere", *films])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chat", "unknown adapter 'chat': expected one of auto, wrong$"),
        ("wrong", "adapter 'wrong' is <class 'plug_adapter.Wrong'>: expected a subclass of CausalLMAdapter"),
    ],
)
def test_an_adapter_that_cannot_serve_is_refused_at_once(package, name, says):
    package("plug_adapter", "class Wrong: pass", group="namm_transfer.adapters", wrong="plug_adapter:Wrong")
    with pytest.raises(NammTransferError, match=says):
        text.main(["--adapter", name, "--model", "nowhere"])


def test_the_example_package_is_the_policy_of_the_guide():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    example = (EXAMPLE / "peak_policy.py").read_text()
    for line in ('"""Keeps the tokens with the largest', 'state["peak"] = torch.maximum', 'return view.state["peak"]'):
        assert line in guide
        assert line in example
