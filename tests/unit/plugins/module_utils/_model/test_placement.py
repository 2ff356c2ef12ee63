# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement import Order, plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement_search import Limits
from tests.unit.clusters import MIB, carried_out, cluster, disabled, group, host, off, origin, storage, vm

Facts = dict[str, t.Any]
APART, TOGETHER = group("db", "anti-affinity"), group("web", "affinity")


def drain(hosts: t.Mapping[str, Facts], name: str = "kvm1", **more: t.Any) -> Facts:
    """The plan that empties a host."""
    return plan(Order("drain", name, hosts, **more))


def dests(told: Facts) -> dict[str, str]:
    """Who goes where."""
    return {move["vm"]: move["dest"] for move in told["moves"]}


def codes(told: Facts) -> dict[str, list[str]]:
    """What stands in the way, by VM."""
    found: dict[str, list[str]] = {}
    for each in told["blockers"]:
        found.setdefault(each["vm"], []).append(each["code"])
    return found


def test_vms_are_spread_by_load_the_cheapest_move_first_and_the_order_of_the_facts_does_not_matter() -> None:
    vms = [
        vm("carried", 256, disk="/var/lib/vms"),
        vm("large", 2048, disk="/srv/shared"),
        vm("busy", 128, dirty_rate=50),
        vm("small", 512),
    ]
    hosts = cluster(kvm1=host("kvm1", *vms), kvm2=host("kvm2", vm("there", 1024)), kvm3=host("kvm3"))
    told = drain(hosts)
    assert told["complete"]
    assert [move["vm"] for move in told["moves"]] == ["small", "large", "busy", "carried"]
    assert dests(told) == {"large": "kvm3", "small": "kvm2", "carried": "kvm2", "busy": "kvm2"}
    carried = told["moves"][-1]
    assert (carried["how"], carried["shared"], carried["cost"], carried["source"]) == ("live", False, 356, "kvm1")
    assert told["hosts"]["kvm1"]["before"]["vms"] == 4
    assert told["hosts"]["kvm1"]["after"] == {
        **told["hosts"]["kvm1"]["before"],
        "vms": 0,
        "memory": 0,
        "cpus": 0,
        "load": 0,
    }
    assert told["hosts"]["kvm2"]["after"]["memory"] == 1024 + 512 + 256 + 128
    backwards = {name: {**hosts[name], "vms": hosts[name]["vms"][::-1]} for name in reversed(hosts)}
    assert drain(backwards) == told
    again = drain(carried_out(hosts, told))
    assert (again["moves"], again["complete"]) == ([], True)


@pytest.mark.parametrize(
    ("more", "there", "code"),
    [
        ({}, {"memory": {"total": 1024 + 511, "available": 9999, "running": 0}}, "memory_promised"),
        ({}, {"memory": {"total": 9999, "available": 1023, "running": 0}}, "memory_short"),
        ({"vcpus": 9}, {"cpus": {"total": 4, "running": 8}}, "cpus_short"),
        ({"cpu": "Skylake"}, {}, "cpu_incompatible"),
        ({"cpu": "host-passthrough"}, {"cpu_models": ["EPYC"]}, "host_passthrough"),
        ({"machine": "pc-q35-9.0"}, {}, "machine_missing"),
        ({}, {"arch": "aarch64"}, "architecture_missing"),
        ({}, {"libvirt": "7.10.0"}, "libvirt_too_old"),
        ({"networks": ["dmz"]}, {}, "network_missing"),
        ({"links": ["br7"]}, {}, "bridge_missing"),
        ({"disk": "/var/lib/vms"}, {"storage": []}, "storage_missing"),
        ({"disk": "/var"}, {"storage": [storage("/var", 500, 199)]}, "no_room"),
        ({}, {"scheduling": disabled("disk is being changed")}, "host_disabled"),
        ({}, {"vms": [vm("one", uuid="other")]}, "name_taken"),
        ({}, {"vms": [vm("one")]}, "runs_there"),
        ({"groups": APART}, {"vms": [off("two", groups=APART)]}, "anti_affinity"),
    ],
)
def test_a_host_that_cannot_take_a_vm_is_not_chosen_and_the_reason_is_told(
    more: Facts, there: Facts, code: str
) -> None:
    hosts = cluster(kvm1=host("kvm1", vm("one", 1024, **more)), kvm2={**host("kvm2"), **there})
    told = drain(hosts)
    assert (told["moves"], told["complete"]) == ([], False)
    assert codes(told) == {"one": [code]}
    blocker = told["blockers"][0]
    assert "kvm2" in blocker["message"]
    assert blocker["way_out"]
    # With another host the VM goes there.
    good: Facts = {
        "arch": "x86_64",
        "libvirt": "9.0.0",
        "networks": ["lab", "dmz"],
        "links": ["br0", "br7"],
        "storage": [],
    }
    models: Facts = {"cpu_models": ["qemu64", "EPYC", "Skylake"], "machines": ["pc-q35-7.2", "pc-q35-9.0"]}
    if code not in ("storage_missing", "host_passthrough", "no_room"):
        assert dests(drain({**hosts, "kvm3": host("kvm3", **{**good, **models})})) == {"one": "kvm3"}


