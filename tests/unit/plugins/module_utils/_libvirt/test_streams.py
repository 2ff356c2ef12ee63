# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The content of files on its way: what is empty is not sent, and the hash does not depend on how it was cut."""

from __future__ import annotations

import typing as t
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.streams import (
    BLOCK,
    Digest,
    Extent,
    blocks,
    digest_of,
    read_file,
)

LENGTHS = st.integers(1, 3 * BLOCK)
DATA = st.builds(lambda length, value: bytes([value]) * length, LENGTHS, st.integers(0, 2))
EXTENTS = st.lists(st.one_of(LENGTHS, DATA), max_size=6)


def whole(extents: t.Iterable[Extent]) -> bytes:
    """The content, holes written out."""
    return b"".join(bytes(part) if isinstance(part, int) else part for part in extents)


@given(EXTENTS)
def test_blocks_are_the_same_content(extents: list[Extent]) -> None:
    assert whole(blocks(extents)) == whole(extents)


@given(EXTENTS)
def test_blocks_of_zeros_are_holes_and_all_but_the_last_are_whole(extents: list[Extent]) -> None:
    found = list(blocks(extents))
    data = [part for part in found if not isinstance(part, int)]
    assert all(len(part) == BLOCK and any(part) for part in data[:-1])
    assert all(part % BLOCK == 0 for part in found if isinstance(part, int))
    assert not any(isinstance(one, int) and isinstance(other, int) for one, other in zip(found, found[1:]))


@given(EXTENTS, st.integers(1, 2 * BLOCK))
def test_the_digest_does_not_depend_on_how_the_content_is_cut(extents: list[Extent], cut: int) -> None:
    content = whole(extents)
    pieces = [content[start : start + cut] for start in range(0, len(content), cut)]
    assert digest_of(extents) == digest_of(pieces)


def test_the_digest_tells_contents_apart() -> None:
    block = b"x" * BLOCK
    contents: list[list[Extent]] = [[block], [BLOCK, block], [block, BLOCK], [block, block], [b"x"], [BLOCK], []]
    assert len({digest_of(each) for each in contents}) == len(contents)


def test_only_what_holds_something_counts_as_data() -> None:
    digest = Digest()
    for block in blocks([10 * BLOCK, b"x" * BLOCK, bytes(5 * BLOCK), b"tail"]):
        digest.take(block)
    assert (digest.length, digest.data) == (16 * BLOCK + 4, BLOCK + 4)


def test_a_sparse_file_is_read_with_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.seek(8 << 20)
        file.write(b"here" * 1024)
        file.truncate((40 << 20) + 3)
    found = list(read_file(str(path)))
    assert whole(found) == path.read_bytes()
    assert sum(len(part) for part in found if not isinstance(part, int)) < 1 << 20
    storage = LocalStorage("kvm1")
    assert list(storage.read(str(path))) == found
    assert storage.length(str(path)) == (40 << 20) + 3


def test_an_empty_file_has_no_content(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    assert list(read_file(str(path))) == []


def test_a_file_that_is_one_hole_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert list(read_file(str(path))) == [1 << 30]
