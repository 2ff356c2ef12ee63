# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs launched from image stores, a directory and a real Glance, and the cache of base images between."""

from __future__ import annotations

import json
import signal
import subprocess
import typing as t
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import NAMESPACE
from tests.integration.harness import Glance, Lab, Playbook, Result, Task, order, task, wait_for

IMAGES = "/var/lib/libvirt/images"
BASES = f"{IMAGES}/_base"
STORE = "/var/lib/kvmops/images"
MIB = 1 << 20


class Shelf(t.Protocol):
    """An image store, filled directly and not through what is tested."""

    options: dict[str, t.Any]

    def put(self, name: str, path: Path, disk_format: str = "qcow2", **fields: t.Any) -> str:
        """A new image with the content of a file of this machine; its identifier. *fields* may be ``properties``,
        ``min_disk`` and ``min_ram``."""

    def damage(self, image_id: str, offset: int) -> None:
        """Change a byte of an image's content behind the store's back."""

    def vanish(self) -> None:
        """The store is not there any more."""


class DirectoryShelf:
    """In a directory of kvm1."""

    def __init__(self, lab: Lab, path: str = STORE) -> None:
        self.options = {"type": "directory", "path": path}
        self.outside = Path(lab.outside(path))
        self.lab = lab

    def put(self, name: str, path: Path, disk_format: str = "qcow2", **fields: t.Any) -> str:
        new = NewImage(id=str(uuid.uuid4()), name=name, disk_format=disk_format, **fields)
        return DirectoryStore(str(self.outside)).put(new, FileContent(str(path))).id

    def damage(self, image_id: str, offset: int) -> None:
        flip(self.outside / f"{image_id}.img", offset)

    def vanish(self) -> None:
        self.lab.sh("kvm1", f"rm -rf {STORE}")


class GlanceShelf:
    """The lab's Glance."""

    def __init__(self, lab: Lab, glance: Glance) -> None:
        self.options = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
        self.glance = glance

    def put(self, name: str, path: Path, disk_format: str = "qcow2", **fields: t.Any) -> str:
        told = {**fields.pop("properties", {}), **fields}
        return self.glance.client("member").upload(path.read_bytes(), name=name, disk_format=disk_format, **told)

    def damage(self, image_id: str, offset: int) -> None:
        self.glance.fault("corrupt", "--after", str(offset), "--times", "1")

    def vanish(self) -> None:
        self.glance.fault("kill")


@pytest.fixture(params=["directory", "glance"])
def shelf(request: pytest.FixtureRequest, lab: Lab) -> Shelf:
    """Either store, empty, beside an empty base cache."""
    lab.sh("kvm1", f"rm -rf {BASES} {STORE}")
    if request.param == "glance":
        return GlanceShelf(lab, request.getfixturevalue("glance"))
    return DirectoryShelf(lab)


@pytest.fixture
def directory(lab: Lab) -> DirectoryShelf:
    """The directory, for what does not depend on the store."""
    lab.sh("kvm1", f"rm -rf {BASES} {STORE}")
    return DirectoryShelf(lab)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([before ^ 0xFF]))


def qcow2(path: Path, *writes: str, size: str = "8M") -> Path:
    """A qcow2 image with some patterns in it."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    for write in writes:
        command = ["qemu-io", "-f", "qcow2", "-c", write, str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def delta(path: Path, parent: Path, *writes: str) -> Path:
    """An overlay of *parent*, then without its name."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", parent, "-F", "qcow2", path], check=True)
    for write in writes:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, path], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "", path], check=True)
    return path


def delta_of(parent_id: str, **more: str) -> dict[str, t.Any]:
    """What tells that an image is a delta."""
    told = {"kvmops_form": "delta", "kvmops_parent": parent_id, "kvmops_format": "qcow2", **more}
    return {"disk_format": "raw", "properties": told}


def launched(lab: Lab, shelf: Shelf, *names: str, image: str, **options: t.Any) -> Task:
    """The task for small VMs that are not started."""
    return task("vm", **order(lab, *names, **{"image": image, "image_store": shelf.options, "start": False, **options}))


def in_cache(lab: Lab, host: str = "kvm1") -> list[str]:
    """The files in the base cache, but for locks and memo."""
    return sorted(lab.sh(host, f"ls {BASES} 2>/dev/null || true").replace("hashes.json", "").split())


def remembered(lab: Lab, name: str) -> ET.Element:
    """What the VM's metadata say of its launch."""
    told = ET.fromstring(lab.sh("kvm1", f"virsh metadata {name} {NAMESPACE}"))
    (found,) = [node for node in told if node.tag.rpartition("}")[2] == "launch"]
    return found


