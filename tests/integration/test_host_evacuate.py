# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that die, one that only seems to, and one that comes back."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import REPO, Lab, Playbook, define, file_disk, order, task

PROGRAM = REPO / "roles/host_prepare/files/kvmops-records"
SHARED = "/srv/kvmops/shared"
RECORDS = f"{SHARED}/records"
EVIDENCE = "the test cut its power"

INSTALL = f"""
set -e
mkdir -p /etc/kvmops /etc/libvirt/hooks/qemu.d /etc/libvirt/hooks/daemon.d {RECORDS}
cat > /usr/local/sbin/kvmops-records
chmod 755 /usr/local/sbin/kvmops-records
for driver in qemu daemon; do ln -sf /usr/local/sbin/kvmops-records /etc/libvirt/hooks/$driver.d/kvmops-records; done
echo '{{"directory": "{RECORDS}", "host": "HOST"}}' > /etc/kvmops/records.json
kvmops-records init
"""
REMOVE = f"""
rm -rf /etc/kvmops/records.json /etc/libvirt/hooks/qemu.d /etc/libvirt/hooks/daemon.d /usr/local/sbin/kvmops-records
rm -rf /var/lib/kvmops/removed /run/kvmops/*records* /run/kvmops/.records* {RECORDS} {SHARED}/*.qcow2
"""
# Two hosts meet here.
MEET = f"""
touch {SHARED}/at.$(hostname)
timeout 100 sh -c 'until [ $(ls {SHARED}/at.* | wc -l) = 2 ]; do sleep 0.1; done'
"""


@pytest.fixture(scope="module")
def recording(lab: Lab) -> t.Iterator[Lab]:
    """Hosts that keep records."""
    for host in lab.hosts:
        script = INSTALL.replace("HOST", host)
        program = f"#!/usr/bin/python3\n{PROGRAM.read_text(encoding='utf-8')}"
        lab.kvm.run_in(host, "sh", "-c", script, stdin=program)
        restart(lab, host)
    yield lab
    for host in lab.hosts:
        lab.sh(host, REMOVE)
        restart(lab, host)


@pytest.fixture
def recorded(recording: Lab) -> t.Iterator[Lab]:
    """The same, with nothing in the records of what other tests left there."""
    recording.sh("kvm1", f"rm -rf {RECORDS}/*/*.json {RECORDS}/kvm3 {RECORDS}/kvm9 {SHARED}/*.qcow2 {SHARED}/at.*")
    yield recording
    recording.fault("kvm2", "heal")


def restart(lab: Lab, host: str) -> None:
    """libvirt looks for hooks when it starts."""
    lab.fault(host, "stop-libvirtd")
    lab.fault(host, "start-libvirtd")


def make(lab: Lab, name: str, *, directory: str = SHARED, start: bool = True) -> None:
    """A VM with a disk on kvm2, made by other tools."""
    path = f"{directory}/{name}.qcow2"
    lab.sh("kvm2", f"qemu-img create -q -f qcow2 {path} 1M")
    define(lab, name, host="kvm2", devices=file_disk(path, "qcow2", "vda"))
    lab.sh("kvm2", f"virsh -q start {name} && virsh -q autostart {name}" if start else "true")


def files(lab: Lab) -> list[str]:
    """Records and tombstones, without the UUIDs."""
    found = lab.sh("kvm1", f"cd {RECORDS}; find . -name '*.json' | sed 's/[0-9a-f-]\\{{36\\}}/UUID/' | sort")
    return found.split()


