# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rebuilding real VMs: from images and snapshots, killed at every step, and with new systems that do not run."""

from __future__ import annotations

import subprocess
import typing as t
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from tests.integration.harness import Glance, Lab, Playbook, Result, Task, define, file_disk, order, task
from tests.lab.kvmlab.guest import MEMORY_UEFI_MIB

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/images"
MIB = 1 << 20
# Somebody else pulls the plug as soon as the VM runs.
PLUG = "(until virsh domstate a | grep -q running; do sleep 0.1; done; sleep 0.3; virsh destroy a) >/dev/null 2>&1 &"


@pytest.fixture(autouse=True)
def no_images(lab: Lab) -> None:
    """An empty store beside an empty base cache."""
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base {STORE}")


def image(lab: Lab, name: str, *writes: str, size: str = "8M", host: str = "kvm1") -> str:
    """A qcow2 image with some patterns in a directory of the host; its path."""
    path = f"{IMAGES}/{name}.qcow2"
    commands = [f"qemu-img create -q -f qcow2 {path} {size}"]
    commands += [f"qemu-io -f qcow2 -c '{write}' {path} >/dev/null" for write in writes]
    lab.sh(host, " && ".join(commands))
    return path


def stored(lab: Lab, name: str, path: str, **fields: t.Any) -> str:
    """The same content as an image in the store; its identifier."""
    new = NewImage(id=str(uuid.uuid4()), name=name, disk_format="qcow2", **fields)
    return DirectoryStore(lab.outside(STORE)).put(new, FileContent(lab.outside(path))).id


def small(lab: Lab, launch: Launch, path: str, *, start: bool, **options: t.Any) -> Result:
    """A VM without a system: QEMU runs, and there is nothing to boot."""
    (vm,) = launch("a", image=path, start=start, **options)["vms"]
    return t.cast("Result", vm)


def rebuild(**options: t.Any) -> Task:
    return task("vm_rebuild", **{"name": "a", "force": True, **options})


def definition(lab: Lab, name: str = "a", host: str = "kvm1") -> ET.Element:
    return ET.fromstring(lab.sh(host, f"virsh dumpxml --inactive {name}"))


def disks(lab: Lab, name: str = "a", host: str = "kvm1") -> dict[str, str]:
    """The files of a VM's disks, by target."""
    found = {}
    for node in definition(lab, name, host).iterfind("devices/disk"):
        target, source = node.find("target"), node.find("source")
        assert target is not None
        assert source is not None
        found[target.get("dev", "")] = source.get("file", "")
    return found


def reads(lab: Lab, path: str, pattern: int, where: str, host: str = "kvm1", disk_format: str = "qcow2") -> None:
    """See what is in a disk: *where* is an offset and a length."""
    said = lab.sh(host, f"qemu-io -r -U -f {disk_format} -c 'read -P {pattern} {where}' {path}")
    assert "Pattern verification failed" not in said, (path, where, said)
    assert "read " in said, said


def own_files(lab: Lab, vm: Result) -> list[str]:
    """The names of the files in the VM's own directory, but for its console."""
    found = lab.sh("kvm1", f"ls {IMAGES}/{vm['uuid']}").split()
    return sorted(name for name in found if not name.startswith("console.log"))


def identity(lab: Lab, name: str = "a") -> tuple[object, ...]:
    """What a rebuild may not change: all of the definition but the files, and what we remember."""
    found = definition(lab, name)
    for disk in found.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None:
            source.attrib.clear()
    metadata = found.find("metadata")
    if metadata is not None:
        found.remove(metadata)
    return found.findtext("uuid"), ET.tostring(found)


# ---- what it is for


