# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_info on libvirt's in-memory driver, which is a host without QEMU: whatever is missing is told, not fatal."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import NotFound, Unreachable
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.bulk import Bulk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock
from ansible_collections.kvmops.lifecycle.plugins.modules import vm_info
from tests.unit.hypervisor import Hypervisor, Task, uuid_of

SINCE = "2026-01-01T00:00:00Z"


def fail(*_arguments: t.Any, **_options: t.Any) -> t.NoReturn:
    """What libvirt does where a part of it is not there."""
    raise Unreachable("Failed to read the leases: no virtnetworkd.")


def test_what_is_remembered_is_told_of_vms_on_and_off(kvm: Hypervisor, task: Task) -> None:
    kvm.define("on")
    kvm.define("off", running=False)
    for name in ("on", "off"):
        kvm.remember(Instance(lock=Lock(SINCE, "audit")), name)
    for gather in (["status"], ["config"]):
        told = task(vm_info.main, gather=gather)["vms"]
        assert [(vm["name"], vm["status"], vm["locked"]) for vm in told] == [
            ("off", "SHUTOFF", True),
            ("on", "ACTIVE", True),
        ]


def test_a_vm_that_vanishes_meanwhile_is_left_out(kvm: Hypervisor, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm.define("stays", "goes")
    recall = Guest.recall

    def gone(guest: Guest, **options: t.Any) -> Instance:
        if guest.name == "goes":
            raise NotFound("Failed to read the metadata: no domain.")
        return recall(guest, **options)

    monkeypatch.setattr(Guest, "recall", gone)
    for gather in (["status"], ["config"]):
        assert [vm["name"] for vm in task(vm_info.main, gather=gather)["vms"]] == ["stays"]


def test_a_host_without_networks_is_a_problem_of_vms_that_are_on_one(
    kvm: Hypervisor, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm.define("plain")
    card = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
    rest = f"<memory>1024</memory><os><type>hvm</type></os><devices>{card}</devices>"
    kvm.connection.defineXML(f"<domain type='test'><name>carded</name>{rest}</domain>").create()
    monkeypatch.setattr(Bulk, "leases", fail)
    told = {vm["name"]: vm for vm in task(vm_info.main, gather=["interfaces"])["vms"]}
    assert [name for name, vm in told.items() if any("leases" in problem for problem in vm["problems"])] == ["carded"]
    assert told["carded"]["interfaces"][0]["mac"] == "52:54:00:00:00:01"


def test_statistics_that_do_not_come_are_a_problem(
    kvm: Hypervisor, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm.define("web1")
    monkeypatch.setattr(Bulk, "statistics", lambda *_arguments, **_options: {})
    (vm,) = task(vm_info.main, gather=["statistics"])["vms"]
    assert vm["status"] == "ACTIVE"
    assert "libvirt did not answer" in vm["problems"][0]
    assert vm["statistics"]["cpu"]["time"] is None


def test_a_name_with_two_meanings_is_an_error(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.define(uuid_of(1))
    told = task(vm_info.main, name=[uuid_of(1)])
    assert told["code"] == "ambiguous"
