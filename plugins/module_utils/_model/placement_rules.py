# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What stands against a VM on a host, whatever else goes there: what the host is, what it has, what it sees."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass

from .capacity import inside
from .placement_facts import LIVE, Disk, Host, Vm

OFFLINE, START = "offline", "start"
MIB = 2**20


class Code(t.NamedTuple):
    """What a reason code means, and what helps."""

    meaning: str
    way_out: str


# Why a VM cannot be moved, or a host cannot take it. Where preflight.py has a word, it is the same.
# guide_drain_plan.rst has this table too.
CODES: dict[str, Code] = {
    # the VM
    "locked": Code("The VM is locked.", "Unlock it with vm_lock, or say override_lock: true."),
    "busy": Code("Another operation on the VM is under way.", "Plan again when it has ended."),
    "wrong_status": Code(
        "The VM is in a status from which it cannot be moved.",
        "End what it is in the midst of: unrescue it, confirm or revert its resize, or see to its error.",
    ),
    "saved_memory": Code(
        "The VM is suspended: its memory lies in a file of its host.",
        "Resume it with vm_power, or leave VMs that are off where they are.",
    ),
    "not_persistent": Code(
        "The VM is not defined: nothing is left of it when it is off.",
        "Define it with 'virsh define', or move it live.",
    ),
    "host_device": Code(
        "The VM has been given a device of the host.",
        "Detach it, or give the VM the strategy stop or leave with vm_policy.",
    ),
    "no_shared_disk": Code(
        "A disk of the VM was on the dead host only.",
        "Bring the host back, restore the disk from a backup, or rebuild the VM from its image.",
    ),
    # the host
    "host_disabled": Code("The host is out of scheduling.", "Enable it with host_schedulable."),
    "not_a_destination": Code("The host is not among those that were named.", "Name it in destinations."),
    "excluded": Code("The task says that the VM cannot go to the host.", "See why, and take it out of exclude."),
    "libvirt_too_old": Code("libvirt on the host is older than 8.0.", "Update the host."),
    "architecture_missing": Code(
        "The host does not run VMs of that architecture.", "Add a host that does to the cluster."
    ),
    "machine_missing": Code(
        "The host's QEMU does not know the machine type.",
        "Update QEMU there, or give the VM a machine type that all hosts have, while it is off.",
    ),
    "cpu_incompatible": Code(
        "The host cannot give the guest the CPU that it has.",
        "Give the VM a CPU model that all hosts have, and stop and start it; or give it the strategy cold or stop.",
    ),
    "host_passthrough": Code(
        "The guest sees its host's CPU as it is, and the other host's differs.",
        "Give the VM a CPU model, and stop and start it; or give it the strategy cold or stop.",
    ),
    "network_missing": Code(
        "The host has no such network, or it is not active.", "Define it there, and start it ('virsh net-start')."
    ),
    "bridge_missing": Code("The host has no such bridge or network device.", "Make it there."),
    "storage_missing": Code(
        "The host has no place for a disk of the VM that has to be carried.", "Make it there, or say dest_storage."
    ),
    # what is left there
    "memory_short": Code(
        "The host does not have the memory that could be had now.", "Stop VMs there, or add a host to the cluster."
    ),
    "memory_promised": Code(
        "VMs on the host would be promised more memory than the limits allow.",
        "Stop VMs, add a host to the cluster, or raise limits.memory_ratio.",
    ),
    "cpus_short": Code(
        "VMs on the host would have more CPUs than the limits allow.",
        "Stop VMs, add a host to the cluster, or raise limits.cpu_ratio.",
    ),
    "no_room": Code(
        "There is no room on the host for the disks that have to be carried.",
        "Make room there, use shared storage, or say overcommit: true to count what disks take now.",
    ),
    # other VMs
    "affinity": Code(
        "The VM has to be with others of its group, and they are elsewhere or do not all fit.",
        "Make room for the whole group, or change the group with vm_policy.",
    ),
    "anti_affinity": Code(
        "Another VM of a group that has to be apart is on the host.",
        "Add a host to the cluster, or change the group with vm_policy.",
    ),
    "name_taken": Code(
        "Another VM on the host has the name.", "Rename one of them, while it is off ('virsh domrename')."
    ),
    "runs_there": Code(
        "The VM runs on the host, and elsewhere it is there as well.",
        "Find out which is the right one: vm_migrate with state: recovered.",
    ),
    # the cluster
    "no_valid_host": Code(
        "No host takes the VM, for different reasons or because there is none.",
        "See to one of the reasons, add a host to the cluster, or give the VM the strategy stop or leave.",
    ),
    "reserve_short": Code(
        "Afterwards, not so many hosts may fail as limits.reserve_hosts wants.",
        "Add a host to the cluster, stop VMs, or lower limits.reserve_hosts.",
    ),
}

