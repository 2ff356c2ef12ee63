# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vm_snapshot decides, with a real image store and libvirt's in-memory driver, which has no backup jobs: so disks
are copied in check mode only."""

from __future__ import annotations

import json
import platform
import typing as t
import uuid
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import snapshot
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.snapshot import Manifest, Member
from ansible_collections.kvmops.lifecycle.plugins.modules import vm_snapshot
from tests.unit.hypervisor import Hypervisor, Task, uuid_of

VM = uuid_of(1)


class Shelf:
    """A store with sets in it."""

    def __init__(self, place: Path) -> None:
        self.place = str(place / "store")
        self.options = {"type": "directory", "path": self.place}
        self.store = DirectoryStore(self.place)
        self.content = place / "content"
        self.content.write_bytes(b"x" * 10)

    def image(self, image_id: str, **properties: str) -> None:
        new = NewImage(image_id, image_id, "raw", {"instance_uuid": VM, **properties})
        self.store.put(new, FileContent(str(self.content)))

    def add(
        self, number: int, parent: Manifest | None = None, *, seal: bool = True, disks: str = "ab", **more: t.Any
    ) -> Manifest:
        """A daily backup of ``web1``; an increment of *parent*."""
        set_id = str(uuid.UUID(int=number))
        members = []
        for disk in disks:
            image_id, target = snapshot.image_id(set_id, "disk", f"vd{disk}"), f"vd{disk}"
            below = parent.disks[target].id if parent else ""
            form = snapshot.DELTA if below else snapshot.FULL
            told = {snapshot.FORM: form, **({snapshot.PARENT: below} if below else {})}
            self.image(image_id, kvmops_set=set_id, **told)
            members.append(Member("disk", image_id, 10, "", target, form, below))
        fields: dict[str, t.Any] = {
            "set_id": set_id,
            "name": f"n{number}",
            "vm": "web1",
            "vm_uuid": VM,
            "kind": "backup",
            "at": f"2026-01-01T00:00:{number:02}Z",
            "quiesced": True,
            "state": "running",
            "members": tuple(members),
            "backup_type": "daily",
            "checkpoint": snapshot.checkpoint_name("daily", set_id),
        }
        made = Manifest(**{**fields, **more})
        if seal:
            self.seal(made)
        return made

    def seal(self, made: Manifest, text: str = "") -> None:
        image = self.store.get(made.members[0].id)
        assert image
        self.store.update(image, properties={snapshot.MANIFEST: text or made.dump()})

    def names(self) -> list[str]:
        return sorted(each.name for each in snapshot.complete(self.store.find()))

    def ids(self) -> set[str]:
        return {image.id for image in self.store.find()}


def ids(*sets: Manifest) -> set[str]:
    return {member.id for each in sets for member in each.members}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def run(task: Task, shelf: Shelf, kvm: Hypervisor) -> t.Callable[..., dict[str, t.Any]]:
    """Runs the module about ``web1``, which is off and has two qcow2 disks."""
    kvm.define("web1", running=False, disks=["/d/a", "/d/b"])

    def do(**params: t.Any) -> dict[str, t.Any]:
        return task(vm_snapshot.main, **{"name": "web1", "image_store": shelf.options, **params})

    return do


@pytest.fixture
def quartet(run: t.Any, task: Task, shelf: Shelf) -> t.Callable[..., dict[str, t.Any]]:
    """The same, as a quartet; what came of the VM."""

    def do(**params: t.Any) -> dict[str, t.Any]:
        told = task.quartet(vm_snapshot.main, name=params.pop("name", "web1"), image_store=shelf.options, **params)
        return t.cast("dict[str, t.Any]", told["vms"][0])

    return do


def dead(kvm: Hypervisor, *left: Manifest, name: str = "x", store: str = "", action: str = "backup") -> None:
    """A backup of that name died, with these sets in its journal."""
    data = {
        "name": name,
        "images": sorted(ids(*left)),
        "scratch": [],
        "checkpoints": [],
        "disks": [],
        "quiesce": True,
        "started": False,
        **({"store": store} if store else {}),
    }
    journal = Journal(action, "2026-01-01T00:00:00Z", platform.node(), 4711, "copy_disks", data)
    kvm.remember(Instance(journal=journal))


# ---- rotation of what is there


def test_a_backup_that_is_there_is_not_made_again_and_the_old_ones_go(
    shelf: Shelf, quartet: t.Callable[..., dict[str, t.Any]], run: t.Callable[..., dict[str, t.Any]]
) -> None:
    one = shelf.add(1)
    shelf.add(2, one)
    three = shelf.add(3)
    four = shelf.add(4, three)
    other = shelf.add(5, backup_type="weekly")
    foreign = str(uuid.UUID(int=99))
    shelf.image(foreign, instance_uuid=uuid_of(2))
    assert not run(image="n4", backup_type="daily")["changed"]
    vm = quartet(image="n4", backup_type="daily", rotation=1)
    assert vm["steps"] == ["rotate"]
    assert vm["figures"]["removed_backups"] == ["n2", "n1"]
    assert vm["figures"]["kept_backups"] == {"n3": "later increments build upon it"}
    assert shelf.ids() == ids(three, four, other) | {foreign}


def test_what_must_not_go_stays_and_is_told_once(
    shelf: Shelf, quartet: t.Callable[..., dict[str, t.Any]], run: t.Callable[..., dict[str, t.Any]]
) -> None:
    one, two, three = shelf.add(1), shelf.add(2), shelf.add(3)
    shelf.add(4)
    protected, used = shelf.store.get(one.members[1].id), two.members[0].id
    assert protected
    shelf.store.update(protected, protected=True)
    shelf.image(str(uuid.UUID(int=99)), instance_uuid=uuid_of(2), kvmops_parent=used)
    vm = quartet(image="n4", backup_type="daily", rotation=1)
    assert vm["figures"]["removed_backups"] == ["n3"]
    kept = vm["figures"]["kept_backups"]
    assert sorted(kept) == ["n1", "n2"]
    assert "is protected" in kept["n1"]
    assert "build upon" in kept["n2"]
    assert not shelf.ids() & ids(three)
    assert not run(image="n4", backup_type="daily", rotation=1)["changed"]


def test_only_backups_that_can_be_restored_count(
    shelf: Shelf, quartet: t.Callable[..., dict[str, t.Any]], run: t.Callable[..., dict[str, t.Any]]
) -> None:
    one = shelf.add(1)
    two = shelf.add(2, one)
    half = shelf.add(3)
    unsealed = shelf.add(4, seal=False)
    five, six = shelf.add(5), shelf.add(6)
    shelf.store.delete(half.members[1].id)
    # The third is newer than the oldest that is kept.
    assert not run(image="n6", backup_type="daily", rotation=3)["changed"]
    assert shelf.names() == ["n1", "n2", "n5", "n6"]
    # A parent is gone: its increment is of no use, though it is complete.
    shelf.store.delete(one.members[1].id)
    error = run(image="n2", backup_type="daily")
    assert (error["code"], one.members[1].id in error["msg"]) == ("refused", True)
    vm = quartet(image="n6", backup_type="daily", rotation=2)
    assert sorted(vm["figures"]["removed_backups"]) == ["n1", "n2", "n3"]
    assert shelf.ids() == ids(five, six, unsealed)
    assert not shelf.ids() & ids(two, half)


# ---- what would be done


@pytest.mark.parametrize(
    ("params", "steps", "told"),
    [
        ({"image": "x"}, ["copy_disks", "complete"], {}),
        ({"image": "x", "disks": ["vdb"]}, ["copy_disks", "complete"], {"vda": "not asked for"}),
        ({"backup_type": "daily", "rotation": 2}, ["copy_disks", "complete", "rotate"], {}),
        (
            {"backup_type": "daily", "incremental": True},
            ["start_paused", "copy_disks", "complete", "power_off"],
            {},
        ),
    ],
)
def test_check_mode_tells_the_steps_and_leaves_everything(
    shelf: Shelf,
    run: t.Callable[..., dict[str, t.Any]],
    kvm: Hypervisor,
    params: dict[str, t.Any],
    steps: list[str],
    told: dict[str, str],
) -> None:
    for number in (1, 2, 3):
        shelf.add(number)
    with_files(kvm, shelf)
    result = run(check=True, diff=True, **params)
    (vm,) = result["vms"]
    assert (vm["changed"], vm["steps"]) == (True, steps)
    assert vm["figures"]["left"] == told
    after = result["diff"][0]["after"]
    if "rotation" in params:
        assert after["backups"] == ["n3", after["image"]]
        assert after["image"].startswith("web1-daily-2")
    assert shelf.names() == ["n1", "n2", "n3"]


def with_files(kvm: Hypervisor, shelf: Shelf) -> None:
    """``web1`` has disks whose headers can be read."""
    header = b"QFI\xfb\0\0\0\3".ljust(20, b"\0") + (16).to_bytes(4, "big") + (1 << 20).to_bytes(8, "big")
    header = header.ljust(100, b"\0") + (104).to_bytes(4, "big") + bytes(65536)
    for name in "ab":
        path = shelf.content.parent / name
        path.write_bytes(header)
    text = kvm.guest().text(inactive=True)
    kvm.connection.defineXML(text.replace("/d/", f"{shelf.content.parent}/"))


@pytest.mark.parametrize(
    ("params", "code", "word"),
    [
        ({}, "invalid", "needs a name"),
        ({"image": "x", "rotation": 1}, "invalid", "Only backups have rotation"),
        ({"image": "x", "incremental": True}, "invalid", "Only backups have incremental"),
        ({"backup_type": "daily", "rotation": 0}, "invalid", "at least 1"),
        ({"image": "x", "bandwidth": -1}, "invalid", "at least 0"),
        ({"image": "x", "quiesce": "required"}, "refused", "not running"),
        ({"image": "x", "memory": True}, "refused", "only a suspended VM"),
        ({"image": "x", "disks": ["vdz"]}, "not_found", "no disk 'vdz'"),
        ({"image": "x", "disks": []}, "refused", "no disk was named"),
        ({"image": "x", "form": "delta"}, "refused", "no image in"),
        ({"image": "x", "scratch": "relative/../path"}, "invalid", ""),
        ({"image": "x", "scratch": "/no/such/directory"}, "not_found", "/no/such/directory"),
        ({"image": "n1"}, "refused", "a backup of the type daily"),
        ({"image": "n1", "backup_type": "weekly"}, "refused", "a backup of the type daily"),
        ({"image": "s", "backup_type": "weekly"}, "refused", "a snapshot, and no backup"),
        *(
            ({"image": "x", "properties": {name: "y"}}, "invalid", "not the user's")
            for name in ("kvmops_set", "instance_uuid", "image_type", "backup_type")
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_check_mode_too(
    shelf: Shelf,
    run: t.Callable[..., dict[str, t.Any]],
    kvm: Hypervisor,
    params: dict[str, t.Any],
    code: str,
    word: str,
) -> None:
    shelf.add(1)
    shelf.add(2, name="s", backup_type="", kind="snapshot")
    with_files(kvm, shelf)
    for check in (True, False):
        error = run(check=check, **params)
        assert (error.get("code"), word in error["msg"]) == (code, True), error["msg"]
    assert shelf.names() == ["n1", "s"]


# ---- what a run that died has left


def test_what_a_dead_run_left_is_removed_and_a_complete_set_never(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    whole, newer, half = shelf.add(1), shelf.add(2, seal=False), shelf.add(3, seal=False)
    shelf.seal(newer, json.dumps({**json.loads(newer.dump()), "schema": 9}))
    dead(kvm, whole, newer, half)
    told = run(image="n1", backup_type="daily", check=True)
    assert told["vms"][0]["steps"] == ["clean_up"]
    assert shelf.ids() == ids(whole, newer, half)
    told = run(image="n1", backup_type="daily")
    assert told["vms"][0]["steps"] == ["clean_up"]
    assert shelf.ids() == ids(whole, newer)
    assert kvm.recall().journal is None
    assert not run(image="n1", backup_type="daily")["changed"]


def test_a_backup_without_a_name_that_died_when_it_was_complete_keeps_its_name(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    shelf.add(1)
    dead(kvm, shelf.add(2, name="web1-daily-then"), name="web1-daily-then")
    (vm,) = run(backup_type="daily", rotation=1)["vms"]
    assert vm["steps"] == ["clean_up", "rotate"]
    assert vm["figures"]["image"] == "web1-daily-then"
    assert shelf.names() == ["web1-daily-then"]


def test_of_a_run_that_died_with_another_store_the_images_are_told(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    shelf.add(1)
    half = shelf.add(3, seal=False)
    dead(kvm, half, store="/elsewhere")
    told = run(image="n1", backup_type="daily")
    assert told["vms"][0]["steps"] == ["clean_up"]
    (warning,) = map(str, told["warnings"])
    assert "into /elsewhere died" in warning
    assert all(image_id in warning for image_id in ids(half))
    assert shelf.ids() >= ids(half)


def test_what_cannot_be_removed_now_is_removed_later(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    shelf.add(1)
    half = shelf.add(3, seal=False)
    first, second = (shelf.store.get(member.id) for member in half.members)
    assert first
    assert second
    shelf.store.update(first, protected=True)
    dead(kvm, half)
    error = run(image="n1", backup_type="daily")
    assert "is protected" in error["msg"]
    assert shelf.store.get(second.id) is None
    journal = kvm.recall().journal
    assert journal
    assert first.id in journal.data["images"]
    shelf.store.update(first, protected=False)
    assert run(image="n1", backup_type="daily")["changed"]
    assert shelf.names() == ["n1"]
    assert not shelf.ids() & ids(half)


# ---- state: absent


def test_a_set_is_removed_as_a_whole_also_when_its_vm_is_gone(
    shelf: Shelf, quartet: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    one, two, three = shelf.add(1), shelf.add(2), shelf.add(3)
    other = shelf.add(4, name="n1", vm="web2", vm_uuid=uuid_of(2))
    vm = quartet(image="n1", state="absent")
    assert vm["steps"] == ["delete"]
    assert sorted(vm["figures"]["removed_images"]) == sorted(ids(one))
    kvm.clear()
    vm = quartet(image="n2", state="absent")
    assert (vm["status"], sorted(vm["figures"]["removed_images"])) == ("ABSENT", sorted(ids(two)))
    quartet(image="n3", state="absent", name=VM)
    assert shelf.ids() == ids(other)
    assert three.name == "n3"


def test_what_is_needed_or_protected_is_not_removed(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], quartet: t.Callable[..., dict[str, t.Any]]
) -> None:
    one = shelf.add(1)
    two = shelf.add(2, one)
    error = run(image="n1", state="absent")
    assert (error["code"], "build upon it" in error["msg"]) == ("refused", True)
    image = shelf.store.get(two.members[0].id)
    assert image
    shelf.store.update(image, protected=True)
    for check in (True, False):
        error = run(image="n2", state="absent", check=check)
        assert (error["code"], "is protected" in error["msg"]) == ("refused", True)
    shelf.store.update(image, protected=False)
    quartet(image="n2", state="absent")
    quartet(image="n1", state="absent")
    assert shelf.ids() == set()
    assert not run(image="never", state="absent")["changed"]


def test_what_a_dead_run_left_can_be_removed_without_making_it(
    shelf: Shelf, run: t.Callable[..., dict[str, t.Any]], kvm: Hypervisor
) -> None:
    whole, half = shelf.add(1), shelf.add(3, seal=False)
    dead(kvm, half, name="x")
    assert not run(image="y", state="absent")["changed"]
    assert run(image="n1", state="absent", check=True)["vms"][0]["steps"] == ["delete"]
    assert kvm.recall().journal
    (vm,) = run(image="x", state="absent")["vms"]
    assert vm["steps"] == ["clean_up"]
    assert shelf.ids() == ids(whole)
    assert kvm.recall().journal is None
