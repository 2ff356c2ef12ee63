# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules that act on one VM at a time, four times each: in check mode, for real, again, again in check mode."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import cordon
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    Group,
    Instance,
    Lock,
    Mark,
    Policy,
)
from ansible_collections.kvmops.lifecycle.plugins.modules import (
    host_schedulable,
    vm_lock,
    vm_origin,
    vm_policy,
    vm_power,
    vm_status,
)
from tests.unit.hypervisor import Hypervisor, Task

SINCE = "2026-01-01T00:00:00Z"


def test_a_vm_is_locked_and_unlocked(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    task.quartet(vm_lock.main, name="web1", reason="audit, ask <Ada>")
    lock = kvm.recall().lock
    assert lock
    assert lock.reason == "audit, ask <Ada>"
    assert not task(vm_lock.main, name="web1")["changed"]
    task.quartet(vm_lock.main, name="web1", reason="")
    assert kvm.recall().lock == Lock(lock.since)  # the lock is the same, its reason is not
    task.quartet(vm_lock.main, name="web1", state="unlocked")
    assert kvm.recall() == Instance()


def test_a_reason_that_cannot_be_kept_is_refused_in_check_mode_already(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    for check in (True, False):
        told = task(vm_lock.main, name="web1", reason="a\x07b", check=check)
        assert told["code"] == "invalid"
        assert "U+0007" in told["msg"]


def test_an_error_is_set_and_cleared_and_a_journal_with_it(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    task.quartet(vm_status.main, name="web1", state="error")
    mark = kvm.recall().mark
    assert mark
    assert mark.state == "error"
    kvm.remember(Instance(marks=(Mark("rescued", SINCE), mark), journal=Journal("shelve", SINCE, "elsewhere", 1)))
    told = task.quartet(vm_status.main, name="web1", state="active")
    assert told["vms"][0]["status"] == "RESCUE"
    assert kvm.recall() == Instance(marks=(Mark("rescued", SINCE),))


@pytest.mark.parametrize(
    ("before", "params", "status"),
    [
        ("off", {"state": "running"}, "ACTIVE"),
        ("on", {"state": "stopped"}, "SHUTOFF"),
        ("on", {"state": "stopped", "force": True}, "SHUTOFF"),
        ("on", {"state": "paused"}, "PAUSED"),
        ("on", {"state": "suspended"}, "SUSPENDED"),
        ("paused", {"state": "running"}, "ACTIVE"),
        ("paused", {"state": "stopped"}, "SHUTOFF"),
        ("saved", {"state": "running"}, "ACTIVE"),
        ("saved", {"state": "stopped"}, "SHUTOFF"),
        ("saved", {"state": "stopped", "force": True}, "SHUTOFF"),
    ],
)
def test_a_vm_comes_into_its_power_state(
    kvm: Hypervisor, task: Task, before: str, params: dict[str, t.Any], status: str
) -> None:
    kvm.define("web1", running=before != "off")
    if before == "paused":
        kvm.guest().pause()
    if before == "saved":
        kvm.guest().save()
    assert task.quartet(vm_power.main, name="web1", **params)["vms"][0]["status"] == status


@pytest.mark.parametrize("reboot", ["soft", "hard"])
def test_a_reboot_is_done_each_time(kvm: Hypervisor, task: Task, reboot: str) -> None:
    kvm.define("web1")
    number = kvm.guest().id
    for _time in range(2):
        told = task(vm_power.main, name="web1", state="rebooted", reboot=reboot)["vms"][0]
        assert (told["changed"], told["status"]) == (True, "ACTIVE")
        assert told["figures"]["guest_answered"] is False
        assert kvm.guest().id != number
        number = kvm.guest().id


def test_a_hard_reboot_leads_out_of_an_error(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)
    kvm.remember(Instance().marked(Mark("error", SINCE)))
    assert task(vm_power.main, name="web1", state="running")["code"] == "refused"
    told = task(vm_power.main, name="web1", state="rebooted", reboot="hard")["vms"][0]
    assert (told["status"], told["steps"][-1]) == ("ACTIVE", "clear_error")
    assert kvm.recall() == Instance()


def test_a_transient_vm_is_not_stopped_because_it_would_be_gone(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.connection.lookupByName("web1").undefine()
    for state in ("stopped", "suspended", "rebooted"):
        told = task(vm_power.main, name="web1", state=state)
        assert told["code"] == "refused"
        assert "transient" in told["msg"]
    assert task(vm_power.main, name="web1", state="paused")["changed"]


def test_a_vm_whose_removal_died_is_not_started_again(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)
    kvm.remember(Instance(journal=Journal("delete", SINCE, kvm.node, 4711, "remove_disks")))
    for state in ("running", "rebooted", "paused"):
        told = task(vm_power.main, name="web1", state=state, reboot="hard")
        assert told["code"] == "busy"
        assert "run the earlier task again to finish it" in told["msg"]
    assert not kvm.guest().active()


def test_the_origin_of_a_vm_is_noted_once_and_forgotten(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    kvm.guest().pause()
    kvm.remember(Instance(lock=Lock(SINCE)))  # is no obstacle
    told = task.quartet(vm_origin.main, name=["web1", "web2"], reason="memory")
    assert [vm["figures"]["origin"]["power"] for vm in told["vms"]] == ["paused", "running"]
    noted = kvm.recall().origin
    assert noted
    assert (noted.host, noted.power, noted.reason) == (kvm.host.name, "paused", "memory")
    kvm.guest().resume()
    again = task(vm_origin.main, name="web1", reason="fans")
    assert (again["changed"], kvm.recall().origin) == (False, noted)
    assert task(vm_origin.main, name="web1", reason="a\x07b")["code"] == "invalid"
    task.quartet(vm_origin.main, name=["web1", "web2"], state="absent")
    assert kvm.recall() == Instance(lock=Lock(SINCE))


def test_a_vm_has_the_policy_that_is_said_and_keeps_what_is_not(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    assert not task(vm_policy.main, name="web1")["changed"]
    apart = {"name": "db", "policy": "anti-affinity"}
    task.quartet(vm_policy.main, name="web1", strategy="stop", groups=[apart])
    told = task.quartet(vm_policy.main, name="web1", priority=7)
    assert told["vms"][0]["figures"]["policy"] == {"strategy": "stop", "priority": 7, "groups": [apart]}
    assert kvm.recall().policy == Policy("stop", 7, (Group("db", "anti-affinity"),))
    for groups in ([apart, {**apart, "policy": "affinity"}], [{"name": "", "policy": "affinity"}]):
        assert task(vm_policy.main, name="web1", groups=groups)["code"] == "invalid"
    # One that says nothing is none.
    task.quartet(vm_policy.main, name="web1", strategy="default", priority=0, groups=[])
    assert kvm.recall() == Instance()
    task(vm_policy.main, name="web1", strategy="leave")
    kvm.remember(replace(kvm.recall(), lock=Lock(SINCE)))
    assert task(vm_policy.main, name="web1", state="absent")["code"] == "locked"
    task.quartet(vm_policy.main, name="web1", state="absent", override_lock=True)


def test_a_host_is_taken_out_of_scheduling_by_whoever_has_a_reason_first(
    kvm: Hypervisor, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cordon, "PATH", str(tmp_path / "scheduling.json"))

    def quartet(**params: t.Any) -> dict[str, t.Any]:
        told = [task(host_schedulable.main, check=check, diff=True, **params) for check in (True, False, False, True)]
        assert [each["changed"] for each in told] == [True, True, False, False]
        assert told[0]["diff"] == told[1]["diff"] != []
        assert told[2]["diff"] == told[3]["diff"] == []
        assert told[0]["steps"] == told[1]["steps"] == [params["state"][:-1]]
        for each in told[1:]:
            assert each["host"] == told[1]["host"]
        return told[1]

    shut = quartet(state="disabled", reason="memory")["host"]
    assert shut["name"] == kvm.host.name
    assert (shut["scheduling"]["enabled"], shut["scheduling"]["reason"]) == (False, "memory")
    other = task(host_schedulable.main, state="disabled", reason="fans")
    assert (other["changed"], other["host"]) == (False, shut)
    assert "another reason already, which stays: memory" in str(other["warnings"])
    assert "warnings" not in task(host_schedulable.main, state="disabled")
    assert not task(host_schedulable.main, state="enabled", only_reason="fans")["changed"]
    quartet(state="disabled", reason="fans", only_reason="memory")
    opened = quartet(state="enabled", only_reason="fans")["host"]["scheduling"]
    assert opened == {"enabled": True, "reason": "", "since": "", "by": ""}
    cordon_file = tmp_path / "scheduling.json"
    cordon_file.write_text("{", encoding="utf-8")
    assert not task(host_schedulable.main, state="enabled", only_reason="fans")["changed"]
    quartet(state="enabled")
    assert not cordon_file.exists()
    assert task(host_schedulable.main, state="disabled", reason="a\x07b")["code"] == "invalid"
