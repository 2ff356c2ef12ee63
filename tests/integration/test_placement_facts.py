# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What planners are told of real hosts and VMs, what is noted in VMs and of hosts, and moves that are called off."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, task
from tests.lab.kvmlab.lab import SHARED

IMAGES = "/var/lib/libvirt/images"
CORDON = "/var/lib/kvmops/scheduling.json"
BRIDGE = "<interface type='bridge'><mac address='52:54:00:00:00:0b'/><source bridge='br0'/></interface>"
MIB = 1 << 20

DB = {"name": "db", "policy": "anti-affinity"}


@pytest.fixture(autouse=True)
def uncordoned(lab: Lab) -> Iterator[None]:
    """Hosts and the storage that they share are as they were."""
    yield
    for host in lab.hosts:
        lab.sh(host, f"rm -f {CORDON} {SHARED}/placement-*")


def placement(played: Result) -> Result:
    """What a task of host_info has told to planners."""
    assert not played["result"]["changed"]
    return t.cast("Result", played["result"]["host"]["placement"])


def cordon(state: str, **options: t.Any) -> dict[str, t.Any]:
    """A task for the host itself."""
    return task("host_schedulable", state=state, **options)


def origin(told: Result) -> Result:
    """What a task has told of the origin of its only VM."""
    (vm,) = told["result"]["vms"]
    return t.cast("Result", (vm.get("figures") or vm)["origin"])


def test_facts_marks_and_origins_are_told_and_travel(lab: Lab, play: Playbook) -> None:
    disks = {"live": f"{SHARED}/placement-live.qcow2", "cold": f"{IMAGES}/cold.qcow2"}
    for name, path in disks.items():
        lab.sh("kvm1", f"qemu-img create -q -f qcow2 {path} 8M && qemu-io -f qcow2 -c 'write -P 1 0 1M' {path}")
        define(lab, name, devices=file_disk(path, "qcow2", "vda") + (BRIDGE if name == "live" else ""))
    define(lab, "odd")
    lab.sh("kvm1", "virsh -q metadata odd urn:kvmops:lifecycle:instance --key kvmops --set '<instance schema=\"99\"/>'")
    lab.sh("kvm1", "virsh -q start live")
    # Everything is noted, the file of the host is damaged, and they move: one with its memory, one with its disk.
    policy = {"strategy": "stop", "priority": 7, "groups": [DB]}
    played = play(
        [
            task("vm_policy", name="live", **policy),
            task("vm_origin", name=["live", "cold"], reason="memory"),
            cordon("disabled", reason="memory"),
            task("host_info", gather=["placement", "dirty_rate"]),
            {"ansible.builtin.shell": f"echo '{{' > {CORDON}"},
            task("host_info"),
            cordon("enabled"),
            task("vm_migrate", moves=[{"name": name, "dest": "kvm2"} for name in disks]),
        ]
    )
    played.ok()
    _policy, noted, _shut, asked, _damaged, asked_again, opened, _moved = played.results
    assert [vm["figures"]["origin"]["power"] for vm in noted["result"]["vms"]] == ["running", "off"]
    here = placement(asked)
    assert (here["scheduling"]["enabled"], here["scheduling"]["reason"]) == (False, "memory")
    assert here["scheduling"]["by"] == "root@kvm1"
    damaged = asked_again["result"]["host"]
    assert "placement" not in damaged
    assert (damaged["scheduling"]["enabled"], damaged["scheduling"]["reason"]) == (False, f"{CORDON} is damaged.")
    assert (opened["result"]["changed"], opened["result"]["host"]["scheduling"]["enabled"]) == (True, True)
    (problem,) = asked["result"]["host"]["problems"]
    assert problem.startswith("VM odd: The VM's metadata has schema 99")
    # The facts.
    assert (here["name"], here["arch"], here["memory"]["running"], here["cpus"]["running"]) == ("kvm1", "x86_64", 32, 1)
    assert (here["networks"], here["links"]) == (["default"], ["br0", "eth0", "lo", "virbr0"])
    assert "qemu64" in here["cpu_models"]
    assert "pc-q35-7.2" in here["machines"]
    storage = {each["path"]: each for each in here["storage"]}
    assert storage[IMAGES]["shared"] == ""
    assert storage[SHARED]["shared"].startswith("fuse.glusterfs /")
    assert all(0 < each["available"] <= each["capacity"] for each in here["storage"])
    off, live, _odd = here["vms"]
    (disk,) = live.pop("disks")
    assert disk["bytes"] >= MIB
    del disk["bytes"]
    assert disk == {"target": "vda", "path": disks["live"], "size": 8 * MIB, "readonly": False, "network": False}
    assert {key: live[key] for key in policy} == policy
    assert (live["condition"], live["status"], live["cpu"], live["links"]) == ("running", "ACTIVE", "qemu64", ["br0"])
    assert (live["locked"], live["persistent"], live["autostart"], live["devices"]) == (False, True, False, [])
    assert (live["origin"]["host"], live["memory"], live["vcpus"]) == ("kvm1", 32, 1)
    assert isinstance(live["dirty_rate"], int)
    assert (off["condition"], off["status"], off["dirty_rate"], off["strategy"]) == ("off", "SHUTOFF", None, "")
    assert (off["disks"][0]["size"], off["disks"][0]["bytes"] >= MIB) == (8 * MIB, True)
    # The notes have come along, and the first one counts.
    there = play(
        [
            task("host_info", gather=["placement"]),
            task("vm_origin", name="live", reason="again"),
            task("vm_migrate", name="live", dest="kvm1"),
        ],
        host="kvm2",
    )
    there.ok()
    other = placement(there.results[0])
    assert {vm["name"]: vm["origin"]["host"] for vm in other["vms"]} == {"live": "kvm1", "cold": "kvm1"}
    assert {each["shared"] for each in other["storage"] if each["path"] == SHARED} == {storage[SHARED]["shared"]}
    assert (there.results[1]["result"]["changed"], origin(there.results[1])["reason"]) == (False, "memory")
    # The one thinks better of it, the other one has come back. One may forget.
    back = play(
        [
            task("vm_migrate", name="cold", state="reverted"),
            task("vm_info", name=["cold", "live"]),
            task("vm_origin", name="live", state="absent"),
        ]
    )
    assert back.ok()["result"]["vms"][0]["figures"]["origin"] is None
    told = back.results[1]["result"]["vms"]
    assert [(vm["name"], vm["origin"]["host"], vm["origin"]["power"]) for vm in told] == [
        ("cold", "kvm1", "off"),
        ("live", "kvm1", "running"),
    ]
    assert told[1]["policy"] == policy
    # From elsewhere.
    uri = lab.hosts["kvm1"]["lab_uri"]
    refusal = {**cordon("disabled", uri=uri), "ignore_errors": True}
    remote, refused = play([task("host_info", gather=["placement"], uri=uri), refusal], host="localhost").results
    far = placement(remote)
    same = ("name", "arch", "machines", "cpu_models", "networks", "cpus", "libvirt", "qemu")
    assert {key: far[key] for key in same} == {key: here[key] for key in same}
    assert (far["scheduling"], remote["result"]["host"]["scheduling"], far["storage"]) == (None, None, [])
    assert {"br0", "eth0"} <= set(far["links"])
    assert (refused["outcome"], refused["result"]["code"]) == ("failed", "refused")


