# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The status of a VM in Nova's words, from everything that libvirt can say and we can remember."""

from __future__ import annotations

import typing as t

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import status
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import ACTIONS, ANY
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import CONDITIONS, TASKS, Observation, read

SINCE = "2026-01-01T00:00:00Z"
MARKS = ("error", "soft-delete", "rescued", "resized", "shelved", "shelved_offloaded")

# virDomainState
STATES = ("NOSTATE", "RUNNING", "BLOCKED", "PAUSED", "SHUTDOWN", "SHUTOFF", "CRASHED", "PMSUSPENDED")


def numbers(prefix: str) -> dict[str, int]:
    """libvirt's constants that start with *prefix*, by the rest of their names."""
    return {
        name[len(prefix) :]: value
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and isinstance(value, int) and not name.endswith("_LAST")
    }


REASONS = {state: numbers(f"VIR_DOMAIN_{state}_") for state in STATES}
# Where the constants of a state are not reasons: flags of virDomainShutdown, and what is not there at all.
REASONS["SHUTDOWN"] = {"UNKNOWN": 0, "USER": 1}
REASONS["BLOCKED"] = {"UNKNOWN": 0}
REASONS["PMSUSPENDED"] = {"UNKNOWN": 0}

EVERYTHING = [
    pytest.param(
        getattr(libvirt, f"VIR_DOMAIN_{state}"), reason, saved, id=f"{state}-{name}{'-saved' if saved else ''}"
    )
    for state, reasons in REASONS.items()
    for name, reason in reasons.items()
    for saved in (False, True)
]

# What the guest is doing, and what follows from it when we remember nothing.
MEANING = {
    "running": ("active", "", "ACTIVE"),
    "paused": ("paused", "", "PAUSED"),
    "suspended": ("suspended", "", "SUSPENDED"),
    "stopped": ("stopped", "", "SHUTOFF"),
    "going_down": ("active", "powering-off", "ACTIVE"),
    "asleep": ("active", "", "ACTIVE"),
    "crashed": ("error", "", "ERROR"),
}


def seen(
    state: int = status.RUNNING,
    reason: int = 1,
    *,
    saved: bool = False,
    marks: t.Sequence[str] = (),
    journal: str = "",
    running: t.Mapping[str, t.Any] | None = None,
) -> Observation:
    """One look at a VM."""
    instance = Instance(
        marks=tuple(Mark(mark, SINCE) for mark in marks),
        journal=Journal(journal, SINCE, "kvm1", 1) if journal else None,
    )
    return Observation("web1", "u", state, reason, saved, True, instance, running)


def expected(state: int, reason: int, saved: bool) -> str:
    """What the guest is doing, as section 1.2 of Nova's semantics has it."""
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return "suspended" if saved else "stopped"
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return "going_down" if reason == libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN else "paused"
    return {
        libvirt.VIR_DOMAIN_SHUTDOWN: "going_down",
        libvirt.VIR_DOMAIN_CRASHED: "crashed",
        libvirt.VIR_DOMAIN_PMSUSPENDED: "asleep",
    }.get(state, "running")


def test_our_numbers_are_those_of_libvirt() -> None:
    for state in STATES:
        assert getattr(status, state) == getattr(libvirt, f"VIR_DOMAIN_{state}")
    assert status.PAUSED_SHUTTING_DOWN == libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN
    assert status.SHUTOFF_SHUTDOWN == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN
    assert [len(REASONS[state]) for state in ("RUNNING", "PAUSED", "SHUTOFF", "CRASHED")] >= [11, 14, 9, 2]


@pytest.mark.parametrize(("state", "reason", "saved"), EVERYTHING)
def test_what_libvirt_says_alone_has_a_meaning(state: int, reason: int, saved: bool) -> None:
    found = read(seen(state, reason, saved=saved))
    vm_state, task_state, shown = MEANING[expected(state, reason, saved)]
    assert found.condition == expected(state, reason, saved)
    assert (found.vm_state, found.task_state, found.status) == (vm_state, task_state, shown)
    assert not found.marked
    assert found.running == ""


