# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots as values: which disks, manifests, chains of backups and their rotation."""

from __future__ import annotations

import json
import typing as t
import uuid
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    NotFound,
    Refused,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import snapshot
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.snapshot import Manifest, Member

AT = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Stored:
    """An image in a store."""

    id: str
    name: str = "i"
    status: str = "active"
    size: int = 10
    created_at: str = AT
    properties: t.Mapping[str, str] = field(default_factory=dict)


def a_disk(target: str, kind: str = "file", **more: t.Any) -> Disk:
    image = Image(kind, more.pop("source", f"/disks/{target}"), "qcow2", more.pop("protocol", ""))
    return Disk(target, "virtio", more.pop("device", "disk"), image, **more)


def a_set(number: int, parent: Manifest | None = None, targets: t.Sequence[str] = ("vda",), **more: t.Any) -> Manifest:
    """A backup; an increment of *parent*."""
    set_id = str(uuid.UUID(int=number))
    members = tuple(
        Member(
            role="disk",
            id=snapshot.image_id(set_id, "disk", target),
            size=10,
            sha256="",
            target=target,
            form=snapshot.DELTA if parent else snapshot.FULL,
            parent=parent.disks[target].id if parent else "",
        )
        for target in targets
    )
    told: dict[str, t.Any] = {
        "set_id": set_id,
        "name": f"n{number}",
        "vm": "web1",
        "vm_uuid": str(uuid.UUID(int=1)),
        "kind": "backup",
        "at": f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z",
        "quiesced": True,
        "state": "running",
        "members": members,
        "backup_type": "daily",
        "checkpoint": f"c{number}",
    }
    return Manifest(**{**told, **more})


def images_of(*sets: Manifest) -> list[Stored]:
    """The images of complete sets."""
    found = []
    for each in sets:
        for index, member in enumerate(each.members):
            told = {snapshot.SET: each.set_id, snapshot.FORM: member.form, snapshot.PARENT: member.parent}
            if index == 0:
                told[snapshot.MANIFEST] = each.dump()
            found.append(Stored(member.id, properties={key: value for key, value in told.items() if value}))
    return found


# ---- which disks

OWN = (a_disk("vda"), a_disk("vdb", "block"), a_disk("vdc", "volume", source="pool/vol"))
OTHERS: dict[str, tuple[Disk, str]] = {
    "vdd": (a_disk("vdd", "network", protocol="rbd", source="pool/x"), "volume on network storage (rbd:pool/x)"),
    "vde": (a_disk("vde", shareable=True), "shareable"),
    "vdf": (a_disk("vdf", readonly=True), "read-only"),
    "vdg": (a_disk("vdg", encrypted=True), "encrypted"),
    "sda": (a_disk("sda", "block", device="lun"), "QEMU cannot copy lun"),
    "vdh": (a_disk("vdh", "nvme"), "QEMU cannot copy nvme"),
    "vdi": (a_disk("vdi", source=""), "no disk of the VM's own"),
}
DISKS = (*OWN, *(disk for disk, _why in OTHERS.values()), a_disk("hda", device="cdrom"))


def targets(chosen: snapshot.Chosen) -> list[str]:
    return [disk.target for disk in chosen.disks]


def test_all_are_those_on_the_host_and_the_rest_is_told_with_the_reason() -> None:
    chosen = snapshot.choose(DISKS, ["all"], name="web1")
    assert targets(chosen) == ["vda", "vdb", "vdc"]
    assert list(chosen.left) == list(OTHERS)
    for target, (_disk, why) in OTHERS.items():
        assert why in chosen.left[target]


def test_the_root_disk_is_the_first_one() -> None:
    chosen = snapshot.choose((a_disk("hda", device="cdrom"), *OWN), ["root"], name="web1")
    assert (targets(chosen), dict(chosen.left)) == (["vda"], {"vdb": "not asked for", "vdc": "not asked for"})


def test_disks_are_copied_in_the_order_of_the_definition() -> None:
    chosen = snapshot.choose(DISKS, ["vdd", "vde", "vda"], name="web1")
    assert targets(chosen) == ["vda", "vdd", "vde"]
    assert set(chosen.left.values()) == {"not asked for"}


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ([], Refused),
        (["vdz"], NotFound),
        (["vda", "vdf"], Refused),
        (["vdg"], Unsupported),
        (["sda"], Unsupported),
        (["vdh"], Unsupported),
        (["vdi"], Refused),
        (["hda"], Refused),
    ],
)
def test_what_cannot_be_copied_is_refused_when_it_is_named(wanted: list[str], error: type[LifecycleError]) -> None:
    with pytest.raises(error, match=r"web1.*(?:no disk|cannot be copied)"):
        snapshot.choose(DISKS, wanted, name="web1")


