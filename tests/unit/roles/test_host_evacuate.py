# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role host_evacuate makes of what it was told: its variables, evaluated as Ansible does."""

from __future__ import annotations

import typing as t

from tests.unit.roles.variables import Facts, host, variable, vm


def evaluated(name: str, here: str = "kvm2", **told: t.Any) -> t.Any:
    """A variable of the role on the host *here*. In earnest, and of kvm1, when nothing else is told."""
    known = {
        "ansible_check_mode": False,
        "ansible_play_hosts": ["kvm1", "kvm2", "kvm3"],
        "host_evacuate_host": "kvm1",
        "host_evacuate_plan_only": False,
        "inventory_hostname": here,
        **told,
    }
    return variable("host_evacuate", name, known)


def record(uuid: str, to: str = "", *, lost: t.Sequence[str] = (), settled: bool = False, **told: t.Any) -> Facts:
    """What a host reads of a VM; *to* is who has begun to bring it up."""
    tombstone = {"to": to, "settled": settled} if to else None
    kinds = [{"kind": kind} for kind in lost]
    return {"name": f"vm-{uuid}", "uuid": uuid, "tombstone": tombstone, "lost": kinds, "findings": [], **told}


def survivors(**told: t.Any) -> Facts:
    """Two hosts that survive, as their variables; *told* by name is what they have read of the records."""
    found: dict[str, Facts] = {
        name: {"host_evacuate__look": {"host": {"placement": host(f"{name}.example")}}} for name in ("kvm2", "kvm3")
    }
    for name, vms in told.items():
        found[name]["host_evacuate__read"] = {"vms": vms} if isinstance(vms, list) else {"msg": vms}
    return {"kvm1": {}, **found}


def test_whoever_has_had_an_answer_says_from_whom_and_who_could_not_ask_has_no_say() -> None:
    def answer(by: str) -> Facts:
        return {"answered": [{"by": by, "address": "192.0.2.1", "how": "connected"}]}

    hosts = {
        "kvm2": {"host_evacuate__probe": answer("tcp 22")},
        "kvm3": {"host_evacuate__probe": {"msg": "No Python."}},
    }
    told = evaluated("sightings", hostvars=hosts, host_evacuate__asked=answer("ping"))
    assert told == ["kvm2 by tcp 22 at 192.0.2.1 (connected)", "the controller by ping at 192.0.2.1 (connected)"]


def test_what_runs_elsewhere_is_no_vm_of_the_dead_host() -> None:
    hosts = survivors(kvm2=[record("fresh"), record("moved"), record("begun", "kvm3.example")], kvm3=[])
    hosts["kvm3"]["host_evacuate__look"] = {"host": {"placement": host("kvm3.example", vm("moved"), vm("begun"))}}
    found = {name: evaluated(name, hostvars=hosts) for name in ("fresh", "elsewhere", "buried")}
    uuids = {name: [each["uuid"] for each in vms] for name, vms in found.items()}
    assert uuids == {"fresh": ["fresh"], "elsewhere": ["moved"], "buried": ["begun"]}


def test_nobody_gets_a_vm_whose_records_or_disks_it_does_not_see() -> None:
    """And nobody makes a disk anew that another one sees."""
    finding = {"code": "name_taken", "message": "It is.", "way_out": "Rename one."}
    hosts = survivors(
        kvm2=[record("a", lost=["disks"]), record("b", lost=["disks"]), record("c", findings=[finding])],
        kvm3=[record("a"), record("b", lost=["disks", "tpm"]), record("c", lost=["nvram"])],
    )
    found = evaluated("exclude", hostvars=hosts)
    assert [(each["vm"], each["dest"], each["code"]) for each in found] == [
        ("vm-a", "kvm2", "disk_missing"),
        ("vm-c", "kvm2", "name_taken"),
    ]
    assert found[0]["why"] == "Another host sees all its disks, and kvm2 does not."
    hosts = survivors(kvm2=[record("a"), record("begun", "kvm3.example")], kvm3="No such directory.")
    found = evaluated("exclude", hostvars=hosts)
    assert found == [{"vm": "vm-a", "dest": "kvm3", "code": "records_missing", "why": "No such directory."}]


