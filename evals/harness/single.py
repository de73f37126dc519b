"""One question under one policy: progress while the prompt is read, and the lines and the page at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from namm_transfer import MemoryCache, NammTransferError
from namm_transfer.cache.history import History
from namm_transfer.cache.report import MemoryReport
from namm_transfer.evals.harness.options import check_text, read_flags
from namm_transfer.files import write_atomic

if TYPE_CHECKING:
    from namm_transfer.evals.report.kept import Kept


def parse_arguments(options: Any, name: str, arguments: Sequence[str] | None) -> Any:
    """Read the options of `namm-transfer NAME`, a dataclass with positional fields, from the command line.

    Raises:
        NammTransferError: an argument is not valid text.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    check_text(given, "the command line")
    return read_flags(options, prog=f"namm-transfer {name}", args=given)


def check_page(path: Path) -> Path:
    """Raise `NammTransferError` if there is a folder of this name, or no folder that the page can be written to."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise NammTransferError(
            f"--out {str(path)!r}: expected the name of a page, such as page.html, in a folder that can be written to"
        )
    return path


def say(text: str) -> None:
    """Say on a terminal what is being done; elsewhere nothing, as progress bars do."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


@contextmanager
def recorded(cache: MemoryCache, tokens: int) -> Iterator[History]:
    """Record what the empty cache holds while a prompt of so many tokens is read, and show the progress."""
    policy = cache.policy
    updates = tokens // policy.update_interval * len(cache.attention_layers) if policy.evicts else 0
    with tqdm(total=updates, desc=f"reading {tokens:,} tokens", unit="update", disable=None, leave=False) as bar:
        yield History(cache, bar.update)


def kept_share(report: MemoryReport) -> str:
    """Say which share of the cache is kept."""
    row = report.row(0)
    layers, heads = row.kept.shape
    return f"{row.kept_share:.1%} of {row.seen:,} tokens, mean over {layers} layers of {heads} KV heads"


def described(report: MemoryReport, model: str, spec: str, interval: int) -> list[tuple[str, str]]:
    """Describe model, policy and cache, as pairs of name and value."""
    row = report.row(0)
    acted = f"{row.updates} updates, one every {interval:,} tokens"
    if not row.updates:
        acted = f"evicted nothing: {row.seen:,} tokens were read, and it acts every {interval:,} (--update-interval)"
    return [
        ("model", model),
        ("policy", f"{spec}: {acted}"),
        ("bytes held", f"{report.bytes:,}"),
    ]


def finish(shown: Kept, path: Path) -> None:
    """Write the page and print the answer, what was kept, and where the page is."""
    from namm_transfer.evals.report.kept import as_html  # here: what it imports should not delay an early error

    write_atomic(path, as_html(shown))
    if shown.note:
        print(f"note: {shown.note}")
    print(f"answer: {shown.answer}")
    for name, value in [("cache kept", shown.kept), *shown.facts]:
        print(f"{name}: {value}")
    print(f"page: {path}")
