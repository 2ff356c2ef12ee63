# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guides say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import status
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import Verdict, judge
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.power import route
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import Observation, State

GUIDE = Path(__file__).resolve().parents[2] / "docs/docsite/rst/guide_vm_states.rst"
WORDS = {Verdict.ALLOWED: "yes", Verdict.NOOP: "is so", Verdict.REFUSED: "no"}

ACTIONS = {
    "vm absent, reclaim_after": "soft_delete",
    "vm absent": "delete",
    "vm restored": "restore",
    "vm_snapshot": "snapshot",
    "vm_rebuild": "rebuild",
    "vm_shelve shelved": "shelve",
    "vm_shelve unshelved": "unshelve",
    "vm_rescue rescued": "rescue",
    "vm_rescue unrescued": "unrescue",
    "vm_resize resized": "resize",
    "vm_resize confirmed": "confirm_resize",
    "vm_resize reverted": "revert_resize",
    "vm_password": "set_password",
    "vm_lock": "lock",
    "vm_status": "reset_state",
}


def vm(state: int, *, managed_save: bool = False, mark: str = "", journal: str = "") -> State:
    """A VM in that state."""
    instance = Instance(
        marks=(Mark(mark, "then"),) if mark else (),
        journal=Journal(journal, "then", "node", 1) if journal else None,
    )
    return status.read(Observation("vm", "uuid", state, 0, managed_save, True, instance))


VMS = {
    "ACTIVE": vm(status.RUNNING),
    "SHUTOFF": vm(status.SHUTOFF),
    "PAUSED": vm(status.PAUSED),
    "SUSPENDED": vm(status.SHUTOFF, managed_save=True),
    "ERROR": vm(status.RUNNING, mark="error"),
    "SOFT_DELETED": vm(status.SHUTOFF, mark="soft-delete"),
    "BUILD": vm(status.SHUTOFF, journal="launch"),
    "SHELVED": vm(status.SHUTOFF, mark="shelved"),
    "RESCUE": vm(status.RUNNING, mark="rescued"),
    "VERIFY_RESIZE": vm(status.RUNNING, mark="resized"),
}


def read_table() -> dict[str, dict[str, str]]:
    """The table of what is allowed from where: row, column, word."""
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    first, second, last = (index for index, line in enumerate(lines) if line.startswith("===") and "  " in line)
    spans = [match.span() for match in re.finditer("=+", lines[first])]
    header, *rows = ([line[a:b].strip() for a, b in spans] for line in (lines[first + 1], *lines[second + 1 : last]))
    return {row[0]: dict(zip(header[1:], row[1:])) for row in rows}


def verdict(task: str, state: State) -> str:
    """What the code says."""
    if task in ACTIONS:
        return WORDS[judge(ACTIONS[task], state.vm_state)]
    if task == "vm present":
        action = "launch" if state.vm_state == "building" else "metadata"
        return WORDS[judge(action, state.vm_state)]
    if task == "vm_shelve offloaded":
        first = judge("shelve", state.vm_state)
        return WORDS[judge("shelve_offload", state.vm_state) if first is Verdict.NOOP else first]
    target, _comma, kind = task.removeprefix("vm_power ").partition(", ")
    try:
        way = route(state, target, name="vm", reboot=kind or "soft")
    except LifecycleError:
        return "no"
    return "yes" if way.operations or way.clears_error else "is so"


def test_the_guide_has_all_statuses_and_tasks() -> None:
    table = read_table()
    powers = {f"vm_power {state}" for state in ("running", "stopped", "paused", "suspended")}
    assert set(table) == {
        *ACTIONS,
        *powers,
        "vm_power rebooted, soft",
        "vm_power rebooted, hard",
        "vm present",
        "vm_shelve offloaded",
    }
    assert all(list(row) == list(VMS) for row in table.values())
    assert {name: state.status for name, state in VMS.items()} == {name: name for name in VMS}


@pytest.mark.parametrize("task", read_table())
def test_the_guide_says_what_is_allowed_from_where(task: str) -> None:
    assert read_table()[task] == {name: verdict(task, state) for name, state in VMS.items()}
