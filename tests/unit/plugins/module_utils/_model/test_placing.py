# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the disks of a VM that moves go."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placing import (
    COPIED,
    EMPTY,
    NETWORK,
    SHARED,
    Below,
    Layout,
    Placed,
    Problem,
    Room,
    image_kind,
    place_files,
    vouched,
)

UUID = "11111111-1111-4111-8111-111111111111"
ROOT = Placed(
    "vda",
    "disk",
    COPIED,
    path="/s/root.qcow2",
    there="/d/root.qcow2",
    format="qcow2",
    size=10,
    allocated=4,
    below=(Below("/s/_base/b.qcow2", "qcow2", 10, 7),),
)
SEED = Placed("sda", "cdrom", COPIED, path="/s/seed.iso", there="/d/seed.iso", format="raw", allocated=1, readonly=True)


def test_without_a_wish_every_file_keeps_its_path() -> None:
    assert place_files({"vda": "/a/x", "vdb": "/b/x"}, "", "/a", UUID) == {"vda": "/a/x", "vdb": "/b/x"}


def test_in_another_directory_the_vm_has_its_own_one_again() -> None:
    paths = {"vda": f"/s/{UUID}/root.qcow2", "vdb": "/other/data.raw"}
    assert place_files(paths, "/d", f"/s/{UUID}", UUID) == {"vda": f"/d/{UUID}/root.qcow2", "vdb": "/d/data.raw"}


def test_files_of_one_name_do_not_meet_in_another_directory() -> None:
    found = place_files({"vda": "/a/x", "vdb": "/b/x"}, "/d", "", UUID)
    assert found == {"vda": "/d/x", "vdb": "/d/vdb-x"}


@pytest.mark.parametrize("word", ["vda", "/a/b/c", "/a/b", "/a"])
def test_the_user_may_vouch_for_a_disk_by_its_name_path_or_directory(word: str) -> None:
    assert vouched("/a/b/c", "vda", [word])


@pytest.mark.parametrize("word", ["vdb", "/a/b/c/d", "/a/bc", "/", "c"])
def test_nothing_else_vouches_for_it(word: str) -> None:
    assert not vouched("/a/b/c", "vda", [word])


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("file", "", EMPTY),
        ("file", "/x", ""),
        ("block", "/dev/x", ""),
        ("volume", "p/v", ""),
        ("network", "x", NETWORK),
    ],
)
def test_what_has_to_be_looked_at_is_what_may_be_local(kind: str, source: str, expected: str) -> None:
    assert image_kind(Disk("vda", "virtio", "disk", Image(kind, source))) == expected


def test_libvirt_copies_what_may_be_written_to() -> None:
    layout = Layout(disks=(ROOT, SEED, Placed("vdc", "disk", SHARED), Placed("vdd", "disk", NETWORK)))
    assert layout.copied == ["vda"]
    assert [disk.target for disk in layout.disks if disk.sent] == ["sda"]
    assert layout.to_copy == 5
    assert not layout.shared
    assert layout.tell() == {"vda": COPIED, "sda": COPIED, "vdc": SHARED, "vdd": NETWORK}


@pytest.mark.parametrize(
    ("more", "shared"),
    [({}, True), ({"nvram": "/n/VARS.fd"}, False), ({"tpm": "/t"}, False), ({"disks": (SEED,)}, False)],
)
def test_what_is_shared_needs_no_copy_of_anything(more: dict[str, t.Any], shared: bool) -> None:
    disks = more.pop(
        "disks", (Placed("vda", "disk", SHARED), Placed("vdb", "disk", NETWORK), Placed("sda", "cdrom", EMPTY))
    )
    assert Layout(disks=disks, **more).shared is shared


def test_a_problem_stands_against_one_way_or_both() -> None:
    both, live, cold = Problem("b", "B."), Problem("l", "L.", cold=False), Problem("c", "C.", live=False)
    layout = Layout(problems=(both, live, cold))
    assert layout.against(live=True) == [both, live]
    assert layout.against(live=False) == [both, cold]


def test_the_journal_keeps_what_tidying_up_needs() -> None:
    layout = Layout(
        disks=(ROOT, SEED),
        directory="/s",
        there="/d",
        storage="/",
        nvram="/n",
        nvram_made=True,
        secrets=("s",),
        room={"/d": Room(1, 2, 3)},
        problems=(Problem("x", "X."),),
    )
    loaded = Layout.load(json.loads(json.dumps(layout.dump())))
    assert loaded.disks == layout.disks
    assert (loaded.directory, loaded.there, loaded.nvram, loaded.nvram_made) == ("/s", "/d", "/n", True)
    assert loaded.secrets == ("s",)
    assert (loaded.room, loaded.problems) == ({}, ())


@pytest.mark.parametrize("told", [{}, {"disks": 3}, {"disks": [{"target": "vda"}]}, {"disks": [{"below": [], "x": 1}]}])
def test_a_journal_that_says_something_else_is_told(told: dict[str, t.Any]) -> None:
    with pytest.raises(Invalid, match="Where the disks of the VM go cannot be read"):
        Layout.load(told)
