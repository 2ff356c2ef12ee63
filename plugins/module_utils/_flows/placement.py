# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Asking a host what a planner has to know that chooses hosts for VMs: few calls for many VMs."""

from __future__ import annotations

import os
import typing as t

from .._core.errors import LifecycleError
from .._core.workers import within
from .._libvirt import machine
from .._libvirt.bulk import PATIENCE
from .._libvirt.cordon import read_scheduling
from .._libvirt.inventory import Inventory
from .._libvirt.readiness import Readiness
from .._model import facts
from .._model.capacity import Capabilities, Network, Pool, Raw, Room
from .._model.facts import Mount, Sighting
from .._model.needs import Needs
from .._model.statistics import sizes
from .._task import Context
from .info import Inquiry, Sight

Result = dict[str, t.Any]


class Placement:
    """One look at a host for a planner.

    :param problems: Takes sentences about what could not be found out.
    """

    def __init__(self, context: Context, problems: list[str]) -> None:
        self.context = context
        self.host = context.host
        self.inventory = Inventory(context.host)
        self.readiness = Readiness(context.host)
        self.problems = problems

    def tell(
        self,
        vms: t.Sequence[Sighting],
        *,
        can: Capabilities,
        pools: t.Sequence[Pool],
        networks: t.Sequence[Network],
        directories: t.Sequence[str],
    ) -> Result:
        """The answer.

        :param directories: That matter beside those that disks lie in.
        """
        memory, cpus, needs = facts.taken(vms)
        homes = {pool.name: pool.path for pool in pools}
        told = [facts.tell_vm(vm, need, homes) for vm, need in zip(vms, needs)]
        node, versions = self.inventory.memory(), self.inventory.versions()
        return {
            "name": self.host.name,
            "arch": can.arch,
            "scheduling": scheduling(self.context),
            "memory": {"total": node["total"], "available": node["available"], "running": memory},
            "cpus": {"total": self.inventory.processors()["count"], "running": cpus},
            "cpu_models": self._known(self.readiness.models),
            "machines": list(can.machines),
            "libvirt": versions["libvirt"],
            "qemu": versions["hypervisor"],
            "networks": [network.name for network in networks if network.active],
            "links": sorted(self._links(networks, needs)),
            "storage": self._storage(pools, [*directories, *_homes(told)]),
            "vms": told,
        }

    def _known(self, ask: t.Callable[[], t.Iterable[str]]) -> list[str]:
        try:
            return list(ask())
        except LifecycleError as exc:
            self.problems.append(str(exc))
            return []

    def _links(self, networks: t.Sequence[Network], needs: t.Sequence[Needs]) -> set[str]:
        """Without the ends of VMs' own cards."""
        found = machine.links() if self.host.local else self._known(self.readiness.links)
        bridges = {network.bridge for network in networks if network.active and network.bridge}
        return {*found, *bridges} - {card.tap for each in needs for card in each.domain.interfaces}

    def _storage(self, pools: t.Sequence[Pool], directories: t.Iterable[str]) -> list[Result]:
        if not self.host.local:
            active = sorted((pool for pool in pools if pool.active and pool.path), key=lambda pool: pool.path)
            return [
                _tell_storage(pool.path, facts.pool_identity(pool), pool.capacity, pool.available) for pool in active
            ]
        # A server that does not answer lets everybody wait who looks at its files.
        known = within(os.path.realpath, sorted(set(directories)), seconds=PATIENCE)
        mounts = facts.storage_mounts(machine.mounts(), [path for path in known if path])
        rooms = within(self._room, mounts, seconds=PATIENCE)
        told = []
        for mount, room in zip(mounts, rooms):
            if room is None:
                self.problems.append(f"What room there is in {mount.point} could not be found out.")
            else:
                told.append(_tell_storage(mount.point, facts.identity(mount), room.capacity, room.available))
        return told

    def _room(self, mount: Mount) -> Room | None:
        return self.inventory.room(mount.point)


def scheduling(context: Context) -> Result | None:
    """Whether VMs are planned onto the host; ``None`` from elsewhere."""
    return read_scheduling().tell() if context.host.local else None


def sightings(
    inquiry: Inquiry, sights: t.Iterable[Sight], raws: t.Mapping[str, Raw], rates: t.Mapping[str, int]
) -> list[Sighting]:
    """What was seen of VMs.

    :param inquiry: That has looked at them, and has read their XML.
    :param raws: Bulk statistics with the group ``block``, by UUID.
    :param rates: What their guests change, by UUID.
    """
    return [
        Sighting(
            sight.seen,
            sight.root,
            sight.active,
            sight.guest.uuid in inquiry.flagged["autostart"],
            sizes(raws.get(sight.guest.uuid, {}), running=sight.active),
            rates.get(sight.guest.uuid),
        )
        for sight in sights
        if sight.root is not None
    ]


def _homes(vms: t.Iterable[Result]) -> set[str]:
    """The directories of disks that are files."""
    paths = {disk["path"] for vm in vms for disk in vm["disks"] if not disk["network"]}
    return {os.path.dirname(path) for path in paths if not path.startswith("/dev/")}


def _tell_storage(path: str, shared: str, capacity: int | None, available: int | None) -> Result:
    return {"path": path, "shared": shared, "capacity": capacity or 0, "available": available or 0}
