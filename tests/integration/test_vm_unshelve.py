# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing real VMs back from their shelves on another host: at once and copied, killed at every step, and with stores
and hosts that fail while the data come. The guest's counter proves that no write was lost."""

from __future__ import annotations

import json
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import DirectoryStore
from tests.integration.harness import Lab, Playbook, Result, Task, define, file_disk, task
from tests.lab.kvmlab.guest import Guest

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/srv/kvmops/shared/images"
STORE_OPTION = {"path": STORE}
HERE, THERE = "kvm1", "kvm2"
MIB = 1 << 20
# The steps of each way.
INSTANT = ["define", "prepare", "start", "pull", "settle", "drop"]
COPIED = ["define", "copy", "start", "settle", "drop"]


@pytest.fixture(autouse=True)
def no_images(lab: Lab) -> None:
    """An empty store, and empty base caches."""
    for host in (HERE, THERE):
        lab.sh(host, f"rm -rf {IMAGES}/_base {STORE}")


def shelve(state: str = "unshelved", **options: t.Any) -> Task:
    return task("vm_shelve", **{"name": "a", "state": state, "image_store": STORE_OPTION, **options})


def offloaded(play: Playbook, **options: t.Any) -> Result:
    """Let kvm1 put the VM on its shelf and forget it."""
    (vm,) = play(shelve("offloaded", **options), host=HERE).ok()["result"]["vms"]
    assert vm["status"] == "SHELVED_OFFLOADED"
    return t.cast("Result", vm)


def moved(guest: Guest, host: str = THERE) -> Guest:
    """The guest, on another host."""
    guest.host = host
    return guest


def counted(guest: Guest, before: int, *, boots: int = 1) -> None:
    """See that the guest goes on to count, and has all that it ever told."""
    guest.wait_up(boots)
    now = guest.wait_counter()
    assert now > before
    numbers = guest.counter_on_disk()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= now
    assert guest.crashes() == []


def fill(guest: Guest, mebibytes: int) -> str:
    """Give the guest data of its own; their hash."""
    code, said = guest.execute(
        f"dd if=/dev/urandom of=/data/blob bs=1M count={mebibytes} 2>/dev/null; sync; sha256sum /data/blob"
    )
    assert code == 0, said
    return said.split()[0]


def blob(guest: Guest) -> str:
    """The hash of these data, as they are now."""
    return guest.execute("echo 3 > /proc/sys/vm/drop_caches; sha256sum /data/blob")[1].split()[0]


def store(lab: Lab) -> DirectoryStore:
    return DirectoryStore(lab.outside(STORE))


def on_shelf(lab: Lab) -> list[str]:
    """The roles of what is on shelves, and of claims."""
    return sorted(image.properties["kvmops_role"] for image in store(lab).find(properties={"image_type": "shelf"}))


def definition(lab: Lab, host: str = THERE, name: str = "a") -> ET.Element:
    return ET.fromstring(lab.sh(host, f"virsh dumpxml --inactive --security-info {name}"))


def identity(lab: Lab, host: str, name: str = "a") -> str:
    """A definition, without what we remember."""
    root = definition(lab, host, name)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    return ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True)


def backing(lab: Lab, path: str, host: str = THERE) -> str:
    """The file that a disk lies upon, as its header says."""
    told = json.loads(lab.sh(host, f"qemu-img info -U --output=json {path}"))
    return str(told.get("backing-filename", ""))


def known(lab: Lab, launch: Launch) -> None:
    """Let kvm2 have the guest image in its base cache, as every host has that uses it."""
    launch("other", host=THERE, start=False)
    lab.sh(THERE, "virsh -q undefine other")
    lab.sh(THERE, f"find {IMAGES} -mindepth 1 -maxdepth 1 ! -name _base ! -name lost+found -exec rm -rf {{}} +")


def clean(lab: Lab, host: str = THERE) -> None:
    """See that a host has nothing of the VM."""
    assert lab.domains(host) == []
    assert lab.files(host) == []
    assert lab.sh(host, "ls /run/kvmops").split() == ["ready"]
    assert lab.sh(host, "ls /var/lib/libvirt/qemu/nvram /var/lib/libvirt/qemu/save | grep -v :", check=False) == ""


def whole(lab: Lab) -> None:
    """See that the shelf is there, and nobody's."""
    assert on_shelf(lab) == ["disk", "domain"]


