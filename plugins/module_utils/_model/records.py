# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Records of VMs on shared storage, and what stands in the way of bringing a dead host's VM up elsewhere.

The program ``kvmops-records`` of the role host_prepare writes records, in the same words.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass

from .._core.errors import Invalid, Unsupported
from . import instance as memory
from .domain import Disk, read_domain
from .instance import Instance
from .launch import GIB, MIB
from .needs import Needs, read_needs
from .status import PAUSED, RUNNING, SHUTOFF, Observation

SCHEMA = 1
# The generation of a VM that was never evacuated.
FIRST = "0"
# Where libvirt puts the variables of a VM's firmware when nobody says where.
_NVRAM = "/var/lib/libvirt/qemu/nvram"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOMBSTONE = re.compile(r"([0-9a-f-]{36})\.([0-9a-f]{1,32})\.evacuated\.json")
_STATES = {"running": RUNNING, "paused": PAUSED, "off": SHUTOFF, "suspended": SHUTOFF}
# States in which the guest's memory is somewhere.
ON = ("running", "paused")

# Every reason code, and what it means; guide_evacuate.rst tells what to do about each.
CODES: dict[str, str] = {
    "elsewhere": "The record of another host says that the VM is there.",
    "evacuated": "Another host has evacuated the VM, or is about to.",
    "uuid_taken": "A VM here has the UUID, and no evacuation put it there.",
    "name_taken": "Another VM here has the name.",
    "mac_taken": "Another VM here has the address of one of the VM's network cards.",
    "disk_missing": "A disk is not seen from here: what was on it would be lost.",
    "image_missing": "The image that the root disk would be made of anew cannot be had here.",
    "network_missing": "A network is missing or not active here.",
    "bridge_missing": "A bridge or network device is missing here.",
    "host_device": "The guest has been given a device of the dead host.",
    "unsupported": "This host does not run such VMs.",
    "boot_file_missing": "A file that the VM boots from is not seen from here.",
    "nvram": "The variables of the VM's firmware lay on the dead host, and would be lost.",
    "memory": "The VM was suspended, and its memory, which lay on the dead host, would be lost.",
    "tpm": "The state of the VM's emulated TPM lay on the dead host, and would be lost.",
}
# What may be lost when the user says so.
LOSSES = ("nvram", "memory", "tpm", "disks")
# Disks of a launch that can be made anew: what was not written by the guest is known.
_ANEW = ("root", "ephemeral", "swap")
# The drive with what the guest was told at its first boot, of which name and instance are known.
CONFIG = "config"


@dataclass(frozen=True)
class Finding:
    """What stands in the way."""

    code: str
    message: str
    way_out: str = ""


@dataclass(frozen=True)
class Loss:
    """What lay on the dead host alone.

    :param kind: One of :data:`LOSSES`.
    :param path: The file, where there is one.
    :param target: Of a disk.
    :param role: Of a disk that can be made anew, in the words of its launch; empty when it cannot be.
    """

    kind: str
    path: str = ""
    target: str = ""
    role: str = ""


@dataclass(frozen=True)
class Record:
    """What a host wrote of one of its VMs.

    :param at: Stamp of when.
    :param state: ``running``, ``paused``, ``off`` or ``suspended``.
    :param persistent: libvirt has a definition of it; else it was there for as long as it ran.
    :param generation: What the last evacuation called its definition; ``0`` when there was none.
    :param node: The host's name as libvirt tells it.
    """

    host: str
    name: str
    uuid: str
    at: str
    state: str
    autostart: bool
    persistent: bool
    generation: str
    xml: str
    node: str

    @property
    def tree(self) -> ET.Element:
        """The definition."""
        return ET.fromstring(self.xml)

    @property
    def instance(self) -> Instance:
        """What is remembered of the VM."""
        return memory.find(self.tree)

    @property
    def needs(self) -> Needs:
        """What it needs of a host."""
        return read_needs(self.tree)

    def observation(self) -> Observation:
        """The VM as it was last seen."""
        return Observation(
            name=self.name,
            uuid=self.uuid,
            state=_STATES[self.state],
            reason=0,
            managed_save=self.state == "suspended",
            persistent=self.persistent,
            instance=self.instance,
        )


