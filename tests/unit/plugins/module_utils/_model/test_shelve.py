# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a VM goes into its shelf, and what the host remembers meanwhile."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import shelve
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark, dump, load
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelve import File, Record

OWN = "/i/uuid"
RECORD = Record(
    set_id="5e7",
    store="directory",
    place="/s",
    offload="later",
    power_before="running",
    autostart=True,
    memory=False,
    images=("1", "2"),
    files=(File("/i/a b", 1, 1795279202153884049, 7),),
)


def disk(target: str, source: str, kind: str = "file", device: str = "disk", **more: t.Any) -> Disk:
    return Disk(target, "virtio", device, Image(kind, source, "qcow2", more.pop("protocol", "")), **more)


def test_data_are_copied_drives_of_the_vm_stored_and_the_rest_is_named() -> None:
    found = shelve.choose(
        [
            disk("vda", f"{OWN}/root.qcow2"),
            disk("vdb", "/dev/vg/lv", "block"),
            disk("vdc", "pool/image", "network", protocol="rbd", encrypted=True),
            disk("vdd", "iqn/1", "network", "lun", protocol="iscsi"),
            disk("vde", "/srv/tools.img", readonly=True),
            disk("sda", f"{OWN}/config.iso", device="cdrom", readonly=True),
            disk("sdb", "/srv/other.iso", device="cdrom"),
            disk("sdc", "/elsewhere/seed.iso", device="cdrom"),
            disk("sdd", "", device="cdrom"),
        ],
        {"/elsewhere/seed.iso"},
        OWN,
        name="web1",
    )
    assert [each.target for each in found.disks] == ["vda", "vdb"]
    assert [each.target for each in found.drives] == ["sda", "sdc"]
    assert found.volumes == {"vdc": "rbd:pool/image", "vdd": "iscsi:iqn/1"}
    assert sorted(found.left) == ["sdb", "vde"]


def test_a_vm_without_a_directory_has_no_drives_by_where_they_lie() -> None:
    found = shelve.choose([disk("sda", "seed.iso", device="cdrom")], set(), "", name="web1")
    assert (found.drives, list(found.left)) == ((), ["sda"])


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (disk("vdb", "/d", encrypted=True), "encrypted"),
        (disk("vdb", "/d", shareable=True), "shareable"),
        (disk("vdb", "/dev/sdz", "block", "lun"), "lun"),
        (disk("vdb", "0000:01:00.0", "nvme"), "nvme"),
        (disk("vdb", "/run/socket", "vhostuser"), "vhostuser"),
        (disk("vdb", "/srv/tree", "dir"), "dir"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(one: Disk, word: str) -> None:
    with pytest.raises(Unsupported, match=rf"vdb.*{word}"):
        shelve.choose([disk("vda", "/a"), one], set(), "", name="web1")


def test_a_base_has_the_same_identifier_everywhere() -> None:
    assert shelve.base_id("ab" * 32) == shelve.base_id("ab" * 32) != shelve.base_id("cd" * 32)
    assert shelve.base_name("ab" * 32) == "base-abababababab"


def test_what_a_mark_tells_is_read_back_from_the_metadata() -> None:
    for record in (RECORD, replace(RECORD, autostart=False, memory=True, images=(), files=())):
        mark = record.mark("2026-01-01T00:00:00Z")
        (kept,) = load(dump(Instance(marks=(mark,)))).marks
        assert (kept.state, Record.load(kept)) == ("shelved", record)


@pytest.mark.parametrize(
    "wrong", [{"files": "[1]"}, {"files": "{"}, {"images": "7"}, {"files": '[["/a", 1, 2]]'}, {"images": "[" * 9999}]
)
def test_a_mark_that_was_changed_is_an_error(wrong: dict[str, str]) -> None:
    mark = RECORD.mark("then")
    with pytest.raises(Invalid, match="vm_status"):
        Record.load(replace(mark, data={**mark.data, **wrong}))
    with pytest.raises(Invalid):
        Record.load(Mark("shelved", "then"))


def test_the_two_marks_are_told_apart() -> None:
    marks = (Mark("error", "then"), RECORD.mark("then"), Mark("soft-delete", "later"))
    assert shelve.shelved_mark(marks) == marks[1]
    assert shelve.offloaded_mark(marks) is None
    assert shelve.offloaded_mark((Mark("shelved_offloaded", "then"),)) is not None
