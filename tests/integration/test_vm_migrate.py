# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Live migration of real VMs over shared storage, and what brings it to its end."""

from __future__ import annotations

import typing as t

from tests.integration.harness import Lab, Playbook, Result, task, wait_for
from tests.lab.kvmlab.guest import Guest
from tests.lab.kvmlab.lab import SHARED

Launch = t.Callable[..., Result]


def vms(lab: Lab, launch: Launch, *names: str, **options: t.Any) -> list[Guest]:
    """VMs on shared storage, booted unless they are not started."""
    launch(*names, storage=SHARED, **options)
    if options.get("start") is False:
        return []
    return [lab.booted("kvm1", name) for name in names]


def test_a_running_guest_moves_and_goes_on(lab: Lab, play: Playbook, launch: Launch) -> None:
    (guest,) = vms(lab, launch, "a", autostart=True)
    before = guest.wait_counter()
    (done,) = play.quartet("vm_migrate", name="a", dest="kvm2")["vms"]
    assert (done["host"], done["status"], done["steps"]) == ("kvm2", "ACTIVE", ["migrate", "finish"])
    figures = done["figures"]
    assert (figures["method"], figures["source"], figures["dest"]) == ("live", "kvm1", "kvm2")
    assert figures["memory_bytes"] > 1 << 20
    assert 0 < figures["downtime_ms"] < 1000 * figures["total_seconds"]
    assert lab.domains("kvm1") == []
    assert lab.state("kvm2", "a").startswith("running")
    assert "enable" in lab.sh("kvm2", "virsh dominfo a | grep Autostart")
    guest.host = "kvm2"
    after = guest.wait_counter()
    counted = guest.counter_on_disk()
    assert counted == list(range(1, len(counted) + 1))
    assert after > before
    assert guest.crashes() == []
    # A paused one stays paused, on the way back.
    lab.sh("kvm2", "virsh suspend a")
    (done,) = play.quartet("vm_migrate", host="kvm2", name="a", dest="qemu+tls://kvm1/system")["vms"]
    assert (done["host"], done["status"], done["power_state"]) == ("kvm1", "PAUSED", "PAUSED")
    assert lab.domains("kvm2") == []
    guest.host = "kvm1"
    guest.virsh("resume", "a")
    guest.wait_counter()
    assert guest.crashes() == []
    # To where it is: nothing to do.
    assert not play(task("vm_migrate", name="a", dest="kvm1")).ok()["result"]["changed"]


def carrying(lab: Lab, host: str) -> bool:
    """Whether memory goes over the network."""
    return "Memory processed" in lab.sh(host, "virsh domjobinfo a", check=False)


def holders(lab: Lab) -> str:
    """What those say who hold the lock of a VM, or died with it."""
    return lab.sh("kvm1", "grep -oah '\"pid\": [0-9]*' /run/lock/kvmops/*.lock", check=False)


def arrived(lab: Lab, guest: Guest, source: str, dest: str) -> None:
    """See that it runs once, and well."""
    assert lab.domains(source) == []
    assert lab.state(dest, "a").startswith("running")
    guest.host = dest
    guest.wait_counter()
    assert guest.crashes() == []