def test_what_is_wrong_with_vms_is_told_at_once_and_the_others_are_planned() -> None:
    passed: Facts = {"devices": ["pci 0000:01:00.0"]}
    vms = [
        vm("fine"),
        vm("locked", locked=True, task_state="", **passed),
        vm("moving", task_state="migrating"),
        vm("rescued", status="RESCUE"),
        vm("paused", status="PAUSED", condition="paused"),
        vm("stops", strategy="stop", **passed),
        vm("stays", strategy="leave", task_state="migrating", **passed),
        vm("cold", strategy="cold", cpu="host-passthrough"),
        vm("passing", strategy="cold", persistent=False),
        off("off"),
        off("down", origin=origin("kvm1.example.com")),
        off("saved", status="SUSPENDED", condition="suspended"),
    ]
    hosts = cluster(kvm1=host("kvm1", *vms), kvm2=host("kvm2", memory=2**20, cpu_models=["qemu64"]))
    told = drain(hosts)
    assert codes(told) == {
        "locked": ["host_device", "locked"],
        "moving": ["busy"],
        "rescued": ["wrong_status"],
        "passing": ["not_persistent"],
    }
    assert {move["vm"]: move["how"] for move in told["moves"]} == {"fine": "live", "paused": "live", "cold": "cold"}
    assert [stop["vm"] for stop in told["stops"]] == ["stops"]
    assert {stay["vm"]: stay["code"] for stay in told["stays"]} == {
        "off": "off",
        "down": "off",
        "saved": "off",
        "stays": "left",
    }
    assert told["table"][0] == "Drain of kvm1: 3 moves, 1 stop, 4 stay, 5 blockers."
    moved = drain(hosts, stopped="move", override_lock=True, strategy="stop")
    assert codes(moved) == {"moving": ["busy"], "passing": ["not_persistent"], "saved": ["saved_memory"]}
    assert {move["vm"]: move["how"] for move in moved["moves"]} == {"off": "offline", "cold": "cold"}
    assert moved["hosts"]["kvm2"]["after"]["vms"] == 1


def test_disks_that_are_not_shared_are_carried_where_there_is_room_and_the_room_is_counted_once() -> None:
    here = [vm(f"vm{number}", 16, disk="/var/lib/vms") for number in range(4)]
    lone = off("lone", disk="/srv/shared", cpu="")
    store = [storage("/data", 1000, 450, "nfs store:/data"), storage("/", 1000, 0)]
    hosts = cluster(kvm1=host("kvm1", *here, lone), kvm2=host("kvm2", storage=store), kvm3=host("kvm3", storage=store))
    # Both see the same 450 MiB, and a disk counts 200 until one says what it takes now.
    told = drain(hosts, dest_storage="/data")
    assert (len(told["moves"]), codes(told)) == (2, {"vm2": ["no_room"], "vm3": ["no_room"]})
    real = drain(hosts, dest_storage="/data", limits=Limits(overcommit=True), stopped="move")
    assert (len(real["moves"]), codes(real)) == (4, {"lone": ["no_room"]})
    seen = drain(hosts, dest_storage="/data", shared_storage=["/var/lib/vms"], stopped="move")
    assert {move["vm"]: (move["how"], move["shared"]) for move in seen["moves"]} == {
        **{each["name"]: ("live", True) for each in here},
        "lone": ("cold", False),
    }
    filled = drain(hosts, dest_storage="/data", limits=Limits(overcommit=True, disk_ratio=0.7))
    assert len(filled["moves"]) == 1


