# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of VMs on a host that is reached through libvirt: as volumes of storage pools."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import Invalid, NotFound, Unsupported
from .._core.files import working
from .bases import BASES, MARKER, Base, Marker, Source, base_name, placed
from .cache import BaseCache, take_in
from .errors import doing
from .files import free_space, hash_file, need_space
from .host import Host

# On a disk: /tmp may be in memory.
_TEMPORARY = "/var/tmp"


class PoolStorage:
    """The files of a host that is reached through libvirt: each directory is a storage pool for as long as it is
    needed.

    A pool that the host has for the directory is used; else a transient one is made, which leaves nothing behind.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._pools: dict[str, t.Any] = {}
        self._made: list[t.Any] = []
        self._fetching: dict[str, threading.Lock] = {}
        self._digests: dict[str, str] = {}
        self._guard = threading.RLock()

    def free(self, directory: str) -> int | None:
        """See :class:`.storage.Storage`."""
        pool = self._pool(directory, create=False)
        if pool is None:
            return None
        with doing(f"look at {directory} on {self.host.name}"):
            return int(pool.info()[3])

    def fetch_base(self, source: Source, directory: str) -> Base:
        """See :class:`.storage.Storage`. An image of a store is copied to a temporary file of this machine first:
        nothing is sent that was not looked at, or that the host has."""
        bases = os.path.join(directory, BASES)
        return placed(self._fetch(source, bases), bases)

    def _fetch(self, source: Source, bases: str) -> Base:
        parent = self._fetch(source.parent, bases) if source.parent else None
        with self._guard:
            one = self._fetching.setdefault(source.key, threading.Lock())
        with one, working(f"read image {source.label}"):  # one upload serves all
            if source.path:
                source = replace(source, digests={"sha256": hash_file(source.path)})
            return self._find(source, bases, parent) or self._send(source, bases, parent)

    def _find(self, source: Source, bases: str, parent: Base | None) -> Base | None:
        upon = parent.path if parent else ""
        known = source.digests.get("sha256", "")
        names = self._names(bases)
        for name in sorted(name for name in names if known in name and name + MARKER in names):
            marker = Marker.load(name, self._read(os.path.join(bases, name + MARKER)))
            if marker and marker.of(source.format, source.size, source.digests, upon):
                return marker.base
        return None

    def _send(self, source: Source, bases: str, parent: Base | None) -> Base:
        pool = self._need(bases)
        with doing(f"look at {bases} on {self.host.name}"):
            room = int(pool.info()[3])
        need_space(f"upload image {source.label}", source.size, room, f"{bases} on {self.host.name}")
        with contextlib.ExitStack() as stack:
            if source.path:
                file: t.IO[bytes] = stack.enter_context(open(source.path, "rb"))
                sha256, virtual_size = source.digests["sha256"], source.inspect(source.path)
                base = Base("", source.format, sha256, source.size, virtual_size, source.digests)
            else:
                need_space(f"download image {source.label}", source.size, free_space(_TEMPORARY), _TEMPORARY)
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="kvmops-", dir=_TEMPORARY))
                base = take_in(source, file, file.name, parent)
                file.seek(0)
            # Every upload has a name of its own, as volumes cannot be renamed: the marker makes it count.
            name = base_name(base.sha256, base.format, base.parent, uuid.uuid4().hex[:8])
            base = replace(base, path=name)
            length = os.fstat(file.fileno()).st_size
            self._upload(os.path.join(bases, name), file, length, 0o644)
        marker = Marker(base, length, source.label, (self.host.name,))
        self.write(os.path.join(bases, name + MARKER), marker.dump())
        return base

    def cache(self, directory: str) -> BaseCache:
        """See :class:`.storage.Storage`."""
        raise Unsupported(
            f"Failed to look into the base cache below {directory} on {self.host.name}: from another machine it cannot"
            " be seen who is about to use a base.",
            hint="Run the task on the host itself.",
        )

    def base_facts(self, path: str) -> Base | None:
        """See :class:`.storage.Storage`."""
        bases, name = os.path.split(path)
        if os.path.basename(bases) != BASES or not {name, name + MARKER} <= self._names(bases):
            return None
        marker = Marker.load(name, self._read(path + MARKER))
        return placed(marker.base, bases) if marker else None

    def there(self, path: str) -> bool:
        """See :class:`.storage.Storage`. Of devices, and of pools that are not active, nothing is known from here."""
        if path.startswith("/dev/"):
            return True
        try:
            pool = self._pool(os.path.dirname(path), create=False)
        except Invalid:  # which is not active
            return True
        if pool is None:
            return False
        with doing(f"look for {path} on {self.host.name}"):
            return os.path.basename(path) in pool.listVolumes()

    def digest(self, path: str) -> str:
        """See :class:`.storage.Storage`. All of the file comes here to be hashed, once a task."""
        if path not in self._digests:
            digest = hashlib.sha256()
            self._download(path, digest.update)
            self._digests[path] = digest.hexdigest()
        return self._digests[path]

    def _read(self, path: str) -> bytes:
        content = bytearray()
        self._download(path, content.extend)
        return bytes(content)

    def _download(self, path: str, take: t.Callable[[bytes], t.Any]) -> None:
        pool = self._pool(os.path.dirname(path), create=False)
        if pool is None:
            raise NotFound(f"There is no {path} on {self.host.name}.")

        def received(_stream: t.Any, block: bytes, _opaque: t.Any) -> int:
            take(block)
            return len(block)

        with doing(f"read {path} on {self.host.name}"):
            stream = self.host.connection.newStream()
            pool.storageVolLookupByName(os.path.basename(path)).download(stream, 0, 0)
            stream.recvAll(received, None)
            stream.finish()

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """See :class:`.storage.Storage`."""
        volume = _volume(path, "qcow2", size)
        backing = ET.SubElement(volume, "backingStore")
        ET.SubElement(backing, "path").text = base.path
        ET.SubElement(backing, "format", {"type": base.format})
        self._create(path, volume)

    def make_disk(self, path: str, size: int) -> None:
        """See :class:`.storage.Storage`."""
        self._create(path, _volume(path, "qcow2", size))

    def _create(self, path: str, volume: ET.Element) -> None:
        if os.path.basename(path) in self._names(os.path.dirname(path)):
            return
        with doing(f"create disk {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).createXML(ET.tostring(volume, encoding="unicode"))

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """See :class:`.storage.Storage`. libvirt knows the format of its volumes."""
        with doing(f"resize {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).storageVolLookupByName(os.path.basename(path)).resize(size)

    def write(self, path: str, content: bytes) -> None:
        """See :class:`.storage.Storage`."""
        self.remove(path)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            self._upload(path, file, len(content), 0o600)

    def _upload(self, path: str, file: t.IO[bytes], size: int, mode: int) -> None:
        with doing(f"upload {path} to {self.host.name}"):
            volume = self._need(os.path.dirname(path)).createXML(
                ET.tostring(_volume(path, "raw", size, mode), encoding="unicode")
            )
            try:
                stream = self.host.connection.newStream()
                volume.upload(stream, 0, size)
                stream.sendAll(lambda _stream, count, _opaque: file.read(count), None)
                stream.finish()
            except (libvirt.libvirtError, OSError):
                with contextlib.suppress(libvirt.libvirtError):  # the first error is the one to tell
                    volume.delete()
                raise

    def remove(self, path: str) -> bool:
        """See :class:`.storage.Storage`."""
        pool = self._pool(os.path.dirname(path), create=False)
        if pool is None:
            return False
        with doing(f"remove {path} on {self.host.name}"):
            try:
                pool.storageVolLookupByName(os.path.basename(path)).delete()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise
                return False
        return True

    def remove_directory(self, directory: str) -> list[str]:
        """See :class:`.storage.Storage`."""
        pool = self._pool(directory, create=False)
        if pool is None:
            return []
        with doing(f"remove {directory} on {self.host.name}"):
            pool.refresh()
            left = sorted(pool.listVolumes())
            if not left and pool in self._made:
                self._forget(directory)
                pool.destroy()
                # A pool must be defined, and stopped, for its directory to be removed.
                defined = self.host.connection.storagePoolDefineXML(_pool_xml(directory))
                try:
                    defined.delete()
                finally:
                    defined.undefine()
        return left

    def close(self) -> None:
        """See :class:`.storage.Storage`."""
        with doing(f"close the storage of {self.host.name}"):
            for pool in self._made:
                pool.destroy()
        self._made.clear()
        self._pools.clear()

    def _forget(self, directory: str) -> None:
        self._made.remove(self._pools.pop(directory))

    def _names(self, directory: str) -> set[str]:
        with doing(f"look at {directory} on {self.host.name}"):
            return set(self._need(directory).listVolumes())

    def _need(self, directory: str) -> t.Any:
        pool = self._pool(directory, create=True)
        if pool is None:
            raise NotFound(f"{directory} on {self.host.name} is gone.")
        return pool

    def _pool(self, directory: str, *, create: bool) -> t.Any:
        """The pool of *directory*; ``None`` when there is no such directory and it shall not be created."""
        with self._guard:
            if self._pools.get(directory) is None:
                self._pools[directory] = self._open_pool(directory, create=create)
            return self._pools[directory]

    def _open_pool(self, directory: str, *, create: bool) -> t.Any:
        with doing(f"look at {directory} on {self.host.name}"):
            try:
                pool = self.host.connection.storagePoolLookupByTargetPath(directory)
                if not pool.isActive():
                    raise Invalid(
                        f"The storage pool {pool.name()} of {directory} on {self.host.name} is not active.",
                        hint=f"Start it: virsh pool-start {pool.name()}",
                    )
                pool.refresh()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                pool = None
            if pool is None:
                build = libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD if create else 0
                try:
                    pool = self.host.connection.storagePoolCreateXML(_pool_xml(directory), build)
                except libvirt.libvirtError:
                    if create:
                        raise
                    return None
                self._made.append(pool)
        return pool


def _pool_xml(directory: str) -> str:
    pool = ET.Element("pool", {"type": "dir"})
    ET.SubElement(pool, "name").text = f"kvmops-{uuid.uuid4()}"
    target = ET.SubElement(pool, "target")
    ET.SubElement(target, "path").text = directory
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0711"
    return ET.tostring(pool, encoding="unicode")


def _volume(path: str, volume_format: str, size: int, mode: int = 0o600) -> ET.Element:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = os.path.basename(path)
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size)
    ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": volume_format})
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = f"{mode:04o}"
    return volume
