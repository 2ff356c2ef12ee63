# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A shelf: everything of a VM that was shelved, in an image store, so that any host that reaches the store can have it.

A shelf is a set of images as a snapshot is (:mod:`.snapshot`), with the same manifest, tied to a VM by its UUID. Its
images have these roles: ``disk``; ``memory``, of a suspended VM; ``nvram``, the variables of the firmware; ``drive``, a
config drive as it is; ``domain``, the definition with our metadata. All are protected, so that none is deleted as an
ordinary image. Nova calls the image of a shelved VM ``NAME-shelved``; so is the first one here.
"""

from __future__ import annotations

import json
import typing as t
import uuid
from dataclasses import asdict, dataclass, field

from .._core.errors import Ambiguous, Invalid
from .snapshot import SET, Manifest, Stored, complete

KIND = "shelf"  # image_type of the images, and kind of the manifest
NVRAM, DRIVE, DOMAIN, MEMORY, CLAIM = "nvram", "drive", "domain", "memory", "claim"
# The property of the first image that tells whether the host has let go of the VM, and its values.
STATE = "kvmops_shelf"
SHELVED, OFFLOADED = "shelved", "offloaded"
# The property of the image with :func:`claim_id` that says whose the claim is.
CLAIMED = "kvmops_claim"
# The vm_state, as in the mark of the metadata and in the action table.
VM_STATES = {SHELVED: "shelved", OFFLOADED: "shelved_offloaded"}


@dataclass(frozen=True)
class Lease:
    """A fixed address that a libvirt network gives to a network card of the VM (``<host>`` in ``<dhcp>``).

    :param network: The network's name.
    :param xml: The element ``<host>`` as text.
    """

    network: str
    mac: str
    xml: str


@dataclass(frozen=True)
class Contents:
    """What is known of a shelved VM without reading its definition.

    :param host: That had the VM when it was shelved.
    :param power: What it was before: ``running``, ``paused``, ``stopped`` or ``suspended``.
    :param autostart: Whether it was to be started with its host.
    :param vcpus: At most.
    :param memory: MiB.
    :param arch: ``x86_64`` …; ``machine`` is the machine type and ``domain_type`` ``kvm`` or ``qemu``.
    :param firmware: ``bios`` or ``uefi``.
    :param networks: Kind (``network``, ``bridge`` …), name and MAC address of each card.
    :param leases: Its fixed addresses.
    :param volumes: Disks on network storage, which stay where they are: target and what it is.
    """

    host: str
    power: str
    autostart: bool
    vcpus: int
    memory: int
    arch: str = ""
    machine: str = ""
    domain_type: str = ""
    firmware: str = "bios"
    networks: tuple[tuple[str, str, str], ...] = ()
    leases: tuple[Lease, ...] = ()
    volumes: t.Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> dict[str, t.Any]:
        """For the manifest."""
        return asdict(self)

    @staticmethod
    def load(told: t.Mapping[str, t.Any]) -> Contents:
        """What :meth:`dump` wrote, from JSON.

        :raises Invalid: It is something else.
        """
        try:
            values = dict(told)
            values["networks"] = tuple((str(kind), str(name), str(mac)) for kind, name, mac in told["networks"])
            values["leases"] = tuple(Lease(**lease) for lease in told["leases"])
            return Contents(**values)
        except (TypeError, KeyError, ValueError, AttributeError) as exc:
            raise Invalid(f"What is known of a shelved VM cannot be read: {exc}.") from exc


@dataclass(frozen=True)
class Shelf:
    """A shelf that is whole.

    :param state: ``shelved`` while the host still has the VM, or ``offloaded``.
    :param claim: Who takes it down, if somebody does.
    """

    manifest: Manifest
    contents: Contents
    state: str
    claim: Claim | None = None

    @property
    def key(self) -> str:
        """The identifier of the set."""
        return self.manifest.set_id


@dataclass(frozen=True)
class Claim:
    """Who takes a shelf down.

    :param since: A stamp.
    """

    host: str
    since: str

    def dump(self) -> str:
        """As ASCII JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def load(text: str) -> Claim:
        """What :meth:`dump` wrote. Of a claim that cannot be read nobody knows whose it is."""
        try:
            told = json.loads(text)
            return Claim(str(told["host"]), str(told["since"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return Claim("an unknown host", "an unknown time")


def claim_id(set_id: str, attempt: int = 0) -> str:
    """The identifier of the image that says who takes a shelf down. A store has it once, so one host wins.

    :param attempt: How many were claimed and given back before, in a store that gives no identifier twice.
    """
    return str(uuid.uuid5(uuid.UUID(set_id), f"{CLAIM} {attempt}" if attempt else CLAIM))


def claims(images: t.Iterable[Stored]) -> dict[str, Claim]:
    """The claims among *images*, by the identifiers of the shelves. They are of the same kind as a shelf's images."""
    return {
        image.properties.get(SET, ""): Claim.load(image.properties[CLAIMED])
        for image in images
        if CLAIMED in image.properties
    }


def shelves(images: t.Sequence[Stored]) -> list[Shelf]:
    """The whole shelves among *images*. One that cannot be read is none, as with manifests: else it would hide all the
    others."""
    states = {image.id: image.properties.get(STATE, SHELVED) for image in images}
    claimed = claims(images)
    found = []
    for manifest in complete(images):
        if manifest.kind != KIND or manifest.shelf is None:
            continue
        try:
            contents = Contents.load(manifest.shelf)
        except Invalid:
            continue
        found.append(Shelf(manifest, contents, states[manifest.members[0].id], claimed.get(manifest.set_id)))
    return found


def pick(found: t.Iterable[Shelf], named: str) -> Shelf | None:
    """The shelf of the VM with that name or UUID.

    :raises Ambiguous: Several VMs had that name.
    """
    found = list(found)
    by_uuid = [shelf for shelf in found if shelf.manifest.vm_uuid == named.lower()]
    chosen = by_uuid or [shelf for shelf in found if shelf.manifest.vm == named]
    if len({shelf.manifest.vm_uuid for shelf in chosen}) > 1:
        raise Ambiguous(
            f"{len(chosen)} shelved VMs were called {named!r}.",
            hint="Give the UUID of one of them.",
            uuids=sorted(shelf.manifest.vm_uuid for shelf in chosen),
        )
    return max(chosen, key=lambda shelf: shelf.manifest.at, default=None)
