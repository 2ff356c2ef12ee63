# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a VM needs of the host that it runs on, beside disks: all that may be missing where it moves to.

Read from a domain's XML (libvirt's page "Domain XML format"); that of a running VM tells what it has got.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .domain import Domain, read_domain

_SIZES = {"KiB": 1, "K": 1, "MiB": 2**10, "M": 2**10, "GiB": 2**20, "G": 2**20}
# Addresses that every host has.
_EVERYWHERE = re.compile(r"|0\.0\.0\.0|127\..*|::|::1|localhost", re.IGNORECASE)
_COMMANDS = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
# Kinds of character devices whose path somebody wrote into the definition; those of libvirt's own directories are made
# anew wherever the VM starts.
_OWN_PATHS = ("/var/lib/libvirt/qemu/", "/run/libvirt/", "/var/run/libvirt/")


@dataclass(frozen=True)
class Device:
    """A device of the host that the guest has been given.

    :param kind: ``pci``, ``usb``, ``mdev``, ``scsi``, ``vdpa`` …
    :param name: Its address or path on the host, for people.
    :param teamed: The guest has a virtual card that steps in while this one is taken away (``<teaming>``).
    """

    kind: str
    name: str
    teamed: bool = False


@dataclass(frozen=True)
class DiskNeeds:
    """What is peculiar to a disk.

    :param cache: Of the driver; empty for the hypervisor's choice.
    :param lun: The guest talks SCSI to a device of the host.
    :param pool: The storage pool that a volume is named in.
    """

    target: str
    path: str
    device: str
    cache: str = ""
    shareable: bool = False
    readonly: bool = False
    transient: bool = False
    lun: bool = False
    pool: str = ""


@dataclass(frozen=True)
class Needs:
    """What a VM needs of a host.

    :param cpu: The element ``<cpu>`` as text; empty without one.
    :param cpu_checked: Whether libvirt sees that the guest gets it, or leaves that to whoever defined it.
    :param unmovable_cpu: What of the CPU cannot be given by another host: ``invtsc`` …
    :param pages: KiB of huge pages by the page's size in KiB; 0 is the host's default size.
    :param cpus: The highest number of a host CPU that it is pinned to; -1 when it is pinned to none.
    :param nodes: The highest number of a NUMA node of the host that it is bound to; -1 without.
    :param filesystems: Directories of the host that the guest shares.
    :param outputs: Files that the guest's consoles are written to, and sockets that QEMU makes for them.
    :param sockets: UNIX sockets and devices that consoles and cards are connected to, with a path somebody chose.
    :param boot_files: Kernel, initial RAM disk and device tree of a direct boot.
    :param firmware: Loader, and the template of its variables.
    :param listens: Addresses of displays that not every host has.
    :param tpm: ``emulator``, ``passthrough``, ``external`` …; empty without one.
    :param cid: Address of its vsock; ``None`` without one, or when libvirt chooses it.
    :param memory_files: Files or devices that modules of memory lie in.
    :param commands: It has arguments of QEMU's command line of its own.
    """

    domain: Domain
    cpu: str = ""
    cpu_checked: bool = True
    unmovable_cpu: tuple[str, ...] = ()
    pages: t.Mapping[int, int] | None = None
    cpus: int = -1
    nodes: int = -1
    disks: tuple[DiskNeeds, ...] = ()
    devices: tuple[Device, ...] = ()
    filesystems: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    boot_files: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()
    listens: tuple[str, ...] = ()
    tpm: str = ""
    cid: int | None = None
    launch_security: str = ""
    shared_memory: tuple[str, ...] = ()
    memory_files: tuple[str, ...] = ()
    accelerated_video: bool = False
    user_network: bool = False
    commands: bool = False

    @property
    def memory(self) -> int:
        """MiB that QEMU may take for the guest."""
        return self.domain.memory


