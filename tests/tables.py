"""Tables in the documentation that are made from the code: `python tests/tables.py` writes them anew.

Each stands in its page between two comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import model_checks
import tiny_video_models
import transformers
import video_checks
from cache import test_attention as models
from hybrid_models import HYBRID
from places import ROOT

from namm_transfer import NAMM, NammTransferError, policies
from namm_transfer.namm import NAMM as NammClass

PAPER = re.compile(r"\s*\(([^()]*arXiv (\d{4}\.\d{4,5}))\)")
ALIKE = {"keep", "budget", "match", "allocation", "protect", "update_interval"}
"""Options that the page explains once for all policies."""
END = "<!-- end of table -->"


def policy_table() -> str:
    """Every policy of the registry: what it keeps, its own options with their defaults, and the paper."""
    rows = []
    for name, factory in policies.REGISTRY.items():
        rule = NammClass if name == NAMM.name else factory
        first = " ".join(inspect.getdoc(rule).partition("\n\n")[0].split())
        paper = PAPER.search(first)
        paper = paper or PAPER.search(" (" + (sys.modules[rule.__module__].__doc__ or "").partition("(")[2])
        source = f"[{paper[1].partition(', arXiv')[0]}](https://arxiv.org/abs/{paper[2]})" if paper else ""
        own = [
            f"`{key}={option.default}`" if option.default is not None else f"`{key}`"
            for key, option in inspect.signature(factory).parameters.items()
            if key not in ALIKE
        ]
        reads = "yes" if rule.needs_attention else ""
        rows.append((f"`{name}`", PAPER.sub("", first), reads, ", ".join(own), source))
    return table(("policy", "what it does", "reads attention", "options of its own", "paper"), rows)


def served_table() -> str:
    """Every architecture that the tests serve, and which checks it passes."""
    rows = []
    for name, config in (models.SERVED | HYBRID).items():
        kinds = sorted({kind.replace("_", " ") for kind in getattr(config, "layer_types", None) or ["full_attention"]})
        if getattr(config, "sliding_window", None) and kinds == ["full attention"]:
            kinds = ["sliding attention"]
        with models.torch.no_grad():
            cells = [passes(check, config) for check in model_checks.CHECKS.values()]
        rows.append((name, f"`{type(config).__name__}`", ", ".join(kinds), *cells))
    return table(("model", "configuration in transformers", "layers", *model_checks.CHECKS), rows)


def passes(check: Callable[[Any], None], subject: Any) -> str:
    """The cell of a check: yes or no."""
    try:
        check(subject)
    except (AssertionError, NammTransferError):
        return "no"
    return "yes"


EXAMPLES = {
    "llava_next_video": "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3_5": "Qwen/Qwen3.5-27B",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "internvl": "OpenGVLab/InternVL3-8B-hf",
}
"""A published model of each type."""


def video_table() -> str:
    """Every class of video-language models that the tests serve, and which checks it passes."""
    rows = []
    for kind in ("llava_next_video", *tiny_video_models.KINDS):
        with tempfile.TemporaryDirectory() as folder, models.torch.no_grad():
            adapter = video_checks.load(kind, Path(folder) / "model")
            cells = [passes(check, adapter) for check in video_checks.CHECKS.values()]
        rows.append((kind, f"`{type(adapter.model).__name__}`", f"`{EXAMPLES[kind]}`", *cells))
    return table(("model type", "class in transformers", "for example", *video_checks.CHECKS), rows)


def refused_table() -> str:
    """Every architecture that the tests see refused, with the error of this version of transformers."""
    rows = []
    for name, (config, _) in models.REFUSED.items():
        with models.torch.no_grad():
            says = models.refusal(models.build(config), models.torch.randint(0, 97, (1, 20)))
        rows.append((name, f"`{type(config).__name__}`", says or "served by this version of transformers"))
    return table(
        ("model", "configuration in transformers", f"the error, with transformers {transformers.__version__}"), rows
    )


CHECKED = ("served", "video")
"""Tables whose cells are results of checks; `tests/cache/test_served.py` and `tests/adapters/test_served_video.py` run
each check and compare its cell."""
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "policies": ("docs/policies.md", policy_table),
    "served": ("docs/models.md", served_table),
    "video": ("docs/models.md", video_table),
    "refused": ("docs/models.md", refused_table),
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def between(page: str, name: str) -> str:
    """The table that stands in a page now."""
    return page.partition(f"<!-- table: {name} -->\n")[2].partition(f"\n{END}")[0]


def main() -> None:
    """Write all tables into their pages."""
    for name, (path, make) in TABLES.items():
        page = (ROOT / path).read_text(encoding="utf-8")
        begin = f"<!-- table: {name} -->\n"
        (ROOT / path).write_text(page.replace(f"{begin}{between(page, name)}\n{END}", f"{begin}{make()}\n{END}"))


if __name__ == "__main__":
    main()
