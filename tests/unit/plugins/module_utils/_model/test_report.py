# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t
from html.parser import HTMLParser

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.report import render, summarize
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.trace import Event, Load

START = 1_800_000_000.0


def event(kind: str, at: float, seconds: float = 0, **more: t.Any) -> Event:
    return Event(kind, START + at, seconds, **more)


class Page(HTMLParser):
    """What stands in a page: elements with their attributes, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict[str, t.Any]] = []
        self.all: list[dict[str, t.Any]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.all.append(element)
        if tag not in ("meta", "link"):
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def texts(self, tag: str, **attributes: str) -> list[str]:
        """Of all such elements."""
        return [each["text"] for each in self.all if each["tag"] == tag and attributes.items() <= each.items()]


def rects(page: str, kind: str) -> list[dict[str, float]]:
    """The rectangles of a class."""
    found = re.findall(rf'<rect class="{kind}" x="(.+?)" y="(.+?)" width="(.+?)"', page)
    return [dict(zip(("x", "y", "width"), map(float, each))) for each in found]


EVENTS = [
    event("cordoned", 0, host="kvm1"),
    event("look", 0, hosts={"kvm1": Load(1024, 2048, 3, 2, 2), "kvm2": Load(0, 2048, 0, 2, 0)}),
    event("move", 1, host="kvm1", vm="web1"),
    event("moved", 5, 4, host="kvm1", vm="web1", dest="kvm2"),
    event("failed", 6, 5, host="kvm1", vm="web2", dest="kvm2", code="no_space", message="There is no room."),
    event("stopped", 8, 1, host="kvm1", vm="web2"),
    event("skipped", 9, host="kvm3", message="It does not answer."),
    event("look", 10, hosts={"kvm1": Load(0, 2048, 0, 2, 0), "kvm2": Load(1024, 2048, 3, 2, 2)}),
]


def test_the_numbers_are_those_of_the_trace() -> None:
    summary = summarize(EVENTS)
    assert (summary.began, summary.seconds) == (START, 10)
    assert (summary.moved, summary.failed, summary.skipped) == (1, 1, 1)
    assert summary.hosts == ("kvm1", "kvm2", "kvm3")
    assert summary.tell()["began"] == "2027-01-15T08:00:00.000Z"


def test_everything_that_happened_stands_in_the_page() -> None:
    text = render(EVENTS, title="A drain", broken=2)
    page = Page(text)
    assert page.texts("title")[0] == page.texts("h1")[0] == "A drain"
    assert page.texts("ul", **{"class": "numbers"}) == ["1moved1shut down0started1failed1skipped"]
    problems = page.texts("ul", **{"class": "problems"})[0]
    assert "web2 failed. no_space There is no room." in problems
    assert "kvm3 skipped. It does not answer." in problems
    assert page.texts("tr", **{"class": "vm"}) == [
        "web1movedkvm1kvm208:00:014.0",
        "web2failedkvm1kvm208:00:015.0There is no room.",
        "web2shut downkvm108:00:071.0",
    ]
    assert len(page.texts("tr", **{"class": "event"})) == len(EVENTS)
    assert page.texts("p", **{"class": "broken"})[0].endswith(": 2.")
    assert [each["tag"] for each in page.all].count("svg") == 2
    assert "kvm1: memory 1 of 2 GiB before, 0 of 2 GiB after" in page.texts("desc")[0]
    assert "web1 moved from kvm1 to kvm2" in page.texts("desc")[1]
    assert text == render(EVENTS, title="A drain", broken=2)


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    text = render(EVENTS, title="x")
    (before, *_others), (after, *_more) = rects(text, "old"), rects(text, "now")
    free = rects(text, "free")[0]
    assert before["width"] / free["width"] == pytest.approx(0.5, abs=0.01)
    assert after["width"] == 0
    assert len(rects(text, "over")) == 2  # the CPUs of one host before, and of the other one after
    (moved,), (failed,), (stopped,) = (rects(text, kind) for kind in ("good", "bad", "power"))
    assert moved["x"] == failed["x"] < stopped["x"]
    assert moved["width"] / failed["width"] == pytest.approx(4 / 5, abs=0.01)
    assert moved["y"] != failed["y"], "they were at the same time"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.44, "0.4 s"), (9, "9 s"), (10.4, "10 s"), (65, "1 min 05 s"), (120, "2 min"), (3725, "1 h 02 min")],
)
def test_how_long_it_took_is_told_as_people_do(seconds: float, told: str) -> None:
    page = Page(render([event("moved", seconds, seconds, host="kvm1", vm="web1", dest="kvm2")], title="One"))
    assert any(text.endswith(f", {told}") for text in page.texts("title"))


def test_nothing_that_happened_is_more_than_text() -> None:
    nasty = "</title><script src='//x'>&\x00\x1b[1m"
    events = [event("failed", 1, 1, host=nasty, vm=nasty, dest=nasty, code=nasty, message=nasty)]
    events.append(event(nasty, 2, 1, host=nasty, hosts={nasty: Load(1, 2, 3, 4, 5)}))
    text = render(events, title=nasty)
    page = Page(text)
    assert {each["tag"] for each in page.all}.isdisjoint({"script", "img", "a", "iframe", "object"})
    assert page.texts("h1") == ["</title><script src='//x'>&\ufffd\ufffd[1m"]
    assert not re.search(r"[\x00-\x08\x1b]", text)
    assert [each["href"] for each in page.all if "href" in each] == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text


def test_pictures_are_told_to_those_who_do_not_see_them() -> None:
    page = Page(render(EVENTS, title="x"))
    names = {each["id"] for each in page.all if "id" in each}
    pictures = [each for each in page.all if each["tag"] == "svg"]
    assert all(each["role"] == "img" and set(each["aria-labelledby"].split()) <= names for each in pictures)
    assert page.all[0] == {"tag": "html", "text": page.all[0]["text"], "lang": "en"}
    assert all(each["scope"] == "col" for each in page.all if each["tag"] == "th")
    assert len(page.texts("caption")) == 2


def test_an_empty_trace_makes_a_page_that_says_so() -> None:
    page = Page(render([], title="Nothing"))
    assert "nothing has happened" in page.texts("main")[0]
    assert not page.texts("svg")


def test_of_many_hosts_those_are_shown_with_which_something_was_done() -> None:
    many = {f"kvm{number}": Load(1, 2, 1, 2, 1) for number in range(100)}
    text = render([event("look", 0, hosts=many), event("moved", 2, 1, vm="a", host="kvm7", dest="kvm9")], title="x")
    assert len(rects(text, "now")) == 4
    assert "98 other hosts are as they were" in text


def test_the_pictures_of_long_runs_stay_readable() -> None:
    long = [event("moved", 90000 * n + 50, 40, vm=f"vm{n}", host="h" * 80, dest="b") for n in range(30)]
    text = render(long, title="x")
    ticks = re.findall(r">\+[0-9].*?<", text)
    assert 2 <= len(ticks) <= 8
    assert "…<title>" + "h" * 80 in text
    assert all(rect["x"] + rect["width"] <= 960 for rect in rects(text, "good"))
