# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a domain's XML says, as plain values (libvirt's page "Domain XML format").

The XML of a running domain tells more than its definition: the chain of every disk, ports, taps, the agent's state.
What is not there is empty or ``None`` here.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

AGENT_CHANNEL = "org.qemu.guest_agent.0"

_OSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
_UNITS = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 2**10,
    "KiB": 2**10,
    "MB": 10**6,
    "M": 2**20,
    "MiB": 2**20,
    "GB": 10**9,
    "G": 2**30,
    "GiB": 2**30,
    "TB": 10**12,
    "T": 2**40,
    "TiB": 2**40,
}
# The attribute of an interface's <source> that names what it is plugged into.
_PLUGS = {"network": "network", "bridge": "bridge", "direct": "dev", "vhostuser": "path", "vdpa": "dev"}


@dataclass(frozen=True)
class Image:
    """Where one layer of a disk lies.

    :param kind: ``file``, ``block``, ``network``, ``volume``, ``dir``, ``nvme`` or ``vhostuser``.
    :param source: The path; for ``network`` the name in the protocol; for ``volume`` POOL/VOLUME; empty without a
        medium.
    :param format: ``qcow2``, ``raw`` …; empty when it is not declared.
    :param protocol: ``rbd``, ``nbd``, ``http`` … for ``network``.
    :param index: libvirt's number of the layer in a running domain: ``vda[1]`` means the one with index 1.
    """

    kind: str
    source: str
    format: str = ""
    protocol: str = ""
    index: int | None = None

    @property
    def path(self) -> str | None:
        """The path on the host, for layers that have one."""
        return self.source if self.kind in ("file", "block", "dir") and self.source else None


@dataclass(frozen=True)
class Disk:
    """A disk, CD-ROM or floppy drive.

    :param target: Its name in libvirt: ``vda``. The guest may call it otherwise.
    :param bus: ``virtio``, ``scsi``, ``sata``, ``ide``, ``usb`` …
    :param device: ``disk``, ``cdrom``, ``floppy`` or ``lun``.
    :param image: The top layer.
    :param backing: The layers below it, the nearest first.
    :param chain_known: Whether ``backing`` is all there is; else libvirt has not looked, as the VM is off.
    :param boot: Its place in the boot order, from 1.
    :param mirror: Where a running block job copies it to.
    """

    target: str
    bus: str
    device: str
    image: Image
    backing: tuple[Image, ...] = ()
    chain_known: bool = False
    readonly: bool = False
    shareable: bool = False
    encrypted: bool = False
    serial: str = ""
    boot: int | None = None
    mirror: Image | None = None

    @property
    def empty(self) -> bool:
        """Whether it is a drive without a medium."""
        return not self.image.source


@dataclass(frozen=True)
class Interface:
    """A network card.

    :param kind: ``network``, ``bridge``, ``direct``, ``user``, ``ethernet``, ``vhostuser``, ``hostdev`` …
    :param source: The network, bridge or device that it is plugged into; empty for kinds that have none.
    :param bridge: The bridge it is on; with a libvirt network it is known only while the VM runs.
    :param tap: The device on the host's side; running domains only, as a rule.
    :param filter: Its nwfilter.
    :param up: Whether its link is up.
    """

    mac: str
    kind: str
    source: str = ""
    bridge: str = ""
    model: str = ""
    tap: str = ""
    filter: str = ""
    boot: int | None = None
    up: bool = True


@dataclass(frozen=True)
class Graphics:
    """A display server.

    :param listen: The address or, with a UNIX socket, its path.
    :param port: ``None`` while no port is assigned; so also ``tls_port`` and ``websocket``.
    """

    type: str
    listen: str = ""
    port: int | None = None
    tls_port: int | None = None
    websocket: int | None = None


