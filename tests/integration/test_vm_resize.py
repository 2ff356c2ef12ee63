# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Giving real VMs other sizes: confirmed, reverted, while they run, and killed at every step."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

import pytest

from tests.integration.harness import Lab, Playbook, Result, Task, define, file_disk, task

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
MIB, GIB = 1 << 20, 1 << 30


def small(launch: Launch, image: str, *, start: bool, **options: t.Any) -> Result:
    """A VM without a system: QEMU runs, and there is nothing to boot."""
    flavor = {"vcpus": 1, "memory": 64, "root": 1, **options}
    (vm,) = launch("a", image=image, start=start, flavor=flavor)["vms"]
    return t.cast("Result", vm)


def resize(**options: t.Any) -> Task:
    return task("vm_resize", **{"name": "a", "force": True, **options})


def definition(lab: Lab, name: str = "a", host: str = "kvm1") -> ET.Element:
    return ET.fromstring(lab.sh(host, f"virsh dumpxml --inactive {name}"))


def bare(lab: Lab, name: str = "a") -> list[str]:
    """The definition without what we remember. libvirt writes the controllers in another order the second time."""
    root = definition(lab, name)
    metadata, devices = root.find("metadata"), root.find("devices")
    if metadata is not None:
        root.remove(metadata)
    assert devices is not None
    root.remove(devices)
    parts = [ET.tostring(root), *sorted(ET.tostring(device) for device in devices)]
    return [line.strip() for part in parts for line in part.decode().splitlines() if line.strip()]


def remembered(lab: Lab, name: str = "a") -> Result:
    """Flavor and own files in the metadata."""
    kvmops = "{urn:kvmops:lifecycle:instance}"
    root = definition(lab, name).find(f"metadata/{kvmops}instance")
    assert root is not None
    flavor = root.find(f"{kvmops}flavor")
    assert flavor is not None
    return {
        "flavor": {**flavor.attrib, "ephemeral": [node.get("size") for node in flavor]},
        "disks": sorted((node.get("role"), node.get("target"), node.text) for node in root.iterfind(f"{kvmops}disk")),
    }


def disks(lab: Lab, name: str = "a") -> dict[str, str]:
    """The files of a VM's disks, by target."""
    found = {}
    for node in definition(lab, name).iterfind("devices/disk"):
        target, source = node.find("target"), node.find("source")
        assert target is not None
        assert source is not None
        found[target.get("dev", "")] = source.get("file", "")
    return found


def own_files(lab: Lab, vm: Result) -> list[str]:
    """The names of the files in the VM's own directory, but for its console."""
    found = lab.sh("kvm1", f"ls {IMAGES}/{vm['uuid']}").split()
    return sorted(name for name in found if not name.startswith("console.log"))


def size(lab: Lab, path: str) -> int:
    """The virtual size of a qcow2 file."""
    told = lab.sh("kvm1", f"qemu-img info -U -f qcow2 {path}")
    return int(told.partition("(")[2].partition(" bytes")[0])


def hashed(lab: Lab, *paths: str) -> str:
    return lab.sh("kvm1", f"sha256sum {' '.join(paths)}")


def reads(lab: Lab, path: str, pattern: int, where: str) -> None:
    """See what is in a disk: *where* is an offset and a length."""
    said = lab.sh("kvm1", f"qemu-io -r -U -f qcow2 -c 'read -P {pattern} {where}' {path}")
    assert "Pattern verification failed" not in said, (path, where, said)
    assert "read " in said, said


def writes(lab: Lab, path: str, pattern: int, where: str) -> None:
    lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P {pattern} {where}' {path}")


def status(play: Playbook) -> Result:
    return t.cast("Result", play(task("vm_info", name="a")).ok()["result"]["vms"][0])


# ---- what it is for


