# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Bringing back a VM from its shelf to a host that does not have it (Nova: unshelve of an offloaded server).

The shelf stays whole until the VM has all its data, and goes last. Until the VM has run, whatever fails is taken back,
and the host is as it was. From then on nothing is: what its guest has written counts, and a later run goes on.
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field, replace
from functools import partial

from .._core.clock import stamp
from .._core.errors import Busy, Invalid, LifecycleError, NotFound, Refused, Unreachable, Unsupported
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images.base import ACTIVE, Image
from .._images.formats import inspect_image
from .._libvirt.backup import Backup
from .._libvirt.bases import Base, Source
from .._libvirt.chains import Chains
from .._libvirt.definition import Below, Definition
from .._libvirt.files import PART
from .._libvirt.host import Platform
from .._libvirt.inventory import Inventory
from .._libvirt.launcher import remove_files
from .._libvirt.leases import Leases
from .._libvirt.restore import Restorer
from .._model import names, removal, shelf, snapshot
from .._model import unshelve as model
from .._model.actions import demand
from .._model.domain import Domain
from .._model.domain import Image as DiskImage
from .._model.instance import Instance, Mark, OwnDisk
from .._model.shelf import Claim, Contents, Shelf
from .._model.snapshot import Member
from .._model.status import BLOCKED, PAUSED, RUNNING, SHUTOFF, SHUTOFF_SHUTDOWN
from .._model.unshelve import COPIED, INSTANT, Began, Piece
from .._task import Context, Subject
from .pulling import Damaged, Pulling
from .shelves import (
    UNSHELVE,
    claim_of,
    drop,
    ids_of,
    image_of,
    put_claim,
    read,
    release,
    shelf_of,
    sockets_of,
    told,
    withdraw,
)
from .sources import from_image

_OFFLOADED = shelf.VM_STATES[shelf.OFFLOADED]
# Where the kernel shows bridges and network cards.
_CARDS = "/sys/class/net"
# Where libvirt keeps the managed save images of qemu:///system.
_SAVES = "/var/lib/libvirt/qemu/save"


def unshelve(context: Context, vm: Subject) -> Plan:
    """Bring a VM back to this host, or go on where a run that died has begun."""
    if not context.host.local:
        raise Unsupported(
            f"VM {vm.name} is unshelved on its host itself, not through {context.host.uri}.",
            hint="Run the task on the KVM host, with the default uri.",
        )
    # The task looks twice, and what counts is when it began.
    began_at = context.once(f"unshelve {vm.name}", context.clock.monotonic)
    if vm.guest is None:
        return _Work(context, vm, began_at).fresh(None)
    guest, seen, state = vm.there()
    demand(UNSHELVE, replace(state, running="") if seen.running is None else state, name=guest.name)
    journal = seen.instance.journal
    if journal is None or journal.action != UNSHELVE:
        raise Refused(
            f"VM {guest.name} is {state.status} and yet on {context.host.name}, and nothing is known of who brings it"
            " back.",
            hint="Clear its state with vm_status, and see whether its disks are what they should be.",
            status=state.status,
        )
    began = Began.load(journal.data)
    work = _Work(context, vm, began_at)
    return work.fresh(began) if journal.step in model.EARLY else work.go_on(began, journal)


@dataclass(frozen=True)
class _Kept:
    """What the store has of the VM.

    :param definition: Of the VM, as it was stored.
    :param sources: The images of the disks, by target; ``images`` what the store tells of them, by identifier.
    """

    shelf: Shelf
    definition: bytes
    sources: t.Mapping[str, Source]
    images: t.Mapping[str, Image]

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self.shelf.manifest.vm

    @property
    def contents(self) -> Contents:
        """What is known of it beside the definition."""
        return self.shelf.contents

    def of_role(self, role: str) -> list[Member]:
        """The images of that role."""
        return [member for member in self.shelf.manifest.members if member.role == role]


@dataclass
class _Order:
    """What becomes of the VM here.

    :param drives: The files of drives that come as they are, by target.
    :param old: The VM's own directory before, and ``new`` from now on; empty where it has none.
    """

    definition: Definition
    kind: Platform
    began: Began
    drives: dict[str, str] = field(default_factory=dict)
    old: str = ""
    new: str = ""


