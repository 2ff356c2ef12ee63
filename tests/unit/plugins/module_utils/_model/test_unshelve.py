# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the disks of a VM go that comes back, what it needs, what it is afterwards, and what its journal tells."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, NoSpace, Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import unshelve
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelf import Lease
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.unshelve import (
    COPY,
    DONE,
    PULL,
    Began,
    Piece,
    Room,
)

MIB = 1 << 20
FILES = {"vda": "/i/a.qcow2"}


def disk(source: str, kind: str = "file", form: str = "qcow2", layers: t.Sequence[str] = ()) -> Disk:
    backing = tuple(Image("file", layer, "qcow2") for layer in layers)
    return Disk("vda", "virtio", "disk", Image(kind, source, form), backing, chain_known=True)


def piece(**changes: t.Any) -> Piece:
    told: dict[str, t.Any] = {
        "target": "vda",
        "image": "delta",
        "parents": ("base",),
        "path": "/i/a.qcow2",
        "overlay": "/i/a.qcow2",
        "size": 64 * MIB,
        "stored": 8 * MIB,
        "storage": "/i",
        "policies": {"error_policy": "", "rerror_policy": "report"},
    }
    return Piece(**{**told, **changes})


def began(**changes: t.Any) -> Began:
    told: dict[str, t.Any] = {
        "set_id": "set",
        "images": ("claim", "delta"),
        "store": "directory",
        "place": "/s",
        "start": "instant",
        "power": "running",
        "disks": (piece(overlay="/i/a-pulled.qcow2"),),
        "files": ("/i/config.iso",),
        "memory": "/i/memory",
        "leases": (Lease("default", "52:54:00:00:00:01", "<host/>"),),
    }
    return Began(**{**told, **changes})


# ---- how far a disk is


@pytest.mark.parametrize(
    ("about", "layers", "ahead"),
    [
        (piece(), ["/s/delta", "/i/_base/b"], PULL),
        (piece(), ["/i/_base/b"], DONE),
        (piece(parents=()), ["/s/full"], PULL),
        (piece(parents=()), [], DONE),
        (piece(parents=("delta", "base")), ["/s/top", "/i/_base/d", "/i/_base/b"], PULL),
        (piece(parents=("delta", "base")), ["/i/_base/d", "/i/_base/b"], DONE),
        (piece(overlay="/i/other"), ["/i/_base/b"], DONE),
    ],
)
def test_the_chain_of_a_running_disk_tells_what_is_still_to_be_done(
    about: Piece, layers: list[str], ahead: str
) -> None:
    assert about.ahead(disk("/i/a.qcow2", layers=layers)) == ahead


def test_a_disk_whose_base_had_to_come_is_copied_to_its_own_file_in_the_end() -> None:
    late = piece(overlay="/i/a-pulled.qcow2")
    assert late.ahead(disk("/i/a-pulled.qcow2", layers=["/s/delta", "/s/base"])) == PULL
    assert late.ahead(disk("/i/a-pulled.qcow2", layers=["/s/base"])) == COPY
    assert late.ahead(disk("/i/a.qcow2", layers=["/i/_base/b"])) == DONE


# ---- where files go


@pytest.mark.parametrize(
    ("was", "directory", "path"),
    [
        (disk("/i/u/root.qcow2"), "", "/i/u/root.qcow2"),
        (disk("/i/u/root.qcow2"), "/new/u", "/new/u/root.qcow2"),
        (disk("/i/root.img", form="raw"), "", "/i/root.qcow2"),
        (disk("/i/root", form="qcow2"), "", "/i/root.qcow2"),
        (disk("/dev/vg/root", kind="block", form="raw"), "/new/u", "/new/u/root.qcow2"),
    ],
)
def test_a_disk_comes_back_as_a_qcow2_file_where_it_was_or_where_one_says(was: Disk, directory: str, path: str) -> None:
    assert unshelve.disk_path(was, directory, (), name="a") == path


