# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rescuing real VMs: guests that do not boot are repaired from inside, and every VM is afterwards what it was before."""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET

import pytest

from tests.integration.harness import Glance, Lab, Playbook, Result, Task, define, file_disk, task, wait_for
from tests.integration.test_vm_rebuild import definition, disks, image, own_files, small, stored
from tests.lab.kvmlab.guest import MEMORY_UEFI_MIB, NO_INIT

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/images"
NVRAM = "/var/lib/libvirt/qemu/nvram"
WAY_OUT = "Use vm_rescue with state: unrescued first."
SLOW = 240  # seconds that a guest has to boot by UEFI on a busy machine


@pytest.fixture(autouse=True)
def no_images(lab: Lab) -> None:
    """An empty store beside an empty base cache."""
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base {STORE}")


def rescue(**options: t.Any) -> Task:
    return task("vm_rescue", **{"name": "a", "state": "rescued", "force": True, **options})


def unrescue(**options: t.Any) -> Task:
    return rescue(**{"state": "unrescued", **options})


def told(lab: Lab, name: str = "a") -> str:
    """The whole definition with its secrets, as libvirt tells it, but for what we remember."""
    text = lab.sh("kvm1", f"virsh dumpxml --inactive --security-info {name}")
    return re.sub(r"\s*<metadata>\s*<kvmops:instance.*?</kvmops:instance>\s*</metadata>", "", text, flags=re.S)


def remembered(lab: Lab, name: str = "a") -> str:
    """What we remember of a VM."""
    return lab.sh("kvm1", f"virsh metadata {name} urn:kvmops:lifecycle:instance --config")


def layout(lab: Lab, name: str = "a") -> list[tuple[str, str, str, str]]:
    """Of each disk in the definition: what it is, its target, its bus, and its boot order."""
    found = []
    for node in definition(lab, name).iterfind("devices/disk"):
        target, boot = node.find("target"), node.find("boot")
        assert target is not None
        order = "" if boot is None else boot.get("order", "")
        found.append((node.get("device", ""), target.get("dev", ""), target.get("bus", ""), order))
    return found


def statuses(result: Result) -> dict[str, str]:
    return {vm["name"]: f"{vm['status']} {vm['power_state']}" for vm in result["vms"]}


# ---- what it is for


def test_a_guest_that_does_not_boot_is_rescued_repaired_from_inside_and_boots(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    (vm,) = launch("a", flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]}, cloud_init={})["vms"]
    guest = lab.booted("kvm1", "a")
    guest.break_init()
    guest.virsh("reset", "a")
    guest.wait_console(NO_INIT, SLOW)
    before, files = told(lab), own_files(lab, vm)
    credentials = {"password": "open-sesame", "ssh_keys": ["ssh-ed25519 AAAA ada@example.org"]}
    ask = {"name": "a", "image": lab.vars["lab_rescue_image"], "credentials": credentials, "shutdown_timeout": 2}
    result = play.quartet("vm_rescue", state="rescued", wait_for="agent", wait_timeout=SLOW, **ask)
    (done,) = result["vms"]
    assert done["steps"] == ["stage", "stop", "swap", "start"]
    assert done["figures"]["shutdown"] == "forced"
    assert statuses(result) == {"a": "RESCUE RUNNING"}
    assert result.get("warnings", []) == []
    # The VM's own disks are what they were. Its data for cloud-init are left out, as there are others.
    assert [each[1:] for each in layout(lab)][:3] == [("vda", "virtio", ""), ("vdb", "virtio", ""), ("vdc", "virtio", "1")]
    guest.wait_console("^GUEST-UP a ", SLOW, count=2)
    assert re.search("^DISK vda2 guest$", guest.console(), re.M)
    assert re.search("^DISK vdc2 rescue$", guest.console(), re.M)
    encrypted = guest.run("grep ^root: /etc/shadow").split(":")[1]
    assert guest.run(f"mkpasswd -m sha512 -S '{encrypted.split('$')[2]}' open-sesame") == encrypted
    assert guest.run("cat /root/.ssh/authorized_keys") == credentials["ssh_keys"][0]
    (info,) = play(task("vm_info", name="a")).ok()["result"]["vms"]
    assert (info["status"], info["problems"]) == ("RESCUE", [])
    assert "open-sesame" not in remembered(lab)
    guest.repair_init("vda")
    result = play.quartet("vm_rescue", name="a", state="unrescued", wait_for="agent", wait_timeout=SLOW)
    assert result["vms"][0]["steps"] == ["stop", "swap_back", "start", "remove"]
    assert statuses(result) == {"a": "ACTIVE RUNNING"}
    guest.wait_up(boots=3, seconds=SLOW)
    assert "rescue" not in guest.run("cat /proc/cmdline")
    log = guest.counter_on_disk()
    assert log == list(range(1, len(log) + 1))
    assert (told(lab), own_files(lab, vm)) == (before, files)