def test_a_dead_host_is_evacuated_comes_back_clean_and_gets_its_vms_again(
    recorded: Lab, play: Playbook, tmp_path: Path
) -> None:
    lab = recorded
    make(lab, "web1")
    make(lab, "db1", start=False)
    make(lab, "local1", directory="/var/lib/libvirt/images")
    lab.sh("kvm2", "kvmops-records sync")

    answers = play.ours("evacuate", host_evacuate_host="kvm2", host_evacuate_confirmed="kvm2")
    assert "kvm2 is not dead: it answers kvm1 by ping" in str(answers.error()["result"]["msg"])

    lab.fault("kvm2", "power-off")
    told = play(task("vm_records_info", host="kvm2")).ok()["result"]["vms"]
    assert {vm["name"]: (vm["state"], [each["code"] for each in vm["findings"]]) for vm in told} == {
        "db1": ("off", []),
        "local1": ("running", ["disk_missing"]),
        "web1": ("running", []),
    }
    # One that is killed before it has defined the VM.
    play.killed_at("define", task("vm_evacuate", host="kvm2", name=["web1"], evidence=EVIDENCE))
    assert files(lab).count("./kvm2/UUID.0.evacuated.json") == 1

    fence = tmp_path / "fence.yml"
    words: dict[str, t.Any] = {"host_evacuate_host": "kvm2", "host_evacuate_probe_timeout": 1}
    fence.write_text("- ansible.builtin.fail: {msg: the power supply does not answer}\n", encoding="utf-8")
    words["host_evacuate_partial"] = True
    refused = play.ours("evacuate", **words, host_evacuate_fence_tasks=str(fence))
    assert "could not be fenced" in refused.error()["result"]["msg"]
    assert "the power supply does not answer" in refused.error()["result"]["msg"]
    assert lab.sh("kvm1", "virsh -q list --name --state-running") == ""

    trace = tmp_path / "trace"
    fence.write_text("- ansible.builtin.command: echo {{ host_evacuate_host }} is off\n", encoding="utf-8")
    words.update(host_evacuate_fence_tasks=str(fence), host_evacuate_trace=str(trace))
    done = play.ours("evacuate", **words)
    assert done.returncode == 0, done.output
    assert lab.sh("kvm1", "virsh -q list --name --state-running") == "web1"
    assert sorted(lab.domains("kvm1")) == ["db1", "web1"]
    events = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert sorted(each["vm"] for each in events if each["event"] == "evacuated") == ["db1", "web1"]
    assert [each["vm"] for each in events if each.get("code") == "disk_missing"] == ["local1"]
    assert "fence" in [each["event"] for each in events]
    again = play(task("vm_evacuate", host="kvm2", name=["web1", "db1"], evidence=EVIDENCE)).ok()["result"]
    assert not again["changed"]

    # It comes back: what was evacuated does not start, what was not does.
    lab.fault("kvm2", "boot")
    assert lab.domains("kvm2") == ["local1"]
    kept = lab.sh("kvm2", "cat /var/lib/kvmops/removed/*/web1.xml")
    lab.kvm.run_in("kvm2", "sh", "-c", "cat > /tmp/stale.xml", stdin=kept)
    stale = lab.sh("kvm2", "virsh define /tmp/stale.xml; virsh start web1 2>&1; virsh undefine web1", check=False)
    assert "VM web1 was evacuated from kvm2 to kvm1" in stale
    play(task("vm_migrate", name=["web1"], dest="kvm2")).ok()
    assert lab.state("kvm2", "web1").startswith("running")
    lab.sh("kvm2", "virsh -q destroy web1 && virsh -q start web1")
    assert lab.sh("kvm2", "virsh dumpxml web1 | grep -c '<kvmops:origin'") == "1"


def test_a_host_that_is_only_cut_off_keeps_its_vms(recorded: Lab, play: Playbook) -> None:
    lab = recorded
    make(lab, "web1")
    before = files(lab)
    lab.fault("kvm2", "cut")
    try:
        probe = play(task("host_probe", address=[lab.hosts["kvm2"]["ansible_host"]], timeout=1)).ok()["result"]
        assert not probe["answers"]
        error = play(task("vm_evacuate", host="kvm2", evidence="a lie", lock_timeout=1)).error()["result"]
        assert error["vms"][0]["code"] == "in_use"
        assert "kvm2 is alive" in error["msg"]
        assert (lab.domains("kvm1"), files(lab)) == ([], before)
        assert lab.state("kvm2", "web1").startswith("running")
    finally:
        lab.fault("kvm2", "mend")


