# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moving real VMs while they are off, and thinking better of it, or not, on either host."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

import pytest

from tests.integration.harness import Lab, Playbook, Result, Task, task
from tests.lab.kvmlab.lab import SHARED

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
GIB = 1 << 30


def small(launch: Launch, image: str, *, start: bool, **options: t.Any) -> Result:
    """A VM without a system: QEMU runs, and there is nothing to boot."""
    flavor = {"vcpus": 1, "memory": 64, "ephemeral": [1]}
    (vm,) = launch("a", image=image, start=start, flavor=flavor, **options)["vms"]
    return t.cast("Result", vm)


def move(dest: str = "kvm2", **options: t.Any) -> Task:
    return task("vm_migrate", **{"name": "a", "dest": dest, "method": "cold", "force": True, **options})


def second(state: str, **options: t.Any) -> Task:
    return task("vm_migrate", **{"name": "a", "state": state, "force": True, **options})


def definition(lab: Lab, host: str) -> list[str]:
    """The definition without what we remember. libvirt writes the controllers in another order the second time."""
    root = ET.fromstring(lab.sh(host, "virsh dumpxml --inactive a"))
    metadata, devices = root.find("metadata"), root.find("devices")
    assert metadata is not None
    assert devices is not None
    root.remove(metadata)
    root.remove(devices)
    parts = [ET.tostring(root), *sorted(ET.tostring(device) for device in devices)]
    return [line.strip() for part in parts for line in part.decode().splitlines() if line.strip()]


def remembered(lab: Lab, host: str) -> str:
    """What the metadata say, but for where the base is told from."""
    root = ET.fromstring(lab.sh(host, "virsh dumpxml --inactive a")).find("metadata")
    assert root is not None
    return "\n".join(line.strip() for line in ET.tostring(root, encoding="unicode").splitlines())


def reads(lab: Lab, host: str, path: str, pattern: int, where: str) -> None:
    """See what is in a disk: *where* is an offset and a length."""
    said = lab.sh(host, f"qemu-io -r -U -f qcow2 -c 'read -P {pattern} {where}' {path}")
    assert "Pattern verification failed" not in said, (path, where, said)
    assert "read " in said, said


def writes(lab: Lab, host: str, path: str, pattern: int, where: str) -> None:
    lab.sh(host, f"qemu-io -f qcow2 -c 'write -P {pattern} {where}' {path}")


def runs_once(lab: Lab, host: str) -> None:
    """It runs there, and nowhere else."""
    other = {"kvm1": "kvm2", "kvm2": "kvm1"}[host]
    assert lab.state(host, "a").startswith("running")
    assert "a" not in lab.domains(other) or lab.state(other, "a").startswith("shut off")


def own_files(lab: Lab, host: str) -> list[str]:
    """Files of VMs, but for consoles and images that a test made."""
    return [
        path
        for path in lab.files(host)
        if path.endswith((".qcow2", ".iso", ".moving")) and path.count("/") > IMAGES.count("/") + 1
    ]


def pools(lab: Lab) -> str:
    """Storage pools that somebody has forgotten to take away."""
    return "".join(lab.sh(host, "virsh -q pool-list --all --name | grep kvmops || true") for host in lab.hosts)


