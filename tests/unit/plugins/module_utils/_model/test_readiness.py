# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Between which hosts VMs can be moved: each reason code has a case that has it, and hosts like any other have none."""

from __future__ import annotations

import copy
import re
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.readiness import CODES, Limits, judge
from ansible_collections.kvmops.lifecycle.plugins.modules import readiness_matrix
from tests.unit.hypervisor import Task

GUIDE = Path(__file__).resolve().parents[5] / "docs/docsite/rst/guide_prepare.rst"

Facts = dict[str, t.Any]
Change = Callable[[Facts, Facts], None]


def paper(purpose: str, role: str) -> Facts:
    """A certificate that is good for another year."""
    return {
        "purpose": purpose,
        "role": role,
        "path": f"/etc/pki/{purpose}/{role}",
        "missing": [],
        "problem": "",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-06-01T00:00:00Z",
    }


def host(number: int) -> Facts:
    """A host that is ready for one other."""
    other = 3 - number
    return {
        "name": f"kvm{number}",
        "uuid": f"uuid-{number}",
        "libvirt": "9.0.0",
        "qemu": "7.2.22",
        "time": "2026-06-01T00:00:00Z",
        "clock_offset": 0.4,
        "ports": {"first": 49152, "last": 49215},
        "address": "",
        "certificates": [
            paper(purpose, role) for purpose in ("libvirt", "qemu") for role in ("authority", "client", "server")
        ],
        "refused": [],
        "authorities": {"libvirt": ["a"], "qemu": ["a"]},
        "cpu_models": ["qemu64", "Nehalem"],
        "storage": [{"path": "/vms", "there": True, "seen": ["kvm1", "kvm2"]}],
        "media": [],
        "records_problem": "",
        "peers": {
            f"kvm{other}": {
                "name": f"kvm{other}",
                "addresses": [f"192.0.2.{other}"],
                "loopback": False,
                "reached": True,
                "migration_reached": True,
                "problem": "",
                "uuid": f"uuid-{other}",
                "own_name": f"kvm{other}",
                "own_name_resolved": True,
                "cpu": "identical",
            }
        },
    }


def judged(change: Change | None = None) -> t.Any:
    """The judgement of two hosts, with something changed of the first or the second."""
    here, there = host(1), host(2)
    if change:
        change(here, there)
    return judge({"kvm1": here, "kvm2": there}, Limits())


def seen(**changed: t.Any) -> Change:
    """What kvm1 sees of kvm2 is otherwise."""
    return lambda here, there: here["peers"]["kvm2"].update(changed)


def told(**changed: t.Any) -> Change:
    """What kvm2 tells of itself is otherwise."""
    return lambda here, there: there.update(changed)


def paper_of(which: str, role: str, **changed: t.Any) -> Change:
    """The certificates of a role are otherwise, on ``here`` or ``there``."""

    def change(here: Facts, there: Facts) -> None:
        for each in (here if which == "here" else there)["certificates"]:
            if each["role"] == role:
                each.update(changed)

    return change


def media(here: Facts, there: Facts) -> None:
    """Six VMs with config drives of their own, and one whose drive both see."""
    here["media"] = [{"vm": f"vm{number}", "path": f"/local/{number}.iso"} for number in range(6)]
    here["media"].append({"vm": "fine", "path": "/vms/7.iso"})


EXPIRED = "2026-05-01T00:00:00Z"
# What is changed; the code that kvm1 -> kvm2 has then; whether kvm2 -> kvm1 has it too; whether it stands in the way.
CASES: dict[str, tuple[Change, str, bool, bool]] = {
    "a name that is not known": (seen(addresses=[]), "name_unresolved", False, True),
    "a name that is one's own": (seen(loopback=True), "name_is_loopback", False, True),
    "what the other calls itself is not known": (seen(own_name_resolved=False), "name_unresolved", False, True),
    "a firewall before libvirt": (seen(reached=False), "port_unreachable", False, True),
    "no connection": (seen(problem="Connection refused."), "connection_failed", False, True),
    "another host": (seen(uuid="uuid-3"), "another_host", False, True),
    "a firewall before QEMU": (seen(migration_reached=False), "migration_port_unreachable", False, True),
    "a host that was not looked at": (lambda here, there: here["peers"].clear(), "host_unknown", False, True),
    "no certificate": (paper_of("there", "server", missing=["/etc/x"]), "certificate_missing", False, True),
    "garbage": (paper_of("here", "client", problem="There is none in it."), "certificate_unreadable", False, True),
    "an expired one": (paper_of("there", "server", not_after=EXPIRED), "certificate_not_valid", False, True),
    "an expired authority": (paper_of("there", "authority", not_after=EXPIRED), "certificate_not_valid", True, True),
    "not valid yet": (
        paper_of("here", "client", not_before="2026-07-01T00:00:00Z"),
        "certificate_not_valid",
        False,
        True,
    ),
    "soon over": (paper_of("here", "client", not_after="2026-06-08T00:00:00Z"), "certificate_expires", False, False),
    "refused by TLS": (
        told(refused=[{"purpose": "qemu", "role": "server", "problem": "hostname mismatch"}]),
        "certificate_rejected",
        False,
        True,
    ),
    "two authorities": (told(authorities={"libvirt": ["b"], "qemu": ["a"]}), "authority_differs", True, True),
    "nothing in common": (told(cpu_models=["EPYC"]), "cpu_incompatible", True, True),
    "something is lacking": (seen(cpu="incompatible"), "cpu_differs", False, False),
    "no directory": (told(storage=[{"path": "/vms", "there": False, "seen": None}]), "storage_missing", True, True),
    "not the same": (
        lambda here, there: here["storage"][0].update(seen=["kvm1"]),
        "storage_not_shared",
        False,
        False,
    ),
    "config drives": (media, "config_drive_local", False, False),
    "no records": (told(records_problem="/records is not there."), "records_missing", True, False),
    "clocks": (told(clock_offset=-12.0), "clock_skew", True, False),
    # of vm_migrate's check
    "the same host": (told(uuid="uuid-1"), "same_host", True, True),
    "an older QEMU": (told(qemu="7.1.0"), "hypervisor_older", False, False),
}


