# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What of a disk goes into an image: extents of bytes, and runs of the clusters that they touch.

Extents come in order, touch each other and begin at 0. They are streams: a disk in many pieces has millions of them.
"""

from __future__ import annotations

import sys
import typing as t
from array import array

from .._core.errors import LifecycleError

# Size of the clusters of the images that we write, in bytes; what qemu-img takes too.
CLUSTER = 1 << 16

# Kinds of extents and clusters.
ABSENT = 0  # not in the image: read from its parent, or zeros
ZERO = 1  # reads as zeros, whatever the parent has there
DATA = 2

# NBD protocol, "base:allocation": NBD_STATE_ZERO. (A hole that is not called zero may read as anything.)
_STATE_ZERO = 2
# NBD interface of QEMU, "qemu:dirty-bitmap:…": the lowest bit.
_DIRTY = 1
# What a cluster is, by the kinds of what is in it, as bits. What no kind is true of as a whole is data, since reading
# gives what the guest sees.
_WHOLE = {1 << ABSENT: ABSENT, 1 << ZERO: ZERO}


class Extent(t.NamedTuple):
    """A range of bytes of a disk; the kind is one of :data:`ABSENT`, :data:`ZERO`, :data:`DATA`."""

    start: int
    length: int
    kind: int


class Status(t.NamedTuple):
    """What an NBD server tells of a range of bytes; what the flags mean depends on the context that was asked."""

    start: int
    length: int
    flags: int


class Mapped(t.NamedTuple):
    """What ``qemu-img map`` tells of a range of bytes: the layer that it is read from, 0 for the topmost."""

    start: int
    length: int
    depth: int


class Presence(t.NamedTuple):
    """Whether a range of bytes may differ from the parent."""

    start: int
    length: int
    there: bool


def allocation(statuses: t.Iterable[Status]) -> t.Iterator[Extent]:
    """What is data and what reads as zeros, by the context ``base:allocation``."""
    return (Extent(start, length, ZERO if flags & _STATE_ZERO else DATA) for start, length, flags in statuses)


def full(extents: t.Iterable[Extent]) -> t.Iterator[Extent]:
    """What goes into an image that has no parent: the data."""
    return (Extent(start, length, DATA if kind == DATA else ABSENT) for start, length, kind in extents)


def above(entries: t.Iterable[Mapped], parent: int) -> t.Iterator[Presence]:
    """What is not read from the layer number *parent* of a chain, nor from one below it.

    A range that an intermediate layer is too short for is told by QEMU as depth 0 and zeros, which it is: a parent that
    is longer has something else there.
    """
    return (Presence(start, length, depth < parent) for start, length, depth in entries)


def dirty(statuses: t.Iterable[Status]) -> t.Iterator[Presence]:
    """What was written since the bitmap was made, by its context ``qemu:dirty-bitmap:…``."""
    return (Presence(start, length, bool(flags & _DIRTY)) for start, length, flags in statuses)


def changed(
    present: t.Iterable[Presence], extents: t.Iterable[Extent], *, parent_size: int = sys.maxsize
) -> t.Iterator[Extent]:
    """What goes into an image over a parent: what is *present*, as *extents* tell it, which are of the moment that is
    stored. *present* may be of that moment or a later one, since more may be copied than differs, and never less. What
    it does not reach counts as present.

    :param parent_size: Size of the disk in the parent, in bytes. Behind it, zeros are read without being told.
    """
    marks = iter(present)
    end, there = 0, True
    for first, length, kind in extents:
        start, stop = first, first + length
        while start < stop:
            while end <= start:
                mark = next(marks, Presence(start, sys.maxsize, True))
                end, there = mark.start + mark.length, mark.there
            upto = min(stop, end)
            if there and kind == ZERO:
                if start < parent_size:
                    upto = min(upto, parent_size)
                yield Extent(start, upto - start, ZERO if start < parent_size else ABSENT)
            else:
                yield Extent(start, upto - start, kind if there else ABSENT)
            start = upto


class Run(t.NamedTuple):
    """Clusters of one kind that follow each other. The unit is the cluster."""

    start: int
    length: int
    kind: int


class Clusters:
    """The clusters of a disk, as runs; nine bytes of memory a run.

    :ivar data: How many are data.
    """

    def __init__(self) -> None:
        self.data = 0
        self._ends = array("Q")
        self._kinds = bytearray()

    def append(self, count: int, kind: int) -> None:
        """The next *count* clusters are of that kind."""
        end = len(self) + count
        if self._kinds and self._kinds[-1] == kind:
            self._ends[-1] = end
        else:
            self._ends.append(end)
            self._kinds.append(kind)
        if kind == DATA:
            self.data += count

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> t.Iterator[Run]:
        start = 0
        for end, kind in zip(self._ends, self._kinds):
            yield Run(start, end - start, kind)
            start = end


def to_clusters(extents: t.Iterable[Extent], size: int) -> Clusters:
    """The clusters of a disk of *size* bytes, the last of which may be a part of one.

    :raises LifecycleError: The extents end before the disk does.
    """
    clusters = Clusters()
    position = seen = 0
    for start, length, kind in extents:
        position, end = start, min(start + length, size)
        while position < end:
            whole = 0 if position % CLUSTER else (end - position) // CLUSTER
            if whole:
                clusters.append(whole, kind)
                position += whole * CLUSTER
                continue
            position = min(end, position - position % CLUSTER + CLUSTER)
            seen |= 1 << kind
            if position % CLUSTER == 0 or position == size:
                clusters.append(1, _WHOLE.get(seen, DATA))
                seen = 0
    if position < size:
        raise LifecycleError(
            f"Failed to lay out an image: the map of the disk ends at byte {position}, the disk at {size}."
        )
    return clusters