def pattern(lab: Lab, name: str = "a", *, size: str = "64M", data: str = "0 8M") -> str:
    """A raw file and a disk over it that has data; no system is in it."""
    base, path = f"{IMAGES}/{name}-base.raw", f"{IMAGES}/{name}.qcow2"
    lab.sh(
        HERE,
        f"truncate -s {size} {base}; qemu-io -f raw -c 'write -P 1 32M 1M' {base} >/dev/null;"
        f" qemu-img create -q -f qcow2 -b {base} -F raw {path};"
        f" qemu-io -f qcow2 -c 'write -P 7 {data}' {path} >/dev/null",
    )
    return path


def reads(lab: Lab, path: str, number: int, where: str, host: str = THERE) -> None:
    """See what is in a disk: *where* is an offset and a length."""
    said = lab.sh(host, f"qemu-io -r -U -f qcow2 -c 'read -P {number} {where}' {path}")
    assert "Pattern verification failed" not in said, (path, where, said)
    assert "read " in said, said


def has_its_data(lab: Lab, path: str = f"{IMAGES}/a.qcow2", host: str = THERE) -> None:
    reads(lab, path, 7, "0 8M", host)
    reads(lab, path, 1, "32M 1M", host)


# ---- what it is for


def test_a_vm_runs_at_once_on_another_host_and_goes_on_where_it_was(lab: Lab, play: Playbook, launch: Launch) -> None:
    known(lab, launch)
    (vm,) = launch("a", flavor={"vcpus": 1, "memory": 96, "root": 1})["vms"]
    guest = lab.booted(HERE, "a")
    blob_before = fill(guest, 16)
    before, disk = guest.wait_counter(), f"{IMAGES}/{vm['uuid']}/root.qcow2"
    defined, taken = identity(lab, HERE), int(lab.sh(HERE, f"stat -c %b {disk}")) * 512
    offloaded(play)
    clean(lab, HERE)
    told = play.quartet("vm_shelve", host=THERE, name="a", state="unshelved", image_store=STORE_OPTION)
    (done,) = told["vms"]
    assert done["steps"] == INSTANT
    assert (done["status"], done["power_state"], done["uuid"]) == ("ACTIVE", "RUNNING", vm["uuid"])
    assert done["figures"]["running_seconds"] > 0
    assert done["figures"]["pulled_bytes"] >= 16 * MIB
    assert done["figures"]["files"] == {"vda": disk}
    counted(moved(guest), before)
    assert blob(guest) == blob_before
    assert identity(lab, THERE) == defined
    # The disk lies upon the base that all VMs of that image share, and is as large as before.
    assert Path(backing(lab, disk)).parent == Path(f"{IMAGES}/_base")
    assert done["figures"]["disk_bytes"]["vda"] <= taken + 4 * MIB
    assert on_shelf(lab) == []
    assert lab.sh(THERE, "ls /run/kvmops").split() == ["ready"]
    # And back again, where its base is still in the cache.
    before = guest.counter()
    play(shelve("offloaded"), host=THERE).ok()
    play(shelve(), host=HERE).ok()
    counted(moved(guest, HERE), before)


def test_a_vm_runs_at_once_where_its_base_has_to_come_as_well(lab: Lab, play: Playbook, launch: Launch) -> None:
    (vm,) = launch("a")["vms"]
    guest = lab.booted(HERE, "a")
    before = guest.wait_counter()
    defined = identity(lab, HERE)
    offloaded(play)
    told = play.quartet("vm_shelve", host=THERE, name="a", state="unshelved", image_store=STORE_OPTION)
    (done,) = told["vms"]
    disk = f"{IMAGES}/{vm['uuid']}/root.qcow2"
    counted(moved(guest), before)
    assert identity(lab, THERE) == defined
    assert backing(lab, disk) == done["figures"]["fetched"]["vda"]
    assert lab.files(THERE) == [f"{IMAGES}/{vm['uuid']}", f"{IMAGES}/{vm['uuid']}/console.log", disk]
    assert on_shelf(lab) == []
    # What the guest writes now is in that file.
    before = guest.wait_counter()
    lab.sh(THERE, "virsh -q destroy a; virsh -q start a")
    counted(guest, before, boots=2)


# ---- VMs without a system: QEMU runs, and there is nothing to boot


def small(lab: Lab, play: Playbook, *, start: bool = True, devices: str = "") -> str:
    """A VM of another tool, shelved and offloaded; the path of its disk."""
    path = pattern(lab)
    define(lab, "a", devices=file_disk(path, "qcow2", "vda") + devices)
    if start:
        lab.sh(HERE, "virsh -q start a")
    offloaded(play, force=True)
    lab.sh(HERE, f"rm {IMAGES}/a-base.raw")
    clean(lab, HERE)
    return path


