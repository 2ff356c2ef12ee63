# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The definition of a VM that comes from elsewhere, made to fit this host (libvirt's page "Domain XML format")."""

from __future__ import annotations

import os
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .._core.errors import Invalid
from .._model import instance as memory
from .._model.domain import Domain, read_domain
from .._model.instance import Instance
from .swap import NVRAM, on_file
from .xml import disk_nodes, put_instance

# What a disk's driver does when an image cannot be read or written, by attribute, while it depends on a store.
_PATIENT = {"error_policy": "stop", "rerror_policy": "stop"}


@dataclass(frozen=True)
class Below:
    """An image below a disk's file.

    :param kind: ``file``, or ``nbd``: an export on a UNIX socket.
    :param path: Of the file or of the socket.
    :param format: ``qcow2`` or ``raw``.
    :param export: The export's name.
    """

    kind: str
    path: str
    format: str
    export: str = ""


class Definition:
    """A definition as a tree that is changed in place.

    :param text: The XML.
    :raises Invalid: It is none.
    """

    def __init__(self, text: str | bytes) -> None:
        try:
            self.root = ET.fromstring(text)
        except ET.ParseError as exc:
            raise Invalid(f"The definition of a VM cannot be read: {exc}.") from exc

    @property
    def text(self) -> str:
        """As XML."""
        return ET.tostring(self.root, encoding="unicode")

    @property
    def domain(self) -> Domain:
        """What it says."""
        return read_domain(self.root)

    @property
    def instance(self) -> Instance:
        """What is remembered of the VM."""
        return memory.find(self.root)

    def remember(self, instance: Instance) -> None:
        """Let it remember that."""
        put_instance(self.root, instance)

    # ---- disks

    def place(self, target: str, path: str) -> None:
        """Put the disk into the qcow2 file *path*. Everything else of it stays."""
        devices = self.root.find("devices")
        node = self._disk(target)
        if devices is not None:
            devices[list(devices).index(node)] = ET.fromstring(on_file(ET.tostring(node, encoding="unicode"), path))

    def point(self, target: str, path: str) -> None:
        """Let a drive have its medium, which is a file, in *path*."""
        source = self._disk(target).find("source")
        if source is not None:
            source.set("file", path)

    def lay_upon(self, target: str, layers: t.Sequence[Below]) -> None:
        """Say all that lies below a disk, from the top down, so that nothing is looked for in headers; and let the
        guest stop rather than see an error."""
        node = self._disk(target)
        driver = node.find("driver")
        if driver is not None:
            driver.attrib.update(_PATIENT)
        for layer in layers:
            node = ET.SubElement(node, "backingStore", {"type": "network" if layer.kind == "nbd" else "file"})
            ET.SubElement(node, "format", {"type": layer.format})
            if layer.kind == "nbd":
                source = ET.SubElement(node, "source", {"protocol": "nbd", "name": layer.export})
                ET.SubElement(source, "host", {"transport": "unix", "socket": layer.path})
            else:
                ET.SubElement(node, "source", {"file": layer.path})
        ET.SubElement(node, "backingStore")

    def policies(self, target: str) -> dict[str, str]:
        """What the disk's driver does on errors, by attribute; those that it does not say are empty."""
        driver = self._disk(target).find("driver")
        return {key: driver.get(key, "") if driver is not None else "" for key in _PATIENT}

    def settle(self, target: str, path: str, policies: t.Mapping[str, str]) -> None:
        """Let a disk be the file *path* again, and nothing be said of what lies below.

        :param policies: As :meth:`policies` told them.
        """
        self.place(target, path)
        driver = self._disk(target).find("driver")
        if driver is not None:
            for key, value in policies.items():
                driver.attrib.pop(key, None)
                if value:
                    driver.set(key, value)

    def eject_missing(self, but: t.Container[str]) -> dict[str, str]:
        """Take the media out of drives that are not on this machine; by target what they were.

        :param but: Files that will be there.
        """
        ejected = {}
        for target, node in disk_nodes(self.root).items():
            source = node.find("source")
            path = "" if source is None else source.get("file", "")
            lost = path and path not in but and not os.path.exists(path)
            if node.get("device") in ("cdrom", "floppy") and source is not None and lost:
                node.remove(source)
                ejected[target] = path
        return ejected

    def _disk(self, target: str) -> ET.Element:
        node = disk_nodes(self.root).get(target)
        if node is None:
            raise Invalid(f"The definition of VM {self.root.findtext('name')} has no disk {target}.")
        return node

    # ---- the rest

    def run_on(self, emulator: str) -> None:
        """Name another program that runs the VM."""
        node = self.root.find("devices/emulator")
        if node is not None:
            node.text = emulator

    def move_logs(self, old: str, new: str) -> None:
        """Let consoles that were written to files in the directory *old* be written to files in *new*."""
        for node in self.root.iterfind("devices/*"):
            for tag, key in (("log", "file"), ("source", "path")):
                found = node.find(tag) if node.tag in ("serial", "console", "parallel", "channel") else None
                if found is not None and os.path.dirname(found.get(key, "")) == old:
                    found.set(key, os.path.join(new, os.path.basename(found.get(key, ""))))

    def nvram(self) -> str:
        """The file of the firmware's variables. Where libvirt chose the firmware, the definition need not name it."""
        return self.domain.firmware.nvram or f"{NVRAM}/{self.root.findtext('name')}_VARS.fd"
