# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role host_drain makes of what it was told: its variables, evaluated as Ansible does."""

from __future__ import annotations

import typing as t

import pytest

from tests.unit.roles.variables import Facts, host, variable, vm


def evaluated(name: str, **told: t.Any) -> t.Any:
    """A variable of the role. In earnest, and of kvm1, when nothing else is told."""
    known = {
        "ansible_check_mode": False,
        "host_drain_plan_only": False,
        "host_drain_host": "kvm1",
        "hostvars": {"kvm1": {}},
    }
    return variable("host_drain", name, {**known, **told})


def move(uuid: str, dest: str = "kvm2", how: str = "live") -> Facts:
    """Of the plan."""
    return {"vm": f"vm-{uuid}", "uuid": uuid, "dest": dest, "how": how, "why": ""}


def record(uuid: str, *, ok: bool, dest: str = "kvm2", code: str = "", how: str = "live") -> Facts:
    """What became of it once."""
    told = {"vm": f"vm-{uuid}", "uuid": uuid, "from": "kvm1", "to": dest, "how": how, "why": "", "seconds": 1.0}
    return {**told, "ok": ok, "code": code, "message": code and "It was so."}


def planned(*moves: Facts, blockers: t.Sequence[Facts] = ()) -> Facts:
    """What came of a plan."""
    plan = {"moves": list(moves), "stops": [], "stays": [], "blockers": list(blockers), "complete": True, "table": []}
    return {"plan": plan}


def test_who_is_on_its_way_or_waits_for_a_second_thought_is_under_way() -> None:
    here, elsewhere = {"host": "kvm1"}, {"host": "kvm9"}
    source = host(
        "kvm1",
        vm("rests"),
        vm("moves", task_state="migrating"),
        vm("resizes", task_state="resize_migrating"),
        vm("went", status="VERIFY_RESIZE", origin=here),
        vm("came", status="VERIFY_RESIZE", origin=elsewhere),
        vm("resized", status="VERIFY_RESIZE"),
        vm("joined", task_state="migrating"),
    )
    told = {"host_drain__source": source, "host_drain__joined": ["joined"]}
    assert evaluated("under_way", **told) == ["moves", "resizes", "went"]


def test_who_arrived_without_an_end_is_asked_for_where_it_is() -> None:
    ours, other = {"host": "kvm1"}, {"host": "kvm9"}
    facts = {
        "kvm1": host("kvm1", vm("here", task_state="migrating")),
        "kvm2": host(
            "kvm2",
            vm("landed", task_state="migrating", origin=ours),
            vm("here", task_state="migrating", origin=ours),
            vm("joined", task_state="migrating", origin=ours),
            vm("theirs", task_state="migrating", origin=other),
            vm("done", origin=ours),
        ),
        "kvm3": host("kvm3", vm("named", task_state="migrating", origin=ours)),
    }
    told = {
        "host_drain__source": facts["kvm1"],
        "host_drain__facts": facts,
        "host_drain__joined": ["joined"],
        "hostvars": {"kvm2": {}, "kvm3": {"kvmops_migration_name": "kvm3-mig"}},
    }
    assert evaluated("landed", **told) == [{"name": "landed", "dest": "kvm2"}, {"name": "named", "dest": "kvm3-mig"}]


def test_what_failed_is_not_tried_again_unless_nothing_was_tried() -> None:
    results = [
        record("good", ok=True),
        record("bad", ok=False, code="timed_out"),
        record("stopped", ok=False, code="cancelled"),
        record("gone", ok=False, code="not_found"),
        record("halted", ok=False, code="timed_out", how="stop"),
    ]
    failed = evaluated("failed", host_drain__results=results)
    assert failed == [{"vm": "vm-bad", "dest": "kvm2", "code": "timed_out", "why": "It was so."}]


def ending(records: t.Sequence[Facts], plan: Facts, **told: t.Any) -> tuple[str, list[tuple[str, str]], list[str]]:
    """How a drain ends that is in its second round: its state, what is left and why, and what has moved."""
    facts = {"kvm1": host("kvm1", enabled=False), "kvm2": host("kvm2")}
    known = {
        "host_drain__facts": facts,
        "host_drain__records": list(records),
        "host_drain__planned": plan,
        "host_drain__round": 2,
        **told,
    }
    known.setdefault("host_drain__source", known["host_drain__facts"].get("kvm1"))
    left = [(each["uuid"], each["code"]) for each in evaluated("left", **known)]
    done = evaluated("done", **known)
    return evaluated("ending", **known), left, [f"{each['uuid']} {each['attempts']}" for each in done]