def read_needs(root: ET.Element) -> Needs:
    """What the VM of a ``<domain>`` element needs."""
    domain = read_domain(root)
    cpu = root.find("cpu")
    return Needs(
        domain=domain,
        cpu="" if cpu is None else ET.tostring(cpu, encoding="unicode"),
        cpu_checked=cpu is None or cpu.get("check") != "none",
        unmovable_cpu=tuple(_unmovable_cpu(root)),
        pages=_pages(root, domain.memory),
        cpus=_highest(node.get("cpuset", "") for node in (*root.iterfind("vcpu"), *root.iterfind("cputune/*"))),
        nodes=_highest(node.get("nodeset", "") for node in root.iterfind("numatune/*")),
        disks=tuple(_disk(node) for node in root.iterfind("devices/disk")),
        devices=tuple(_devices(root)),
        filesystems=tuple(
            source.get("dir", "") or source.get("file", "") or source.get("dev", "") or source.get("socket", "")
            for source in root.iterfind("devices/filesystem/source")
        ),
        outputs=tuple(dict.fromkeys(_outputs(root))),
        sockets=tuple(dict.fromkeys(_sockets(root))),
        boot_files=tuple(text for tag in ("kernel", "initrd", "dtb") if (text := root.findtext(f"os/{tag}", ""))),
        firmware=tuple(_firmware(root)),
        listens=tuple(_listens(root)),
        tpm=next((node.get("type", "") for node in root.iterfind("devices/tpm/backend")), ""),
        cid=_cid(root),
        launch_security=next((node.get("type", "") for node in root.iterfind("launchSecurity")), ""),
        shared_memory=tuple(
            node.get("name", "") for node in root.iterfind("devices/shmem") if node.get("role") != "master"
        ),
        memory_files=tuple(
            filter(None, (node.findtext("source/path", "") for node in root.iterfind("devices/memory")))
        ),
        accelerated_video=any(
            node.get("accel3d") == "yes" for node in root.iterfind("devices/video/model/acceleration")
        ),
        user_network=any(node.get("type") == "user" for node in root.iterfind("devices/interface")),
        commands=root.find(_COMMANDS) is not None,
    )


def _unmovable_cpu(root: ET.Element) -> t.Iterator[str]:
    fixed = any(
        timer.get("name") == "tsc" and timer.get("frequency") for timer in root.iterfind("clock/timer")
    )  # a clock rate that is written down is the same on both hosts, or the VM does not start
    for feature in root.iterfind("cpu/feature"):
        if feature.get("name") == "invtsc" and feature.get("policy") in (None, "require", "force") and not fixed:
            yield "invtsc"
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("migratable") == "off":
        yield "migratable='off'"


def _pages(root: ET.Element, memory: int) -> dict[int, int]:
    found = root.find("memoryBacking/hugepages")
    if found is None:
        return {}
    page = found.find("page")
    if page is None:
        return {0: memory * 1024}
    size = int(page.get("size", "0")) * _SIZES.get(page.get("unit", "KiB"), 1)
    return {size: memory * 1024}


def _highest(sets: t.Iterable[str]) -> int:
    """The highest number in lists such as ``0-3,^2,7``."""
    return max(
        (
            int(number)
            for text in sets
            for part in text.split(",")
            if "^" not in part
            for number in part.split("-")
            if number.strip().isdigit()
        ),
        default=-1,
    )


def _disk(node: ET.Element) -> DiskNeeds:
    source, driver, target = node.find("source"), node.find("driver"), node.find("target")
    attributes = {} if source is None else source.attrib
    return DiskNeeds(
        target="" if target is None else target.get("dev", ""),
        path=attributes.get("file", "") or attributes.get("dev", ""),
        device=node.get("device", "disk"),
        cache="" if driver is None else driver.get("cache", ""),
        shareable=node.find("shareable") is not None,
        readonly=node.find("readonly") is not None,
        transient=node.find("transient") is not None,
        lun=node.get("device") == "lun",
        pool=attributes.get("pool", "") if node.get("type") == "volume" else "",
    )


