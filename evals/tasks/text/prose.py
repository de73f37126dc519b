"""Text that every machine has: prose of CPython's own documentation, split by document.

The language reference comes with every Python as `pydoc_data.topics` (the texts behind `help("WITH")`), and the
modules of the standard library carry long docstrings. Both are under the Python Software Foundation licence. Which
words they hold differs a little between Python versions; `fingerprint` names what a run has used.
"""

# ruff: noqa: SIM905 - lists of words read better as words

import ast
import hashlib
import importlib.util
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Modules whose docstrings hold prose, not only signatures. Their source is parsed, never imported.
_MODULES = (
    "_pydatetime _pydecimal argparse asyncio.events bdb calendar cmd collections concurrent.futures.process "
    "configparser contextlib copy csv decimal difflib doctest email.message enum fractions ftplib functools "
    "getpass gettext heapq http.client http.cookiejar http.server imaplib inspect ipaddress json logging mailbox "
    "multiprocessing.pool nntplib optparse os pathlib pdb pickle pickletools platform poplib profile pydoc random "
    "re sched selectors shelve shlex smtplib socket socketserver ssl statistics string subprocess symtable "
    "tarfile tempfile textwrap threading timeit trace traceback turtle types typing unittest.case unittest.mock "
    "urllib.parse urllib.request uuid warnings weakref wsgiref.handlers xml.dom.minidom xml.sax.handler "
    "xmlrpc.client zipfile"
).split()
_SHORTEST_PARAGRAPH = 80  # characters; shorter ones are headings and list items
_CODE = re.compile(r">>>|::|[{}=<>|\\_*`]|\.\.\.|\(\)|http|--")


@dataclass(frozen=True)
class Document:
    """One document with its prose paragraphs in order."""

    name: str
    """Name of the document, `topic:NAME` or `module:NAME`."""
    paragraphs: tuple[str, ...]
    """Paragraphs of prose, each on one line."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """List all sentences of 40 to 300 characters in order."""
        found = [s for p in self.paragraphs for s in re.split(r"(?<=[.!?]) (?=[A-Z])", p)]
        return tuple(s for s in found if 40 <= len(s) <= 300)


def _paragraphs(text: str) -> list[str]:
    """Select paragraphs that read as prose: whole sentences with hardly any code in them."""
    joined = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    plain = (re.sub(r"\*+(\w[^*]*)\*+", r"\1", p).replace('"', "") for p in joined)
    return [
        p
        for p in plain
        if len(p) >= _SHORTEST_PARAGRAPH and p[0].isupper() and p[-1] in ".!?" and len(_CODE.findall(p)) <= len(p) / 200
    ]


def _docstrings(module: str) -> str:
    """Read all docstrings of a module's source file, in file order; empty if this Python has no such file."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return ""
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def split_of(name: str) -> Split:
    """Assign a document to a split by a hash of its name: 60 % train, 20 % validation, 20 % test."""
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.6 else "validation" if share < 0.8 else "test"


@cache
def documents(split: Split) -> tuple[Document, ...]:
    """Load the documents of one split, sorted by name, with at least three paragraphs each.

    Topics quote each other; a paragraph that occurs in several documents stays with one of them only: test before
    validation before train, so that nothing held out is seen in training.
    """
    from pydoc_data.topics import topics

    texts = {f"topic:{name}": text for name, text in topics.items()}
    texts |= {f"module:{name}": _docstrings(name) for name in _MODULES}
    seen: set[str] = set()
    found: dict[Split, list[Document]] = {s: [] for s in SPLITS}
    for owner in reversed(SPLITS):
        for name in sorted(n for n in texts if split_of(n) == owner):
            own = tuple(p for p in dict.fromkeys(_paragraphs(texts[name])) if p not in seen)
            seen.update(own)
            if len(own) >= 3:
                found[owner].append(Document(name, own))
    return tuple(found[split])


def fingerprint() -> str:
    """Compute the first 16 hex digits of a SHA-256 over all documents; equal documents give equal prompts."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for document in documents(split):
            digest.update("\n".join((document.name, *document.paragraphs)).encode())
    return digest.hexdigest()[:16]
