# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from datetime import datetime, timezone

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.trace import (
    Load,
    done_hosts,
    line_of,
    read_event,
    read_lines,
)

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=timezone.utc)


def facts(running: int, *conditions: str) -> dict[str, t.Any]:
    """As much of a host's placement facts as matters."""
    return {
        "memory": {"total": 1024, "available": 5, "running": running},
        "cpus": {"total": 4, "running": 6},
        "vms": [{"name": f"vm{number}", "condition": each} for number, each in enumerate(conditions)],
        "libvirt": "9.0.0",
    }


def test_what_is_written_is_what_is_read() -> None:
    told = {"event": "moved", "host": "a", "vm": "web1", "dest": "b", "seconds": 1.23456, "why": "fits", "code": None}
    line = line_of({**told, "hosts": {"a": facts(512, "running", "paused", "off", "suspended")}}, NOW)
    assert "\n" not in line
    kept = json.loads(line)
    assert kept["at"] == "2026-01-31T12:00:00.000Z"
    assert (kept["why"], kept["seconds"], "code" in kept) == ("fits", 1.235, False)
    assert kept["hosts"] == {
        "a": {"memory": {"running": 512, "total": 1024}, "cpus": {"running": 6, "total": 4}, "vms": 2}
    }
    (event,), broken = read_lines(line + "\n")
    assert broken == 0
    assert (event.kind, event.vm, event.host, event.dest) == ("moved", "web1", "a", "b")
    assert event.at == NOW.timestamp()
    assert event.began == pytest.approx(NOW.timestamp() - 1.235)
    assert event.hosts == {"a": Load(512, 1024, 6, 4, 2)}


@pytest.mark.parametrize(
    "at",
    [
        NOW.timestamp(),
        str(int(NOW.timestamp())),
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00",
        "2026-01-31 13:00:00+01:00",
    ],
)
def test_a_time_may_be_told_in_several_ways(at: str | float) -> None:
    assert read_event({"event": "look", "at": at}).at == NOW.timestamp()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "a word for what happened"),
        ({"event": " "}, "a word for what happened"),
        ({"event": 1}, "a word for what happened"),
        ({"event": "x", "at": "noon"}, "no time: 'noon'"),
        ({"event": "x", "at": float("inf")}, "no time"),
        ({"event": "x", "at": 1e300}, "no time"),
        ({"event": "x", "seconds": "many"}, "no number: 'many'"),
        ({"event": "x", "seconds": "nan"}, "no number"),
        ({"event": "x", "seconds": -1}, "less than nothing"),
        ({"event": "x", "hosts": ["a"]}, "no dictionary"),
        ({"event": "x", "hosts": {"a": {"memory": 5}}}, "no placement facts"),
    ],
)
def test_what_is_no_event_is_refused(told: dict[str, t.Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        line_of(told, NOW)


def test_lines_that_tell_nothing_are_counted_and_the_others_are_in_the_order_of_time() -> None:
    late, early = ('{"event": "b", "at": 20}', '{"event": "a", "at": 10}')
    events, broken = read_lines(f'{late}\n\n{{"event": "c", "at"\n[]\n{early}\n')
    assert [event.kind for event in events] == ["a", "b"]
    assert broken == 2


def test_a_roll_is_done_with_hosts_since_it_was_begun_afresh() -> None:
    words = [
        "roll_begun -",
        "rolled a",
        "roll_begun -",
        "rolled b",
        "rolled b",
        "failed c",
        "roll_begun resumed",
        "rolled c",
    ]
    events = []
    for at, (kind, _blank, word) in enumerate(each.partition(" ") for each in words):
        key = "code" if kind == "roll_begun" else "host"
        events.append(read_event({"event": kind, key: word.replace("-", ""), "at": at}))
    assert done_hosts(events) == ["b", "c"]