def test_a_guest_that_changes_too_much_is_brought_to_its_end(lab: Lab, play: Playbook, launch: Launch) -> None:
    (guest,) = vms(lab, launch, "a", flavor={"vcpus": 1, "memory": 128})
    guest.execute("dirty 20 40", wait=False)
    soon = {"timeout_per_gib": 1, "bandwidth": 8}

    # By post-copy.
    lab.sh("kvm1", "virsh -q checkpoint-create-as a c1")
    asked = {"name": "a", "dest": "kvm2", "policy": {**soon, "on_timeout": "post_copy"}}
    (done,) = play(task("vm_migrate", **asked)).ok()["result"]["vms"]
    assert [each["what"] for each in done["figures"]["monitor"]] == ["no_auto_converge", "post_copy"]
    assert "within 2 seconds" in done["figures"]["monitor"][-1]["why"]
    assert lab.sh("kvm2", "virsh -q checkpoint-list a --name") == "c1"
    arrived(lab, guest, "kvm1", "kvm2")

    # By holding it.
    asked = {"name": "a", "dest": "kvm1", "policy": {**soon, "bandwidth": 20, "on_timeout": "force"}}
    (done,) = play(task("vm_migrate", **asked), host="kvm2").ok()["result"]["vms"]
    assert [each["what"] for each in done["figures"]["monitor"]] == ["auto_converge", "force"]
    assert done["figures"]["downtime_ms"] > 500
    arrived(lab, guest, "kvm2", "kvm1")

    # Not at all: it stays.
    asked = {"name": "a", "dest": "kvm2", "policy": soon}
    error = play(task("vm_migrate", **asked)).error()["result"]
    assert error["code"] == "timed_out"
    assert "MiB a second" in error["msg"]
    arrived(lab, guest, "kvm2", "kvm1")

    # By slowing it down.
    asked["policy"] = {"bandwidth": 20, "auto_converge_initial": 60, "auto_converge_increment": 20}
    (done,) = play(task("vm_migrate", **asked)).ok()["result"]["vms"]
    assert done["figures"]["rounds"] > 2
    arrived(lab, guest, "kvm1", "kvm2")

    # What cannot be is refused.
    bad = {"on_timeout": "post_copy", "auto_converge": "always"}
    (error,) = play.errors([task("vm_migrate", name="a", dest="kvm1", policy=bad)], host="kvm2")
    assert error["code"] == "invalid"


def test_other_plays_have_a_word_in_a_migration(lab: Lab, play: Playbook, launch: Launch) -> None:
    (guest,) = vms(lab, launch, "a", flavor={"vcpus": 1, "memory": 128})
    guest.execute("dirty 20 40", wait=False)
    slow = task("vm_migrate", name="a", dest="kvm2", policy={"bandwidth": 1, "auto_converge": "never"})
    aborted, forced = ({"name": "a", "state": state} for state in ("aborted", "forced"))
    (error,) = play.errors([task("vm_migrate", **forced)])
    assert error["code"] == "refused"
    assert not play(task("vm_migrate", **aborted)).ok()["result"]["changed"]

    # One gives it up.
    with play.running([slow]) as process:
        wait_for(lambda: carrying(lab, "kvm1"))
        (done,) = play.quartet("vm_migrate", **aborted)["vms"]
        assert (done["status"], done["host"]) == ("ACTIVE", "kvm1")
        error = process.played().error()["result"]
        assert "cancel" in error["msg"]
    arrived(lab, guest, "kvm2", "kvm1")
    assert lab.sh("kvm1", "virsh metadata a urn:kvmops:lifecycle:instance | grep -c journal", check=False) == "0"

    # The one that has begun it is killed. Of two that do the same again, one joins it and the other waits for that one.
    with play.running([slow]) as process:
        wait_for(lambda: carrying(lab, "kvm1"))
        lab.kill_module("kvm1", 9)
        assert "failed" in process.played().output
    assert carrying(lab, "kvm1")
    dead = holders(lab)
    with play.running([slow]) as one, play.running([slow]) as other:
        wait_for(lambda: holders(lab) != dead)
        # A third brings it to its end.
        with play.running([task("vm_migrate", **forced)]) as third:
            wait_for(lambda: lab.state("kvm1", "a").startswith("paused"))
            lab.sh("kvm1", "virsh -q migrate-setspeed a 100")
            (done,) = third.played().ok()["result"]["vms"]
        assert (done["figures"]["forced"], done["host"]) == ("pause", "kvm2")
        told = [process.played().ok()["result"] for process in (one, other)]
    assert sorted(each["changed"] for each in told) == [False, True]
    assert [each["vms"][0]["host"] for each in told] == ["kvm2", "kvm2"]
    arrived(lab, guest, "kvm1", "kvm2")
    assert not play(task("vm_migrate", **forced, dest="kvm2")).ok()["result"]["changed"]
