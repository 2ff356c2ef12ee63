# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many VMs in one task, and what the user sees of it while it runs."""

from __future__ import annotations

import re
import typing as t

from tests.integration.harness import Lab, Playbook, Result, define, run, task, wait_for
from tests.lab.kvmlab.lab import SHARED

Launch = t.Callable[..., Result]

# What Ansible leaves on a host while a job runs.
LEFT = "find /root/.ansible_async /root/.ansible/tmp -mindepth 1"


def moves(dest: str, *names: str, **options: t.Any) -> dict[str, t.Any]:
    """A task for VMs that go one after the other, over a slow line."""
    orders = [{"name": name, "dest": dest} for name in names]
    return task("vm_migrate", moves=orders, limits={"per_source": 1}, policy={"bandwidth": 8}, **options)


def test_vms_go_one_after_the_other_and_progress_is_shown(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", storage=SHARED)
    guest = lab.booted("kvm1", "a")
    for name in ("b", "c"):
        define(lab, name)
        lab.sh("kvm1", f"virsh -q start {name}")
    left = lab.sh("kvm1", LEFT, check=False).split()
    there = moves("kvm2", "a", "b", "c")
    assert " a to kvm" not in play({**there, "check_mode": True}).output
    shown = play(there)
    done = shown.ok()["result"]
    assert [(vm["name"], vm["changed"], vm["host"]) for vm in done["vms"]] == [(name, True, "kvm2") for name in "abc"]
    assert re.search(r"^\[kvm1\] a to kvm2: memory, \d+ %, [0-9.]+ [KM]iB/s, ", shown.output, re.MULTILINE)
    assert " to kvm2: queued, 1 leave kvm1 already" in shown.output
    assert re.search(r"^\[kvm1\] [12] of 3 VMs done", shown.output, re.MULTILINE)
    assert lab.domains("kvm1") == []
    # What the line was made of, and the job, is gone.
    wait_for(lambda: set(lab.sh("kvm1", LEFT, check=False).split()) <= set(left), seconds=120)
    assert not play(there).ok()["result"]["changed"]
    # Without progress it is the same, and nothing is shown.
    silent = play(moves("kvm1", "a", "b", "c", progress=False), host="kvm2")
    back = silent.ok()["result"]
    assert back.keys() == done.keys()
    assert [vm.keys() for vm in back["vms"]] == [vm.keys() for vm in done["vms"]]
    assert " a to kvm" not in silent.output
    guest.wait_counter()
    # The controller is killed: the module goes on, and ends its work.
    with play.running([moves("kvm2", "a")]) as process:
        wait_for(lambda: "a to kvm2: memory" in process.text(), seconds=120)
        run(["pkill", "-KILL", "-P", str(process.pid)], check=True, timeout=30)
        process.kill()
    wait_for(lambda: not lab.sh("kvm1", "pgrep -f [A]nsiballZ_vm_migrate", check=False), seconds=300)
    assert lab.state("kvm2", "a").startswith("running")
    assert not play(moves("kvm2", "a")).ok()["result"]["changed"]
    guest.host = "kvm2"
    guest.wait_counter()
    assert guest.crashes() == []


def test_what_cannot_be_meant_is_refused(play: Playbook) -> None:
    order = {"name": "a", "dest": "kvm2"}
    twice, both, neither, nowhere = play.errors(
        [
            task("vm_migrate", moves=[order, order]),
            task("vm_migrate", moves=[order], name="a"),
            task("vm_migrate", dest="kvm2"),
            task("vm_migrate", name="a"),
        ]
    )
    assert (twice["code"], twice["msg"]) == ("invalid", "VM 'a' stands twice in moves.")
    assert "mutually exclusive" in both["msg"]
    assert "name, moves" in neither["msg"]
    assert "dest, moves" in nowhere["msg"]
