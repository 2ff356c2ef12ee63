# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The images of VMs that are off: libvirt looks into them only when it starts the VM, so we do.

On the KVM host the header of a qcow2 file is read, which opens nothing that the header names. Of another machine the
storage pools tell. Either way an image is what the layer above it, or the definition, declares it to be.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import Invalid, LifecycleError, NotFound, Unsupported
from .._model import instance as memory
from .._model.chain import HEADER, Chain, Layer, Qcow2, backing_of, follow, read_qcow2
from .._model.domain import Disk, Image, read_domain
from .._model.rescue import whole
from .errors import doing
from .host import Host

Found = tuple[Layer, t.Optional[Image]]


class Chains:
    """Chains of images on a host. What was found is kept: many VMs share a base."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._known: dict[Image, Found | None] = {}

    def below(self, top: Image) -> Chain:
        """The chain of a disk whose definition names *top*."""
        return follow(top, self._look)

    def resolved(self, image: Image) -> Image:
        """A volume of a storage pool as the file or block device that it is; any other image as it is.

        :raises NotFound: There is no such volume, or its pool is not active.
        """
        if image.kind != "volume":
            return image
        with doing(f"look at image {image.source} on {self.host.name}"):
            volume = self._volume(image)
            kind = {libvirt.VIR_STORAGE_VOL_FILE: "file", libvirt.VIR_STORAGE_VOL_BLOCK: "block"}
            return replace(image, kind=kind.get(volume.info()[0], "network"), source=volume.path())

    def owners(self) -> dict[str, list[str]]:
        """The files that disks of VMs here are in or build upon, each with the VMs' UUIDs. Disks that a rescued VM does
        not have for the time are among them.

        A file has more than one name here when there are links to it, or detours in its path.
        """
        owners: dict[str, list[str]] = {}
        for guest in self.host.guests():
            try:
                root = guest.xml()
            except NotFound:
                continue
            domain = read_domain(root)
            # What the metadata of a newer version remember, only that can tell.
            with contextlib.suppress(Invalid, Unsupported):
                domain = whole(domain, memory.find(root).marks)
            for image in (image for disk in domain.disks for image in self._of(disk)):
                names = {image.source}
                if image.path:
                    names.add(os.path.normpath(image.path))
                if image.path and self.host.local:
                    names.add(os.path.realpath(image.path))
                for name in names:
                    owners.setdefault(name, []).append(guest.uuid)
        return owners

    def _of(self, disk: Disk) -> t.Iterator[Image]:
        """All images of a disk. libvirt knows those of a running VM."""
        if disk.empty:
            return
        known = (disk.image, *disk.backing)
        yield from known
        if not disk.chain_known:
            yield from (layer.image for layer in self.below(known[-1]).layers[1:])
        if disk.mirror:
            yield disk.mirror

    def _look(self, image: Image) -> Found | None:
        if image not in self._known:
            self._known[image] = self._find(image)
        return self._known[image]

    def _find(self, image: Image) -> Found | None:
        try:
            if image.path and self.host.local:
                try:
                    return _from_file(image, image.path)
                except OSError:  # not ours to read: libvirtd may
                    pass
            return self._from_volume(image)
        except LifecycleError:
            return None

    def _from_volume(self, image: Image) -> Found | None:
        """virStorageVolGetXMLDesc. Pools know what they held when they were last refreshed.

        :raises NotFound: It belongs to no active pool.
        """
        with doing(f"look at image {image.source} on {self.host.name}"):
            volume = self._volume(image)
            told = ET.fromstring(volume.XMLDesc())
        found = told.find("target/format")
        really = found.get("type", "") if found is not None else ""
        layer = Layer(image, _bytes(told, "capacity"), _bytes(told, "allocation"))
        if image.format == "raw":
            return layer, None
        if image.format != really:
            return None
        path = told.findtext("backingStore/path", "")
        below = told.find("backingStore/format")
        header = Qcow2(layer.capacity or 0, path, below.get("type", "") if below is not None else "")
        return layer, backing_of(replace(image, source=told.findtext("target/path", image.source)), header)

    def _volume(self, image: Image) -> t.Any:
        connection = self.host.connection
        if image.kind == "volume":
            pool, _slash, volume = image.source.partition("/")
            return connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
        if not image.path:
            raise NotFound(f"Image {image.source} is on no storage of the host itself.")
        return connection.storageVolLookupByPath(image.path)


def _bytes(told: ET.Element, tag: str) -> int | None:
    text = told.findtext(tag)
    return int(text) if text else None


def _from_file(image: Image, path: str) -> Found | None:
    """:raises OSError: It cannot be read."""
    # Not to wait for the other end of a pipe, or for a tape.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if stat.S_ISBLK(seen.st_mode):
            image = replace(image, kind="block")
            length = allocation = os.lseek(fd, 0, os.SEEK_END)
        elif stat.S_ISREG(seen.st_mode):
            length, allocation = seen.st_size, seen.st_blocks * 512
        else:
            return None
        if image.format == "raw":
            return Layer(image, length, allocation), None
        header = read_qcow2(os.pread(fd, HEADER, 0)) if image.format == "qcow2" else None
    finally:
        os.close(fd)
    return (Layer(image, header.capacity, allocation), backing_of(image, header)) if header else None
