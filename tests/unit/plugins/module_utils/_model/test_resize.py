# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of a VM that gets another size: its disks, its definition, and what is remembered."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    Refused,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import resize
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import read_domain
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.resize import Asked, Growth, Record, Reshape

GIB = 1 << 30
TAG = "0badcafe"
FLAVOR = Flavor(vcpus=2, memory=512, root=10, ephemeral=(1,), swap=64, name="small")
OWN = (
    OwnDisk("root", "vda", "/d/root.qcow2"),
    OwnDisk("ephemeral", "vdb", "/d/ephemeral0.qcow2"),
    OwnDisk("swap", "vdc", "/d/swap.qcow2"),
)
SIZES = {"vda": 10 * GIB, "vdb": GIB, "vdc": 64 << 20}


def xml(
    *, vcpu: str = "<vcpu>2</vcpu>", memory: str = "<memory unit='MiB'>512</memory>", extra: str = "", devices: str = ""
) -> ET.Element:
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{disk.path}'/>"
        f"<target dev='{disk.target}' bus='virtio'/></disk>"
        for disk in OWN
    )
    return ET.fromstring(
        f"<domain type='qemu'><name>a</name>{memory}{vcpu}{extra}<os><type>hvm</type></os>"
        f"<devices>{disks}{devices}</devices></domain>"
    )


def figure(*, instance: Instance | None = None, tree: ET.Element | None = None, **asked: t.Any) -> Reshape:
    known = Instance(flavor=FLAVOR, disks=OWN) if instance is None else instance
    domain = read_domain(xml() if tree is None else tree)
    return resize.figure(domain, known, SIZES, Asked(**asked), tag=TAG, name="a")


def shaped(tree: ET.Element, **asked: t.Any) -> tuple[ET.Element, list[str]]:
    return resize.reshaped(tree, figure(tree=tree, **asked), name="a")


# ---- what is wanted


def test_what_is_not_said_stays_as_it_is() -> None:
    shape = figure(vcpus=2)
    assert shape == Reshape(2, 512, FLAVOR)
    assert not resize.changes(read_domain(xml()), shape)
    assert resize.changes(read_domain(xml()), figure(vcpus=3))


def test_a_name_alone_is_no_change() -> None:
    shape = figure(name="other")
    assert shape.flavor == replace(FLAVOR, name="other")
    assert not resize.changes(read_domain(xml()), shape)


def test_a_disk_that_grows_gets_a_file_over_it() -> None:
    shape = figure(root=20, ephemeral=(2,))
    over = f"/d/root-resize-{TAG}.qcow2"
    assert shape.grown == (
        Growth("vda", 20 * GIB, 10 * GIB, "/d/root.qcow2", "qcow2", over),
        Growth("vdb", 2 * GIB, GIB, "/d/ephemeral0.qcow2", "qcow2", f"/d/ephemeral0-resize-{TAG}.qcow2"),
    )
    assert shape.flavor == replace(FLAVOR, root=20, ephemeral=(2,))
    assert over in shape.files


def test_new_disks_lie_beside_the_root_disk_and_come_last() -> None:
    shape = figure(ephemeral=(1, 3, 4))
    assert [(extra.role, extra.target, extra.path, extra.size) for extra in shape.added] == [
        ("ephemeral", "vdd", f"/d/ephemeral1-{TAG}.qcow2", 3 * GIB),
        ("ephemeral", "vde", f"/d/ephemeral2-{TAG}.qcow2", 4 * GIB),
    ]


@pytest.mark.parametrize("size", [32, 128])
def test_a_swap_disk_of_another_size_is_a_new_one_in_its_place(size: int) -> None:
    shape = figure(swap=size)
    assert shape.dropped == (OWN[2],)
    assert [(extra.role, extra.target, extra.size) for extra in shape.added] == [("swap", "vdc", size << 20)]


def test_no_swap_means_no_disk_for_it() -> None:
    assert (figure(swap=0).dropped, figure(swap=0).added) == ((OWN[2],), ())


@pytest.mark.parametrize(
    "asked", [{"root": 9}, {"ephemeral": ()}, {"ephemeral": (1,), "root": 1}], ids=["root", "fewer", "root-too"]
)
def test_nothing_shrinks(asked: dict[str, t.Any]) -> None:
    with pytest.raises(Refused, match="asked for"):
        figure(**asked)


@pytest.mark.parametrize("asked", [{"vcpus": 0}, {"memory": 0}, {"ephemeral": (0,)}])
def test_a_size_of_nothing_is_none(asked: dict[str, t.Any]) -> None:
    with pytest.raises(Invalid, match="must be at least"):
        figure(**asked)


