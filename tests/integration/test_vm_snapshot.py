# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots and backups of real guests, compared with the disks that they are of."""

from __future__ import annotations

import json
import re
import shutil
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import (
    Glance,
    Lab,
    Playbook,
    Result,
    Task,
    order,
    task,
)
from tests.lab.kvmlab import glance as lab_glance
from tests.lab.kvmlab.guest import Guest

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/snapshots"
WORK = "/var/lib/kvmops/work"
MIB = 1 << 20

Files = dict[str, str]


# ---- image stores, looked into directly and not through what is tested


class Shelf(t.Protocol):
    """An image store."""

    options: dict[str, t.Any]

    def images(self) -> dict[str, Result]:
        """All images in whatever state, by identifier; ``properties`` of each."""

    def path(self, image_id: str) -> str:
        """A file of kvm1 with an image's content."""

    def empty(self) -> None:
        """Remove everything."""

    def unfinished(self) -> list[str]:
        """What is in the store and belongs to no image."""


class DirectoryShelf:
    """A directory of kvm1."""

    def __init__(self, lab: Lab, path: str = STORE) -> None:
        self.options: dict[str, t.Any] = {"type": "directory", "path": path}
        self.lab = lab
        self.place = path

    def images(self) -> dict[str, Result]:
        told = self.lab.sh("kvm1", f"cat {self.place}/*.json 2>/dev/null || true")
        found: dict[str, Result] = {}
        while told:
            image, end = json.JSONDecoder().raw_decode(told)
            found[image["id"]] = image
            told = told[end:].lstrip()
        return found

    def path(self, image_id: str) -> str:
        return f"{self.place}/{image_id}.img"

    def empty(self) -> None:
        self.lab.sh("kvm1", f"rm -rf {self.place}")

    def unfinished(self) -> list[str]:
        files = self.lab.sh("kvm1", f"cd {self.place} && find . -type f || true").split()
        return [file for file in files if Path(file).stem not in self.images()]


class GlanceShelf:
    """The lab's Glance."""

    def __init__(self, lab: Lab, glance: Glance) -> None:
        self.options: dict[str, t.Any] = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
        self.lab = lab
        self.glance = glance

    def images(self) -> dict[str, Result]:
        return {image["id"]: {**image, "properties": image} for image in self.glance.images()}

    def path(self, image_id: str) -> str:
        path = f"{WORK}/{image_id}.img"
        inside = Path(self.lab.outside(path))
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lab_glance.store_outside(self.lab.kvm) / image_id, inside)
        return path

    def empty(self) -> None:
        self.glance.clean()

    def unfinished(self) -> list[str]:
        whole = {image_id for image_id, image in self.images().items() if image["status"] == "active"}
        return sorted({*self.images(), *self.glance.files()} - whole)


# ---- the VMs: two disks each, shared by the tests


@pytest.fixture(autouse=True, scope="module")
def clean(lab: Lab) -> t.Iterator[None]:
    """The hosts are empty before and after all of these tests: booting takes longer than anything else here."""
    lab.clean()
    yield
    lab.sh("kvm1", f"rm -rf {STORE} {WORK}")
    lab.clean()


