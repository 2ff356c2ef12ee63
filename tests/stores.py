# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every image store promises, as tests: a class that the tests of each store inherit."""

from __future__ import annotations

import hashlib
import random
import threading
import typing as t
import uuid

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Ambiguous,
    Invalid,
    LifecycleError,
    NotFound,
    Refused,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Image, NewImage, Store, resolve

MIB = 1 << 20


class Bytes:
    """A content that reuses its buffer, and can be read once, as the strictest may.

    :param announced: The length that it tells; by default the true one.
    :param error: Raised at the end.
    :param during: Called before each block but the first.
    """

    def __init__(
        self,
        data: bytes,
        announced: int | None = None,
        error: BaseException | None = None,
        during: t.Callable[[], object] = lambda: None,
        block: int = MIB,
    ) -> None:
        self.data = data
        self.announced = len(data) if announced is None else announced
        self.error = error
        self.during = during
        self.block = block
        self.times_read = 0

    def __len__(self) -> int:
        return self.announced

    def __iter__(self) -> t.Iterator[memoryview]:
        self.times_read += 1
        assert self.times_read == 1
        buffer = bytearray(self.block)
        for start in range(0, len(self.data), self.block):
            if start:
                self.during()
            piece = self.data[start : start + self.block]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            buffer[:] = b"\xa5" * self.block
        if self.error:
            raise self.error


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that cannot be compressed, and are the same each time."""
    return random.Random(seed).randbytes(size)


def new(name: str = "web", **fields: t.Any) -> NewImage:
    """An image to be."""
    return NewImage(**{"id": str(uuid.uuid4()), "name": name, "disk_format": "raw", **fields})


def read(store: Store, image: Image) -> bytes:
    """The content."""
    with store.open(image) as content:
        return b"".join(bytes(block) for block in content)


def unreadable(store: Store, image: Image) -> tuple[str, int]:
    """What is said when an image is read that is damaged, and how many bytes came before."""
    got: list[int] = []
    with store.open(image) as content, pytest.raises(Invalid) as caught:
        got.extend(len(block) for block in content)
    return str(caught.value), sum(got)


class StoreContract:
    """Tests of one kind of store. A subclass has the fixture ``store``, without images."""

    def nothing_is_left(self, store: Store) -> None:
        """No image in any state, no file."""
        assert store.find() == []

    def test_what_is_put_is_found_and_read(self, store: Store) -> None:
        data = noise(5 * MIB + 123)
        properties = {"image_type": "snapshot", "os_type": "linux", "a/b~c": '"ä", 1', "empty": ""}
        wanted = new("a name, with ä", properties=properties, min_disk=3, min_ram=512)
        image = store.put(wanted, Bytes(data))
        assert (image.id, image.name, image.status, image.size) == (wanted.id, wanted.name, "active", len(data))
        assert (image.disk_format, image.properties, image.protected) == ("raw", properties, False)
        assert (image.min_disk, image.min_ram) == (3, 512)
        assert image.digests["sha256"] == hashlib.sha256(data).hexdigest()
        assert image.same_content(len(data), {"sha256": hashlib.sha256(data).hexdigest()})
        assert image.created_at.endswith("Z")
        assert store.get(image.id) == image
        assert store.find() == [image]
        with store.open(image) as content:
            assert len(content) == len(data)
            sizes, got = [], b""
            for block in content:
                sizes.append(len(block))
                got += bytes(block)
        assert got == data
        assert len(sizes) > 1
        assert all(size % (64 << 10) == 0 and size <= 4 * MIB for size in sizes[:-1])

    @pytest.mark.parametrize("size", [0, 1, 4096, MIB, 2 * MIB, 2 * MIB + 1])
    def test_an_image_may_have_any_size(self, store: Store, size: int) -> None:
        image = store.put(new(), Bytes(noise(size)))
        assert image.size == size
        assert read(store, image) == noise(size)

    def test_images_are_found_by_name_and_all_properties(self, store: Store) -> None:
        ours = {"instance_uuid": "1", "image_type": "snapshot", "free": "x"}
        first = store.put(new("in:a,b", properties=ours), Bytes(b"1"))
        second = store.put(new("b", properties={**ours, "free": "y"}), Bytes(b"2"))
        third = store.put(new("b"), Bytes(b"3"))
        assert sorted(store.find(), key=lambda each: each.created_at) == store.find()
        assert {each.id for each in store.find(name="b")} == {second.id, third.id}
        assert store.find(name="in:a,b") == [first]
        assert store.find(name="a") == []
        assert {each.id for each in store.find(properties={"image_type": "snapshot"})} == {first.id, second.id}
        assert store.find(properties=ours) == [first]
        assert store.find(name="b", properties={"free": "y", "instance_uuid": "1"}) == [second]
        assert store.find(properties={"free": "z"}) == []
        assert store.find(properties={"unheard_of": "x"}) == []

    def test_a_name_that_several_have_is_ambiguous_and_an_identifier_is_not(self, store: Store) -> None:
        first, second = store.put(new("b"), Bytes(b"1")), store.put(new("b"), Bytes(b"2"))
        with pytest.raises(Ambiguous) as caught:
            resolve(store, "b")
        assert sorted(caught.value.details["images"]) == sorted([first.id, second.id])
        assert resolve(store, second.id) == second
        for named in ("c", str(uuid.uuid4()), "../b", "", "json:{}"):
            with pytest.raises(NotFound):
                resolve(store, named)

    def test_an_identifier_is_given_once(self, store: Store) -> None:
        first = store.put(new(), Bytes(b"first"))
        content = Bytes(b"second")
        with pytest.raises(Invalid, match="already"):
            store.put(new("other", id=first.id), content)
        assert content.times_read == 0
        assert store.find() == [first]
        assert read(store, first) == b"first"

    @pytest.mark.parametrize("image_id", ["", "a", "../../a", "8F2C6B52-4B05-4E0D-A6D2-5C1B8E0D7A11"])
    def test_an_identifier_is_a_uuid(self, store: Store, image_id: str) -> None:
        with pytest.raises(Invalid, match="no UUID"):
            store.put(new(id=image_id), Bytes(b"x"))
        assert store.get(image_id) is None
        assert store.delete(image_id) is False

    def test_what_is_told_about_an_image_can_change(self, store: Store) -> None:
        image = store.put(new(properties={"stays": "1", "changes": "2", "goes/there": "3"}), Bytes(b"data"))
        properties = {"changes": "4", "goes/there": None, "was_not_there": None, "comes~to/it": "5"}
        changed = store.update(image, properties=properties, name="other", min_disk=7, min_ram=8)
        assert changed.properties == {"stays": "1", "changes": "4", "comes~to/it": "5"}
        assert (changed.name, changed.min_disk, changed.min_ram, changed.protected) == ("other", 7, 8, False)
        assert (changed.created_at, changed.digests) == (image.created_at, image.digests)
        assert store.get(image.id) == changed
        assert store.update(changed) == changed
        assert read(store, changed) == b"data"

    def test_a_protected_image_is_not_deleted(self, store: Store) -> None:
        image = store.put(new(protected=True), Bytes(b"data"))
        assert image.protected
        with pytest.raises(Refused, match="protected: false"):
            store.delete(image.id)
        assert store.find() == [image]
        assert not store.update(image, protected=False).protected
        assert store.delete(image.id) is True

    def test_what_is_deleted_is_gone(self, store: Store) -> None:
        image, other = store.put(new(), Bytes(b"data")), store.put(new(), Bytes(b"other"))
        assert store.delete(image.id) is True
        assert store.delete(image.id) is False
        assert store.get(image.id) is None
        assert store.find() == [other]
        with pytest.raises(NotFound), store.open(image):
            pass
        with pytest.raises(NotFound):
            store.update(image, name="other")
        store.delete(other.id)
        self.nothing_is_left(store)

    @pytest.mark.parametrize(
        ("announced", "said"), [(3 * MIB + 1, "ended after"), (3 * MIB - 1, "longer than"), (MIB, "longer than")]
    )
    def test_a_content_of_another_length_than_announced_leaves_nothing(
        self, store: Store, announced: int, said: str
    ) -> None:
        wanted = new()
        with pytest.raises(Invalid, match=said):
            store.put(wanted, Bytes(noise(3 * MIB), announced))
        assert store.get(wanted.id) is None
        self.nothing_is_left(store)

    @pytest.mark.parametrize(
        "error", [LifecycleError("the disk is gone"), KeyboardInterrupt(), OSError(5, "I/O error")]
    )
    def test_a_content_that_breaks_off_leaves_nothing(self, store: Store, error: BaseException) -> None:
        wanted = new()
        content = Bytes(noise(3 * MIB), 5 * MIB, error)
        with pytest.raises((LifecycleError, KeyboardInterrupt)) as caught:
            store.put(wanted, content)
        assert str(getattr(error, "strerror", None) or error) in str(caught.value)
        assert isinstance(caught.value, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)
        assert content.times_read == 1
        assert store.get(wanted.id) is None
        self.nothing_is_left(store)

    def test_several_are_written_at_once(self, store: Store) -> None:
        """And those that are not finished are not found."""
        half = threading.Barrier(3, timeout=60)
        images: dict[str, Image] = {}

        def meet() -> None:
            half.wait()  # all are in the middle of it
            half.wait()  # and go on

        def write(wanted: NewImage, seed: int) -> None:
            content = Bytes(noise(2 * MIB, seed), during=meet)
            images[wanted.id] = store.put(wanted, content)

        wanted = [new("a"), new("b")]
        threads = [threading.Thread(target=write, args=(each, seed)) for seed, each in enumerate(wanted)]
        for thread in threads:
            thread.start()
        half.wait()
        quick = store.put(new("c"), Bytes(b"quick"))
        assert store.find() == [quick]
        assert not store.delete(str(uuid.uuid4()))
        half.wait()
        for thread in threads:
            thread.join(60)
        assert {image.id for image in store.find()} == {quick.id, *images}
        for seed, each in enumerate(wanted):
            assert read(store, images[each.id]) == noise(2 * MIB, seed)
