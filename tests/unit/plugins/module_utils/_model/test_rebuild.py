# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which disks a rebuild is about, how large they get, which files go, and what its journal tells."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    NotFound,
    Refused,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import rebuild
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.rebuild import Began, Change

GIB = 1 << 30


def disk(target: str, kind: str = "file", device: str = "disk", source: str = "/x.qcow2", **fields: t.Any) -> Disk:
    return Disk(target, "virtio", device, Image(kind, source, "qcow2"), **fields)


def began(**changes: t.Any) -> Began:
    told: dict[str, t.Any] = {
        "asked": {"image": "new", "disks": ["root"]},
        "ran": True,
        "disks": {"vda": Change("<disk/>", "/d/root.qcow2", "/d/root-0badcafe.qcow2")},
    }
    return Began(**{**told, **changes})


# ---- which disks


def test_the_root_disk_is_the_first_that_is_no_drive() -> None:
    chosen = rebuild.choose([disk("sda", device="cdrom"), disk("vda"), disk("vdb")], ["root"], name="a")
    assert (chosen.targets, chosen.root, dict(chosen.left)) == (["vda"], "vda", {"vdb": "not asked for"})


def test_all_disks_are_those_that_a_snapshot_of_all_has() -> None:
    disks = [
        disk("vda"),
        disk("vdb", readonly=True),
        disk("vdc", shareable=True),
        disk("vdd", kind="network"),
        disk("sda", device="cdrom", readonly=True),
        disk("vde"),
    ]
    chosen = rebuild.choose(disks, ["all"], name="a")
    assert chosen.targets == ["vda", "vde"]
    assert sorted(chosen.left) == ["vdb", "vdc", "vdd"]


@pytest.mark.parametrize(
    ("found", "wanted", "kind"),
    [
        ([], ["root"], Refused),
        ([disk("vda")], [], Refused),
        ([disk("vda")], ["vdb"], NotFound),
        ([disk("vda"), disk("sda", device="cdrom")], ["sda"], NotFound),
        ([disk("vda", kind="network")], ["root"], Unsupported),
        ([disk("vda", kind="network")], ["all"], Refused),
        ([disk("vda", kind="block")], ["all"], Unsupported),
        ([disk("vda", device="lun", kind="block")], ["root"], Unsupported),
        ([disk("vda", encrypted=True)], ["root"], Unsupported),
        ([disk("vda", readonly=True)], ["vda"], Refused),
        ([disk("vda", shareable=True)], ["vda"], Refused),
        ([disk("vda", source="")], ["vda"], Unsupported),
    ],
)
def test_disks_that_cannot_be_replaced_are_refused(
    found: list[Disk], wanted: list[str], kind: type[LifecycleError]
) -> None:
    with pytest.raises(kind):
        rebuild.choose(found, wanted, name="a")


# ---- names and sizes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/d/root.qcow2", "/d/root-0badcafe.qcow2"),
        ("/d/root-01234567.qcow2", "/d/root-0badcafe.qcow2"),
        ("/d/web1.img", "/d/web1-0badcafe.qcow2"),
        ("/d/web1", "/d/web1-0badcafe.qcow2"),
        ("/d/-01234567.qcow2", "/d/disk-0badcafe.qcow2"),
    ],
)
def test_a_new_disk_is_called_after_the_old_one_however_often(old: str, new: str) -> None:
    assert rebuild.new_disk_path(old, "0badcafe") == new


def test_variables_keep_their_ending() -> None:
    assert rebuild.new_path("/n/a_VARS.fd", "0badcafe") == "/n/a_VARS-0badcafe.fd"


@pytest.mark.parametrize(
    ("image", "old", "root", "size"),
    [
        (1, 2, None, 2),
        (3, 2, None, 3),
        (3, None, None, 3),
        (1, 2, 0, 2),
        (3, 2, 0, 3),
        (1, 2, 1, 2),
        (1, 1, 4, 4),
        (1, None, 4, 4),
        (3, 3, 2, 3),
        (3, 1, 3, 3),
    ],
)
def test_a_disk_never_shrinks(image: int, old: int | None, root: int | None, size: int) -> None:
    flavor = None if root is None else Flavor(1, 64, root=root)
    found = rebuild.new_size(image * GIB, None if old is None else old * GIB, flavor, name="a", image="i")
    assert found == size * GIB


def test_an_image_that_the_flavor_has_no_room_for_is_refused_with_figures() -> None:
    with pytest.raises(Invalid, match=r"2\.00 GiB, and image i needs 3\.00 GiB") as caught:
        rebuild.new_size(3 * GIB, 2 * GIB, Flavor(1, 64, root=1), name="a", image="i")
    assert caught.value.details == {"virtual_size": 3 * GIB, "root": 2 * GIB}


# ---- which files go

OURS = Instance(disks=(OwnDisk("root", "vda", "/own/root.qcow2"),))