def disk(lab: Lab, vm: Result, host: str = "kvm1") -> str:
    return f"{IMAGES}/{vm['uuid']}/root.qcow2"


def reads(lab: Lab, path: str, pattern: int, where: str, host: str = "kvm1") -> None:
    """See what is in a disk: *where* is an offset and a length."""
    said = lab.sh(host, f"qemu-io -f qcow2 -c 'read -P {pattern} {where}' {path}")
    assert "Pattern verification failed" not in said, (path, where, said)
    assert "read " in said, said


# ---- launching


def test_a_guest_boots_from_an_image_that_is_named_or_identified(lab: Lab, play: Playbook, shelf: Shelf) -> None:
    content = Path(lab.outside(lab.vars["lab_guest_image"]))
    properties = {"hw_qemu_guest_agent": "yes", "os_type": "linux", "hw_disk_bus": "scsi", "hw_vif_model": "e1000"}
    image_id = shelf.put("debian", content, properties=properties, min_ram=64)
    wanted = order(lab, "a", image="debian", image_store=shelf.options, disk_bus="virtio")
    wanted["networks"][0]["model"] = "virtio"
    (vm,) = play.quartet("vm", **wanted)["vms"]
    lab.booted("kvm1", "a")
    # The task comes first, then the image.
    assert play.quartet("vm", **order(lab, "b", image=image_id, image_store=shelf.options, start=False))["changed"]
    definition = lab.sh("kvm1", "virsh dumpxml --inactive b")
    assert "<target dev='sda' bus='scsi'/>" in definition
    assert "<model type='e1000'/>" in definition
    assert "<target dev='vda' bus='virtio'/>" in lab.sh("kvm1", "virsh dumpxml --inactive a")
    # One base for both, with what a snapshot needs to find it in the store again.
    marker = json.loads(lab.sh("kvm1", f"cat {vm['figures']['base']}.ok"))
    assert list(marker["images"].values()) == [image_id]
    assert marker["size"] == content.stat().st_size
    assert len(in_cache(lab)) == 2
    launch = remembered(lab, "b")
    assert {"id": image_id, "store": shelf.options["type"]}.items() <= launch[0].attrib.items()
    told = {node.get("name"): node.text for node in launch if node.tag.rpartition("}")[2] == "property"}
    assert told == properties
    # A VM is what it was, whichever of the names is said, and whoever else is called so by now.
    shelf.put("debian", content)
    for image in ("debian", image_id):
        again = play(task("vm", **{**wanted, "image": image}), "--check").ok()["result"]
        assert not again["changed"], image


def test_ten_vms_at_once_share_one_base(lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("small", qcow2(tmp_path / "i", "write -P 7 1M 64k"))
    names = [f"n{number}" for number in range(10)]
    told = play(launched(lab, shelf, *names, image="small", concurrency=10)).ok()["result"]
    assert len({vm["figures"]["base"] for vm in told["vms"]}) == 1
    assert len(in_cache(lab)) == 2
    for vm in told["vms"]:
        reads(lab, disk(lab, vm), 7, "1M 64k")


def test_a_launch_killed_in_a_download_leaves_nothing_and_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path
) -> None:
    content = tmp_path / "large.raw"
    with content.open("wb") as file:
        file.truncate(256 * MIB)
    shelf.put("large", content, "raw")
    if isinstance(shelf, GlanceShelf):
        shelf.glance.fault("stall", "--on", "download", "--after", str(64 * MIB), "--seconds", "30")
    wanted = launched(lab, shelf, "a", image="large")
    with play.running([wanted]) as process:
        wait_for(lambda: any(name.endswith(".part") for name in in_cache(lab)))
        lab.kill_module("kvm1", signal.SIGKILL)
        process.wait(60)
    assert not any(name.endswith(".ok") for name in in_cache(lab))
    if isinstance(shelf, GlanceShelf):
        shelf.glance.heal()
    play(wanted).ok()
    assert [name.rpartition(".")[2] for name in in_cache(lab)] == ["raw", "ok"]
    assert lab.domains("kvm1") == ["a"]


