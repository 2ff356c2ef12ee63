# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of VMs on the KVM host: directly when it is this machine, else through libvirt's storage volumes.

Both ways make the same files with the same names, so what one began the other can finish or remove.

``STORAGE/_base/SHA256[-…].FORMAT`` are base images, each complete when the file of the same name with ``.ok`` lies
beside it; ``STORAGE/UUID/`` is the directory of a VM.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
import threading
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import Denied, Invalid, LifecycleError, NoSpace, NotFound
from .errors import doing
from .host import Host

_CHUNK = 1 << 20
_BASES = "_base"
_MEMO = "hashes.json"


@dataclass(frozen=True)
class Base:
    """A base image on the host.

    :param path: Where it lies.
    :param format: ``qcow2`` or ``raw``.
    :param sha256: Of the file, hexadecimal.
    """

    path: str
    format: str
    sha256: str


class Storage(t.Protocol):
    """What a launch and a deletion need of a host's files. Paths are absolute and on the host; sizes are bytes."""

    def free(self, directory: str) -> int | None:
        """Free space where *directory* is or will be; ``None`` when it cannot be told before the directory exists."""

    def fetch_base(self, source: str, image_format: str, directory: str) -> Base:
        """The base image for the local file *source* in the cache below *directory*, copied there if it is not."""

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """A qcow2 file over *base*; one that is there already is kept."""

    def make_disk(self, path: str, size: int) -> None:
        """An empty qcow2 file; one that is there already is kept."""

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """Make the disk in a file larger; nobody else has it open."""

    def write(self, path: str, content: bytes) -> None:
        """A file with *content*, readable by nobody else, in the place of one that is there."""

    def remove(self, path: str) -> bool:
        """Remove a file; whether there was one."""

    def remove_directory(self, directory: str) -> list[str]:
        """Remove a directory if it is empty; the names that are still in it."""

    def close(self) -> None:
        """Let go of what was held for the work."""


def storage_of(host: Host) -> Storage:
    """The storage of *host*."""
    return LocalStorage() if host.local else PoolStorage(host)


@contextlib.contextmanager
def _files(what: str) -> t.Iterator[None]:
    """Translate the operating system's errors in the body."""
    try:
        yield
    except OSError as exc:
        reason = f"Failed to {what}: {exc.strerror or exc}."
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(reason, hint="Make room on the host and run the task again.") from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(reason, hint="Run the task with become, or choose another storage directory.") from exc
        if exc.errno == errno.ENOENT:
            raise NotFound(reason) from exc
        raise LifecycleError(reason) from exc


def _marker(size: int, sha256: str, source: str) -> bytes:
    return json.dumps({"size": size, "sha256": sha256, "source": source}, sort_keys=True).encode()


