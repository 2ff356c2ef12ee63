# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Other sizes for a VM as values, and what is remembered until the user has confirmed or reverted them (Nova: resize,
cold migration, VERIFY_RESIZE). Elements are those of libvirt's page "Domain XML format"."""

from __future__ import annotations

import copy
import json
import os
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field, replace

from .._core.errors import Invalid, Refused, Unsupported
from .domain import Disk, Domain, read_domain
from .flavor import Flavor
from .instance import Instance, Mark, OwnDisk
from .launch import GIB, MIB
from .rescue import next_target

RESIZED = "resized"  # vm_state, and the name of the mark
ROLE = "resize"  # of files that are there for as long as the resize is not confirmed or reverted
# Which of the definitions it is: the only one, the one of the host that the VM came to, or the one it came from.
PLACE, MOVED, ORIGIN = "place", "moved", "origin"

DISK_SIZES = ("root", "ephemeral", "swap")
HINT_SHRINK = "A disk cannot shrink without losing data: ask for at least what it has."


# ---- what is wanted


@dataclass(frozen=True)
class Growth:
    """A disk that becomes larger.

    :param size: In bytes, and ``was`` before.
    :param path: Its file, and ``format`` of that.
    :param over: The file that is laid over it, so that it stays as it was until the user confirms; empty where it grows
        itself.
    """

    target: str
    size: int
    was: int
    path: str
    format: str
    over: str = ""


@dataclass(frozen=True)
class Extra:
    """A disk that is added, empty.

    :param role: ``ephemeral`` or ``swap``.
    :param size: In bytes.
    """

    role: str
    target: str
    bus: str
    path: str
    size: int


@dataclass(frozen=True)
class Reshape:
    """Other sizes, with everything decided.

    :param vcpus: And ``memory`` in MiB: what the guest gets.
    :param flavor: What is remembered as its flavor; ``None`` for a VM that others made.
    :param dropped: Disks that the VM does not get any more: an old swap disk.
    """

    vcpus: int
    memory: int
    flavor: Flavor | None = None
    grown: tuple[Growth, ...] = ()
    added: tuple[Extra, ...] = ()
    dropped: tuple[OwnDisk, ...] = ()

    @property
    def files(self) -> list[str]:
        """Those that are made for it."""
        return [*(each.over for each in self.grown if each.over), *(each.path for each in self.added)]

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def load(text: str) -> Reshape:
        """What :meth:`dump` made."""
        data = json.loads(text)
        flavor = data["flavor"]
        return Reshape(
            vcpus=data["vcpus"],
            memory=data["memory"],
            flavor=Flavor(**{**flavor, "ephemeral": tuple(flavor["ephemeral"])}) if flavor else None,
            grown=tuple(Growth(**each) for each in data["grown"]),
            added=tuple(Extra(**each) for each in data["added"]),
            dropped=tuple(OwnDisk(**each) for each in data["dropped"]),
        )


@dataclass(frozen=True)
class Asked:
    """What the task wants; ``None`` is what it does not say, which stays as it is.

    :param memory: MiB, so also ``swap``; ``root`` and ``ephemeral`` GiB.
    """

    name: str | None = None
    vcpus: int | None = None
    memory: int | None = None
    root: int | None = None
    ephemeral: tuple[int, ...] | None = None
    swap: int | None = None


def root_disk(domain: Domain) -> Disk | None:
    """The first disk."""
    return next((disk for disk in domain.disks if disk.device in ("disk", "lun")), None)


