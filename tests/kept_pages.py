"""Reading back a page that `namm-transfer ask` or `read` wrote."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np


class _Elements(HTMLParser):
    """Collects the elements of a page, and the text in each kind of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        name = f"{tag}.{dict(attrs).get('class', '')}".rstrip(".")
        self._inside.append(name)
        self.texts.setdefault(name, []).append("")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop().partition(".")[0] != tag:
            pass

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside[-1]][-1] += data


def elements(page: str) -> _Elements:
    """The elements of a page as a browser would see them."""
    found = _Elements()
    found.feed(page)
    return found


def data_of(page: str) -> dict:
    """The data that the page plays, its arrays decoded: `held` (steps, layers, heads), `shares` or `last`."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    shape = (data["layers"], data["heads"])
    data["held"] = np.frombuffer(base64.b64decode(data["held"]), "<u4").reshape(-1, *shape)
    for name, axes in (("shares", (len(data["seen"]), *shape, -1)), ("last", (*shape, -1))):
        if name in data:
            data[name] = np.frombuffer(base64.b64decode(data[name]), np.uint8).reshape(axes)
    return data


def requests_of(page: str) -> list[str]:
    """Everything in a page that a browser would fetch from elsewhere."""
    addresses = [attrs.get(name) for _, attrs in elements(page).tags for name in ("src", "href", "action", "data")]
    return [address for address in addresses if address and not address.startswith("data:")]


def files_in(folder: Path) -> list[str]:
    """The names of all files below a folder, hidden ones included."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
