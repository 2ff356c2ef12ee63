# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of taking a VM's power on the way to something else."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.stopping import _operations, stop
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import State


@pytest.mark.parametrize(
    ("condition", "force", "steps", "operations"),
    [
        ("running", False, ["shut_down"], ["shut_down"]),
        ("running", True, ["power_off"], ["power_off"]),
        ("paused", False, ["power_off"], ["power_off"]),
        ("suspended", False, [], ["discard_save"]),
        ("stopped", False, [], []),
    ],
)
def test_a_paused_guest_is_not_asked_and_saved_memory_goes_when_it_is_of_no_use(
    condition: str, force: bool, steps: list[str], operations: list[str]
) -> None:
    guest = SimpleNamespace(name="web1")
    state = State(condition, "rescued", "", "", "RESCUE", marked=True)
    vm: t.Any = SimpleNamespace(there=lambda: (guest, None, state), made=lambda: guest)
    params = {"force": force, "shutdown_timeout": 60, "shutdown_retry_interval": 10}
    context: t.Any = SimpleNamespace(params=params, clock=None)
    assert [step.name for step in stop(context, vm)] == steps
    assert list(_operations(context, vm)) == operations
