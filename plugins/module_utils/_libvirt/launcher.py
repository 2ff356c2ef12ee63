# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The steps of a launch and of a removal, on one host."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from .._core.clock import Clock, wait_until
from .._core.errors import NotFound
from .._model.domain import read_domain
from .._model.flavor import Flavor
from .._model.instance import Instance
from .._model.launch import GIB, Order, root_size
from .._model.names import Nic
from .bases import Source
from .guest import Guest
from .host import Host, Platform
from .storage import Storage
from .xml import build_domain, interface_node, nic_xml

CONSOLE_LOG = "console.log"


class Launcher:
    """Makes one VM. The definition comes first: with the journal in it, it tells a later run what was begun."""

    def __init__(self, host: Host, storage: Storage, order: Order, platform: Platform, *, uuid: str) -> None:
        self.host = host
        self.storage = storage
        self.order = order
        self.platform = platform
        self.uuid = uuid

    def define(self, instance: Instance) -> Guest:
        """Define the VM, or define it anew."""
        xml = build_domain(
            self.order,
            uuid=self.uuid,
            domain_type=self.platform.domain_type,
            arch=self.platform.arch,
            instance=instance,
        )
        return self.host.define(xml)

    def make_disks(self, guest: Guest, source: Source, config: bytes | None) -> dict[str, str]:
        """Fetch the base image, and make the root disk over it and the others.

        :param config: The content of the config drive.
        :raises Invalid: The image is not what it is said to be, or the flavor's root disk is too small for it.
        """
        instance = guest.recall()
        launch = instance.launch
        if launch is None:
            raise NotFound(f"The metadata of VM {guest.name} are gone.", hint="Run the task again.")
        flavor = self.order.flavor
        base = self.storage.fetch_base(source, launch.storage)
        size = root_size(flavor, base.virtual_size)
        launch = replace(launch, base=base.path, base_format=base.format, base_sha256=base.sha256)
        guest.remember(replace(instance, launch=launch))
        sizes = iter([size_gib * GIB for size_gib in flavor.ephemeral])
        for disk in self.order.disks:
            if disk.role == "root":
                self.storage.make_overlay(disk.path, base, size)
            elif disk.role == "ephemeral":
                self.storage.make_disk(disk.path, next(sizes))
            elif disk.role == "swap":
                self.storage.make_disk(disk.path, flavor.swap << 20)
            elif config is not None:
                self.storage.write(disk.path, config)
        return {"base": base.path}

    def clear(self) -> None:
        """Remove whatever an earlier attempt left of the VM's files."""
        remove_files(self.storage, [disk.path for disk in self.order.disks], os.path.dirname(self.order.console_log))


def remove_files(storage: Storage, paths: t.Iterable[str], directory: str) -> dict[str, t.Any]:
    """Remove files of a VM, then its own directory with the console log, if nothing else is in it.

    :param directory: The VM's own directory; empty when it has none.
    """
    removed = [path for path in paths if storage.remove(path)]
    left: list[str] = []
    if directory:
        for name in storage.remove_directory(directory):
            if name.startswith(CONSOLE_LOG) or name.endswith(".part"):
                storage.remove(f"{directory}/{name}")
        left = [f"{directory}/{name}" for name in storage.remove_directory(directory)]
    return {"removed_files": removed, **({"left_files": left} if left else {})}


class Adjuster:
    """Makes a VM that is there what was asked, one difference at a time."""

    def __init__(self, guest: Guest, storage: Storage, clock: Clock) -> None:
        self.guest = guest
        self.storage = storage
        self.clock = clock

    def apply(self, operation: str, argument: t.Any) -> None:
        """Do *operation*, as :func:`.._model.launch.compare` names it."""
        getattr(self, operation)(argument)

    def set_title(self, text: str) -> None:
        """Title."""
        self.guest.set_title(text)

    def set_description(self, text: str) -> None:
        """Description."""
        self.guest.set_description(text)

    def set_autostart(self, wanted: bool) -> None:
        """Autostart."""
        self.guest.set_autostart(wanted)

    def resize(self, flavor: Flavor) -> None:
        """CPUs and memory of a VM that is off."""
        domain = self.guest.xml(inactive=True, secure=True)
        for tag in ("memory", "currentMemory"):
            node = domain.find(tag)
            if node is not None:
                node.set("unit", "MiB")
                node.text = str(flavor.memory)
        vcpu = domain.find("vcpu")
        if vcpu is not None:
            vcpu.attrib.pop("current", None)
            vcpu.text = str(flavor.vcpus)
        self.guest.redefine(domain)
        self._remember(flavor)

    def grow_root(self, flavor: Flavor) -> None:
        """The first disk, of a running guest or in the file."""
        root = read_domain(self.guest.xml(inactive=True)).disks[0]
        if self.guest.active():
            self.guest.resize_disk(root.target, flavor.root * GIB)
        else:
            self.storage.grow(root.image.source, root.image.format, flavor.root * GIB)
        self._remember(flavor)

    def _remember(self, flavor: Flavor) -> None:
        instance = self.guest.recall()
        if instance.flavor:
            self.guest.remember(replace(instance, flavor=flavor))

    def attach_network(self, nic: Nic) -> None:
        """A new network card."""
        self.guest.attach(nic_xml(nic))

    def update_network(self, nic: Nic) -> None:
        """Plug a network card in elsewhere."""
        node = interface_node(self.guest.xml(), nic.mac)
        if node is None:
            raise NotFound(f"VM {self.guest.name} has no network card {nic.mac} any more.")
        node.set("type", nic.kind)
        source = node.find("source")
        if source is not None:
            source.attrib.clear()
            source.set(nic.kind, nic.source)
        target = node.find("target")
        if target is not None:
            node.remove(target)
        self.guest.update(node)

    def detach_network(self, nic: Nic) -> None:
        """Take a network card away, and see that the guest let go of it.

        :raises TimedOut: It did not.
        """
        if self.guest.active():
            node = interface_node(self.guest.xml(), nic.mac)
            if node is not None:
                self.guest.detach(node, live=True)
                wait_until(
                    lambda: interface_node(self.guest.xml(), nic.mac) is None,
                    clock=self.clock,
                    timeout=60,
                    doing=f"waiting for the guest of VM {self.guest.name} to let go of the network card {nic.mac}",
                )
        node = interface_node(self.guest.xml(inactive=True), nic.mac)
        if node is not None:
            self.guest.detach(node, live=False)