def test_images_that_are_not_what_is_said_are_refused_and_leave_nothing(
    lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path
) -> None:
    really = {"properties": {"kvmops_format": "qcow2"}}  # as a store takes what it would refuse
    good = qcow2(tmp_path / "good")
    (tmp_path / "text").write_text("no image at all\n" * 100, encoding="utf-8")
    backed = delta(tmp_path / "backed", good)
    subprocess.run(
        ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", backed], check=True
    )
    options = f"data_file={tmp_path}/data,data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, tmp_path / "datafile", "1M"], check=True)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:50])
    cases = {
        "lies": ("text", really, "is declared as qcow2, but it is raw"),
        "raw-lies": ("good", {}, "is declared as raw, but it is qcow2"),
        "cut": ("cut", really, "is declared as qcow2, but it is raw"),
    }
    if isinstance(shelf, DirectoryShelf):  # Glance looks for these two itself
        cases["backed"] = ("backed", really, "backing file")
        cases["outside"] = ("datafile", really, "data file")
    for name, (content, more, _word) in cases.items():
        shelf.put(name, tmp_path / content, "raw", **more)
    errors = play.errors([launched(lab, shelf, "a", image=name) for name in cases])
    for (name, (_content, _more, word)), error in zip(cases.items(), errors):
        assert error["code"] == "invalid", error["msg"]
        assert word in error["msg"]
        assert f"Image {name} (" in error["msg"]
    assert in_cache(lab) == []
    assert lab.domains("kvm1") == []
    assert lab.files("kvm1") == []


def test_an_image_that_was_damaged_is_refused_and_leaves_nothing(
    lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path
) -> None:
    image_id = shelf.put("i", qcow2(tmp_path / "i", "write -P 7 1M 1M"))
    shelf.damage(image_id, 600_000)
    error = play(launched(lab, shelf, "a", image="i")).error()["result"]
    assert error["code"] == "invalid", error["msg"]
    assert in_cache(lab) == []
    assert lab.domains("kvm1") == []
    assert lab.files("kvm1") == []


def test_without_its_store_a_vm_is_launched_from_no_image_and_compared_all_the_same(
    lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path
) -> None:
    shelf.put("i", qcow2(tmp_path / "i"))
    play(launched(lab, shelf, "a", image="i")).ok()
    shelf.vanish()
    assert not play(launched(lab, shelf, "a", image="i")).ok()["result"]["changed"]
    error = play(launched(lab, shelf, "b", image="i")).error()["result"]
    assert error["code"] in ("not_found", "unreachable"), error["msg"]
    assert lab.domains("kvm1") == ["a"]


def test_deltas_are_composed_with_what_they_lie_upon(lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path) -> None:
    writes = ("write -P 1 0 1M", "write -P 1 2M 1M", "write -P 1 4M 1M")
    whole = qcow2(tmp_path / "0", *writes)
    lowest = shelf.put("full", whole)
    # Overlays as a snapshot makes them: a zero that hides what is below, and a longer disk.
    one = delta(tmp_path / "1", whole, "write -P 2 2M 1M", "write -P 2 4M 1M", "write -z 0 64k")
    middle = shelf.put("delta1", one, **delta_of(lowest))
    two = delta(tmp_path / "2", whole, "write -P 3 4M 1M")
    shelf.put("delta2", two, **delta_of(middle, kvmops_virtual_size=str(8 * MIB)))
    told = play.quartet("vm", **launched(lab, shelf, "a", "b", image="delta2")["kvmops.lifecycle.vm"])
    for vm in told["vms"]:
        path = disk(lab, vm)
        for pattern, where in ((0, "0 64k"), (1, "64k 960k"), (2, "2M 1M"), (3, "4M 1M"), (0, "6M 1M")):
            reads(lab, path, pattern, where)
    assert len(in_cache(lab)) == 6
    # The middle one is there by now.
    (vm,) = play(launched(lab, shelf, "c", image="delta1")).ok()["result"]["vms"]
    reads(lab, disk(lab, vm), 2, "4M 1M")
    assert len(in_cache(lab)) == 6


def test_deltas_that_cannot_be_composed_are_refused(
    lab: Lab, play: Playbook, directory: DirectoryShelf, tmp_path: Path
) -> None:
    content = qcow2(tmp_path / "i", "write -P 7 1M 64k")
    ids = {name: str(uuid.uuid4()) for name in ("round1", "round2", "orphan", "gone", "mixed")}
    whole = directory.put("whole", content)
    store = DirectoryStore(str(directory.outside))

    def put(name: str, parent: str, **more: str) -> None:
        told = delta_of(parent, **more)
        store.put(NewImage(id=ids[name], name=name, **told), FileContent(str(content)))

    put("round1", ids["round2"])
    put("round2", ids["round1"])
    put("orphan", ids["gone"])
    put("mixed", whole, kvmops_parent_sha256="0" * 64)
    cases = {
        "round1": ("invalid", "there is no end to it"),
        "orphan": ("not_found", ids["gone"]),
        "mixed": ("invalid", "was made upon an image with the sha256 000"),
    }
    errors = play.errors([launched(lab, directory, "a", image=name) for name in cases])
    for (code, word), error in zip(cases.values(), errors):
        assert (error["code"], word in error["msg"]) == (code, True), error["msg"]
    assert in_cache(lab) == []