def figure(
    domain: Domain, instance: Instance, sizes: t.Mapping[str, int], asked: Asked, *, tag: str, name: str
) -> Reshape:
    """What becomes of VM *name*.

    :param domain: Its definition, with the files of volumes in the place of the volumes.
    :param sizes: Of its disks in bytes, by target.
    :param tag: Eight hexadecimal digits, for the names of new files.
    :raises Refused: A disk would shrink, or is none that can grow here.
    :raises Invalid: A size is none.
    """
    known = instance.flavor
    vcpus = asked.vcpus if asked.vcpus is not None else domain.vcpus
    memory = asked.memory if asked.memory is not None else domain.current_memory
    Flavor(vcpus=vcpus, memory=memory, root=asked.root or 0, swap=asked.swap or 0, ephemeral=asked.ephemeral or ())
    grown: list[Growth] = []
    added: list[Extra] = []
    dropped: list[OwnDisk] = []
    taken = [disk.target for disk in domain.disks]
    root = root_disk(domain)

    def grow(disk: Disk | None, what: str, size: int) -> None:
        if disk is None:
            raise Refused(f"VM {name} has no {what}.", hint="Say no size for it.")
        was = sizes.get(disk.target)
        if was is None:
            raise Refused(
                f"VM {name}: how large its {what} {disk.target} is cannot be told.", hint="Say no size for it."
            )
        if size < was:
            raise Refused(
                f"VM {name}: its {what} {disk.target} has {was / GIB:g} GiB, and {size / GIB:g} GiB are asked for.",
                hint=HINT_SHRINK,
            )
        if size > was:
            grown.append(_growth(disk, size, was, tag, name))

    def add(role: str, path: str, size: int, target: str = "") -> None:
        bus = root.bus if root else "virtio"
        target = target or next_target(taken, bus)
        taken.append(target)
        added.append(Extra(role, target, bus, path, size))

    if asked.root:
        grow(root, "root disk", asked.root * GIB)
    if known is None and (asked.ephemeral or asked.swap):
        raise Refused(
            f"VM {name} was not launched by this collection: which of its disks are for swap nobody knows.",
            hint="Say vcpus, memory and root only.",
        )
    directory = os.path.dirname(root.image.source) if root and root.image.kind == "file" else ""
    own = {role: [disk for disk in instance.disks if disk.role == role] for role in ("ephemeral", "swap")}
    if known and asked.ephemeral is not None:
        if len(asked.ephemeral) < len(known.ephemeral):
            raise Refused(
                f"VM {name} has {len(known.ephemeral)} ephemeral disks, and {len(asked.ephemeral)} are asked for.",
                hint=HINT_SHRINK,
            )
        for disk, size in zip(own["ephemeral"], asked.ephemeral):
            grow(domain.disk(disk.target), "ephemeral disk", size * GIB)
        for number, size in list(enumerate(asked.ephemeral))[len(known.ephemeral) :]:
            add("ephemeral", f"{directory}/ephemeral{number}-{tag}.qcow2", size * GIB)
    if known and asked.swap is not None and asked.swap != known.swap:
        dropped = own["swap"]
        if asked.swap:
            target = dropped[0].target if dropped else ""
            add("swap", f"{directory}/swap-{tag}.qcow2", asked.swap * MIB, target)
    if added and not directory:
        raise Refused(f"VM {name} has no root disk in a file that new disks could be laid beside.")
    flavor = known
    if known:
        flavor = replace(
            known,
            vcpus=vcpus,
            memory=memory,
            root=known.root if asked.root is None else asked.root,
            ephemeral=known.ephemeral if asked.ephemeral is None else asked.ephemeral,
            swap=known.swap if asked.swap is None else asked.swap,
            name=known.name if asked.name is None else asked.name,
        )
    return Reshape(vcpus, memory, flavor, tuple(grown), tuple(added), tuple(dropped))


def _growth(disk: Disk, size: int, was: int, tag: str, name: str) -> Growth:
    image = disk.image
    why = ""
    if image.kind != "file":
        why = f"is of the kind {image.kind}, no file"
    elif image.format not in ("qcow2", "raw"):
        why = f"has the format {image.format or 'that nobody declared'}"
    elif disk.encrypted:
        why = "is encrypted"
    elif disk.shareable or disk.readonly:
        why = "is not the VM's alone"
    if why:
        raise Refused(
            f"VM {name}: its disk {disk.target} {why}, and cannot grow here.", hint="Grow it where it is managed."
        )
    directory, file = os.path.split(image.source)
    over = os.path.join(directory, f"{os.path.splitext(file)[0]}-resize-{tag}.qcow2")
    return Growth(disk.target, size, was, image.source, image.format, over)


def changes(domain: Domain, reshape: Reshape) -> bool:
    """Whether the VM is not so already."""
    have = (domain.vcpus, domain.current_memory)
    return have != (reshape.vcpus, reshape.memory) or bool(reshape.grown or reshape.added or reshape.dropped)


def tell_sizes(domain: Domain, flavor: Flavor | None, sizes: t.Mapping[str, int]) -> dict[str, t.Any]:
    """The sizes of a VM as it is, for results and diffs; ``root`` in GiB."""
    root = root_disk(domain)
    return {
        "name": flavor.name if flavor else "",
        "vcpus": domain.vcpus,
        "memory": domain.current_memory,
        "root": round(sizes[root.target] / GIB, 3) if root and root.target in sizes else 0,
        "ephemeral": list(flavor.ephemeral) if flavor else [],
        "swap": flavor.swap if flavor else 0,
    }


