# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rebuilding VMs that are off, on libvirt's in-memory driver with real files. Guests that run are on the lab."""

from __future__ import annotations

import platform
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.chain import read_qcow2
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, Mark, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.rebuild import Began, Change
from ansible_collections.kvmops.lifecycle.plugins.modules import vm_rebuild
from tests.unit.hypervisor import Hypervisor, Task

MIB = 1 << 20


@pytest.fixture(autouse=True)
def paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver cannot start a VM with its CPUs stopped."""

    def start(guest: Guest, *, paused: bool = False) -> None:
        guest.domain.create()
        if paused:
            guest.domain.suspend()

    monkeypatch.setattr(Guest, "start", start)


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Where the VMs have their disks."""
    made = tmp_path / "disks"
    made.mkdir()
    return made


def qcow2(path: Path, size: int = 8 * MIB) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
    return str(path)


def raw(path: Path, content: bytes = b"system") -> str:
    path.write_bytes(content.ljust(MIB, b"\0"))
    return str(path)


def files(kvm: Hypervisor) -> list[str]:
    """The disks of the definition."""
    return [node.get("file", "") for node in kvm.domain().iterfind("devices/disk/source")]


def options(image: str, store: Path, **more: t.Any) -> dict[str, t.Any]:
    return {"name": "web1", "image": image, "image_format": "raw", "image_store": {"path": str(store)}, **more}


def test_a_vm_of_ours_has_another_root_disk_and_remembers_where_it_is_from(
    kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path
) -> None:
    old, data, image = qcow2(disks / "root.qcow2"), qcow2(disks / "data.qcow2"), raw(tmp_path / "new.raw")
    kvm.define("web1", running=False, disks=[old, data])
    launch = Launch("then", "ada", "old", "/b", "raw", "00", str(tmp_path / "s"), {"cloud_init": "1"}, image_id="7")
    kvm.remember(Instance(launch=launch, disks=(OwnDisk("root", "vda", old),), foreign=("<later />",)))
    told = task.quartet(vm_rebuild.main, **options(image, tmp_path))["vms"][0]
    assert told["steps"] == ["stage", "swap", "prove", "remove_old"]
    new, kept = files(kvm)
    assert (kept, sorted(disks.iterdir())) == (data, sorted([Path(data), Path(new)]))
    header = read_qcow2(Path(new).read_bytes()[:65536])
    assert header
    assert (header.capacity, Path(header.backing).parent) == (8 * MIB, tmp_path / "s/_base")
    found = kvm.recall()
    assert found.launch
    assert (found.launch.image, found.launch.image_id, found.launch.base) == (image, "", header.backing)
    assert (found.launch.by, found.launch.spec) == ("ada", {"cloud_init": "1"})
    assert found.disks == (OwnDisk("root", "vda", new),)
    assert (found.journal, found.foreign) == (None, ("<later />",))
    # It is done again when that is said, and when the image is another one.
    assert task(vm_rebuild.main, **options(image, tmp_path, reinstall=True))["changed"]
    raw(tmp_path / "new.raw", b"newer")
    assert task(vm_rebuild.main, **options(image, tmp_path))["changed"]
    assert not task(vm_rebuild.main, **options(image, tmp_path))["changed"]
    assert len(list(disks.iterdir())) == 2


def test_a_disk_of_another_tool_is_kept_unless_it_is_listed(
    kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path
) -> None:
    old, image = qcow2(disks / "theirs.qcow2"), raw(tmp_path / "new.raw")
    kvm.define("web1", running=False, disks=[old])
    told = task.quartet(vm_rebuild.main, **options(image, tmp_path))["vms"][0]
    assert list(told["figures"]["kept_disks"]) == [old]
    (first,) = files(kvm)
    told = task(vm_rebuild.main, **options(image, tmp_path, reinstall=True))["vms"][0]
    assert told["figures"]["removed_files"] == [first]
    assert Path(old).exists()
    kvm.clear()
    kvm.define("web1", running=False, disks=[old])
    told = task(vm_rebuild.main, **options(image, tmp_path, remove_disks=["vda"]))["vms"][0]
    assert told["figures"]["removed_files"] == [old]