def test_a_running_guest_gets_another_system_and_stays_the_same_vm(lab: Lab, play: Playbook, launch: Launch) -> None:
    other = lab.vars["lab_rescue_image"]
    flavor = {"vcpus": 1, "memory": 96, "ephemeral": [1]}
    (vm,) = launch("a", flavor=flavor, cloud_init={})["vms"]
    lab.booted("kvm1", "a")
    before = identity(lab)
    told = play.quartet("vm_rebuild", name="a", image=other, wait_for="agent")
    (done,) = told["vms"]
    assert done["steps"] == ["stage", "stop", "swap", "start", "remove_old"]
    assert done["figures"]["shutdown"] == "guest"
    assert done["figures"]["kept_disks"] == {}
    assert (done["status"], done["uuid"]) == ("ACTIVE", vm["uuid"])
    assert identity(lab) == before
    new = disks(lab)["vda"]
    assert done["figures"]["disks"] == {"vda": {"old": f"{IMAGES}/{vm['uuid']}/root.qcow2", "new": new}}
    assert own_files(lab, vm) == sorted(["config.iso", "ephemeral0.qcow2", Path(new).name])
    # It is the other system: that one does not count.
    assert "rescue" in lab.guest("kvm1", "a").execute("cat /etc/hostname; uname -a; cat /proc/cmdline")[1].lower()
    # The VM is of that image now, and of no other.
    present = order(lab, "a", image=other, flavor=flavor)
    assert not play(task("vm", **present)).ok()["result"]["changed"]
    error = play(task("vm", **{**present, "image": lab.vars["lab_guest_image"]})).error()["result"]
    assert "vm_rebuild" in error["msg"]
    told = play(task("vm_info", name="a")).ok()["result"]["vms"][0]
    assert told["problems"] == []
    play.quartet("vm", name="a", state="absent", force=True)
    assert lab.files("kvm1") == []


def test_a_vm_that_is_off_stays_off_and_keeps_its_size(lab: Lab, play: Playbook, launch: Launch) -> None:
    one, two = image(lab, "one", "write -P 1 0 1M", size="16M"), image(lab, "two", "write -P 2 0 1M")
    vm = small(lab, launch, one, start=False)
    told = play.quartet("vm_rebuild", name="a", image=two)
    (done,) = told["vms"]
    assert done["steps"] == ["stage", "swap", "prove", "remove_old"]
    assert (done["status"], done["power_state"]) == ("SHUTOFF", "SHUTDOWN")
    assert lab.state("kvm1", "a").startswith("shut off")
    new = disks(lab)["vda"]
    assert own_files(lab, vm) == [Path(new).name]
    reads(lab, new, 2, "0 1M")
    reads(lab, new, 0, "8M 8M")
    # The same again is the user's to say. What was written is gone.
    lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P 9 0 64k' {new}")
    assert not play(rebuild(image=two)).ok()["result"]["changed"]
    reads(lab, new, 9, "0 64k")
    assert play(rebuild(image=two, reinstall=True)).ok()["result"]["changed"]
    assert disks(lab)["vda"] != new
    reads(lab, disks(lab)["vda"], 2, "0 64k")
    # An image that changed is another one.
    image(lab, "two", "write -P 3 0 1M")
    assert play(rebuild(image=two)).ok()["result"]["changed"]
    reads(lab, disks(lab)["vda"], 3, "0 1M")
    assert own_files(lab, vm) == [Path(disks(lab)["vda"]).name]


# ---- killed


@pytest.mark.parametrize("step", ["stage", "stop", "swap", "start", "prove", "remove_old", "end"])
def test_a_rebuild_that_was_killed_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    one, two = image(lab, "one", "write -P 1 0 1M"), image(lab, "two", "write -P 2 0 1M")
    vm = small(lab, launch, one, start=step != "prove")
    old = disks(lab)["vda"]
    play.killed_at(step, rebuild(image=two))
    if step != "end":
        reads(lab, old, 1, "0 1M")
    told = play([task("vm_info", name="a"), {**task("vm", name="a", title="x"), "ignore_errors": True}]).results
    assert told[0]["result"]["vms"][0]["status"] == "REBUILD"
    assert told[1]["result"]["code"] == "busy"
    done, again = (each["result"] for each in play([rebuild(image=two)] * 2).results)
    assert done["vms"][0]["status"] == ("SHUTOFF" if step == "prove" else "ACTIVE")
    assert (done["changed"], again["changed"]) == (True, False)
    assert lab.state("kvm1", "a").startswith("shut off" if step == "prove" else "running")
    new = disks(lab)["vda"]
    reads(lab, new, 2, "0 1M")
    assert own_files(lab, vm) == [Path(new).name]
    play(task("vm", name="a", state="absent", force=True)).ok()
    assert lab.files("kvm1") == [one, two]