def tell_after(before: t.Mapping[str, t.Any], reshape: Reshape, domain: Domain) -> dict[str, t.Any]:
    """The sizes of a VM that had *before*, as they will be."""
    told = {**before, "vcpus": reshape.vcpus, "memory": reshape.memory}
    root = root_disk(domain)
    for growth in reshape.grown:
        if root and growth.target == root.target:
            told["root"] = round(growth.size / GIB, 3)
    flavor = reshape.flavor
    if flavor:
        told.update(name=flavor.name, ephemeral=list(flavor.ephemeral), swap=flavor.swap)
    return told


# ---- the definition


def reshaped(original: ET.Element, reshape: Reshape, *, name: str) -> tuple[ET.Element, list[str]]:
    """The definition with other CPUs and memory, disks that are new and without those that go; and what the user should
    know. Disks that grow are not changed by this.

    :raises Refused: What the definition says of its parts leaves open how they become other ones.
    """
    root = copy.deepcopy(original)
    told: list[str] = []
    domain = read_domain(original)
    if domain.vcpus != reshape.vcpus:
        _set_vcpus(root, domain, reshape.vcpus, told, name)
    if (domain.memory, domain.current_memory) != (reshape.memory, reshape.memory) and (
        domain.current_memory != reshape.memory
    ):
        _set_memory(root, reshape.memory, told, name)
    devices = root.find("devices")
    if devices is None:
        raise Invalid(f"The definition of VM {name} has no devices.")
    gone = {disk.target for disk in reshape.dropped}
    model: ET.Element | None = None
    for node in devices.findall("disk"):
        target = node.find("target")
        if model is None and node.get("device", "disk") == "disk":
            model = node.find("driver")
        if target is not None and target.get("dev") in gone:
            devices.remove(node)
    for extra in reshape.added:
        last = max((index for index, each in enumerate(devices) if each.tag == "disk"), default=-1)
        devices.insert(last + 1, disk_element(extra, model))
    return root, told


def disk_element(extra: Extra, model: ET.Element | None) -> ET.Element:
    """A new disk.

    :param model: The driver of another one of the VM, whose cache it gets.
    """
    node = ET.Element("disk", {"type": "file", "device": "disk"})
    driver = {"name": "qemu", "type": "qcow2", "discard": "unmap"}
    for key in ("cache", "io"):
        if model is not None and model.get(key):
            driver[key] = model.get(key, "")
    ET.SubElement(node, "driver", driver)
    ET.SubElement(node, "source", {"file": extra.path})
    ET.SubElement(node, "target", {"dev": extra.target, "bus": extra.bus})
    return node


def _set_vcpus(root: ET.Element, domain: Domain, vcpus: int, told: list[str], name: str) -> None:
    node = root.find("vcpu")
    if node is None:
        node = ET.SubElement(root, "vcpu")
    if domain.max_vcpus > domain.vcpus and vcpus <= domain.max_vcpus:
        node.set("current", str(vcpus))  # the limit of plugging in stays
        _plug(root, vcpus)
        return
    node.attrib.pop("current", None)
    node.text = str(vcpus)
    for each in root.findall("vcpus"):  # tells of each which is plugged in
        root.remove(each)
    _fit_topology(root, vcpus, told)
    _fit_cells(root, vcpus, name)
    for tune in root.findall("cputune"):
        for tag in ("vcpupin", "vcpusched"):
            for pin in tune.findall(tag):
                left = [number for number in _numbers(pin.get("vcpu", pin.get("vcpus", ""))) if number < vcpus]
                if not left:
                    tune.remove(pin)
                elif tag == "vcpusched":
                    pin.set("vcpus", ",".join(map(str, left)))


def _plug(root: ET.Element, vcpus: int) -> None:
    """Let the first CPUs be those that are plugged in."""
    for each in root.findall("vcpus"):
        root.remove(each)
    node = root.find("vcpu")
    if node is not None:
        node.set("current", str(vcpus))