def test_a_vm_that_is_off_moves_with_its_disks_and_comes_back_or_stays(
    lab: Lab, play: Playbook, launch: Launch, image: str
) -> None:
    vm = small(launch, image, start=False, autostart=True, cloud_init={})
    root, extra = f"{IMAGES}/{vm['uuid']}/root.qcow2", f"{IMAGES}/{vm['uuid']}/ephemeral0.qcow2"
    writes(lab, "kvm1", root, 5, "2M 64k")
    writes(lab, "kvm1", extra, 6, "0 64k")
    before, was, files = definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")
    told = play.quartet("vm_migrate", name="a", dest="kvm2")
    (done,) = told["vms"]
    assert done["steps"] == ["carry", "define", "hand_over", "finish"]
    assert (done["host"], done["status"], done["power_state"]) == ("kvm2", "VERIFY_RESIZE", "SHUTDOWN")
    assert done["figures"]["method"] == "cold"
    assert done["figures"]["disks"]["vda"] == "copied"
    for host in ("kvm1", "kvm2"):
        assert definition(lab, host) == before
        reads(lab, host, root, 5, "2M 64k")
        reads(lab, host, root, 1, "0 1M")
        reads(lab, host, extra, 6, "0 64k")
        errors = play.errors(
            [
                task("vm_power", name="a", state="running"),
                task("vm", name="a", state="absent"),
                move("kvm1" if host == "kvm2" else "qemu+tls://kvm2/system?no_verify=0"),
            ],
            host=host,
        )
        assert [each["code"] for each in errors] == ["refused"] * 3, errors
        told = play(task("vm_info", name="a"), host=host).ok()["result"]["vms"][0]
        assert told["status"] == "VERIFY_RESIZE"
        other = "kvm2" if host == "kvm1" else "kvm1"
        assert told["resize"]["side"] == ("origin" if host == "kvm1" else "moved")
        assert (told["resize"]["other_host"], told["resize"]["other_uri"]) == (other, f"qemu+tls://{other}/system")
        assert told["resize"]["revert_loses"][0].startswith("what was written to")
    assert "disable" in lab.sh("kvm1", "virsh dominfo a | grep Autostart")
    assert "enable" in lab.sh("kvm2", "virsh dominfo a | grep Autostart")
    writes(lab, "kvm2", root, 7, "2M 64k")
    # Back, said where it came from.
    play.quartet("vm_migrate", name="a", state="reverted")
    assert lab.domains("kvm2") == []
    assert own_files(lab, "kvm2") == []
    assert (definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")) == (before, was, files)
    assert "enable" in lab.sh("kvm1", "virsh dominfo a | grep Autostart")
    reads(lab, "kvm1", root, 5, "2M 64k")
    # Back, said where it is.
    play(move()).ok()
    (done,) = play(second("reverted"), host="kvm2").ok()["result"]["vms"]
    assert (done["host"], done["status"]) == ("kvm1", "SHUTOFF")
    assert lab.domains("kvm2") == []
    assert own_files(lab, "kvm2") == []
    assert (definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")) == (before, was, files)
    # It stays, said where it is; and goes back for good, said where it came from.
    play(move()).ok()
    writes(lab, "kvm2", root, 7, "2M 64k")
    assert not play(second("confirmed", older_than=3600), host="kvm2").ok()["result"]["changed"]
    play.quartet("vm_migrate", host="kvm2", name="a", state="confirmed")
    assert lab.domains("kvm1") == []
    assert own_files(lab, "kvm1") == []
    assert own_files(lab, "kvm2") == files
    assert play.errors([second("confirmed")])[0]["code"] == "not_found"
    assert not play(second("confirmed", dest="kvm2")).ok()["result"]["changed"]
    play(move("kvm1"), host="kvm2").ok()
    (done,) = play(second("confirmed"), host="kvm2").ok()["result"]["vms"]
    assert (done["host"], done["status"]) == ("kvm1", "SHUTOFF")
    assert (lab.domains("kvm1"), lab.domains("kvm2")) == (["a"], [])
    assert (own_files(lab, "kvm1"), own_files(lab, "kvm2")) == (files, [])
    reads(lab, "kvm1", root, 7, "2M 64k")
    play(task("vm", name="a", state="absent")).ok()
    assert lab.files("kvm1") == [image]
    assert pools(lab) == ""


def test_a_running_guest_is_stopped_moved_and_started(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    guest.execute("echo before > /root/note; sync")
    told = play.quartet("vm_migrate", name="a", dest="kvm2", method="cold")
    (done,) = told["vms"]
    assert done["steps"] == ["stop", "carry", "define", "hand_over", "start", "finish"]
    assert done["figures"]["shutdown"] == "guest"
    assert (done["host"], done["status"], done["power_state"]) == ("kvm2", "VERIFY_RESIZE", "RUNNING")
    runs_once(lab, "kvm2")
    there = lab.booted("kvm2", "a")
    assert there.execute("cat /root/note")[1].split() == ["before"]
    there.execute("echo after > /root/note; sync")
    (done,) = play.quartet("vm_migrate", name="a", state="reverted")["vms"]
    assert (done["host"], done["status"]) == ("kvm1", "ACTIVE")
    runs_once(lab, "kvm1")
    assert lab.domains("kvm2") == []
    guest.wait_up(boots=2)
    assert guest.execute("cat /root/note")[1].split() == ["before"]
    play(task("vm", name="a", state="absent", force=True)).ok()
    assert pools(lab) == ""


def test_on_shared_storage_nothing_but_the_definition_moves(
    lab: Lab, play: Playbook, launch: Launch, image: str
) -> None:
    vm = small(launch, image, start=True, storage=SHARED)
    root = f"{SHARED}/{vm['uuid']}/root.qcow2"
    lab.sh("kvm1", "virsh destroy a")
    files = lab.files("kvm1", SHARED)
    told = play.quartet("vm_migrate", name="a", dest="kvm2", method="offline")
    assert told["vms"][0]["steps"] == ["define", "hand_over", "finish"]
    assert told["vms"][0]["figures"]["method"] == "offline"
    writes(lab, "kvm2", root, 7, "2M 64k")
    play(second("reverted")).ok()
    assert (lab.domains("kvm1"), lab.domains("kvm2")) == (["a"], [])
    assert lab.files("kvm1", SHARED) == files
    reads(lab, "kvm1", root, 7, "2M 64k")
    # One that runs; larger on the way, with a file over its disk, since both hosts see the same.
    lab.sh("kvm1", "virsh start a")
    size = {"vcpus": 2, "root": 1}
    told = play.quartet("vm_resize", name="a", dest="kvm2", force=True, flavor=size)
    assert told["vms"][0]["steps"] == ["stop", "shape", "define", "hand_over", "start", "finish"]
    runs_once(lab, "kvm2")
    play(task("vm_resize", name="a", state="reverted", force=True), host="kvm2").ok()
    runs_once(lab, "kvm1")
    assert lab.domains("kvm2") == []
    assert lab.files("kvm1", SHARED) == files
    play(task("vm_resize", name="a", dest="kvm2", force=True, flavor=size)).ok()
    play.quartet("vm_resize", host="kvm2", state="confirmed")
    runs_once(lab, "kvm2")
    assert lab.domains("kvm1") == []
    assert lab.files("kvm2", SHARED) == files
    assert "virtual size: 1 GiB" in lab.sh("kvm2", f"qemu-img info -U -f qcow2 {root}")
    reads(lab, "kvm2", root, 7, "2M 64k")
    play(task("vm", name="a", state="absent", force=True), host="kvm2").ok()
    assert pools(lab) == ""


def test_what_is_carried_becomes_larger_there(lab: Lab, play: Playbook, launch: Launch, image: str) -> None:
    vm = small(launch, image, start=False)
    root = f"{IMAGES}/{vm['uuid']}/root.qcow2"
    before, was, files = definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")
    size = {"vcpus": 2, "memory": 80, "root": 1, "ephemeral": [2, 1], "swap": 8}
    (done,) = play.quartet("vm_resize", name="a", dest="kvm2", flavor=size)["vms"]
    assert done["steps"] == ["carry", "shape", "define", "hand_over", "prove", "finish"]
    assert (done["host"], done["status"]) == ("kvm2", "VERIFY_RESIZE")
    assert len(own_files(lab, "kvm2")) - len([f for f in own_files(lab, "kvm2") if f.endswith(".moving")]) == 4
    play(task("vm_resize", name="a", state="reverted")).ok()
    assert lab.domains("kvm2") == []
    assert own_files(lab, "kvm2") == []
    assert (definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")) == (before, was, files)
    play(task("vm_resize", name="a", dest="kvm2", flavor=size)).ok()
    assert play.errors([task("vm_resize", name="a", dest="kvm2", flavor={"vcpus": 3})])[0]["code"] == "refused"
    play.quartet("vm_resize", host="kvm2", name="a", state="confirmed")
    assert own_files(lab, "kvm1") == []
    assert len(own_files(lab, "kvm2")) == 4
    assert "virtual size: 1 GiB" in lab.sh("kvm2", f"qemu-img info -f qcow2 {root}")
    reads(lab, "kvm2", root, 1, "0 1M")
    told = play(task("vm_info", name="a"), host="kvm2").ok()["result"]["vms"][0]
    assert {key: told["flavor"][key] for key in size} == size
    assert (told["resize"], told["problems"]) == (None, [])
    play(task("vm", name="a", state="absent"), host="kvm2").ok()
    assert lab.files("kvm2") == []
    assert pools(lab) == ""


# ---- killed


@pytest.mark.parametrize("step", ["carry", "hand_over", "start", "finish"])
def test_a_move_that_was_killed_is_finished_by_the_same_task_or_reverted(
    lab: Lab, play: Playbook, launch: Launch, image: str, step: str
) -> None:
    small(launch, image, start=True)
    before, was, files = definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")
    play.killed_at(step, move())
    reverted = play([second("reverted")] * 2).results
    assert [each["result"]["changed"] for each in reverted] == [True, False]
    runs_once(lab, "kvm1")
    assert lab.domains("kvm2") == []
    assert own_files(lab, "kvm2") == []
    assert (definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")) == (before, was, files)
    assert pools(lab) == ""
    play.killed_at(step, move())
    done, again = (each["result"] for each in play([move()] * 2).results)
    assert (done["changed"], again["changed"]) == (True, False)
    runs_once(lab, "kvm2")
    play(second("confirmed"), host="kvm2").ok()
    runs_once(lab, "kvm2")
    assert (lab.domains("kvm1"), own_files(lab, "kvm1")) == ([], [])
    assert own_files(lab, "kvm2") == files
    assert pools(lab) == ""


@pytest.mark.parametrize(
    ("said_on", "reverting", "confirming"),
    [("kvm1", ("bring_back", "end"), ("settle", "end")), ("kvm2", ("stop", "discard"), ("release", "remove"))],
)
def test_a_second_thought_that_was_killed_is_finished_by_the_same_task(
    lab: Lab,
    play: Playbook,
    launch: Launch,
    image: str,
    said_on: str,
    reverting: tuple[str, ...],
    confirming: tuple[str, ...],
) -> None:
    small(launch, image, start=True)
    files = own_files(lab, "kvm1")
    for step in reverting:
        play(move()).ok()
        play.killed_at(step, second("reverted"), host=said_on)
        dest = {} if said_on == "kvm1" else {"dest": "kvm1"}
        done = play([second("reverted", **dest)] * 2, host=said_on).results
        assert [each["outcome"] for each in done] == ["ok", "ok"], (step, done)
        assert not done[1]["result"]["changed"], step
        runs_once(lab, "kvm1")
        assert (lab.domains("kvm2"), own_files(lab, "kvm2")) == ([], []), step
        assert own_files(lab, "kvm1") == files, step
    here, there = "kvm1", "kvm2"
    for step in confirming:
        play(move(there), host=here).ok()
        on = here if said_on == "kvm1" else there
        play.killed_at(step, second("confirmed"), host=on)
        dest = {"dest": there} if on == here else {}
        done = play([second("confirmed", **dest)] * 2, host=on).results
        assert [each["outcome"] for each in done] == ["ok", "ok"], (step, done)
        assert not done[1]["result"]["changed"], step
        runs_once(lab, there)
        assert (lab.domains(here), own_files(lab, here)) == ([], []), step
        assert own_files(lab, there) == files, step
        here, there = there, here


# ---- what goes wrong


def test_a_vm_that_does_not_run_there_goes_on_here(lab: Lab, play: Playbook, launch: Launch, image: str) -> None:
    small(launch, image, start=True)
    before, was, files = definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")
    # Somebody removes it there, in the middle of it.
    gone = "virsh -c qemu+tls://kvm2/system undefine a"
    error = play.disturbed_at("start", gone, move()).error()["result"]
    assert "was started here again" in error["msg"]
    runs_once(lab, "kvm1")
    assert (lab.domains("kvm2"), own_files(lab, "kvm2")) == ([], [])
    assert (definition(lab, "kvm1"), remembered(lab, "kvm1"), own_files(lab, "kvm1")) == (before, was, files)
    # The way back is not where it was: it stays where it is.
    play(move()).ok()
    (root,) = [path for path in files if path.endswith("root.qcow2")]
    lab.sh("kvm1", f"mv {root} {root}.away")
    assert play.errors([second("reverted")], host="kvm2")[0]["code"] == "not_found"
    runs_once(lab, "kvm2")
    lab.sh("kvm1", f"mv {root}.away {root}")
    error = play.disturbed_at("bring_back", f"mv {root} {root}.away", second("reverted")).error()["result"]
    assert "was started on kvm2 again" in error["msg"]
    runs_once(lab, "kvm2")
    lab.sh("kvm1", f"mv {root}.away {root}")
    play(second("reverted")).ok()
    runs_once(lab, "kvm1")
    # What is there already is not touched.
    lab.sh("kvm1", "virsh dumpxml a > /tmp/a.xml; virsh -c qemu+tls://kvm2/system define /tmp/a.xml")
    assert play.errors([move()])[0]["code"] == "refused"
    assert lab.domains("kvm2") == ["a"]
    runs_once(lab, "kvm1")
