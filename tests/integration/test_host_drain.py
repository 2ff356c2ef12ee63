# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Draining and restoring a host of three, and what happens in the middle of it."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import Lab, Playbook, Played, Result, Running, define, file_disk, run, task, wait_for

IMAGES = "/var/lib/libvirt/images"
SCHEDULING = "/var/lib/kvmops/scheduling.json"
RETRIES = "/proc/sys/net/ipv4/tcp_retries2"
# A disk of random bytes, in MiB; a VM without a system has next to no memory. At this pace it is longer on its way than
# anything takes that a test does meanwhile, at the next one as long as it takes to see that it is on its way.
SIZE = 48
SLOW = {"bandwidth": 1}
STEADY = {"bandwidth": 6}
# Less time than that.
SHORT = {"bandwidth": 1, "timeout_per_gib": 1}

pytestmark = pytest.mark.usefixtures("third", "healed")


def bare(lab: Lab, *names: str, host: str = "kvm1", disk: bool = False) -> None:
    """VMs without a system that run, with disks of their host's own."""
    for name in names:
        path = f"{IMAGES}/{name}.raw"
        if disk:
            lab.sh(host, f"dd if=/dev/urandom of={path} bs=1M count={SIZE} status=none")
        define(lab, name, host=host, devices=file_disk(path, "raw", "vda") if disk else "")
        lab.sh(host, f"virsh -q start {name}")


def drain(**variables: t.Any) -> dict[str, t.Any]:
    """What the playbook is told."""
    return {f"host_drain_{name}": value for name, value in {"host": "kvm1", **variables}.items()}


def report(played: Played, role: str = "host_drain") -> Result:
    """The last one of a role."""
    name = f"{role}_report"
    facts = (each["result"].get("ansible_facts", {}) for each in played.results)
    found = [each[name] for each in facts if name in each]
    assert found, played.output
    return t.cast("Result", found[-1])


def refused(played: Played) -> str:
    """Why it was not done, by a message and not by a traceback."""
    assert played.returncode != 0, played.output
    assert "Traceback" not in played.output, played.output
    failed = [each["result"]["msg"] for each in played.results if each["outcome"] == "failed"]
    return str(failed[-1])


def done(played: Played, role: str = "host_drain") -> Result:
    """The report of a playbook that must have worked."""
    assert played.returncode == 0, played.output
    return report(played, role)


def scheduled(lab: Lab, host: str = "kvm1") -> bool:
    told = lab.sh(host, f"test ! -e {SCHEDULING} || cat {SCHEDULING}")
    return not told or bool(json.loads(told)["enabled"])


def origins(lab: Lab, host: str) -> dict[str, str]:
    """Where VMs of a host come from, as their definitions tell."""
    found = {}
    for name in lab.domains(host):
        origin = re.search(r":origin [^>]*host=.([a-z0-9]+)", lab.sh(host, f"virsh dumpxml {name} --inactive"))
        found[name] = origin.group(1) if origin else ""
    return found


def kill(process: Running) -> None:
    """The controller dies, with all that it has started here."""
    run(["pkill", "-KILL", "-P", str(process.pid)], check=True, timeout=30)
    process.kill()
    process.wait(30)


def heading(process: Running, name: str, *phases: str) -> tuple[str, str]:
    """The first VM, and where it is on its way to, that is told to be in one of these phases."""
    pattern = re.compile(rf"\] ({name}) to (kvm\d): ({'|'.join(phases)})")
    wait_for(lambda: pattern.search(process.text()) or process.poll() is not None, seconds=240)
    found = pattern.search(process.text())
    assert found, process.text()
    return found.group(1), found.group(2)


