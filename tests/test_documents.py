"""Code blocks of the documents run as they stand, each document's in one fresh interpreter, in order."""

import re
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run(document, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert len(blocks) >= 2
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        "docs/control.md",
        "docs/examples.md",
        "docs/extending.md",
        "docs/how-it-works.md",
        "docs/making.md",
        "docs/models.md",
        "docs/policies.md",
        "docs/speed.md",
        "docs/reports/index.md",
        "docs/video.md",
        "docs/text.md",
        "docs/reports.md",
        "assets/namm-text/README.md",
    ],
)
def test_files_that_are_named_exist(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(r"(?:python|launch) ((?:evals|benchmarks|studies)/\w+\.py)", text)
    missing = [
        name
        for name in [*links, *named]
        if not ((ROOT / document).parent / name).exists() and not (ROOT / name).exists()
    ]
    assert not missing
