# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module maintenance_report, on files."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.modules import maintenance_report
from tests.unit.hypervisor import Task


@pytest.fixture
def report(task: Task, tmp_path: Path) -> t.Callable[..., dict[str, t.Any]]:
    """The module, on a trace of its own."""
    task.base.pop("uri")

    def do(**params: t.Any) -> dict[str, t.Any]:
        return task(maintenance_report.main, diff=True, **{"trace": str(tmp_path / "trace"), **params})

    return do


def test_events_are_added_and_the_page_follows(report: t.Callable[..., dict[str, t.Any]], tmp_path: Path) -> None:
    trace, html = tmp_path / "trace", tmp_path / "page.html"
    events = [{"event": "moved", "vm": "web1", "host": "a", "dest": "b", "seconds": 2, "at": 100}]
    asked = {"events": events, "html": str(html)}

    foreseen = report(check=True, **asked)
    assert not trace.exists()
    assert not html.exists()
    done = report(**asked)
    for key in ("changed", "steps", "events", "summary", "done", "diff"):
        assert foreseen[key] == done[key], key
    assert done["steps"] == ["add to trace", "write report"]
    assert done["summary"]["moved"] == done["events"] == 1
    assert "web1" in html.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".page")] == []

    again = report(html=str(html))
    assert (again["changed"], again["steps"], again["diff"]) == (False, [], [])

    with trace.open("a", encoding="utf-8") as file:
        file.write('{"event": "torn')  # by somebody who was killed
    more = report(events=[{"event": "rolled", "host": "a"}], html=str(html))
    assert (more["events"], more["broken"], more["done"]) == (2, 1, ["a"])
    lines = trace.read_text(encoding="utf-8").splitlines()
    assert [json.loads(lines[number])["event"] for number in (0, 2)] == ["moved", "rolled"]


def test_what_cannot_be_done_is_said(report: t.Callable[..., dict[str, t.Any]], tmp_path: Path) -> None:
    assert report()["events"] == 0
    missing = report(html=str(tmp_path / "page.html"))
    assert missing["code"] == "not_found"
    assert "no trace" in missing["msg"]
    wrong = report(events=[{"event": "moved"}, {"host": "a"}])
    assert wrong["code"] == "invalid"
    assert not (tmp_path / "trace").exists()
    nowhere = report(trace=str(tmp_path / "no/trace"), events=[{"event": "moved"}])
    assert nowhere["code"] == "not_found"
    assert "add to the trace" in nowhere["msg"]
    lost = report(events=[{"event": "moved"}], html=str(tmp_path / "no/page"))
    assert lost["code"] == "not_found"
    assert "write the report" in lost["msg"]
    assert lost["steps"] == ["add to trace"]