def test_a_vm_whose_disk_is_lost_gets_one(kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path) -> None:
    kvm.define("web1", running=False, disks=[str(disks / "gone.qcow2")])
    kvm.remember(Instance(marks=(Mark("error", "then"),)))
    told = task.quartet(vm_rebuild.main, **options(raw(tmp_path / "new.raw"), tmp_path))["vms"][0]
    assert told["status"] == "SHUTOFF"
    assert [str(path) for path in disks.glob("*.qcow2")] == files(kvm)


def test_an_old_disk_that_cannot_be_removed_is_told(
    kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = qcow2(disks / "root.qcow2")
    kvm.define("web1", running=False, disks=[old])
    kvm.remember(Instance(disks=(OwnDisk("root", "vda", old),)))
    Path(old).unlink()
    Path(old).mkdir()  # which unlink() refuses
    told = task(vm_rebuild.main, **options(raw(tmp_path / "new.raw"), tmp_path))["vms"][0]
    assert old in told["figures"]["kept_disks"]
    assert [disk.path for disk in kvm.recall().disks] == [old, *files(kvm)]


def test_what_a_run_that_died_has_made_goes_or_is_finished(
    kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path
) -> None:
    old, image = qcow2(disks / "root.qcow2"), raw(tmp_path / "new.raw")
    left = qcow2(disks / "root-0badcafe.qcow2")
    kvm.define("web1", running=False, disks=[old])
    xml = (
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>"
    )
    asked = {"image": image, "disks": ["root"]}
    began = Began(asked, False, {"vda": Change(xml.format(old), old, left)}, remove=(old,))
    journal = Journal("rebuild", "then", platform.node(), 1, "stage", began.dump())
    both = (OwnDisk("root", "vda", old), OwnDisk("root", "vda", left))
    kvm.remember(Instance(disks=both, journal=journal))
    told = task.quartet(vm_rebuild.main, **options(image, tmp_path))["vms"][0]
    assert told["steps"] == ["stage", "swap", "prove", "remove_old"]
    assert [str(path) for path in disks.glob("*.qcow2")] == files(kvm) == [disk.path for disk in kvm.recall().disks]
    # One that had swapped the disks needs no image to be finished.
    (here,) = files(kvm)
    older = qcow2(disks / "older.qcow2")
    began = Began(asked, False, {"vda": Change(xml.format(older), older, here)}, remove=(older,))
    kvm.remember(Instance(disks=both, journal=Journal("rebuild", "then", platform.node(), 1, "swap", began.dump())))
    Path(image).unlink()
    assert task(vm_rebuild.main, **options(image, tmp_path))["vms"][0]["steps"] == ["prove", "remove_old"]
    assert (files(kvm), Path(older).exists()) == ([here], False)


@pytest.mark.parametrize(
    ("state", "more", "code"),
    [
        ("paused", {}, "refused"),
        ("off", {"disks": ["vdb"]}, "not_found"),
        ("off", {"disks": []}, "refused"),
        ("off", {"remove_disks": ["vdb"]}, "invalid"),
        ("off", {"image": "nothing"}, "not_found"),
        ("on", {"wait_for": "agent"}, "unsupported"),
        ("snapshot", {}, "refused"),
    ],
)
def test_what_cannot_be_is_refused_in_check_mode_already(
    kvm: Hypervisor, task: Task, disks: Path, tmp_path: Path, state: str, more: dict[str, t.Any], code: str
) -> None:
    kvm.define("web1", running=state in ("on", "paused"), disks=[qcow2(disks / "root.qcow2")])
    if state == "paused":
        kvm.guest().pause()
    if state == "snapshot":
        kvm.guest().domain.snapshotCreateXML("<domainsnapshot><name>s1</name></domainsnapshot>")
    before = kvm.guest().text()
    for check in (True, False):
        told = task(vm_rebuild.main, check=check, **{**options(raw(tmp_path / "new.raw"), tmp_path), **more})
        assert told["code"] == code, told["msg"]
    assert kvm.guest().text() == before
    if state == "snapshot":
        kvm.guest().domain.snapshotLookupByName("s1").delete()