@pytest.mark.parametrize(
    ("state", "power_state"),
    [
        (status.NOSTATE, "NOSTATE"),
        (status.RUNNING, "RUNNING"),
        (status.BLOCKED, "RUNNING"),
        (status.PAUSED, "PAUSED"),
        (status.SHUTDOWN, "SHUTDOWN"),
        (status.SHUTOFF, "SHUTDOWN"),
        (status.CRASHED, "CRASHED"),
        (status.PMSUSPENDED, "SUSPENDED"),
        (99, "NOSTATE"),
    ],
)
@pytest.mark.parametrize("mark", ["", *MARKS])
def test_the_power_state_is_what_the_hypervisor_tells_whatever_we_remember(
    state: int, power_state: str, mark: str
) -> None:
    assert read(seen(state, marks=[mark] if mark else [])).power_state == power_state


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        ("error", "ERROR"),
        ("soft-delete", "SOFT_DELETED"),
        ("rescued", "RESCUE"),
        ("resized", "VERIFY_RESIZE"),
        ("shelved", "SHELVED"),
        ("shelved_offloaded", "SHELVED_OFFLOADED"),
    ],
)
@pytest.mark.parametrize(("state", "saved"), [(status.RUNNING, False), (status.SHUTOFF, False), (status.SHUTOFF, True)])
def test_a_mark_is_the_status_whatever_the_guest_is_doing(state: int, saved: bool, mark: str, shown: str) -> None:
    found = read(seen(state, saved=saved, marks=[mark]))
    assert (found.vm_state, found.status, found.marked) == (mark, shown, True)


def test_the_newest_mark_is_the_status() -> None:
    assert read(seen(marks=["rescued", "soft-delete", "error"])).status == "ERROR"
    assert read(seen(marks=["error", "rescued"])).status == "RESCUE"


@pytest.mark.parametrize("mark", ["", "error"])
def test_a_launch_that_has_not_ended_is_a_build_whatever_else_there_is(mark: str) -> None:
    found = read(seen(journal="launch", marks=[mark] if mark else []))
    assert (found.vm_state, found.status, found.task_state, found.marked) == ("building", "BUILD", "spawning", True)


# Section 1.3 of Nova's semantics: the status where the transition shows.
SHOWN = {
    ("active", "reboot"): "REBOOT",
    ("active", "reboot_hard"): "HARD_REBOOT",
    ("active", "set_password"): "PASSWORD",
    ("active", "rebuild"): "REBUILD",
    ("active", "live_migrate"): "MIGRATING",
    ("active", "resize"): "RESIZE",
    ("active", "migrate"): "RESIZE",
    ("active", "evacuate"): "REBUILD",
    ("stopped", "resize"): "RESIZE",
    ("stopped", "migrate"): "RESIZE",
    ("stopped", "rebuild"): "REBUILD",
    ("stopped", "evacuate"): "REBUILD",
    ("resized", "revert_resize"): "REVERT_RESIZE",
    ("paused", "live_migrate"): "MIGRATING",
    ("error", "rebuild"): "REBUILD",
    ("error", "evacuate"): "REBUILD",
}
STABLE = {
    "active": "ACTIVE",
    "stopped": "SHUTOFF",
    "paused": "PAUSED",
    "suspended": "SUSPENDED",
    "error": "ERROR",
    "soft-delete": "SOFT_DELETED",
    "rescued": "RESCUE",
    "resized": "VERIFY_RESIZE",
    "shelved": "SHELVED",
    "shelved_offloaded": "SHELVED_OFFLOADED",
}
LOOKS: dict[str, dict[str, t.Any]] = {
    "active": {"state": status.RUNNING},
    "stopped": {"state": status.SHUTOFF},
    "paused": {"state": status.PAUSED},
    "suspended": {"state": status.SHUTOFF, "saved": True},
    **{mark: {"state": status.RUNNING, "marks": [mark]} for mark in MARKS},
}


