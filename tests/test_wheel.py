"""Installed use: the built wheel in an environment and a folder of its own, with no checkout in reach."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from places import PARITY, ROOT

SOURCES = ("namm_transfer", "adapters", "evals", "training", "assets", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel in it; its dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    venv.create(environment)
    site = next(environment.glob("lib/python*/site-packages"))
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", environment / "bin/python", "install", "--no-deps", wheel], check=True)
    dependencies = folder / "dependencies"  # all that is installed here but the package itself
    dependencies.mkdir()
    for entry in os.scandir(sysconfig.get_path("purelib")):
        if "namm_transfer" not in entry.name and not entry.name.endswith(".pth"):
            (dependencies / entry.name).symlink_to(entry.path)
    (site / "dependencies.pth").write_text(str(dependencies))
    shutil.rmtree(source)
    empty = folder / "empty"
    empty.mkdir()

    def run(*arguments, module=None):
        command = [environment / "bin/python", *(["-m", module] if module else ["-c"]), *arguments]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})

    run.scripts = environment / "bin"
    run.empty = empty
    return run


def test_the_shipped_namm_is_found_without_a_checkout(installed):
    done = installed("from namm_transfer import NAMM; print(NAMM.from_pretrained('namm-text').to_vector().shape)")
    assert done.stdout.strip() == "torch.Size([4172])", done.stderr


def test_other_assets_say_which_command_makes_them(installed):
    done = installed(
        "from namm_transfer.files import asset\nfrom namm_transfer import NammTransferError\n"
        "try: asset('llava-next-video-small')\nexcept NammTransferError as error: print(error)"
    )
    assert "namm_transfer.training.video.train" in done.stdout, done.stderr


def test_the_command_line_works(installed):
    script = [installed.scripts / "namm-transfer", "parity", PARITY / "case_c"]
    done = subprocess.run(script, cwd=installed.empty, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.strip().endswith("parity: ok"), done.stderr


@pytest.mark.parametrize("name", ["video", "rl", "text", "evolve"])
def test_evaluations_are_modules_of_the_wheel(installed, name):
    done = installed("--help", module=f"namm_transfer.evals.{name}")
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_the_wheel_shadows_nobody(installed):
    """A package on PyPI is called adapters."""
    done = installed(
        "import importlib.util as u; print([n for n in ('adapters', 'evals', 'assets', 'tests') if u.find_spec(n)])"
    )
    assert done.stdout.strip() == "[]", done.stderr
