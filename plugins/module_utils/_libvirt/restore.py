# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a VM that comes from elsewhere needs of a host: its saved memory, its files, and whoever QEMU is there."""

from __future__ import annotations

import os
import re
import typing as t
import xml.etree.ElementTree as ET

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.files import working
from .bases import Base, Source
from .cache import take_in
from .errors import doing
from .files import PART, make_directory
from .host import Host

# Of "+64055:+109", as the host's capabilities have it.
_GROUP = re.compile(r"\+?\d+:\+?(\d+)")


class Restorer:
    """Makes a host ready for a VM."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.connection = host.connection

    # ---- memory

    def saved_definition(self, path: str) -> str:
        """The definition in a saved memory (virDomainSaveImageGetXMLDesc), with passwords."""
        with doing(f"look into {path}"):
            return str(self.connection.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))

    def restore_memory(self, path: str, xml: str, *, paused: bool) -> None:
        """Let a VM that is defined go on with its saved memory.

        :param xml: Its definition, in the place of the one in *path*.
        :param paused: With its CPUs stopped.
        """
        how = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
        with doing(f"restore the memory in {path}"):
            self.connection.restoreFlags(path, xml, how)

    # ---- files

    def directory(self, path: str) -> str:
        """Make a directory for sockets that QEMU connects to and nobody else: its group is that of QEMU, as far as
        libvirt has a user for it."""
        with doing(f"find out as whom QEMU runs on {self.host.name}"):
            capabilities = ET.fromstring(self.connection.getCapabilities())
        label = ""
        for model in capabilities.iterfind("host/secmodel"):
            if model.findtext("model") == "dac":
                label = model.findtext("baselabel", "")
        group = _GROUP.fullmatch(label)
        with working(f"make {path}"):
            make_directory(path)
            os.chown(path, -1, int(group[1]) if group else os.getegid())
            os.chmod(path, 0o710)
        return path

    def take(self, path: str, source: Source, base: Base | None) -> None:
        """Make the file *path* of an image: a disk that nobody shares.

        :param base: What a delta lies upon.
        :raises Invalid: The image is not what it is said to be.
        """
        part = f"{path}{PART}"
        with working(f"copy image {source.label} to {path}"):
            make_directory(os.path.dirname(path))
            with open(part, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                take_in(source, file, part, base)
                os.fsync(file.fileno())
            os.rename(part, path)
            _flush(os.path.dirname(path))

    def write(self, path: str, blocks: t.Iterable[bytes | bytearray | memoryview]) -> None:
        """Write a file for our eyes, as large as it may be."""
        part = f"{path}{PART}"
        with working(f"write {path}"):
            make_directory(os.path.dirname(path))
            with open(part, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                for block in blocks:
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, path)


def _flush(directory: str) -> None:
    """See that the names in a directory are on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
