# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Removing VMs with time to think again, on real domains of libvirt's in-memory driver.

The driver cannot undefine as QEMU's can, so what removes for good is tried in check mode only.
"""

from __future__ import annotations

import platform
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import parse_stamp
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock, Mark
from ansible_collections.kvmops.lifecycle.plugins.modules import vm
from tests.unit.hypervisor import Hypervisor, Task

PAST, FUTURE = "2020-01-01T00:00:00Z", "2120-01-01T00:00:00Z"
ABSENT: dict[str, t.Any] = {"state": "absent", "reclaim_after": 3600}


def soft_deleted(reclaim_at: str = PAST, **data: str) -> Instance:
    return Instance().marked(Mark("soft-delete", PAST, {"reclaim_at": reclaim_at, **data}))


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("autostart", [True, False])
def test_a_vm_that_is_removed_for_now_comes_back_as_it_was(
    kvm: Hypervisor, task: Task, running: bool, autostart: bool
) -> None:
    kvm.define("web1", running=running)
    kvm.guest().set_autostart(autostart)
    kvm.remember(Instance(foreign=("<later />",)))
    told = task.quartet(vm.main, name="web1", **ABSENT)["vms"][0]
    assert (told["status"], told["power_state"]) == ("SOFT_DELETED", "SHUTDOWN")
    mark = kvm.recall().mark
    assert mark
    due, since = parse_stamp(mark.data["reclaim_at"]), parse_stamp(mark.since)
    assert (due - since).total_seconds() == 3600
    assert mark.data["reclaim_at"] == told["figures"]["reclaim_at"]
    assert not kvm.guest().autostart()
    told = task.quartet(vm.main, name="web1", state="restored")["vms"][0]
    assert told["status"] == ("ACTIVE" if running else "SHUTOFF")
    assert kvm.guest().autostart() == autostart
    assert kvm.recall() == Instance(foreign=("<later />",))


def test_a_removal_that_died_remembers_what_the_vm_was_before_it(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)  # the run that died has stopped it
    data = {"reclaim_at": PAST, "power_before": "running", "autostart": "true"}
    kvm.remember(Instance(journal=Journal("soft_delete", PAST, platform.node(), 4711, "mark", data)))
    assert task(vm.main, name="web1", **ABSENT)["changed"]
    mark = kvm.recall().mark
    assert mark
    assert (mark.data["power_before"], mark.data["autostart"]) == ("running", "true")
    assert mark.data["reclaim_at"] > PAST
    task(vm.main, name="web1", state="restored")
    assert kvm.guest().active()
    assert kvm.guest().autostart()


def test_saved_memory_is_kept_with_the_vm(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.guest().save()
    told = task(vm.main, name="web1", **ABSENT)["vms"][0]
    assert (told["status"], told["steps"]) == ("SOFT_DELETED", ["mark"])
    assert kvm.guest().look().managed_save
    assert task(vm.main, name="web1", state="restored")["vms"][0]["status"] == "SUSPENDED"


def test_what_is_there_needs_no_restoring_and_what_is_not_cannot_be(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    assert not task(vm.main, name="web1", state="restored")["changed"]
    assert task(vm.main, name="none", state="restored")["code"] == "not_found"
    assert not task(vm.main, name="none", state="absent")["changed"]


def test_an_error_on_top_of_a_removal_is_cleared_first(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)
    kvm.remember(soft_deleted().marked(Mark("error", PAST)))
    assert "VM web1 is ERROR" in task(vm.main, name="web1", state="restored")["msg"]


def test_a_purge_takes_what_is_due_and_leaves_the_rest(kvm: Hypervisor, task: Task) -> None:
    kvm.define("due", "later", "here", "locked", running=False)
    kvm.remember(soft_deleted(), "due")
    kvm.remember(soft_deleted(FUTURE), "later")
    kvm.remember(Instance(lock=Lock(PAST), marks=soft_deleted().marks), "locked")
    told = {each["name"]: each for each in task(vm.main, state="purged", check=True)["vms"]}
    assert set(told) == {"due", "later", "locked"}
    assert (told["due"]["status"], told["due"]["steps"]) == ("ABSENT", ["remove_disks", "undefine"])
    assert (told["later"]["changed"], told["later"]["figures"]) == (False, {"reclaim_at": FUTURE})
    assert told["locked"]["code"] == "locked"
    named = task(vm.main, state="purged", name=["here", "due"], check=True)["vms"]
    assert [each["changed"] for each in named] == [False, True]


def test_a_purge_refuses_a_date_that_it_cannot_read_and_does_the_others(kvm: Hypervisor, task: Task) -> None:
    kvm.define("bad", "worse", "due", running=False)
    kvm.remember(soft_deleted("tomorrow"), "bad")
    kvm.remember(Instance().marked(Mark("soft-delete", PAST)), "worse")
    kvm.remember(soft_deleted(), "due")
    told = {each["name"]: each for each in task(vm.main, state="purged", check=True)["vms"]}
    assert [told[name].get("code") for name in ("bad", "worse", "due")] == ["invalid", "invalid", None]
    assert "state: restored" in told["bad"]["msg"]
    assert told["due"]["changed"]


def test_removing_at_once_says_what_goes_and_what_stays(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    told = task(vm.main, name="web1", state="absent", check=True, diff=True)
    (only,) = told["vms"]
    assert (only["status"], only["steps"]) == ("ABSENT", ["shut_down", "remove_disks", "undefine"])
    assert told["diff"][0]["after"] == {"status": "ABSENT", "power_state": "NOSTATE", "disks": []}
    forced = task(vm.main, name="web1", state="absent", force=True, check=True)["vms"][0]
    assert forced["steps"] == ["power_off", "remove_disks", "undefine"]
