# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing real VMs back from their shelves on another host: at once and copied, killed at every step, and with stores
and hosts that fail while the data come. The guest's counter proves that no write was lost."""

from __future__ import annotations

import json
import signal
import time
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from tests.integration.harness import Glance, Lab, Playbook, Result, Task, define, file_disk, task, wait_for
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
    """A definition, without what we remember, and with its devices in an order: libvirt sorts them when it is defined
    anew."""
    root = definition(lab, host, name)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    devices = root.find("devices")
    assert devices is not None
    devices[:] = sorted(devices, key=lambda node: ET.canonicalize(ET.tostring(node), strip_text=True))
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


def small(lab: Lab, play: Playbook, *, start: bool = True, devices: str = "", data: str = "0 8M") -> str:
    """A VM of another tool, shelved and offloaded; the path of its disk."""
    path = pattern(lab, data=data)
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
    lab.sh(HERE, f"rm {IMAGES}/a-base.raw")
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
        "<interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='br7'/></interface>"
    )
    lab.sh(THERE, "ip link add br7 type bridge")
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
    told = error(f"touch {path}", f"rm {path}", power="running")
    assert (told["code"], told["details"]["path"]) == ("refused", path)
    told = error("ip link del br7", "true")
    assert (told["code"], told["details"]["bridge"]) == ("not_found", "br7")


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


def test_a_vm_that_is_too_large_is_refused_with_figures(lab: Lab, play: Playbook) -> None:
    path = pattern(lab)
    define(lab, "a", devices=file_disk(path, "qcow2", "vda"))
    lab.sh(HERE, "virsh -q setmaxmem a 4T --config; virsh -q setmem a 4T --config")
    offloaded(play)
    told = play(shelve(power="running"), host=THERE).error()["result"]["vms"][0]
    assert (told["code"], told["details"]["memory"]) == ("no_space", 4 << 20)
    assert told["details"]["available"] < 4 << 20
    clean(lab)
    whole(lab)
    (done,) = play(shelve(), host=THERE).ok()["result"]["vms"]
    assert done["status"] == "SHUTOFF"
    has_its_data(lab)


def test_fixed_addresses_come_along(lab: Lab, play: Playbook) -> None:
    mac, address = "52:54:00:aa:00:09", "192.168.122.99"
    lease = f"<host mac='{mac}' ip='{address}'/>"
    update = 'virsh -q net-update default {} ip-dhcp-host "{}" --live --config'
    for host in (HERE, THERE):
        lab.sh(host, "virsh -q net-start default || true")
    lab.sh(HERE, update.format("add", lease))
    nic = f"<interface type='network'><mac address='{mac}'/><source network='default'/></interface>"
    try:
        small(lab, play, devices=nic)
        assert mac not in lab.sh(HERE, "virsh net-dumpxml default; virsh net-dumpxml --inactive default")
        (done,) = play(shelve(), host=THERE).ok()["result"]["vms"]
        assert done["figures"]["leases"] == [{"network": "default", "mac": mac}]
        for which in ("", "--inactive"):
            assert mac in lab.sh(THERE, f"virsh net-dumpxml {which} default")
        # An address that somebody else has by now is told, and the VM runs all the same.
        play(shelve("offloaded", force=True), host=THERE).ok()
        lab.sh(HERE, update.format("add", lease.replace("00:09", "00:10")))
        (done,) = play(shelve(), host=HERE).ok()["result"]["vms"]
        assert done["status"] == "ACTIVE"
        assert address in done["figures"]["refused_leases"][mac]
    finally:
        for host in (HERE, THERE):
            for each in (lease, lease.replace("00:09", "00:10")):
                lab.sh(host, update.format("delete", each), check=False)


# ---- shelves that are damaged


def flip(lab: Lab, role: str, offset: int = 3 * MIB) -> str:
    """Turn a bit of an image in the store over; its file."""
    (image,) = [each for each in store(lab).find() if each.properties.get("kvmops_role") == role]
    path = Path(image.where)
    content = bytearray(path.read_bytes())
    content[min(offset, len(content) - 1)] ^= 1
    path.write_bytes(content)
    return f"{STORE}/{path.name}"


