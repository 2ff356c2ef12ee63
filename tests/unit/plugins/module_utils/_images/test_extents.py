# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a disk goes into an image."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.extents import (
    ABSENT,
    CLUSTER,
    DATA,
    ZERO,
    Clusters,
    Extent,
    Mapped,
    Presence,
    Run,
    Status,
    above,
    allocation,
    changed,
    dirty,
    full,
    to_clusters,
)

KINDS = st.sampled_from([ABSENT, ZERO, DATA])
LENGTHS = st.one_of(
    st.sampled_from([1, 511, 512, 4096, CLUSTER - 1, CLUSTER, CLUSTER + 1, 5 * CLUSTER]), st.integers(1, 4 * CLUSTER)
)
# Lengths, each with what is true of that range.
Pieces = t.Sequence[tuple[int, t.Any]]


def pieces(values: st.SearchStrategy[t.Any]) -> st.SearchStrategy[Pieces]:
    return st.lists(st.tuples(LENGTHS, values), min_size=1, max_size=12)


def laid(found: Pieces, kind: t.Callable[[int, int, t.Any], t.Any]) -> list[t.Any]:
    """The pieces one after the other, from 0."""
    ends = itertools.accumulate(length for length, _value in found)
    return [kind(end - length, length, value) for end, (length, value) in zip(ends, found)]


def at(ranges: t.Iterable[t.Any], byte: int, default: t.Any = None) -> t.Any:
    """What is told about a byte."""
    return next((each[2] for each in ranges if each[0] <= byte < each[0] + each[1]), default)


def edges(*lists: t.Iterable[t.Any]) -> list[int]:
    """The bytes at which something may change, and the ones before."""
    found = {each[0] + offset for ranges in lists for each in ranges for offset in (0, each[1] - 1, each[1])}
    return sorted(found)


def contiguous(extents: t.Sequence[Extent]) -> bool:
    return all(one.start + one.length == two.start for one, two in itertools.pairwise(extents))


def test_only_what_the_server_calls_zero_is_zero() -> None:
    statuses = [Status(position, 1, flags) for position, flags in enumerate([0, 1, 2, 3])]
    assert [extent.kind for extent in allocation(statuses)] == [DATA, DATA, ZERO, ZERO]
    assert [extent.kind for extent in full(allocation(statuses))] == [DATA, DATA, ABSENT, ABSENT]


def test_what_is_read_from_above_the_parent_may_differ_from_it() -> None:
    assert [each.there for each in above([Mapped(depth, 1, depth) for depth in range(4)], 2)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_bitmap_tells_what_was_written() -> None:
    assert [each.there for each in dirty([Status(0, 5, 0), Status(5, 5, 1)])] == [False, True]


@given(pieces(st.booleans()), pieces(st.sampled_from([ZERO, DATA])), st.integers(0, 30 * CLUSTER))
def test_an_image_over_a_parent_has_what_is_present_and_not_known_otherwise(
    presences: Pieces, extents: Pieces, parent_size: int
) -> None:
    marks, told = laid(presences, Presence), laid(extents, Extent)
    found = list(changed(marks, told, parent_size=parent_size))
    assert contiguous(found)
    assert found[0].start == 0
    assert found[-1].start + found[-1].length == told[-1].start + told[-1].length
    for byte in edges(marks, told, [(0, parent_size)]):
        kind = at(told, byte)
        if kind is None:
            continue
        if not at(marks, byte, True) or (kind == ZERO and byte >= parent_size):
            kind = ABSENT
        assert at(found, byte) == kind


@given(pieces(KINDS))
def test_a_cluster_is_what_all_in_it_is_or_else_data(extents: Pieces) -> None:
    told = laid(extents, Extent)
    size = told[-1].start + told[-1].length
    clusters = to_clusters(told, size)
    runs = list(clusters)
    assert len(clusters) == -(-size // CLUSTER)
    assert clusters.data == sum(run.length for run in runs if run.kind == DATA)
    assert all(one.kind != two.kind and one.start + one.length == two.start for one, two in itertools.pairwise(runs))
    for index in range(len(clusters)):
        start, end = index * CLUSTER, min((index + 1) * CLUSTER, size)
        kinds = {extent.kind for extent in told if extent.start < end and extent.start + extent.length > start}
        assert at(runs, index) == (kinds.pop() if len(kinds) == 1 else DATA)


def test_what_is_told_about_bytes_behind_the_disk_does_not_count() -> None:
    assert list(to_clusters([Extent(0, 512, ZERO), Extent(512, 10 * CLUSTER, DATA)], 512)) == [Run(0, 1, ZERO)]


def test_a_map_that_ends_before_the_disk_does_is_no_map() -> None:
    with pytest.raises(LifecycleError, match=r"ends at byte 65536, the disk at 65537\.$"):
        to_clusters([Extent(0, CLUSTER, DATA)], CLUSTER + 1)
    with pytest.raises(LifecycleError, match="ends at byte 0, the disk at 1"):
        to_clusters([], 1)


def test_a_disk_of_no_bytes_has_no_clusters() -> None:
    assert list(to_clusters([], 0)) == []
    assert len(Clusters()) == 0