def test_nothing_is_touched_before_all_is_well(lab: Lab, play: Playbook, tmp_path: Path) -> None:
    bare(lab, "a", "b")
    play(task("vm_lock", name="b", state="locked", reason="no")).ok()
    # Refused: everything is as it was.
    played = play.ours("drain", **drain(reason="test"))
    message = refused(played)
    assert "nothing was touched" in message
    assert "b is locked" in message
    assert "(locked)" in message
    told = report(played)
    assert (told["state"], [each["code"] for each in told["left"]]) == ("refused", ["locked"])
    assert scheduled(lab)
    assert origins(lab, "kvm1") == {"a": "", "b": ""}
    # A limit is found out.
    assert "without a limit" in refused(play.ours("drain", "--limit", "kvm2,kvm3", **drain()))
    play(task("vm_lock", name="b", state="unlocked")).ok()
    # Planned, and kept. The command line gives texts for yes and no.
    plan = tmp_path / "plan.json"
    told = done(play.ours("drain", **drain(plan_only="true", plan_file=str(plan))))
    assert (told["state"], sorted(each["vm"] for each in told["plan"]["moves"])) == ("planned", ["a", "b"])
    assert json.loads(plan.read_text(encoding="utf-8")) == told["plan"]
    assert scheduled(lab)
    checked = play.ours("drain", "--check", "--diff", **drain())
    assert (done(checked)["state"], scheduled(lab), "kvm1  2 -> 0" in checked.output) == ("planned", True, True)
    # The world is another one.
    bare(lab, "c")
    assert "c" in refused(play.ours("drain", **drain(plan_file=str(plan))))
    assert scheduled(lab)
    assert origins(lab, "kvm1") == {"a": "", "b": "", "c": ""}
    # And is as it was again.
    lab.sh("kvm1", "virsh -q destroy c; virsh -q undefine c")
    told = done(play.ours("drain", **drain(plan=told["plan"], plan_only="false", reason="test")))
    assert told["state"] == "drained"
    assert {each["vm"]: each["to"] for each in told["moved"]} == {
        each["vm"]: each["dest"] for each in told["plan"]["moves"]
    }
    assert all(each["attempts"] == 1 and each["seconds"] > 0 and each["why"] for each in told["moved"])
    assert lab.domains("kvm1") == []
    assert "drained: test" in lab.sh("kvm1", f"cat {SCHEDULING}")
    # What a human has taken out of scheduling stays out.
    lab.sh("kvm2", f"rm -f {SCHEDULING}")
    play(task("host_schedulable", state="disabled", reason="ask Ada"), host="kvm2").ok()
    # The second drain of a VM keeps where it came from; there is one host left.
    told = done(play.ours("drain", **drain(host="kvm2")))
    assert {each["to"] for each in told["moved"]} == {"kvm3"}
    assert origins(lab, "kvm3") == {"a": "kvm1", "b": "kvm1"}
    checked = play.ours("restore", "--check", host_restore_host="kvm1")
    assert (done(checked, "host_restore")["state"], lab.domains("kvm1"), scheduled(lab)) == ("planned", [], False)
    told = done(play.ours("restore", host_restore_host="kvm1"), "host_restore")
    assert [each["from"] for each in told["moved"]] == ["kvm3", "kvm3"]
    assert origins(lab, "kvm1") == {"a": "", "b": ""}
    assert scheduled(lab)
    assert "ask Ada" in lab.sh("kvm2", f"cat {SCHEDULING}")
    done(play.ours("restore", host_restore_host="kvm2"), "host_restore")
    assert not scheduled(lab, "kvm2")
    # A host that is not the first of the play is put back as well, when its drain is refused.
    bare(lab, "d", host="kvm3")
    play(task("vm_lock", name="d", state="locked", reason="no"), host="kvm3").ok()
    assert "d is locked" in refused(play.ours("drain", **drain(host="kvm3")))
    assert scheduled(lab, "kvm3")