# Why a VM stays where it is, or is left alone. Nothing is wrong with it.
STAYS: dict[str, str] = {
    "off": "The VM is off, and VMs that are off are left where they are.",
    "left": "The VM's policy, or the task, says to leave it where it is.",
    "elsewhere": "The VM is on a host that answers already.",
    "evacuated": "An evacuation has brought the VM elsewhere already.",
}


class Obstacle(t.NamedTuple):
    """What stands against a VM on a host.

    :param code: Of :data:`CODES`, or one that the user has found.
    :param words: A sentence without its point.
    """

    code: str
    words: str


@dataclass(frozen=True)
class Way:
    """How a VM gets to a host.

    :param carried: For each disk that has to be carried, the place there that takes it and the disk.
    :param older: Whether QEMU is older there: it does not promise that it can take the VM.
    """

    carried: tuple[tuple[str, Disk], ...] = ()
    older: bool = False

    @property
    def shared(self) -> bool:
        """Whether nothing has to be carried but the guest itself."""
        return not self.carried

    @property
    def bytes(self) -> int:
        """What the disks take that have to be carried."""
        return sum(disk.bytes for _place, disk in self.carried)

    @property
    def badness(self) -> tuple[bool, int]:
        """The less, the better is the host."""
        return self.older, len(self.carried)