def test_moves_whose_turn_has_not_come_are_called_off_by_enabling_the_host(lab: Lab, play: Playbook) -> None:
    for name in "abc":
        define(lab, name)
        lab.sh("kvm1", f"virsh -q start {name}")
    order = task("vm_migrate", name=["a", "b", "c"], dest="kvm2", limits={"per_source": 1}, while_disabled=True)
    remote = task("vm_migrate", name="a", dest="kvm1", while_disabled=True, uri="qemu+tls://kvm2/system")
    idle, refused = play.errors([order, remote])
    assert {vm["code"] for vm in idle["vms"]} == {"cancelled"}
    assert refused["code"] == "invalid"
    # Somebody enables the host when the first of them moves.
    play(cordon("disabled", reason="memory")).ok()
    error = play.disturbed_at("migrate", f"rm -f {CORDON}", order).error()["result"]
    done = [vm for vm in error["vms"] if vm["changed"]]
    left = [vm for vm in error["vms"] if not vm["changed"]]
    assert [(vm["host"], vm["status"]) for vm in done] == [("kvm2", "ACTIVE")]
    assert [(vm["code"], vm["host"], vm["status"], vm["steps"]) for vm in left] == [
        ("cancelled", "kvm1", "ACTIVE", [])
    ] * 2
    assert "enabled for scheduling" in error["msg"]
    assert sorted([*lab.domains("kvm1"), *lab.domains("kvm2")]) == ["a", "b", "c"]
    assert len(lab.domains("kvm2")) == 1
    # The same task goes on once the host is disabled again.
    going = play([cordon("disabled", reason="memory"), order])
    assert [vm["host"] for vm in going.ok()["result"]["vms"]] == ["kvm2"] * 3