def test_another_image_may_be_asked_for_after_a_kill_and_nothing_of_the_first_is_left(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    one, two, three = (image(lab, f"i{number}", f"write -P {number} 0 1M") for number in (1, 2, 3))
    vm = small(lab, launch, one, start=True)
    old = disks(lab)["vda"]
    for step in ("stop", "start"):
        play.killed_at(step, rebuild(image=two))
    # It does not start with the third either: the first is back, and not the second, which nobody saw run.
    spoil = f"for f in {IMAGES}/{vm['uuid']}/root-*.qcow2; do echo none > $f; done"
    error = play.disturbed_at("start", spoil, rebuild(image=three)).error()["result"]
    assert "was started" in error["msg"]
    assert disks(lab)["vda"] == old
    assert own_files(lab, vm) == ["root.qcow2"]
    reads(lab, old, 1, "0 1M")
    play.killed_at("start", rebuild(image=two))
    play.killed_at("put_back", rebuild(image=three))
    (done,) = play(rebuild(image=three)).ok()["result"]["vms"]
    assert done["steps"][0] == "put_back"
    reads(lab, disks(lab)["vda"], 3, "0 1M")
    assert own_files(lab, vm) == [Path(disks(lab)["vda"]).name]
    # Where the new one was seen to run, it is the one to come back.
    play.killed_at("remove_old", rebuild(image=two))
    second = disks(lab)["vda"]
    play(rebuild(image=one)).ok()
    assert disks(lab)["vda"] != second
    reads(lab, disks(lab)["vda"], 1, "0 1M")
    assert own_files(lab, vm) == [Path(disks(lab)["vda"]).name]


# ---- what goes wrong


def test_a_system_that_does_not_come_up_is_taken_back(lab: Lab, play: Playbook, launch: Launch) -> None:
    empty = image(lab, "empty")
    (vm,) = launch("a")["vms"]
    guest = lab.booted("kvm1", "a")
    play.quartet("vm_snapshot", name="a", image="keep", disks=["root"], quiesce="never")
    before = identity(lab)
    error = play(task("vm_rebuild", name="a", image=empty, wait_for="agent", wait_timeout=5)).error()["result"]
    assert error["code"] == "timed_out"
    assert "it has its old disks again and was started" in error["msg"]
    assert error["vms"][0]["status"] == "ACTIVE"
    guest.wait_up(boots=2)
    assert identity(lab) == before
    assert disks(lab) == {"vda": f"{IMAGES}/{vm['uuid']}/root.qcow2"}
    assert own_files(lab, vm) == ["root.qcow2"]
    assert not play(task("vm", **order(lab, "a"))).ok()["result"]["changed"]
    # One that goes off is no better, and it comes back as an image of it had it.
    error = play.disturbed_at("start", PLUG, rebuild(image=empty)).error()["result"]
    assert "does not run: it is off" in error["msg"], error["msg"]
    assert disks(lab) == {"vda": f"{IMAGES}/{vm['uuid']}/root.qcow2"}
    guest.wait_up(boots=3)
    (done,) = play(rebuild(image="keep", wait_for="agent")).ok()["result"]["vms"]
    assert done["status"] == "ACTIVE"
    assert guest.counter_on_disk()


def test_what_cannot_be_is_refused_before_anything_is_touched(
    lab: Lab, play: Playbook, launch: Launch, tmp_path: Path
) -> None:
    one, wide = image(lab, "one", "write -P 1 0 1M"), image(lab, "wide", size="3G")
    flavor = {"vcpus": 1, "memory": 96, "root": 1}
    vm = small(lab, launch, one, start=True, flavor=flavor)
    lab.sh("kvm1", f"echo nothing > {IMAGES}/text.qcow2")
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 -b {one} -F qcow2 {IMAGES}/over.qcow2")
    stored(lab, "hungry", one, min_ram=4096)
    stored(lab, "wide", wide)
    stored(lab, "efi", one, properties={"hw_firmware_type": "uefi"})
    damaged = stored(lab, "damaged", image(lab, "two", "write -P 2 0 1M"))
    lab.sh("kvm1", f"printf X | dd of={STORE}/{damaged}.img bs=1 seek=300000 conv=notrunc 2>/dev/null")
    cases = {
        f"{IMAGES}/gone.qcow2": ("not_found", "there is no such file"),
        f"{IMAGES}/text.qcow2": ("invalid", "is declared as qcow2"),
        f"{IMAGES}/over.qcow2": ("invalid", "backing file"),
        wide: ("invalid", "has a root disk of 1.00 GiB"),
        "wide": ("invalid", "needs 3.00 GiB"),
        "hungry": ("invalid", "4096 MiB"),
        "efi": ("refused", "needs uefi"),
        "damaged": ("invalid", "damaged"),
        "nothing": ("not_found", "no image 'nothing'"),
    }
    tasks = [rebuild(image=name) for name in cases]
    tasks += [rebuild(image=one, disks=["vdx"], reinstall=True)]
    words = [*cases.values(), ("not_found", "no disk vdx")]
    for (code, word), error in zip(words, play.errors(tasks)):
        assert (error["code"], word in error["msg"]) == (code, True), error["msg"]
        assert error["vms"][0]["status"] == "ACTIVE"
    assert own_files(lab, vm) == ["root.qcow2"]
    running = lab.sh("kvm1", "virsh domid a")
    # Room is looked for before the VM is stopped.
    large = image(lab, "large", "write -P 1 0 64M", size="64M")
    lab.fault("kvm1", "fill-disk", "--leave", str(20 * MIB))
    try:
        error = play(rebuild(image=large)).error()["result"]
        assert error["code"] == "no_space", error["msg"]
        assert "nothing of it was changed" in error["msg"]
    finally:
        lab.fault("kvm1", "empty-disk")
    assert lab.sh("kvm1", "virsh domid a") == running
    assert own_files(lab, vm) == ["root.qcow2"]
    assert not play(task("vm_rebuild", name="a", image=one)).ok()["result"]["changed"]
    # States and locks.
    play([task("vm_power", name="a", state="paused"), {**rebuild(image=large), "ignore_errors": True}])
    (error,) = play.errors([rebuild(image=large)])
    assert error["code"] == "refused"
    assert "PAUSED" in error["msg"]
    play([task("vm_power", name="a", state="running"), task("vm_lock", name="a")]).ok()
    (error,) = play.errors([rebuild(image=large)])
    assert error["code"] == "locked"
    assert play(rebuild(image=large, override_lock=True)).ok()["result"]["changed"]


# ---- snapshots


def test_all_disks_come_back_from_any_link_of_a_chain_of_backups(lab: Lab, play: Playbook, launch: Launch) -> None:
    one = image(lab, "one", "write -P 1 0 1M")
    vm = small(lab, launch, one, start=False, flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]})
    backup = {"name": "a", "backup_type": "daily", "incremental": True}
    for number in (2, 3, 4):
        for path in disks(lab).values():
            lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P {number} {number}M 1M' {path} >/dev/null")
        (done,) = play(task("vm_snapshot", **backup, image=f"b{number}")).ok()["result"]["vms"]
        assert done["figures"]["increment"] is (number > 2)
    for number in (3, 2):
        if number == 3:
            (done,) = play.quartet("vm_rebuild", name="a", image="b3", disks=["all"])["vms"]
        else:
            (done,) = play(rebuild(image="b2", disks=["all"])).ok()["result"]["vms"]
        assert sorted(done["figures"]["disks"]) == ["vda", "vdb"]
        for path in disks(lab).values():
            for each in (2, 3, 4):
                reads(lab, path, each if each <= number else 0, f"{each}M 1M")
        reads(lab, disks(lab)["vda"], 1, "0 1M")
    assert own_files(lab, vm) == sorted(Path(path).name for path in disks(lab).values())
    # Nothing can be told of what was written to disks that are others now.
    (done,) = play(task("vm_snapshot", **backup)).ok()["result"]["vms"]
    assert done["figures"]["increment"] is False
    assert done["figures"]["why_full"]
    (done,) = play(task("vm_snapshot", **backup)).ok()["result"]["vms"]
    assert done["figures"]["increment"] is True
    # One disk alone, and one that the snapshot has not.
    assert play(rebuild(image="b4", disks=["vdb"])).ok()["result"]["changed"]
    reads(lab, disks(lab)["vdb"], 4, "4M 1M")
    reads(lab, disks(lab)["vda"], 0, "4M 1M")
    play(task("vm_snapshot", name="a", image="rootonly", disks=["root"])).ok()
    stored(lab, "plain", one)
    errors = play.errors([rebuild(image=name, disks=["all"]) for name in ("rootonly", "plain", one)])
    for error, word in zip(
        errors, ("no image of disk vdb", "is no complete snapshot", "a file is for the root disk only")
    ):
        assert word in error["msg"]


