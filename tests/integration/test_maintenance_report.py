# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page that the module maintenance_report makes, in a real browser."""

from __future__ import annotations

import typing as t
from pathlib import Path

from tests.integration.browser import chromium
from tests.integration.harness import Playbook, Result, task

# A name that would be markup, if it were not text, and one that has no room.
NASTY = "<img src=x onerror=alert(1)>"
LONG = "a-very-long-name-of-a-machine-that-has-no-room.example.com"

# What stands where; which words of pictures are outside of them; what was fetched.
READ = """
const text = (node) => node.textContent.trim();
const outside = [];
for (const svg of document.querySelectorAll('svg')) {
  const all = svg.viewBox.baseVal;
  for (const node of svg.querySelectorAll('text, rect')) {
    const box = node.getBBox();
    if (box.x < -0.5 || box.y < -0.5 || box.x + box.width > all.width + 0.5 || box.y + box.height > all.height + 0.5)
      outside.push(text(node) || node.outerHTML);
  }
}
return {
  title: document.title,
  pictures: [...document.querySelectorAll('svg')].map((svg) => text(svg.querySelector('title'))),
  bars: [...document.querySelectorAll('#timeline g title')].map(text),
  vms: [...document.querySelectorAll('#vms tbody tr')].map((row) => [...row.cells].map(text)),
  problems: [...document.querySelectorAll('.problems li')].map(text),
  images: document.images.length,
  outside: outside,
  fetched: performance.getEntriesByType('resource').map((each) => each.name),
  wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
};
"""


def load(memory: int, cpus: int) -> Result:
    """How full a host is."""
    return {"memory": {"running": memory, "total": 4096}, "cpus": {"running": cpus, "total": 2}, "vms": cpus}


def test_the_report_is_read_in_a_browser(play: Playbook, tmp_path: Path) -> None:
    at = 1_800_000_000
    events: list[dict[str, t.Any]] = [
        {"event": "look", "at": at, "hosts": {"kvm1": load(2048, 3), LONG: load(0, 0)}},
        {"event": "moved", "at": at + 9, "seconds": 9, "vm": "web1", "host": "kvm1", "dest": LONG},
        {"event": "failed", "at": at + 5, "seconds": 4, "vm": NASTY, "host": "kvm1", "dest": LONG, "message": NASTY},
        {"event": "moved", "at": at + 60, "seconds": 1, "vm": LONG, "host": LONG, "dest": "kvm1"},
        {"event": "verified", "at": at + 61, "seconds": 61, "host": "kvm1", "hosts": {"kvm1": load(0, 0)}},
    ]
    page = tmp_path / "report.html"
    asked = {"trace": str(tmp_path / "trace"), "events": events, "html": str(page), "title": "A drain & more"}
    assert play(task("maintenance_report", **asked), host="localhost").ok()["result"]["changed"]

    with chromium() as browser:
        browser.open(page.as_uri())
        seen = browser.run(READ)
        assert browser.complaints() == []
    assert seen["title"] == "A drain & more"
    assert seen["pictures"] == ["Memory and CPUs of hosts before and after", "What was done with each host, and when"]
    assert [row[:4] for row in seen["vms"]] == [
        [NASTY, "failed", "kvm1", LONG],
        [LONG, "moved", LONG, "kvm1"],
        ["web1", "moved", "kvm1", LONG],
    ]
    assert f"web1 moved from kvm1 to {LONG}, 9 s" in seen["bars"]
    assert len(seen["bars"]) == 4
    assert seen["problems"] == [f"{NASTY} failed. {NASTY}"]
    assert (seen["images"], seen["fetched"], seen["outside"], seen["wide"]) == (0, [], [], False)
