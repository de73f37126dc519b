"""Opening a page of this project in a real browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


def browse(page: str, width: int, folder: Path) -> tuple[str, str]:
    """Open a page in a window of that width: (its title after its scripts, what the browser complained about)."""
    (folder / "page.html").write_text(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    own = [f"--user-data-dir={folder / 'browser'}", f"--window-size={width},800", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, *own, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    return re.search("<title>(.*?)</title>", done.stdout)[1], done.stderr


def allowing(page: str, script: str) -> str:
    """The page with a script of the test's own; as it is, it allows no script but its own."""
    return re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page).replace(
        "</body>", f"<script>{script}</script></body>"
    )
