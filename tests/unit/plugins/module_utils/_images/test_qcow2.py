# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The layout of qcow2 images: read by the rules of the format, and by QEMU."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.extents import (
    ABSENT,
    CLUSTER,
    DATA,
    ZERO,
    Clusters,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.qcow2 import Layout, Read

MIB = 1 << 20
TIB = 1 << 40
TABLE = CLUSTER // 8  # entries
COPIED = 1 << 63
RUNS = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 5), st.sampled_from([TABLE - 1, TABLE, TABLE + 1, 3 * TABLE])),
        st.sampled_from([ABSENT, ZERO, DATA]),
    ),
    min_size=1,
    max_size=12,
)


def made(*runs: tuple[int, int]) -> Clusters:
    clusters = Clusters()
    for length, kind in runs:
        clusters.append(length, kind)
    return clusters


class Reader:
    """An image's metadata, as a reader of the format finds them."""

    def __init__(self, layout: Layout) -> None:
        pieces = list(layout.metadata())
        assert all(len(piece) % CLUSTER == 0 for piece in pieces)
        self.content = b"".join(pieces)
        fields = struct.unpack_from(">4sIQIIQIIQQIIQQQQII", self.content)
        assert fields[:2] == (b"QFI\xfb", 3)
        assert fields[2:4] == (0, 0), "a backing file"
        assert 1 << fields[4] == CLUSTER
        self.size, self.l1_size, self.l1_offset, self.counts_offset, self.counts_clusters = (
            fields[5],
            *fields[7:11],
        )
        assert fields[11:16] == (0, 0, 0, 0, 0), "snapshots or features"
        assert fields[16:] == (4, 104)
        assert struct.unpack_from(">II", self.content, 104) == (0, 0), "header extensions"

    def numbers(self, code: str, offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f">{count}{code}", self.content, offset)

    def tables(self) -> dict[int, tuple[int, ...]]:
        """The L2 tables, by their place in the L1 table."""
        l1 = self.numbers("Q", self.l1_offset, self.l1_size)
        assert all(entry & COPIED for entry in l1 if entry)
        return {index: self.numbers("Q", entry - COPIED, TABLE) for index, entry in enumerate(l1) if entry}

    def counts(self) -> list[int]:
        """The reference count of every cluster of the file that has one."""
        blocks = self.numbers("Q", self.counts_offset, self.counts_clusters * TABLE)
        assert 0 not in blocks[: sum(map(bool, blocks))]
        found = [count for block in blocks if block for count in self.numbers("H", block, CLUSTER // 2)]
        while found and not found[-1]:
            found.pop()
        return found


@given(RUNS)
def test_every_cluster_is_found_and_counted_once(runs: list[tuple[int, int]]) -> None:
    clusters = made(*runs)
    layout = Layout(len(clusters) * CLUSTER, clusters)
    image = Reader(layout)
    assert len(image.content) == layout.data_offset
    assert layout.length == layout.data_offset + clusters.data * CLUSTER
    assert image.size == len(clusters) * CLUSTER
    assert image.counts() == [1] * (layout.length // CLUSTER)
    entries: list[int] = []
    offset = layout.data_offset
    for _start, length, kind in clusters:
        if kind == DATA:
            end = offset + length * CLUSTER
            entries.extend(range(offset | COPIED, end | COPIED, CLUSTER))
            offset = end
        else:
            entries.extend([1 if kind == ZERO else 0] * length)
    assert offset == layout.length
    whole = [(*entries[start : start + TABLE],) for start in range(0, len(entries), TABLE)]
    whole[-1] += (0,) * (TABLE - len(whole[-1]))
    assert image.tables() == {index: table for index, table in enumerate(whole) if any(table)}


@given(RUNS, st.integers(1, 40))
def test_the_data_are_read_in_the_order_in_which_they_stand_in_the_file(runs: list[tuple[int, int]], size: int) -> None:
    clusters = made(*runs)
    blocks = list(Layout(len(clusters) * CLUSTER, clusters).reads(size * CLUSTER))
    assert all(sum(piece.length for piece in block) == size * CLUSTER for block in blocks[:-1])
    assert all(0 < sum(piece.length for piece in block) <= size * CLUSTER for block in blocks[-1:])
    read = [
        index for block in blocks for at, length in block for index in range(at // CLUSTER, (at + length) // CLUSTER)
    ]
    wanted = [index for start, length, kind in clusters for index in range(start, start + length) if kind == DATA]
    assert read == wanted


def test_pieces_that_follow_each_other_in_the_file_are_one_block() -> None:
    layout = Layout(6 * CLUSTER, made((1, DATA), (1, ABSENT), (2, DATA), (1, ZERO), (1, DATA)))
    assert list(layout.reads(3 * CLUSTER)) == [
        [Read(0, CLUSTER), Read(2 * CLUSTER, 2 * CLUSTER)],
        [Read(5 * CLUSTER, CLUSTER)],
    ]


def written(layout: Layout, path: Path) -> Path:
    """An image whose data are holes in the file."""
    with path.open("wb") as file:
        for piece in layout.metadata():
            file.write(piece)
        file.truncate(layout.length)
    return path


def mapped(path: Path) -> list[tuple[int, int, int]]:
    """Start, length and kind of what QEMU finds, in bytes."""
    done = subprocess.run(
        ["qemu-img", "map", "-f", "qcow2", "--output=json", path], check=True, capture_output=True, text=True
    )
    kinds = {(False, True): ABSENT, (True, True): ZERO, (True, False): DATA}
    merged: list[tuple[int, int, int]] = []
    for entry in json.loads(done.stdout):
        start, length, kind = entry["start"], entry["length"], kinds[entry["present"], "offset" not in entry]
        if merged and merged[-1][2] == kind:
            start, length = merged[-1][0], merged.pop()[1] + length
        if length:
            merged.append((start, length, kind))
    return merged


@pytest.mark.parametrize("kind", [ABSENT, ZERO, DATA])
@pytest.mark.parametrize("size", [0, 1, 512, 513, CLUSTER - 512, CLUSTER, CLUSTER + 1, 512 * MIB, 512 * MIB + 1])
def test_qemu_finds_no_fault_with_any_size_of_disk(tmp_path: Path, size: int, kind: int) -> None:
    count = -(-size // CLUSTER)
    layout = Layout(size, made(*([(count, kind)] if count else [])))
    path = written(layout, tmp_path / "i.qcow2")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    sectors = -(-size // 512) * 512
    assert layout.virtual_size == sectors
    assert mapped(path) == ([(0, sectors, kind)] if sectors else [])


def test_a_huge_disk_with_little_in_it_is_a_small_image(tmp_path: Path) -> None:
    last = 16 * TIB // CLUSTER - 1
    layout = Layout(
        16 * TIB, made((1, DATA), (last // 2 - 1, ABSENT), (1, ZERO), (last - last // 2 - 1, ABSENT), (1, DATA))
    )
    assert layout.length < MIB
    path = written(layout, tmp_path / "i.qcow2")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    assert [(start, length) for start, length, kind in mapped(path) if kind == DATA] == [
        (0, CLUSTER),
        (last * CLUSTER, CLUSTER),
    ]


def test_what_counts_references_is_counted_when_it_needs_a_block_more() -> None:
    """Around the number of clusters that one block can count."""
    counted = CLUSTER // 2
    for data in range(counted - 12, counted + 3):
        layout = Layout(data * CLUSTER, made((data, DATA)))
        assert Reader(layout).counts() == [1] * (layout.length // CLUSTER)