def test_a_flavor_that_is_too_small_for_the_image_is_refused_before_anything_is_fetched(
    lab: Lab, play: Playbook, directory: DirectoryShelf, tmp_path: Path
) -> None:
    directory.put("i", qcow2(tmp_path / "i"), min_disk=3, min_ram=256)
    directory.put("wide", qcow2(tmp_path / "w", size="5G"))
    told = {"kvmops_virtual_size": str(5 << 30)}
    directory.put("told", qcow2(tmp_path / "t", size="5G"), properties=told)
    directory.put("bus", qcow2(tmp_path / "b"), properties={"hw_disk_bus": "usb"})
    flavor = {"vcpus": 1, "memory": 96}
    cases: tuple[tuple[str, dict[str, t.Any], str], ...] = (
        ("i", flavor, "96 MiB of memory, and image i needs 256 MiB (min_ram)"),
        ("i", {**flavor, "memory": 256, "root": 2}, "a root disk of 2 GiB, and image i needs 3 GiB (min_disk)"),
        ("told", {**flavor, "root": 4}, "a root disk of 4 GiB, and the image needs 5.00 GiB"),
        ("bus", flavor, "hw_disk_bus with the value 'usb'"),
        ("nothing", flavor, "no image 'nothing'"),
    )
    for check in (True, False):
        tasks = [
            {**launched(lab, directory, "a", image=image, flavor=size), "check_mode": check}
            for image, size, _word in cases
        ]
        for (_image, _size, word), error in zip(cases, play.errors(tasks)):
            assert word in error["msg"], error["msg"]
    assert in_cache(lab) == []
    # Only the content of this one tells its size.
    error = play(launched(lab, directory, "a", image="wide", flavor={**flavor, "root": 4})).error()["result"]
    assert "the image needs 5.00 GiB" in error["msg"]
    assert lab.domains("kvm1") == []


def test_a_full_disk_is_seen_before_the_download(
    lab: Lab, play: Playbook, directory: DirectoryShelf, tmp_path: Path
) -> None:
    content = tmp_path / "large.raw"
    with content.open("wb") as file:
        file.truncate(64 * MIB)
    directory.put("large", content, "raw")
    lab.fault("kvm1", "fill-disk", "--leave", str(20 << 20))
    try:
        error = play(launched(lab, directory, "a", image="large")).error()["result"]
        assert error["code"] == "no_space", error["msg"]
        assert "64.0 MiB are needed" in error["msg"]
        assert in_cache(lab) == []
    finally:
        lab.fault("kvm1", "empty-disk")


def test_from_the_controller_an_image_and_its_delta_go_through_libvirt(
    lab: Lab, play: Playbook, tmp_path: Path
) -> None:
    lab.sh("kvm2", f"rm -rf {BASES}")
    store = DirectoryStore(str(tmp_path / "store"))
    whole = qcow2(tmp_path / "0", "write -P 1 0 1M", "write -P 1 2M 1M")
    lowest = store.put(NewImage(id=str(uuid.uuid4()), name="full", disk_format="qcow2"), FileContent(str(whole)))
    upper = delta(tmp_path / "1", whole, "write -P 2 2M 1M")
    store.put(NewImage(id=str(uuid.uuid4()), name="delta", **delta_of(lowest.id)), FileContent(str(upper)))
    options = {"image_store": {"type": "directory", "path": store.place}, "start": False}
    what = {**order(lab, "r1", "r2", image="delta", **options), "uri": lab.hosts["kvm2"]["lab_uri"]}
    told = play.quartet("vm", host="localhost", **what)
    for vm in told["vms"]:
        reads(lab, disk(lab, vm), 1, "0 1M", "kvm2")
        reads(lab, disk(lab, vm), 2, "2M 1M", "kvm2")
    assert len(in_cache(lab, "kvm2")) == 4
    play(task("vm", **{**what, "name": "r3"}), host="localhost").ok()
    assert len(in_cache(lab, "kvm2")) == 4


# ---- purging


def purge(storage: str = IMAGES, **options: t.Any) -> dict[str, t.Any]:
    return {"state": "purged", "storage": storage, "older_than": 0, **options}


