# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definition of a VM as its destination needs it. What is done with disks is tried on real hosts."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.placing import Placing
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.pools import PoolStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.xml import put_instance
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import instance as memory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placing import (
    COPIED,
    SHARED,
    Layout,
    Placed,
    Problem,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Side, Subject
from tests.unit.fakes import JumpingClock
from tests.unit.hypervisor import Hypervisor

OLD, NEW = "/s/uuid", "/d/uuid"
DOMAIN = f"""
<domain type='kvm'><name>web1</name><metadata/><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{OLD}/root.qcow2'/>
<backingStore type='file'><format type='qcow2'/><source file='/s/_base/b.qcow2'/><backingStore/></backingStore>
<target dev='vda'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{OLD}/flat.raw'/>
<target dev='vdb'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{OLD}/seed.iso'/><target dev='sda'/>
<readonly/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/shared/x.raw'/><target dev='vdc'/></disk>
<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='p' volume='v'/>
<target dev='vdd'/></disk>
<serial type='pty'><log file='{OLD}/console.log'/></serial>
</devices></domain>
"""
LAUNCH = Launch("2026-01-01T00:00:00Z", "root@kvm1", "debian", "/s/_base/b.qcow2", "qcow2", "00", "/s")
REMEMBERED = Instance(launch=LAUNCH, disks=(OwnDisk("root", "vda", f"{OLD}/root.qcow2"),))


@pytest.fixture
def placing() -> t.Iterator[Placing]:
    hypervisor = Hypervisor()
    hypervisor.define("web1")
    guest = hypervisor.guest()
    host = hypervisor.host
    context = Context(host, {"dest_storage": None, "shared_storage": []}, JumpingClock(), LocalStorage("kvm1"))
    yield Placing(
        context, Subject("web1", guest, guest.look()), Side(host, PoolStorage(host), "qemu+tls://kvm2/system")
    )
    hypervisor.clear()


def layout(directory: str) -> Layout:
    """Everything local goes to *directory*."""

    def copied(target: str, device: str, name: str, disk_format: str, **more: t.Any) -> Placed:
        return Placed(target, device, COPIED, f"{OLD}/{name}", f"{directory}/{name}", disk_format, **more)

    disks = (
        copied("vda", "disk", "root.qcow2", "qcow2"),
        copied("vdb", "disk", "flat.raw", "raw"),
        copied("sda", "cdrom", "seed.iso", "raw", readonly=True),
        Placed("vdc", "disk", SHARED, "/shared/x.raw", "/shared/x.raw", "raw"),
        Placed("vdd", "disk", COPIED, "/p/v", "/q/v", "raw", pool="p"),
    )
    return Layout(disks=disks, directory=OLD, there=directory, storage=directory.rpartition("/")[0])


def domain() -> ET.Element:
    root = ET.fromstring(DOMAIN)
    put_instance(root, REMEMBERED)
    return root


def sources(root: ET.Element) -> list[str]:
    return [
        node.get("file") or f"{node.get('pool')}/{node.get('volume')}" for node in root.iterfind("devices/disk/source")
    ]


def test_paths_follow_the_files(placing: Placing) -> None:
    before = domain()
    root = placing.definition(layout(NEW), before)
    assert sources(root) == [f"{NEW}/root.qcow2", f"{NEW}/flat.raw", f"{NEW}/seed.iso", "/shared/x.raw", "p/v"]
    assert [node.get("file") for node in root.iterfind("devices/serial/log")] == [f"{NEW}/console.log"]
    assert root.findall(".//backingStore") == []  # what lies below is told by the file
    instance = memory.find(root)
    assert instance.disks == (OwnDisk("root", "vda", f"{NEW}/root.qcow2"),)
    assert instance.launch == replace(LAUNCH, storage="/d")
    assert sources(before)[0] == f"{OLD}/root.qcow2"


def test_where_nothing_moves_elsewhere_nothing_else_changes(placing: Placing) -> None:
    root = placing.definition(layout(OLD), domain())
    assert sources(root) == sources(domain())
    assert memory.find(root) == REMEMBERED
    assert root.findall(".//driver[@discard]") == []


def test_what_is_empty_in_a_flat_disk_stays_a_hole_while_it_is_mirrored(placing: Placing) -> None:
    root = placing.definition(layout(OLD), domain(), mirror=True)
    unmapping = [
        node.find("target") for node in root.iterfind("devices/disk") if node.find("driver[@discard]") is not None
    ]
    assert [node.get("dev") for node in unmapping if node is not None] == ["vdb", "vdd"]


def test_a_volume_is_named_by_its_path_while_it_is_mirrored(placing: Placing) -> None:
    root = placing.definition(layout(OLD), domain(), mirror=True)
    disk = root.findall("devices/disk")[-1]
    assert (disk.get("type"), [dict(node.attrib) for node in disk.findall("source")]) == ("file", [{"file": "/q/v"}])


def test_what_stands_against_it_is_refused_with_its_way_out(placing: Placing) -> None:
    problems = (Problem("a", "A is so.", "Do A."), Problem("b", "B is so."), Problem("c", "C.", live=False))
    with pytest.raises(Refused, match=r"VM web1 cannot be moved to .* A is so. B is so. Do A.") as caught:
        placing.prepare(Layout(problems=problems))
    assert caught.value.details == {"findings": ["a", "b"]}


def test_disks_of_a_vm_that_runs_are_not_carried(placing: Placing) -> None:
    with pytest.raises(Refused, match="VM web1 runs"):
        placing.carry(Layout())


def test_nothing_is_let_go_of_while_the_vm_runs_here(placing: Placing) -> None:
    with pytest.raises(Refused, match="its disks are not let go of"):
        placing.let_go(layout(NEW))


def test_this_machine_is_no_destination(placing: Placing) -> None:
    here = placing.context.here
    with pytest.raises(Invalid, match="Name another host as dest"):
        Placing(placing.context, placing.vm, here)
