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
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import DirectoryStore, NewImage, TextContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import shelf
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
    """A definition, without what we remember."""
    root = definition(lab, host, name)
    metadata = root.find("metadata")
    assert metadata is not None
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