@pytest.mark.parametrize("start", ["instant", "copied"])
def test_a_flipped_bit_is_found_and_the_shelf_stays(lab: Lab, play: Playbook, start: str) -> None:
    small(lab, play)
    path = flip(lab, "disk")
    told = play(shelve(start=start), host=THERE).error()["result"]["vms"][0]
    assert told["code"] == "invalid"
    assert path in told["msg"]
    clean(lab)
    whole(lab)
    flip(lab, "disk")
    play(shelve(start=start), host=THERE).ok()
    has_its_data(lab)


def test_what_a_guest_did_since_an_earlier_task_is_not_thrown_away_for_it(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    play(shelve(wait_for="running"), host=THERE).ok()
    flip(lab, "disk")
    told = play(shelve(), host=THERE).error()["result"]["vms"][0]
    assert told["code"] == "invalid"
    assert lab.state(THERE, "a").startswith("running")
    assert on_shelf(lab) == ["claim", "disk", "domain"]
    flip(lab, "disk")
    play(shelve(), host=THERE).ok()


def test_images_that_are_gone_are_named(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    kept = store(lab)
    (base,) = [each for each in kept.find() if each.name.startswith("base-")]
    lab.sh(THERE, f"mv {STORE}/{base.id}.json {STORE}/{base.id}.gone")
    told = play(shelve(), host=THERE).error()["result"]["vms"][0]
    assert base.id in told["msg"]
    clean(lab)
    lab.sh(THERE, f"mv {STORE}/{base.id}.gone {STORE}/{base.id}.json")
    (disk,) = [each for each in kept.find() if each.properties.get("kvmops_role") == "disk"]
    lab.sh(THERE, f"truncate -s 1M {STORE}/{disk.id}.img")
    told = play(shelve(), host=THERE).error()["result"]["vms"][0]
    assert disk.id in told["msg"]
    clean(lab)


# ---- one host wins


def test_of_two_hosts_one_wins(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    told = play({**shelve(), "ignore_errors": True}, host="all")
    codes = sorted(result["result"]["vms"][0].get("code", "") for result in told.results)
    assert codes in (["", "refused"], ["", "not_found"], ["", "busy"]), told.output
    assert sum(lab.domains(host) == ["a"] for host in (HERE, THERE)) == 1
    assert on_shelf(lab) == []


def test_a_claim_is_honoured_until_it_is_overridden(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    play.killed_at("prepare", shelve(), host=THERE)
    for options in ({}, {"start": "copied"}):
        told = play(shelve(**options), host=HERE).error()["result"]["vms"][0]
        assert (told["code"], told["details"]["host"]) == ("refused", THERE)
    assert lab.domains(HERE) == []
    (done,) = play(shelve(override_claim=True), host=HERE).ok()["result"]["vms"]
    assert done["figures"]["overridden_claim"] == THERE
    has_its_data(lab, host=HERE)
    assert on_shelf(lab) == []


# ---- killed


@pytest.mark.parametrize(
    ("step", "base"),
    # Where the base lies makes a difference to some steps only.
    [
        *((step, "away") for step in (*INSTANT, "end")),
        *((step, "here") for step in ("prepare", "start", "pull", "settle")),
    ],
)
def test_killed_before_any_step_the_same_task_finishes_it(lab: Lab, play: Playbook, step: str, base: str) -> None:
    small(lab, play)
    if base == "here":
        lab.sh(THERE, f"mkdir -p {IMAGES}/_base")
        play(shelve(start="copied"), host=THERE).ok()
        play(shelve("offloaded", force=True), host=THERE).ok()
    play.killed_at(step, shelve(), host=THERE)
    (done,) = play(shelve(), host=THERE).ok()["result"]["vms"]
    assert (done["status"], done["power_state"]) == ("ACTIVE", "RUNNING")
    assert on_shelf(lab) == []
    assert lab.files(THERE) == [f"{IMAGES}/a.qcow2"]
    assert lab.sh(THERE, "ls /run/kvmops").split() == ["ready"]
    has_its_data(lab)
    assert not play(shelve(), host=THERE).ok()["result"]["changed"]
    assert "backingStore" not in lab.sh(THERE, "virsh dumpxml --inactive a")


@pytest.mark.parametrize("step", COPIED[1:3])
def test_killed_while_it_is_copied_the_same_task_finishes_it(lab: Lab, play: Playbook, step: str) -> None:
    small(lab, play)
    play.killed_at(step, shelve(start="copied"), host=THERE)
    (done,) = play(shelve(start="copied"), host=THERE).ok()["result"]["vms"]
    assert done["status"] == "ACTIVE"
    assert on_shelf(lab) == []
    has_its_data(lab)


def test_what_cannot_be_started_is_taken_back(lab: Lab, play: Playbook) -> None:
    small(lab, play)
    # A file that is not there when QEMU wants it.
    missing = "<disk type='file' device='disk'><source file='/nowhere'/><target dev='vdz' bus='virtio'/></disk>"
    script = (
        f'virsh dumpxml --inactive a > /tmp/x.xml; sed -i "s#</devices>#{missing}</devices>#" /tmp/x.xml;'
        " virsh -q define /tmp/x.xml"
    )
    played = play.disturbed_at("start", script, shelve(), host=THERE)
    assert played.error()["result"]["vms"][0]["status"] == "SHELVED_OFFLOADED"
    clean(lab)
    whole(lab)
    play(shelve(), host=THERE).ok()
    has_its_data(lab)


# ---- what happens while the data come


def slow(lab: Lab, play: Playbook, launch: Launch) -> tuple[Guest, str, int]:
    """A guest with data that come at one MiB a second, on its shelf: the guest, the hash of the data, its counter."""
    known(lab, launch)
    launch("a")
    guest = lab.booted(HERE, "a")
    data = fill(guest, 24)
    before = guest.wait_counter()
    offloaded(play, force=True)
    return moved(guest), data, before


def pulling(lab: Lab) -> bool:
    """Whether a pull is under way."""
    return "Block Pull" in lab.sh(THERE, "virsh blockjob a vda 2>&1", check=False)


def stretch(lab: Lab) -> None:
    """Let a pull that no module looks after take longer than whatever a test does meanwhile."""
    lab.sh(THERE, "virsh -q blockjob a vda --bandwidth 65536 --bytes")
    assert pulling(lab)


def test_the_module_and_libvirtd_and_qemu_are_killed_in_a_pull(lab: Lab, play: Playbook, launch: Launch) -> None:
    guest, data, before = slow(lab, play, launch)
    with play.running([shelve(bandwidth=1)], host=THERE):
        wait_for(lambda: pulling(lab))
        told = play(task("vm_info", name="a"), host=THERE).ok()["result"]["vms"][0]
        assert told["operation"]["action"] == "unshelve"
        assert "vda" in told["operation"]["progress"]["disks"]
        lab.kill_module(THERE, signal.SIGKILL)
    stretch(lab)
    guest.wait_up()
    before = guest.wait_counter()
    # QEMU dies with half of the data: what the guest wrote meanwhile is there.
    lab.sh(THERE, "pkill -9 qemu")
    wait_for(lambda: lab.state(THERE, "a").startswith("shut off"))
    with play.running([shelve(bandwidth=1)], host=THERE) as run:
        wait_for(lambda: pulling(lab), 120)
        lab.fault(THERE, "kill-libvirtd")
        time.sleep(1)
        lab.fault(THERE, "start-libvirtd")
        run.played().ok()
    counted(guest, before, boots=2)
    assert blob(guest) == data
    assert on_shelf(lab) == []


def test_the_host_loses_its_power_in_a_pull(lab: Lab, play: Playbook, launch: Launch) -> None:
    guest, data, before = slow(lab, play, launch)
    with play.running([shelve(bandwidth=1)], host=THERE):
        wait_for(lambda: pulling(lab))
        guest.wait_up()
        before = guest.wait_counter()
        lab.fault(THERE, "power-off")
    lab.fault(THERE, "boot")
    play(shelve(), host=THERE).ok()
    counted(guest, before, boots=2)
    assert blob(guest) == data


def test_a_guest_that_shuts_down_in_a_pull_is_off_with_all_its_data(lab: Lab, play: Playbook, launch: Launch) -> None:
    guest, data, before = slow(lab, play, launch)
    play(shelve(bandwidth=1, wait_for="running"), host=THERE).ok()
    stretch(lab)
    guest.wait_up()
    guest.virsh("shutdown", "a")
    wait_for(lambda: lab.state(THERE, "a").startswith("shut off"))
    (done,) = play(shelve(), host=THERE).ok()["result"]["vms"]
    assert (done["status"], done["power_state"]) == ("SHUTOFF", "SHUTDOWN")
    assert on_shelf(lab) == []
    play(task("vm_power", name="a", state="running"), host=THERE).ok()
    counted(guest, before, boots=2)
    assert blob(guest) == data


def test_a_pull_that_is_not_done_in_time_goes_on(lab: Lab, play: Playbook) -> None:
    small(lab, play, data="0 30M")
    told = play(shelve(bandwidth=1, wait_timeout=2), host=THERE).error()["result"]["vms"][0]
    assert told["code"] == "timed_out"
    assert told["task_state"] == "unshelving"
    assert pulling(lab)
    play(shelve(), host=THERE).ok()
    has_its_data(lab)


# ---- out of Glance


@pytest.fixture
def cloud(glance: Glance, lab: Lab) -> dict[str, t.Any]:
    """The option for a Glance that is well and empty."""
    assert glance.images() == []
    return {"image_store": {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}}


def bridges(lab: Lab) -> list[str]:
    """The processes through which QEMU reads images in Glance."""
    return lab.sh(THERE, "pgrep -x nbdkit || true").split()


def test_a_vm_runs_at_once_out_of_glance_whatever_glance_does(
    lab: Lab, play: Playbook, launch: Launch, glance: Glance, cloud: dict[str, t.Any]
) -> None:
    launch("a")
    guest = lab.booted(HERE, "a")
    data, before = fill(guest, 24), guest.wait_counter()
    play(shelve("offloaded", force=True, **cloud), host=HERE).ok()
    clean(lab, HERE)
    # The pull takes twice as long as the faults, while the guest boots.
    with play.running([shelve(bandwidth=1, **cloud)], host=THERE) as run:
        wait_for(lambda: lab.domains(THERE) == ["a"] and pulling(lab))
        for fault in (("expire",), ("reset", "--on", "download", "--times", "3"), ("kill",)):
            glance.fault(*fault)
            time.sleep(1)
        assert lab.state(THERE, "a").startswith("running")
        glance.fault("start")
        glance.heal()
        moved(guest).wait_up()
        run.played().ok()
    counted(guest, before)
    assert blob(guest) == data
    assert bridges(lab) == []
    assert lab.sh(THERE, "ls /run/kvmops").split() == ["ready"]
    # The base that was put there stays, as an image like others.
    assert [image["name"].startswith("base-") for image in glance.images()] == [True]


def test_a_run_that_died_finds_its_bridges_again_or_makes_others(
    lab: Lab, play: Playbook, glance: Glance, cloud: dict[str, t.Any]
) -> None:
    path = pattern(lab, data="0 30M")
    define(lab, "a", devices=file_disk(path, "qcow2", "vda"))
    lab.sh(HERE, "virsh -q start a")
    play(shelve("offloaded", force=True, **cloud), host=HERE).ok()
    play(shelve(wait_for="running", bandwidth=1, **cloud), host=THERE).ok()
    assert len(bridges(lab)) == 2
    # Those who serve it die: the guest stands still or the pull fails, until somebody looks after it.
    lab.sh(THERE, "kill -9 " + " ".join(bridges(lab)))
    wait_for(lambda: not pulling(lab))
    (done,) = play(shelve(**cloud), host=THERE).ok()["result"]["vms"]
    assert done["status"] == "ACTIVE"
    assert bridges(lab) == []
    has_its_data(lab)
    # Damage is found here, too.
    play(shelve("offloaded", force=True, **cloud), host=THERE).ok()
    glance.fault("corrupt", "--after", "1M", "--times", "1")
    told = play(shelve(start="copied", **cloud), host=HERE).error()["result"]["vms"][0]
    assert "damaged" in told["msg"]
    assert lab.domains(HERE) == []
    glance.heal()
    play(shelve(start="copied", **cloud), host=HERE).ok()
    has_its_data(lab, host=HERE)