@pytest.mark.parametrize("wanted", [["all"], ["root"]])
@pytest.mark.parametrize("disks", [(), (a_disk("hda", device="cdrom"),), (a_disk("vdf", readonly=True),)])
def test_a_vm_without_a_disk_of_its_own_has_no_snapshots(disks: tuple[Disk, ...], wanted: list[str]) -> None:
    with pytest.raises(Refused):
        snapshot.choose(disks, wanted, name="web1")


# ---- names and properties


def test_identifiers_follow_from_the_set() -> None:
    one, other = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
    ids = [
        snapshot.image_id(one, "disk", "vda"),
        snapshot.image_id(one, "disk", "vdb"),
        snapshot.image_id(one, "memory"),
    ]
    ids.append(snapshot.image_id(other, "disk", "vda"))
    assert len(set(ids)) == 4
    assert all(str(uuid.UUID(each)) == each for each in ids)
    assert snapshot.image_id(one, "disk", "vda") == ids[0]


def test_the_first_image_has_the_name_of_the_set() -> None:
    names = [snapshot.image_name("x", index, "disk", f"vd{index}") for index in range(2)]
    assert [*names, snapshot.image_name("x", 2, "memory", "")] == ["x", "x-vd1", "x-memory"]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_checkpoints_of_one_type_are_never_those_of_another(types: list[str]) -> None:
    mine, others = (snapshot.checkpoint_name(each, str(uuid.UUID(int=1))) for each in types)
    names = [mine, others, "made-by-virsh"]
    assert snapshot.own_checkpoints(names, types[0]) == [mine]
    assert snapshot.own_checkpoints(names) == [mine, others]
    assert all(each.isascii() and each.replace("-", "").replace("_", "").isalnum() for each in (mine, others))


def test_an_image_inherits_what_does_not_belong_to_one_image() -> None:
    inherited = {"hw_disk_bus": "scsi", "os_type": "linux", "mine": "x", "owner_specified.openstack.md5": ""}
    own = {"img_signature": "x", "cache_in_nova": "x", "os_glance_importing": "x", "image_type": "snapshot"}
    own.update(kvmops_set="x", backup_type="daily", bittorrent="x")
    assert snapshot.inherited({**inherited, **own}) == inherited


# ---- manifests


def test_a_manifest_is_read_as_it_was_written() -> None:
    made = a_set(1, targets=("vda", "vdb"), name="ödd 'name'", left={"vdc": "ü"})
    assert made.dump().isascii()
    assert Manifest.load(made.dump()) == made
    assert made.size == 20
    assert list(made.disks) == ["vda", "vdb"]


def test_a_newer_manifest_is_told_from_a_broken_one() -> None:
    newer = json.dumps({**json.loads(a_set(1).dump()), "schema": 2, "more": 1})
    with pytest.raises(Unsupported, match="newer version"):
        Manifest.load(newer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schema":1}',
        '{"schema":1,"members":[{}]}',
        '{"schema":1,"members":3}',
        "[" * 100_000,
        a_set(1).dump().replace('"name"', '"nome"'),
        a_set(1).dump().replace('"role"', '"roll"'),
    ],
)
def test_a_broken_manifest_is_refused_and_no_set(text: str) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        Manifest.load(text)
    assert snapshot.manifests([Stored("1", properties={snapshot.MANIFEST: text})]) == []


def test_a_manifest_that_was_copied_to_another_image_is_none() -> None:
    (image,) = images_of(a_set(1))
    stolen = replace(image, id="x", properties={**image.properties, snapshot.SET: str(uuid.UUID(int=2))})
    assert snapshot.manifests([image, stolen]) == [a_set(1)]


def test_a_set_is_complete_when_all_its_images_are_whole() -> None:
    one, two = a_set(1, targets=("vda", "vdb")), a_set(2, targets=("vda", "vdb"))
    images = images_of(one, two)
    assert snapshot.complete(images) == [one, two]
    assert snapshot.complete(images[:3]) == [one]
    assert snapshot.complete(images[1:]) == [two]
    assert snapshot.complete([replace(images[0], size=11), *images[1:]]) == [two]
    assert snapshot.complete([images[0], replace(images[1], status="queued"), *images[2:]]) == [two]
    assert snapshot.complete(images_of(a_set(3, targets=()))) == []
    assert snapshot.sealed([*images[:3], Stored("foreign")]) == {one.set_id, two.set_id}


