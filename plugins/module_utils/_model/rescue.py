# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Rescuing as values: how the definition of a rescued VM looks, what is remembered of the one before, and how that is
got back. Elements are those of libvirt's page "Domain XML format"."""

from __future__ import annotations

import copy
import os
import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, replace
from xml.parsers import expat

from .._core.errors import Invalid, Unsupported
from . import instance as memory
from .domain import Domain, read_domain
from .instance import Instance, Mark
from .launch import config_bus

RESCUED = "rescued"  # vm_state, and the name of the mark
DEFINITION = "definition"  # in that mark: too long to be shown
ROLE = "rescue"  # of files that are the rescue's own
SEED, NVRAM = "seed", "nvram"  # as targets of these: files that are not named by their disk
STABLE, CLASSIC = "stable", "classic"
# By this the rescue disk is found in the guest, below /dev/disk/by-id.
SERIAL = "kvmops-rescue"

DEVICES = ("disk", "cdrom")
BUSES = ("virtio", "scsi", "sata", "ide", "usb")
_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
_IDE_NAMES = 4

_END = "</metadata>"
_INSTANCE = f"{memory.NAMESPACE} instance"


# ---- what is remembered


@dataclass(frozen=True)
class Record:
    """What a rescue remembers, in the mark of the VM.

    :param definition: The definition before, as XML without metadata and without secrets.
    :param power: What the guest did before: ``running``, ``paused``, ``suspended`` or ``stopped``.
    :param layout: ``stable`` or ``classic``.
    :param device: What the rescue disk is: ``disk`` or ``cdrom``; so also ``bus``.
    :param image: Which image it is of, for people.
    :param image_id: Its identifier, and ``place`` its store, when it is of one.
    :param base: The base image that the rescue disk is an overlay of, and ``sha256`` the hash of its content.
    :param disk: The file of the rescue disk.
    :param seed: The file of cloud-init's data; empty without.
    :param nvram: The file of the rescue's variables of UEFI; empty without.
    """

    definition: str
    power: str
    layout: str
    device: str
    bus: str
    image: str
    image_id: str
    place: str
    base: str
    sha256: str
    disk: str
    seed: str = ""
    nvram: str = ""

    def mark(self, since: str) -> Mark:
        """As the mark of the VM."""
        return Mark(RESCUED, since, asdict(self))

    @staticmethod
    def load(mark: Mark) -> Record:
        """What :meth:`mark` made.

        :raises Invalid: It is something else.
        """
        return mark.recall(Record, "rescue")

    @property
    def files(self) -> list[str]:
        """Those that are the rescue's own."""
        return [path for path in (self.disk, self.seed, self.nvram) if path]

    @property
    def domain(self) -> Domain:
        """The VM as it was."""
        return read_domain(ET.fromstring(self.definition))

    def tell(self) -> dict[str, str]:
        """For results: without the definition."""
        told = {key: value for key, value in asdict(self).items() if key not in (DEFINITION, "power", "place")}
        return {**told, "image_store": self.place, "power_before": self.power}


def rescued_mark(marks: t.Iterable[Mark]) -> Mark | None:
    """The mark of a rescued VM, also where another one hides it."""
    return next((mark for mark in marks if mark.state == RESCUED), None)


def leftovers(instance: Instance) -> list[str]:
    """Files of rescues that are of no use any more."""
    mark = rescued_mark(instance.marks)
    used = Record.load(mark).files if mark else []
    return [disk.path for disk in instance.disks if disk.role == ROLE and disk.path not in used]


def power_of(condition: str) -> str:
    """What a guest in *condition* (see :mod:`.status`) counts as doing: one that goes down shall be off."""
    words = {"paused": "paused", "suspended": "suspended", "stopped": "stopped", "going_down": "stopped"}
    return words.get(condition, "running")


# ---- the journals


@dataclass(frozen=True)
class Began:
    """What a run has begun with.

    :param power: What the guest did before the rescue; see :class:`Record`.
    :param ran: Whether the VM, rescued or not, ran when the run began.
    :param disk: The file of the rescue disk that the run is about to make; empty when it makes none.
    """

    power: str
    ran: bool
    disk: str = ""

    def dump(self) -> dict[str, t.Any]:
        """As the data of a journal."""
        return asdict(self)

    @staticmethod
    def load(data: t.Mapping[str, t.Any]) -> Began:
        """What :meth:`dump` made.

        :raises Invalid: It is something else.
        """
        try:
            return Began(power=str(data["power"]), ran=bool(data["ran"]), disk=str(data["disk"]))
        except KeyError as exc:
            raise Invalid(
                f"The journal of a rescue in the VM's metadata cannot be read: {exc} is missing.",
                hint="Clear it with vm_status, and see whether the VM is rescued.",
            ) from exc