def test_disks_that_died_with_their_host_are_made_anew_when_told(recorded: Lab, play: Playbook, tmp_path: Path) -> None:
    lab = recorded
    image = f"{SHARED}/image.qcow2"
    lab.sh("kvm2", f"qemu-img create -q -f qcow2 {image} 1M")
    flavor = {"vcpus": 1, "memory": 32, "ephemeral": [1], "swap": 16}
    wanted = order(lab, "web1", image=image, flavor=flavor, autostart=True, cloud_init={"user_data": "#cloud-config"})
    play(task("vm", **wanted), host="kvm2").ok()
    show = "virsh dumpxml --inactive web1 | grep -E '<uuid>|<mac |<source '"
    shown, made = lab.sh("kvm2", show), lab.files("kvm2")
    assert len(shown.splitlines()) == 7
    lab.fault("kvm2", "power-off")

    lab.sh("kvm1", f"mv {image} {image}.away")
    evacuate = {"host": "kvm2", "name": ["web1"], "evidence": EVIDENCE}
    anew = task("vm_evacuate", **evacuate, lose=["disks"])
    untold, imageless = (each["vms"][0]["details"] for each in play.errors([task("vm_evacuate", **evacuate), anew]))
    assert [each["code"] for each in untold["findings"]] == ["disk_missing"] * 3
    assert [each["role"] for each in untold["lost"]] == ["root", "ephemeral", "swap", "config"]
    assert [each["code"] for each in imageless["findings"]] == ["image_missing"]
    lab.sh("kvm1", f"mv {image}.away {image}")

    # It cannot be started: nothing is left. And it is killed before it has disks, and before it is started.
    root = untold["lost"][0]["path"]
    play.disturbed_at("start", f"rm {root}", anew).error()
    assert (lab.domains("kvm1"), lab.files("kvm1"), files(lab)) == ([], [], ["./kvm2/UUID.json"])
    for step in ("make_disks", "start"):
        play.killed_at(step, anew)
    trace = tmp_path / "trace"
    words = {"host_evacuate_host": "kvm2", "host_evacuate_confirmed": "kvm2", "host_evacuate_probe_timeout": "1"}
    said = {"host_evacuate_plan_only": "false", "host_evacuate_lose": ["disks"], "host_evacuate_trace": str(trace)}
    done = play.ours("evacuate", **words, **said)
    assert done.returncode == 0, done.output
    assert lab.state("kvm1", "web1").startswith("running"), done.output
    assert (lab.sh("kvm1", show), lab.files("kvm1")) == (shown, made), done.output
    assert "without what was lost: disks" in trace.read_text(encoding="utf-8")
    again = play(anew).ok()["result"]["vms"][0]
    assert (again["changed"], len(again["figures"]["lost"])) == (False, 4)

    lab.fault("kvm2", "boot")
    assert (lab.domains("kvm2"), lab.files("kvm2")) == ([], made)


def test_records_that_are_out_of_date_bring_nothing_up_and_one_of_two_hosts_wins(recorded: Lab, play: Playbook) -> None:
    lab = recorded
    for name in ("moved", "gone", "taken", "there", "both"):
        make(lab, name, start=False)
    # Of a host that nobody knows, with which this VM died.
    script = """
        kvmops-records sync
        mkdir -p RECORDS/kvm9
        record=$(grep -l '"name": "both"' RECORDS/kvm2/*.json)
        sed 's/"host": "kvm2"/"host": "kvm9"/' $record > RECORDS/kvm9/$(basename $record)
        virsh -q undefine both
        rm $record
    """.replace("RECORDS", RECORDS)
    lab.sh("kvm2", script)
    evacuate = task("vm_evacuate", host="kvm9", evidence=EVIDENCE)
    with play.running([play.disturbed("bury", MEET, evacuate)]) as running:
        other = play.disturbed_at("bury", MEET, evacuate, host="kvm2")
        played = {"kvm1": running.played(), "kvm2": other}
    winner, loser = sorted(played, key=lambda host: played[host].returncode)
    assert played[winner].ok()["result"]["changed"]
    lost = played[loser].error()["result"]["vms"][0]
    assert lost["code"] == "refused"
    assert f"is being evacuated to {winner}" in lost["msg"]
    assert ("both" in lab.domains(winner), "both" in lab.domains(loser)) == (True, False)
    # Moved to a host that nobody asks, in truth; here by another tool; and another VM has the name.
    script = """
        virsh -q undefine gone
        rm /srv/kvmops/shared/gone.qcow2
        mkdir -p RECORDS/kvm3
        record=$(grep -l '"name": "moved"' RECORDS/kvm2/*.json)
        sed 's/"state": "off"/"state": "running"/' $record > RECORDS/kvm3/$(basename $record)
        virsh -q dumpxml there > /tmp/there.xml
    """.replace("RECORDS", RECORDS)
    lab.sh("kvm2", script)
    lab.kvm.run_in("kvm1", "sh", "-c", "cat > /tmp/there.xml", stdin=lab.sh("kvm2", "cat /tmp/there.xml"))
    lab.sh("kvm1", "virsh -q define /tmp/there.xml")
    define(lab, "taken")
    before = files(lab)
    refused = play(task("vm_evacuate", host="kvm2", name=["moved", "gone", "taken", "there"], evidence=EVIDENCE))
    told = {vm["name"]: [each["code"] for each in vm["details"]["findings"]] for vm in refused.error()["result"]["vms"]}
    assert told == {
        "moved": ["elsewhere"],
        "gone": ["disk_missing"],
        "taken": ["name_taken"],
        "there": ["uuid_taken"],
    }
    assert files(lab) == before
