# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Other files under the disks of a VM, and seeing that it runs with them."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import LifecycleError, NotFound
from .._model.domain import Disk, read_domain
from .._model.instance import Instance
from .._model.status import BLOCKED, PAUSED, RUNNING, SHUTOFF
from .errors import doing
from .guest import Guest
from .xml import disk_nodes, put_instance

# Seconds after which a guest counts as running. What QEMU cannot open, it refuses earlier.
_SETTLED = 2
# Where libvirt puts the variables of the VMs of qemu:///system.
NVRAM = "/var/lib/libvirt/qemu/nvram"
_WORDS = {PAUSED: "paused", SHUTOFF: "off"}


class Swap:
    """The definition of one VM, and its first steps afterwards."""

    def __init__(self, guest: Guest, clock: Clock) -> None:
        self.guest = guest
        self.clock = clock

    # ---- the definition

    def disks(self) -> dict[str, str]:
        """The elements of the VM's disks in its definition, as text, by target."""
        found = disk_nodes(self.guest.xml(inactive=True, secure=True))
        return {target: ET.tostring(node, encoding="unicode") for target, node in found.items()}

    def definition(self, disks: t.Mapping[str, str], nvram: str | None = None) -> ET.Element:
        """The VM's definition with other disks.

        :param disks: Elements ``<disk>`` as text, by target, for those that are other.
        :param nvram: The element ``<nvram>`` as text, or nothing for none; ``None`` leaves what there is.
        """
        domain = self.guest.xml(inactive=True, secure=True)
        nodes = disk_nodes(domain)
        devices = domain.find("devices")
        for target, text in disks.items():
            if devices is not None and target in nodes:
                devices[list(devices).index(nodes[target])] = ET.fromstring(text)
        system = domain.find("os")
        if nvram is not None and system is not None:
            for node in system.findall("nvram"):
                system.remove(node)
            if nvram:
                system.append(ET.fromstring(nvram))
        return domain

    def define(self, disks: t.Mapping[str, str], nvram: str | None, instance: Instance) -> None:
        """Define the VM so, which has no QEMU process, and write at the same moment what we remember of it."""
        domain = self.definition(disks, nvram)
        put_instance(domain, instance)
        self.guest.redefine(domain)

    def nvram(self) -> tuple[str, str]:
        """The element ``<nvram>`` of the definition as text, empty when it has none, and the file of the variables.

        Where libvirt has chosen the firmware, the definition need not name the file (libvirt 9.0).
        """
        node = self.guest.xml(inactive=True).find("os/nvram")
        text = ET.tostring(node, encoding="unicode").strip() if node is not None else ""
        path = read_domain(self.guest.xml(inactive=not self.guest.active())).firmware.nvram
        return text, path or f"{NVRAM}/{self.guest.name}_VARS.fd"

    def located(self, disk: Disk) -> Disk:
        """*disk*, with its path in the place of a pool and a volume where that is a file."""
        if disk.image.kind != "volume":
            return disk
        pool, _slash, name = disk.image.source.partition("/")
        try:
            with doing(f"look at the volume {disk.image.source}"):
                volume = self.guest.host.connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
                if volume.info()[0] != libvirt.VIR_STORAGE_VOL_FILE:
                    return disk
                path = str(volume.path())
        except NotFound:
            return disk
        return replace(disk, image=replace(disk.image, kind="file", source=path))

    def snapshots(self) -> list[str]:
        """The names of libvirt's own snapshots of the VM."""
        with doing(f"list the snapshots of VM {self.guest.name}"):
            return [str(name) for name in self.guest.domain.snapshotListNames()]

    def forget_checkpoints(self, targets: t.Collection[str]) -> dict[str, list[str]]:
        """Take from libvirt the records of checkpoints that are of disks which are other ones now.

        :param targets: Of these disks.
        :returns: By the name of each the disks that still have its bitmaps.
        """
        found: dict[str, list[str]] = {}
        with doing(f"delete checkpoints of VM {self.guest.name}"):
            for checkpoint in self.guest.domain.listAllCheckpoints():
                disks = [
                    disk.get("name", "")
                    for disk in ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)).iter(
                        "disk"
                    )
                    if disk.get("checkpoint") == "bitmap"
                ]
                if set(disks) & set(targets):
                    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
                    found[checkpoint.getName()] = [disk for disk in disks if disk not in targets]
        return found

    # ---- running

    def run(self, *, agent: bool, timeout: float, what: str = "on its new disk") -> None:
        """Start the VM, if it is not, and see that it runs.

        :param agent: Wait until its agent opens its channel, at most *timeout* seconds; else two seconds do.
        :param what: How it runs, for errors.
        :raises LifecycleError: It does not.
        """
        if not self.guest.active():
            self.guest.start()
        if not agent:
            self.clock.sleep(_SETTLED)
            self._demand_running(what)
            return

        def connected() -> bool:
            self._demand_running(what)
            return bool(self.guest.agent_connected())

        wait_until(
            connected,
            clock=self.clock,
            timeout=timeout,
            doing=f"waiting for the agent of VM {self.guest.name} {what}",
        )

    def prove(self) -> None:
        """See that QEMU starts with the definition, without letting the guest run."""
        if self.guest.state()[0] == PAUSED:  # a run that died in this very step
            self.guest.power_off()
        if not self.guest.active():
            self.guest.start(paused=True)
            self.guest.power_off()

    def _demand_running(self, what: str) -> None:
        state = self.guest.state()[0]
        if state not in (RUNNING, BLOCKED):
            raise LifecycleError(
                f"VM {self.guest.name} was started {what} and does not run: it is {_WORDS.get(state, 'crashed')}."
            )


def on_file(disk: str, path: str) -> str:
    """The element of a disk, as text, with the qcow2 file *path* in place of what it has. Everything else stays."""
    node = ET.fromstring(disk)
    node.set("type", "file")
    for tag in ("backingStore", "mirror"):
        for found in node.findall(tag):
            node.remove(found)
    driver = node.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        node.insert(0, driver)
    driver.set("type", "qcow2")
    source = node.find("source")
    if source is None:
        source = ET.SubElement(node, "source")
    labels = source.findall("seclabel")
    source.attrib.clear()
    for child in list(source):
        if child not in labels:
            source.remove(child)
    source.set("file", path)
    return ET.tostring(node, encoding="unicode")


def on_variables(nvram: str, path: str) -> str:
    """The element ``<nvram>``, as text, with another file, which libvirt makes from the firmware's template.

    :param nvram: The element that there is; or empty.
    """
    node = ET.fromstring(nvram or "<nvram/>")
    source = node.find("source")
    if source is None:
        node.text = path
    else:
        source.set("file", path)
    return ET.tostring(node, encoding="unicode")