class _Work:
    """One unshelve of one VM.

    :param began_at: When the task began with it, by the monotonic clock.
    """

    def __init__(self, context: Context, vm: Subject, began_at: float) -> None:
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.began_at = began_at
        self.restorer = Restorer(context.host)
        self.leases = Leases(context.host)
        self.warnings: list[str] = []
        # Whether the guest may have written something; and whether it was another run that let it.
        self.ran = self.ran_before = False
        self.claimed = False
        self.added: list[shelf.Lease] = []
        self._kept: _Kept | None = None
        self._order: _Order | None = None
        self._began: Began | None = None

    # ---- the plan

    def fresh(self, left: Began | None) -> Plan:
        """From the beginning.

        :param left: What a run that died before the VM could run has set out to do: that is taken back first.
        """
        kept = self._look()
        self._see_offloaded(kept.shelf)
        self._see_claim(kept.shelf)
        order = self._order = self._arrange(kept)
        began = self._began = order.began
        self._see_files(order, left)
        if began.power != "stopped":
            self._see_capacity(kept, order.kind)
        self._see_room(kept, began)
        steps = [self._step("define", lambda: self.define(left))]
        if began.start == INSTANT:
            steps += [self._step("prepare", self.prepare), self._step("start", self.start)]
            waits = self.ask["wait_for"] == "pulled"
            steps.append(self._step("pull", self.pull) if waits else self._step("begin_pull", self.begin_pull))
        else:
            waits = True
            steps.append(self._step("copy", self.copy))
            if began.power != "stopped":
                steps.append(self._step("start", self.start))
        if waits:
            steps += [self._step("settle", self.settle), self._step("drop", self.drop)]
        self.vm.journal = Journal.begin(UNSHELVE, self.context.clock.now(), **began.dump())
        return Plan(
            before=told(None, kept.shelf.manifest.name),
            after={**_reached(began.power, done=waits), "shelf": "" if waits else kept.shelf.manifest.name},
            steps=steps,
            action=UNSHELVE,
            journaled=True,
            unfinished=not waits,
            figures={
                "set": kept.shelf.key,
                "start": began.start,
                "files": {piece.target: piece.path for piece in began.disks},
                **({"volumes": dict(kept.contents.volumes)} if kept.contents.volumes else {}),
            },
            warnings=self.warnings,
        )

    def go_on(self, began: Began, journal: Journal) -> Plan:
        """From where a run was that died or did not wait. The guest may have run."""
        guest, _seen, state = self.vm.there()
        self._see_store(began)
        self.ran = self.ran_before = True
        instant, off = began.start == INSTANT, not guest.active()
        steps = []
        if journal.step in ("start", "begin_pull", "pull"):
            self._kept = self._look()
            if instant and off and guest.state() == (SHUTOFF, SHUTOFF_SHUTDOWN):
                began = replace(began, power="down")
            if journal.step == "start" or (instant and off):
                steps.append(self._step("start", self.start))
            if instant:
                steps.append(self._step("pull", self.pull))
        if journal.step != "drop":
            steps.append(self._step("settle", self.settle))
        steps.append(self._step("drop", self.drop))
        self._began = began
        self.vm.journal = replace(journal, data=began.dump())
        return Plan(
            before=told(state, began.set_id),
            after={**_reached(began.power, done=True), "shelf": ""},
            steps=steps,
            action=UNSHELVE,
            journaled=True,
            figures={"set": began.set_id, "files": {piece.target: piece.path for piece in began.disks}},
        )

    def _step(self, name: str, do: t.Callable[[], t.Mapping[str, t.Any] | None]) -> Step:
        """A step after whose failure all is taken back, unless the guest may have written something by then."""

        def done_or_undone() -> t.Mapping[str, t.Any] | None:
            try:
                return do()
            except BaseException as exc:
                # What a guest wrote that this very task has started on damaged data is worth nothing.
                if not self.ran or (isinstance(exc, Damaged) and not self.ran_before):
                    self._take_back(exc)
                raise

        return Step(name, done_or_undone)

    def _demand(self) -> tuple[_Kept, Began]:
        if self._kept is None or self._began is None:
            raise NotFound(f"There is no shelf of VM {self.vm.name}.")
        return self._kept, self._began

    def _demand_began(self) -> Began:
        if self._began is None:
            raise NotFound(f"There is no unshelve of VM {self.vm.name}.")
        return self._began

    def _demand_order(self) -> _Order:
        if self._order is None:
            raise NotFound(f"There is no shelf of VM {self.vm.name}.")
        return self._order

    # ---- the shelf

    def _look(self) -> _Kept:
        """The shelf, whole.

        :raises NotFound: There is none; or an image of it is gone, or one that it builds upon.
        :raises Invalid: An image of it is damaged.
        """
        found = shelf_of(self.context, self.vm)
        if found is None:
            raise self._missing()
        kept = self.context.once(f"unshelve {found.key}", lambda: self._read(found))
        self._kept = replace(kept, shelf=found)
        return self._kept

    def _read(self, found: Shelf) -> _Kept:
        sources, images = {}, {}
        definition = b""
        for member in found.manifest.members:
            if member.role == shelf.DOMAIN:
                definition = read(self.context, member)
                continue
            image = image_of(self.context, member)
            if member.role == "disk":
                source = from_image(self.context.store, image).source
                sources[member.target] = replace(source, digests={**source.digests, "sha256": member.sha256})
                images[image.id] = image
        return _Kept(found, definition, sources, images)

    def _missing(self) -> LifecycleError:
        """Why there is no shelf that is whole."""
        store, name = self.context.store, self.vm.name
        images = store.find(properties={"image_type": shelf.KIND})
        for manifest in snapshot.manifests(images):
            if name not in (manifest.vm, manifest.vm_uuid):
                continue
            for member in manifest.members:
                try:
                    image_of(self.context, member)
                except LifecycleError as exc:
                    exc.hint = f"So the shelf of VM {manifest.vm} is not whole. {exc.hint}".rstrip()
                    return exc
        for image in images:
            if image.properties.get(snapshot.ROLE) == shelf.DOMAIN and image.properties.get(snapshot.SET):
                lost = self._headless(image)
                if lost is not None:
                    return lost
        return NotFound(
            f"There is no VM {name!r} on {self.context.host.name}, and no shelf of one in {store.place}.",
            hint="vm_info with image_store tells which VMs are shelved there.",
        )

    def _headless(self, image: Image) -> LifecycleError | None:
        """What is wrong with a shelf whose first image, which tells what is in it, is not whole.

        :param image: The definition in it.
        """
        store, name = self.context.store, self.vm.name
        with store.open(image) as content:
            domain = Definition(b"".join(bytes(block) for block in content)).domain
        if name not in (domain.name, domain.uuid):
            return None
        where = []
        for disk in domain.disks:
            image_id = snapshot.image_id(image.properties[snapshot.SET], "disk", disk.target)
            found = store.get(image_id)
            if found is None or found.status != ACTIVE:
                where.append(f"{disk.target} ({found.where if found else image_id})")
        return Invalid(
            f"The shelf of VM {domain.name} in {store.place} is not whole: damaged or gone is its image of"
            f" {', '.join(where) or 'its first disk'}.",
            hint="Bring it back from a copy of the store.",
        )

    def _see_offloaded(self, found: Shelf) -> None:
        here, host = self.context.host.name, found.contents.host
        if found.state != shelf.OFFLOADED and host != here and not self.ask["override_claim"]:
            raise Refused(
                f"VM {found.manifest.vm} is shelved on {host}, and still there.",
                hint=f"Use vm_shelve with state: offloaded on {host} first; or, when that host is dead for certain, say"
                " override_claim: true.",
                host=host,
            )

    def _see_claim(self, found: Shelf) -> None:
        """See that no other host brings the VM back."""
        claim = found.claim
        if claim and claim.host != self.context.host.name and not self.ask["override_claim"]:
            raise _claimed(found.manifest.vm, claim)

    def _see_store(self, began: Began) -> None:
        """See that the task names the store that the VM comes from."""
        store = self.context.store
        if (began.store, began.place) != (store.kind, store.place):
            raise Refused(
                f"VM {self.vm.name} comes from a shelf in {began.place}, and the task's image store is {store.place}.",
                hint="Say the image_store that its unshelving began with.",
                store=began.store,
                place=began.place,
            )

    # ---- what it will be here

    def _arrange(self, kept: _Kept) -> _Order:
        """Find out whether this host can have the VM, and where everything goes."""
        definition = Definition(kept.definition)
        domain, instance, contents = definition.domain, definition.instance, kept.contents
        self._see_identity(domain, kept.shelf.manifest.vm_uuid)
        self._see_networks(domain)
        kind = self._see_platform(domain)
        memory = bool(kept.of_role(shelf.MEMORY))
        power = model.power_after(
            self.ask["power"], contents.power, memory=memory, force=self.ask["force"], name=domain.name
        )
        memory = memory and power != "stopped"
        start = COPIED if power == "stopped" or memory else self.ask["start"]
        old = removal.own_directory(domain.uuid, instance)
        storage = names.check_directory(self.ask["storage"]) if self.ask["storage"] else ""
        directory = f"{storage}/{domain.uuid}" if storage else ""
        pieces: list[Piece] = []
        for member in kept.of_role("disk"):
            disk = domain.disk(member.target)
            if disk is None:
                raise Invalid(f"The shelf of VM {domain.name} has a disk {member.target}; its definition has none.")
            path = model.disk_path(disk, directory, [piece.path for piece in pieces], name=domain.name)
            cache = storage or (instance.launch.storage if instance.launch else os.path.dirname(path))
            below = kept.sources[member.target].parent
            late = start == INSTANT and below is not None and self._cached(below, cache) is None
            pieces.append(
                Piece(
                    target=member.target,
                    image=member.id,
                    parents=tuple(source.images[self.context.store.place] for source in _lineage(below)),
                    path=path,
                    overlay=model.overlay_of(path) if late else path,
                    size=member.virtual_size,
                    stored=member.size,
                    storage=cache,
                    policies=definition.policies(member.target),
                )
            )
        drives = {}
        for member in kept.of_role(shelf.DRIVE):
            drive = domain.disk(member.target)
            path = drive.image.source if drive else ""
            drives[member.target] = f"{directory}/{os.path.basename(path)}" if directory else path
        nvram = [definition.nvram()] if kept.of_role(shelf.NVRAM) else []
        new = directory or old
        place = new or (os.path.dirname(pieces[0].path) if pieces else names.check_directory(_SAVES))
        began = Began(
            set_id=kept.shelf.key,
            images=tuple(ids_of(kept.shelf.manifest)),
            store=self.context.store.kind,
            place=self.context.store.place,
            start=start,
            power=power,
            disks=tuple(pieces),
            files=(*drives.values(), *nvram),
            memory=f"{place}/kvmops-{kept.shelf.key}.memory" if memory else "",
            directory=new,
            autostart=contents.autostart,
            leases=contents.leases,
        )
        order = _Order(definition, kind, began, drives, old, new)
        ejected = self._fit(order, definition)
        here = self.context.host.name
        self.warnings = [
            *(f"{path} is not on {here}, so the drive {target} is empty." for target, path in ejected.items()),
            *(
                f"There is no network {lease.network} on {here} that could give {lease.mac} its address."
                for lease in contents.leases
                if self.context.host.network_active(lease.network) is None
            ),
        ]
        definition.remember(self._remembered(order, instance, storage))
        return order

    def _fit(self, order: _Order, definition: Definition) -> dict[str, str]:
        """Make a definition of the VM fit this host; the media that are not here, by target."""
        emulator = definition.domain.emulator
        if emulator and not os.path.exists(emulator):
            definition.run_on(order.kind.emulator)
        for piece in order.began.disks:
            definition.place(piece.target, piece.path)
        for target, path in order.drives.items():
            definition.point(target, path)
        if order.old != order.new:
            definition.move_logs(order.old, order.new)
        return definition.eject_missing(but=order.began.files)

    def _remembered(self, order: _Order, instance: Instance, storage: str) -> Instance:
        """What is remembered of the VM while it is brought back. All of its files are ours now."""
        roles = {disk.target: disk.role for disk in instance.disks}
        files = {**{piece.target: piece.path for piece in order.began.disks}, **order.drives}
        mark = Mark(_OFFLOADED, stamp(self.context.clock.now()), {"set": order.began.set_id})
        return replace(
            instance.unmarked(shelf.VM_STATES[shelf.SHELVED]).marked(mark),
            launch=replace(instance.launch, storage=storage) if instance.launch and storage else instance.launch,
            disks=tuple(OwnDisk(roles.get(target, "data"), target, path) for target, path in files.items()),
            journal=None,
        )

    def _cached(self, source: Source, directory: str) -> Base | None:
        return self.context.storage.cache(directory).look(source)

    # ---- whether this host can have it

    def _see_identity(self, domain: Domain, vm_uuid: str) -> None:
        """See that nobody here is, or has, what the VM is and has."""
        host, mine = self.context.host, self.vm.guest.uuid if self.vm.guest else ""
        if domain.uuid != vm_uuid:
            raise Invalid(f"The shelf is of the VM with UUID {vm_uuid}, and its definition has {domain.uuid}.")
        for guest in host.guests():
            if guest.uuid == domain.uuid != mine:
                raise Refused(
                    f"The UUID of the shelved VM {domain.name}, {domain.uuid}, is that of VM {guest.name} on"
                    f" {host.name}.",
                    hint="Remove that VM, if it is a leftover; or unshelve this one on another host.",
                    uuid=guest.uuid,
                )
            if guest.name == domain.name and guest.uuid != domain.uuid:
                raise Refused(
                    f"{host.name} has another VM with the name {domain.name}: its UUID is {guest.uuid}.",
                    hint="Rename or remove it, or unshelve this one on another host.",
                    uuid=guest.uuid,
                )
        owners = host.macs()
        for nic in domain.interfaces:
            if owners.get(nic.mac, domain.uuid) != domain.uuid:
                raise Refused(
                    f"The MAC address {nic.mac} of the shelved VM {domain.name} is that of the VM with UUID"
                    f" {owners[nic.mac]} on {host.name}.",
                    hint="Give that VM another address, or unshelve this one on another host.",
                    mac=nic.mac,
                    uuid=owners[nic.mac],
                )

    def _see_platform(self, domain: Domain) -> Platform:
        """See that VMs of its kind run here."""
        host = self.context.host
        try:
            kind = host.platform(machine=domain.machine, domain_type=domain.type, arch=domain.arch)
        except Unreachable:
            raise
        except LifecycleError as exc:
            raise Unsupported(
                f"VM {domain.name} is of the type {domain.type} and has the machine type {domain.machine}"
                f" ({domain.arch}), which {host.name} cannot run. {exc.message}",
                hint="Unshelve it on another host.",
                machine=domain.machine,
                domain_type=domain.type,
                arch=domain.arch,
            ) from exc
        loader = domain.firmware.loader
        if loader and not os.path.exists(loader):
            raise Unsupported(
                f"VM {domain.name} boots with the firmware {loader}, which is not on {host.name}.",
                hint="Install its package there, or unshelve the VM on another host.",
                loader=loader,
            )
        if domain.firmware.kind == "uefi" and not kind.uefi:
            raise Unsupported(
                f"VM {domain.name} boots by UEFI, and {host.name} has no such firmware for {domain.machine}.",
                hint="Install the package ovmf there.",
            )
        return kind

    def _see_networks(self, domain: Domain) -> None:
        """See that what its network cards are plugged into is here."""
        host = self.context.host
        for nic in domain.interfaces:
            if nic.kind == "network":
                active = host.network_active(nic.source)
                if active is None:
                    raise NotFound(
                        f"VM {domain.name} is in the libvirt network {nic.source!r}, and {host.name} has none of that"
                        " name.",
                        hint="Define it there, or unshelve the VM on another host.",
                        network=nic.source,
                    )
                if not active:
                    raise Refused(
                        f"The libvirt network {nic.source!r} on {host.name} is not active.",
                        hint=f"Start it: virsh net-start {nic.source}",
                        network=nic.source,
                    )
            elif nic.kind in ("bridge", "direct") and not os.path.exists(f"{_CARDS}/{nic.source}"):
                raise NotFound(
                    f"VM {domain.name} is on {nic.source!r}, and {host.name} has no bridge or network card of that"
                    " name.",
                    hint="Make it there, or unshelve the VM on another host.",
                    bridge=nic.source,
                )

    def _see_capacity(self, kept: _Kept, kind: Platform) -> None:
        inventory = Inventory(self.context.host)
        model.check_capacity(
            name=kept.vm,
            host=self.context.host.name,
            memory=kept.contents.memory,
            available=inventory.memory()["available"],
            vcpus=kept.contents.vcpus,
            cpus=inventory.processors()["count"],
            max_vcpus=kind.max_vcpus,
        )

    def _see_files(self, order: _Order, left: Began | None) -> None:
        """See that nobody's file is where one of the VM's is to be. What its firmware remembers is called after the
        VM, and may be there from a former life."""
        mine = set(left.made) if left else set()
        disks = [path for piece in order.began.disks for path in (piece.path, piece.overlay)]
        for path in (*disks, *order.drives.values()):
            if os.path.lexists(path) and path not in mine:
                raise Refused(
                    f"{path} is there already on {self.context.host.name}, and would be a file of VM"
                    f" {order.definition.domain.name}.",
                    hint="Remove it, if nobody needs it, or say another directory with storage.",
                    path=path,
                )

    def _see_room(self, kept: _Kept, began: Began) -> None:
        """See that all that will be written fits, file system by file system."""
        needed: dict[str, int] = {}
        bases: dict[str, tuple[str, int]] = {}
        for piece in began.disks:
            place = os.path.dirname(piece.path)
            late = piece.overlay != piece.path
            needed[place] = needed.get(place, 0) + model.written(piece.stored, copied_again=late)
            for source in _lineage(kept.sources[piece.target].parent):
                if self._cached(source, piece.storage) is None:
                    bases[f"{piece.storage} {source.key}"] = piece.storage, source.size
        for place, size in bases.values():
            needed[place] = needed.get(place, 0) + size
        if began.memory:
            size = kept.of_role(shelf.MEMORY)[0].size
            for place in sorted({os.path.dirname(began.memory), _SAVES}):
                needed[place] = needed.get(place, 0) + size
        rooms: dict[int, model.Room] = {}
        for place, size in needed.items():
            device = os.stat(_nearest(place)).st_dev
            room = rooms.get(device) or model.Room(place, self.context.storage.free(place) or 0, 0)
            rooms[device] = replace(room, needed=room.needed + size)
        model.check_room(rooms.values(), name=kept.vm, host=self.context.host.name)

    # ---- the steps

    def define(self, left: Began | None) -> dict[str, t.Any]:
        """Claim the shelf, and define the VM, with the journal in it."""
        kept, _began = self._demand()
        if self.vm.guest and left:  # what a run that died has left
            self.vm.guest.power_off()
            self._clear(left)
        figures = self._claim(kept.shelf)
        if self.vm.guest is None and self.context.host.guest_of(kept.shelf.manifest.vm_uuid):
            raise Busy(
                f"VM {kept.vm} was defined on {self.context.host.name} by another task just now.",
                hint="Run the task again when that has ended.",
            )
        definition = self._demand_order().definition
        definition.remember(replace(definition.instance, journal=self.vm.journal))
        self.vm.guest = self.context.host.define(definition.text)
        return figures

    def _claim(self, found: Shelf) -> dict[str, t.Any]:
        """Say in the store that this host brings the VM back. A store has an identifier once, so one host wins."""
        here = self.context.host.name
        mine = Claim(here, stamp(self.context.clock.now()))
        figures: dict[str, t.Any] = {}
        try:
            put_claim(self.context, found.manifest, mine)
        except (Invalid, Busy):
            claim = claim_of(self.context, found.key)
            if claim is None:
                raise
            if claim.host != here:
                if not self.ask["override_claim"]:
                    raise _claimed(found.manifest.vm, claim) from None
                release(self.context, found.key)
                put_claim(self.context, found.manifest, mine)
                figures = {"overridden_claim": claim.host}
        self.claimed = True
        return figures

    def prepare(self) -> dict[str, t.Any]:
        """Make the files that the guest writes into, and lay them upon the images in the store."""
        kept, began = self._demand()
        for piece in began.disks:
            self.context.storage.make_disk(piece.overlay, piece.size)
        figures = self._make_rest()
        definition, guest = Definition(self.vm.made().text(inactive=True, secure=True)), self.vm.made()
        exposed = self._expose(began)
        for piece in began.disks:
            source = kept.sources[piece.target].parent
            below = [exposed[piece.image]]
            if piece.overlay != piece.path:
                below += [exposed[parent] for parent in piece.parents]
            elif source:  # it is here, and nobody shall remove it from now on
                base: Base | None = self.context.storage.fetch_base(source, piece.storage)
                while base:
                    below.append(Below("file", base.path, base.format))
                    base = self.context.storage.base_facts(base.parent) if base.parent else None
            definition.place(piece.target, piece.overlay)
            definition.lay_upon(piece.target, below)
        guest.redefine(definition.root)
        return figures

    def _expose(self, began: Began) -> dict[str, Below]:
        """See that QEMU can read the images that it needs from the store, by identifier."""
        kept, _began = self._demand()
        store = self.context.store
        directory = sockets_of(self.vm.made().uuid)
        if store.kind != "directory":
            self.restorer.directory(directory)
        exposed: dict[str, Below] = {}
        for piece in began.disks:
            sources = [kept.sources[piece.target]]
            if piece.overlay != piece.path:
                sources += _lineage(sources[0].parent)
            for source in sources:
                image_id = source.images[store.place]
                if image_id in exposed:
                    continue
                image = kept.images.get(image_id) or store.get(image_id)
                if image is None:
                    raise NotFound(f"Image {source.label} is gone.", image=image_id)
                found = store.expose(image, directory)
                if found.kind == "file":  # QEMU follows what a header says of another file for data
                    inspect_image(found.path, source.format, source.label)
                exposed[image_id] = Below(found.kind, found.path, source.format, found.export)
        return exposed

    def copy(self) -> dict[str, t.Any]:
        """Copy the disks, each upon the base that it shares with others again, and the memory."""
        kept, began = self._demand()
        clock = self.context.clock
        started = clock.monotonic()
        bases = {}
        for piece in began.disks:
            source = kept.sources[piece.target]
            self.vm.tell({"disk": piece.target})
            base = self.context.storage.fetch_base(source.parent, piece.storage) if source.parent else None
            if base:
                bases[piece.target] = base.path
            self.restorer.take(piece.path, source, base)
        figures = self._make_rest()
        if began.memory:
            with self.context.store.open(image_of(self.context, kept.of_role(shelf.MEMORY)[0])) as content:
                self.restorer.write(began.memory, content)
        return {
            **figures,
            "bases": bases,
            "copied_bytes": sum(piece.stored for piece in began.disks),
            "copy_seconds": round(clock.monotonic() - started, 3),
        }

    def _make_rest(self) -> dict[str, t.Any]:
        """Make what is small, and fixed addresses, which the guest asks for when it boots."""
        kept, began = self._demand()
        order = self._demand_order()
        for member in kept.of_role(shelf.NVRAM):
            self.context.storage.write(order.definition.nvram(), read(self.context, member))
        for member in kept.of_role(shelf.DRIVE):
            self.context.storage.write(order.drives[member.target], read(self.context, member))
        refused: dict[str, str] = {}
        for lease in began.leases:
            try:
                if self.leases.add(lease):
                    self.added.append(lease)
            except Unreachable:
                raise
            except LifecycleError as exc:
                refused[lease.mac] = str(exc)
        return {
            **({"leases": [{"network": each.network, "mac": each.mac} for each in self.added]} if self.added else {}),
            **({"refused_leases": refused} if refused else {}),
        }

    def start(self) -> dict[str, t.Any]:
        """Start the VM."""
        began, guest = self._demand_began(), self.vm.made()
        if began.start == INSTANT and self.ran:  # the host may have been rebooted
            self._expose(began)
        try:
            if began.memory:
                self._restore_memory(began)
            elif not guest.active():
                guest.start(paused=began.power == "down")
        except Unreachable:  # nobody knows whether it runs
            self.ran = True
            raise
        self.ran = True
        if began.power == "suspended":
            return {}
        return {"running_seconds": round(self.context.clock.monotonic() - self.began_at, 3)}

    def _restore_memory(self, began: Began) -> None:
        """Let the guest go on with its memory; or let libvirt have that where it looks for it."""
        guest, suspended = self.vm.made(), began.power == "suspended"
        if suspended and guest.saved():
            self.context.storage.remove(began.memory)
            return
        if not guest.active():
            definition = Definition(self.restorer.saved_definition(began.memory))
            kept = self._demand()[0]
            self._fit(self._order or self._arrange(kept), definition)
            self.restorer.restore_memory(began.memory, definition.text, paused=suspended)
        guest.remember(guest.recall())  # the running VM has those of the time of the save
        if suspended:
            guest.save()
        elif guest.state()[0] == PAUSED:
            guest.resume()
        self.context.storage.remove(began.memory)

    def begin_pull(self) -> None:
        """Begin to bring the data here, and leave it to QEMU."""
        self._pulling().begin()

    def pull(self) -> dict[str, t.Any]:
        """Bring the data here."""
        return self._pulling().finish()

    def _pulling(self) -> Pulling:
        kept, began = self._demand()
        fetch: dict[str, t.Callable[[], Base]] = {}
        for piece in began.disks:
            source = kept.sources[piece.target].parent
            if source and piece.overlay != piece.path:
                fetch[piece.target] = partial(self.context.storage.fetch_base, source, piece.storage)
        return Pulling(
            self.context,
            self.vm,
            began,
            expose=lambda: self._expose(began),
            members=kept.of_role("disk") if self.ask["verify"] == "full" else [],
            fetch=fetch,
        )

    def settle(self) -> dict[str, t.Any]:
        """Let the VM be as before: its disks are its files, and nothing of it is said to be in the store."""
        began, guest = self._demand_began(), self.vm.made()
        figures = self._write_out(began)
        definition = Definition(guest.text(inactive=True, secure=True))
        for piece in began.disks:
            definition.settle(piece.target, piece.path, piece.policies)
        guest.redefine(definition.root)
        guest.set_autostart(began.autostart)
        self._withdraw(began)
        for piece in began.disks:
            if piece.overlay != piece.path:
                self.context.storage.remove(piece.overlay)
        guest.remember(self._based(guest.recall().unmarked(_OFFLOADED)))
        return {**figures, "disk_bytes": {piece.target: os.stat(piece.path).st_blocks * 512 for piece in began.disks}}

    def _write_out(self, began: Began) -> dict[str, t.Any]:
        """See that what QEMU has pulled is on the disk before the shelf goes. It writes out its tables when its CPUs
        are stopped, and not at the end of a pull.

        :raises Refused: The guest is stopped already, and not by us.
        """
        guest = self.vm.made()
        if began.power == "down":
            guest.power_off()
        if began.start != INSTANT or not guest.active():
            return {}
        if guest.state()[0] not in (RUNNING, BLOCKED):
            raise Refused(
                f"The guest of VM {guest.name} stands still, so QEMU does not write out what it knows of its disks, and"
                " the shelf cannot go yet.",
                hint="Let it run (virsh resume, or dompmwakeup), and run the task again.",
            )
        with Backup(guest, self.context.clock).held(quiesce="never", pause=True, timeout=0) as held:
            pass
        return {"held_milliseconds": held.milliseconds}

    def _based(self, instance: Instance) -> Instance:
        """With the base that the root disk lies upon now, which may be in another cache than before."""
        root = next((disk.path for disk in instance.disks if disk.role == "root"), "")
        layers = Chains(self.context.host).below(DiskImage("file", root, "qcow2")).layers if root else ()
        base = self.context.storage.base_facts(layers[1].image.source) if len(layers) > 1 else None
        if instance.launch is None or base is None:
            return instance
        launch = replace(instance.launch, base=base.path, base_format=base.format, base_sha256=base.sha256)
        return replace(instance, launch=launch)

    def drop(self) -> dict[str, t.Any]:
        """Remove the shelf: the VM has all that was in it."""
        return drop(self.context, self._demand_began().images, self._demand_began().set_id)

    def _withdraw(self, began: Began) -> None:
        """Let go of the images in the store."""
        withdraw(self.context, self.vm.made().uuid, began)

    # ---- taking it back

    def _take_back(self, exc: BaseException) -> None:
        """Let the host be as it was, and the shelf be for others."""
        try:
            began = self._began
            if self.vm.guest and began:
                self.vm.guest.power_off()
                self._clear(began)
                self.vm.guest.undefine()
                self.vm.guest = None
            if self.claimed and began:
                release(self.context, began.set_id)
        except LifecycleError as second:
            if isinstance(exc, LifecycleError):
                exc.hint = f"{exc.hint} Taking it back failed as well: {second}".lstrip()

    def _clear(self, began: Began) -> None:
        """Remove what an attempt has made, but for the definition."""
        self._withdraw(began)
        for lease in self.added or began.leases:
            try:
                self.leases.remove(lease)
            except Unreachable:
                raise
            except LifecycleError:  # it is not there
                continue
        self.added = []
        paths = began.made
        remove_files(self.context.storage, [*paths, *(f"{path}{PART}" for path in paths)], began.directory)


def _claimed(name: str, claim: Claim) -> Refused:
    return Refused(
        f"VM {name} is being brought back by {claim.host}, since {claim.since}.",
        hint=f"Run the task again on {claim.host} to finish it; or, when that host is dead for certain, say"
        " override_claim: true.",
        host=claim.host,
        since=claim.since,
    )


def _lineage(source: Source | None) -> list[Source]:
    """*source* and what it lies upon."""
    found = []
    while source is not None:
        found.append(source)
        source = source.parent
    return found


def _nearest(directory: str) -> str:
    """The lowest directory above that is there."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _reached(power: str, *, done: bool) -> dict[str, t.Any]:
    """What the VM is afterwards.

    :param done: Else its data are still on their way.
    """
    status, state = {
        "running": ("ACTIVE", "RUNNING"),
        "suspended": ("SUSPENDED", "SHUTDOWN"),
    }.get(power, ("SHUTOFF", "SHUTDOWN"))
    return {"status": status if done else "SHELVED_OFFLOADED", "power_state": state}
