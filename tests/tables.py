"""Tables in the documentation that are made from the code: `python tests/tables.py` writes them anew.

Each stands in its page between two comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence

import tiny_video_models
import transformers
from cache import test_attention as models
from places import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VIDEO_LANGUAGE

from namm_transfer import NAMM, policies
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
    """Every architecture that the tests serve."""
    rows = []
    for name, config in models.SERVED.items():
        kinds = sorted({kind.replace("_", " ") for kind in getattr(config, "layer_types", None) or ["full_attention"]})
        if getattr(config, "sliding_window", None) and kinds == ["full attention"]:
            kinds = ["sliding attention"]
        rows.append((name.partition(",")[0], f"`{type(config).__name__}`", ", ".join(kinds)))
    return table(("model", "configuration in transformers", "layers"), rows)


def video_table() -> str:
    """Every class of video-language models that the tests serve."""
    own = {"llava_next_video": "LlavaNextVideoForConditionalGeneration"}
    rows = [(kind, f"`{name}`", "`llava_next_video`") for kind, name in own.items()]
    rows += [(kind, f"`{VIDEO_LANGUAGE[kind]}`", "`video_language`") for kind in tiny_video_models.KINDS]
    return table(("model type", "class in transformers", "adapter"), rows)


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
