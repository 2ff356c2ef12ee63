# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module drain_plan, and what its guide says."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement_rules import CODES, STAYS
from ansible_collections.kvmops.lifecycle.plugins.modules import drain_plan
from tests.unit.clusters import carried_out, cluster, host, off, origin, vm
from tests.unit.hypervisor import Task

GUIDE = Path(__file__).resolve().parents[4] / "docs/docsite/rst/guide_drain_plan.rst"


def test_a_plan_is_a_change_until_it_is_carried_out_and_says_so_in_a_table_and_a_diff(task: Task) -> None:
    task.base.pop("uri")
    hosts = cluster(
        kvm1=host(
            "kvm1", vm("web", disk="/srv/shared"), vm("db", 1024, disk="/var"), off("old"), vm("gpu", strategy="stop")
        ),
        kvm2=host("kvm2"),
        kvm3=host("kvm3", vm("there")),
    )

    def run(**params: t.Any) -> dict[str, t.Any]:
        checked, done = (task(drain_plan.main, check=check, diff=True, **params) for check in (True, False))
        assert checked == done
        return done

    told = run(hosts=hosts, drain="kvm1")
    assert told["changed"]
    assert told["plan"]["table"] == [
        "Drain of kvm1: 2 moves, 1 stop, 1 stays.",
        "",
        "VM   HOW    FROM  TO    MEMORY    DISKS    WHY",
        "web  live   kvm1  kvm3  512 MiB   shared   least loaded of those that see its disks",
        "db   live   kvm1  kvm2  1024 MiB  carried  least loaded of those that take its disks",
        "gpu  stop   kvm1                           its policy says stop",
        "old  stays                                 off: The VM is off, and VMs that are off are left where they are.",
        "",
        "HOST  VMS     MEMORY                   CPUS          LOAD",
        "kvm1  3 -> 0  2048 -> 0 of 4096 MiB    3 -> 0 of 32  50 -> 0 %",
        "kvm2  0 -> 1  0 -> 1024 of 4096 MiB    0 -> 1 of 32  0 -> 25 %",
        "kvm3  1 -> 2  512 -> 1024 of 4096 MiB  1 -> 2 of 32  12 -> 25 %",
    ]
    assert told["diff"]["before"].splitlines()[1] == "kvm2: 0 VMs, 0 of 4096 MiB, 0 of 32 CPUs"
    assert told["diff"]["after"].splitlines()[1] == "kvm2: 1 VMs, 1024 of 4096 MiB, 1 of 32 CPUs"
    # It survives being kept as a file.
    approved = json.loads(json.dumps(told["plan"]))
    assert run(hosts=hosts, drain="kvm1", approved=approved)["plan"] == told["plan"]
    refused = task(drain_plan.main, hosts={**hosts, "kvm4": host("kvm4")}, drain="kvm1", approved=approved)
    assert (refused["code"], refused["details"]["changed"]) == ("refused", ["Host kvm4 is new."])
    after = carried_out(hosts, told["plan"])
    after["kvm1"] = host("kvm1", off("old"), off("gpu", strategy="stop"))
    done = run(hosts=after, drain="kvm1")
    assert (done["changed"], done["diff"]["before"], done["plan"]["moves"]) == (False, "", [])


def test_options_reach_the_planner(task: Task) -> None:
    task.base.pop("uri")
    hosts = cluster(
        kvm1=host("kvm1", vm("big", 2000), off("old", locked=True)),
        kvm2=host("kvm2", vm("back", origin=origin("kvm1.example.com"))),
    )
    limits = {"memory_ratio": 0.5, "memory_reserve": 0, "cpu_ratio": 1}
    full = task(drain_plan.main, hosts=hosts, drain="kvm1", limits=limits, fail_incomplete=True)
    assert full["failed"]
    assert "kvm2 has 1792 MiB left of its 2304" in full["msg"]
    assert [each["code"] for each in full["details"]["plan"]["blockers"]] == ["memory_promised"]
    moved = task(drain_plan.main, hosts=hosts, drain="kvm1", strategy="leave", stopped="move", override_lock=True)
    assert [move["vm"] for move in moved["plan"]["moves"]] == []
    assert {stay["vm"] for stay in moved["plan"]["stays"]} == {"big", "old"}
    back = task(drain_plan.main, hosts=hosts, restore="kvm1")
    assert [(move["vm"], move["dest"], move["why"]) for move in back["plan"]["moves"]] == [
        ("back", "kvm1", "it came from there")
    ]
    dead = task(
        drain_plan.main, hosts=hosts, evacuate="kvm1", vms=hosts["kvm1"]["vms"], exclude=[{"vm": "big", "dest": "kvm2"}]
    )
    assert [each["code"] for each in dead["plan"]["blockers"]] == ["excluded"]
    wrongs: list[dict[str, t.Any]] = [{"drain": "kvm1", "restore": "kvm1"}, {}, {"evacuate": "kvm1"}]
    for wrong in wrongs:
        assert task(drain_plan.main, hosts=hosts, **wrong)["failed"]


def test_the_guide_tells_of_every_code() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    told = re.findall(r"   \* - ``(\w+)``\n     - (.+)\n     - (.+)\n", text)
    assert told == [(code, *words) for code, words in CODES.items()]
    assert re.findall(r"   \* - ``(\w+)``\n     - (.+)\n(?!     - )", text) == list(STAYS.items())
