# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Purging the base cache, with real files and VMs of libvirt's in-memory driver."""

from __future__ import annotations

import os
import subprocess
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.bases import Base
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch
from ansible_collections.kvmops.lifecycle.plugins.modules import image
from tests.unit.hypervisor import Hypervisor, Task
from tests.unit.sources import bases, stored

SINCE = "2026-01-01T00:00:00Z"
MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The storage directory."""
    return tmp_path / "storage"


def fetched(place: Path, *names: str, host: str = "") -> list[Base]:
    """Bases, nobody's."""
    storage = LocalStorage(host or os.uname().nodename)
    found = [storage.fetch_base(stored(name.encode() * 100, image=name), str(place)) for name in names]
    storage.close()
    return found


def overlay(path: Path, base: Base) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", base.format, str(path), str(MIB)]
    subprocess.run(command, check=True)
    return str(path)


def purged(task: Task, place: Path, **options: t.Any) -> dict[str, t.Any]:
    return task(image.main, state="purged", storage=str(place), **{"older_than": 0, **options})


def test_what_no_vm_uses_is_removed_and_said_to_be(kvm: Hypervisor, task: Task, place: Path) -> None:
    used, unused = fetched(place, "a", "b")
    kvm.define("web1", disks=[overlay(place / "u" / "root.qcow2", used)], running=False)
    before = sorted(place.rglob("*"))
    checked = purged(task, place, check=True, diff=True)
    assert sorted(place.rglob("*")) == before
    done = purged(task, place, diff=True)
    again = purged(task, place, diff=True)
    assert [told["changed"] for told in (checked, done, again)] == [True, True, False]
    for told in (checked, done):
        assert told["removed"] == [unused.path]
        assert told["kept"] == {used.path: "VM web1 uses it"}
        assert told["freed"] > 0
    assert checked["diff"] == done["diff"]
    assert again["diff"] == []
    assert again["removed"] == []
    assert bases(place) == [os.path.basename(used.path), f"{os.path.basename(used.path)}.ok"]


def test_a_base_is_used_by_who_remembers_it_and_who_names_it_in_a_header(
    kvm: Hypervisor, task: Task, place: Path, tmp_path: Path
) -> None:
    remembered, named, elsewhere, linked, young = fetched(place, *"abcde")
    kvm.define("web1", running=False)
    launch = Launch(SINCE, "root", "i", remembered.path, "raw", remembered.sha256, str(place))
    kvm.remember(Instance(launch=launch))
    theirs = overlay(place / "of-another-host" / "root.qcow2", named)
    kvm.define("web2", disks=[overlay(tmp_path / "far" / "disk.qcow2", elsewhere)], running=False)
    hidden = overlay(tmp_path / "moved" / "disk.qcow2", linked)
    (place / "link").symlink_to(tmp_path / "moved")
    for base in (remembered, named, elsewhere, linked):
        os.utime(f"{base.path}.ok", (1, 1))
    told = purged(task, place, older_than=3600)
    assert not told["changed"]
    reasons = {os.path.basename(path): reason for path, reason in told["kept"].items()}
    assert [reasons[os.path.basename(base.path)] for base in (remembered, named, elsewhere, linked)] == [
        "VM web1 uses it",
        f"file {theirs} uses it",
        "VM web2 uses it",
        f"file {place}/link/{os.path.basename(hidden)} uses it",
    ]
    assert reasons[os.path.basename(young.path)].startswith("it was used ")


def test_while_a_launch_is_under_way_nothing_goes(kvm: Hypervisor, task: Task, place: Path) -> None:
    fetched(place, "a")
    storage = LocalStorage("kvm1")
    (base,) = [storage.fetch_base(stored(b"b" * 100, image="b"), str(place))]
    told = purged(task, place)
    assert (told["changed"], set(told["kept"].values())) == (False, {"a launch that is under way may need it"})
    storage.close()
    # One that died, or runs elsewhere, is known by its journal.
    kvm.define("new", running=False)
    launch = Launch(SINCE, "root", "i", "", "raw", "", str(place))
    kvm.remember(Instance(launch=launch, journal=Journal("launch", SINCE, "elsewhere", 1)), "new")
    assert not purged(task, place)["changed"]
    kvm.remember(Instance(launch=replace(launch, base=base.path)), "new")
    assert purged(task, place, gone_hosts=["kvm1"])["kept"] == {base.path: "VM new uses it"}


def test_while_bases_are_removed_no_launch_begins(kvm: Hypervisor, place: Path) -> None:
    fetched(place, "a")
    purging, launching = LocalStorage("kvm1"), LocalStorage("kvm1")
    assert purging.cache(str(place)).reserve()
    assert not launching.cache(str(place)).reserve()
    purging.close()
    assert launching.cache(str(place)).reserve()
    launching.close()


def test_metadata_that_cannot_be_read_may_tell_of_any_base(kvm: Hypervisor, task: Task, place: Path) -> None:
    (base,) = fetched(place, "a")
    kvm.define("web1", running=False)
    kvm.connection.lookupByName("web1").setMetadata(
        2, "<instance schema='99'/>", "kvmops", "urn:kvmops:lifecycle:instance", 2
    )
    assert purged(task, place)["kept"] == {base.path: "VM web1, whose metadata cannot be read, possibly uses it"}


def test_hosts_that_share_a_cache_purge_it_one_after_the_other(kvm: Hypervisor, task: Task, place: Path) -> None:
    fetched(place, "a")
    (base,) = fetched(place, "a", host="kvm9")
    first = purged(task, place)
    assert first["changed"]
    assert first["steps"] == [f"let go of {os.path.basename(base.path)}"]
    assert first["kept"] == {base.path: "kvm9 may use it"}
    assert not purged(task, place)["changed"]
    other = LocalStorage("kvm9")
    facts = other.cache(str(place)).cached(0)
    assert [each.hosts for each in facts] == [("kvm9",)]
    assert purged(task, place, gone_hosts=["kvm9"])["removed"] == [base.path]


def test_leftovers_go_when_they_are_old(kvm: Hypervisor, task: Task, place: Path) -> None:
    (base,) = fetched(place, "a")
    kvm.define("web1", running=False)
    kvm.remember(Instance(launch=Launch(SINCE, "root", "i", base.path, "raw", base.sha256, str(place))))
    names = ["x.part", f"{'0' * 64}-1234abcd.qcow2", f"{'1' * 64}.raw.ok", "notes.txt"]
    for name in names:
        (place / "_base" / name).write_bytes(b"half")
    assert not purged(task, place)["changed"]
    for name in names:
        os.utime(place / "_base" / name, (1, 1))
    told = purged(task, place)
    assert sorted(told["steps"]) == sorted(f"remove {name}" for name in names[:-1])
    assert bases(place) == sorted([os.path.basename(base.path), f"{os.path.basename(base.path)}.ok", "notes.txt"])


def test_a_removal_that_died_leaves_what_the_next_one_finishes(
    kvm: Hypervisor, task: Task, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base,) = fetched(place, "a")
    os.unlink(base.path)  # the first of the two
    assert bases(place) == [f"{os.path.basename(base.path)}.ok"]
    assert fetched(place, "a") == [base]
    os.unlink(base.path)
    os.utime(f"{base.path}.ok", (1, 1))
    assert purged(task, place)["changed"]
    assert bases(place) == []


def test_where_there_is_no_cache_nothing_is_done(kvm: Hypervisor, task: Task, place: Path) -> None:
    told = purged(task, place)
    assert (told["changed"], told["removed"], told["kept"]) == (False, [], {})
    assert not place.exists()
