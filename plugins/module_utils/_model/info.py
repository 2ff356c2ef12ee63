# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What vm_info tells of a VM, from what was seen: plain values for the result."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

from .._core.errors import Invalid
from . import status
from .chain import Chain, Layer
from .domain import Disk, Domain, Image, Interface
from .instance import Instance, Mark, Policy
from .rescue import DEFINITION, Record, rescued_mark
from .resize import RESIZED, resized_mark
from .resize import Record as ResizeRecord
from .shelf import SHELVED, Shelf
from .shelve import shelved_mark
from .statistics import Size
from .status import Observation

Result = dict[str, t.Any]
Sizes = t.Mapping["tuple[str, int | None]", Size]

# virDomainRunningReason, virDomainPausedReason, virDomainShutdownReason, virDomainShutoffReason,
# virDomainCrashedReason: for people.
_RUNNING = (
    "",
    "booted",
    "migrated here",
    "restored from saved memory",
    "started from a snapshot",
    "unpaused",
    "a migration was cancelled",
    "saving was cancelled",
    "woken up",
    "went on after a crash",
    "post-copy migration",
    "post-copy migration failed",
)
_PAUSED = (
    "",
    "by a user",
    "migrating",
    "saving",
    "dumping memory",
    "I/O error",
    "watchdog",
    "restored from a snapshot",
    "shutting down",
    "taking a snapshot",
    "crashed",
    "starting",
    "post-copy migration",
    "post-copy migration failed",
    "a call of libvirt failed",
)
_SHUTOFF = (
    "",
    "shut down",
    "powered off",
    "crashed",
    "migrated away",
    "memory saved",
    "failed to start or run",
    "reverted to a snapshot",
    "ended by libvirtd as it came back",
)
_REASONS: dict[int, tuple[str, ...]] = {
    status.RUNNING: _RUNNING,
    status.PAUSED: _PAUSED,
    status.SHUTDOWN: ("", "by a user"),
    status.SHUTOFF: _SHUTOFF,
    status.CRASHED: ("", "panicked"),
}


@dataclass(frozen=True)
class Traits:
    """What libvirt keeps beside a domain.

    :param snapshots: How many snapshots of its own libvirt knows; so also checkpoints.
    :param uptime: Seconds; ``None`` when it is off or cannot be known.
    """

    autostart: bool = False
    snapshots: int = 0
    checkpoints: int = 0
    uptime: float | None = None


@dataclass(frozen=True)
class Address:
    """An IP address of a network card.

    :param source: Who says so: ``lease``, ``agent`` or ``arp``.
    :param prefix: Length of the network's prefix; ``None`` when unknown.
    :param device: The card's name in the guest, if the agent told it.
    :param hostname: The name under which the guest asked for the lease.
    """

    address: str
    source: str
    prefix: int | None = None
    device: str = ""
    hostname: str = ""


def reason(state: int, code: int) -> str:
    """Why the domain is in its state, in a few words; empty when libvirt does not know."""
    words = _REASONS.get(state, ())
    return words[code] if 0 <= code < len(words) else ""


def tell_status(seen: Observation, traits: Traits) -> Result:
    """Its status and all that we remember of it."""
    state, instance = status.read(seen), seen.instance
    return {
        "status": state.status,
        "task_state": state.task_state,
        "power_state": state.power_state,
        "reason": reason(seen.state, seen.reason),
        "uptime": traits.uptime,
        "persistent": seen.persistent,
        "autostart": traits.autostart,
        "managed_save": seen.managed_save,
        "snapshots": traits.snapshots,
        "checkpoints": traits.checkpoints,
        "operation": dict(seen.running) if seen.running is not None else None,
        **_tell_instance(instance),
    }