def test_of_a_vm_that_others_made_only_some_sizes_are_known() -> None:
    shape = figure(instance=Instance(), root=11, memory=600)
    assert (shape.flavor, shape.memory, len(shape.grown)) == (None, 600, 1)
    with pytest.raises(Refused, match="not launched by this collection"):
        figure(instance=Instance(), swap=1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("type='file' device", "type='block' device", "kind block"),
        ("type='qcow2'", "type='vmdk'", "format vmdk"),
        ("bus='virtio' />", "bus='virtio' /><shareable/>", "alone"),
        ("bus='virtio' />", "bus='virtio' /><encryption format='luks'/>", "encrypted"),
    ],
)
def test_a_disk_that_cannot_grow_here_is_refused(old: str, new: str, why: str) -> None:
    root = ET.fromstring(ET.tostring(xml(), encoding="unicode").replace('"', "'").replace(old, new))
    with pytest.raises(Refused, match=why):
        resize.figure(read_domain(root), Instance(), SIZES, Asked(root=20), tag=TAG, name="a")


def test_a_reshape_is_read_as_it_was_written() -> None:
    shape = figure(root=20, ephemeral=(1, 2), swap=1, name="big")
    assert Reshape.load(shape.dump()) == shape


# ---- the definition


def test_cpus_and_memory_are_those_of_the_flavor() -> None:
    root, told = shaped(xml(memory="<memory>524288</memory><currentMemory>524288</currentMemory>"), vcpus=3, memory=768)
    domain = read_domain(root)
    assert (domain.vcpus, domain.max_vcpus, domain.memory, domain.current_memory) == (3, 3, 768, 768)
    assert told == []


def test_a_limit_for_plugging_in_stays_while_it_is_enough() -> None:
    root = xml(vcpu="<vcpu current='2'>4</vcpu>", extra="<vcpus><vcpu id='0' enabled='yes'/></vcpus>")
    assert [read_domain(shaped(root, vcpus=count)[0]).max_vcpus for count in (1, 3, 4)] == [4, 4, 4]
    assert [read_domain(shaped(root, vcpus=count)[0]).vcpus for count in (1, 3, 5)] == [1, 3, 5]
    assert shaped(root, vcpus=3)[0].find("vcpus") is None


@pytest.mark.parametrize(
    ("vcpus", "shape"),
    [(4, ("2", "1", "2")), (6, ("3", "1", "2")), (3, ("1", "3", "1")), (1, ("1", "1", "1"))],
)
def test_the_topology_fits_the_number_of_cpus(vcpus: int, shape: tuple[str, str, str]) -> None:
    root = xml(extra="<cpu><topology sockets='1' cores='1' threads='2'/></cpu>")
    made, told = shaped(root, vcpus=vcpus)
    node = made.find("cpu/topology")
    assert node is not None
    assert (node.get("sockets"), node.get("cores"), node.get("threads")) == shape
    assert len(told) == 1


def test_cpus_that_are_gone_are_pinned_no_more() -> None:
    tune = "<cputune><shares>9</shares><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='1'/>"
    root, _told = shaped(xml(extra=f"{tune}<vcpusched vcpus='0-1' scheduler='rr' priority='1'/></cputune>"), vcpus=1)
    assert [node.get("vcpu") for node in root.iterfind("cputune/vcpupin")] == ["0"]
    assert [node.get("vcpus") for node in root.iterfind("cputune/vcpusched")] == ["0"]
    assert root.findtext("cputune/shares") == "9"


def test_a_single_numa_cell_follows_and_more_are_refused() -> None:
    cell = "<cell id='0' cpus='0-1' memory='524288' unit='KiB'/>"
    root, _told = shaped(xml(extra=f"<cpu><numa>{cell}</numa></cpu>"), vcpus=4, memory=600)
    node = root.find("cpu/numa/cell")
    assert node is not None
    assert (node.get("cpus"), node.get("memory"), node.get("unit")) == ("0-3", "600", "MiB")
    for asked in ({"vcpus": 4}, {"memory": 600}):
        with pytest.raises(Refused, match="2 NUMA cells"):
            shaped(xml(extra=f"<cpu><numa>{cell}{cell}</numa></cpu>"), **asked)


def test_modules_of_memory_stay_and_the_rest_follows() -> None:
    memory = "<maxMemory slots='2' unit='MiB'>600</maxMemory><memory unit='MiB'>512</memory>"
    cell = "<cpu><numa><cell id='0' cpus='0-1' memory='393216' unit='KiB'/></numa></cpu>"
    module = "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>"
    root, told = shaped(xml(memory=memory, extra=cell, devices=module), memory=700)
    node = root.find("cpu/numa/cell")
    assert node is not None
    assert (node.get("memory"), root.findtext("maxMemory")) == ("572", "700")
    assert "limit" in told[0]
    with pytest.raises(Refused, match="modules of 128 MiB"):
        shaped(xml(memory=memory, extra=cell, devices=module), memory=128)