# ---- a definition and its metadata


def split(text: str) -> tuple[str, str]:
    """A domain's XML, in two: all but its metadata, and these without what we remember. Each is as libvirt wrote it,
    to the byte, which a tree that is written again would not be: other tools' elements would get other prefixes."""
    data = text.encode()
    spans: dict[str, list[int]] = {}
    path: list[str] = []

    def watched() -> str:
        if len(path) == 2 and path[1] == "metadata":
            return "metadata"
        return "instance" if len(path) == 3 and path[1:] == ["metadata", _INSTANCE] else ""

    def start(name: str, _attributes: t.Any) -> None:
        path.append(name)
        if watched():
            spans[watched()] = [parser.CurrentByteIndex]

    def end(_name: str) -> None:
        if watched():
            at = parser.CurrentByteIndex
            tag = re.compile(rb"</(?:[^\s>]+:)?%b\s*>" % watched().encode()).match(data, at)
            spans[watched()].append(tag.end() if tag else at)  # expat is behind an empty element already
        path.pop()

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.Parse(data, True)
    if "metadata" not in spans:
        return text, ""
    first, last = spans["metadata"]
    ours = spans.get("instance", [last, last])
    kept = data[first : ours[0]].rstrip() + data[ours[1] : last]
    left = (data[:first].rstrip() + data[last:]).decode()
    return left, kept.decode() if kept.endswith(_END.encode()) else ""


def join(definition: str, metadata: str, instance: Instance) -> str:
    """A domain's XML of the two halves of :func:`split`, and what we remember."""
    ET.register_namespace(memory.PREFIX, memory.NAMESPACE)
    node = ET.fromstring(memory.dump(instance))
    for each in node.iter():
        each.tag = f"{{{memory.NAMESPACE}}}{each.tag}"
    ours = ET.tostring(node, encoding="unicode").replace("\r", "&#13;")
    foreign = metadata.removesuffix(_END) or "<metadata>"
    before, end, after = definition.rpartition("</domain>")
    return f"{before}{foreign}{ours}{_END}{end}{after}"


def restored(definition: str, current: ET.Element) -> ET.Element:
    """The definition that a rescue remembers, with the secrets that it does not.

    :param current: The definition of the rescued VM, with secrets.
    """
    root = ET.fromstring(definition)
    for own, other in zip(root.iterfind("devices/graphics"), current.iterfind("devices/graphics")):
        if other.get("passwd"):
            own.set("passwd", other.get("passwd", ""))
    nodes = _by_target(current)
    for target, node in _by_target(root).items():
        source = node.find("source")
        cookies = nodes[target].find("source/cookies") if target in nodes else None
        if source is not None and cookies is not None:
            for old in source.findall("cookies"):
                source.remove(old)
            source.append(copy.deepcopy(cookies))
    return root


def _shape(node: ET.Element) -> tuple[t.Any, ...]:
    """What an element says, whatever the order and the layout of what is in it."""
    return node.tag, sorted(node.attrib.items()), (node.text or "").strip(), sorted(map(_shape, node))


# ---- where the rescue disk goes


def attachment(
    asked: tuple[str | None, str | None], properties: t.Mapping[str, str], root: ET.Element, *, name: str, image: str
) -> tuple[str, str]:
    """What the rescue disk is, and on which bus, in the layout ``stable`` of VM *name*: as the task says, else as the
    image's properties do (Nova: ``hw_rescue_device`` and ``hw_rescue_bus``), else like the root disk.

    :param asked: Device and bus in the task.
    :param properties: Of the image.
    :param root: The definition.
    :raises Invalid: There is no such thing.
    """
    device, bus = asked
    for word, known, value in (
        ("hw_rescue_device", DEVICES, None if device else properties.get("hw_rescue_device")),
        ("hw_rescue_bus", BUSES, None if bus else properties.get("hw_rescue_bus")),
    ):
        if value and value not in known:
            raise Invalid(
                f"Image {image} has the property {word} with the value {value!r}, which is not known here.",
                hint=f"Say {word[len('hw_rescue_') :]} in the task: {', '.join(known)}.",
                property=word,
            )
    device = device or properties.get("hw_rescue_device") or "disk"
    said = bus or properties.get("hw_rescue_bus")
    own = root_bus(root)
    machine = read_domain(root).machine
    bus = said or (own if own in BUSES else "virtio")
    if device == "cdrom" and bus == "virtio":
        if said:
            raise Invalid(f"VM {name}: there is no cdrom on the bus virtio.", hint="Say bus: scsi, sata, ide or usb.")
        bus = config_bus(machine, bus)
    if bus == "ide" and "q35" in machine:
        raise Invalid(f"VM {name} has the machine type {machine}, which has no IDE.", hint="Say bus: sata.")
    if bus == "usb" and root.find("devices/controller[@type='usb'][@model='none']") is not None:
        raise Invalid(f"VM {name} has no USB controller.", hint="Say another bus.")
    return device, bus