@pytest.fixture(scope="module")
def vms(lab: Lab, clean: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``a`` and ``b``, each with an ephemeral disk; their UUIDs."""
    play = Playbook(lab, tmp_path_factory.mktemp("plays"))
    flavor = {"vcpus": 1, "memory": 96, "ephemeral": [1]}
    told = play(task("vm", **order(lab, "a", "b", flavor=flavor))).ok()["result"]
    return {vm["name"]: vm["uuid"] for vm in told["vms"]}


@pytest.fixture
def a(lab: Lab, vms: dict[str, str]) -> Guest:
    """The guest of ``a``, up and running."""
    return up(lab, "a")


@pytest.fixture
def b(lab: Lab, vms: dict[str, str]) -> Guest:
    """The guest of ``b``, up and running."""
    return up(lab, "b")


@pytest.fixture
def directory(lab: Lab) -> t.Iterator[DirectoryShelf]:
    """The directory, empty before and after."""
    shelf = DirectoryShelf(lab)
    shelf.empty()
    yield shelf
    shelf.empty()


@pytest.fixture(params=["directory", "glance"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    """Either store, empty."""
    if request.param == "directory":
        return t.cast("Shelf", request.getfixturevalue("directory"))
    return GlanceShelf(request.getfixturevalue("lab"), request.getfixturevalue("glance"))


def up(lab: Lab, name: str) -> Guest:
    """A guest that runs, booted if need be, whatever the test before did to it; without checkpoints."""
    guest = lab.guest("kvm1", name)
    state = lab.state("kvm1", name)
    if state.startswith("paused"):
        guest.virsh("resume", name)
    elif not state.startswith("running"):
        boots = len(re.findall("^GUEST-UP ", guest.console(), re.MULTILINE))
        guest.virsh("start", name)
        guest.wait_up(boots + 1)
    guest.wait_up()
    for checkpoint in checkpoints(lab, name):
        guest.virsh("checkpoint-delete", name, checkpoint)
    return guest


# ---- looking


def run(play: Playbook, shelf: Shelf, image: str = "", **options: t.Any) -> Task:
    """The task for a snapshot of ``a``."""
    named = {"image": image} if image else {}
    return task("vm_snapshot", **{"name": "a", "image_store": shelf.options, **named, **options})


def made(play: Playbook, shelf: Shelf, image: str = "", **options: t.Any) -> Result:
    """Make it; the figures."""
    (vm,) = play(run(play, shelf, image, **options)).ok()["result"]["vms"]
    return t.cast("Result", vm["figures"])


def node(shelf: Shelf, image_id: str) -> dict[str, t.Any]:
    """An image of the store, composed with all that it lies upon, in QEMU's words."""
    properties = shelf.images()[image_id]["properties"]
    path = {"driver": "file", "filename": shelf.path(image_id), "locking": "off"}
    below = node(shelf, properties["kvmops_parent"]) if properties.get("kvmops_form") == "delta" else None
    return {"driver": "qcow2", "file": path, "backing": below}


def image_of(figures: Result, target: str) -> Result:
    (found,) = [image for image in figures["images"] if image["disk"] == target]
    return t.cast("Result", found)


def same(lab: Lab, shelf: Shelf, figures: Result, target: str, path: str, disk_format: str = "qcow2") -> None:
    """See that the image of a disk holds what the disk holds."""
    image = f"json:{json.dumps(node(shelf, image_of(figures, target)['id']))}"
    formats = f"-f qcow2 -F {disk_format}"
    said = lab.sh("kvm1", f"qemu-img compare -U {formats} '{image}' {path} 2>&1", check=False)
    assert "Images are identical" in said, (target, said)


def differs(lab: Lab, shelf: Shelf, figures: Result, target: str, path: str) -> None:
    """See that it does not."""
    with pytest.raises(AssertionError, match="Content mismatch"):
        same(lab, shelf, figures, target, path)


def disk(vms: dict[str, str], name: str, target: str) -> str:
    return f"{IMAGES}/{vms[name]}/{'root' if target == 'vda' else 'ephemeral0'}.qcow2"


def keep(lab: Lab, path: str, name: str) -> str:
    """A copy of a disk as it is now; nobody may write to it meanwhile."""
    lab.sh("kvm1", f"mkdir -p {WORK} && qemu-img convert -U -O qcow2 {path} {WORK}/{name}")
    return f"{WORK}/{name}"


def write(guest: Guest, mib: int = 1, at: int = 0) -> None:
    """Write so many MiB of noise into the guest's second disk, from the MiB *at* on."""
    code, said = guest.execute(f"dd if=/dev/urandom of=/dev/vdb bs=1M count={mib} seek={at} conv=notrunc,fsync")
    assert code == 0, said


def checkpoints(lab: Lab, name: str) -> list[str]:
    return lab.sh("kvm1", f"virsh -q checkpoint-list {name} --name").split()


def bitmaps(lab: Lab, path: str) -> list[str]:
    """The bitmaps in a qcow2 file."""
    told = json.loads(lab.sh("kvm1", f"qemu-img info -U --output json {path}"))
    return [each["name"] for each in told["format-specific"]["data"].get("bitmaps", [])]


def job(lab: Lab, name: str) -> str:
    """What libvirt says of the job of a VM: ``None``, ``Unbounded`` …"""
    found = re.search(r"Job type: +(\w+)", lab.sh("kvm1", f"virsh domjobinfo {name}"))
    assert found
    return found[1]


def scratch(lab: Lab) -> list[str]:
    return lab.sh("kvm1", f"find {IMAGES} /tmp /var/lib/libvirt/qemu -name 'kvmops-*' -not -name 'kvmops-lab*'").split()


def frozen(guest: Guest) -> bool:
    return bool(guest.agent("guest-fsfreeze-status") == "frozen")


def as_before(lab: Lab, shelf: Shelf, guest: Guest, names: t.Sequence[str] = ()) -> None:
    """Nothing is left of an attempt: the guest runs and writes, there is no job, file or bitmap, and the store has the
    sets *names* and nothing else."""
    assert lab.state("kvm1", guest.name).startswith("running")
    assert not frozen(guest)
    guest.execute("echo probe > /data/probe && sync")
    assert job(lab, guest.name) == "None"
    assert scratch(lab) == []
    assert shelf.unfinished() == []
    assert sorted(sets(shelf)) == sorted(names)


def sets(shelf: Shelf) -> list[str]:
    """The names of the sets whose images are all there; no image belongs to none."""
    images = shelf.images()
    manifests = [
        json.loads(i["properties"]["kvmops_manifest"]) for i in images.values() if "kvmops_manifest" in i["properties"]
    ]
    assert {member["id"] for each in manifests for member in each["members"]} == set(images)
    return [each["name"] for each in manifests]


# ---- one snapshot


def test_a_snapshot_of_a_running_vm_is_of_both_its_disks(
    lab: Lab, play: Playbook, shelf: Shelf, a: Guest, vms: dict[str, str]
) -> None:
    write(a, 3)
    counted = a.counter()
    what = run(play, shelf, "before", properties={"team": "blue", "hw_disk_bus": "scsi"})[
        "kvmops.lifecycle.vm_snapshot"
    ]
    (vm,) = play.quartet("vm_snapshot", **what)["vms"]
    figures = vm["figures"]
    assert vm["steps"] == ["copy_disks", "complete"]
    assert vm["status"] == "ACTIVE"
    assert figures["quiesced"]
    assert 0 < figures["held_ms"] < 5000
    assert figures["left"] == {}
    assert [image["disk"] for image in figures["images"]] == ["vda", "vdb"]
    same(lab, shelf, figures, "vdb", disk(vms, "a", "vdb"))
    images = shelf.images()
    root, second = (images[image["id"]] for image in figures["images"])
    assert (root["name"], second["name"]) == ("before", "before-vdb")
    assert (root["disk_format"], root["min_disk"], root["min_ram"]) == ("qcow2", 0, 96)
    assert root["size"] + second["size"] == figures["bytes"]
    told = root["properties"]
    wanted = {
        "instance_uuid": vms["a"],
        "image_type": "snapshot",
        "image_location": "snapshot",
        "image_state": "available",
        "team": "blue",
        "hw_disk_bus": "scsi",
    }
    assert {key: told[key] for key in wanted} == wanted
    assert "kvmops_manifest" not in second["properties"]
    as_before(lab, shelf, a, ["before"])
    # The image boots, and its guest goes on from where it was.
    new = order(lab, "new", image="before", image_store=shelf.options, disk_bus="virtio")
    play(task("vm", **new)).ok()
    guest = lab.booted("kvm1", "new")
    numbers = guest.counter_on_disk()
    assert numbers == list(range(1, len(numbers) + 1))
    assert counted <= len(numbers)
    assert f"COUNTER-START {numbers[-1]}" in guest.console() or len(numbers) > counted
    # It goes as a whole.
    (vm,) = play.quartet("vm_snapshot", **{**what, "properties": {}, "state": "absent"})["vms"]
    assert len(vm["figures"]["removed_images"]) == 2
    assert shelf.images() == {}
    play(task("vm", name="new", state="absent")).ok()


def test_a_paused_a_stopped_and_a_suspended_vm_stay_what_they_are(
    lab: Lab, play: Playbook, directory: DirectoryShelf, b: Guest, vms: dict[str, str]
) -> None:
    write(b, 2, at=7)
    for state, status, domstate in (
        ("paused", "PAUSED", "paused (user)"),
        ("suspended", "SUSPENDED", "shut off (saved)"),
        ("stopped", "SHUTOFF", "shut off"),
    ):
        play(task("vm_power", name="b", state=state, force=state == "stopped")).ok()
        what = run(play, directory, state, name="b", memory=state == "suspended")["kvmops.lifecycle.vm_snapshot"]
        if state == "suspended":
            lab.sh("kvm1", f"mkdir -p {WORK} && cp /var/lib/libvirt/qemu/save/b.save {WORK}/b.save")
        (vm,) = play.quartet("vm_snapshot", **what)["vms"]
        assert vm["status"] == status
        assert lab.state("kvm1", "b").startswith(domstate)
        assert not vm["figures"]["quiesced"]
        assert vm["figures"]["held_ms"] == 0
        for target in ("vda", "vdb"):
            same(lab, directory, vm["figures"], target, disk(vms, "b", target))
        if state == "suspended":
            (memory,) = [image for image in vm["figures"]["images"] if image["role"] == "memory"]
            lab.sh("kvm1", f"cmp {directory.path(memory['id'])} {WORK}/b.save")
            assert directory.images()[memory["id"]]["name"] == "suspended-memory"
    assert sorted(sets(directory)) == ["paused", "stopped", "suspended"]
    assert scratch(lab) == []
    refused = play.errors(
        [
            run(play, directory, "x", name="b", quiesce="required"),
            run(play, directory, "x", name="b", memory=True),
            run(play, directory, "x", name="b", disks=["vdz"]),
            run(play, directory, "x", name="b", rotation=1),
            run(play, directory, "stopped", name="b", backup_type="daily"),
            run(play, directory, "x", name="b", properties={"instance_uuid": "mine"}),
        ]
    )
    assert [error["code"] for error in refused] == ["refused", "refused", "not_found", "invalid", "refused", "invalid"]
    assert sorted(sets(directory)) == ["paused", "stopped", "suspended"]