@dataclass(frozen=True)
class Firmware:
    """What the machine boots with.

    :param kind: ``bios`` or ``uefi``.
    :param loader: Path of the code, once libvirt has chosen it.
    :param nvram: Path of the VM's own variable store; libvirt may choose it at the first start only.
    """

    kind: str
    loader: str = ""
    nvram: str = ""
    secure_boot: bool = False


@dataclass(frozen=True)
class Domain:
    """One domain.

    :param id: The number of the running domain; ``None`` in a definition.
    :param type: ``kvm``, ``qemu`` …
    :param vcpus: CPUs plugged in; ``max_vcpus`` is the limit of hot-plugging.
    :param memory: MiB that the guest has at boot; ``current_memory`` is what the balloon leaves it.
    :param console_log: The file on the host into which the first serial console is written.
    :param agent: Whether the guest agent has opened its channel; ``None`` without such a channel.
    :param os: libosinfo's identifier of the operating system, if the tool that made the VM left it.
    """

    name: str
    uuid: str
    title: str
    description: str
    id: int | None
    type: str
    arch: str
    machine: str
    emulator: str
    vcpus: int
    max_vcpus: int
    memory: int
    current_memory: int
    cpu_mode: str
    cpu_model: str
    firmware: Firmware
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    graphics: tuple[Graphics, ...]
    console_log: str
    agent: bool | None
    os: str

    def disk(self, target: str) -> Disk | None:
        """The disk of that name, or ``None``."""
        return next((disk for disk in self.disks if disk.target == target), None)

    def interface(self, mac: str) -> Interface | None:
        """The network card with that address, or ``None``."""
        return next((interface for interface in self.interfaces if interface.mac == mac.lower()), None)


def read_domain(root: ET.Element) -> Domain:
    """The domain of a ``<domain>`` element as libvirt writes it, live or inactive."""
    system = _child(root, "os")
    kind = _child(system, "type")
    vcpu = _child(root, "vcpu")
    most = int(vcpu.text or 1)
    memory = _mebibytes(root.find("memory"))
    current = root.find("currentMemory")
    cpu = _child(root, "cpu")
    number = root.get("id")
    return Domain(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", "").lower(),
        title=root.findtext("title", ""),
        description=root.findtext("description", ""),
        id=int(number) if number is not None else None,
        type=root.get("type", ""),
        arch=kind.get("arch", ""),
        machine=kind.get("machine", ""),
        emulator=root.findtext("devices/emulator", ""),
        vcpus=int(vcpu.get("current", most)),
        max_vcpus=most,
        memory=memory,
        current_memory=memory if current is None else _mebibytes(current),
        cpu_mode=cpu.get("mode", "custom" if cpu.find("model") is not None else ""),
        cpu_model=cpu.findtext("model", ""),
        firmware=_firmware(system),
        disks=tuple(_disk(node) for node in root.iterfind("devices/disk")),
        interfaces=tuple(_interface(node) for node in root.iterfind("devices/interface")),
        graphics=tuple(_graphics(node) for node in root.iterfind("devices/graphics")),
        console_log=_console_log(root),
        agent=_agent(root),
        os=next((node.get("id", "") for node in root.iterfind(f"metadata/{{{_OSINFO}}}libosinfo/{{{_OSINFO}}}os")), ""),
    )


_NOTHING = ET.Element("nothing")


def _child(parent: ET.Element, tag: str) -> ET.Element:
    """The child, or an empty element when there is none."""
    found = parent.find(tag)
    return _NOTHING if found is None else found


def _mebibytes(node: ET.Element | None) -> int:
    if node is None:
        return 0
    return int(node.text or 0) * _UNITS.get(node.get("unit", "KiB"), 2**10) // 2**20


def _number(text: str | None) -> int | None:
    """A port, or a place in an order; libvirt writes -1 and 0 for "none yet"."""
    value = int(text) if text else 0
    return value if value > 0 else None


