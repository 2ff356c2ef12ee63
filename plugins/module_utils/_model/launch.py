# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Launching: what was asked, what becomes of it, and how it differs from a VM that is there."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from .._core.errors import Invalid
from .domain import Domain
from .flavor import Flavor
from .instance import Instance, OwnDisk
from .names import Nic, stable_mac

GIB = 1 << 30
MIB = 1 << 20

_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}


@dataclass(frozen=True)
class Order:
    """A new VM with everything decided.

    :param disks: In the order of the guest's devices; the first is the root disk.
    :param disk_cache: QEMU's cache mode.
    :param config_bus: The bus of the config drive.
    :param console_log: The file that the serial console is written to.
    """

    name: str
    flavor: Flavor
    disks: tuple[OwnDisk, ...]
    networks: tuple[Nic, ...]
    console_log: str
    title: str = ""
    description: str = ""
    machine: str = ""
    firmware: str = "bios"
    secure_boot: bool = False
    cpu_mode: str = ""
    cpu_model: str = ""
    disk_bus: str = "virtio"
    disk_cache: str = "none"
    config_bus: str = "sata"
    graphics: str = "vnc"
    graphics_listen: str = "127.0.0.1"


def config_bus(machine: str, disk_bus: str) -> str:
    """The bus for a CD-ROM that a guest can read from which boots from a disk on *disk_bus*."""
    if disk_bus in ("virtio", "scsi"):
        # Never AHCI: kernels for clouds, such as that of Debian's genericcloud images, have no driver for it.
        return "scsi"
    if "q35" in machine:
        return "sata"
    return "ide" if machine.startswith("pc") else "scsi"


def lay_out_disks(
    directory: str, flavor: Flavor, *, disk_bus: str, cdrom_bus: str, config: bool
) -> tuple[OwnDisk, ...]:
    """The files and device names of a new VM's disks.

    :param directory: Of the VM, on the host.
    :param config: Whether it gets a config drive.
    """
    roles = [("root", "root.qcow2")]
    roles += [("ephemeral", f"ephemeral{number}.qcow2") for number in range(len(flavor.ephemeral))]
    roles += [("swap", "swap.qcow2")] if flavor.swap else []
    roles += [("config", "config.iso")] if config else []
    taken: dict[str, int] = {}
    disks = []
    for role, name in roles:
        prefix = _PREFIXES[cdrom_bus if role == "config" else disk_bus]
        number = taken[prefix] = taken.get(prefix, -1) + 1
        if number > 25:
            raise Invalid(f"Flavor {flavor.name or 'given'} has more disks than the bus {disk_bus} has names.")
        disks.append(OwnDisk(role, f"{prefix}{chr(ord('a') + number)}", f"{directory}/{name}"))
    return tuple(disks)


def root_size(flavor: Flavor, virtual_size: int) -> int:
    """The size of the root disk in bytes.

    :param virtual_size: Of the image, in bytes.
    :raises Invalid: The image does not fit.
    """
    if not flavor.root:
        return virtual_size
    if flavor.root * GIB < virtual_size:
        raise Invalid(
            f"Flavor {flavor.name or 'given'} has a root disk of {flavor.root} GiB, and the image needs"
            f" {virtual_size / GIB:.2f} GiB.",
            hint="Use a larger flavor, or root: 0 for the size of the image.",
        )
    return flavor.root * GIB


@dataclass(frozen=True)
class Asked:
    """What the task said of a VM that shall be present; ``None`` is what it did not say.

    :param image_id: Of the image that ``image`` means, if it was looked for.
    """

    image: str | None = None
    image_id: str | None = None
    flavor: Flavor | None = None
    networks: tuple[Nic, ...] | None = None
    title: str | None = None
    description: str | None = None
    autostart: bool | None = None
    firmware: str | None = None
    machine: str | None = None
    domain_type: str | None = None
    storage: str | None = None
    cloud_init: str | None = None


@dataclass(frozen=True)
class There:
    """A VM that is there.

    :param domain: As it will be at its next boot.
    :param root_size: Virtual size of its first disk in bytes; ``None`` when it has none or it cannot be told.
    :param off: Whether it has no QEMU process and no saved memory.
    """

    domain: Domain
    instance: Instance
    autostart: bool
    root_size: int | None
    off: bool


@dataclass(frozen=True)
class Difference:
    """One thing that is otherwise than asked.

    :param option: Of the module.
    :param operation: How it is made so; empty when it cannot be.
    :param why: Why it cannot be made so, with the way out.
    :param argument: For the operation.
    """

    option: str
    before: t.Any
    after: t.Any
    operation: str = ""
    why: str = ""
    argument: t.Any = field(default=None, compare=False)


_REBUILD = (
    "it is decided at the launch; the module vm_rebuild gives a VM another image, or remove it and launch it again"
)
_AT_LAUNCH = "it is decided at the launch; remove the VM and launch it again"
_OFF_FIRST = "the VM must be off for that; use vm_power with state: stopped first"


