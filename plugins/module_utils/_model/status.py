# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The status of a VM in Nova's words, from libvirt's state, its managed save image and what we remember.

Nova keeps three axes: *vm_state* (stable, what the user asked for), *task_state* (the transition under way) and
*power_state* (what the hypervisor tells); the *status* that users see follows from the first two. Here the first is not
recorded but found: libvirt's state tells it, except for the states that libvirt cannot know, which are marks in the
VM's metadata.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .instance import Instance

# virDomainState
NOSTATE, RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED, PMSUSPENDED = range(8)
# virDomainPausedReason: the guest has shut down and QEMU is about to end
PAUSED_SHUTTING_DOWN = 8
# virDomainShutoffReason
SHUTOFF_SHUTDOWN = 1

# What the guest is doing, for those who act on it: finer than vm_state, coarser than libvirt.
CONDITIONS = ("running", "paused", "suspended", "stopped", "going_down", "asleep", "crashed")

_POWER_STATES = {
    NOSTATE: "NOSTATE",
    RUNNING: "RUNNING",
    BLOCKED: "RUNNING",
    PAUSED: "PAUSED",
    SHUTDOWN: "SHUTDOWN",
    SHUTOFF: "SHUTDOWN",
    CRASHED: "CRASHED",
    PMSUSPENDED: "SUSPENDED",
}

_VM_STATES = {
    "running": "active",
    "paused": "paused",
    "suspended": "suspended",
    "stopped": "stopped",
    "going_down": "active",
    "asleep": "active",
    "crashed": "error",
}

# Nova's status by vm_state, and by task_state where the transition shows.
_STATUSES = {
    "active": "ACTIVE",
    "building": "BUILD",
    "stopped": "SHUTOFF",
    "resized": "VERIFY_RESIZE",
    "paused": "PAUSED",
    "suspended": "SUSPENDED",
    "rescued": "RESCUE",
    "error": "ERROR",
    "deleted": "DELETED",
    "soft-delete": "SOFT_DELETED",
    "shelved": "SHELVED",
    "shelved_offloaded": "SHELVED_OFFLOADED",
}
_REBOOT = {"rebooting": "REBOOT", "reboot_pending": "REBOOT", "reboot_started": "REBOOT"}
_HARD_REBOOT = {f"{task}_hard": "HARD_REBOOT" for task in _REBOOT}
_REBUILD = dict.fromkeys(("rebuilding", "rebuild_block_device_mapping", "rebuild_spawning"), "REBUILD")
_RESIZE = dict.fromkeys(("resize_prep", "resize_migrating", "resize_migrated", "resize_finish"), "RESIZE")
_TRANSITIONS: dict[str, dict[str, str]] = {
    "active": {
        **_REBOOT,
        **_HARD_REBOOT,
        **_REBUILD,
        **_RESIZE,
        "updating_password": "PASSWORD",
        "migrating": "MIGRATING",
    },
    "stopped": {**_RESIZE, **_REBUILD},
    "resized": {"resize_reverting": "REVERT_RESIZE"},
    "paused": {"migrating": "MIGRATING"},
    "error": _REBUILD,
}
# Every status that a VM which is there can have.
STATUSES = frozenset((*_STATUSES.values(), *(to for each in _TRANSITIONS.values() for to in each.values()))) - {
    "DELETED"
}

# The task_state that an action of the action table shows while it runs (Nova's first one).
TASKS = {
    "launch": "spawning",
    "delete": "deleting",
    "soft_delete": "soft-deleting",
    "restore": "restoring",
    "force_delete": "deleting",
    "start": "powering-on",
    "stop": "powering-off",
    "reboot": "rebooting",
    "reboot_hard": "rebooting_hard",
    "pause": "pausing",
    "unpause": "unpausing",
    "suspend": "suspending",
    "resume": "resuming",
    "rescue": "rescuing",
    "unrescue": "unrescuing",
    "snapshot": "image_snapshot",
    "backup": "image_backup",
    "rebuild": "rebuilding",
    "shelve": "shelving",
    "shelve_offload": "shelving_offloading",
    "unshelve": "unshelving",
    "migrate": "resize_migrating",
    "resize": "resize_prep",
    "revert_resize": "resize_reverting",
    "live_migrate": "migrating",
    "evacuate": "rebuilding",
    "set_password": "updating_password",
}


@dataclass(frozen=True)
class Observation:
    """One look at one VM.

    :param state: virDomainState.
    :param reason: The reason that libvirt gives with it.
    :param managed_save: Whether a managed save image exists.
    :param persistent: Whether it is defined; a transient domain ends with its guest.
    :param running: What the process said that holds the VM's operation lock (``action``, ``since``, ``pid``), if one
        does.
    """

    name: str
    uuid: str
    state: int
    reason: int
    managed_save: bool
    persistent: bool
    instance: Instance
    running: t.Mapping[str, t.Any] | None = None


@dataclass(frozen=True)
class State:
    """What an :class:`Observation` means.

    :param marked: The vm_state is one that libvirt cannot know (a mark in the metadata, or a launch that has not
        ended).
    :param running: What is under way, for messages: "delete since 2026-01-01T00:00:00Z"; empty when nothing is.
    """

    condition: str
    vm_state: str
    task_state: str
    power_state: str
    status: str
    marked: bool = False
    running: str = ""


def condition(state: int, reason: int, managed_save: bool) -> str:
    """What the guest is doing, one of :data:`CONDITIONS`."""
    if state == SHUTOFF:
        return "suspended" if managed_save else "stopped"
    if state == SHUTDOWN or (state == PAUSED and reason == PAUSED_SHUTTING_DOWN):
        return "going_down"
    return {PAUSED: "paused", CRASHED: "crashed", PMSUSPENDED: "asleep"}.get(state, "running")


def read(seen: Observation) -> State:
    """The state of a VM."""
    doing = condition(seen.state, seen.reason, seen.managed_save)
    journal, mark = seen.instance.journal, seen.instance.mark
    action, since, running = "", "", ""
    if seen.running is not None:
        action, since = str(seen.running.get("action", "")), seen.running.get("since", "an unknown time")
    elif journal:
        action, since = journal.action, journal.since
    if action or seen.running is not None:
        running = f"{action or 'another operation'} since {since}"
    task = TASKS.get(action, "")
    if not running and doing == "going_down":
        task = TASKS["stop"]
    if journal and journal.action == "launch":
        vm_state = "building"
    elif mark:
        vm_state = mark.state
    else:
        vm_state = _VM_STATES[doing]
    return State(
        condition=doing,
        vm_state=vm_state,
        task_state=task,
        power_state=_POWER_STATES.get(seen.state, "NOSTATE"),
        status=_TRANSITIONS.get(vm_state, {}).get(task, status_of(vm_state)),
        marked=vm_state == "building" or mark is not None,
        running=running,
    )


def status_of(vm_state: str) -> str:
    """The status of a VM in *vm_state* with nothing under way."""
    return _STATUSES.get(vm_state, vm_state.upper())