def test_hosts_like_any_other_are_ready_for_each_other() -> None:
    result = judged()
    assert result["ready"]
    assert result["matrix"]["kvm1"]["kvm2"] == {"ready": True, "codes": [], "findings": []}
    assert result["table"] == ["from \\ to  kvm1   kvm2", "kvm1       -      ready", "kvm2       ready  -"]


@pytest.mark.parametrize("case", CASES)
def test_a_finding_is_told_for_the_ways_that_it_is_about(case: str) -> None:
    change, code, both, blocks = CASES[case]
    matrix = judged(change)["matrix"]
    there, back = matrix["kvm1"]["kvm2"], matrix["kvm2"]["kvm1"]
    assert code in there["codes"]
    assert (code in back["codes"]) is both
    assert there["ready"] is not blocks
    assert all(finding["message"].endswith(".") for finding in there["findings"])


def test_what_stands_in_the_way_comes_first() -> None:
    def change(here: Facts, there: Facts) -> None:
        for name in ("soon over", "no certificate", "an older QEMU"):
            CASES[name][0](here, there)

    cell = judged(change)["matrix"]["kvm1"]["kvm2"]
    assert cell["codes"][0] == "certificate_missing"
    assert set(cell["codes"][1:]) == {"certificate_expires", "hypervisor_older"}
    severities = [finding["severity"] for finding in cell["findings"]]
    assert severities == sorted(severities)  # "blocker" before "warning"


def test_every_code_has_a_case_and_stands_in_the_guide() -> None:
    assert set(CODES) <= {code for _change, code, _both, _blocks in CASES.values()}
    text = GUIDE.read_text(encoding="utf-8")
    assert set(re.findall(r"^``([a-z_]+)``$", text, re.MULTILINE)) == set(CODES)


def test_a_host_that_told_nothing_is_in_nobodys_reach() -> None:
    hosts: dict[str, Facts | None] = {"kvm1": host(1), "kvm2": host(2), "kvm3": None}
    result = judge(hosts, Limits())
    assert not result["ready"]
    assert result["matrix"]["kvm1"]["kvm2"]["ready"]
    assert result["matrix"]["kvm3"]["kvm1"]["codes"] == ["host_unknown"]
    assert result["table"][1] == "kvm1       -             ready         host_unknown"


def test_config_drives_are_named_up_to_five() -> None:
    finding = judged(media)["matrix"]["kvm1"]["kvm2"]["findings"][0]
    assert "/local/4.iso (VM vm4) and 1 more." in finding["message"]
    assert "fine" not in finding["message"]


def test_the_module_judges_and_says_what_is_no_fact_of_a_host(task: Task) -> None:
    task.base.pop("uri")
    facts = {"kvm1": host(1), "kvm2": copy.deepcopy(host(2))}
    facts["kvm2"]["clock_offset"] = 30.0
    matrix = task(readiness_matrix.main, hosts=facts)["matrix"]
    assert matrix["kvm1"]["kvm2"]["codes"] == ["clock_skew"]
    assert task(readiness_matrix.main, hosts=facts, clock_tolerance=60)["matrix"]["kvm1"]["kvm2"]["codes"] == []
    assert not task(readiness_matrix.main, hosts={"kvm1": facts["kvm1"], "kvm2": {}})["ready"]
    wrong = task(readiness_matrix.main, hosts={"kvm1": facts["kvm1"], "kvm2": {"readiness": facts["kvm2"]}})
    assert wrong["code"] == "invalid"
    assert "not what host_readiness tells" in wrong["msg"]
