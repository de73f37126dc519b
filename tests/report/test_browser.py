"""The page in a real browser."""

import re
import shutil
import subprocess

import pytest

from namm_transfer.report import render
from namm_transfer.report.build import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLICK = """
const button = [...document.querySelectorAll("thead button")].find(item => item.textContent === "score");
const names = () => [...button.closest("table").tBodies[0].rows].map(row => row.cells[0].textContent).join(",");
const orders = [names()];
for (let i = 0; i < 2; i++) { button.click(); orders.push(names()); }
document.title = orders.join(" then ") + " wide " + (document.documentElement.scrollWidth > innerWidth);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_it_opens_without_complaints_sorts_and_fits_the_window(write_folder, tmp_path):
    scores = {"full": [1.0, 0.0] * 10, "namm": [1.0] * 20, "streaming:sinks=4,window=252": [0.0] * 20}
    page = render.as_html(build(write_folder(tmp_path / "run", scores, answer="<img src=x onerror=alert(1)>" * 9)))
    assert "'unsafe-inline'; img-src data:; script-src" in page

    def browse(page: str, width: int) -> tuple[str, str]:
        (tmp_path / "page.html").write_text(page)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
        own = [f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},800", "--dump-dom"]
        done = subprocess.run(
            [CHROMIUM, *flags, *own, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=60
        )
        return re.search("<title>(.*?)</title>", done.stdout)[1], done.stderr

    title, complaints = browse(page, 1200)
    assert title == "Memory transfer report: video"
    assert "CONSOLE" not in complaints
    # The page allows its own script alone, so the test's needs a page that allows any.
    open_page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
    clicking = open_page.replace("</body>", f"<script>{CLICK}</script></body>")
    streaming = "streaming:sinks=4,window=252"
    orders = f"full,namm,{streaming} then {streaming},full,namm then namm,full,{streaming} wide false"
    assert browse(clicking, 500)[0] == orders
    refused = page.replace("</body>", f"<script>{CLICK}</script></body>")
    assert "Content Security Policy" in browse(refused, 1200)[1]