@dataclass(frozen=True)
class Tombstone:
    """Says that a VM was evacuated, and that definitions of its old generation must not start.

    :param to: The host that it was brought up on, as libvirt calls it.
    :param at: Stamp of when that began.
    :param token: The generation that the VM has since.
    :param by: Who did it: ``user@node``.
    :param evidence: What proved that the host was dead.
    :param settled: The VM is defined at that host. If it is not there any more, it went its way since.
    :param lost: What it was brought up without.
    """

    to: str
    at: str
    token: str
    by: str
    evidence: str
    settled: bool = False
    lost: tuple[Loss, ...] = ()

    def tell(self) -> dict[str, t.Any]:
        """For the file, and for results."""
        return {"schema": SCHEMA, **asdict(self)}


def record_name(uuid: str) -> str:
    """The file of a record."""
    return f"{uuid}.json"


def tombstone_name(uuid: str, generation: str) -> str:
    """The file of a tombstone."""
    return f"{uuid}.{generation}.evacuated.json"


def uuid_of(name: str) -> str:
    """The VM whose record a file is; empty when it is something else."""
    uuid = name[: -len(".json")] if name.endswith(".json") else ""
    return uuid if _UUID.fullmatch(uuid) else ""


def tombstone_of(name: str) -> tuple[str, str] | None:
    """The VM and the generation whose tombstone a file is; ``None`` when it is something else."""
    found = _TOMBSTONE.fullmatch(name)
    return (found[1], found[2]) if found and _UUID.fullmatch(found[1]) else None


def read_record(told: t.Mapping[str, t.Any]) -> Record:
    """A record.

    :raises Unsupported: A newer version wrote it.
    :raises Invalid: It is none.
    """
    try:
        if int(told["schema"]) > SCHEMA:
            raise Unsupported(
                f"A record has schema {told['schema']}; this version of kvmops.lifecycle knows up to {SCHEMA}.",
                hint="Use the version of the collection that the hosts were prepared with.",
            )
        texts = {key: str(told[key]) for key in ("host", "name", "uuid", "at", "state", "generation", "xml", "node")}
        record = Record(autostart=bool(told["autostart"]), persistent=bool(told["persistent"]), **texts)
        domain = read_domain(record.tree)
    except (KeyError, TypeError, ValueError, ET.ParseError) as exc:
        raise Invalid(f"A record cannot be read: {type(exc).__name__} {exc}.") from exc
    if record.state not in _STATES or (domain.uuid, domain.name) != (record.uuid, record.name):
        raise Invalid(f"The record of VM {record.name} contradicts itself.")
    return record


def read_tombstone(told: t.Mapping[str, t.Any]) -> Tombstone:
    """A tombstone; what it does not say is empty."""
    texts = {key: str(told.get(key, "")) for key in ("to", "at", "token", "by", "evidence")}
    words = ("kind", "path", "target", "role")
    told_lost = told.get("lost")
    losses = [each for each in told_lost if isinstance(each, dict)] if isinstance(told_lost, list) else []
    lost = tuple(Loss(**{word: str(each.get(word, "")) for word in words}) for each in losses)
    return Tombstone(settled=bool(told.get("settled")), lost=lost, **texts)


@dataclass(frozen=True)
class Survivor:
    """What there is at the host that the VM is to be brought up on.

    :param name: As libvirt calls it.
    :param vms: Names of VMs here by UUID.
    :param macs: Network cards of VMs here, lower case, with the UUIDs of the VMs.
    :param networks: Active libvirt networks.
    :param links: Bridges and network devices.
    :param missing: Files and volumes of the VM that are not seen here. A disk is missing when something is that it lies
        upon.
    :param vacant: Files of disks and of the config drive that are not here, while there is the storage that the VM was
        launched on.
    :param imageless: Why the image of its root disk cannot be had here; empty when it can, or when nobody wants it.
    :param unsupported: Why it cannot run such VMs; empty when it can.
    """

    name: str
    vms: t.Mapping[str, str]
    macs: t.Mapping[str, str]
    networks: t.Collection[str]
    links: t.Collection[str]
    missing: t.Collection[str] = ()
    vacant: t.Collection[str] = ()
    imageless: str = ""
    unsupported: str = ""


