# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots and backups of real guests, compared with the disks that they are of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import Glance, Lab, Playbook, Result, Task, define, file_disk, order, task, wait_for
from tests.lab.kvmlab import glance as lab_glance
from tests.lab.kvmlab.guest import Guest
from tests.lab.kvmlab.util import LabError

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/snapshots"
WORK = "/var/lib/kvmops/work"
MIB = 1 << 20

# Two VMs are booted once for all of these tests, so they stay together when tests run at the same time.
pytestmark = pytest.mark.xdist_group("snapshots")

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


# ---- VMs without a system in them, which are up at once, and are written to through QEMU


class Bare:
    """A VM of another tool. Its QEMU runs, and nothing in it.

    :param disks: The disks' XML.
    """

    def __init__(self, lab: Lab, name: str, disks: str) -> None:
        self.lab = lab
        self.name = name
        define(lab, name, devices=disks)

    def virsh(self, *words: str, check: bool = True) -> str:
        done = self.lab.kvm.run_in("kvm1", "virsh", "-q", *words, check=check, timeout=60)
        return done.stdout.strip()

    def start(self) -> None:
        self.virsh("start", self.name)

    def write(self, pattern: int, where: str, number: int = 0) -> None:
        """Write a pattern into a running VM's disk of that number; *where* is an offset and a length."""
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        for command in (f"write -P {pattern} {where}", "flush"):
            said = self.virsh("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {device} "{command}"')
            assert "rror" not in said, said

    def write_noise(self, mib: int, number: int = 0, at: int = 0) -> None:
        """Write so many MiB of different patterns, from the MiB *at* on."""
        for each in range(at, at + mib):
            self.write(each % 255 + 1, f"{each}M 1M", number)

    def remove(self) -> None:
        """Whatever is left of it."""
        self.virsh("destroy", self.name, check=False)
        self.virsh("undefine", self.name, "--checkpoints-metadata", "--managed-save", check=False)


def qcow2(lab: Lab, name: str, size: str = "64M", options: str = "") -> str:
    """An empty qcow2 file of a bare VM."""
    path = f"{IMAGES}/bare/{name}.qcow2"
    lab.sh("kvm1", f"mkdir -p {IMAGES}/bare && qemu-img create -q -f qcow2 {options} '{path}' {size}")
    return path


@pytest.fixture
def bare(lab: Lab) -> t.Iterator[Bare]:
    """A running VM, ``bare``, with two empty qcow2 disks of 64 MiB, ``one`` and ``two``."""
    lab.sh("kvm1", f"rm -rf {IMAGES}/bare")
    disks = file_disk(qcow2(lab, "one"), "qcow2", "vda") + file_disk(qcow2(lab, "two"), "qcow2", "vdb")
    vm = Bare(lab, "bare", disks)
    vm.start()
    yield vm
    vm.remove()
    lab.sh("kvm1", f"rm -rf {IMAGES}/bare")


ONE, TWO = f"{IMAGES}/bare/one.qcow2", f"{IMAGES}/bare/two.qcow2"


# ---- looking


def run(shelf: Shelf, image: str = "", **options: t.Any) -> Task:
    """The task for a snapshot of ``a``."""
    named = {"image": image} if image else {}
    return task("vm_snapshot", **{"name": "a", "image_store": shelf.options, **named, **options})


def made(play: Playbook, shelf: Shelf, image: str = "", **options: t.Any) -> Result:
    """Make it; the figures."""
    (vm,) = play(run(shelf, image, **options)).ok()["result"]["vms"]
    return t.cast("Result", vm["figures"])


BARE: dict[str, t.Any] = {"name": "bare", "quiesce": "never"}
DAILY: dict[str, t.Any] = {**BARE, "backup_type": "daily", "incremental": True}


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


def bitmaps(lab: Lab, path: str, name: str = "bare") -> list[str]:
    """The bitmaps in a disk of a VM. QEMU writes them into the file only when it ends."""
    if lab.state("kvm1", name).startswith("shut off"):
        told = json.loads(lab.sh("kvm1", f"qemu-img info --output json {path}"))
        found = told["format-specific"]["data"].get("bitmaps", [])
    else:
        command = json.dumps({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
        nodes = json.loads(lab.sh("kvm1", f"virsh qemu-monitor-command {name} '{command}'"))["return"]
        found = [
            bitmap
            for each in nodes
            if (each["drv"], each["file"]) == ("qcow2", path)
            for bitmap in each.get("dirty-bitmaps", [])
        ]
    return sorted(bitmap["name"] for bitmap in found)


def job(lab: Lab, name: str) -> str:
    """What libvirt says of the job of a VM: ``None``, ``Unbounded`` …"""
    # While a job begins, virsh says that there is none of whose data it could tell.
    found = re.search(r"Job type: +(\w+)", lab.sh("kvm1", f"virsh domjobinfo {name}", check=False))
    return found[1] if found else "None"


def scratch(lab: Lab) -> list[str]:
    """What is left of jobs: scratch files, sockets, images while they are compressed."""
    places = f"{IMAGES} {WORK} /tmp /var/lib/libvirt/qemu"
    return lab.sh("kvm1", f"find {places} -name 'kvmops-*' -not -path '*/checkpoint/*' 2>/dev/null || true").split()


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
    what = run(shelf, "before", properties={"team": "blue", "hw_disk_bus": "scsi"})["kvmops.lifecycle.vm_snapshot"]
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
        what = run(directory, state, name="b", memory=state == "suspended")["kvmops.lifecycle.vm_snapshot"]
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
            run(directory, "x", name="b", quiesce="required"),
            run(directory, "x", name="b", memory=True),
            run(directory, "x", name="b", disks=["vdz"]),
            run(directory, "x", name="b", rotation=1),
            run(directory, "stopped", name="b", backup_type="daily"),
            run(directory, "x", name="b", properties={"instance_uuid": "mine"}),
        ]
    )
    assert [error["code"] for error in refused] == ["refused", "refused", "not_found", "invalid", "refused", "invalid"]
    assert sorted(sets(directory)) == ["paused", "stopped", "suspended"]


# ---- VMs of other tools


def test_disks_of_every_kind_are_copied_as_they_are(lab: Lab, play: Playbook, directory: DirectoryShelf) -> None:
    name = "ödd (näme) 'x'"
    lab.sh("kvm1", f"rm -rf {IMAGES}/bare; mkdir -p {IMAGES}/bare")
    base = qcow2(lab, "base")
    plain = f"{IMAGES}/bare/plain, raw.img"
    lab.sh(
        "kvm1",
        f"""
        qemu-io -f qcow2 -c 'write -P 1 0 4M' -c 'write -P 1 10M 64k' {base} >/dev/null
        qemu-img create -q -f qcow2 -b {base} -F qcow2 {IMAGES}/bare/middle.qcow2
        qemu-io -f qcow2 -c 'write -P 2 1M 1M' -c 'write -z 2M 64k' {IMAGES}/bare/middle.qcow2 >/dev/null
        qemu-img create -q -f qcow2 -b {IMAGES}/bare/middle.qcow2 -F qcow2 {IMAGES}/bare/top.qcow2
        qemu-io -f qcow2 -c 'write -P 3 3M 4k' {IMAGES}/bare/top.qcow2 >/dev/null
        qemu-img create -q -f raw '{plain}' 33M; qemu-io -f raw -c 'write -P 4 32M 512' '{plain}' >/dev/null
        qemu-img create -q -f raw {IMAGES}/bare/block.img 16M
        qemu-io -f raw -c 'write -P 5 8M 1M' {IMAGES}/bare/block.img >/dev/null
        qemu-img create -q -f raw {IMAGES}/bare/net.img 16M
        qemu-io -f raw -c 'write -P 6 9M 1M' {IMAGES}/bare/net.img >/dev/null
        cp {IMAGES}/bare/net.img {IMAGES}/bare/ro.img
        """,
    )
    small, large = qcow2(lab, "small", "20M", "-o cluster_size=4k"), qcow2(lab, "large", "20M", "-o cluster_size=2M")
    volume = qcow2(lab, "volume")
    for path in (small, large, volume):
        lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P 7 5000k 12k' {path}")
    lab.sh("kvm1", f"virsh pool-create-as barepool dir --target {IMAGES}/bare")
    loop = lab.sh(
        "kvm1",
        f"""
        [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
        free=$(losetup -f) && [ -e $free ] || mknod $free b 7 ${{free#/dev/loop}}
        losetup $free {IMAGES}/bare/block.img && echo $free
        """,
    )
    socket = "/tmp/nbd-test.sock"
    lab.sh("kvm1", f"rm -f {socket}; qemu-nbd --fork -t -e 9 -k {socket} -f raw -x vol {IMAGES}/bare/net.img")
    read_only = file_disk(f"{IMAGES}/bare/ro.img", "raw", "vdg").replace("<target", "<readonly/><target")
    block = f"<disk type='block'><driver name='qemu' type='raw'/><source dev='{loop}'/><target dev='vdc'/></disk>"
    network = (
        "<disk type='network'><driver name='qemu' type='raw'/><source protocol='nbd' name='vol'>"
        f"<host transport='unix' socket='{socket}'/></source><target dev='vdf' bus='virtio'/></disk>"
    )
    pooled = (
        "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='barepool' volume='volume.qcow2'/>"
        "<target dev='vdh'/></disk>"
    )
    cdrom = "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>"
    kinds = {
        "vda": (f"{IMAGES}/bare/top.qcow2", "qcow2"),
        "vdb": (f"'{plain}'", "raw"),
        "vdc": (loop, "raw"),
        "vdd": (small, "qcow2"),
        "vde": (large, "qcow2"),
        "vdh": (volume, "qcow2"),
    }
    files = "".join(
        file_disk(path.strip("'"), form, target)
        for target, (path, form) in kinds.items()
        if target not in ("vdc", "vdh")
    )
    vm = Bare(lab, name.replace("'", "&apos;"), files + block + network + read_only + pooled + cdrom)
    vm.name = name
    try:
        for image in ("off", "on"):
            (told,) = play.quartet("vm_snapshot", **run(directory, image, name=name)["kvmops.lifecycle.vm_snapshot"])[
                "vms"
            ]
            left = told["figures"]["left"]
            assert sorted(left) == ["vdf", "vdg"]
            assert "nbd" in left["vdf"]
            assert left["vdg"] == "it is read-only"
            for target, (path, form) in kinds.items():
                same(lab, directory, told["figures"], target, path, form)
            if image == "off":
                vm.start()
        figures = made(play, directory, "net", name=name, disks=["vdf"])
        same(lab, directory, figures, "vdf", f"{IMAGES}/bare/net.img", "raw")
        vm.virsh("destroy", name)
        wrong = play.errors([run(directory, "x", name=name, disks=[each]) for each in ("vdf", "vdg", "hda")])
        assert [error["code"] for error in wrong] == ["unsupported", "refused", "refused"]
        # They are known by the name, also when the VM is gone.
        vm.remove()
        for image in ("off", "on", "net"):
            what = run(directory, image, name=name, state="absent")
            assert play(what).ok()["result"]["changed"]
        assert directory.images() == {}
    finally:
        vm.remove()
        lab.sh(
            "kvm1",
            f"virsh pool-destroy barepool; losetup -d {loop}; pkill -f {socket}; rm -rf {IMAGES}/bare",
            check=False,
        )


# ---- backups


def test_every_backup_that_is_kept_can_be_restored(lab: Lab, play: Playbook, shelf: Shelf, bare: Bare) -> None:
    bare.write(1, "0 4M")
    bare.write(1, "1M 1M", 1)
    runs, copies = [], {}
    expected = [
        (None, ["n1"], []),
        ("n1", ["n1", "n2"], []),
        ("n2", ["n1", "n2", "n3"], []),
        (None, ["n1", "n2", "n3", "n4"], []),
        ("n4", ["n4", "n5"], ["n1", "n2", "n3"]),
        ("n5", ["n4", "n5", "n6"], []),
    ]
    for number, (parent, kept, removed) in enumerate(expected, 1):
        bare.write(10 + number, f"{number}M 100k")
        bare.write(20 + number, f"{10 + number}M 1M")
        if number == 3:
            bare.write(0, "0 1M")  # zeros hide what was there
        name = f"n{number}"
        (told,) = play(run(shelf, name, **DAILY, rotation=2, full_every=3)).ok()["result"]["vms"]
        figures = told["figures"]
        runs.append(figures)
        copies[name] = [keep(lab, path, f"{name}-{index}") for index, path in enumerate((ONE, TWO))]
        assert figures["increment"] == (parent is not None), figures
        assert figures["removed_backups"] == sorted(removed, reverse=True)
        assert sorted(sets(shelf)) == kept
        for image in figures["images"]:
            before = [image_of(run, image["disk"])["id"] for run in runs if run["image"] == parent]
            assert [image["parent"]] == (before or [""])
            assert image["form"] == ("delta" if parent else "full")
        if number in (3, 4, 6):
            for link in runs:
                if link["image"] in kept:
                    for index, target in enumerate(("vda", "vdb")):
                        same(lab, shelf, link, target, copies[link["image"]][index])
    assert "every backup number 3" in runs[3]["why_full"]
    assert runs[5]["bytes"] < runs[3]["bytes"] / 3
    assert len(checkpoints(lab, "bare")) == 1
    assert bitmaps(lab, ONE) == bitmaps(lab, TWO) == checkpoints(lab, "bare")
    as_before_bare(lab, shelf, bare, ["n4", "n5", "n6"])
    # A link is restored by launching it.
    for image in ("n5", "n6"):
        new = order(lab, image, image=image, image_store=shelf.options, start=False)
        (told,) = play(task("vm", **new)).ok()["result"]["vms"]
        same_disks(lab, f"{IMAGES}/{told['uuid']}/root.qcow2", copies[image][0])
        play(task("vm", name=image, state="absent")).ok()
    # What others build upon is not removed.
    error = play(run(shelf, "n4", **BARE, state="absent")).error()["result"]
    assert error["code"] == "refused"
    assert "n5" in error["msg"]
    absent = [run(shelf, image, **BARE, state="absent") for image in ("n6", "n5", "n4")]
    assert all(each["result"]["changed"] for each in play(absent).results)
    assert shelf.images() == {}


def test_what_qemu_cannot_tell_any_more_is_copied_whole_and_the_reason_told(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write(1, "0 2M")

    def backup(name: str, why: str = "", **options: t.Any) -> Result:
        figures = made(play, directory, name, **{**DAILY, **options})
        same(lab, directory, figures, "vda", ONE)
        same(lab, directory, figures, "vdb", TWO)
        assert figures["increment"] == (why == ""), figures
        assert why in figures.get("why_full", ""), figures
        assert scratch(lab) == []
        return figures

    backup("first", "it is the first")
    bare.write(2, "1M 1M", 1)
    backup("second")
    # QEMU is killed.
    lab.sh("kvm1", "pkill -9 -f 'guest=[b]are,' && while virsh domstate bare | grep -q running; do sleep 0.1; done")
    bare.start()
    bare.write(3, "2M 1M")
    backup("third", "is not known any more")
    bare.write(4, "3M 1M")
    backup("fourth")
    assert len(checkpoints(lab, "bare")) == 1
    assert bitmaps(lab, ONE) == bitmaps(lab, TWO) == checkpoints(lab, "bare")
    # libvirt has forgotten, as after a migration; the bitmaps are there.
    bare.virsh("checkpoint-delete", "bare", checkpoints(lab, "bare")[0], "--metadata")
    bare.write(5, "4M 1M")
    backup("fifth")
    # A disk grows.
    bare.virsh("blockresize", "bare", "vda", "80M")
    bare.write(6, "70M 1M")
    figures = backup("sixth")
    assert image_of(figures, "vda")["virtual_size"] == 80 << 20
    # The VM is off: it is started for that with its CPUs stopped.
    bare.write(7, "6M 1M")
    bare.virsh("destroy", "bare")
    what = run(directory, "seventh", **{**DAILY, "full_every": 99})["kvmops.lifecycle.vm_snapshot"]
    (vm,) = play.quartet("vm_snapshot", **what)["vms"]
    assert vm["steps"] == ["start_paused", "copy_disks", "complete", "power_off"]
    assert vm["status"] == "SHUTOFF"
    assert vm["figures"]["increment"]
    assert lab.state("kvm1", "bare").startswith("shut off")
    same(lab, directory, vm["figures"], "vda", ONE)
    # The bitmap of one disk alone is gone: nothing is left of the other's.
    (point,) = bitmaps(lab, ONE)
    lab.sh("kvm1", f"qemu-img bitmap --remove {ONE} {point}")
    bare.start()
    backup("eighth", "is not known any more", full_every=99)
    assert bitmaps(lab, ONE) == bitmaps(lab, TWO) == checkpoints(lab, "bare") != [point]
    # An image in the middle is gone: nothing is built upon what cannot be restored.
    backup("ninth", full_every=99)
    directory_id = image_of(figures, "vda")["id"]
    lab.sh("kvm1", f"rm {directory.path(directory_id)} {STORE}/{directory_id}.json")
    errors = play.errors([run(directory, "seventh", **DAILY)])
    assert directory_id in errors[0]["msg"]
    figures = made(play, directory, "tenth", **DAILY, full_every=99, rotation=3)
    assert figures["increment"]
    # The sixth cannot be restored any more, nor the seventh; what only they needed has gone with them.
    removed = ["fifth", "first", "fourth", "second", "seventh", "sixth-vdb", "third"]
    assert sorted(figures["removed_backups"]) == removed
    assert sorted(sets(directory)) == ["eighth", "ninth", "tenth"]


def test_backups_of_two_types_do_not_know_each_other(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    copies, figures = {}, {}
    for number, kind in enumerate(("daily", "weekly", "daily", "weekly", "daily"), 1):
        bare.write(number, f"{number}M 1M")
        name = f"{kind}{number}"
        figures[name] = made(play, directory, name, **{**DAILY, "backup_type": kind}, rotation=2)
        copies[name] = keep(lab, ONE, name)
    assert [each["increment"] for each in figures.values()] == [False, False, True, True, False]
    assert image_of(figures["weekly4"], "vda")["parent"] == image_of(figures["weekly2"], "vda")["id"]
    for name, each in figures.items():
        same(lab, directory, each, "vda", copies[name])
    assert sorted(sets(directory)) == ["daily1", "daily3", "daily5", "weekly2", "weekly4"]
    # One is lost, the other is not.
    (daily,) = [point for point in checkpoints(lab, "bare") if "daily" in point]
    bare.virsh("checkpoint-delete", "bare", daily)
    bare.write(9, "9M 1M")
    last = made(play, directory, "daily6", **DAILY)
    assert "is not known any more" in last["why_full"]
    last = made(play, directory, "weekly6", **{**DAILY, "backup_type": "weekly"}, full_every=9)
    assert last["increment"]
    same(lab, directory, last, "vda", ONE)
    # Without a name, it is made of the VM, the type and the time.
    last = made(play, directory, **{**DAILY, "backup_type": "wöchentlich"})
    assert re.fullmatch(r"bare-wöchentlich-\d{8}T\d{6}Z", last["image"])


def same_disks(lab: Lab, one: str, other: str) -> None:
    """Both hold the same; what one is longer by is zeros."""
    said = lab.sh("kvm1", f"qemu-img compare -U -f qcow2 -F qcow2 {one} {other} 2>&1", check=False)
    assert "Images are identical" in said, said


def as_before_bare(lab: Lab, shelf: Shelf, bare: Bare, names: t.Sequence[str] = ()) -> None:
    """Like :func:`as_before`, of a VM without a guest."""
    assert lab.state("kvm1", bare.name).startswith("running")
    assert job(lab, bare.name) == "None"
    assert scratch(lab) == []
    bare.write(1, "60M 64k")
    assert bitmaps(lab, ONE) == checkpoints(lab, bare.name)
    assert shelf.unfinished() == []
    assert sorted(sets(shelf)) == sorted(names)


# ---- the point in time


def test_both_disks_are_of_one_moment_while_the_guest_writes_to_them(
    lab: Lab, play: Playbook, directory: DirectoryShelf, a: Guest
) -> None:
    write(a, 12, at=1)
    # Behind the last partition of one disk, and at the begin of the other, a number that grows: first here, then there.
    script = """
        touch /run/counting; n=0
        while [ -e /run/counting ]; do
            n=$((n + 1))
            printf '%-511d.' $n | dd of=/dev/vda bs=512 seek=149504 conv=notrunc,fsync
            printf '%-511d.' $n | dd of=/dev/vdb bs=512 conv=notrunc,fsync
        done
    """
    a.execute(script, wait=False)
    try:
        figures = made(play, directory, "s", bandwidth=4, quiesce="never")
        _code, now = a.execute("head -c 512 /dev/vdb")
    finally:
        a.execute("rm -f /run/counting")
    assert not figures["quiesced"]
    assert figures["held_ms"] == 0
    found = []
    for target, place in (("vda", 149504), ("vdb", 0)):
        image = f"json:{json.dumps(node(directory, image_of(figures, target)['id']))}"
        lab.sh("kvm1", f"mkdir -p {WORK} && qemu-img convert -O raw '{image}' {WORK}/raw")
        found.append(int(lab.sh("kvm1", f"dd if={WORK}/raw bs=512 skip={place} count=1 2>/dev/null").strip(" .\n")))
    first, second = found
    assert 0 <= first - second <= 1, found
    # It wrote on while they were copied.
    assert int(now.strip(" .\n")) > second + 5


def test_whether_a_guest_was_quiesced_is_told_truthfully_and_it_is_thawed_in_every_case(
    lab: Lab, play: Playbook, directory: DirectoryShelf, a: Guest
) -> None:
    figures = made(play, directory, "asked", quiesce="required", disks=["vdb"])
    assert figures["quiesced"]
    assert 0 < figures["held_ms"] < 5000
    assert "not_quiesced" not in figures
    assert not frozen(a)
    # An agent that hangs: libvirt would wait for it for ever.
    a.execute("(sleep 1; kill -STOP $(pidof qemu-ga); sleep 25; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &")
    wait_for(lambda: not answers(a))
    hanging = [
        run(directory, "hanging", quiesce="preferred", quiesce_timeout=2, disks=["vdb"]),
        run(directory, "never", quiesce="required", quiesce_timeout=2, disks=["vdb"]),
    ]
    first, second = play([{**each, "ignore_errors": True} for each in hanging]).results
    (vm,) = first["result"]["vms"]
    assert not vm["figures"]["quiesced"]
    assert vm["figures"]["held_ms"] == 0
    assert "agent" in vm["figures"]["not_quiesced"]
    assert (second["outcome"], second["result"]["code"]) == ("failed", "unreachable")
    # It freezes when it is able to again, which is too late; whoever waits for that is a process that we left behind.
    wait_for(lambda: answers(a) and not frozen(a), 90)
    as_before(lab, directory, a, ["asked", "hanging"])
    wait_for(lambda: not guards(lab), 60)
    # One that is dead, and cannot be started again for a time.
    agent = "/usr/sbin/qemu-ga"
    a.execute(f"(mount --bind /bin/busybox {agent}; kill -9 $(pidof qemu-ga); sleep 25; umount {agent}) &", wait=False)
    wait_for(lambda: not answers(a))
    dead = [run(directory, "dead", disks=["vdb"]), run(directory, "none", disks=["vdb"], quiesce="required")]
    first, second = play([{**each, "ignore_errors": True} for each in dead]).results
    assert not first["result"]["vms"][0]["figures"]["quiesced"]
    assert "no guest agent" in first["result"]["vms"][0]["figures"]["not_quiesced"]
    assert (second["outcome"], second["result"]["code"]) == ("failed", "unreachable")
    wait_for(lambda: answers(a), 90)
    as_before(lab, directory, a, ["asked", "dead", "hanging"])


def answers(guest: Guest) -> bool:
    """Whether the guest's agent does."""
    try:
        guest.agent("guest-ping", timeout=2)
    except LabError:
        return False
    return True


def guards(lab: Lab) -> list[str]:
    """The processes that we left behind."""
    return lab.sh("kvm1", "pgrep -f '^/opt/kvmops/venv/bin/python -c' || true").split()


# ---- forms


def test_a_delta_is_what_differs_from_the_image_in_the_store(
    lab: Lab, play: Playbook, shelf: Shelf, tmp_path: Path
) -> None:
    content = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", content, "32M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 20M", content], check=True, capture_output=True)
    lab.sh("kvm1", f"mkdir -p {WORK}")
    shutil.copyfile(content, lab.outside(f"{WORK}/base.qcow2"))
    flavor = {"vcpus": 1, "memory": 96, "root": 1}
    image = task("image", name="base", src=f"{WORK}/base.qcow2", disk_format="qcow2", image_store=shelf.options)
    image["kvmops.lifecycle.image"]["properties"] = {"os_type": "linux", "hw_vif_model": "virtio"}
    by_file = task("vm", **order(lab, "file", image=f"{WORK}/base.qcow2", flavor=flavor))
    by_name = task("vm", **order(lab, "named", image="base", image_store=shelf.options, flavor=flavor))
    early = {**run(shelf, "x", name="file", form="delta"), "ignore_errors": True}
    both, names = ["file", "named"], ["again-file", "again-named"]
    try:
        # The image is put into the store when a VM was made of the same file already.
        launched, refused, *_rest = play([by_file, early, image, by_name]).results
        assert refused["result"]["code"] == "refused"
        assert launched["outcome"] == "ok"
        (base,) = shelf.images()
        paths = [lab.sh("kvm1", f"virsh domblklist {name} | awk '$1 == \"vda\" {{print $2}}'") for name in both]
        for number, name in enumerate(both):
            vm = Bare.__new__(Bare)
            vm.lab, vm.name = lab, name
            vm.write(2 + number, "1M 1M")
            vm.write(0, "3M 1M")
            vm.write(3, "900M 64k")  # behind the end of the base
        what = run(shelf, "delta", name=both, form="delta")["kvmops.lifecycle.vm_snapshot"]
        told = play.quartet("vm_snapshot", **what)["vms"]
        launches = []
        for vm_told, path, name in zip(told, paths, names):
            (made_of,) = vm_told["figures"]["images"]
            assert (made_of["form"], made_of["parent"]) == ("delta", base)
            assert vm_told["figures"]["bytes"] < 3 * MIB
            assert 0 < vm_told["figures"]["held_ms"] < 5000  # its CPUs were stopped for the moment
            stored = shelf.images()[made_of["id"]]
            assert stored["disk_format"] == "raw"
            of_base = {key: stored["properties"].get(key) for key in ("base_image_ref", "os_type", "hw_vif_model")}
            by_store = name == "again-named"
            assert list(of_base.values()) == ([base, "linux", "virtio"] if by_store else [None, None, None])
            same(lab, shelf, vm_told["figures"], "vda", path)
            options = {"image": made_of["id"], "image_store": shelf.options, "flavor": flavor, "start": False}
            launches.append(task("vm", **order(lab, name, **options)))
        # A delta of what was launched from a delta lies upon that.
        upper = run(shelf, "upper", name=names[0], form="delta")
        *again, above = [each["result"]["vms"][0] for each in play([*launches, upper]).results]
        for vm_told, path in zip(again, paths):
            same_disks(lab, f"{IMAGES}/{vm_told['uuid']}/root.qcow2", path)
        assert above["figures"]["images"][0]["parent"] == told[0]["figures"]["images"][0]["id"]
        same(lab, shelf, above["figures"], "vda", f"{IMAGES}/{again[0]['uuid']}/root.qcow2")
    finally:
        play(task("vm", name=[*both, *names], state="absent"))


def test_compressed_slowed_down_and_with_scratch_files_elsewhere(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write_noise(16)
    lab.sh("kvm1", f"mkdir -p {WORK}")
    figures = made(play, directory, "packed", **BARE, compress=True, scratch=WORK)
    same(lab, directory, figures, "vda", ONE)
    assert image_of(figures, "vda")["size"] < 4 * MIB
    slow = run(directory, "slow", **BARE, bandwidth=1, disks=["vda"])
    with play.running([slow]) as process:
        wait_for(lambda: job(lab, "bare") != "None")
        asked = [
            task("vm_info", name="bare"),
            run(directory, "second", **BARE),
            task("vm_power", name="bare", state="stopped", force=True),
        ]
        info, second, power = play([{**each, "ignore_errors": True} for each in asked]).results
        assert process.wait(120) == 0
    operation = info["result"]["vms"][0]["operation"]
    assert operation["action"] == "snapshot"
    assert operation["progress"]["disk"] == "vda"
    assert 0 <= operation["progress"]["percent"] <= 100
    assert operation["progress"]["bytes"] > 0
    assert second["result"]["code"] == power["result"]["code"] == "busy"
    as_before_bare(lab, directory, bare, ["packed", "slow"])


# ---- failures


def kill(lab: Lab) -> None:
    """Kill the module that runs in kvm1, and not what it has left behind."""
    lab.sh("kvm1", "pkill -9 -xf '/opt/kvmops/venv/bin/python *'")


def gone(lab: Lab, name: str) -> None:
    """What a killed module has left behind ends the job, and itself."""
    wait_for(lambda: job(lab, name) == "None", 30)
    wait_for(lambda: not guards(lab), 60)


def test_a_backup_killed_before_every_step_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    made(play, directory, "base", **DAILY)
    kept = "base"
    for number, step in enumerate(("copy_disks", "complete", "rotate", "end"), 1):
        bare.write(number, f"{number}M 1M")
        what = run(directory, f"at-{step}", **DAILY, rotation=1, full_every=9)
        play.killed_at(step, what)
        gone(lab, "bare")
        assert scratch(lab) == []
        whole = step in ("rotate", "end")
        complete = [
            json.loads(i["properties"]["kvmops_manifest"])["name"]
            for i in directory.images().values()
            if "kvmops_manifest" in i["properties"]
        ]
        assert (f"at-{step}" in complete) == whole
        assert kept in complete
        (vm,) = play(what).ok()["result"]["vms"]
        assert ("copy_disks" in vm["steps"]) == (not whole), vm
        assert vm["task_state"] == ""
        for target, path in (("vda", ONE), ("vdb", TWO)):
            same(lab, directory, vm["figures"], target, path)
        assert not play(what, "--check").ok()["result"]["changed"]
        assert scratch(lab) == []
        assert bitmaps(lab, ONE) == bitmaps(lab, TWO) == checkpoints(lab, "bare")
        assert len(checkpoints(lab, "bare")) == 1, step
        kept = f"at-{step}"
        assert kept in sets(directory)
    # A VM that is off is started for it, and is off afterwards whatever happens.
    bare.virsh("destroy", "bare")
    for step in ("start_paused", "copy_disks", "complete", "power_off"):
        what = run(directory, f"off-{step}", **DAILY, rotation=1, full_every=9)
        play.killed_at(step, what)
        (vm,) = play(what).ok()["result"]["vms"]
        assert vm["status"] == "SHUTOFF", step
        assert lab.state("kvm1", "bare").startswith("shut off")
        same(lab, directory, vm["figures"], "vda", ONE)
        assert scratch(lab) == []
    sets(directory)


def test_a_snapshot_killed_in_the_middle_of_copying_leaves_a_guest_that_runs(
    lab: Lab, play: Playbook, shelf: Shelf, a: Guest, vms: dict[str, str]
) -> None:
    write(a, 24)
    slow = run(shelf, "s", bandwidth=4, backup_type="daily", incremental=True)
    with play.running([slow]) as process:
        wait_for(lambda: job(lab, "a") != "None")
        wait_for(lambda: shelf.unfinished() != [])
        kill(lab)
        process.wait(60)
    gone(lab, "a")
    assert not frozen(a)
    a.wait_counter()
    assert scratch(lab) == []
    figures = made(play, shelf, "s", backup_type="daily", incremental=True)
    same(lab, shelf, figures, "vdb", disk(vms, "a", "vdb"))
    as_before(lab, shelf, a, ["s"])
    assert bitmaps(lab, disk(vms, "a", "vda"), "a") == checkpoints(lab, "a")
    assert len(checkpoints(lab, "a")) == 1


def test_a_full_store_leaves_nothing(lab: Lab, play: Playbook, bare: Bare, glance: Glance) -> None:
    bare.write_noise(20)
    small = DirectoryShelf(lab, "/var/lib/kvmops/small")
    lab.sh("kvm1", f"mkdir -p {small.place} && mount -t tmpfs -o size=8M none {small.place}")
    try:
        error = play(run(small, "x", **DAILY)).error()["result"]
        assert error["code"] == "no_space"
        as_before_bare(lab, small, bare)
    finally:
        lab.sh("kvm1", f"umount {small.place} && rmdir {small.place}")
    shelf = GlanceShelf(lab, glance)
    glance.fault("fill", "--leave", "8M")
    error = play(run(shelf, "x", **DAILY)).error()["result"]
    assert error["code"] == "no_space"
    glance.heal()
    as_before_bare(lab, shelf, bare)
    assert made(play, shelf, "x", **DAILY)["bytes"] > 20 * MIB
    as_before_bare(lab, shelf, bare, ["x"])


def test_a_glance_that_fails_leaves_nothing(lab: Lab, play: Playbook, bare: Bare, glance: Glance) -> None:
    shelf = GlanceShelf(lab, glance)
    bare.write_noise(8)
    what = run(shelf, "x", **DAILY)
    for fault in (
        ("fail", "--on", "upload", "--status", "500", "--after", "1M"),
        ("fail", "--on", "upload", "--status", "503", "--after", "1M"),
        ("reset", "--on", "upload", "--after", "1M"),
        ("expire", "--after", "1M"),
    ):
        glance.fault(*fault)
        error = play(what).error()["result"]
        assert error["code"] in ("unreachable", "denied", "failed"), (fault, error["msg"])
        glance.heal()
        as_before_bare(lab, shelf, bare)
    with play.running([run(shelf, "x", **DAILY, bandwidth=2)]) as process:
        wait_for(lambda: shelf.unfinished() != [])
        glance.fault("kill")
        assert process.wait(120) != 0
    gone(lab, "bare")
    error = play(what).error()["result"]
    assert error["code"] == "unreachable"
    glance.heal()
    figures = made(play, shelf, "x", **DAILY)
    same(lab, shelf, figures, "vda", ONE)
    # What Glance was writing when it was killed, it knows nothing of any more: only its operator can remove that.
    for name in set(glance.files()) - set(shelf.images()):
        (lab_glance.store_outside(lab.kvm) / name).unlink()
    as_before_bare(lab, shelf, bare, ["x"])


def test_a_guest_that_overwrites_more_than_there_is_room_for_is_not_stopped(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write_noise(60)
    bare.write_noise(60, 1)
    what = run(directory, "x", **BARE, bandwidth=2)
    lab.fault("kvm1", "fill-disk", "--leave", "200M")
    try:
        error = play(what).error()["result"]
        assert error["code"] == "no_space"
        assert "256 MiB" in error["msg"]
        as_before_bare(lab, directory, bare)
        lab.fault("kvm1", "empty-disk")
        with play.running([what]) as process:
            wait_for(lambda: job(lab, "bare") != "None")
            lab.fault("kvm1", "fill-disk", "--leave", "180M")
            bare.write(99, "0 60M")
            bare.write(99, "0 60M", 1)
            assert process.wait(60) != 0
        as_before_bare(lab, directory, bare)
    finally:
        lab.fault("kvm1", "empty-disk")
    figures = made(play, directory, "x", **BARE)
    same(lab, directory, figures, "vda", ONE)


def test_a_libvirtd_that_is_restarted_leaves_a_guest_without_a_job(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write_noise(24)
    what = run(directory, "x", **DAILY, bandwidth=4)
    with play.running([what]) as process:
        wait_for(lambda: job(lab, "bare") != "None")
        lab.fault("kvm1", "kill-libvirtd")
        lab.fault("kvm1", "start-libvirtd")
        assert process.wait(120) != 0
    gone(lab, "bare")
    assert scratch(lab) == []
    figures = made(play, directory, "x", **DAILY)
    same(lab, directory, figures, "vda", ONE)
    as_before_bare(lab, directory, bare, ["x"])
    assert len(checkpoints(lab, "bare")) == 1


def test_a_vm_that_ends_meanwhile_leaves_nothing_in_the_store(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write_noise(24)
    what = run(directory, "x", **DAILY, bandwidth=4)
    for ending in ("destroy bare", "destroy bare; virsh undefine bare --checkpoints-metadata"):
        with play.running([what]) as process:
            wait_for(lambda: job(lab, "bare") != "None")
            lab.sh("kvm1", f"virsh {ending}")
            assert process.wait(60) != 0
        assert directory.images() == {}
        assert directory.unfinished() == []
        assert scratch(lab) == []
        wait_for(lambda: not guards(lab))
        if "undefine" not in ending:
            assert bitmaps(lab, ONE) == []
            bare.start()


def test_the_job_of_another_program_is_left_alone(
    lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare
) -> None:
    bare.write_noise(2)
    xml = "<domainbackup mode='pull'><server transport='unix' socket='/tmp/theirs'/></domainbackup>"
    lab.sh("kvm1", f"cat > /tmp/backup.xml <<'XML'\n{xml}\nXML\nvirsh backup-begin bare /tmp/backup.xml")
    error = play(run(directory, "x", **BARE)).error()["result"]
    assert error["code"] == "busy", error["msg"]
    assert job(lab, "bare") != "None"
    bare.virsh("domjobabort", "bare")
    wait_for(lambda: job(lab, "bare") == "None")
    made(play, directory, "x", **BARE)


def test_a_transient_vm_and_many_at_once(lab: Lab, play: Playbook, directory: DirectoryShelf, bare: Bare) -> None:
    names = [f"many{number}" for number in range(4)]
    for name in names:
        path = qcow2(lab, name)
        Bare(lab, name, file_disk(path, "qcow2", "vda")).start()
        lab.sh("kvm1", f"virsh -q dumpxml --inactive {name} > /tmp/{name}.xml")
    bare.write(5, "1M 1M")
    try:
        lab.sh("kvm1", "virsh undefine many0")  # it is transient from now on
        told = play(run(directory, "x", name=[*names, "bare"], backup_type="daily", incremental=True)).ok()["result"]
        assert len(told["vms"]) == 5
        for vm in told["vms"]:
            path = ONE if vm["name"] == "bare" else f"{IMAGES}/bare/{vm['name']}.qcow2"
            same(lab, directory, vm["figures"], "vda", path)
        assert "transient" in told["vms"][0]["figures"]["why_full"]
        assert len(sets(directory)) == 5
        # It has no journal; what a run that died left of it is found in the store.
        lab.sh("kvm1", "virsh undefine bare --checkpoints-metadata")
        bare.write_noise(12, 1)
        with play.running([run(directory, "y", **BARE, bandwidth=2)]) as process:
            wait_for(lambda: len(directory.images()) == 7)  # the first disk of two
            kill(lab)
            process.wait(60)
        gone(lab, "bare")
        (vm,) = play(run(directory, "y", **BARE)).ok()["result"]["vms"]
        assert vm["steps"] == ["clean_up", "copy_disks", "complete"]
        same(lab, directory, vm["figures"], "vdb", TWO)
        assert len(sets(directory)) == 6
        assert scratch(lab) == []
    finally:
        for name in names:
            lab.sh("kvm1", f"virsh destroy {name}; virsh undefine {name} --checkpoints-metadata", check=False)
