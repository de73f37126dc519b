"""Self-contained HTML pages: templates that escape what is put into them, and admit no script but their own."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def template(name: str) -> Any:
    """Load a Jinja template from this folder; values put into it are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def sealed(page: str) -> str:
    """Put the checksum of a page's script into its content security policy, which then admits no other script."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    return page.replace("SCRIPT-DIGEST", base64.b64encode(digest).decode(), 1)


def data_uri(kind: str, data: bytes) -> str:
    """Write a picture as the address of an <img>: `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