def _tell_instance(instance: Instance) -> Result:
    lock, launch = instance.lock, instance.launch
    return {
        "locked": lock is not None,
        "lock": dict(vars(lock)) if lock else None,
        "flavor": instance.flavor.tell() if instance.flavor else None,
        "launched": {
            "at": launch.at,
            "by": launch.by,
            "image": launch.image,
            "image_id": launch.image_id,
            "image_store": launch.place,
            "image_properties": dict(launch.properties),
            "base": launch.base,
            "base_sha256": launch.base_sha256,
            "storage": launch.storage,
        }
        if launch
        else None,
        "marks": [
            {"state": mark.state, "since": mark.since, "data": {k: v for k, v in mark.data.items() if _short(mark, k)}}
            for mark in instance.marks
        ],
        "rescue": _tell_rescue(instance),
        "resize": _tell_resize(instance),
        "policy": (instance.policy or Policy()).tell(),
        "origin": dict(vars(instance.origin)) if instance.origin else None,
        "generation": instance.generation,
        "journal": instance.journal.tell() if instance.journal else None,
    }


def _short(mark: Mark, key: str) -> bool:
    """Whether a datum of a mark is for people; a resize is told by itself."""
    return key != DEFINITION and (mark.state != RESIZED or key in ("side", "peer", "power"))


def _tell_resize(instance: Instance) -> Result | None:
    mark = resized_mark(instance.marks)
    if mark is None:
        return None
    try:
        return {"since": mark.since, **ResizeRecord.load(mark).tell()}
    except Invalid:  # whoever acts on the VM is told
        return {"since": mark.since}


def _tell_rescue(instance: Instance) -> Result | None:
    mark = rescued_mark(instance.marks)
    if mark is None:
        return None
    try:
        return {"since": mark.since, **Record.load(mark).tell()}
    except Invalid:  # whoever acts on the VM is told
        return {"since": mark.since}


def tell_shelf(instance: Instance, host: str, found: Shelf | None) -> Result | None:
    """The shelf of a VM; ``None`` without one.

    :param host: That was asked; it has a VM whose mark says that it is shelved.
    :param found: What the image store tells; what only that knows is ``None`` when it was not asked.
    """
    mark = shelved_mark(instance.marks)
    if found is None and mark is None:
        return None
    told: Result = dict.fromkeys(("image", "bytes", "images", "vcpus", "memory", "networks", "volumes", "claimed_by"))
    if mark:
        data = mark.data
        told.update(set=data.get("set", ""), state=SHELVED, host=host, at=mark.since)
        told.update(image_store=data.get("place", ""), power_before=data.get("power_before", ""))
        told.update(offload=data.get("offload", ""))
    if found and (mark is None or mark.data.get("set") == found.key):
        manifest, contents = found.manifest, found.contents
        told.update(
            set=found.key,
            state=found.state,
            host=contents.host,
            at=manifest.at,
            power_before=contents.power,
            image=manifest.name,
            bytes=manifest.size,
            images=len(manifest.members),
            vcpus=contents.vcpus,
            memory=contents.memory,
            networks=[{"kind": kind, "source": source, "mac": mac} for kind, source, mac in contents.networks],
            volumes=dict(contents.volumes),
            claimed_by=asdict(found.claim) if found.claim else None,
        )
    return told


def tell_config(domain: Domain) -> Result:
    """The machine."""
    return {
        "title": domain.title,
        "description": domain.description,
        "type": domain.type,
        "arch": domain.arch,
        "machine": domain.machine,
        "emulator": domain.emulator,
        "vcpus": domain.vcpus,
        "max_vcpus": domain.max_vcpus,
        "memory": domain.memory,
        "current_memory": domain.current_memory,
        "cpu_mode": domain.cpu_mode,
        "cpu_model": domain.cpu_model,
        "firmware": dict(vars(domain.firmware)),
        "console_log": domain.console_log,
        "agent_channel": domain.agent is not None,
        "os": domain.os,
    }


def running_chain(disk: Disk, sizes: Sizes) -> Chain:
    """The chain of a disk of a running VM: libvirt tells all of it, the sizes with the statistics."""
    layers = []
    for image in (disk.image, *disk.backing):
        size = sizes.get((disk.target, image.index)) or Size("", None, None)
        layers.append(Layer(image, size.capacity, size.allocation))
    return Chain(tuple(layers), disk.chain_known)


