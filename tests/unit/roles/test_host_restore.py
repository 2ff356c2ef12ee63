# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role host_restore makes of what it was told: its variables, evaluated as Ansible does."""

from __future__ import annotations

import typing as t

import pytest

from tests.unit.roles.variables import Facts, host, variable, vm

OURS = {"host": "kvm1", "power": "running"}


def evaluated(name: str, here: str = "kvm2", **told: t.Any) -> t.Any:
    """A variable of the role on the host *here*. In earnest, and of kvm1, when nothing else is told."""
    known = {
        "ansible_check_mode": False,
        "host_restore_host": "kvm1",
        "host_restore_bring_back": True,
        "host_restore_enable": "auto",
        "inventory_hostname": here,
        "hostvars": {},
    }
    return variable("host_restore", name, {**known, **told})


def move(uuid: str, source: str) -> Facts:
    """Of the plan."""
    return {"vm": f"vm-{uuid}", "uuid": uuid, "source": source, "dest": "kvm1", "how": "live", "why": ""}


def test_what_is_on_its_way_is_joined_by_who_has_it_and_what_has_arrived_by_the_target() -> None:
    moving = {"task_state": "migrating", "origin": OURS}
    facts = {
        "kvm1": host("kvm1", vm("landed", **moving), vm("coming", **moving)),
        "kvm2": host("kvm2", vm("coming", **moving), vm("rests", origin=OURS)),
        "kvm3": host("kvm3", vm("third", **moving), vm("theirs", task_state="migrating", origin={"host": "kvm9"})),
    }
    assert evaluated("moving", host_restore__facts=facts) == ["coming"]
    assert evaluated("moving", "kvm3", host_restore__facts=facts) == ["third"]
    assert evaluated("moving", "kvm1", host_restore__facts=facts) == []
    assert evaluated("landed", "kvm1", host_restore__facts=facts) == ["landed"]


@pytest.mark.parametrize(
    ("reason", "enable", "enables"),
    [
        ("drained", "auto", True),
        ("drained: new memory", "auto", True),
        ("drainedness", "auto", False),
        ("broken fan", "auto", False),
        ("broken fan", "always", True),
        ("drained", "never", False),
    ],
)
def test_only_what_a_drain_took_out_of_scheduling_is_put_back(reason: str, enable: str, enables: bool) -> None:
    target = host("kvm1", enabled=False, reason=reason)
    assert evaluated("enables", host_restore__target=target, host_restore_enable=enable) is enables


def ended(started: t.Sequence[Facts] = (), **told: t.Any) -> Facts:
    """The report of a restore that was to bring back a and b from kvm2 and c from kvm3, which said nothing."""
    plan = {
        "moves": [move("a", "kvm2"), move("b", "kvm2"), move("c", "kvm3")],
        "starts": [],
        "stays": [],
        "blockers": [{"vm": "vm-d", "uuid": "d", "code": "no_room", "message": "There is none.", "way_out": ""}],
    }
    moved = [
        {"name": "vm-a", "changed": True, "figures": {"method": "live"}},
        {"name": "vm-b", "failed": True, "code": "timed_out", "msg": "Late."},
    ]
    return t.cast(
        "Facts",
        evaluated(
            "report",
            **{
                "ansible_play_hosts_all": ["kvm1", "kvm2", "kvm3", "kvm4"],
                "host_restore__began": 0.0,
                "host_restore__facts": {name: host(name) for name in ("kvm1", "kvm2", "kvm3")},
                "host_restore__planned": {"plan": plan},
                "host_restore__started": {"results": [{"vms": list(started)}]},
                "hostvars": {
                    "kvm1": {"host_restore__moved": {}},
                    "kvm2": {"host_restore__moved": {"vms": moved}},
                    "kvm3": {"host_restore__moved": {"msg": "The module died."}},
                },
                **told,
            },
        ),
    )


def brief(records: t.Sequence[Facts]) -> list[tuple[str, str, str]]:
    """Which VM, and what is said of it."""
    return [(each["vm"], each["code"], each["message"]) for each in records]


def test_of_each_vm_is_told_what_became_of_it() -> None:
    told = ended([{"name": "vm-e", "uuid": "e"}, {"name": "vm-f", "failed": True, "code": "no_memory", "msg": "Full."}])
    assert told["state"] == "failed"
    assert brief(told["moved"]) == [("vm-a", "", "")]
    assert brief(told["started"]) == [("vm-e", "", "")]
    failures = [("vm-b", "timed_out", "Late."), ("vm-c", "failed", "The module died."), ("vm-f", "no_memory", "Full.")]
    assert brief(told["failures"]) == failures
    assert brief(told["left"]) == [("vm-d", "no_room", "There is none."), *failures]
    assert told["silent"] == ["kvm4"]


@pytest.mark.parametrize(
    ("confirmed", "failures"),
    [
        ({"vms": [{"name": "vm-a"}, {"name": "vm-b"}]}, []),
        ({"vms": [{"name": "vm-a"}, {"name": "vm-b", "failed": True, "code": "busy", "msg": "It is."}]}, ["b: It is."]),
        ({"msg": "The module died."}, ["a: The module died.", "b: The module died."]),
        ({}, ["a: It was not confirmed.", "b: It was not confirmed."]),
    ],
)
def test_who_moved_while_it_was_off_is_back_when_that_was_confirmed(confirmed: Facts, failures: list[str]) -> None:
    moved = [{"name": f"vm-{each}", "changed": True, "figures": {"method": "cold"}} for each in "ab"]
    kvm2 = {"host_restore__moved": {"vms": moved}, "host_restore__confirmed": confirmed}
    told = ended(hostvars={"kvm1": {"host_restore__moved": {}}, "kvm2": kvm2, "kvm3": {"host_restore__moved": {}}})
    assert [f"{each['uuid']}: {each['message']}" for each in told["failures"] if each["uuid"] != "c"] == failures
    assert told["state"] == "failed"


def test_what_is_not_to_come_back_is_not_missed() -> None:
    told = ended(host_restore_bring_back="false")
    assert (told["state"], told["moved"], told["left"]) == ("restored", [], [])


def test_check_mode_has_done_nothing() -> None:
    told = ended(ansible_check_mode=True)
    assert (told["state"], told["moved"], told["failures"]) == ("planned", [], [])


def test_who_is_back_or_stays_for_good_is_not_looked_for_any_more() -> None:
    report = {"failures": [{"uuid": "bad"}], "moved": [{"uuid": "back"}]}
    facts = {
        "kvm1": host("kvm1", vm("started", origin=OURS), vm("bad", origin=OURS)),
        "kvm2": host("kvm2", vm("stays", origin=OURS), vm("bad", origin=OURS), vm("theirs")),
    }
    told = {"host_restore__facts": facts, "host_restore_report": report}
    assert evaluated("settled", "kvm1", **told) == ["started", "back"]
    assert evaluated("settled", "kvm2", **told) == []
    assert evaluated("settled", "kvm2", host_restore_bring_back=False, **told) == ["stays"]