def test_groups_keep_together_and_apart() -> None:
    soft = group("cache", "soft-anti-affinity")
    near = group("near", "soft-affinity")
    vms = [
        vm("db1", groups=APART),
        vm("db2", groups=APART),
        vm("web1", 1500, groups=TOGETHER),
        vm("web2", 1500, groups=TOGETHER),
        vm("cache1", 64, groups=soft),
        vm("near1", 64, groups=near),
    ]
    hosts = cluster(
        kvm1=host("kvm1", *vms),
        kvm2=host("kvm2", vm("cache2", groups=soft)),
        kvm3=host("kvm3", vm("other", 3000), vm("near2", 64, groups=near)),
        kvm4=host("kvm4", vm("db3", groups=APART)),
    )
    told = drain(hosts)
    assert told["complete"]
    found = dests(told)
    assert {found["db1"], found["db2"]} == {"kvm2", "kvm3"}
    assert found["web1"] == found["web2"]
    assert found["cache1"] != "kvm2"
    assert found["near1"] == "kvm3"
    # A third one of those that are apart has no place, and those that belong together go to where others are, or not.
    hosts["kvm1"]["vms"] += [vm("db4", 64, groups=APART)]
    assert codes(drain(hosts)) == {"db4": ["anti_affinity"]}
    hosts["kvm3"]["vms"] += [vm("web3", 800, groups=TOGETHER)]
    hosts["kvm3"]["memory"]["running"] += 800
    assert codes(drain(hosts))["web1"] == codes(drain(hosts))["web2"] == ["no_valid_host"]
    # The strongest policy that one of a group has for it holds for all.
    hosts["kvm4"]["vms"] += [vm("cache3", groups=group("cache", "anti-affinity"))]
    hosts["kvm3"]["vms"] += [off("cache4", groups=soft)]
    assert codes(drain(hosts))["cache1"] == ["anti_affinity"]


def test_a_vm_finds_a_place_when_another_one_can_go_elsewhere() -> None:
    # The least loaded host for the first is the only one for the second.
    vms = [vm("first", 2000), vm("second", 1900, networks=["dmz"])]
    hosts = cluster(kvm1=host("kvm1", *vms), kvm2=host("kvm2", vm("there", 1200)), kvm3=host("kvm3", vm("here", 1000)))
    hosts["kvm3"]["networks"] = ["dmz"]
    assert dests(drain(hosts)) == {"first": "kvm2", "second": "kvm3"}
    # So it is among many.
    hosts["kvm1"]["vms"] += [vm(f"tiny{number}", 0, vcpus=0) for number in range(250)]
    assert drain(hosts)["complete"]
    # Here one has to make room for the one that makes room.
    chain = [vm("a", 3000, networks=["x"]), vm("b", 2900, networks=["y"]), vm("c", 2800, networks=["z"])]
    seen = {"kvm2": ["x", "z"], "kvm3": ["x", "y"], "kvm4": ["y"]}
    rest = {name: host(name, networks=networks) for name, networks in seen.items()}
    assert dests(drain(cluster(kvm1=host("kvm1", *chain), **rest))) == {"a": "kvm3", "b": "kvm4", "c": "kvm2"}


def test_the_reserve_stays_and_destinations_may_be_named() -> None:
    hosts = cluster(
        kvm1=host("kvm1", vm("one", 2048)), kvm2=host("kvm2", vm("two", 2048)), kvm3=host("kvm3", vm("three", 1024))
    )
    assert drain(hosts, limits=Limits(reserve_hosts=1))["blockers"] == [
        {
            "vm": "",
            "uuid": "",
            "code": "reserve_short",
            "message": "Afterwards, 1 of the largest hosts may not fail: the VMs of kvm3 would not all find room.",
            "way_out": "Add a host to the cluster, stop VMs, or lower limits.reserve_hosts.",
        }
    ]
    assert drain({**hosts, "kvm4": host("kvm4")}, limits=Limits(reserve_hosts=1))["complete"]
    assert dests(drain(hosts, destinations=["kvm2", "kvm9"])) == {"one": "kvm2"}
    assert codes(drain(hosts, destinations=["kvm9"])) == {"one": ["not_a_destination"]}
    known = [{"vm": "uuid-one", "dest": "kvm3", "code": "mac_taken", "why": "The address is taken."}]
    assert dests(drain(hosts, exclude=known)) == {"one": "kvm2"}
    told = drain({"kvm1": hosts["kvm1"], "kvm3": hosts["kvm3"]}, exclude=known)
    assert (codes(told), "The address is taken" in told["blockers"][0]["message"]) == ({"one": ["mac_taken"]}, True)
    assert codes(drain({"kvm1": hosts["kvm1"]})) == {"one": ["no_valid_host"]}


