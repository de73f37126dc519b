"""Policies of other packages: found by their entry points, refused one by one, never a danger to the others."""

import subprocess
import sys

import pytest
from places import ROOT

from namm_transfer import NammTransferError, plugins, policies

RULE = """
from namm_transfer.policies import {base}
class Rule({base}):
    {body}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that "installs" a package with a module and entry points of the policies' group."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(module: str, source: str, **policies: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in policies.items()]
        (folder / "entry_points.txt").write_text("[namm_transfer.policies]\n" + "".join(lines))

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


def test_the_example_package_is_built_installed_and_used(tmp_path):
    folder, site = ROOT / "examples" / "policy-package", tmp_path / "site"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "peak_policy.py"):
        (source / name).write_text((folder / name).read_text())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *options, str(source)], check=True)
    code = (
        "from namm_transfer import check_policy, policies\n"
        "policy = policies.make('peak:keep=0.5', update_interval=32)\n"
        "check_policy(policy)\n"
        "print(type(policy).__module__, policy.name, 'peak' in policies.names())"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["peak_policy", "peak", "True"], done.stderr


def test_the_example_package_is_the_policy_of_the_guide():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    example = (ROOT / "examples" / "policy-package" / "peak_policy.py").read_text()
    for line in ('"""Keeps the tokens with the largest', 'state["peak"] = torch.maximum', 'return view.state["peak"]'):
        assert line in guide
        assert line in example