def test_what_is_left_of_a_set_without_its_manifest_is_told_by_its_images() -> None:
    one = a_set(1)
    two = a_set(2, one)
    left, whole = images_of(two)[0], images_of(one)
    told = {key: value for key, value in left.properties.items() if key != snapshot.MANIFEST}
    told.update(backup_type="daily", instance_uuid=two.vm_uuid, image_type="backup")
    (found,) = snapshot.orphaned([*whole, replace(left, properties=told), Stored("foreign")])
    assert (found.set_id, found.backup_type, found.at, found.parents) == (two.set_id, "daily", AT, two.parents)
    assert [member.id for member in found.members] == [left.id]


def test_what_a_set_builds_upon_may_be_missing_at_any_depth() -> None:
    one, base = a_set(1), Stored("base")
    upon_base = replace(one, members=(replace(one.members[0], form=snapshot.DELTA, parent="base"),))
    two = a_set(2, upon_base)
    three = a_set(3, two)
    images = {image.id: image for image in (*images_of(upon_base, two, three), base)}
    assert [snapshot.missing(each, images.get) for each in (one, upon_base, two, three)] == [""] * 4
    for gone in ("base", two.members[0].id):
        left = {key: image for key, image in images.items() if key != gone}
        assert snapshot.missing(three, left.get) == gone
        damaged = {**images, gone: replace(images[gone], status="damaged")}
        assert snapshot.missing(three, damaged.get) == gone
    # Somebody made them lie upon each other.
    mine = {snapshot.FORM: snapshot.DELTA, snapshot.PARENT: three.members[0].id}
    assert snapshot.missing(three, {**images, "base": replace(base, properties=mine)}.get) == ""


# ---- chains and rotation


def test_of_the_same_second_an_increment_comes_after_its_parent() -> None:
    first = a_set(9, at=AT)
    second = a_set(5, first, at=AT)
    third = a_set(7, second, at=AT)
    assert snapshot.newest_last([third, first, second]) == [first, second, third]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"backups": []}, "first backup"),
        ({"targets": ["vda", "vdb"]}, "n3 is of other disks"),
        ({"checkpoints": ["c1", "c2"]}, "the checkpoint of n3 is gone"),
        ({"backups": [a_set(3, checkpoint="")]}, "n3 has no checkpoint"),
        ({"full_every": 3}, "every backup number 3"),
        ({"full_every": 1}, "every backup number 1"),
    ],
)
def test_why_a_backup_has_to_be_a_full_one(changes: dict[str, t.Any], why: str) -> None:
    one = a_set(1)
    two = a_set(2, one)
    three = a_set(3, two)
    asked: dict[str, t.Any] = {
        "backups": [three, one, two],
        "checkpoints": ["c1", "c2", "c3"],
        "targets": ["vda"],
        "full_every": 4,
    }
    found = snapshot.increment(**{**asked, **changes})
    assert found.parent == (None if why else three)
    assert why in found.why


def test_a_rotation_keeps_what_increments_build_upon() -> None:
    one = a_set(1)
    two = a_set(2, one)
    three = a_set(3)
    four = a_set(4, three)
    five = a_set(5, four)
    told = snapshot.rotate([five, one, four, two, three], 2)
    assert (told.keep, told.needed, told.remove) == ((four, five), (three,), (one, two))


def test_what_is_broken_does_not_count_and_goes_when_it_is_older_than_all_that_are_kept() -> None:
    one, two, three, four = (a_set(number) for number in range(1, 5))
    assert snapshot.rotate([two, four], 2, [one, three]).remove == (one,)
    assert snapshot.rotate([two, four], 3, [one, three]).remove == ()
    assert snapshot.rotate([two, four], 1, [one, three]).remove == (one, two, three)


@given(
    count=st.integers(1, 5),
    full_every=st.integers(1, 6),
    lost=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_run_for_ever_as_many_as_wanted_can_be_restored_and_no_more_are_kept_than_needed(
    count: int, full_every: int, lost: list[bool]
) -> None:
    there: list[Manifest] = []
    for number, is_lost in enumerate(lost, 1):
        points = [] if is_lost else [each.checkpoint for each in there]
        parent = snapshot.increment(there, points, ["vda"], full_every).parent
        made = a_set(number, parent)
        there.append(made)
        told = snapshot.rotate(there, count)
        assert not {each.set_id for each in told.remove} & {each.set_id for each in (*told.keep, *told.needed)}
        assert len(told.keep) + len(told.needed) + len(told.remove) == len(there)
        there = [*told.needed, *told.keep]
        images = {image.id: image for image in images_of(*there)}
        assert made in there
        assert all(not snapshot.missing(each, images.get) for each in there)
        assert len(told.keep) == min(count, number)
        assert len(there) <= count + full_every - 1