def test_by_uefi_with_variables_of_its_own_meanwhile(lab: Lab, play: Playbook, launch: Launch) -> None:
    (vm,) = launch("a", start=False, firmware="uefi", flavor={"vcpus": 1, "memory": MEMORY_UEFI_MIB})["vms"]
    # Its variables are there from its first start on. Its boot loaders are lost.
    lab.sh("kvm1", f"virsh -q start --paused a; virsh -q destroy a; qemu-io -c 'write -z 1M 24M' {disks(lab)['vda']}")
    (variables,) = lab.sh("kvm1", f"ls {NVRAM}/*").split()
    own, before = lab.sh("kvm1", f"sha256sum {variables}"), told(lab)
    ask = {"name": "a", "image": lab.vars["lab_rescue_image"]}
    result = play.quartet("vm_rescue", state="rescued", wait_for="agent", wait_timeout=SLOW, **ask)
    assert result["vms"][0]["steps"] == ["stage", "swap", "start"]
    guest = lab.guest("kvm1", "a")
    guest.wait_up(seconds=SLOW)
    guest.run("test -d /sys/firmware/efi; dd if=/dev/vdb1 of=/dev/vda1 bs=1M 2>/dev/null; mount -t vfat /dev/vda1 /mnt")
    guest.run("sed -i s/LABEL=rescue/LABEL=guest/ /mnt/loader/entries/linux.conf; umount /mnt; sync")
    assert len(lab.sh("kvm1", f"ls {NVRAM}/*").split()) == 2
    result = play.quartet("vm_rescue", name="a", state="unrescued")
    assert result["vms"][0]["steps"] == ["stop", "swap_back", "remove"]
    assert result["vms"][0]["figures"]["shutdown"] == "guest"
    assert statuses(result) == {"a": "SHUTOFF SHUTDOWN"}
    assert lab.sh("kvm1", f"sha256sum {NVRAM}/*") == own
    assert (told(lab), own_files(lab, vm)) == (before, ["root.qcow2"])
    play(task("vm_power", name="a", state="running")).ok()
    guest.wait_console("^GUEST-UP guest ", SLOW)


# ---- every state and every bus

_PANIC = "<on_crash>preserve</on_crash>"


def _shelf_of_vms(lab: Lab) -> None:
    """VMs as other tools make them, each on another bus, with two disks, a drive and boot orders; without a system."""
    cd = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='{}' bus='{}'/><readonly/></disk>"
    machines = {"virtio": "q35", "scsi": "q35", "sata": "q35", "ide": "pc", "failed": "pc", "crashed": "pc"}
    for name, machine in machines.items():
        bus = name if name in ("virtio", "scsi", "sata", "ide") else "virtio"
        prefix = {"virtio": "vd", "ide": "hd"}.get(bus, "sd")
        paths = [f"{IMAGES}/{name}{number}.qcow2" for number in (0, 1)]
        lab.sh("kvm1", "; ".join(f"qemu-img create -q -f qcow2 {path} 8M" for path in paths))
        devices = "".join(
            f"<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='{path}'/>"
            f"<target dev='{prefix}{letter}' bus='{bus}'/><boot order='{order}'/></disk>"
            for path, letter, order in zip(paths, "ab", (2, 1))
        )
        devices += cd.format("hdc", "ide") if machine == "pc" else cd.format("sdz", "sata")
        devices += "<graphics type='vnc' passwd='s3cret' autoport='yes'/><video><model type='cirrus'/></video>"
        extra = f"<on_crash>preserve</on_crash><metadata><x:it xmlns:x='urn:x' at='1'>theirs</x:it></metadata>"
        devices += "<panic model='isa'/>" if name == "crashed" else ""
        define(lab, name, devices=devices, extra=extra, machine=machine)
