# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import collections
import itertools
import typing as t

from hypothesis import given
from hypothesis import strategies as some

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement import Order, plan
from tests.unit.clusters import carried_out, cluster, disabled, group, host, storage, vm

Facts = dict[str, t.Any]
# A quarter of what VMs may take of a host.
QUARTER = 1024


@some.composite
def small_clusters(draw: some.DrawFn) -> dict[str, Facts]:
    """A host with up to five VMs, and up to three others."""

    def guest(name: str) -> Facts:
        policy = draw(some.sampled_from(["", "", "affinity", "anti-affinity"]))
        return vm(
            name,
            draw(some.sampled_from([QUARTER, 2 * QUARTER, 3 * QUARTER])),
            vcpus=draw(some.sampled_from([1, 16])),
            networks=draw(some.sampled_from([[], [], ["a"], ["b"]])),
            disk=draw(some.sampled_from(["", "/var"])),
            groups=group(policy, policy) if policy else [],
        )

    hosts = cluster(kvm1=host("kvm1", *(guest(f"vm{number}") for number in range(draw(some.integers(1, 5))))))
    for number in range(2, 2 + draw(some.integers(1, 3))):
        there = [guest(f"there{number}")] if draw(some.booleans()) else []
        hosts[f"kvm{number}"] = host(
            f"kvm{number}",
            *there,
            networks=draw(some.sampled_from([["a", "b"], ["a"], ["b"]])),
            storage=[storage("/", 1000, draw(some.sampled_from([200, 400, 1000])))],
            scheduling=draw(some.sampled_from([None, None, None, disabled("tests")])),
        )
    return hosts


def broken(hosts: t.Mapping[str, Facts], where: t.Mapping[str, str]) -> str:
    """What is against VMs of kvm1 being there, seen with other eyes than the planner's; empty when nothing is."""
    vms = {each["name"]: each for each in hosts["kvm1"]["vms"]}
    for name, one in hosts.items():
        mine = [vms[guest] for guest, dest in where.items() if dest == name]
        if not mine:
            continue
        if name == "kvm1" or not (one["scheduling"] or {"enabled": True})["enabled"]:
            return f"{name} takes none"
        if sum(each["memory"] for each in mine) + one["memory"]["running"] > 4 * QUARTER:
            return f"{name} is full"
        if sum(each["vcpus"] for each in mine) + one["cpus"]["running"] > 32:
            return f"{name} has no CPUs"
        if sum(disk["size"] for each in mine for disk in each["disks"]) > one["storage"][0]["available"]:
            return f"{name} has no room"
        if any(not {*each["networks"]} <= {*one["networks"]} for each in mine):
            return f"{name} has no such network"
    homes = collections.defaultdict(list)
    places = [(name, each) for name, one in hosts.items() for each in one["vms"] if name != "kvm1"]
    for name, each in [*places, *((dest, vms[guest]) for guest, dest in where.items())]:
        for one in each["groups"]:
            homes[one["policy"]].append((name, each["name"] in vms))
    apart = [name for name, _new in homes["anti-affinity"]]
    old = {name for name, _new in places if any(one["policy"] == "affinity" for one in _new["groups"])}
    new = {name for name, mine in homes["affinity"] if mine}
    if (
        max(
            collections.Counter(
                name for name in apart if any(home == (name, True) for home in homes["anti-affinity"])
            ).values(),
            default=0,
        )
        > 1
    ):
        return "two are on one host that have to be apart"
    return "a group is not together" if len(new) > 1 or (old and not new <= old) else ""


@given(small_clusters())
def test_a_plan_breaks_no_rule_and_is_whole_where_there_is_one_at_all(hosts: dict[str, Facts]) -> None:
    told = plan(Order("drain", "kvm1", hosts))
    where = {move["vm"]: move["dest"] for move in told["moves"]}
    assert broken(hosts, where) == ""
    names = [each["name"] for each in hosts["kvm1"]["vms"]]
    assert sorted([*where, *(each["vm"] for each in told["blockers"])]) == names
    others = [name for name in hosts if name != "kvm1"]
    ways = (dict(zip(names, dests)) for dests in itertools.product(others, repeat=len(names)))
    assert told["complete"] == any(not broken(hosts, way) for way in ways)
    backwards = {name: {**hosts[name], "vms": hosts[name]["vms"][::-1]} for name in reversed(hosts)}
    assert plan(Order("drain", "kvm1", backwards)) == told
    # A plan that was approved is the same plan, and has nothing more to do when it was carried out.
    assert plan(Order("drain", "kvm1", hosts, approved=told))["moves"] == told["moves"]
    assert plan(Order("drain", "kvm1", carried_out(hosts, told), approved=told))["moves"] == []


def test_many_vms_are_spread_evenly_and_nothing_is_promised_twice() -> None:
    hosts = cluster(**{f"kvm{number}": host(f"kvm{number}", memory=512 + 16 * QUARTER) for number in range(1, 21)})
    vms = [vm(f"vm{number}", QUARTER // (1 + number % 4), disk="/srv/shared") for number in range(250)]
    told = plan(Order("evacuate", "kvm0", hosts, vms=vms))
    loads = [each["after"]["load"] for each in told["hosts"].values()]
    assert (len(told["moves"]), told["complete"]) == (250, True)
    assert max(loads) - min(loads) <= 100 / 16
    assert sum(each["after"]["memory"] for each in told["hosts"].values()) == sum(each["memory"] for each in vms)
    full = [vm(f"more{number}", 3 * QUARTER, disk="/srv/shared") for number in range(120)]
    crowded = plan(Order("evacuate", "kvm0", hosts, vms=full))
    assert len(crowded["moves"]) == 20 * 5
    assert {each["code"] for each in crowded["blockers"]} == {"memory_promised"}
    assert all(each["after"]["memory"] <= 16 * QUARTER for each in crowded["hosts"].values())


def test_how_disks_are_counted_follows_the_storage_that_hosts_have_there() -> None:
    there = [storage("/", 1000, 1000), storage("/var", 1000, 100), storage("/var/lib", 1000, 300)]
    guests = [vm("root", disk="/srv"), vm("deep", disk="/var/lib/vms"), vm("var", disk="/var/vms")]
    hosts = cluster(kvm1=host("kvm1", *guests), kvm2=host("kvm2", storage=there))
    told = plan(Order("drain", "kvm1", hosts))
    assert [move["vm"] for move in told["moves"]] == ["deep", "root"]
    assert told["blockers"][0]["message"].endswith("kvm2 has 100 MiB left in /var, and 200 MiB would be carried.")


def test_an_older_qemu_is_worse_than_carrying_and_carrying_is_worse_than_load() -> None:
    alone = [storage("/", 1000, 1000)]
    hosts = cluster(
        kvm1=host("kvm1", vm("one", disk="/srv/shared")),
        older=host("older", qemu="6.2.0"),
        carries=host("carries", storage=alone),
        loaded=host("loaded", vm("there", 3000)),
    )
    for gone, best in (("", "loaded"), ("loaded", "carries"), ("carries", "older")):
        hosts.pop(gone, None)
        told = plan(Order("drain", "kvm1", hosts))
        assert [(move["dest"], move["shared"]) for move in told["moves"]] == [(best, best != "carries")]