def test_vms_return_to_where_they_were_as_many_as_fit_and_what_ran_there_is_started_first() -> None:
    hosts = cluster(
        kvm1=host(
            "kvm1",
            off("stopped", 512, strategy="stop", origin=origin("kvm1.example.com")),
            off("was off", 512, origin=origin("kvm1.example.com", "off")),
            vm("new", 512),
            scheduling=disabled("drained"),
        ),
        kvm2=host(
            "kvm2",
            vm("big", 3000, origin=origin("kvm1.example.com")),
            vm("small", 512, origin=origin("kvm1.example.com")),
            vm("mine", 512),
        ),
        kvm3=host("kvm3", vm("first", 2000, priority=1, origin=origin("kvm1.example.com"))),
    )
    told = plan(Order("restore", "kvm1", hosts))
    assert [start["vm"] for start in told["starts"]] == ["stopped"]
    assert dests(told) == {"first": "kvm1", "small": "kvm1"}
    assert {stay["vm"]: stay["code"] for stay in told["stays"]} == {"big": "memory_promised"}
    assert told["complete"]
    assert told["hosts"]["kvm1"]["after"]["memory"] == 512 + 512 + 2000 + 512
    assert told["hosts"]["kvm3"]["after"]["vms"] == 0
    tight = plan(Order("restore", "kvm1", hosts, limits=Limits(memory_reserve=4096)))
    assert (tight["starts"], tight["moves"]) == ([], [])
    assert {stay["vm"] for stay in tight["stays"]} == {"stopped", "big", "small", "first"}


def test_a_disk_that_is_made_anew_needs_room_and_not_to_be_seen() -> None:
    disk = {"target": "vda", "path": "/vms/a", "bytes": 0, "size": 3000 * MIB, "readonly": False, "network": False}
    vms = [off("a", disks=[{**disk, "anew": True}]), off("b", disks=[disk])]
    roomy = host("kvm3", storage=[storage("/vms", 9000, 4000)])
    told = plan(Order("evacuate", "kvm1", cluster(kvm2=host("kvm2"), kvm3=roomy), vms=vms, stopped="move"))
    assert [(move["vm"], move["dest"], move["how"], move["shared"]) for move in told["moves"]] == [
        ("a", "kvm3", "offline", False)
    ]
    assert codes(told) == {"b": ["no_shared_disk"]}
    assert "anew" in "\n".join(told["table"])


def test_vms_of_a_dead_host_are_planned_by_priority_and_what_is_lost_is_told() -> None:
    vms = [
        vm("low", 3000, disk="/srv/shared"),
        vm("high", 2000, disk="/srv/shared", priority=5, locked=True, task_state="migrating"),
        vm("lost", 100, disk="/var/lib/vms"),
        vm("came", disk="/srv/shared"),
        vm("done", disk="/srv/shared", evacuated="kvm7"),
        vm("left", disk="/srv/shared", strategy="leave"),
        vm("tied", disk="/srv/shared", devices=["pci 0000:01:00.0"]),
        off("off", disk="/srv/shared"),
        off("saved", disk="/srv/shared", status="SUSPENDED", condition="suspended"),
    ]
    hosts = cluster(kvm2=host("kvm2", vm("came")), kvm3=host("kvm3", vm("there", 3000)))
    told = plan(Order("evacuate", "kvm1", {**hosts, "kvm1": host("kvm1")}, vms=vms))
    assert [(move["vm"], move["dest"], move["how"]) for move in told["moves"]] == [("high", "kvm2", "start")]
    assert codes(told) == {"low": ["memory_promised"], "lost": ["no_shared_disk"], "tied": ["host_device"]}
    lost = next(each for each in told["blockers"] if each["vm"] == "lost")
    assert "/var/lib/vms/lost; 100 MiB would be lost" in lost["message"]
    assert {stay["vm"]: stay["code"] for stay in told["stays"]} == {
        "came": "elsewhere",
        "done": "evacuated",
        "left": "left",
        "off": "off",
        "saved": "off",
    }
    moved = plan(Order("evacuate", "kvm1", hosts, vms=vms, stopped="move"))
    assert {move["vm"]: move["how"] for move in moved["moves"]} == {
        "high": "start",
        "off": "offline",
        "saved": "offline",
    }
    assert "its saved memory is lost" in next(move["why"] for move in moved["moves"] if move["vm"] == "saved")