def compare(asked: Asked, there: There) -> list[Difference]:
    """How a VM differs from what was asked. What was not said is not compared; what a VM that others made does not tell
    is not compared either."""
    domain, launch = there.domain, there.instance.launch
    found: list[Difference] = []

    def add(
        option: str, before: t.Any, after: t.Any, operation: str = "", why: str = "", argument: t.Any = None
    ) -> None:
        if after is not None and before != after:
            found.append(Difference(option, before, after, operation, why, after if argument is None else argument))

    if launch:
        # The name that the launch gave is the same image, also when another one has that name now.
        if launch.image_id == "" or launch.image_id not in (asked.image, asked.image_id):
            add("image", launch.image, asked.image, why=_REBUILD)
        add("storage", launch.storage, asked.storage, why=_AT_LAUNCH)
        if "cloud_init" in launch.spec or asked.cloud_init is not None:
            before = launch.spec.get("cloud_init", "none")
            add("cloud_init", before, asked.cloud_init, why="guests read it at their first boot only; " + _REBUILD)
    add("firmware", domain.firmware.kind, asked.firmware, why=_AT_LAUNCH)
    add("domain_type", domain.type, asked.domain_type, why=_AT_LAUNCH)
    if asked.machine is not None and not _same_machine(domain.machine, asked.machine):
        add("machine", domain.machine, asked.machine, why=_AT_LAUNCH)
    add("title", domain.title, asked.title, "set_title")
    add("description", domain.description, asked.description, "set_description")
    add("autostart", there.autostart, asked.autostart, "set_autostart")
    if asked.flavor:
        found += _compare_flavor(asked.flavor, there)
    if asked.networks is not None:
        found += _compare_networks(asked.networks, domain)
    return found


def _same_machine(have: str, want: str) -> bool:
    """libvirt replaces an alias like ``q35`` by the version it stands for."""
    return have == want or (want in ("q35", "pc") and f"-{'i440fx' if want == 'pc' else want}-" in have)


def _compare_flavor(asked: Flavor, there: There) -> list[Difference]:
    domain, known = there.domain, there.instance.flavor
    found = []
    operation, why = ("resize", "") if there.off else ("", _OFF_FIRST)
    if (domain.vcpus, domain.memory) != (asked.vcpus, asked.memory):
        before = {"vcpus": domain.vcpus, "memory": domain.memory}
        after = {"vcpus": asked.vcpus, "memory": asked.memory}
        found.append(Difference("flavor", before, after, operation, why, asked))
    if asked.root and there.root_size is not None and asked.root * GIB != there.root_size:
        before_root, after_root = {"root": there.root_size / GIB}, {"root": asked.root}
        if asked.root * GIB < there.root_size:
            shrink = "a disk cannot shrink without losing data"
            found.append(Difference("flavor", before_root, after_root, why=shrink))
        else:
            found.append(Difference("flavor", before_root, after_root, "grow_root", argument=asked))
    if known and (known.ephemeral, known.swap) != (asked.ephemeral, asked.swap):
        have = {"ephemeral": list(known.ephemeral), "swap": known.swap}
        want = {"ephemeral": list(asked.ephemeral), "swap": asked.swap}
        found.append(Difference("flavor", have, want, why=_AT_LAUNCH))
    return found


def place_networks(vm_uuid: str, asked: t.Sequence[Nic]) -> tuple[Nic, ...]:
    """*asked* with addresses: those given, and stable ones for the rest."""
    placed = tuple(replace(nic, mac=nic.mac or stable_mac(vm_uuid, index)) for index, nic in enumerate(asked))
    if len({nic.mac for nic in placed}) < len(placed):
        raise Invalid("Two network cards of the VM have the same MAC address.")
    return placed


def _compare_networks(asked: t.Sequence[Nic], domain: Domain) -> list[Difference]:
    left = [Nic(nic.kind, nic.source, nic.mac.lower(), nic.model) for nic in domain.interfaces]
    wanted = list(place_networks(domain.uuid, asked))
    matches = {index: nic for index, want in enumerate(wanted) for nic in left if nic.mac == want.mac}
    left = [nic for nic in left if nic not in matches.values()]
    for index, nic in enumerate(asked):
        if index not in matches and not nic.mac:  # a VM that others made has addresses of its own
            alike = [have for have in left if (have.kind, have.source, have.model) == (nic.kind, nic.source, nic.model)]
            if alike:
                matches[index] = alike[0]
                wanted[index] = alike[0]
                left.remove(alike[0])
    pairs = [(want, matches.get(index)) for index, want in enumerate(wanted)]
    found = []
    for want, match in pairs:
        if match is None:
            found.append(Difference("networks", None, want.tell(), "attach_network", argument=want))
        elif match.model != want.model:
            why = "the model of a network card cannot change; give the new one another MAC address"
            found.append(Difference("networks", match.tell(), want.tell(), why=why))
        elif match != want:
            found.append(Difference("networks", match.tell(), want.tell(), "update_network", argument=want))
    found += [Difference("networks", nic.tell(), None, "detach_network", argument=nic) for nic in left]
    return found
