# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What the planner is told: hosts and their VMs, as ``host_info`` tells them with ``gather: [placement]``.

Memory is in MiB, storage in bytes.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .._core.errors import Invalid

Raw = t.Mapping[str, t.Any]

LIVE, COLD, STOP, LEAVE = "live", "cold", "stop", "leave"
# Conditions in which a VM takes no memory.
_OFF = ("off", "crashed", "suspended")
# Policies of groups of VMs, the strongest first.
ANTI_AFFINITY, AFFINITY, SOFT_ANTI_AFFINITY, SOFT_AFFINITY = POLICIES = (
    "anti-affinity",
    "affinity",
    "soft-anti-affinity",
    "soft-affinity",
)


class Disk(t.NamedTuple):
    """A disk of a VM.

    :param path: Its file or device; for one that is reached over the network, its name in the protocol.
    :param bytes: What it takes on its storage.
    :param size: What it takes when it is full.
    :param anew: It was lost, and is made anew or left out wherever the VM goes.
    """

    target: str
    path: str
    bytes: int
    size: int
    readonly: bool
    network: bool
    anew: bool = False

    @property
    def device(self) -> bool:
        """Whether it is a device of the host, of which nobody knows from here what lies behind it."""
        return self.path.startswith("/dev/")


class Vm(t.NamedTuple):
    """A VM that may have to go somewhere.

    :param host: Where it is; the name in the inventory.
    :param status: In Nova's words.
    :param condition: What the guest is doing.
    :param cpu: The CPU model, ``host-passthrough`` or nothing.
    :param links: Bridges and interfaces of the host that its network cards are on.
    :param devices: Of the host; they cannot move.
    :param strategy: What its owner wants when its host is emptied; empty for what the task says.
    :param groups: Pairs of a name and one of :data:`POLICIES`.
    :param origin: Where it was before a drain, and what the guest did there (``host``, ``power``).
    :param dirty_rate: MiB of memory that the guest changes in a second; 0 when that is not known.
    :param evacuated: Where an evacuation has brought it; empty when none has.
    """

    host: str
    name: str
    uuid: str
    status: str
    condition: str
    task_state: str
    locked: bool
    persistent: bool
    memory: int
    vcpus: int
    arch: str
    machine: str
    cpu: str
    disks: tuple[Disk, ...]
    networks: tuple[str, ...]
    links: tuple[str, ...]
    devices: tuple[str, ...]
    strategy: str
    priority: int
    groups: tuple[tuple[str, str], ...]
    origin: Raw
    dirty_rate: int
    evacuated: str = ""

    @property
    def on(self) -> bool:
        """Whether it takes memory."""
        return on(self.condition)


@dataclass(frozen=True)
class Storage:
    """A place for files on a host.

    :param path: A mount point or a directory.
    :param shared: What is the same on all hosts that see the same files; empty when only this one sees them.
    """

    path: str
    shared: str
    capacity: int
    available: int


@dataclass(frozen=True)
class Host:
    """A host that answered.

    :param name: In the inventory; ``own`` is the one that libvirt tells.
    :param enabled: Whether VMs are planned onto it, and ``reason`` why not. One that does not know is enabled.
    :param available: What could be had of its memory; ``running`` is what VMs that are on may take.
    :param vms: As they were told.
    """

    name: str
    own: str
    arch: str
    enabled: bool
    reason: str
    memory: int
    available: int
    running: int
    cpus: int
    running_cpus: int
    cpu_models: frozenset[str]
    machines: frozenset[str]
    libvirt: tuple[int, ...]
    qemu: tuple[int, ...]
    networks: frozenset[str]
    links: frozenset[str]
    storage: t.Mapping[str, Storage]
    vms: tuple[Raw, ...]


def on(condition: str) -> bool:
    """Whether a VM in that condition takes memory."""
    return condition not in _OFF


def read_hosts(told: t.Mapping[str, t.Any]) -> dict[str, Host]:
    """Hosts by name, sorted.

    :raises Invalid: What was told cannot be read.
    """
    return {name: _read(f"host {name}", _host, name, told[name]) for name in sorted(told)}


def read_vm(host: str, raw: Raw) -> Vm:
    """A VM.

    :raises Invalid: What was told cannot be read.
    """
    return _read(f"a VM of host {host}", _vm, host, raw)


T = t.TypeVar("T")


def _read(what: str, read: t.Callable[[str, Raw], T], name: str, raw: Raw) -> T:
    try:
        return read(name, raw)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise Invalid(
            f"What was told of {what} is no placement facts: {exc!r}.",
            hint="Hand over host.placement of what host_info returns with gather: [placement].",
        ) from exc


def _host(name: str, raw: Raw) -> Host:
    scheduling = raw["scheduling"] or {"enabled": True}
    memory, cpus = raw["memory"], raw["cpus"]
    places = (
        Storage(str(each["path"]), str(each["shared"]), int(each["capacity"]), int(each["available"]))
        for each in raw["storage"]
    )
    return Host(
        name=name,
        own=str(raw["name"]),
        arch=str(raw["arch"]),
        enabled=bool(scheduling["enabled"]),
        reason=str(scheduling.get("reason", "")),
        memory=int(memory["total"]),
        available=int(memory["available"]),
        running=int(memory["running"]),
        cpus=int(cpus["total"]),
        running_cpus=int(cpus["running"]),
        cpu_models=frozenset(raw["cpu_models"]),
        machines=frozenset(raw["machines"]),
        libvirt=_version(raw["libvirt"]),
        qemu=_version(raw["qemu"]),
        networks=frozenset(raw["networks"]),
        links=frozenset(raw["links"]),
        storage={place.path: place for place in places},
        vms=tuple(raw["vms"]),
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(text).split(".") if part.isdigit())


def _vm(host: str, raw: Raw) -> Vm:
    return Vm(
        host=host,
        name=str(raw["name"]),
        uuid=str(raw["uuid"]),
        status=str(raw["status"]),
        condition=str(raw["condition"]),
        task_state=str(raw["task_state"]),
        locked=bool(raw["locked"]),
        persistent=bool(raw["persistent"]),
        memory=int(raw["memory"]),
        vcpus=int(raw["vcpus"]),
        arch=str(raw["arch"]),
        machine=str(raw["machine"]),
        cpu=str(raw["cpu"]),
        disks=tuple(
            Disk(
                str(disk["target"]),
                str(disk["path"]),
                int(disk["bytes"]),
                int(disk["size"]),
                bool(disk["readonly"]),
                bool(disk["network"]),
                bool(disk.get("anew")),
            )
            for disk in raw["disks"]
        ),
        networks=tuple(raw["networks"]),
        links=tuple(raw["links"]),
        devices=tuple(raw["devices"]),
        strategy=str(raw["strategy"]),
        priority=int(raw["priority"]),
        groups=tuple((str(group["name"]), str(group["policy"])) for group in raw["groups"]),
        origin=dict(raw["origin"] or {}),
        dirty_rate=int(raw.get("dirty_rate") or 0),
        evacuated=str(raw.get("evacuated") or ""),
    )