def test_a_running_guest_gets_a_larger_size_and_keeps_it_or_not(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", flavor={"vcpus": 1, "memory": 96})
    guest = lab.booted("kvm1", "a")
    guest.execute("echo before > /root/note; sync")
    root = next(iter(disks(lab).values()))
    before, was, small_size = bare(lab), remembered(lab), size(lab, root)
    flavor = {"vcpus": 2, "memory": 128, "root": 1}
    told = play.quartet("vm_resize", name="a", flavor=flavor, wait_for="agent", wait_timeout=300)
    (done,) = told["vms"]
    assert done["steps"] == ["stop", "stage", "swap", "start"]
    assert (done["status"], done["power_state"]) == ("VERIFY_RESIZE", "RUNNING")
    assert done["figures"]["shutdown"] == "guest"
    guest.wait_up(boots=2)
    assert guest.execute("nproc; cat /root/note; cat /sys/class/block/vda/size")[1].split() == [
        "2",
        "before",
        str(GIB // 512),
    ]
    vm = status(play)
    assert vm["status"] == "VERIFY_RESIZE"
    assert vm["resize"]["from"]["vcpus"] == 1
    assert vm["resize"]["to"] == {"name": "", **flavor, "ephemeral": [], "swap": 0}
    assert vm["resize"]["revert_loses"] == ["what was written to vda since"]
    assert vm["problems"] == []
    errors = play.errors(
        [
            resize(flavor={"vcpus": 3}),
            task("vm_power", name="a", state="stopped"),
            task("vm_rebuild", name="a", image=lab.vars["lab_guest_image"]),
        ]
    )
    assert [each["code"] for each in errors] == ["refused"] * 3
    assert all("vm_resize with state: confirmed" in each["msg"] for each in errors)
    # Not. What the guest wrote to its disk is gone, and nothing else.
    guest.execute("echo after > /root/note; sync")
    told = play.quartet("vm_resize", name="a", state="reverted", wait_for="agent", wait_timeout=300)
    assert told["vms"][0]["steps"] == ["stop", "swap_back", "start", "remove"]
    assert told["vms"][0]["status"] == "ACTIVE"
    guest.wait_up(boots=3)
    assert guest.execute("nproc; cat /root/note")[1].split() == ["1", "before"]
    assert (bare(lab), remembered(lab), size(lab, root)) == (before, was, small_size)
    # Again, and it stays; the guest goes on meanwhile.
    play(resize(flavor=flavor, wait_for="agent", wait_timeout=300)).ok()
    guest.wait_up(boots=4)
    guest.execute("echo after > /root/note; sync")
    booted = lab.sh("kvm1", "virsh domid a")
    told = play.quartet("vm_resize", name="a", state="confirmed")
    assert told["vms"][0]["steps"] == ["merge", "settle", "remove"]
    assert told["vms"][0]["status"] == "ACTIVE"
    assert lab.sh("kvm1", "virsh domid a") == booted
    assert guest.execute("nproc; cat /root/note")[1].split() == ["2", "after"]
    assert disks(lab) == {"vda": root}
    assert lab.sh("kvm1", "virsh domblklist a --details | grep vda").split()[-1] == root
    assert remembered(lab)["flavor"]["vcpus"] == "2"
    assert not play(resize(flavor=flavor)).ok()["result"]["changed"]
    assert status(play)["resize"] is None
    lab.sh("kvm1", "virsh destroy a")
    assert size(lab, root) == GIB
    lab.sh("kvm1", f"qemu-img check -q -f qcow2 {root}")
    play.quartet("vm", name="a", state="absent")
    assert lab.files("kvm1") == []


def test_all_of_a_flavor_changes_and_comes_back(lab: Lab, play: Playbook, launch: Launch, image: str) -> None:
    vm = small(launch, image, start=False, ephemeral=[1], swap=16)
    files, before, was, paths = own_files(lab, vm), bare(lab), remembered(lab), disks(lab)
    writes(lab, paths["vdb"], 5, "0 64k")
    contents = hashed(lab, *paths.values())
    flavor = {"name": "big", "vcpus": 3, "memory": 80, "root": 2, "ephemeral": [2, 1], "swap": 8}
    told = play.quartet("vm_resize", name="a", flavor=flavor)
    (done,) = told["vms"]
    assert done["steps"] == ["stage", "swap", "prove"]
    assert (done["status"], done["power_state"]) == ("VERIFY_RESIZE", "SHUTDOWN")
    now = disks(lab)
    assert sorted(now) == ["vda", "vdb", "vdc", "vdd"]
    assert {target: size(lab, path) for target, path in now.items()} == {
        "vda": 2 * GIB,
        "vdb": 2 * GIB,
        "vdc": 8 * MIB,
        "vdd": GIB,
    }
    reads(lab, now["vda"], 1, "0 1M")
    reads(lab, now["vdb"], 5, "0 64k")
    for target in ("vda", "vdb"):
        writes(lab, now[target], 7, "0 64k")
    play.quartet("vm_resize", name="a", state="reverted")
    assert bare(lab) == before
    assert (remembered(lab), disks(lab)) == (was, paths)
    assert own_files(lab, vm) == files
    assert hashed(lab, *paths.values()) == contents
    # And stays.
    play(resize(flavor=flavor)).ok()
    now = disks(lab)
    for target in ("vda", "vdb"):
        writes(lab, now[target], 7, f"{GIB} 64k")
    play.quartet("vm_resize", state="confirmed")
    assert {target: size(lab, path) for target, path in disks(lab).items()} == {
        "vda": 2 * GIB,
        "vdb": 2 * GIB,
        "vdc": 8 * MIB,
        "vdd": GIB,
    }
    assert {target: disks(lab)[target] for target in ("vda", "vdb")} == {
        target: paths[target] for target in ("vda", "vdb")
    }
    for target in ("vda", "vdb"):
        reads(lab, paths[target], 7, f"{GIB} 64k")
    reads(lab, paths["vda"], 1, "0 1M")
    assert len(own_files(lab, vm)) == 4
    assert [role for role, _target, _path in remembered(lab)["disks"]] == ["ephemeral", "ephemeral", "root", "swap"]
    assert remembered(lab)["flavor"]["ephemeral"] == ["2", "1"]
    assert remembered(lab)["flavor"]["name"] == "big"
    # Less: of CPUs and memory, and no swap. Of disks, no.
    errors = play.errors(
        [
            resize(flavor={"root": 1}),
            resize(flavor={"ephemeral": [2]}),
            resize(flavor={"ephemeral": [1, 1]}),
            resize(flavor={}),
            resize(flavor={"vcpus": 100000}),
        ]
    )
    assert [each["code"] for each in errors] == ["refused"] * 3 + ["invalid"] * 2
    play.quartet("vm_resize", name="a", flavor={"vcpus": 1, "memory": 48, "swap": 0})
    assert status(play)["resize"]["revert_loses"] == []
    assert not play(resize(state="confirmed", older_than=3600)).ok()["result"]["changed"]
    assert status(play)["status"] == "VERIFY_RESIZE"
    play(resize(state="confirmed")).ok()
    assert sorted(disks(lab)) == ["vda", "vdb", "vdd"]
    assert len(own_files(lab, vm)) == 3
    # One that waits goes with all its files.
    play(resize(flavor={"root": 3, "swap": 4})).ok()
    play.quartet("vm", name="a", state="absent")
    assert lab.files("kvm1") == [image]


def test_a_vm_of_another_tool_gets_another_size(lab: Lab, play: Playbook) -> None:
    path = f"{IMAGES}/legacy.raw"
    lab.sh("kvm1", f"truncate -s 64M {path} && printf abc | dd of={path} conv=notrunc 2>/dev/null")
    define(lab, "a", devices=file_disk(path, "raw", "vda"))
    tuned = "<vcpu>2</vcpu><cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='0'/></cputune>"
    topology = "<cpu><topology sockets='1' cores='2' threads='1'/></cpu>"
    edit = f"s|<vcpu.*</vcpu>|{tuned}|; s|</features>|</features>{topology}|; /<cpu mode/,/<.cpu>/d"
    lab.sh("kvm1", f'virsh dumpxml a | sed "{edit}" > /tmp/edited.xml; virsh define /tmp/edited.xml')
    before, content = bare(lab), hashed(lab, path)
    (error,) = play.errors([resize(flavor={"swap": 64})])
    assert "was not launched by this collection" in error["msg"]
    play.quartet("vm_resize", name="a", flavor={"vcpus": 3, "memory": 40, "root": 1})
    assert disks(lab)["vda"] != path
    node = definition(lab).find("cpu/topology")
    assert node is not None
    assert int(node.get("sockets", "")) * int(node.get("cores", "")) == 3
    play.quartet("vm_resize", name="a", state="reverted")
    assert (bare(lab), hashed(lab, path)) == (before, content)
    assert lab.files("kvm1") == [path]
    play(resize(flavor={"vcpus": 1, "root": 1})).ok()
    play.quartet("vm_resize", name="a", state="confirmed")
    assert disks(lab) == {"vda": path}
    assert lab.sh("kvm1", f"stat -c %s {path}; head -c 3 {path}").split() == [str(GIB), "abc"]
    assert [node.get("vcpu") for node in definition(lab).iterfind("cputune/vcpupin")] == ["0"]
    assert lab.files("kvm1") == [path]
    # From elsewhere, QEMU writes the merge.
    play(resize(flavor={"root": 2}, uri="qemu+tls://kvm1/system"), host="kvm2").ok()
    play(resize(state="confirmed", uri="qemu+tls://kvm1/system"), host="kvm2").ok()
    assert lab.state("kvm1", "a").startswith("shut off")
    assert lab.sh("kvm1", f"stat -c %s {path}") == str(2 * GIB)
    assert lab.files("kvm1") == [path]


def test_a_running_guest_is_given_more_at_once(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", flavor={"vcpus": 1, "memory": 128}, start=False)
    lab.sh("kvm1", "virsh setvcpus a 3 --maximum --config; virsh setvcpus a 1 --config; virsh setmem a 98304 --config")
    (error,) = play.errors([resize(flavor={"vcpus": 2}, hotplug=True)])
    assert "no running guest" in error["msg"]
    lab.sh("kvm1", "virsh start a")
    guest = lab.booted("kvm1", "a")
    errors = play.errors(
        [
            resize(flavor={"vcpus": 4, "root": 2}, hotplug=True),
            resize(flavor={"memory": 256}, hotplug=True),
            resize(flavor={"memory": 64}, hotplug=True),
            resize(flavor={"swap": 64}, hotplug=True),
        ]
    )
    assert [each["code"] for each in errors] == ["unsupported"] * 4
    told = play.quartet("vm_resize", name="a", flavor={"vcpus": 2, "memory": 120, "root": 1}, hotplug=True)
    (done,) = told["vms"]
    assert done["steps"] == ["plug_vcpus", "give_memory", "grow_disks", "remember"]
    assert done["status"] == "ACTIVE"
    assert guest.execute("cat /sys/class/block/vda/size")[1].split() == [str(GIB // 512)]
    assert lab.sh("kvm1", "virsh vcpucount a --live --current") == "2"
    assert lab.sh("kvm1", "virsh vcpucount a --config --current") == "2"
    assert remembered(lab)["flavor"]["vcpus"] == "2"
    assert not play(resize(state="confirmed")).ok()["result"]["changed"]


# ---- killed


@pytest.mark.parametrize("step", ["stop", "stage", "swap", "start", "end"])
def test_a_resize_that_was_killed_is_finished_by_the_same_task_or_reverted(
    lab: Lab, play: Playbook, launch: Launch, image: str, step: str
) -> None:
    vm = small(launch, image, start=True)
    before, was, files = bare(lab), remembered(lab), own_files(lab, vm)
    wanted = resize(flavor={"vcpus": 2, "root": 2})
    play.killed_at(step, wanted)
    told = play([task("vm_info", name="a"), {**task("vm", name="a", title="x"), "ignore_errors": True}]).results
    assert told[0]["result"]["vms"][0]["journal"]["action"] == "resize"
    assert told[1]["result"]["code"] == "busy"
    reverted = play([resize(state="reverted")] * 2).results
    assert [each["result"]["changed"] for each in reverted] == [True, False]
    assert lab.state("kvm1", "a").startswith("running")
    assert (bare(lab), remembered(lab), own_files(lab, vm)) == (before, was, files)
    play.killed_at(step, wanted)
    done, again = (each["result"] for each in play([wanted] * 2).results)
    assert (done["changed"], again["changed"]) == (True, False)
    assert done["vms"][0]["status"] == again["vms"][0]["status"] == "VERIFY_RESIZE"
    assert lab.state("kvm1", "a").startswith("running")
    assert size(lab, disks(lab)["vda"]) == 2 * GIB
    assert len(own_files(lab, vm)) == 2
    reads(lab, disks(lab)["vda"], 1, "0 1M")


@pytest.mark.parametrize("running", [True, False])
def test_a_confirmation_and_a_way_back_that_were_killed_are_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, image: str, running: bool
) -> None:
    vm = small(launch, image, start=running)
    before, was, files = bare(lab), remembered(lab), own_files(lab, vm)
    back = ["swap_back", "remove", "end", *(["stop", "start"] if running else [])]
    for step in back:
        play(resize(flavor={"vcpus": 2, "root": 2})).ok()
        play.killed_at(step, resize(state="reverted"))
        done = play([resize(state="reverted")] * 2).results
        assert [each["result"]["changed"] for each in done] == [True, False], step
        assert (bare(lab), remembered(lab), own_files(lab, vm)) == (before, was, files), step
        assert lab.state("kvm1", "a").startswith("running" if running else "shut off"), step
    for number, step in enumerate(["merge", "settle", "remove", "end"]):
        play(resize(flavor={"root": 2 + number})).ok()
        play.killed_at(step, resize(state="confirmed"))
        if step in ("merge", "settle"):
            (error,) = play.errors([resize(state="reverted")])
            assert error["code"] == "busy"
        done = play([resize(state="confirmed")] * 2).results
        assert [each["result"]["changed"] for each in done] == [True, False], step
        assert own_files(lab, vm) == files, step
        assert size(lab, disks(lab)["vda"]) == (2 + number) * GIB
        assert lab.state("kvm1", "a").startswith("running" if running else "shut off"), step
    reads(lab, disks(lab)["vda"], 1, "0 1M")


# ---- what goes wrong


def test_what_does_not_run_is_taken_back(lab: Lab, play: Playbook, launch: Launch, image: str) -> None:
    vm = small(launch, image, start=True)
    before, was, files = bare(lab), remembered(lab), own_files(lab, vm)
    # Somebody else has made the new file useless.
    spoil = f"for f in {IMAGES}/{vm['uuid']}/*-resize-*; do echo none > $f; done"
    error = play.disturbed_at("start", spoil, resize(flavor={"vcpus": 2, "root": 2})).error()["result"]
    assert "has its old size again and was started" in error["msg"]
    assert error["vms"][0]["status"] == "ACTIVE"
    assert (bare(lab), remembered(lab), own_files(lab, vm)) == (before, was, files)
    assert lab.state("kvm1", "a").startswith("running")
    # No room for the new file.
    fill = (
        f"fallocate -l $(df --output=avail -B1 {IMAGES} | tail -1) {IMAGES}/fill; cat /dev/zero > {IMAGES}/rest || true"
    )
    played = play.disturbed_at("stage", fill, resize(flavor={"root": 3}))
    error = played.error()["result"]
    lab.sh("kvm1", f"rm -f {IMAGES}/fill {IMAGES}/rest")
    assert "is not resized" in error["msg"], error["msg"]
    assert (bare(lab), remembered(lab), own_files(lab, vm)) == (before, was, files)
    assert lab.state("kvm1", "a").startswith("running")
    # The way back, where the VM does not start any more: it stays as it is.
    play(resize(flavor={"vcpus": 2, "root": 2})).ok()
    now = bare(lab)
    spoil = "virsh attach-disk a /nowhere vdz --config"
    error = play.disturbed_at("start", spoil, resize(state="reverted")).error()["result"]
    assert "is not reverted" in error["msg"], error["msg"]
    assert bare(lab) == now
    play(resize(state="reverted")).ok()
    assert (bare(lab), own_files(lab, vm)) == (before, files)