def _address(source: ET.Element | None) -> str:
    """The name of a device of the host, for people."""
    if source is None:
        return ""
    address = source.find("address")
    if address is None:
        vendor, product = source.find("vendor"), source.find("product")
        parts = [source.get("dev", ""), source.get("path", ""), source.get("wwpn", "")]
        parts += [node.get("id", "") for node in (vendor, product) if node is not None]
        return " ".join(filter(None, parts))
    if address.get("uuid"):
        return address.get("uuid", "")
    if address.get("slot"):
        domain, bus, slot, function = (int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function"))
        return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
    return ":".join(value for key in ("bus", "device", "target", "unit") if (value := address.get(key)))


def _devices(root: ET.Element) -> t.Iterator[Device]:
    for node in root.iterfind("devices/hostdev"):
        teaming = node.find("teaming")
        yield Device(
            node.get("type", ""),
            _address(node.find("source")),
            teaming is not None and teaming.get("type") == "transient",
        )
    for node in root.iterfind("devices/interface"):
        source, teaming = node.find("source"), node.find("teaming")
        live = node.find("target")
        teamed = teaming is not None and teaming.get("type") == "transient"
        if node.get("type") == "hostdev":
            yield Device("pci", _address(source), teamed)
        elif node.get("type") == "vdpa":
            yield Device("vdpa", "" if source is None else source.get("dev", ""), teamed)
        elif live is not None and live.get("type") == "hostdev":
            yield Device("pci", live.get("dev", ""), teamed)
    for node in root.iterfind("devices/disk"):
        if node.get("type") in ("nvme", "vhostuser", "vhostvdpa"):
            yield Device(node.get("type", ""), _address(node.find("source")))
    for node in root.iterfind("devices/input"):
        source = node.find("source")
        if node.get("type") in ("passthrough", "evdev") and source is not None:
            yield Device("input", source.get("evdev", "") or source.get("dev", ""))
    for node in root.iterfind("devices/smartcard"):
        if node.get("mode") in ("host", "host-certificates"):
            yield Device("smartcard", node.get("mode", ""))


def _consoles(root: ET.Element) -> t.Iterator[ET.Element]:
    for tag in ("serial", "parallel", "console", "channel"):
        yield from root.iterfind(f"devices/{tag}")


def _outputs(root: ET.Element) -> t.Iterator[str]:
    for node in _consoles(root):
        source, log = node.find("source"), node.find("log")
        if node.get("type") == "file" and source is not None:
            yield source.get("path", "")
        path = "" if source is None else source.get("path", "")
        bound = node.get("type") == "unix" and source is not None and source.get("mode") == "bind"
        if bound and path and not path.startswith(_OWN_PATHS):
            yield path
        if log is not None:
            yield log.get("file", "")


def _sockets(root: ET.Element) -> t.Iterator[str]:
    for node in _consoles(root):
        source = node.find("source")
        path = "" if source is None else source.get("path", "")
        made = source is not None and source.get("mode") == "bind"  # by QEMU
        if node.get("type") in ("unix", "pipe", "dev") and path and not made and not path.startswith(_OWN_PATHS):
            yield path
    for node in root.iterfind("devices/interface"):
        source = node.find("source")
        if node.get("type") == "vhostuser" and source is not None and source.get("mode") != "server":
            yield source.get("path", "")


def _firmware(root: ET.Element) -> t.Iterator[str]:
    loader, nvram = root.find("os/loader"), root.find("os/nvram")
    if loader is not None and (loader.text or "").startswith("/"):
        yield loader.text or ""
    template = "" if nvram is None else nvram.get("template", "")
    if template:
        yield template


def _listens(root: ET.Element) -> t.Iterator[str]:
    seen = set()
    for node in root.iterfind("devices/graphics"):
        listens = node.findall("listen")
        addresses = [listen.get("address", "") for listen in listens if listen.get("type") == "address"]
        for address in addresses or ([] if listens else [node.get("listen", "")]):
            if not _EVERYWHERE.fullmatch(address) and address not in seen:
                seen.add(address)
                yield address


def _cid(root: ET.Element) -> int | None:
    node = root.find("devices/vsock/cid")
    address = None if node is None or node.get("auto") == "yes" else node.get("address")
    return int(address) if address else None