def nvram_of(record: Record) -> str:
    """The file of the firmware's variables; empty without one."""
    firmware = record.needs.domain.firmware
    if firmware.kind != "uefi":
        return ""
    return firmware.nvram or f"{_NVRAM}/{record.name}_VARS.fd"


def files_of(record: Record) -> list[str]:
    """All files and block devices that have to be seen from where the VM is brought up, but disks."""
    needs = record.needs
    return [*needs.boot_files, *filter(None, [nvram_of(record)])]


def losses(record: Record, survivor: Survivor) -> list[Loss]:
    """What would be lost if the VM of *record* were brought up on *survivor*."""
    missing = [disk for disk in record.needs.domain.disks if disk.image.source in survivor.missing]
    disks = [Loss("disks", disk.image.source, disk.target, _role(record, disk, survivor)) for disk in missing]
    if any(loss.role == "root" for loss in disks):
        config = (own for own in record.instance.disks if own.role == CONFIG and own.path in survivor.vacant)
        disks += [Loss("disks", own.path, own.target, CONFIG) for own in config]
    nvram = nvram_of(record)
    return [
        *disks,
        *([Loss("nvram", nvram)] if nvram in survivor.missing else []),
        *([Loss("memory")] if record.state == "suspended" else []),
        *([Loss("tpm")] if record.needs.tpm == "emulator" else []),
    ]


def _role(record: Record, disk: Disk, survivor: Survivor) -> str:
    """What a disk was to its launch, if it can be made anew. A VM in a state of which its disks are a part, such as
    RESCUE or SHELVED, gets none."""
    known = record.instance
    apart = known.launch is None or known.flavor is None or any(mark.state != "error" for mark in known.marks)
    if apart or disk.image.kind != "file" or disk.image.source not in survivor.vacant:
        return ""
    mine = ((own.role, own.target, own.path) for own in known.disks if own.role in _ANEW)
    return next((role for role, target, path in mine if (target, path) == (disk.target, disk.image.source)), "")


def sizes_anew(instance: Instance) -> dict[str, int]:
    """Bytes that disks of a launch have, by target; 0 for a root disk that is as large as its image."""
    if instance.flavor is None:
        return {}
    ephemeral = iter(instance.flavor.ephemeral)
    sizes = {}
    for disk in instance.disks:
        if disk.role == "root":
            sizes[disk.target] = instance.flavor.root * GIB
        elif disk.role == "ephemeral":
            sizes[disk.target] = next(ephemeral, 0) * GIB
        elif disk.role == "swap":
            sizes[disk.target] = instance.flavor.swap * MIB
    return sizes


def judge(
    record: Record,
    others: t.Iterable[Record],
    tombstone: Tombstone | None,
    survivor: Survivor,
    *,
    lose: t.Collection[str] = (),
) -> list[Finding]:
    """All that stands in the way of bringing the VM of *record* up on *survivor*.

    :param others: Records of the same VM by other hosts.
    :param tombstone: Of the VM's generation, if there is one.
    :param lose: Of :data:`LOSSES`, what may be lost.
    """
    mine = tombstone is not None and tombstone.to == survivor.name
    findings = [*_clashes(record, survivor, mine=mine)]
    if tombstone and not mine:
        way = "Look there. If nothing came of it, remove the tombstone."
        findings.append(Finding("evacuated", f"VM {record.name} was evacuated to {tombstone.to} already.", way))
    for other in others:
        if other.state in ON or other.at > record.at:
            findings.append(
                Finding(
                    "elsewhere",
                    f"The record of {other.host} from {other.at} says that VM {record.name} is {other.state} there;"
                    f" that of {record.host} is from {record.at}.",
                    "See where it is, and run 'kvmops-records sync' on the host that does not have it any more.",
                )
            )
    return [*findings, *_lacks(record, survivor, lose)]