def test_from_glance_as_a_delta(lab: Lab, play: Playbook, launch: Launch, glance: Glance) -> None:
    store = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
    one, two = image(lab, "one", "write -P 1 0 4M"), image(lab, "two", "write -P 2 0 1M")
    client = glance.client("member")
    client.upload(Path(lab.outside(one)).read_bytes(), name="one", disk_format="qcow2")
    client.upload(Path(lab.outside(two)).read_bytes(), name="two", disk_format="qcow2")
    vm = small(lab, launch, "one", start=False, image_store=store)
    lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P 7 2M 1M' {disks(lab)['vda']} >/dev/null")
    play(task("vm_snapshot", name="a", image="delta", form="delta", disks=["root"], image_store=store)).ok()
    play.quartet("vm_rebuild", name="a", image="two", image_store=store)
    reads(lab, disks(lab)["vda"], 2, "0 1M")
    play.quartet("vm_rebuild", name="a", image="delta", image_store=store)
    reads(lab, disks(lab)["vda"], 1, "0 2M")
    reads(lab, disks(lab)["vda"], 7, "2M 1M")
    assert own_files(lab, vm) == [Path(disks(lab)["vda"]).name]
    present = order(lab, "a", image="delta", image_store=store)
    assert not play(task("vm", **present)).ok()["result"]["changed"]
    (error,) = play.errors([rebuild(image="one", image_store={**store, "cloud": "other"})])
    assert error["code"] == "not_found"