def test_it_may_be_killed_cancelled_and_kept_from_its_end(lab: Lab, play: Playbook) -> None:
    bare(lab, "a", "b")
    bare(lab, "big", disk=True)
    # One that does not come to its end is tried on both hosts, and the others move.
    played = play.ours("drain", **drain(policy=SHORT))
    assert "kvm1 is not empty, and stays out of scheduling" in refused(played)
    told = report(played)
    assert (told["state"], [each["vm"] for each in told["left"]]) == ("failed", ["big"])
    assert sorted(each["vm"] for each in told["moved"]) == ["a", "b"]
    assert sorted(each["to"] for each in told["failures"]) == ["kvm2", "kvm3"]
    assert {each["code"] for each in told["failures"]} == {"timed_out"}
    assert lab.domains("kvm1") == ["big"]
    assert not scheduled(lab)
    # It goes on, and is called off from elsewhere: what waits stays, and what is under way too.
    bare(lab, "c", disk=True)
    with play.ours_running("drain", **drain(policy=SLOW, limits={"per_source": 1})) as process:
        heading(process, ".*", "queued")
        assert play.ours("drain", **drain(state="cancelled")).returncode == 0
        played = process.played()
    assert "was given up" in refused(played)
    assert report(played)["state"] == "cancelled"
    assert sorted(lab.domains("kvm1")) == ["big", "c"]
    assert scheduled(lab)
    # The controller dies. The next run waits for what is under way, and does the rest.
    with play.ours_running("drain", **drain(policy=STEADY, limits={"per_source": 1})) as process:
        heading(process, ".*", "queued")
        kill(process)
    told = done(play.ours("drain", **drain()))
    assert told["state"] == "drained"
    assert lab.domains("kvm1") == []
    assert sorted(lab.domains("kvm2") + lab.domains("kvm3")) == ["a", "b", "big", "c"]
    assert {**origins(lab, "kvm2"), **origins(lab, "kvm3")} == dict.fromkeys(("a", "b", "big", "c"), "kvm1")
    # Back from two hosts at once.
    assert len(done(play.ours("restore", host_restore_host="kvm1"), "host_restore")["moved"]) == 4
    assert sorted(lab.domains("kvm1")) == ["a", "b", "big", "c"]


@pytest.fixture
def impatient(lab: Lab) -> t.Iterator[None]:
    """The host that is drained notices within some seconds that another one is silent: its libvirtd, and TCP, on which
    the copy of a disk depends."""
    patience = lab.sh("kvm1", f"cat {RETRIES}")
    lab.sh("kvm1", f"cp /etc/libvirt/qemu.conf /tmp/qemu.conf; echo 5 >{RETRIES}")
    lab.sh("kvm1", "printf 'keepalive_interval = 1\\nkeepalive_count = 3\\n' >>/etc/libvirt/qemu.conf")
    restart_libvirtd(lab)
    yield
    lab.sh("kvm1", f"cp /tmp/qemu.conf /etc/libvirt/qemu.conf; echo {patience} >{RETRIES}")
    restart_libvirtd(lab)


def restart_libvirtd(lab: Lab) -> None:
    lab.fault("kvm1", "kill-libvirtd")
    lab.fault("kvm1", "start-libvirtd")


@pytest.mark.usefixtures("fourth", "impatient")
def test_a_host_dies_another_one_fills_and_a_vm_comes(lab: Lab, play: Playbook) -> None:
    bare(lab, "big", "huge", disk=True)
    # The two empty hosts are the planner's first choice.
    bare(lab, "other", host="kvm4")
    for host in ("kvm2", "kvm3"):
        lab.fault(host, "slow", "--rate", "8mbit")
    with play.ours_running("drain", **drain(limits={"per_source": 1})) as process:
        waits, full = heading(process, ".*", "queued")
        goes, dies = heading(process, "big" if waits == "huge" else "huge", "prepare", "disks")
        assert {full, dies} == {"kvm2", "kvm3"}
        lab.fault(full, "fill-disk", "--leave", "1M")
        bare(lab, "late")
        lab.fault(dies, "power-off")
        told = done(process.played())
    assert told["state"] == "drained"
    assert told["silent"] == [dies]
    # Both were on their way to another place first, and the one that came is not forgotten.
    assert {(each["vm"], each["to"]) for each in told["failures"]} == {(goes, dies), (waits, full)}
    moved = {each["vm"]: (each["to"], each["attempts"]) for each in told["moved"]}
    assert (moved[goes], moved[waits]) == (("kvm4", 2), ("kvm4", 2))
    assert (sorted(moved), moved["late"][1]) == (["big", "huge", "late"], 1)
    assert lab.domains("kvm1") == []
    # Every VM runs once, also when the host that died is back.
    lab.fault(dies, "heal")
    running = [name for host in lab.hosts for name in lab.sh(host, "virsh -q list --name --state-running").split()]
    assert sorted(running) == ["big", "huge", "late", "other"]
    assert lab.domains(dies) == []


