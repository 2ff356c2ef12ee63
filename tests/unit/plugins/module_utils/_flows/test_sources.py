# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of a directory store as what bases are made of."""

from __future__ import annotations

import os
import typing as t
import uuid
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, NotFound, Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.sources import (
    from_image,
    from_store,
    path_of,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Image, NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "store"))


def put(store: DirectoryStore, name: str, *, image_id: str = "", disk_format: str = "raw", **properties: str) -> Image:
    """An image that contains its name."""
    path = Path(store.place).parent / "content"
    path.write_bytes(name.encode().ljust(512))
    new = NewImage(id=image_id or str(uuid.uuid4()), name=name, disk_format=disk_format, properties=properties)
    return store.put(new, FileContent(str(path)))


def delta(store: DirectoryStore, name: str, parent: str, **more: t.Any) -> Image:
    told = {"kvmops_form": "delta", "kvmops_format": "qcow2", "kvmops_parent": parent}
    return put(store, name, **{**told, **more})


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("/i/a.qcow2", "/i/a.qcow2"),
        ("~/a.qcow2", "/home/ada/a.qcow2"),
        ("$HOME/a.qcow2", "/home/ada/a.qcow2"),
        ("debian", ""),
        ("images/a.qcow2", ""),
        ("json:{}", ""),
    ],
)
def test_an_absolute_path_is_a_file_and_all_else_is_in_a_store(
    image: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert path_of(image) == path


def test_a_source_says_what_the_store_says(store: DirectoryStore, tmp_path: Path) -> None:
    image = put(store, "debian", kvmops_virtual_size="4096")
    found = from_image(store, image)
    assert (found.virtual_size, found.kind, found.place, found.image) == (4096, "directory", store.place, image)
    assert found.source.label == f"debian ({image.id}) in {store.place}"
    assert (found.source.format, found.source.size, found.source.digests) == ("raw", 512, image.digests)
    base = LocalStorage("kvm1").fetch_base(found.source, str(tmp_path))
    assert Path(base.path).read_bytes() == b"debian".ljust(512)
    assert base.images == {store.place: image.id}


def test_images_of_one_content_are_fetched_each_by_itself(store: DirectoryStore) -> None:
    one, other = (from_store(store, put(store, "debian")) for _time in range(2))
    assert one.key != other.key
    assert one.digests == other.digests


def test_a_delta_comes_with_all_that_it_lies_upon(store: DirectoryStore) -> None:
    lowest = put(store, "whole", disk_format="qcow2")
    middle = delta(store, "middle", lowest.id)
    source = from_store(store, delta(store, "top", middle.id, kvmops_parent_sha256=middle.digests["sha256"]))
    assert source.parent
    assert source.parent.parent
    assert [each.format for each in (source, source.parent, source.parent.parent)] == ["qcow2"] * 3
    assert source.parent.parent.images == {store.place: lowest.id}
    assert source.parent.parent.parent is None


def test_what_a_delta_lies_upon_has_to_be_what_it_was_made_upon(store: DirectoryStore) -> None:
    lowest = put(store, "whole")
    with pytest.raises(Invalid, match=f"Image top in .* with the sha256 {'0' * 64}, and its parent, {lowest.id}, has"):
        from_store(store, delta(store, "top", lowest.id, kvmops_parent_sha256="0" * 64))


@pytest.mark.parametrize("parent", ["", "0a0b0c0d-0000-4000-8000-00000000000a"])
def test_a_delta_without_its_parent_is_no_image(store: DirectoryStore, parent: str) -> None:
    with pytest.raises(NotFound, match=f"lies upon the image {parent or 'without a name'}, which is not there"):
        from_store(store, delta(store, "top", parent))


def test_images_that_lie_upon_each_other_have_no_end(store: DirectoryStore) -> None:
    ids = [str(uuid.uuid4()) for _number in range(3)]
    images = [delta(store, f"d{at}", ids[(at + 1) % 3], image_id=ids[at]) for at in range(3)]
    for image in images:
        with pytest.raises(Invalid, match=r"after 3 images .* there is no end to it"):
            from_store(store, image)


@pytest.mark.parametrize(
    ("disk_format", "properties", "said"),
    [
        ("raw", {"kvmops_role": "memory"}, "is no disk: it is memory of a VM"),
        ("raw", {"kvmops_format": "vmdk"}, "has the format vmdk"),
        ("raw", {"kvmops_form": "delta", "kvmops_format": "raw", "kvmops_parent": "PARENT"}, "has the format raw"),
    ],
)
def test_what_is_no_disk_is_not_launched_from(
    store: DirectoryStore, disk_format: str, properties: dict[str, str], said: str
) -> None:
    parent = put(store, "whole")
    told = {key: parent.id if value == "PARENT" else value for key, value in properties.items()}
    with pytest.raises(Unsupported, match=said):
        from_store(store, put(store, "odd", disk_format=disk_format, **told))


def test_what_comes_out_of_a_store_is_inspected_and_called_by_its_name(store: DirectoryStore, tmp_path: Path) -> None:
    image = put(store, "liar", disk_format="qcow2")
    storage = LocalStorage("kvm1")
    with pytest.raises(Invalid, match=r"^Image liar \(.*\) in .* is declared as qcow2, but it is raw"):
        storage.fetch_base(from_store(store, image), str(tmp_path))
    storage.close()
    assert [name for name in os.listdir(tmp_path / "_base") if not name.startswith(".")] == []