# ---- VMs of other tools


def test_the_disk_of_another_tool_is_kept_unless_it_is_listed(lab: Lab, play: Playbook) -> None:
    two, three = image(lab, "two", "write -P 2 0 1M"), image(lab, "three", "write -P 3 0 1M")
    lab.sh("kvm1", f"mkdir {IMAGES}/x; truncate -s 32M {IMAGES}/x/theirs.img {IMAGES}/x/data.img")
    devices = file_disk(f"{IMAGES}/x/theirs.img", "raw", "vda") + file_disk(f"{IMAGES}/x/data.img", "raw", "vdb")
    define(lab, "a", devices=devices)
    (done,) = play.quartet("vm_rebuild", name="a", image=two)["vms"]
    assert list(done["figures"]["kept_disks"]) == [f"{IMAGES}/x/theirs.img"]
    new = disks(lab)["vda"]
    assert disks(lab)["vdb"] == f"{IMAGES}/x/data.img"
    assert lab.sh("kvm1", f"qemu-img info -f qcow2 {new}").count("32 MiB") == 1
    reads(lab, new, 2, "0 1M")
    # Ours goes without a word, and the VM with the last.
    (done,) = play(rebuild(image=three)).ok()["result"]["vms"]
    assert done["figures"]["removed_files"] == [new]
    play(task("vm", name="a", state="absent")).ok()
    assert lab.files("kvm1", f"{IMAGES}/x") == [f"{IMAGES}/x/data.img", f"{IMAGES}/x/theirs.img"]
    # One that others build upon stays, whatever is listed.
    define(lab, "a", devices=devices)
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 -b {IMAGES}/x/theirs.img -F raw {IMAGES}/x/clone.qcow2")
    define(lab, "b", devices=file_disk(f"{IMAGES}/x/clone.qcow2", "qcow2", "vda"))
    (done,) = play(rebuild(image=two, remove_disks=["vda"])).ok()["result"]["vms"]
    assert "uses it too" in done["figures"]["kept_disks"][f"{IMAGES}/x/theirs.img"]
    lab.sh("kvm1", "virsh -q undefine b; virsh -q undefine a")
    define(lab, "a", devices=devices)
    (done,) = play(rebuild(image=two, remove_disks=["vda"])).ok()["result"]["vms"]
    assert done["figures"]["removed_files"] == [f"{IMAGES}/x/theirs.img"]


def test_a_volume_of_a_directory_pool_is_a_file(lab: Lab, play: Playbook) -> None:
    two = image(lab, "two", "write -P 2 0 1M")
    lab.sh("kvm1", f"mkdir {IMAGES}/p; virsh -q pool-create-as p dir --target {IMAGES}/p")
    try:
        lab.sh("kvm1", "virsh -q vol-create-as p root.qcow2 16M --format qcow2")
        driver = "<driver name='qemu' type='qcow2'/>"
        source = "<source pool='p' volume='root.qcow2'/>"
        define(lab, "a", devices=f"<disk type='volume'>{driver}{source}<target dev='vda'/></disk>")
        before = definition(lab).findall("devices/disk")[0]
        lab.sh("kvm1", "virsh -q start a")
        spoil = f"for f in {IMAGES}/p/root-*.qcow2; do echo none > $f; done"
        play.disturbed_at("start", spoil, rebuild(image=two)).error()
        assert ET.tostring(definition(lab).findall("devices/disk")[0]) == ET.tostring(before)
        assert lab.state("kvm1", "a").startswith("running")
        (done,) = play.quartet("vm_rebuild", name="a", image=two, remove_disks=["vda"], force=True)["vms"]
        assert done["figures"]["removed_files"] == [f"{IMAGES}/p/root.qcow2"]
        reads(lab, disks(lab)["vda"], 2, "0 1M")
    finally:
        lab.sh("kvm1", "virsh -q pool-destroy p")