def test_disks_come_and_go_in_the_definition() -> None:
    root, _told = shaped(xml(), ephemeral=(1, 2), swap=0)
    domain = read_domain(root)
    assert [disk.target for disk in domain.disks] == ["vda", "vdb", "vdd"]
    driver = root.findall("devices/disk/driver")[-1]
    assert (driver.get("type"), driver.get("cache")) == ("qcow2", "none")


# ---- while it runs


def plug(tree: ET.Element, **asked: t.Any) -> resize.Plugging:
    return resize.plugging(tree, figure(tree=tree, **asked), name="a")


def test_a_running_guest_is_given_what_its_definition_allows() -> None:
    root = xml(
        vcpu="<vcpu current='2'>4</vcpu>",
        memory="<memory unit='MiB'>1024</memory><currentMemory unit='MiB'>512</currentMemory>",
    )
    assert plug(root, vcpus=4, memory=1024, root=20) == resize.Plugging(vcpus=4, balloon=1024)
    memory = "<maxMemory slots='2' unit='MiB'>2048</maxMemory><memory unit='MiB'>512</memory>"
    found = plug(xml(memory=memory), memory=768)
    assert found == resize.Plugging(module=256)
    assert ET.fromstring(resize.module_element(found)).findtext("target/size") == "256"


@pytest.mark.parametrize(
    "asked",
    [{"vcpus": 3}, {"vcpus": 1}, {"memory": 768}, {"memory": 256}, {"swap": 0}, {"ephemeral": (1, 1)}],
)
def test_what_a_running_guest_cannot_be_given_is_refused(asked: dict[str, t.Any]) -> None:
    with pytest.raises(Unsupported, match="VM a ") as caught:
        plug(xml(), **asked)
    assert "Leave out hotplug" in str(caught.value)


# ---- what is remembered


def record(**changes: t.Any) -> Record:
    shape = figure(root=20, ephemeral=(1, 2), swap=32)
    told: dict[str, t.Any] = {
        "definition": "<domain/>",
        "power": "running",
        "flavor": resize.dump_flavor(FLAVOR),
        "reshape": shape.dump(),
        "disks": resize.dump_disks(OWN),
    }
    return Record(**{**told, **changes})


def test_a_record_is_read_as_it_was_written() -> None:
    mark = record().mark("then")
    assert Record.load(mark) == record()
    assert (record().old_flavor, record().own_disks) == (FLAVOR, OWN)
    assert resize.resized_mark((Mark("error", "later"), mark)) == mark
    with pytest.raises(Invalid, match="'power' is missing"):
        Record.load(Mark("resized", "then", {"definition": ""}))


def test_what_a_revert_would_lose_is_told() -> None:
    assert record().tell()["revert_loses"] == ["what was written to vda since"]
    assert record(reshape=figure(vcpus=4).dump()).tell()["revert_loses"] == []
    layout = '{"disks": [{"target": "vda", "how": "copied"}, {"target": "vdb", "how": "shared"}]}'
    assert record(reshape="", side="moved", layout=layout).tell()["revert_loses"] == ["what was written to vda since"]


def test_files_of_a_resize_are_its_own_until_it_is_confirmed() -> None:
    mark = record().mark("then")
    shape = record().shape
    assert shape is not None
    extra = [OwnDisk("resize", "vdx", path) for path in (*shape.files, "/d/old-resize-1.qcow2")]
    instance = Instance(disks=(*OWN, *extra), marks=(mark,))
    assert resize.leftovers(instance) == ["/d/old-resize-1.qcow2"]
    assert resize.leftovers(replace(instance, marks=())) == [*shape.files, "/d/old-resize-1.qcow2"]
    settled = resize.settled_disks(instance.disks, record())
    assert [(disk.role, disk.target) for disk in settled] == [
        ("root", "vda"),
        ("ephemeral", "vdb"),
        ("ephemeral", "vdd"),
        ("swap", "vdc"),
    ]


def test_sizes_are_told_before_and_after() -> None:
    domain = read_domain(xml())
    before = resize.tell_sizes(domain, FLAVOR, SIZES)
    assert before == {"name": "small", "vcpus": 2, "memory": 512, "root": 10.0, "ephemeral": [1], "swap": 64}
    after = resize.tell_after(before, figure(root=20, swap=0, vcpus=4), domain)
    assert after == {**before, "vcpus": 4, "root": 20.0, "swap": 0}


def test_errors_say_the_way_out() -> None:
    with pytest.raises(LifecycleError) as caught:
        figure(root=5)
    assert "cannot shrink" in str(caught.value)
