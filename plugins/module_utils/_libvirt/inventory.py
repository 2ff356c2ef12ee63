# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What libvirt tells about a host itself."""

from __future__ import annotations

import os
import typing as t
import xml.etree.ElementTree as ET

try:
    import libvirt
except ImportError:  # run_query() tells the user
    libvirt = None

from .._model.capacity import Capabilities, Network, Pool, Room, read_capabilities, read_source, version
from .errors import code_of, doing
from .host import Host


class Inventory:
    """Looking at a host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.connection = host.connection

    def versions(self) -> dict[str, str]:
        """Of libvirtd, of the library that we talk to it with, and of QEMU."""
        with doing(f"get the versions of {self.host.name}"):
            return {
                "libvirt": version(self.connection.getLibVersion()),
                "library": version(libvirt.getVersion()),
                "hypervisor": version(self.connection.getVersion()),
            }

    def hypervisor(self) -> str:
        """``QEMU``, for example."""
        with doing(f"talk to {self.host.uri}"):
            return str(self.connection.getType())

    def capabilities(self) -> Capabilities:
        """virConnectGetCapabilities."""
        with doing(f"get the capabilities of {self.host.name}"):
            return read_capabilities(ET.fromstring(self.connection.getCapabilities()))

    def emulator(self) -> str:
        """The path of the QEMU that new VMs run on, if they do not say."""
        with doing(f"find out what VMs {self.host.name} can run"):
            return ET.fromstring(self.connection.getDomainCapabilities()).findtext("path", "")

    def processors(self) -> dict[str, int]:
        """Numbers of CPUs, NUMA nodes, sockets (of all nodes), cores a socket and threads a core, and MHz."""
        with doing(f"count the CPUs of {self.host.name}"):
            _model, _memory, cpus, mhz, nodes, sockets, cores, threads = self.connection.getInfo()
        return {
            "count": cpus,
            "mhz": mhz,
            "nodes": nodes,
            "sockets": nodes * sockets,
            "cores": cores,
            "threads": threads,
        }

    def memory(self) -> dict[str, int]:
        """Memory of the host in MiB: all of it, what nobody uses, and what could be had (that and the page cache)."""
        with doing(f"look at the memory of {self.host.name}"):
            told = self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        free = told.get("free", 0)
        return {
            "total": told.get("total", 0) // 1024,
            "free": free // 1024,
            "available": (free + told.get("buffers", 0) + told.get("cached", 0)) // 1024,
        }

    def pools(self) -> list[Pool]:
        """All storage pools, by name. Those that vanish meanwhile are left out."""
        with doing(f"list the storage pools of {self.host.name}"):
            found = self.connection.listAllStoragePools()
        return sorted(filter(None, map(self._pool, found)), key=lambda pool: pool.name)

    def _pool(self, pool: t.Any) -> Pool | None:
        with doing(f"look at storage pool {pool.name()} of {self.host.name}"):
            try:
                root = ET.fromstring(pool.XMLDesc())
                state, capacity, allocation, available = pool.info()
                active = state in (libvirt.VIR_STORAGE_POOL_RUNNING, libvirt.VIR_STORAGE_POOL_DEGRADED)
                return Pool(
                    name=pool.name(),
                    uuid=pool.UUIDString(),
                    type=root.get("type", ""),
                    path=root.findtext("target/path", ""),
                    active=active,
                    autostart=bool(pool.autostart()),
                    persistent=bool(pool.isPersistent()),
                    capacity=capacity if active else None,
                    allocation=allocation if active else None,
                    available=available if active else None,
                    source=read_source(root),
                )
            except libvirt.libvirtError as exc:
                if code_of(exc) == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    return None
                raise

    def networks(self) -> list[Network]:
        """All libvirt networks, by name. Those that vanish meanwhile are left out."""
        with doing(f"list the networks of {self.host.name}"):
            found = self.connection.listAllNetworks()
        return sorted(filter(None, map(self._network, found)), key=lambda network: network.name)

    def _network(self, network: t.Any) -> Network | None:
        with doing(f"look at network {network.name()} of {self.host.name}"):
            try:
                root = ET.fromstring(network.XMLDesc())
                bridge, forward = root.find("bridge"), root.find("forward")
                return Network(
                    name=network.name(),
                    uuid=network.UUIDString(),
                    bridge=bridge.get("name", "") if bridge is not None else "",
                    forward=forward.get("mode", "nat") if forward is not None else "",
                    active=bool(network.isActive()),
                    autostart=bool(network.autostart()),
                    persistent=bool(network.isPersistent()),
                )
            except libvirt.libvirtError as exc:
                if code_of(exc) == libvirt.VIR_ERR_NO_NETWORK:
                    return None
                raise

    def room(self, directory: str) -> Room | None:
        """The file system of *directory*; ``None`` when there is no such directory, or not on this machine."""
        if not self.host.local:
            return None
        try:
            found = os.statvfs(directory)
        except OSError:
            return None
        block = found.f_frsize
        used = (found.f_blocks - found.f_bfree) * block
        return Room(capacity=found.f_blocks * block, allocation=used, available=found.f_bavail * block)