def tell_disk(disk: Disk, chain: Chain, job: Result | None) -> Result:
    """A disk.

    :param chain: Its images; without any for an empty drive.
    :param job: The block job that runs on it.
    """
    top = chain.layers[0] if chain.layers else Layer(disk.image)
    return {
        "target": disk.target,
        "bus": disk.bus,
        "device": disk.device,
        **_tell_image(disk.image),
        "capacity": top.capacity,
        "allocation": top.allocation,
        "readonly": disk.readonly,
        "shareable": disk.shareable,
        "encrypted": disk.encrypted,
        "serial": disk.serial,
        "boot": disk.boot,
        "chain": [
            {**_tell_image(layer.image), "capacity": layer.capacity, "allocation": layer.allocation}
            for layer in chain.layers
        ],
        "chain_known": chain.known,
        "mirror": _tell_image(disk.mirror) if disk.mirror else None,
        "job": job,
    }


def _tell_image(image: Image) -> Result:
    return {"kind": image.kind, "protocol": image.protocol, "source": image.source, "format": image.format}


def tell_interface(interface: Interface, addresses: t.Iterable[Address]) -> Result:
    """A network card with its addresses, each once: the agent knows best, then leases, then the neighbour table."""
    best: dict[str, Address] = {}
    for address in addresses:
        known = best.get(address.address)
        if known is None or _RANK[address.source] < _RANK[known.source]:
            best[address.address] = address
    return {
        **vars(interface),
        "addresses": [dict(vars(address)) for address in sorted(best.values(), key=_order)],
    }


_RANK = {"agent": 0, "lease": 1, "arp": 2}


def _order(address: Address) -> tuple[int, bool, str]:
    return _RANK[address.source], ":" in address.address, address.address


def agent_addresses(raw: t.Mapping[str, t.Any]) -> dict[str, list[Address]]:
    """The addresses in virDomainGetGuestInfo's answer, by the cards' MAC addresses in lower case."""
    found: dict[str, list[Address]] = {}
    for number in range(raw.get("if.count", 0)):
        card = f"if.{number}"
        mac = str(raw.get(f"{card}.hwaddr", "")).lower()
        for index in range(raw.get(f"{card}.addr.count", 0)):
            one = f"{card}.addr.{index}"
            address = Address(
                address=str(raw.get(f"{one}.addr", "")),
                source="agent",
                prefix=raw.get(f"{one}.prefix"),
                device=str(raw.get(f"{card}.name", "")),
            )
            if mac and address.address:
                found.setdefault(mac, []).append(address)
    return found


def tell_guest(agent: str, raw: t.Mapping[str, t.Any]) -> Result:
    """What the guest's agent says.

    :param agent: ``connected``, ``silent``, ``disconnected`` or ``absent``.
    :param raw: virDomainGetGuestInfo's answer.
    """
    return {
        "agent": agent,
        "hostname": raw.get("hostname", ""),
        "os": {key[len("os.") :].replace("-", "_"): value for key, value in raw.items() if key.startswith("os.")},
        "filesystems": [_tell_filesystem(raw, f"fs.{number}") for number in range(raw.get("fs.count", 0))],
    }


def _tell_filesystem(raw: t.Mapping[str, t.Any], one: str) -> Result:
    """:param one: Its prefix in *raw*."""
    disks = [f"{one}.disk.{number}" for number in range(raw.get(f"{one}.disk.count", 0))]
    return {
        "mountpoint": raw.get(f"{one}.mountpoint", ""),
        "type": raw.get(f"{one}.fstype", ""),
        "name": raw.get(f"{one}.name", ""),
        "total": raw.get(f"{one}.total-bytes"),
        "used": raw.get(f"{one}.used-bytes"),
        "disks": [raw[f"{disk}.alias"] for disk in disks if f"{disk}.alias" in raw],
    }