def test_two_disks_are_not_put_into_one_file() -> None:
    assert unshelve.disk_path(disk("/x/root.qcow2"), "/n", ["/n/root.qcow2"], name="a") == "/n/root-vda.qcow2"


def test_a_disk_that_was_no_file_needs_a_place() -> None:
    with pytest.raises(Invalid, match="storage"):
        unshelve.disk_path(disk("/dev/vg/root", kind="block"), "", (), name="a")


def test_the_file_that_a_guest_writes_into_meanwhile_lies_beside_its_disk() -> None:
    assert unshelve.overlay_of("/i/u/root.qcow2") == "/i/u/root-pulled.qcow2"


# ---- what it is afterwards


@pytest.mark.parametrize(
    ("asked", "before", "memory", "after"),
    [
        ("before", "running", False, "running"),
        ("before", "paused", False, "running"),
        ("before", "stopped", False, "stopped"),
        ("before", "suspended", True, "suspended"),
        ("before", "suspended", False, "stopped"),
        ("running", "stopped", False, "running"),
        ("running", "suspended", True, "running"),
        ("stopped", "running", False, "stopped"),
    ],
)
def test_the_power_comes_back_unless_one_says_another(asked: str, before: str, memory: bool, after: str) -> None:
    assert unshelve.power_after(asked, before, memory=memory, force=False, name="a") == after


def test_memory_is_thrown_away_by_force_only() -> None:
    with pytest.raises(Refused, match="force"):
        unshelve.power_after("stopped", "suspended", memory=True, force=False, name="a")
    assert unshelve.power_after("stopped", "suspended", memory=True, force=True, name="a") == "stopped"


# ---- room


def test_what_does_not_fit_is_told_with_figures() -> None:
    rooms = [Room("/i", 10 * MIB, 10 * MIB), Room("/j", 10 * MIB, 10 * MIB + 1)]
    unshelve.check_room(rooms[:1], name="a", host="h")
    with pytest.raises(NoSpace, match="/j") as caught:
        unshelve.check_room(rooms, name="a", host="h")
    assert caught.value.details == {"directory": "/j", "needed": 10 * MIB + 1, "free": 10 * MIB}


def test_a_disk_that_is_copied_once_more_needs_the_room_twice() -> None:
    once = unshelve.written(100 * MIB, copied_again=False)
    assert once > 100 * MIB
    assert unshelve.written(100 * MIB, copied_again=True) == 2 * once


@pytest.mark.parametrize(
    ("changes", "details"),
    [
        ({"memory": 1025}, {"memory": 1025, "available": 1024}),
        ({"vcpus": 5}, {"vcpus": 5, "cpus": 4}),
        ({"vcpus": 3, "max_vcpus": 2}, {"vcpus": 3, "cpus": 4}),
    ],
)
def test_a_vm_that_is_too_large_for_the_host_is_refused(changes: dict[str, int], details: dict[str, int]) -> None:
    fits = {"memory": 1024, "available": 1024, "vcpus": 4, "cpus": 4, "max_vcpus": 0}
    unshelve.check_capacity(name="a", host="h", **fits)
    with pytest.raises(NoSpace) as caught:
        unshelve.check_capacity(name="a", host="h", **{**fits, **changes})
    assert caught.value.details == details


# ---- the journal


def test_a_journal_brings_back_what_was_set_out_to_be_done() -> None:
    told = began()
    assert Began.load(json.loads(json.dumps(told.dump()))) == told


def test_a_journal_of_something_else_is_refused_with_the_way_out() -> None:
    with pytest.raises(Invalid, match="vm_status"):
        Began.load({"set_id": "x"})


def test_all_files_are_known_that_are_made() -> None:
    assert began().made == ["/i/a.qcow2", "/i/a-pulled.qcow2", "/i/config.iso", "/i/memory"]
    assert began(disks=(piece(),), memory="").made == ["/i/a.qcow2", "/i/config.iso"]