class LocalStorage:
    """The files of this machine."""

    def free(self, directory: str) -> int | None:
        """See :class:`Storage`."""
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        with _files(f"look at {directory}"):
            found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize

    def fetch_base(self, source: str, image_format: str, directory: str) -> Base:
        """See :class:`Storage`. The file is hashed while it is copied; the hash is remembered by the source's identity,
        so the next launch from the same file neither reads nor copies it."""
        bases = os.path.join(directory, _BASES)
        with _files(f"copy image {source} to {bases}"):
            self._make_directory(bases)
            with _only_one(os.path.join(bases, ".lock")):
                known = self._known_hash(bases, source)
                found = known and self._complete(bases, known, image_format)
                if found:
                    return found
                return self._copy_base(source, image_format, bases)

    def _copy_base(self, source: str, image_format: str, bases: str) -> Base:
        for left in os.scandir(bases):
            if left.name.endswith(".part"):  # of a copy that died: we hold the lock
                os.unlink(left.path)
        identity = _identity(source)
        with tempfile.NamedTemporaryFile(dir=bases, suffix=".part", delete=False) as part:
            try:
                sha256 = _copy(source, part)
                part.flush()
                os.fsync(part.fileno())
                found = self._complete(bases, sha256, image_format)
                if found is None:
                    os.fchmod(part.fileno(), 0o644)  # QEMU runs as another user
                    found = Base(os.path.join(bases, f"{sha256}.{image_format}"), image_format, sha256)
                    os.rename(part.name, found.path)
                    _write(f"{found.path}.ok", _marker(os.path.getsize(found.path), sha256, source), 0o644)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part.name)
        if _identity(source) != identity:
            raise Invalid(f"Image {source} changed while it was copied.", hint="Run the task again.")
        self._remember_hash(bases, source, identity, sha256)
        return found

    @staticmethod
    def _complete(bases: str, sha256: str, image_format: str) -> Base | None:
        for name in sorted(os.listdir(bases)):
            path = os.path.join(bases, name)
            if name.startswith(sha256) and name.endswith(f".{image_format}"):
                marker = _read_json(f"{path}.ok")
                if marker.get("size") == os.path.getsize(path):
                    return Base(path, image_format, sha256)
        return None

    @staticmethod
    def _known_hash(bases: str, source: str) -> str | None:
        known = _read_json(os.path.join(bases, _MEMO)).get(os.path.realpath(source))
        if not isinstance(known, dict) or known.get("identity") != _identity(source):
            return None
        return known.get("sha256")

    @staticmethod
    def _remember_hash(bases: str, source: str, identity: list[int], sha256: str) -> None:
        known = _read_json(os.path.join(bases, _MEMO))
        memo = {path: entry for path, entry in known.items() if os.path.exists(path)}
        memo[os.path.realpath(source)] = {"identity": identity, "sha256": sha256}
        _write(os.path.join(bases, _MEMO), json.dumps(memo, sort_keys=True).encode(), 0o600)

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """See :class:`Storage`."""
        self._create(path, size, "-b", base.path, "-F", base.format)

    def make_disk(self, path: str, size: int) -> None:
        """See :class:`Storage`."""
        self._create(path, size)

    def _create(self, path: str, size: int, *options: str) -> None:
        if os.path.exists(path):
            return
        part = f"{path}.part"
        with _files(f"create disk {path}"):
            self._make_directory(os.path.dirname(path))
            _qemu_img("create", "-q", "-f", "qcow2", *options, part, str(size))
            os.chmod(part, 0o600)
            os.rename(part, path)

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """See :class:`Storage`."""
        _qemu_img("resize", "-q", "-f", disk_format, path, str(size))

    def write(self, path: str, content: bytes) -> None:
        """See :class:`Storage`."""
        with _files(f"write {path}"):
            self._make_directory(os.path.dirname(path))
            _write(path, content, 0o600)

    def remove(self, path: str) -> bool:
        """See :class:`Storage`."""
        with _files(f"remove {path}"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return False
        return True

    def remove_directory(self, directory: str) -> list[str]:
        """See :class:`Storage`."""
        with _files(f"remove {directory}"):
            if not os.path.isdir(directory):
                return []
            left = sorted(os.listdir(directory))
            if not left:
                os.rmdir(directory)
        return left

    def close(self) -> None:
        """See :class:`Storage`."""

    @staticmethod
    def _make_directory(directory: str) -> None:
        """QEMU, which is another user, passes through every directory that is made here, whatever the umask."""
        missing = []
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                os.mkdir(path)
                os.chmod(path, 0o711)


def _identity(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _read_json(path: str) -> dict[str, t.Any]:
    """The JSON object in a marker or memo; one that is not there, or not whole, says nothing."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: str, content: bytes, mode: int) -> None:
    """The whole file or none, on disk when this returns."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), suffix=".part", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fchmod(part.fileno(), mode)
            os.fsync(part.fileno())
            os.rename(part.name, path)
        except OSError:
            os.unlink(part.name)
            raise


def _copy(source: str, target: t.IO[bytes]) -> str:
    """Copy the file *source*, holes kept, and return its sha256."""
    digest = hashlib.sha256()
    with open(source, "rb", buffering=0) as file:
        while True:
            chunk = file.read(_CHUNK)
            if not chunk:
                break
            digest.update(chunk)
            if chunk.count(0) == len(chunk):
                target.seek(len(chunk), os.SEEK_CUR)
            else:
                target.write(chunk)
    target.truncate()
    return digest.hexdigest()


@contextlib.contextmanager
def _only_one(path: str) -> t.Iterator[None]:
    """One process or thread at a time; the others wait. The kernel lets go when a process dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _qemu_img(*arguments: str) -> None:
    """Run qemu-img. Paths are absolute, so none is taken for an option, a URL or ``json:``."""
    try:
        done = subprocess.run(["qemu-img", *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError as exc:
        raise NotFound(
            "Failed to run qemu-img: it is not installed.", hint="Install the package qemu-utils or qemu-img."
        ) from exc
    if done.returncode:
        said = done.stderr.strip()
        kind = NoSpace if "No space left on device" in said else LifecycleError
        raise kind(f"Failed to run qemu-img {arguments[0]}: {said}.")


class PoolStorage:
    """The files of a host that is reached through libvirt: each directory is a storage pool for as long as it is
    needed.

    A pool that the host has for the directory is used; else a transient one is made, which leaves nothing behind.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._pools: dict[str, t.Any] = {}
        self._made: list[t.Any] = []
        self._guard = threading.RLock()

    def free(self, directory: str) -> int | None:
        """See :class:`Storage`."""
        pool = self._pool(directory, create=False)
        if pool is None:
            return None
        with doing(f"look at {directory} on {self.host.name}"):
            return int(pool.info()[3])

    def fetch_base(self, source: str, image_format: str, directory: str) -> Base:
        """See :class:`Storage`. The file is hashed here first, so nothing is sent that the host has. Every upload has a
        name of its own, as volumes cannot be renamed: the marker makes it count."""
        bases = os.path.join(directory, _BASES)
        with _files(f"read image {source}"), open(source, "rb") as file:
            digest = hashlib.sha256()
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
            sha256 = digest.hexdigest()
        with self._guard:  # one upload serves all
            return self._find_or_send(source, image_format, bases, sha256)

    def _find_or_send(self, source: str, image_format: str, bases: str, sha256: str) -> Base:
        names = self._names(bases)
        for name in sorted(names):
            if name.startswith(sha256) and name.endswith(f".{image_format}") and f"{name}.ok" in names:
                return Base(os.path.join(bases, name), image_format, sha256)
        path = os.path.join(bases, f"{sha256}-{uuid.uuid4().hex[:8]}.{image_format}")
        size = os.path.getsize(source)
        with open(source, "rb") as file:
            self._upload(path, file, size, 0o644)
        self.write(f"{path}.ok", _marker(size, sha256, source))
        return Base(path, image_format, sha256)

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """See :class:`Storage`."""
        volume = _volume(path, "qcow2", size)
        backing = ET.SubElement(volume, "backingStore")
        ET.SubElement(backing, "path").text = base.path
        ET.SubElement(backing, "format", {"type": base.format})
        self._create(path, volume)

    def make_disk(self, path: str, size: int) -> None:
        """See :class:`Storage`."""
        self._create(path, _volume(path, "qcow2", size))

    def _create(self, path: str, volume: ET.Element) -> None:
        if os.path.basename(path) in self._names(os.path.dirname(path)):
            return
        with doing(f"create disk {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).createXML(ET.tostring(volume, encoding="unicode"))

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """See :class:`Storage`. libvirt knows the format of its volumes."""
        with doing(f"resize {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).storageVolLookupByName(os.path.basename(path)).resize(size)

    def write(self, path: str, content: bytes) -> None:
        """See :class:`Storage`."""
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
        """See :class:`Storage`."""
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
        """See :class:`Storage`."""
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
        """See :class:`Storage`."""
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
