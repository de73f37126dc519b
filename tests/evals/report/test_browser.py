"""The page in a real browser."""

from browser import allowing, browse, needs_chromium

from namm_transfer.evals.report import pages
from namm_transfer.evals.report.analysis import build

CLICK = """
const button = [...document.querySelectorAll("thead button")].find(item => item.textContent === "score");
const names = () => [...button.closest("table").tBodies[0].rows].map(row => row.cells[0].textContent).join(",");
const orders = [names()];
for (let i = 0; i < 2; i++) { button.click(); orders.push(names()); }
document.title = orders.join(" then ") + " wide " + (document.documentElement.scrollWidth > innerWidth);
"""
FILTER = """
const [type, policy, outcome] = document.querySelectorAll("[data-filter]");
const shown = () => [...document.querySelectorAll(".entry")].filter(item => item.offsetParent).length;
const counts = [shown()];
for (const [select, value] of [[policy, "namm"], [outcome, "wrong"], [policy, ""]]) {
  select.focus();
  select.value = value;
  select.dispatchEvent(new Event("change"));
  counts.push(document.activeElement === select ? shown() : "no focus");
}
document.title = counts.join(" then ") + ", " + document.getElementById("shown").textContent;
"""


@needs_chromium
def test_it_opens_without_complaints_sorts_and_fits_the_window(write_folder, tmp_path):
    scores = {"full": [1.0, 0.0] * 10, "namm": [1.0] * 20, "streaming:sinks=4,window=252": [0.0] * 20}
    page = pages.as_html(build(write_folder(tmp_path / "run", scores, answer="<img src=x onerror=alert(1)>" * 9)))
    assert "'unsafe-inline'; img-src data:; script-src" in page
    title, complaints = browse(page, 1200, tmp_path)
    assert title == "Memory transfer report: video"
    assert "CONSOLE" not in complaints
    streaming = "streaming:sinks=4,window=252"
    orders = f"full,namm,{streaming} then {streaming},full,namm then namm,full,{streaming} wide false"
    assert browse(allowing(page, CLICK), 500, tmp_path)[0] == orders
    refused = page.replace("</body>", f"<script>{CLICK}</script></body>")
    assert "Content Security Policy" in browse(refused, 1200, tmp_path)[1]


@needs_chromium
def test_samples_are_filtered_by_policy_and_outcome_from_the_keyboard(write_folder, tmp_path):
    scores = {"full": [1.0] * 4, "namm": [1.0, 0.0, 0.0, 0.0], "l2": [0.0] * 4}
    page = pages.as_html(build(write_folder(tmp_path / "run", scores, details={"right": 0})))
    title, complaints = browse(allowing(page, FILTER), 500, tmp_path)
    assert title == "12 then 4 then 3 then 7, 4 of 4 samples shown"
    assert "CONSOLE" not in complaints
