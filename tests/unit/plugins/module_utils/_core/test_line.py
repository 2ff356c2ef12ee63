# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Standing in line, between threads and processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import line, lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock

PROCESS = """
import sys, time
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import line, lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock
lock.DIRECTORY = sys.argv[1]
with line.turn("moves", "web1", {"to": "kvm2"}, lambda: lambda tickets, number: "", clock=Clock()):
    print("moves", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the tickets lie."""
    monkeypatch.setattr(lock, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(line, "INTERVAL", 0.01)
    return str(tmp_path)


def at_most(count: int) -> line.Look:
    """An obstacle: so many move already, or somebody stands before."""

    def obstacle(tickets: t.Sequence[line.Ticket], number: int) -> str:
        waiting = [ticket["number"] for ticket in tickets if not line.moves(ticket)]
        return "" if waiting[0] == number and len(tickets) - len(waiting) < count else f"{count} move"

    return lambda: obstacle


def turn(name: str, look: line.Look) -> contextlib.AbstractContextManager[None]:
    """A turn to move."""
    return line.turn("moves", name, {"to": "kvm2"}, look, clock=Clock())


def test_a_ticket_tells_who_holds_it_and_goes_with_the_turn() -> None:
    with turn("web1", at_most(1)):
        (ticket,) = line.tickets("moves")
        assert line.moves(ticket)
        assert (ticket["name"], ticket["to"], ticket["number"]) == ("web1", "kvm2", 1)
        assert line.tickets("other") == []
    assert line.tickets("moves") == []


def test_never_more_than_may_and_each_in_the_order_it_came() -> None:
    moving, most, order = 0, 0, list[int]()
    guard, came = threading.Lock(), threading.Semaphore(0)

    def move(index: int) -> None:
        nonlocal moving, most
        with turn(f"web{index}", at_most(2)):
            with guard:
                moving += 1
                most = max(most, moving)
                order.append(index)
            came.acquire()
            with guard:
                moving -= 1

    with ThreadPoolExecutor(6) as pool:
        futures = []
        for index in range(6):
            futures.append(pool.submit(move, index))
            while not any("progress" in ticket for ticket in line.tickets("moves")[index:]):  # it has looked
                time.sleep(0.005)
        assert line.tickets("moves")[2]["progress"] == {"phase": "queued", "why": "2 move"}
        for _each in futures:
            came.release()
        for future in futures:
            future.result()
    assert most == 2
    assert sorted(order[:2]) == [0, 1]
    assert sorted(order) == list(range(6))


def test_a_process_that_dies_leaves_the_line(places: str) -> None:
    above = next(path for path in sys.path if (Path(path) / "ansible_collections/kvmops/lifecycle").is_dir())
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, places],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": above},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "moves\n"
        assert [line.moves(ticket) for ticket in line.tickets("moves")] == [True]
        looked = threading.Event()

        def look() -> line.Obstacle:
            looked.set()
            return at_most(1)()

        def wait() -> None:
            with turn("web2", look):
                pass

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(wait)
            assert looked.wait(30)
            assert not done.done()
            process.kill()
            done.result(30)
    assert line.tickets("moves") == []


def test_what_anybody_may_write_does_no_harm(places: str) -> None:
    with lock.hold("moves-0", {}, name="web1"):
        Path(places, "moves-0.lock").write_text(json.dumps({"number": "x", "progress": 3}), encoding="utf-8")
        assert line.tickets("moves") == []
    assert not line.moves({"progress": 3})
