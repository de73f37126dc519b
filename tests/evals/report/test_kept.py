"""The page that plays what a cache kept, alone and in a real browser."""

import numpy as np
import pytest
from browser import allowing, browse, needs_chromium
from kept_pages import data_of, elements, requests_of

from namm_transfer.cache.history import KeptHistory
from namm_transfer.evals.report import kept
from namm_transfer.evals.report.kept import Frame, Kept, as_html, clock

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="
HOSTILE = '</script><script>document.title = "hacked"</script><img src=x onerror=alert(1)>{{ 7 * 7 }}<!--'
PLAY = """
const label = () => document.getElementById("now").textContent;
const items = [...document.querySelectorAll(".unit")].map(item => item.querySelector("img") || item);
const opacities = () => items.map(item => item.style.opacity).join(" ");
const set = (id, value, event) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
};
const found = [label(), opacities()];
set("step", 0, "input");
found.push(label(), opacities(), document.querySelectorAll(".unread").length + " unread");
set("head", "1", "change");
found.push(label(), opacities());
document.getElementById("play").click();
setTimeout(() => {
  found.push(document.getElementById("step").value, document.getElementById("play").textContent);
  document.title = found.join(" | ") + " | wide " + (document.documentElement.scrollWidth > innerWidth);
}, 1900);
"""


def shown(**changes) -> Kept:
    """Two heads of one layer; of four tokens in two frames one head loses the first one, the other nothing."""
    history = KeptHistory(np.array([[[1, 3, 3, 3], [3, 3, 3, 3]]]), np.array([2, 3, 4]), np.array([1, 2, 2]))
    made = dict(
        title="What the cache kept of film.mp4", question="What?", answer="That.", kept="88%",
        facts=[("model", "a model")], history=history, unit_of=np.array([0, 0, 1, 1]),
        frames=[Frame(PIXEL, 1.0), Frame(PIXEL, 62.5)],
    )  # fmt: skip
    return Kept(**(made | changes))


def words(**changes) -> Kept:
    return shown(frames=[], pieces=["It ", "was ", "so"], unit_of=np.array([0, 1, 2, 2]), **changes)


def test_the_page_holds_the_counts_and_the_shares():
    data = data_of(as_html(shown()))
    assert data["held"].tolist() == [[[2, 2]], [[2, 3]], [[3, 4]]]
    assert data["shares"].tolist() == [[[[255, 0], [255, 0]]], [[[128, 255], [255, 255]]], [[[128, 255], [255, 255]]]]
    assert (data["seen"], data["updates"], data["first"]) == ([2, 3, 4], [1, 2, 2], [0, 2])
    data = data_of(as_html(words()))
    assert data["last"].tolist() == [[[1, 3, 3, 3], [3, 3, 3, 3]]]
    assert (data["unit"], data["first"]) == ([0, 1, 2, 2], [0, 1, 2])


def test_frames_that_share_tokens_are_paled_alike():
    data = data_of(as_html(shown(unit_of=np.zeros(4, np.int64), shares_of=np.array([0, 0]))))
    assert data["first"] == [0, 0]
    assert np.array_equal(data["shares"][..., 0], data["shares"][..., 1])
    assert data["shares"][-1, 0].tolist() == [[191, 191], [255, 255]]


@pytest.mark.parametrize("make", [shown, words])
def test_what_user_and_model_wrote_is_text(make):
    changes = dict.fromkeys(("title", "question", "answer", "note", "kept"), HOSTILE) | {"facts": [(HOSTILE, HOSTILE)]}
    if make is words:
        changes["pieces"] = [HOSTILE, HOSTILE, "so"]
        page = as_html(shown(**changes, frames=[], unit_of=np.array([0, 1, 2, 2])))
    else:
        page = as_html(shown(**changes))
    found = elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert not any("onerror" in attrs for _, attrs in found.tags)
    assert not requests_of(page)
    assert found.texts["p.question"] == found.texts["dt"] == found.texts["dd"] == found.texts["p.note"] == [HOSTILE]
    assert "49" not in found.texts["p.answer"][0]
    if make is words:
        assert found.texts["span.unit"] == [HOSTILE, HOSTILE, "so"]


def test_many_updates_are_thinned(monkeypatch):
    monkeypatch.setattr(kept, "MOST_STEPS", 2)
    data = data_of(as_html(shown()))
    assert (data["seen"], data["updates"]) == ([2, 4], [1, 2])
    assert data["held"].tolist() == [[[2, 2]], [[3, 4]]]


def test_times_are_written_in_minutes_and_with_tenths_where_one_has_some():
    assert clock([0, 7.04, 59.96, 62.5, 3601]) == ["0:00.0", "0:07.0", "1:00.0", "1:02.5", "60:01.0"]
    assert clock([0, 7.04, 3601]) == ["0:00", "0:07", "60:01"]


@needs_chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_frames_play_in_a_browser(width, tmp_path):
    page = as_html(shown(question=HOSTILE, facts=[("model", "a-name-without-spaces" * 20)]))
    title, complaints = browse(page, width, tmp_path)
    assert title.startswith("What the cache kept: &lt;/script&gt;")
    assert "CONSOLE" not in complaints
    parts = browse(allowing(page, PLAY), width, tmp_path)[0].split(" | ")
    assert parts == [
        "When the answer begins: 4 tokens read, 88 % of them held (4 a head)", "0.78 1",
        "After update 1: 2 tokens read, 100 % of them held (2 a head)", "1 0.1", "1 unread",
        "After update 1: 2 tokens read, 100 % of them held (2 a head)", "1 0.1",
        "2", "Play", "wide false",
    ]  # fmt: skip


@needs_chromium
def test_words_play_in_a_browser(tmp_path):
    parts = browse(allowing(as_html(words()), PLAY), 500, tmp_path)[0].split(" | ")
    assert parts[1::2][:2] == ["0.6 1 1", "1 1 1"]
    assert parts[4:5] + parts[7:] == ["1 unread", "2", "Play", "wide false"]
