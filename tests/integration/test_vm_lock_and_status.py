# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_lock and vm_status: what we remember of VMs, on VMs of any tool."""

from __future__ import annotations

import pytest

from tests.integration.harness import Lab, Playbook, define, order, task

NEWER = "<instance schema='99'/>"
GARBAGE = "<instance schema='1'><journal/></instance>"


def set_metadata(lab: Lab, name: str, element: str) -> None:
    """What another version of the collection, or another program, wrote."""
    lab.sh("kvm1", f'virsh -q metadata {name} urn:kvmops:lifecycle:instance --key kvmops --set "{element}"')


def test_a_lock_with_its_reason_comes_changes_and_goes(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    define(lab, "w")
    play.quartet("vm_lock", name=["v", "w"], reason='Ada says: "no" & <never>, größe')
    assert "größe" in lab.sh("kvm1", "virsh dumpxml v")
    play.quartet("vm_lock", name="v", reason="other")
    # Without a reason the one that is there stays.
    assert not play(task("vm_lock", name="v")).ok()["result"]["changed"]
    error = play(task("vm_power", name=["v", "w"], state="running")).error()["result"]
    assert [vm["code"] for vm in error["vms"]] == ["locked", "locked"]
    assert "(other)" in error["vms"][0]["msg"]
    assert '(Ada says: "no" & <never>, größe)' in error["vms"][1]["msg"]
    assert "override_lock: true" in error["msg"]
    # What changes nothing is not refused.
    assert not play(task("vm_power", name="v", state="stopped")).ok()["result"]["changed"]
    play.quartet("vm_power", name="v", state="running", override_lock=True)
    play.quartet("vm_lock", name=["v", "w"], state="unlocked")
    assert "kvmops" not in lab.sh("kvm1", "virsh dumpxml --inactive v; virsh dumpxml v")
    play.quartet("vm_power", name="w", state="running")


def test_a_lock_survives_a_suspension_and_libvirtd(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    play(task("vm_power", name="v", state="running")).ok()
    play(task("vm_power", name="v", state="suspended")).ok()
    play(task("vm_lock", name="v", reason="set while asleep")).ok()
    play(task("vm_power", name="v", state="running", override_lock=True)).ok()
    # The running domain was restored with the metadata of the time of the save.
    assert "set while asleep" in lab.sh("kvm1", "virsh dumpxml v")
    lab.fault("kvm1", "kill-libvirtd")
    lab.fault("kvm1", "start-libvirtd")
    error = play(task("vm_power", name="v", state="paused")).error()["result"]
    assert "set while asleep" in error["msg"]


def test_error_is_set_refuses_and_is_cleared(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    told = play.quartet("vm_status", name="v", state="error")
    assert told["vms"][0]["status"] == "ERROR"
    error = play(task("vm_power", name="v", state="running")).error()["result"]
    assert error["code"] == "refused"
    assert "VM v is ERROR" in error["msg"]
    told = play.quartet("vm_status", name="v", state="active")
    assert told["vms"][0]["status"] == "SHUTOFF"
    # As in Nova, a hard reboot and a stop lead out of ERROR as well.
    play(task("vm_status", name="v", state="error")).ok()
    told = play(task("vm_power", name="v", state="rebooted", reboot="hard")).ok()["result"]
    assert told["vms"][0]["status"] == "ACTIVE"
    play(task("vm_status", name="v", state="error")).ok()
    play.quartet("vm_power", name="v", state="stopped", force=True)


def test_what_a_state_needs_to_be_left_is_not_forgotten(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    play(task("vm", name="v", state="absent", reclaim_after=3600)).ok()
    play.quartet("vm_status", name="v", state="error")
    told = play.quartet("vm_status", name="v", state="active")
    assert told["vms"][0]["status"] == "SOFT_DELETED"
    play.quartet("vm", name="v", state="restored")


@pytest.mark.parametrize("state", ["active", "error"])
def test_a_dead_journal_is_cleared_and_nothing_else_is_touched(lab: Lab, play: Playbook, state: str) -> None:
    play.killed_at("start", task("vm", **order(lab, "a")))
    files, before = lab.files("kvm1"), lab.sh("kvm1", "virsh dumpxml a | grep -v kvmops")
    told = play.quartet("vm_status", name="a", state=state)
    assert told["vms"][0]["task_state"] == ""
    assert lab.files("kvm1") == files
    assert lab.sh("kvm1", "virsh dumpxml a | grep -v kvmops") == before
    if state == "active":
        play.quartet("vm_power", name="a", state="running")


def test_a_journal_of_another_machine_is_respected_until_it_is_cleared(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    since = "2026-01-01T00:00:00Z"
    journal = f"<journal action='delete' since='{since}' node='elsewhere' pid='7' step='undefine'>{{}}</journal>"
    set_metadata(lab, "v", f"<instance schema='1'>{journal}</instance>")
    for arguments in ({"module": "vm", "state": "absent"}, {"module": "vm_power", "state": "running"}):
        module = arguments.pop("module")
        error = play(task(module, name="v", **arguments)).error()["result"]
        assert error["code"] == "busy"
        assert since in error["msg"]
    play.quartet("vm_status", name="v", state="active")
    play.quartet("vm", name="v", state="absent")


def test_metadata_that_cannot_be_read_is_refused_for_that_vm_alone(lab: Lab, play: Playbook) -> None:
    for name in ("newer", "garbage", "good"):
        define(lab, name)
    set_metadata(lab, "newer", NEWER)
    set_metadata(lab, "garbage", GARBAGE)
    error = play(task("vm_power", name=["newer", "garbage", "good"], state="running")).error()["result"]
    told = {vm["name"]: vm for vm in error["vms"]}
    assert told["newer"]["code"] == "unsupported"
    assert "schema 99" in told["newer"]["msg"]
    assert told["garbage"]["code"] == "invalid"
    assert "virsh" in told["garbage"]["msg"]
    assert told["good"]["status"] == "ACTIVE"
