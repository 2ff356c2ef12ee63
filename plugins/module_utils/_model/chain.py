# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Chains of disk images: what lies below an image, and how much room every layer takes.

Only what the declared format of an image says is believed. What looks like a qcow2 header in a raw disk was put there
by the guest.
"""

from __future__ import annotations

import os
import struct
import typing as t
from dataclasses import dataclass

from .._core.errors import Invalid
from .domain import Image

# How much of a file to read for read_qcow2(). The name of the backing file comes right after the header.
HEADER = 1 << 16
# Longer than any chain that QEMU would open.
LONGEST = 200

# QEMU's documentation, "QCow2 Image Format"; all numbers are big-endian.
_QCOW2 = struct.Struct(">4sIQIIQ")
_LENGTH_OFFSET = 100
_LONGEST_NAME = 1023
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA


@dataclass(frozen=True)
class Qcow2:
    """What the header of a qcow2 image says.

    :param capacity: Size of the disk in it, in bytes.
    :param backing: Name of the backing file as it stands there; empty when there is none.
    :param backing_format: Its format; empty when it is not told.
    """

    capacity: int
    backing: str = ""
    backing_format: str = ""


@dataclass(frozen=True)
class Layer:
    """One image of a chain.

    :param capacity: Size of the disk in it, in bytes; ``None`` when unknown.
    :param allocation: What it takes on its storage, in bytes; ``None`` when unknown.
    """

    image: Image
    capacity: int | None = None
    allocation: int | None = None


@dataclass(frozen=True)
class Chain:
    """The layers of a disk, from the top down.

    :param known: Whether these are all.
    """

    layers: tuple[Layer, ...]
    known: bool


def read_qcow2(start: bytes) -> Qcow2 | None:
    """The header in the first bytes of a file, at most :data:`HEADER`; ``None`` when there is none that can be read."""
    try:
        magic, version, name_offset, name_size, _cluster_bits, capacity = _QCOW2.unpack_from(start)
        if magic != b"QFI\xfb" or version not in (2, 3):
            return None
        if not name_offset:
            return Qcow2(capacity)
        name = start[name_offset : name_offset + name_size]
        if len(name) != name_size:
            return None
        position = _QCOW2.size + 40  # version 2 has a header of 72 bytes
        if version == 3:
            (position,) = struct.unpack_from(">I", start, _LENGTH_OFFSET)
        return Qcow2(capacity, os.fsdecode(name), _backing_format(start, position))
    except struct.error:
        return None


def _backing_format(start: bytes, position: int) -> str:
    """From the header extensions, which begin at *position*."""
    while True:
        kind, size = _EXTENSION.unpack_from(start, position)
        position += _EXTENSION.size
        if kind == 0:
            return ""
        if kind == _BACKING_FORMAT:
            return start[position : position + size].decode("ascii", "replace")
        position += (size + 7) // 8 * 8


def backing_of(image: Image, header: Qcow2) -> Image | None:
    """The image below *image*, which has that *header*; ``None`` when it is the lowest.

    Names are read as QEMU reads them: relative to the image's directory, unless they have a protocol.
    """
    name = header.backing
    if not name:
        return None
    if name.startswith("file:"):
        name = name[len("file:") :]
    elif ":" in name.partition("/")[0]:
        return Image("network", name, header.backing_format, name.partition(":")[0])
    return Image("file", os.path.join(os.path.dirname(image.source), name), header.backing_format)


Look = t.Callable[[Image], "tuple[Layer, Image | None] | None"]


def follow(top: Image, look: Look) -> Chain:
    """The chain below and with *top*.

    :param look: What an image is and what lies below it; ``None`` when that cannot be found out.
    """
    layers: list[Layer] = []
    seen: set[str] = set()
    image: Image | None = top
    while image is not None:
        found = look(image) if image.source not in seen and len(layers) < LONGEST else None
        if found is None:
            layers.append(Layer(image))
            return Chain(tuple(layers), known=False)
        seen.add(image.source)
        layer, image = found
        layers.append(layer)
    return Chain(tuple(layers), known=True)


def with_backing(start: bytes, name: str) -> bytes:
    """The first bytes of a qcow2 file, at least its first cluster, with another name of the backing file.

    QEMU writes the name as the last thing in the header's cluster, so a longer one fits until the cluster ends.

    :raises Invalid: There is no name to replace, or no room for this one.
    """
    try:
        magic, version, offset, size, cluster_bits, _capacity = _QCOW2.unpack_from(start)
    except struct.error:
        magic, version, offset, size, cluster_bits = b"", 0, 0, 0, 0
    cluster = 1 << cluster_bits
    encoded = os.fsencode(name)
    if magic != b"QFI\xfb" or version not in (2, 3) or not offset or len(start) < cluster:
        raise Invalid("The image has no qcow2 header that names a backing file.")
    behind = start[offset + size : max(offset + size, offset + len(encoded))]
    if len(encoded) > _LONGEST_NAME or offset + len(encoded) > cluster or any(behind):
        raise Invalid(f"There is no room in the header of the image for the name {name}.")
    changed = bytearray(start)
    changed[offset : offset + max(size, len(encoded))] = encoded.ljust(size, b"\0")
    struct.pack_into(">I", changed, 16, len(encoded))
    return bytes(changed)