def test_disks_that_are_no_files_transient_vms_and_libvirt_snapshots_are_refused(lab: Lab, play: Playbook) -> None:
    two = image(lab, "two")
    source = "<source protocol='nbd' name='x'><host name='h'/></source>"
    network = f"<disk type='network'><driver name='qemu' type='raw'/>{source}<target dev='vda'/></disk>"
    define(lab, "net", devices=network)
    define(lab, "snap", devices=file_disk(two, "qcow2", "vda"))
    lab.sh("kvm1", f"cp {two} {IMAGES}/s.qcow2; virsh -q snapshot-create-as snap s1 >/dev/null")
    define(lab, "gone", devices=file_disk(two, "qcow2", "vda"))
    lab.sh("kvm1", "virsh dumpxml gone > /tmp/gone.xml; virsh -q undefine gone; virsh -q create /tmp/gone.xml")
    errors = play.errors([rebuild(name=name, image=two) for name in ("net", "snap", "gone")])
    assert [error["code"] for error in errors] == ["unsupported", "refused", "refused"]
    for error, word in zip(errors, ("kind network", "s1", "transient")):
        assert word in error["msg"]


def test_the_variables_of_uefi_stay_or_are_made_anew(lab: Lab, play: Playbook, launch: Launch) -> None:
    one, two = image(lab, "one"), image(lab, "two", "write -P 2 0 1M")
    flavor = {"vcpus": 1, "memory": MEMORY_UEFI_MIB}
    small(lab, launch, one, start=True, flavor=flavor, firmware="uefi")
    directory = "/var/lib/libvirt/qemu/nvram"
    (name,) = lab.sh("kvm1", f"ls {directory}").split()
    mark = f"printf MARK | dd of={directory}/{name} bs=1 seek=$(($(stat -c %s {directory}/{name}) - 100)) conv=notrunc"
    lab.sh("kvm1", f"{mark} 2>/dev/null")
    before = identity(lab)
    play(rebuild(image=two)).ok()
    assert lab.sh("kvm1", f"grep -l MARK {directory}/*") == f"{directory}/{name}"
    error = play.disturbed_at("start", PLUG, rebuild(image=one, reset_nvram=True)).error()
    assert "it has its old disks again and was started" in error["result"]["msg"]
    assert identity(lab) == before
    assert lab.sh("kvm1", f"grep -l MARK {directory}/*") == f"{directory}/{name}"
    play(rebuild(image=one, reset_nvram=True)).ok()
    (new,) = lab.sh("kvm1", f"ls {directory}").split()
    assert new != name
    assert lab.sh("kvm1", f"grep -l MARK {directory}/* || true") == ""
    play(task("vm", name="a", state="absent", force=True)).ok()
    assert lab.sh("kvm1", f"ls {directory}") == ""


def test_from_the_controller(lab: Lab, play: Playbook, launch: Launch, tmp_path: Path) -> None:
    lab.sh("kvm2", f"rm -rf {IMAGES}/_base")
    one = image(lab, "one", "write -P 1 0 1M", host="kvm2")
    launch("a", image=one, start=False, host="kvm2")
    two = tmp_path / "two.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(two), "8M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 2 0 1M", str(two)], check=True, stdout=subprocess.DEVNULL)
    what = {"name": "a", "image": str(two), "uri": lab.hosts["kvm2"]["lab_uri"]}
    (done,) = play.quartet("vm_rebuild", host="localhost", **what)["vms"]
    path = disks(lab, host="kvm2")["vda"]
    reads(lab, path, 2, "0 1M", host="kvm2")
    assert done["figures"]["removed_files"]
    assert [name for name in lab.files("kvm2") if name.endswith(".qcow2")] == sorted([one, path])
