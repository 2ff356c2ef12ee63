# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which files go with a VM, and which stay."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Domain, read_domain
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.removal import Removal, choose, own_directory

UUID = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"
OWN = f"/s/{UUID}"
NOT_OURS = "it was not made by this collection, and remove_disks does not list it"
LAUNCHED = Instance(
    launch=Launch("", "", "/i/debian.qcow2", "/s/_base/ab.qcow2", "qcow2", "ab", "/s"),
    disks=(OwnDisk("root", "vda", f"{OWN}/root.qcow2"), OwnDisk("config", "sda", f"{OWN}/config.iso")),
)


def disk(target: str, source: str = "", kind: str = "file", device: str = "disk") -> str:
    attribute = {"file": "file", "block": "dev", "network": "protocol='rbd' name", "volume": "pool='p' volume"}[kind]
    place = f"<source {attribute}='{source}'/>" if source else ""
    return f"<disk type='{kind}' device='{device}'>{place}<target dev='{target}'/></disk>"


def domain(*disks: str) -> Domain:
    return read_domain(
        ET.fromstring(
            f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><devices>{''.join(disks)}</devices></domain>"
        )
    )


def chosen(
    *disks: str,
    instance: Instance = LAUNCHED,
    listed: t.Sequence[str] = (),
    others: t.Mapping[str, str] | None = None,
) -> Removal:
    return choose(domain(*disks), instance, listed, others or {}, name="web1")


ROOT, CONFIG = disk("vda", f"{OWN}/root.qcow2"), disk("sda", f"{OWN}/config.iso", device="cdrom")


def test_the_disks_that_the_launch_made_go() -> None:
    assert chosen(ROOT, CONFIG) == Removal((f"{OWN}/root.qcow2", f"{OWN}/config.iso"), {})


def test_what_others_made_stays_with_the_reason() -> None:
    removal = chosen(ROOT, CONFIG, disk("vdb", "/data/db.qcow2"), disk("sdb", "/iso/debian.iso", device="cdrom"))
    assert removal.remove == (f"{OWN}/root.qcow2", f"{OWN}/config.iso")
    assert removal.keep == {"/data/db.qcow2": NOT_OURS, "/iso/debian.iso": NOT_OURS}


def test_of_a_vm_that_others_made_everything_stays() -> None:
    assert chosen(ROOT, disk("vdb", "/dev/vg/x", "block"), instance=Instance()).remove == ()


@pytest.mark.parametrize("word", ["vdb", "/data/db.qcow2"])
@pytest.mark.parametrize("instance", [LAUNCHED, Instance()])
def test_what_is_listed_by_name_or_path_goes(word: str, instance: Instance) -> None:
    removal = chosen(disk("vdb", "/data/db.qcow2"), instance=instance, listed=[word])
    assert "/data/db.qcow2" in removal.remove
    assert removal.keep == {}


def test_a_file_in_the_own_directory_goes_whoever_made_it() -> None:
    removal = chosen(disk("vda", f"{OWN}/root.snap1"), CONFIG)
    assert set(removal.remove) == {f"{OWN}/root.snap1", f"{OWN}/root.qcow2", f"{OWN}/config.iso"}


def test_a_directory_that_only_looks_like_the_own_one_is_not() -> None:
    assert chosen(disk("vdb", f"{OWN}-copy/x.qcow2"), disk("vdc", f"{OWN}/sub/x.qcow2")).keep == {
        f"{OWN}-copy/x.qcow2": NOT_OURS,
        f"{OWN}/sub/x.qcow2": NOT_OURS,
    }


def test_the_base_image_is_never_chosen() -> None:
    assert "/s/_base/ab.qcow2" not in chosen(ROOT, CONFIG).remove
    assert chosen(disk("vda", "/s/_base/ab.qcow2")).keep == {"/s/_base/ab.qcow2": NOT_OURS}


def test_a_file_of_ours_that_is_no_disk_any_more_goes_all_the_same() -> None:
    assert chosen(ROOT).remove == (f"{OWN}/root.qcow2", f"{OWN}/config.iso")


@pytest.mark.parametrize("listed", [[], ["vda"], [f"{OWN}/root.qcow2"]])
def test_what_another_vm_uses_stays_even_when_it_is_listed(listed: list[str]) -> None:
    removal = chosen(ROOT, CONFIG, listed=listed, others={f"{OWN}/root.qcow2": "web2"})
    assert removal.remove == (f"{OWN}/config.iso",)
    assert removal.keep == {f"{OWN}/root.qcow2": "VM web2 uses it too"}


def test_a_file_of_ours_that_another_vm_has_now_stays() -> None:
    removal = chosen(CONFIG, others={f"{OWN}/root.qcow2": "web2"})
    assert removal.remove == (f"{OWN}/config.iso",)
    assert removal.keep == {f"{OWN}/root.qcow2": "VM web2 uses it"}


def test_an_empty_drive_is_nothing() -> None:
    assert chosen(disk("sda", device="cdrom"), instance=Instance()) == Removal((), {})


@pytest.mark.parametrize(
    ("kind", "source", "path"),
    [("block", "/dev/vg/x", "/dev/vg/x"), ("network", "vms/web1", "vms/web1"), ("volume", "v", "p/v")],
)
def test_what_is_no_file_stays_and_cannot_be_listed(kind: str, source: str, path: str) -> None:
    assert chosen(disk("vdb", source, kind), instance=Instance()).keep == {path: NOT_OURS}
    with pytest.raises(Invalid, match=f"Disk vdb of VM web1 is of the kind {kind}, no file") as caught:
        chosen(disk("vdb", source, kind), listed=["vdb"])
    assert "remove_disks" in caught.value.hint


def test_what_is_listed_and_not_there_is_refused_all_of_it() -> None:
    with pytest.raises(Invalid, match=r"VM web1 has no disk /data/x, vdz\."):
        chosen(ROOT, listed=["vdz", "vda", "/data/x"])


def test_the_own_directory_is_known_of_launched_vms_only() -> None:
    assert own_directory(UUID, LAUNCHED) == OWN
    assert own_directory(UUID, Instance()) == ""