def _clashes(record: Record, survivor: Survivor, *, mine: bool) -> t.Iterator[Finding]:
    domain = record.needs.domain
    if record.uuid in survivor.vms and not mine:
        there = survivor.vms[record.uuid]
        way = "Remove that definition if the VM does not belong there."
        yield Finding("uuid_taken", f"VM {there} is on {survivor.name} already, with the same UUID.", way)
    for uuid, name in survivor.vms.items():
        if name == record.name and uuid != record.uuid:
            yield Finding("name_taken", f"{survivor.name} has another VM {name}.", "Rename one of them.")
    for card in domain.interfaces:
        owner = survivor.macs.get(card.mac, record.uuid)
        if owner != record.uuid:
            there = survivor.vms.get(owner, owner)
            yield Finding("mac_taken", f"VM {there} on {survivor.name} has the address {card.mac}.", "Change one.")


def _lacks(record: Record, survivor: Survivor, lose: t.Collection[str]) -> t.Iterator[Finding]:
    needs, name = record.needs, survivor.name
    if survivor.unsupported:
        yield Finding("unsupported", survivor.unsupported, "Evacuate it to another host.")
    lost = losses(record, survivor)
    for loss in lost:
        if loss.kind == "disks":
            yield from _without_disk(record, loss, survivor, told="disks" in lose)
    for path in needs.boot_files:
        if path in survivor.missing:
            yield Finding("boot_file_missing", f"{path}, which the VM boots from, is not on {name}.", "Put it there.")
    for card in needs.domain.interfaces:
        if card.kind == "network" and card.source not in survivor.networks:
            yield Finding("network_missing", f"Network {card.source} is not active on {name}.", "Start it there.")
        elif card.kind in ("bridge", "direct") and card.source not in survivor.links:
            yield Finding("bridge_missing", f"{name} has no {card.source} for card {card.mac}.", "Make it there.")
    for device in needs.devices:
        if not device.teamed:
            what = f"{device.kind} {device.name}".rstrip()
            yield Finding("host_device", f"The guest has the device {what} of {record.host}.", "Take it away first.")
    words = {
        "nvram": f"the variables of its firmware ({nvram_of(record)})",
        "memory": "its saved memory",
        "tpm": "the state of its TPM",
    }
    for loss in lost:
        if loss.kind in words and loss.kind not in lose:
            message = f"VM {record.name} would lose {words[loss.kind]}, which lay on {record.host}."
            yield Finding(loss.kind, message, f"Say lose: [{loss.kind}] to bring it up without.")


def _without_disk(record: Record, loss: Loss, survivor: Survivor, *, told: bool) -> t.Iterator[Finding]:
    """What stands in the way because of one disk.

    :param told: Disks may be lost.
    """
    launch = record.instance.launch
    image = launch.image if launch else ""
    if loss.role == CONFIG:
        return  # it goes with the root disk
    if not loss.role or not told:
        disk = record.needs.domain.disk(loss.target)
        what = "the guest reads there" if disk and disk.readonly else "was on it"
        way = {
            "": "Mount the storage.",
            "root": f"Mount the storage, or say lose: [disks] to have it made anew from the image {image}.",
        }.get(loss.role, "Mount the storage, or say lose: [disks] to have it made anew, empty.")
        message = f"Disk {loss.target} ({loss.path}) is not seen from {survivor.name}: what {what} would be lost."
        yield Finding("disk_missing", message, way)
    elif loss.role == "root" and survivor.imageless:
        message = f"Disk {loss.target} ({loss.path}) cannot be made anew from the image {image}: {survivor.imageless}"
        yield Finding("image_missing", message, "Put the image there, or name its store with image_store.")


def wanted_state(record: Record, start: str) -> str:
    """What the VM is to be: ``running``, ``paused`` or ``off``.

    :param start: ``recorded``, ``running`` or ``stopped``.
    """
    if start == "stopped":
        return "off"
    if start == "running":
        return "running"
    return record.state if record.state in ON else "off"
