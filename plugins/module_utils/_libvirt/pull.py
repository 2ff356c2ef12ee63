# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The block jobs that bring the data of a running VM's disks to its host (virDomainBlockRebase, virDomainBlockCopy)."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import LifecycleError, Unreachable
from .._model.domain import Disk, read_domain
from .._model.status import PAUSED
from .definition import Definition
from .errors import doing
from .guest import Guest
from .xml import disk_nodes

# virDomainPausedReason
_IO_ERROR = 5


@dataclass(frozen=True)
class Job:
    """A block job.

    :param done: Of ``total``, in bytes; both may be 0 when it has just begun.
    :param ready: Whether a copy is complete and follows what the guest writes.
    :param bandwidth: Its limit in bytes a second; 0 for none.
    """

    done: int
    total: int
    ready: bool
    bandwidth: int


class Pull:
    """The block jobs of one running VM."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.domain = guest.domain

    def disks(self) -> dict[str, Disk]:
        """The disks with all their layers, by target."""
        return {disk.target: disk for disk in read_domain(self.guest.xml()).disks}

    def job(self, target: str) -> Job | None:
        """The job of a disk; ``None`` when it has none."""
        with doing(f"look at the block job of disk {target} of VM {self.guest.name}"):
            told = self.domain.blockJobInfo(target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
        if not told:
            return None
        ready = told["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY and self._is_ready(target)
        return Job(told["cur"], told["end"], ready, told["bandwidth"])

    def _is_ready(self, target: str) -> bool:
        """Only the definition tells: at the end of the numbers the copy may not follow yet."""
        for node in self.guest.xml().iterfind("devices/disk"):
            found, mirror = node.find("target"), node.find("mirror")
            if found is not None and mirror is not None and found.get("dev") == target:
                return mirror.get("ready") == "yes"
        return False

    def begin(self, disk: Disk, keep: int, bandwidth: int) -> None:
        """Begin to read what lies below a disk's file into it, except for the *keep* lowest layers.

        :param bandwidth: Bytes a second at most; 0 for no limit.
        """
        with doing(f"pull the data of disk {disk.target} of VM {self.guest.name}"):
            if keep:
                base = f"{disk.target}[{disk.backing[-keep].index}]"
                flags = libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
                self.domain.blockRebase(disk.target, base, bandwidth, flags)
            else:
                self.domain.blockPull(disk.target, bandwidth, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)

    def set_speed(self, target: str, bandwidth: int) -> None:
        """Change the limit of a job, in bytes a second; 0 for none."""
        with doing(f"set the speed of the block job of disk {target} of VM {self.guest.name}"):
            self.domain.blockJobSetSpeed(target, bandwidth, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)

    def copy(self, target: str, path: str, bandwidth: int) -> None:
        """Begin to copy a disk's file, without what lies below it, to the qcow2 file *path*, whose header names its
        own base of the same content."""
        self._define_as_it_runs(target)
        node = ET.Element("disk", {"type": "file"})
        ET.SubElement(node, "driver", {"name": "qemu", "type": "qcow2"})
        ET.SubElement(node, "source", {"file": path})
        flags = (
            libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
            | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB  # else libvirt wants no definition beside the running VM
            | libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES  # see pivot()
        )
        limit = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: bandwidth} if bandwidth else {}
        with doing(f"copy disk {target} of VM {self.guest.name} to {path}"):
            self.domain.blockCopy(target, ET.tostring(node, encoding="unicode"), limit, flags)

    def pivot(self, target: str, path: str) -> None:
        """Let the guest go on with the copy in the file *path*, which is ready: each write that the guest was told of
        is in both files. So the definition may name the new one first, and whatever dies when, nothing is lost."""
        root = self.guest.xml(inactive=True, secure=True)
        definition = Definition(ET.tostring(root))
        definition.place(target, path)
        self.guest.redefine(definition.root)
        try:
            with doing(f"let VM {self.guest.name} go on with {path}"):
                self.domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except Unreachable:
            raise
        except LifecycleError:
            self.guest.redefine(root)
            raise

    def _define_as_it_runs(self, target: str) -> None:
        """A run that died may have named a copy in the definition that did not become the disk."""
        live = disk_nodes(self.guest.xml(secure=True)).get(target)
        root = self.guest.xml(inactive=True, secure=True)
        node = disk_nodes(root).get(target)
        if live is None or node is None or _file(live) == _file(node):
            return
        for tag in ("source", "backingStore"):
            for old in node.findall(tag):
                node.remove(old)
            node.extend(copy.deepcopy(live.findall(tag)))
        for each in node.iter():
            each.attrib.pop("index", None)
        self.guest.redefine(root)

    def stopped_by_error(self) -> bool:
        """Whether QEMU has stopped the guest because an image could not be read or written."""
        return self.guest.state() == (PAUSED, _IO_ERROR)


def _file(disk: ET.Element) -> str:
    source = disk.find("source")
    return "" if source is None else source.get("file", "")