def test_what_is_off_moves_as_well_and_what_had_moved_is_settled(lab: Lab, play: Playbook) -> None:
    for name in ("half", "off", "rest"):
        path = f"{IMAGES}/{name}.raw"
        lab.sh("kvm1", f"truncate -s 1M {path}; echo {name} | dd of={path} conv=notrunc status=none")
        define(lab, name, devices=file_disk(path, "raw", "vda"))
    play(task("vm_policy", name="rest", strategy="leave")).ok()
    # A run that died between a cold move and its end has left a half, which holds the VM up.
    play(task("vm_origin", name="half", state="present", reason="drained")).ok()
    play(task("vm_migrate", name="half", dest="kvm2")).ok()
    assert sorted(lab.domains("kvm1")) == ["half", "off", "rest"]
    # Hosts may be known by another name where VMs move; it is asked for of each.
    by_address = {"kvmops_migration_name": "{{ ansible_host }}"}
    told = done(play.ours("drain", **drain(stopped="move"), **by_address))
    assert (told["state"], [each["vm"] for each in told["moved"]]) == ("drained", ["off"])
    assert [each["vm"] for each in told["stays"]] == ["rest"]
    assert lab.domains("kvm1") == ["rest"]
    assert lab.files("kvm1") == [f"{IMAGES}/rest.raw"]
    assert origins(lab, "kvm2") | origins(lab, "kvm3") == {"half": "kvm1", "off": "kvm1"}
    for host in ("kvm2", "kvm3"):
        for name in lab.domains(host):
            assert lab.sh(host, f"head -n 1 {IMAGES}/{name}.raw") == name
            assert play(task("vm_info", name=name), host=host).ok()["result"]["vms"][0]["status"] == "SHUTOFF"
    # They belong where they are now, and nothing changes any more.
    for changes in (True, False):
        played = play.ours("restore", host_restore_host="kvm1", host_restore_bring_back=False)
        assert done(played, "host_restore")["moved"] == []
        assert any(each["result"].get("changed") for each in played.results) is changes
    assert scheduled(lab)
    assert origins(lab, "kvm2") | origins(lab, "kvm3") == {"half": "", "off": ""}


def test_the_host_that_is_drained_dies(lab: Lab, play: Playbook) -> None:
    bare(lab, "a", host="kvm2")
    bare(lab, "big", "huge", host="kvm2", disk=True)
    with play.ours_running("drain", **drain(host="kvm2", policy=SLOW, limits={"per_source": 1})) as process:
        heading(process, "big|huge", "prepare", "disks")
        lab.fault("kvm2", "power-off")
        played = process.played()
    assert "kvm2 does not answer" in refused(played)
    told = report(played)
    assert (told["state"], told["silent"]) == ("failed", ["kvm2"])
    assert {"big", "huge"} <= {each["vm"] for each in told["left"]}
    moved = [each["vm"] for each in told["moved"]]
    # Nothing but what has arrived is anywhere else; the rest is where it was, when the host is back.
    wait_for(lambda: sorted(lab.domains("kvm1") + lab.domains("kvm3")) == moved, 90)
    lab.fault("kvm2", "heal")
    assert sorted(lab.domains("kvm2") + moved) == ["a", "big", "huge"]
    assert not scheduled(lab, "kvm2")
    told = done(play.ours("drain", **drain(host="kvm2")))
    assert sorted(each["vm"] for each in told["stays"]) == lab.domains("kvm2")


def test_a_restore_may_be_killed(lab: Lab, play: Playbook) -> None:
    bare(lab, "a", host="kvm2")
    bare(lab, "big", "huge", host="kvm2", disk=True)
    done(play.ours("drain", **drain(host="kvm2")))
    restore = {"host_restore_host": "kvm2", "host_restore_policy": SLOW, "host_restore_limits": {"per_source": 1}}
    with play.ours_running("restore", **restore) as process:
        heading(process, "big|huge", "disks")
        for host in ("kvm1", "kvm3"):
            lab.sh(host, "pkill -9 -f '^/opt/kvmops/venv/bin/python'", check=False)
        kill(process)
    # What is under way arrives, and is then like the others.
    assert done(play.ours("restore", host_restore_host="kvm2"), "host_restore")["left"] == []
    assert lab.domains("kvm1") + lab.domains("kvm3") == []
    told = play(task("vm_info", name=["a", "big", "huge"], gather=["status"]), host="kvm2").ok()["result"]["vms"]
    assert [(vm["status"], vm["journal"]) for vm in told] == [("ACTIVE", None)] * 3
    assert origins(lab, "kvm2") == dict.fromkeys(("a", "big", "huge"), "")
    assert scheduled(lab, "kvm2")