def test_bases_that_no_vm_builds_upon_are_purged(
    lab: Lab, play: Playbook, directory: DirectoryShelf, tmp_path: Path
) -> None:
    whole = qcow2(tmp_path / "0", "write -P 1 0 1M")
    lowest = directory.put("whole", whole)
    directory.put("upper", delta(tmp_path / "1", whole, "write -P 2 1M 1M"), **delta_of(lowest))
    directory.put("other", qcow2(tmp_path / "2", "write -P 3 0 1M"))
    directory.put("boots", Path(lab.outside(lab.vars["lab_guest_image"])))
    play([launched(lab, directory, name, image=name) for name in ("upper", "other")]).ok()
    (vm,) = play(launched(lab, directory, "boots", image="boots", start=True)).ok()["result"]["vms"]
    assert len(in_cache(lab)) == 8
    # Nothing was unused for a day.
    assert not play(task("image", state="purged")).ok()["result"]["changed"]
    told = play(task("image", **purge())).ok()["result"]
    assert not told["changed"]
    assert len(told["kept"]) == 4
    play(task("vm", name=["upper", "other"], state="absent")).ok()
    quartet = [{**task("image", **purge()), "diff": True, "check_mode": mode} for mode in (True, False, False, True)]
    played = play(quartet)
    played.ok()
    results = [each["result"] for each in played.results]
    assert [each["changed"] for each in results] == [True, True, False, False]
    assert results[0]["diff"] == results[1]["diff"]
    assert len(results[1]["removed"]) == 3
    assert results[1]["kept"] == {vm["figures"]["base"]: "VM boots uses it"}
    assert [path.rpartition("/")[2] for path in results[1]["kept"]] == [in_cache(lab)[0]]
    # What was purged is fetched again.
    play(launched(lab, directory, "upper", image="upper")).ok()
    assert len(in_cache(lab)) == 6


def test_on_shared_storage_every_hosts_vms_count(lab: Lab, play: Playbook, tmp_path: Path) -> None:
    shared = f"{lab.vars['lab_shared']}/purge"
    lab.sh("kvm1", f"rm -rf {shared}; mkdir {shared}")
    try:
        store = DirectoryShelf(lab, f"{shared}/store")
        store.put("i", qcow2(tmp_path / "i", "write -P 7 0 64k"))
        wanted = {"image": "i", "storage": f"{shared}/vms"}
        for host, name in (("kvm1", "a"), ("kvm2", "b")):
            play(launched(lab, store, name, **wanted), host=host).ok()
        names = lab.sh("kvm1", f"ls {shared}/vms/_base").split()
        assert len([name for name in names if name.endswith(".qcow2")]) == 1
        play(task("vm", name="a", state="absent")).ok()
        told = play(task("image", **purge(f"{shared}/vms"))).ok()["result"]
        assert (told["changed"], len(told["kept"])) == (False, 1)
        assert "root.qcow2 uses it" in next(iter(told["kept"].values()))
        play(task("vm", name="b", state="absent"), host="kvm2").ok()
        # Each lets go of it, the last one removes it.
        told = play(task("image", **purge(f"{shared}/vms"))).ok()["result"]
        assert list(told["kept"].values()) == ["kvm2 may use it"]
        told = play(task("image", **purge(f"{shared}/vms")), host="kvm2").ok()["result"]
        assert (len(told["removed"]), told["kept"]) == (1, {})
    finally:
        lab.clean()
        lab.sh("kvm1", f"rm -rf {shared}")


def test_a_purge_and_launches_at_once_do_each_other_no_harm(
    lab: Lab, play: Playbook, directory: DirectoryShelf, tmp_path: Path
) -> None:
    directory.put("i", qcow2(tmp_path / "i", "write -P 7 0 64k"))
    names = [f"n{number}" for number in range(12)]
    with play.running([task("image", **purge()) for _time in range(12)]) as process:
        for number in range(0, 12, 4):
            play([launched(lab, directory, name, image="i") for name in names[number : number + 4]]).ok()
        process.wait(120)
    told = play(task("vm_info", name=names)).ok()["result"]
    for vm in told["vms"]:
        reads(lab, f"{IMAGES}/{vm['uuid']}/root.qcow2", 7, "0 64k")


def test_a_host_is_not_purged_from_elsewhere(lab: Lab, play: Playbook) -> None:
    error = play(task("image", **purge(uri=lab.hosts["kvm2"]["lab_uri"])), host="localhost").error()["result"]
    assert error["code"] == "unsupported"
    assert "Run the task on the host itself" in error["msg"]