def test_disks_are_copied_first_if_that_is_asked(lab: Lab, play: Playbook) -> None:
    disk = small(lab, play)
    told = play.quartet("vm_shelve", host=THERE, name="a", state="unshelved", image_store=STORE_OPTION, start="copied")
    (done,) = told["vms"]
    assert done["steps"] == COPIED
    assert done["status"] == "ACTIVE"
    assert done["figures"]["copied_bytes"] >= 8 * MIB
    assert backing(lab, disk) == done["figures"]["bases"]["vda"]
    has_its_data(lab)
    assert on_shelf(lab) == []
    # It is a VM of ours now: it goes with all that it has here.
    play(task("vm", name="a", state="absent", force=True), host=THERE).ok()
    clean(lab)


def test_a_vm_that_was_off_is_off_and_another_directory_holds_all_of_it(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    flavor = {"vcpus": 1, "memory": 64, "root": 1, "ephemeral": [1]}
    (vm,) = launch("a", start=False, flavor=flavor, cloud_init={"user_data": "#cloud-config"}, autostart=True)["vms"]
    old, new = f"{IMAGES}/{vm['uuid']}", f"/srv/kvmops/shared/vms/{vm['uuid']}"
    lab.sh(HERE, f"qemu-io -f qcow2 -c 'write -P 9 8M 1M' {old}/ephemeral0.qcow2")
    drive = lab.sh(HERE, f"sha256sum < {old}/config.iso")
    defined = identity(lab, HERE)
    offloaded(play)
    clean(lab, HERE)
    told = play.quartet(
        "vm_shelve", host=THERE, name="a", state="unshelved", image_store=STORE_OPTION, storage="/srv/kvmops/shared/vms"
    )
    (done,) = told["vms"]
    assert done["steps"] == ["define", "copy", "settle", "drop"]
    assert (done["status"], done["power_state"]) == ("SHUTOFF", "SHUTDOWN")
    assert identity(lab, THERE) == defined.replace(old, new)
    assert lab.sh(THERE, f"sha256sum < {new}/config.iso") == drive
    reads(lab, f"{new}/ephemeral0.qcow2", 9, "8M 1M")
    assert lab.sh(THERE, "virsh dominfo a | grep Autostart").split()[-1] == "enable"
    (info,) = play(task("vm_info", name="a"), host=THERE).ok()["result"]["vms"]
    assert info["problems"] == []
    play(task("vm_power", name="a", state="running"), host=THERE).ok()
    play(task("vm", name="a", state="absent", force=True), host=THERE).ok()
    assert lab.sh(THERE, f"ls {new}", check=False) == ""


def test_what_the_firmware_remembers_and_policies_of_disks_come_along(lab: Lab, play: Playbook) -> None:
    path = pattern(lab)
    disk = file_disk(path, "qcow2", "vda").replace("type='qcow2'", "type='qcow2' error_policy='report' cache='none'")
    lab.sh(
        HERE,
        f"""cat > /tmp/define.xml <<'XML'
<domain type='qemu'><name>a</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
<firmware><feature enabled='no' name='secure-boot'/></firmware></os><features><acpi/></features>
<devices>{disk}</devices></domain>
XML
virsh -q define /tmp/define.xml; virsh -q start a; sleep 1; virsh -q destroy a""",
    )
    nvram = "/var/lib/libvirt/qemu/nvram/a_VARS.fd"
    lab.sh(HERE, f"printf remembered | dd of={nvram} bs=1 seek=400000 conv=notrunc 2>/dev/null")
    defined = identity(lab, HERE)
    offloaded(play)
    clean(lab, HERE)
    play(shelve(power="running", wait_for="running"), host=THERE).ok()
    # While the data come, the guest stops rather than see an error.
    assert "rerror_policy='stop'" in lab.sh(THERE, "virsh dumpxml a")
    assert lab.sh(THERE, "dd if=" + nvram + " bs=1 skip=400000 count=10 2>/dev/null") == "remembered"
    play(shelve(), host=THERE).ok()
    assert identity(lab, THERE) == defined
    lab.sh(THERE, "virsh -q destroy a")
    has_its_data(lab)


def test_saved_memory_comes_along(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted(HERE, "a")
    assert guest.execute("echo here > /tmp/memory; sync")[0] == 0
    before = guest.wait_counter()
    play(task("vm_power", name="a", state="suspended"), host=HERE).ok()
    offloaded(play, memory=True)
    clean(lab, HERE)
    told = play.quartet("vm_shelve", host=THERE, name="a", state="unshelved", image_store=STORE_OPTION)
    (done,) = told["vms"]
    assert done["steps"] == COPIED
    assert (done["status"], done["power_state"]) == ("SUSPENDED", "SHUTDOWN")
    # Once more, and this time it goes on.
    play(shelve("offloaded", memory=True), host=THERE).ok()
    error = play(shelve(power="stopped"), host=HERE).error()["result"]
    assert error["code"] == "refused"
    told = play(shelve(power="running"), host=HERE).ok()["result"]
    assert told["vms"][0]["status"] == "ACTIVE"
    guest = lab.guest(HERE, "a")
    guest.wait_agent()
    assert guest.execute("cat /tmp/memory")[1].strip() == "here"
    assert guest.wait_counter() > before
    assert on_shelf(lab) == []
    left = [name for name in lab.files(HERE) if name.endswith(".memory")]
    assert left == []


def test_a_task_may_end_when_the_guest_runs_and_another_does_the_rest(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    (done,) = play(shelve(wait_for="running", bandwidth=1), host=THERE).ok()["result"]["vms"]
    assert done["steps"] == ["define", "prepare", "start", "begin_pull"]
    assert (done["status"], done["power_state"], done["task_state"]) == ("SHELVED_OFFLOADED", "RUNNING", "unshelving")
    assert on_shelf(lab) == ["claim", "disk", "domain"]
    error = play(task("vm_power", name="a", state="stopped"), host=THERE).error()["result"]
    assert error["code"] in ("refused", "busy")
    (done,) = play(shelve(), host=THERE).ok()["result"]["vms"]
    assert done["steps"] == ["pull", "settle", "drop"]
    assert done["status"] == "ACTIVE"
    assert on_shelf(lab) == []
    has_its_data(lab)


# ---- what is not done


def test_what_a_host_has_not_is_told_before_anything_is_touched(lab: Lab, play: Playbook) -> None:
    nic = (
        "<interface type='network'><mac address='52:54:00:aa:00:01'/><source network='default'/></interface>"
        "<interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='br0'/></interface>"
    )
    path = small(lab, play, start=False, devices=nic)
    shelves = sorted(image.id for image in store(lab).find())
    vm_uuid = store(lab).find(properties={"image_type": "shelf"})[0].properties["instance_uuid"]
    other = "<interface type='bridge'><mac address='52:54:00:AA:00:02'/><source bridge='br0'/></interface>"

    def error(script: str, undo: str, **options: t.Any) -> Result:
        lab.sh(THERE, script)
        found = t.cast("Result", play(shelve(**options), host=THERE).error()["result"]["vms"][0])
        lab.sh(THERE, undo)
        clean(lab)
        assert sorted(image.id for image in store(lab).find()) == shelves
        return found

    xml = "<domain type='qemu'>{}<memory>32768</memory><os><type>hvm</type></os><devices>{}</devices></domain>"
    make = "cat > /tmp/x.xml <<'XML'\n{}\nXML\nvirsh -q define /tmp/x.xml"
    for named in ("a", vm_uuid):
        told = error(make.format(xml.format("<name>a</name>", "")), "virsh -q undefine a", name=named)
        assert told["code"] == "refused"
        assert "name" in told["msg"]
    told = error(make.format(xml.format(f"<name>b</name><uuid>{vm_uuid}</uuid>", "")), "virsh -q undefine b")
    assert (told["code"], told["details"]["uuid"]) == ("refused", vm_uuid)
    told = error(make.format(xml.format("<name>b</name>", other)), "virsh -q undefine b")
    assert (told["code"], told["details"]["mac"]) == ("refused", "52:54:00:aa:00:02")
    told = error("virsh -q net-destroy default", "virsh -q net-start default")
    assert told["code"] == "refused"
    assert "net-start default" in told["msg"]
    told = error("ip link set br0 down; ip link set br0 name br9", "ip link set br9 name br0; ip link set br0 up")
    assert (told["code"], told["details"]["bridge"]) == ("not_found", "br0")
    told = error(f"touch {path}", f"rm {path}", power="running")
    assert (told["code"], told["details"]["path"]) == ("refused", path)


def test_there_must_be_room(lab: Lab, play: Playbook) -> None:
    small(lab, play, start=False)
    lab.fault(THERE, "fill-disk", "--leave", "10M")
    try:
        told = play(shelve(), host=THERE).error()["result"]["vms"][0]
    finally:
        lab.fault(THERE, "empty-disk")
    assert told["code"] == "no_space"
    assert told["details"]["needed"] > told["details"]["free"]
    clean(lab)
    whole(lab)