def _firmware(system: ET.Element) -> Firmware:
    loader = _child(system, "loader")
    uefi = system.get("firmware") == "efi" or loader.get("type") == "pflash"
    nvram = _child(system, "nvram")
    source = nvram.find("source")
    wanted = any(
        feature.get("name") == "secure-boot" and feature.get("enabled") == "yes"
        for feature in system.iterfind("firmware/feature")
    )
    return Firmware(
        kind="uefi" if uefi else "bios",
        loader=loader.text or "",
        nvram=(nvram.text or "").strip() or (source.get("file", "") if source is not None else ""),
        secure_boot=uefi and (wanted or loader.get("secure") == "yes"),
    )


def _image(node: ET.Element, image_format: str) -> Image:
    """The layer of a ``<disk>``, ``<backingStore>`` or ``<mirror>``."""
    kind = node.get("type", "file")
    source = _child(node, "source")
    attributes = {"file": "file", "block": "dev", "dir": "dir", "network": "name", "vhostuser": "path"}
    if kind == "volume":
        place = "/".join(filter(None, (source.get("pool"), source.get("volume"))))
    else:
        place = source.get(attributes.get(kind, "file"), "")
        if kind == "network" and not place:  # NBD has a default export without a name
            host = _child(source, "host")
            place = host.get("name", "") or host.get("socket", "")
    index = source.get("index", node.get("index"))
    return Image(
        kind=kind,
        source=place,
        format=image_format,
        protocol=source.get("protocol", ""),
        index=int(index) if index else None,
    )


def _disk(node: ET.Element) -> Disk:
    target, driver = _child(node, "target"), _child(node, "driver")
    backing: list[Image] = []
    below = node.find("backingStore")
    while below is not None and len(below):
        backing.append(_image(below, _child(below, "format").get("type", "")))
        below = below.find("backingStore")
    mirror = node.find("mirror")
    return Disk(
        target=target.get("dev", ""),
        bus=target.get("bus", ""),
        device=node.get("device", "disk"),
        image=_image(node, driver.get("type", "")),
        backing=tuple(backing),
        chain_known=below is not None,  # an empty <backingStore/> ends a chain
        readonly=node.find("readonly") is not None,
        shareable=node.find("shareable") is not None,
        encrypted=next(node.iter("encryption"), None) is not None,
        serial=node.findtext("serial", ""),
        boot=_number(_child(node, "boot").get("order")),
        mirror=None if mirror is None else _image(mirror, _child(mirror, "format").get("type", "")),
    )


def _interface(node: ET.Element) -> Interface:
    kind = node.get("type", "")
    source = _child(node, "source")
    return Interface(
        mac=_child(node, "mac").get("address", "").lower(),
        kind=kind,
        source=source.get(_PLUGS.get(kind, ""), ""),
        bridge=source.get("bridge", ""),
        model=_child(node, "model").get("type", ""),
        tap=_child(node, "target").get("dev", ""),
        filter=_child(node, "filterref").get("filter", ""),
        boot=_number(_child(node, "boot").get("order")),
        up=_child(node, "link").get("state", "up") != "down",
    )


def _graphics(node: ET.Element) -> Graphics:
    listen = _child(node, "listen")
    return Graphics(
        type=node.get("type", ""),
        listen=listen.get("address", "")
        or listen.get("socket", "")
        or node.get("listen", "")
        or node.get("socket", ""),
        port=_number(node.get("port")),
        tls_port=_number(node.get("tlsPort")),
        websocket=_number(node.get("websocket")),
    )


def _consoles(root: ET.Element) -> t.Iterator[ET.Element]:
    """Consoles first: libvirt repeats the first serial port as one."""
    yield from root.iterfind("devices/console")
    yield from root.iterfind("devices/serial")


def _console_log(root: ET.Element) -> str:
    for node in _consoles(root):
        path = _child(node, "source").get("path", "") if node.get("type") == "file" else ""
        path = path or _child(node, "log").get("file", "")
        if path:
            return path
    return ""


def _agent(root: ET.Element) -> bool | None:
    for target in root.iterfind("devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            return target.get("state") == "connected"
    return None