def test_it_is_drained_when_nothing_is_left() -> None:
    records = [record("a", ok=False, dest="kvm3", code="timed_out"), record("a", ok=True), record("b", ok=True)]
    assert ending(records, planned()) == ("drained", [], ["a 2", "b 1"])


def test_a_vm_that_moved_and_is_back_is_left() -> None:
    assert ending([record("a", ok=True)], planned(move("a"))) == ("failed", [("a", "not_tried")], ["a 1"])


@pytest.mark.parametrize(
    ("told", "why"),
    [({}, "It was not tried."), ({"vms": []}, "It was not tried."), ({"msg": "The module died."}, "The module died.")],
)
def test_when_nothing_is_told_of_a_vm_what_moved_it_has_the_last_word(told: Facts, why: str) -> None:
    (left,) = evaluated(
        "left",
        hostvars={"kvm1": {"host_drain__moved": told}},
        host_drain__facts={"kvm1": host("kvm1")},
        host_drain__planned=planned(move("a")),
        host_drain__records=[],
        host_drain__round=1,
    )
    assert (left["code"], left["message"]) == ("not_tried", why)


def test_what_failed_is_left_for_its_last_reason() -> None:
    records = [record("a", ok=False, code="timed_out"), record("a", ok=False, dest="kvm3", code="busy")]
    state, left, done = ending(records, planned(move("a", "kvm4"), move("b")))
    assert (state, left, done) == ("failed", [("a", "busy"), ("b", "not_tried")], [])


def test_who_has_no_place_is_left_with_what_the_plan_says() -> None:
    blocker = {"vm": "vm-a", "uuid": "a", "code": "no_host", "message": "There is none.", "way_out": ""}
    assert ending([], planned(blockers=[blocker])) == ("failed", [("a", "no_host")], [])


def test_of_a_host_that_died_what_runs_elsewhere_has_arrived_and_of_the_others_nobody_knows() -> None:
    facts = {"kvm2": host("kvm2", vm("a"), vm("half", condition="off")), "kvm3": host("kvm3")}
    dead = {"host_drain__facts": facts, "host_drain__source": host("kvm1", enabled=False)}
    state, left, done = ending([], planned(move("a"), move("half"), move("b")), **dead)
    assert (state, left, done) == ("failed", [("half", "unknown"), ("b", "unknown")], ["a 1"])


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({"ansible_check_mode": True}, "planned"),
        ({"host_drain_plan_only": "true"}, "planned"),
        ({"host_drain__source": host("kvm1")}, "cancelled"),
        ({"host_drain__source": host("kvm1"), "host_drain__round": 0}, "drained"),
    ],
)
def test_a_drain_may_end_otherwise(told: Facts, state: str) -> None:
    assert ending([], planned(), **told)[0] == state


def test_what_a_host_says_of_a_vm_is_for_that_host_and_of_the_vm_itself_for_all() -> None:
    def blocker(code: str) -> Facts:
        return {"severity": "blocker", "code": code, "message": "No.", "way_out": "Do."}

    answers = [
        {"figures": {"findings": [blocker("no_memory"), {"severity": "warning", "code": "slow"}]}},
        {"figures": {"findings": [blocker("locked")]}},
        {"failed": True, "code": "unreachable", "msg": "Silence."},
    ]
    found = evaluated(
        "found",
        host_drain__facts={name: host(name) for name in ("kvm1", "kvm2", "kvm3")},
        host_drain__unasked=[move("a"), move("b", "kvm3"), move("c")],
        host_drain__answered={"vms": answers},
    )
    assert [(each["vm"], each["dest"], each["code"], each["why"]) for each in found] == [
        ("vm-a", "kvm2", "no_memory", "No. Do."),
        ("vm-b", "kvm2", "locked", "No. Do."),
        ("vm-b", "kvm3", "locked", "No. Do."),
        ("vm-c", "kvm2", "unreachable", "Silence."),
    ]