def test_an_approved_plan_is_carried_out_as_it_is_even_when_half_of_it_is_done() -> None:
    vms = [vm(f"vm{number}", 500) for number in range(4)]
    hosts = cluster(kvm1=host("kvm1", *vms, vm("stops", strategy="stop")), kvm2=host("kvm2"), kvm3=host("kvm3"))
    first = drain(hosts)
    # What changes by itself changes neither the plan nor what it was made from.
    moving = cluster(
        **{name: {**each, "memory": {**each["memory"], "available": 3000}} for name, each in hosts.items()}
    )
    assert drain(moving)["fingerprint"] == first["fingerprint"]
    # A host that became more attractive is not chosen, as it was not approved.
    moving["kvm3"]["memory"] = {**moving["kvm3"]["memory"], "total": 2**20, "available": 2**20}
    assert dests(drain(moving)) != dests(first)
    assert dests(drain(moving, approved=first)) == dests(first)
    half = {**first, "moves": first["moves"][:2]}
    then = carried_out(hosts, half)
    then["kvm1"]["scheduling"] = disabled("drained")
    then["kvm1"]["vms"] = [
        off("stops", strategy="stop") if each["name"] == "stops" else each for each in then["kvm1"]["vms"]
    ]
    rest = drain(then, approved=first)
    assert (rest["moves"], rest["fingerprint"]) == (first["moves"][2:], first["fingerprint"])
    assert drain(then)["fingerprint"] != first["fingerprint"]


def test_an_approved_plan_is_refused_with_all_that_has_changed() -> None:
    hosts = cluster(kvm1=host("kvm1", vm("one"), vm("two"), vm("three")), kvm2=host("kvm2"), kvm3=host("kvm3"))
    first = drain(hosts)
    there = dests(first)["one"]
    now = cluster(
        kvm1=host("kvm1", vm("one", 1024), off("two"), vm("four")),
        kvm2=host("kvm2", vm("guest")),
        kvm4=host("kvm4"),
    )
    with pytest.raises(Refused) as refused:
        drain(now, approved=first)
    assert refused.value.details["changed"][:8] == [
        "VM guest is on kvm2 now.",
        "Host kvm3 does not answer any more, or is no candidate.",
        "Host kvm4 is new.",
        "VM four is new.",
        "The memory of VM one is 1024 now, and was 512.",
        "VM three is gone.",
        "VM two is off now.",
    ]
    out = {**hosts, there: {**hosts[there], "scheduling": disabled("tests")}}
    full = {**hosts, there: {**hosts[there], "memory": {"total": 4608, "available": 100, "running": 0}}}
    with pytest.raises(Refused, match=rf"Host {there} is out of scheduling now"):
        drain(out, approved=first)
    with pytest.raises(Refused, match=rf"VM one cannot go to {there} any more: of {there}'s memory 100 MiB"):
        drain(full, approved=first)
    for wrong in ({}, {**first, "kind": "restore"}, {**first, "fingerprint": "0"}, {**first, "moves": [{"uuid": "x"}]}):
        with pytest.raises(Invalid):
            drain(hosts, approved=wrong)


def test_facts_that_are_none_are_refused_and_so_is_a_host_that_told_nothing() -> None:
    with pytest.raises(Invalid, match=r"There are no facts of kvm9"):
        drain(cluster(kvm1=host("kvm1")), "kvm9")
    with pytest.raises(Invalid, match=r"host kvm1 is no placement facts: KeyError\('arch'\)"):
        drain({"kvm1": {"scheduling": None, "memory": {}, "cpus": {}, "storage": [], "name": "x"}})
    with pytest.raises(Invalid, match=r"a VM of host kvm1"):
        drain(cluster(kvm1=host("kvm1", {**off("one"), "vcpus": None})))