class Rules:
    """What may go where.

    :param hosts: By name.
    :param dest_storage: The directory at destinations that takes disks which are carried; empty for where they are.
    :param shared_storage: Files and directories that all hosts see.
    """

    def __init__(
        self, hosts: t.Mapping[str, Host], *, dest_storage: str = "", shared_storage: t.Sequence[str] = ()
    ) -> None:
        self.hosts = hosts
        self.dest_storage = dest_storage
        self.shared_storage = tuple(shared_storage)
        self._mounts = {path for host in hosts.values() for path in host.storage}
        self._covers: dict[str, tuple[str, ...]] = {}
        self._known: dict[tuple[t.Hashable, str], Way | Obstacle] = {}
        self._kinds: dict[tuple[str, str], t.Hashable] = {}

    def kind(self, vm: Vm, how: str) -> t.Hashable:
        """Equal for VMs for which all hosts are alike."""
        key = (vm.uuid, how)
        if key not in self._kinds:
            disks = tuple(
                (self.cover(disk.path), disk.readonly, disk.network, disk.device, disk.anew, self._said(disk))
                for disk in vm.disks
            )
            self._kinds[key] = (vm.host, how, vm.arch, vm.machine, vm.cpu, vm.networks, vm.links, disks)
        return self._kinds[key]

    def way(self, vm: Vm, how: str, host: Host) -> Way | Obstacle:
        """How a VM gets to a host, or why it does not.

        :param how: :data:`LIVE`, ``cold``, :data:`OFFLINE`, or :data:`START` from what is on shared storage.
        """
        key = (self.kind(vm, how), host.name)
        if key not in self._known:
            self._known[key] = self._against(vm, how, host) or self._carry(vm, host)
        found = self._known[key]
        if isinstance(found, Obstacle) or found.shared:
            return found
        # The same places, for the disks of this one.
        places = iter(place for place, _disk in found.carried)
        mine = [disk for disk in vm.disks if not self._seen(vm, disk, host)]
        return Way(tuple(zip(places, mine)), found.older)

    def cover(self, path: str) -> tuple[str, ...]:
        """Those of all hosts' places that a file is in, the nearest first."""
        directory = os.path.dirname(path)
        if directory not in self._covers:
            found, parent = [], directory
            while parent.startswith("/"):
                if parent in self._mounts:
                    found.append(parent)
                if parent == "/":
                    break
                parent = os.path.dirname(parent)
            self._covers[directory] = tuple(found)
        return self._covers[directory]

    def _said(self, disk: Disk) -> bool:
        return any(inside(disk.path, place) or disk.target == place for place in self.shared_storage)

    def place(self, host: Host, path: str) -> str:
        """The host's place that a file is in; empty when it has none."""
        return next((place for place in self.cover(path) if place in host.storage), "")

    def _against(self, vm: Vm, how: str, host: Host) -> Obstacle | None:
        source = self.hosts.get(vm.host)
        if host.libvirt and host.libvirt < (8, 0):
            return Obstacle("libvirt_too_old", f"{host.name} has libvirt {'.'.join(map(str, host.libvirt))}")
        native = (vm.arch in (host.arch, "")) or (vm.arch, host.arch) == ("i686", "x86_64")
        if not native and not (source and source.arch == host.arch):
            return Obstacle("architecture_missing", f"{host.name} does not run VMs of the architecture {vm.arch}")
        if native and vm.arch == host.arch and vm.machine and host.machines and vm.machine not in host.machines:
            return Obstacle("machine_missing", f"{host.name} does not know the machine type {vm.machine}")
        if how == LIVE and vm.cpu == "host-passthrough" and source and source.cpu_models != host.cpu_models:
            return Obstacle("host_passthrough", f"{host.name} has another CPU than {source.name}")
        named = vm.cpu not in ("", "host-passthrough", "host-model")
        if named and host.cpu_models and vm.cpu not in host.cpu_models:
            return Obstacle("cpu_incompatible", f"{host.name} does not offer the CPU model {vm.cpu}")
        for network in vm.networks:
            if network not in host.networks:
                return Obstacle("network_missing", f"{host.name} has no active network {network}")
        for link in vm.links:
            if link not in host.links:
                return Obstacle("bridge_missing", f"{host.name} has no bridge or device {link}")
        return None

    def _carry(self, vm: Vm, host: Host) -> Way | Obstacle:
        source = self.hosts.get(vm.host)
        older = bool(source and host.qemu and source.qemu and host.qemu < source.qemu)
        carried: list[tuple[str, Disk]] = []
        for disk in vm.disks:
            if self._seen(vm, disk, host):
                continue
            if source is None and not disk.anew:
                return Obstacle("no_shared_disk", f"{host.name} does not see all its disks")
            place = self.place(host, (self.dest_storage and f"{self.dest_storage}/disk") or disk.path)
            if not place:
                return Obstacle("storage_missing", f"{host.name} has no place for all its disks")
            carried.append((place, disk))
        return Way(tuple(carried), older)

    def _seen(self, vm: Vm, disk: Disk, host: Host) -> bool:
        """Whether a host sees a disk where it is. Of a device only the hosts themselves know."""
        if disk.network or self._said(disk):
            return True
        source = self.hosts.get(vm.host)
        if disk.device:
            return source is not None
        there = host.storage.get(self.place(host, disk.path))
        if there is None or not there.shared:
            return False
        here = source.storage.get(self.place(source, disk.path)) if source else there
        return here is not None and (here.path, here.shared) == (there.path, there.shared)