def root_bus(root: ET.Element) -> str:
    """The bus of the VM's first disk; empty when it has none."""
    return next((disk.bus for disk in read_domain(root).disks if disk.device in ("disk", "lun")), "")


def _by_target(root: ET.Element) -> dict[str, ET.Element]:
    return {
        target.get("dev", ""): node
        for node in root.iterfind("devices/disk")
        if (target := node.find("target")) is not None
    }


def _number(letters: str) -> int:
    """Which disk has these letters at the end of its name: 1 for ``a``, 27 for ``aa``."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number


def _letters(number: int) -> str:
    letters = ""
    while number:
        number, last = divmod(number - 1, 26)
        letters = chr(ord("a") + last) + letters
    return letters


def next_target(taken: t.Collection[str], bus: str) -> str:
    """The name of a new disk that comes after all others of its kind; the four of IDE may have a gap before.

    :raises Invalid: There is none left.
    """
    prefix = _PREFIXES[bus]
    names = [name[2:] for name in taken if name.startswith(prefix)]
    numbers = [_number(name) for name in names if name.isascii() and name.isalpha() and name.islower()]
    number = max(numbers, default=0) + 1
    if bus == "ide" and number > _IDE_NAMES:
        free = [each for each in range(1, _IDE_NAMES + 1) if each not in numbers]
        if not free:
            raise Invalid("All four places on the bus ide are taken.", hint="Say bus: sata, virtio or usb.")
        number = free[0]
    return prefix + _letters(number)


# ---- the definition of a rescued VM


@dataclass(frozen=True)
class Order:
    """A rescue with everything decided.

    :param device: What the rescue disk is, and ``bus`` where it is; both are those of the root disk in the layout
        ``classic``.
    :param disk: The file of the rescue disk, qcow2.
    :param seed: The file of cloud-init's data, an ISO image; empty without.
    :param nvram: The element ``<nvram>`` as text; empty for VMs without UEFI.
    :param drop: Targets of drives with other data for cloud-init.
    """

    layout: str
    device: str
    bus: str
    disk: str
    seed: str = ""
    nvram: str = ""
    drop: tuple[str, ...] = ()


def lay_out(original: ET.Element, order: Order, *, name: str) -> ET.Element:
    """The definition of VM *name* while it is rescued. Nothing but the rescue disk can be booted from.

    A TPM is left out: what a rescue system writes into it could seal the keys of the real one away.

    :param original: The one before.
    :raises Invalid: There is no room for the rescue disk.
    """
    root = copy.deepcopy(original)
    devices = root.find("devices")
    if devices is None:
        raise Invalid(f"The definition of VM {name} has no devices.")
    system = root.find("os")
    if system is not None:
        for tag in ("boot", "kernel", "initrd", "cmdline", "dtb", *(["nvram"] if order.nvram else [])):
            for node in system.findall(tag):
                system.remove(node)
        if order.nvram:
            system.append(ET.fromstring(order.nvram))
    for device in devices:
        for node in device.findall("boot"):
            device.remove(node)
    for node in devices.findall("tpm"):
        devices.remove(node)
    for target, node in _by_target(root).items():
        if target in order.drop:
            devices.remove(node)
    if order.layout == CLASSIC:
        _put_first(devices, _by_target(root), order, name)
    else:
        taken = list(_by_target(root))
        _insert(devices, _disk(order, next_target(taken, order.bus)))
    if order.seed:
        bus = config_bus(read_domain(root).machine, order.bus)
        _insert(devices, _cdrom(order.seed, next_target(list(_by_target(root)), bus), bus))
    if devices.find("controller[@type='scsi']") is None and devices.find("disk/target[@bus='scsi']") is not None:
        ET.SubElement(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    return root


def _put_first(devices: ET.Element, nodes: dict[str, ET.Element], order: Order, name: str) -> None:
    """The layout ``classic``: the rescue disk where the root disk was, that one next to it, and no other."""
    hard = {target: node for target, node in nodes.items() if node.get("device", "disk") in ("disk", "lun")}
    if not hard:
        raise Invalid(f"VM {name} has no disk.", hint="Say layout: stable.")
    if order.bus not in BUSES:
        raise Invalid(f"VM {name} has its root disk on the bus {order.bus}.", hint="Say layout: stable.")
    target, own = next(iter(hard.items()))
    for node in nodes.values():
        devices.remove(node)
    rescue = _disk(order, target)
    address = own.find("address")
    if address is not None:
        own.remove(address)
        rescue.append(address)
    place = own.find("target")
    if place is not None:
        place.set("dev", next_target([target], order.bus))
    _insert(devices, rescue)
    _insert(devices, own)


def _insert(devices: ET.Element, node: ET.Element) -> None:
    """Put a disk behind all others."""
    last = max((index for index, each in enumerate(devices) if each.tag == "disk"), default=-1)
    devices.insert(last + 1, node)


def _disk(order: Order, target: str) -> ET.Element:
    node = ET.Element("disk", {"type": "file", "device": order.device})
    ET.SubElement(node, "driver", {"name": "qemu", "type": "qcow2", "discard": "unmap"})
    ET.SubElement(node, "source", {"file": order.disk})
    ET.SubElement(node, "target", {"dev": target, "bus": order.bus})
    if order.device == "cdrom":
        ET.SubElement(node, "readonly")
    ET.SubElement(node, "serial").text = SERIAL
    ET.SubElement(node, "boot", {"order": "1"})
    return node


def _cdrom(path: str, target: str, bus: str) -> ET.Element:
    node = ET.Element("disk", {"type": "file", "device": "cdrom"})
    ET.SubElement(node, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(node, "source", {"file": path})
    ET.SubElement(node, "target", {"dev": target, "bus": bus})
    ET.SubElement(node, "readonly")
    return node


def demand_return(definition: str, rescue: ET.Element, original: ET.Element, *, name: str, layout: str) -> None:
    """See that from what is remembered of VM *name* its definition can be made again.

    :param definition: What is remembered.
    :param rescue: The definition of the rescued VM, and *original* the one before, both with secrets and the latter
        without metadata.
    :raises Unsupported: It cannot.
    """
    if _shape(restored(definition, rescue)) != _shape(original):
        raise Unsupported(
            f"VM {name} has secrets in its definition that it would not have again afterwards.",
            hint="Say layout: stable." if layout == CLASSIC else "Take them out of the definition (virsh edit) first.",
        )


def has_variables(root: ET.Element) -> bool:
    """Whether a VM has variables of UEFI in a file."""
    loader = root.find("os/loader")
    stateless = loader is not None and (loader.get("stateless") == "yes" or loader.get("type") == "rom")
    return read_domain(root).firmware.kind == "uefi" and not stateless


# ---- the disks of the VM itself


def needed(root: ET.Element, layout: str, drop: t.Collection[str] = ()) -> list[str]:
    """The targets of disks that must be there for the VM to start.

    :param root: Its own definition.
    :param layout: Of the rescue; empty when it is to start without.
    :param drop: Targets of those that are left out.
    """
    found = []
    for target, node in _by_target(root).items():
        source = node.find("source")
        optional = source is None or source.get("startupPolicy", "mandatory") != "mandatory"
        if target not in drop and not optional:
            found.append(target)
    if layout == CLASSIC:
        root_disk = next((disk.target for disk in read_domain(root).disks if disk.device in ("disk", "lun")), "")
        return [target for target in found if target == root_disk]
    return found


def config_drives(instance: Instance) -> tuple[str, ...]:
    """The targets of drives with the VM's own data for cloud-init."""
    return tuple(disk.target for disk in instance.disks if disk.role == "config")


def whole(domain: Domain, marks: t.Iterable[Mark]) -> Domain:
    """*domain* with all disks of the VM, also those that a rescue has left out of the definition for its time."""
    mark = rescued_mark(marks)
    if mark is None:
        return domain
    record = Record.load(mark)
    there = {disk.image.source for disk in domain.disks}
    hidden = tuple(disk for disk in record.domain.disks if disk.image.source not in there)
    return replace(domain, disks=(*domain.disks, *hidden))


def rescue_path(directory: str, tag: str, kind: str = "") -> str:
    """The file of a rescue disk, or of what belongs to it.

    :param tag: Eight hexadecimal digits.
    :param kind: Empty for the disk, or :data:`SEED`.
    """
    return os.path.join(directory, f"rescue-{tag}.{'iso' if kind == SEED else 'qcow2'}")
