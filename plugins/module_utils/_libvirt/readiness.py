# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What libvirt tells about a host that a VM shall be moved from or to."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from functools import cached_property

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import LifecycleError, NotFound
from .._core.workers import spread
from .._model.capacity import read_capabilities, version
from .._model.needs import Needs, read_needs
from .._model.preflight import Fit, HostFacts, Other
from .errors import code_of, doing
from .guest import Guest
from .host import Host
from .inventory import Inventory

T = t.TypeVar("T")

# What a CPU is compared by; its topology is another matter.
_CPU_PARTS = ("arch", "model", "vendor", "feature")


def _parts(number: int) -> tuple[int, ...]:
    return tuple(map(int, version(number).split(".")))


def _known(ask: t.Callable[[], T]) -> T | None:
    """What is asked, or ``None``: a host may do without a part of libvirt."""
    try:
        return ask()
    except LifecycleError:
        return None


class Readiness:
    """Looking at a host for a move. What a host can do is asked once."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.connection = host.connection
        self.inventory = Inventory(host)

    @cached_property
    def _capabilities(self) -> ET.Element:
        with doing(f"get the capabilities of {self.host.name}"):
            return ET.fromstring(self.connection.getCapabilities())

    def facts(self) -> HostFacts:
        """What matters of it, whatever the VM."""
        can = read_capabilities(self._capabilities)
        memory, processors = self.inventory.memory(), self.inventory.processors()
        vms = self._vms()
        networks, pools = _known(self.inventory.networks), _known(self.inventory.pools)
        links = _known(self.links)
        if links is not None and networks is not None:
            links |= {network.bridge for network in networks if network.active}
        with doing(f"get the versions of {self.host.name}"):
            versions = _parts(self.connection.getLibVersion()), _parts(self.connection.getVersion())
        return HostFacts(
            name=self.host.name,
            uuid=can.uuid,
            libvirt=versions[0],
            hypervisor=versions[1],
            types=can.types,
            cpus=processors["count"],
            present=_known(self.present_cpus) or 0,
            nodes=processors["nodes"],
            memory=memory["total"],
            available=memory["available"],
            promised=sum(memory for vm, memory in vms if vm.active),
            pages=_known(self.huge_pages) or {},
            networks=None if networks is None else {network.name: network.active for network in networks},
            pools=None if pools is None else {pool.name: pool.active for pool in pools},
            links=links,
            filters=_known(self.filters),
            vms=tuple(vm for vm, _memory in vms),
        )

    def _vms(self) -> list[tuple[Other, int]]:
        """All VMs, each with its memory in MiB."""
        with doing(f"list the VMs of {self.host.name}"):
            active = {
                domain.UUIDString()
                for domain in self.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            }

        def look(guest: Guest) -> tuple[Other, int] | None:
            try:
                needs = read_needs(guest.xml())
            except NotFound:
                return None
            macs = frozenset(nic.mac for nic in needs.domain.interfaces if nic.mac)
            return Other(guest.name, guest.uuid, guest.uuid in active, macs, needs.cid), needs.memory

        return [found for found in spread(look, self.host.guests()) if found]

    def present_cpus(self) -> int:
        """How many CPUs there are, on or off."""
        with doing(f"count the CPUs of {self.host.name}"):
            return int(self.connection.getCPUMap()[0])

    def links(self) -> frozenset[str]:
        """Bridges and network devices.

        :raises LifecycleError: This libvirt does not know them.
        """
        with doing(f"list the network devices of {self.host.name}"):
            names = {each.name() for each in self.connection.listAllInterfaces()}
            for device in self.connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET):
                names.add(ET.fromstring(device.XMLDesc()).findtext("capability/interface", ""))
        return frozenset(names)

    def filters(self) -> frozenset[str]:
        """Names of all network filters."""
        with doing(f"list the network filters of {self.host.name}"):
            return frozenset(each.name() for each in self.connection.listAllNWFilters())

    def huge_pages(self) -> dict[int, int]:
        """Free huge pages by their size in KiB, of all NUMA nodes."""
        root = self._capabilities
        with doing(f"look at the memory of {self.host.name}"):
            sizes = sorted({int(node.get("size", "0")) for node in root.iterfind("host/cpu/pages")})
            huge = sizes[1:]  # the smallest is the usual one
            nodes = len(root.findall("host/topology/cells/cell"))
            told = self.connection.getFreePages(huge, 0, nodes) if huge and nodes else {}
        return {size: sum(node.get(size, 0) for node in told.values()) for size in huge}

    # ---- CPU

    @cached_property
    def cpu(self) -> ET.Element:
        """The host's own CPU as libvirt describes it."""
        found = self._capabilities.find("host/cpu")
        return ET.Element("cpu") if found is None else _comparable(found)

    def models(self) -> list[str]:
        """CPU models that VMs of the usual kind can have here."""
        with doing(f"find out what VMs {self.host.name} can run"):
            root = ET.fromstring(self.connection.getDomainCapabilities())
        return [
            node.text or "" for node in root.iterfind("cpu/mode[@name='custom']/model") if node.get("usable") == "yes"
        ]

    def compared(self, cpu: str) -> str:
        """How this host's CPU compares with another's (virConnectCompareCPU): ``identical``, ``superset``,
        ``incompatible``, or ``unknown`` where libvirt cannot tell.

        :param cpu: The other's, as XML.
        """
        try:
            answer = self.connection.compareCPU(cpu, 0)
        except libvirt.libvirtError:
            return "unknown"
        words = {
            libvirt.VIR_CPU_COMPARE_IDENTICAL: "identical",
            libvirt.VIR_CPU_COMPARE_SUPERSET: "superset",
            libvirt.VIR_CPU_COMPARE_INCOMPATIBLE: "incompatible",
        }
        return words.get(answer, "unknown")

    # ---- one VM

    def fit(self, needs: Needs, source_cpu: ET.Element) -> Fit:
        """What the host answers about a VM that comes from elsewhere, all but files.

        :param source_cpu: The CPU of the host that it is on.
        """
        domain = needs.domain
        emulator, emulator_there = domain.emulator or None, True
        special = self._kind(emulator, domain.arch, domain.machine or None, domain.type)
        if special is None and self._kind(emulator, domain.arch, None, domain.type) is None:
            if self._kind(None, domain.arch, None, domain.type) is None:  # no such VMs at all, which is told elsewhere
                return Fit()
            emulator, emulator_there = None, False
            special = self._kind(None, domain.arch, domain.machine or None, domain.type)
        compatible, reason = self._compare_cpu(needs, source_cpu, emulator)
        return Fit(
            machine_known=special is not None,
            emulator_there=emulator_there,
            max_vcpus=_most(special),
            cpu_compatible=compatible,
            cpu_reason=reason,
            same_cpu=_features(source_cpu) == _features(self.cpu),
            tpms=_tpms(special),
        )

    def _kind(self, emulator: str | None, arch: str, machine: str | None, domain_type: str) -> ET.Element | None:
        """What VMs of a kind can have here; ``None`` when there are none."""
        try:
            told = self.connection.getDomainCapabilities(emulator, arch or None, machine, domain_type or None)
        except libvirt.libvirtError as exc:
            if code_of(exc) in (
                libvirt.VIR_ERR_INVALID_ARG,  # the machine, or the type
                libvirt.VIR_ERR_CONFIG_UNSUPPORTED,  # the architecture
                libvirt.VIR_ERR_SYSTEM_ERROR,  # the emulator is not there
                libvirt.VIR_ERR_INTERNAL_ERROR,  # it is, and does not answer as QEMU does
            ):
                return None
            with doing(f"find out what VMs {self.host.name} can run"):
                raise
        return ET.fromstring(told)

    def _compare_cpu(self, needs: Needs, source_cpu: ET.Element, emulator: str | None) -> tuple[bool | None, str]:
        """Whether the guest can have its CPU here, and what is lacking; ``None`` where that is no question."""
        domain = needs.domain
        if domain.cpu_mode == "host-passthrough":
            cpu = source_cpu
        elif domain.cpu_model and domain.cpu_mode == "custom":
            cpu = _comparable(ET.fromstring(needs.cpu))
        else:
            return None, ""
        try:
            answer = self.connection.compareHypervisorCPU(
                emulator,
                domain.arch,
                None,
                domain.type,
                ET.tostring(cpu, encoding="unicode"),
                libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
            )
        except libvirt.libvirtError as exc:
            text = exc.get_str2() or exc.get_error_message() or ""
            if code_of(exc) == libvirt.VIR_ERR_CPU_INCOMPATIBLE or "Unknown CPU model" in text:
                return False, text
            return None, ""
        return bool(answer > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE), ""


def _comparable(cpu: ET.Element) -> ET.Element:
    plain = ET.Element("cpu", {key: value for key, value in cpu.attrib.items() if key in ("mode", "match", "check")})
    plain.extend(node for node in cpu if node.tag in _CPU_PARTS)
    return plain


def _features(cpu: ET.Element) -> tuple[str, frozenset[str]]:
    return cpu.findtext("model", ""), frozenset(node.get("name", "") for node in cpu.iterfind("feature"))


def _most(can: ET.Element | None) -> int:
    vcpu = None if can is None else can.find("vcpu")
    return 0 if vcpu is None else int(vcpu.get("max", "0"))


def _tpms(can: ET.Element | None) -> frozenset[str] | None:
    tpm = None if can is None else can.find("devices/tpm")
    if tpm is None:
        return None
    return frozenset(node.text or "" for node in tpm.iterfind("enum[@name='backendModel']/value"))