def test_a_host_goes_on_with_what_it_had_begun() -> None:
    move = {"vm": "vm-a", "uuid": "a", "dest": "kvm2"}
    told: Facts = {
        "hostvars": survivors(
            kvm2=[record("a"), record("begun", "kvm2.example"), record("other", "kvm3.example")], kvm3=[]
        ),
        "host_evacuate__planned": {"plan": {"moves": [move], "blockers": []}},
    }
    assert evaluated("share", **told) == ["vm-begun", "vm-a"]
    assert evaluated("share", "kvm3", **told) == ["vm-other"]


def open_with(*vms: Facts, running: t.Sequence[Facts] = ()) -> bool:
    """Whether there is anything to do when nothing is planned."""
    hosts = survivors(kvm2=list(vms), kvm3=[])
    hosts["kvm3"]["host_evacuate__look"] = {"host": {"placement": host("kvm3.example", *running)}}
    plan: Facts = {"moves": [], "blockers": []}
    return t.cast("bool", evaluated("open", hostvars=hosts, host_evacuate__planned={"plan": plan}))


def test_there_is_something_to_do_until_all_that_was_begun_is_settled() -> None:
    assert not open_with()
    assert open_with(record("a", "kvm3.example"))
    assert not open_with(record("a", "kvm3.example", settled=True), running=[vm("a")])
    assert open_with(record("a", "kvm3.example", settled=True), running=[vm("a", task_state="rebuilding")])
    assert not open_with(record("a", "kvm9.example"))  # which does not answer


def test_what_is_left_is_told_with_why() -> None:
    moves = [{"vm": f"vm-{uuid}", "uuid": uuid, "dest": "kvm2"} for uuid in ("good", "bad", "late")]
    blocker = {"vm": "vm-big", "uuid": "big", "code": "no_room", "message": "There is none.", "way_out": ""}
    hosts = survivors(kvm2=[record("stuck", "kvm9.example"), record("seen", "kvm9.example")], kvm3=[])
    hosts["kvm3"]["host_evacuate__look"] = {"host": {"placement": host("kvm3.example", vm("seen"))}}
    hosts["kvm2"]["host_evacuate__evacuated"] = {
        "vms": [
            {"name": "vm-good", "uuid": "good", "changed": True},
            {"name": "vm-bad", "uuid": "bad", "changed": False, "failed": True, "code": "denied", "msg": "No."},
        ]
    }
    left = evaluated(
        "left",
        hostvars=hosts,
        host_evacuate__begun=True,
        host_evacuate__planned={"plan": {"moves": moves, "blockers": [blocker]}},
    )
    assert [(each["vm"], each["code"]) for each in left] == [
        ("vm-big", "no_room"),
        ("vm-stuck", "evacuated"),
        ("vm-bad", "denied"),
        ("vm-late", "failed"),
    ]
    assert left[-1]["message"] == "kvm2 did not answer."


def outcome(*evacuated: Facts, on: dict[str, list[str]], blockers: t.Sequence[Facts] = (), **told: t.Any) -> str:
    """How it ends when kvm2 has brought up these, and looking afterwards VMs are found *on* hosts."""
    hosts = survivors(kvm2=[], kvm3=[])
    hosts["kvm2"]["host_evacuate__evacuated"] = {"vms": list(evacuated)}
    plan = {"moves": [], "blockers": list(blockers)}
    known: Facts = {"host_evacuate__places": on, "host_evacuate__planned": {"plan": plan}, "host_evacuate__begun": True}
    return t.cast("str", evaluated("outcome", hostvars=hosts, **known, **told))


def test_it_ends_well_only_when_each_vm_is_there_once() -> None:
    good = {"name": "vm-a", "uuid": "a", "changed": True}
    bad = {"name": "vm-b", "uuid": "b", "changed": False, "failed": True, "code": "denied", "msg": "No."}
    blocker = {"vm": "vm-d", "uuid": "d", "code": "no_room", "message": "There is none.", "way_out": ""}
    assert outcome(good, on={"a": ["kvm2"]}) == "evacuated"
    assert outcome(good, on={"a": ["kvm2", "kvm3"]}) == "failed"
    assert outcome(good, bad, on={"a": ["kvm2"]}) == "failed"
    assert outcome(good, on={"a": ["kvm2"]}, blockers=[blocker]) == "partial"
    assert outcome(good, on={"a": ["kvm2"]}, ansible_check_mode=True) == "planned"
    assert outcome(good, on={"a": ["kvm2"]}, host_evacuate_plan_only="yes") == "planned"