@pytest.mark.parametrize("vm_state", sorted(LOOKS))
def test_a_transition_shows_where_nova_shows_it_whoever_tells_of_it(vm_state: str) -> None:
    for action in sorted(set(ACTIONS) - {"launch"}):
        told = {"action": action, "since": SINCE, "pid": 1}
        for found in (read(seen(**LOOKS[vm_state], journal=action)), read(seen(**LOOKS[vm_state], running=told))):
            assert (action, found.status) == (action, SHOWN.get((vm_state, action), STABLE[vm_state]))
            assert found.vm_state == vm_state
            assert found.task_state == TASKS.get(action, "")
            assert found.running == f"{action} since {SINCE}"


def test_who_holds_the_lock_knows_better_than_the_journal() -> None:
    found = read(seen(journal="delete", running={"action": "reboot", "since": "2026-02-02T00:00:00Z"}))
    assert (found.task_state, found.running) == ("rebooting", "reboot since 2026-02-02T00:00:00Z")


def test_a_holder_that_says_nothing_is_something_under_way_all_the_same() -> None:
    found = read(seen(running={}))
    assert (found.status, found.task_state) == ("ACTIVE", "")
    assert found.running == "another operation since an unknown time"


def test_a_guest_that_goes_down_under_an_operation_is_part_of_it() -> None:
    found = read(seen(status.SHUTDOWN, running={"action": "reboot", "since": SINCE}))
    assert (found.task_state, found.status) == ("rebooting", "REBOOT")


# The task_states that section 1.4 of Nova's semantics gives the actions.
NOVA_TASKS = {
    "launch": "scheduling networking block_device_mapping spawning",
    "delete": "deleting",
    "soft_delete": "soft-deleting",
    "restore": "restoring",
    "force_delete": "deleting",
    "start": "powering-on",
    "stop": "powering-off",
    "reboot": "rebooting reboot_pending reboot_started",
    "reboot_hard": "rebooting_hard reboot_pending_hard reboot_started_hard",
    "pause": "pausing",
    "unpause": "unpausing",
    "suspend": "suspending",
    "resume": "resuming",
    "rescue": "rescuing",
    "unrescue": "unrescuing",
    "snapshot": "image_snapshot_pending image_snapshot image_pending_upload image_uploading",
    "backup": "image_backup",
    "rebuild": "rebuilding rebuild_block_device_mapping rebuild_spawning",
    "shelve": "shelving shelving_image_pending_upload shelving_image_uploading shelving_offloading",
    "shelve_offload": "shelving_offloading",
    "unshelve": "unshelving powering-on spawning",
    "migrate": "resize_prep resize_migrating resize_migrated resize_finish",
    "resize": "resize_prep resize_migrating resize_migrated resize_finish",
    "revert_resize": "resize_reverting",
    "live_migrate": "migrating",
    "evacuate": "rebuilding",
    "set_password": "updating_password",
}


def test_every_task_state_is_one_that_nova_has_for_the_action() -> None:
    assert set(TASKS) == set(NOVA_TASKS) <= set(ACTIONS)
    assert [action for action, task in TASKS.items() if task not in NOVA_TASKS[action].split()] == []


KNOWN = {*STABLE.values(), *SHOWN.values(), "BUILD"}


@given(
    state=st.integers(-1, 12),
    reason=st.integers(-1, 20),
    saved=st.booleans(),
    marks=st.lists(st.sampled_from(MARKS), max_size=3),
    journal=st.sampled_from(["", "unheard of", *ACTIONS]),
    running=st.none() | st.fixed_dictionaries({}, optional={"action": st.text(max_size=3), "since": st.text()}),
)
def test_the_status_is_always_one_that_we_know(
    state: int, reason: int, saved: bool, marks: list[str], journal: str, running: dict[str, str] | None
) -> None:
    found = read(seen(state, reason, saved=saved, marks=marks, journal=journal, running=running))
    assert found.status in KNOWN
    assert found.vm_state in ANY
    assert found.condition in CONDITIONS
    assert found.marked == (bool(marks) or journal == "launch")
    assert bool(found.running) == (bool(journal) or running is not None)
