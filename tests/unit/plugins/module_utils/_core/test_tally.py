# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a task is, told to who watches it."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import line, lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.tally import tally


def told() -> dict[str, t.Any] | None:
    """What is told of the first task."""
    return lock.holder("tasks-0")


def test_what_has_ended_is_told_and_what_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lock.TASK, "mine")
    with tally(3) as ended:
        assert told() == {
            "name": "",
            "action": "tally",
            "task": "mine",
            "progress": {"total": 3, "ended": 0, "failed": 0},
        }
        ended(False)
        ended(True)
        found = told()
        assert found is not None
        assert found["progress"] == {"total": 3, "ended": 2, "failed": 1}
        with tally(2):  # another task of the same machine
            assert lock.holder("tasks-1") is not None
        assert line.tickets("tasks") == []  # nobody stands there
    assert told() is None


def test_nothing_is_told_when_nobody_watches_or_there_is_one_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(lock.TASK, raising=False)
    with tally(3) as ended:
        ended(False)
        assert told() is None
    monkeypatch.setenv(lock.TASK, "mine")
    with tally(1) as ended:
        ended(False)
        assert told() is None