@pytest.mark.parametrize(
    ("files", "listed", "users", "remove"),
    [
        (["/own/root.qcow2"], [], {}, ["/own/root.qcow2"]),
        (["/own/other.qcow2"], [], {}, ["/own/other.qcow2"]),
        (["/theirs.img"], [], {}, []),
        (["/theirs.img"], ["vda"], {}, ["/theirs.img"]),
        (["/theirs.img"], ["/theirs.img"], {}, ["/theirs.img"]),
        (["/own/root.qcow2"], ["vda"], {"/own/root.qcow2": "b"}, []),
        # An overlay that another tool laid upon ours: without it, or with it.
        (["/theirs.snap", "/own/root.qcow2"], [], {}, []),
        (["/theirs.snap", "/own/root.qcow2"], ["vda"], {}, ["/theirs.snap", "/own/root.qcow2"]),
        (["/own/root.qcow2", "/theirs.base"], [], {}, ["/own/root.qcow2"]),
    ],
)
def test_files_go_that_are_ours_or_listed_and_nothing_below_one_that_stays(
    files: list[str], listed: list[str], users: dict[str, str], remove: list[str]
) -> None:
    found, keep = rebuild.let_go({"vda": files}, OURS, "/own", listed, users, name="a")
    assert found == remove
    assert list(keep) == files[len(remove) :][:1]


def test_what_is_listed_must_be_among_the_disks_that_are_replaced() -> None:
    with pytest.raises(Invalid, match="vdb"):
        rebuild.let_go({"vda": ["/x"]}, OURS, "", ["vda", "vdb"], {}, name="a")


# ---- the journal


@pytest.mark.parametrize("launch", [None, Launch("then", "ada", "i", "/b", "raw", "00", "/s", {"cloud_init": "1"})])
def test_a_journal_is_read_as_it_was_written(launch: Launch | None) -> None:
    told = began(
        nvram=Change("", "/n/a.fd", "/n/a-0badcafe.fd"),
        remove=("/r",),
        keep={"/k": "why"},
        leftovers=("/l",),
        launch=launch,
    )
    assert Began.load(json.loads(json.dumps(told.dump()))) == told
    assert told.going == ["/r", "/n/a.fd"]
    assert told.new_files == ["/d/root-0badcafe.qcow2", "/n/a-0badcafe.fd"]


@pytest.mark.parametrize("data", [{}, {"disks": 1}, {**began().dump(), "more": 1}, {**began().dump(), "launch": 7}])
def test_a_journal_that_says_something_else_is_no_traceback(data: dict[str, t.Any]) -> None:
    with pytest.raises(Invalid, match="vm_status"):
        Began.load(data)


@pytest.mark.parametrize(
    ("step", "files", "phase"),
    [
        ("", {"vda": "/d/root.qcow2"}, rebuild.STAGED),
        ("swap", {"vda": "/d/root.qcow2"}, rebuild.STAGED),
        ("remove_old", {"vda": "/d/root.qcow2"}, rebuild.STAGED),
        ("swap", {"vda": "/d/root-0badcafe.qcow2"}, rebuild.SWAPPED),
        ("start", {"vda": "/d/root-0badcafe.qcow2", "vdb": "/y"}, rebuild.SWAPPED),
        ("remove_old", {"vda": "/d/root-0badcafe.qcow2"}, rebuild.PROVEN),
        ("start", {}, rebuild.STAGED),
    ],
)
def test_the_definition_tells_how_far_a_run_came_that_died(step: str, files: dict[str, str], phase: str) -> None:
    assert began().phase(step, files) == phase


def test_a_run_that_died_before_it_took_another_back_is_told_from_one_that_did_nothing() -> None:
    work = began(leftovers=("/d/root-01234567.qcow2",))
    assert work.phase("put_back", {"vda": "/d/root-01234567.qcow2"}) == rebuild.ASTRAY
    assert work.phase("put_back", {"vda": "/d/root.qcow2"}) == rebuild.STAGED


def test_both_disks_belong_to_the_vm_until_one_is_gone() -> None:
    work = began(disks={**began().disks, "vdb": Change("", "/theirs.img", "/theirs-0badcafe.qcow2")})
    both = work.owning_both(Instance(disks=(OwnDisk("root", "vda", "/d/root.qcow2"),)), "vda")
    assert both.disks == (
        OwnDisk("root", "vda", "/d/root.qcow2"),
        OwnDisk("root", "vda", "/d/root-0badcafe.qcow2"),
        OwnDisk("data", "vdb", "/theirs-0badcafe.qcow2"),
    )
    assert work.owning_both(both, "vda") == both
    assert rebuild.disowning(both, ["/d/root.qcow2"]).disks == both.disks[1:]
    (theirs,) = began().owning_both(Instance(), "vda").disks
    assert theirs.role == "root"