def _fit_topology(root: ET.Element, vcpus: int, told: list[str]) -> None:
    node = root.find("cpu/topology")
    if node is None:
        return
    per_socket = 1
    for part in ("dies", "clusters", "cores", "threads"):
        per_socket *= int(node.get(part, "1"))
    before = dict(node.attrib)
    if vcpus % per_socket == 0:
        node.set("sockets", str(vcpus // per_socket))
    else:
        threads = int(node.get("threads", "1"))
        threads = threads if vcpus % threads == 0 else 1
        node.set("sockets", "1")
        for part in ("dies", "clusters"):
            if node.get(part):
                node.set(part, "1")
        node.set("cores", str(vcpus // threads))
        node.set("threads", str(threads))
    if dict(node.attrib) != before:
        shape = ", ".join(f"{part} {count}" for part, count in node.attrib.items())
        told.append(f"The topology of its CPUs is fitted to their number: {shape}.")


def _cells(root: ET.Element) -> list[ET.Element]:
    return root.findall("cpu/numa/cell")


def _fit_cells(root: ET.Element, vcpus: int, name: str) -> None:
    cells = _cells(root)
    if len(cells) > 1:
        raise Refused(
            f"VM {name} has {len(cells)} NUMA cells, and which of them gets other CPUs is not said.",
            hint="Change its definition by hand (virsh edit) while it is off.",
        )
    for cell in cells:
        cell.set("cpus", f"0-{vcpus - 1}" if vcpus > 1 else "0")


def _set_memory(root: ET.Element, memory: int, told: list[str], name: str) -> None:
    cells = _cells(root)
    if len(cells) > 1:
        raise Refused(
            f"VM {name} has {len(cells)} NUMA cells, and which of them gets other memory is not said.",
            hint="Change its definition by hand (virsh edit) while it is off.",
        )
    plugged = sum(_mebibytes(node) for node in root.iterfind("devices/memory/target/size"))
    if memory - plugged < 1:
        raise Refused(
            f"VM {name} has modules of {plugged} MiB of memory, and {memory} MiB are asked for.",
            hint="Take modules away first (virsh detach-device).",
        )
    for cell in cells:
        cell.set("memory", str(memory - plugged))
        cell.set("unit", "MiB")
    for tag in ("memory", "currentMemory"):
        node = root.find(tag)
        if node is not None:
            node.set("unit", "MiB")
            node.text = str(memory)
    most = root.find("maxMemory")
    if most is not None and _mebibytes(most) < memory:
        most.set("unit", "MiB")
        most.text = str(memory)
        told.append(f"The limit for plugging in memory is raised to {memory} MiB.")


def _mebibytes(node: ET.Element) -> int:
    """As libvirt writes it: in KiB, or in the unit that the element names."""
    scale = {"KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "bytes": 1}.get(node.get("unit", "KiB"), 1 << 10)
    return int(node.text or 0) * scale // MIB


def _numbers(text: str) -> list[int]:
    """``0-2,5`` as numbers; what is taken out of a range, as ``^1``, is."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        if part.startswith("^"):
            found.discard(int(part[1:]))
            continue
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


# ---- while it runs


@dataclass(frozen=True)
class Plugging:
    """What is done to a guest that runs.

    :param vcpus: The new number; ``None`` leaves them, so also with the others.
    :param balloon: MiB that the guest gets of the memory that its definition has.
    :param module: MiB of a module that is plugged in, into the NUMA cell ``node``.
    """

    vcpus: int | None = None
    balloon: int | None = None
    module: int | None = None
    node: int = 0


def plugging(root: ET.Element, reshape: Reshape, *, name: str) -> Plugging:
    """How the running VM *name* gets other sizes.

    :param root: Its definition.
    :raises Unsupported: It cannot without a restart.
    """
    domain = read_domain(root)
    hint = "Leave out hotplug: the VM is restarted then."
    if reshape.added or reshape.dropped:
        raise Unsupported(f"VM {name} gets other disks, which a running guest does not.", hint=hint)
    vcpus = balloon = module = None
    if reshape.vcpus < domain.vcpus or reshape.memory < domain.current_memory:
        raise Unsupported(f"VM {name} would get less, and a running guest is only given more.", hint=hint)
    if reshape.vcpus > domain.max_vcpus:
        raise Unsupported(
            f"VM {name} can have {domain.max_vcpus} CPUs until its next start, and {reshape.vcpus} are asked for.",
            hint=hint,
        )
    if reshape.vcpus != domain.vcpus:
        vcpus = reshape.vcpus
    if reshape.memory > domain.memory:
        most = root.find("maxMemory")
        slots = int(most.get("slots", "0")) if most is not None else 0
        used = len(root.findall("devices/memory"))
        limit = _mebibytes(most) if most is not None else domain.memory
        if reshape.memory > limit or used >= slots or domain.current_memory != domain.memory:
            raise Unsupported(
                f"VM {name} can have {domain.memory} MiB of memory until its next start, and {reshape.memory} MiB are"
                f" asked for; {max(slots - used, 0)} places for modules are free, up to {limit} MiB.",
                hint=hint,
            )
        module = reshape.memory - domain.memory
    elif reshape.memory != domain.current_memory:
        balloon = reshape.memory
    return Plugging(vcpus, balloon, module)


def module_element(plug: Plugging) -> str:
    """The module of memory to plug in, as XML."""
    node = ET.Element("memory", {"model": "dimm"})
    target = ET.SubElement(node, "target")
    ET.SubElement(target, "size", {"unit": "MiB"}).text = str(plug.module)
    ET.SubElement(target, "node").text = str(plug.node)
    return ET.tostring(node, encoding="unicode")


# ---- what is remembered


@dataclass(frozen=True)
class Record:
    """What a VM in VERIFY_RESIZE remembers, in its mark.

    :param definition: The one before, as XML without metadata and without secrets.
    :param power: What the guest did before: ``running`` or ``stopped``.
    :param autostart: ``yes`` or ``no``: as before, also where it is off until then.
    :param flavor: The flavor before as JSON; empty when there was none.
    :param sizes: Those before as JSON, for people, and ``resized_to`` those afterwards; empty for a mere move.
    :param side: :data:`PLACE`, :data:`MOVED` or :data:`ORIGIN`.
    :param peer: The URI of the other host, and ``host`` its name; empty in place.
    :param reshape: See :class:`Reshape`, as JSON; empty for a mere move.
    :param layout: Where the disks are on either host, as JSON; empty in place.
    :param disks: Files that were the VM's own before, as JSON.
    """

    definition: str
    power: str
    autostart: str = "no"
    flavor: str = ""
    sizes: str = ""
    resized_to: str = ""
    side: str = PLACE
    peer: str = ""
    host: str = ""
    reshape: str = ""
    layout: str = ""
    disks: str = ""
    action: str = field(default="resize")

    def mark(self, since: str) -> Mark:
        """As the mark of the VM."""
        return Mark(RESIZED, since, asdict(self))

    @staticmethod
    def load(mark: Mark) -> Record:
        """What :meth:`mark` made.

        :raises Invalid: It is something else.
        """
        return mark.recall(Record, "resize")

    @property
    def shape(self) -> Reshape | None:
        """What was made other."""
        return Reshape.load(self.reshape) if self.reshape else None

    @property
    def domain(self) -> Domain:
        """The VM as it was."""
        return read_domain(ET.fromstring(self.definition))

    @property
    def own_disks(self) -> tuple[OwnDisk, ...]:
        """The files that were its own."""
        return tuple(OwnDisk(**each) for each in json.loads(self.disks)) if self.disks else ()

    @property
    def old_flavor(self) -> Flavor | None:
        """The flavor before."""
        if not self.flavor:
            return None
        told = json.loads(self.flavor)
        return Flavor(**{**told, "ephemeral": tuple(told["ephemeral"])})

    def tell(self) -> dict[str, t.Any]:
        """For results."""
        shape = self.shape
        lost = [f"what was written to {growth.target} since" for growth in shape.grown] if shape else []
        if self.side != PLACE and self.layout:
            copied = [disk["target"] for disk in json.loads(self.layout).get("disks", ()) if disk["how"] == "copied"]
            lost = sorted({*lost, *(f"what was written to {target} since" for target in copied)})
        return {
            "action": self.action,
            "side": self.side,
            "other_host": self.host,
            "other_uri": self.peer,
            "from": json.loads(self.sizes) if self.sizes else None,
            "to": json.loads(self.resized_to) if self.resized_to else None,
            "power_before": self.power,
            "revert_loses": lost,
        }


def resized_mark(marks: t.Iterable[Mark]) -> Mark | None:
    """The mark of a VM that waits to be confirmed, also where another one hides it."""
    return next((mark for mark in marks if mark.state == RESIZED), None)


def dump_flavor(flavor: Flavor | None) -> str:
    """As JSON; empty without one."""
    return json.dumps(asdict(flavor), sort_keys=True) if flavor else ""


def dump_disks(disks: t.Iterable[OwnDisk]) -> str:
    """As JSON."""
    return json.dumps([asdict(disk) for disk in disks], sort_keys=True)


def leftovers(instance: Instance) -> list[str]:
    """Files of resizes that are of no use any more."""
    mark = resized_mark(instance.marks)
    shape = Record.load(mark).shape if mark else None
    used = shape.files if shape else []
    return [disk.path for disk in instance.disks if disk.role == ROLE and disk.path not in used]


def settled_disks(disks: t.Iterable[OwnDisk], record: Record) -> tuple[OwnDisk, ...]:
    """The VM's own files when its resize is confirmed: what was added counts as launched with it; what went does not
    count."""
    shape = record.shape
    if shape is None:
        return tuple(disks)
    gone = {disk.path for disk in shape.dropped} | {growth.over for growth in shape.grown}
    kept = [disk for disk in disks if disk.path not in gone and disk.role != ROLE]
    have = {disk.path for disk in kept}
    return (*kept, *(OwnDisk(each.role, each.target, each.path) for each in shape.added if each.path not in have))
