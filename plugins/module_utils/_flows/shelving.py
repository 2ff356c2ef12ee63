# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Putting a VM on its shelf: what is copied, what its images lie upon, and how it is taken back."""

from __future__ import annotations

import itertools
import os
import threading
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from functools import partial

from .._core.clock import wait_until
from .._core.errors import Busy, Invalid, NotFound, Refused, TimedOut, Unsupported
from .._core.files import working
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images.base import ACTIVE, NewImage, Spent
from .._images.content import FileContent, TextContent
from .._images.formats import inspect_image
from .._images.nbd import demand_libnbd
from .._images.rest import Layer
from .._libvirt.chains import Chains
from .._libvirt.details import Details
from .._libvirt.files import need_space
from .._libvirt.leases import Leases
from .._libvirt.swap import Swap
from .._libvirt.xml import put_instance
from .._model import removal, shelf, snapshot
from .._model import shelve as rules
from .._model.actions import demand
from .._model.domain import Domain, read_domain
from .._model.instance import Mark
from .._model.shelf import Contents
from .._model.shelve import File, Record
from .._model.snapshot import Manifest
from .._model.status import status_of
from .._task import Context, Subject
from .copying import Copied, Copier, Job, Upon, clean_up, whole
from .deltas import layers_of, parent_of, properties_of
from .noting import Noting
from .offloading import Offloading
from .shelves import OFFLOAD, SHELVE, drop, told
from .snapshot import tell
from .stopping import stop

# Where libvirt keeps the managed save images of qemu:///system, and makes files of VMs without a directory.
_SAVES = "/var/lib/libvirt/qemu/save"
_FILES = "/var/lib/libvirt/images"
# Bytes that an image takes beside its data, and seconds until somebody else must have put a base into the store.
_TABLES = 1 << 20
_PUT = 900


@dataclass(frozen=True)
class _NewBase:
    """A base image that the store does not have."""

    path: str
    format: str
    sha256: str
    size: int
    properties: t.Mapping[str, str]


@dataclass(frozen=True)
class _Part:
    """One local disk.

    :param layers: What it consists of, from the top down.
    :param upon: What its image will lie upon; ``None`` when it is stored whole.
    """

    target: str
    layers: tuple[Layer, ...]
    upon: Upon | None

    @property
    def own(self) -> tuple[Layer, ...]:
        """The layers that are the VM's own. Without a base in the store only the first one is for sure."""
        return self.layers[: self.upon.depth if self.upon else 1]

    def upon_other(self, planned: str, image_id: str) -> _Part:
        """The same upon the image that its base became."""
        if self.upon is None or self.upon.image != planned:
            return self
        return replace(self, upon=replace(self.upon, image=image_id))


class Shelving(Noting):
    """The steps that put one VM on its shelf."""

    def __init__(self, context: Context, vm: Subject, dead: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.guest, self.seen, self.state = vm.there()
        self.left = dict(dead.data) if dead and dead.action == SHELVE else {}
        self.swap = Swap(self.guest, context.clock)
        self.power_before: str = self.left.get("power_before") or _power(self.state.condition)
        self.autostart: bool = self.left["autostart"] if "autostart" in self.left else self.guest.autostart()
        self.set_id = str(uuid.uuid4())
        self.name = rules.set_name(self.guest.name)
        self.domain: Domain = read_domain(self.guest.xml(inactive=True))
        self.chosen = rules.Chosen((), (), {}, {})
        self.parts: list[_Part] = []
        self.bases: dict[str, _NewBase] = {}
        self.copied = Copied()
        self.copier: Copier | None = None
        self.at = ""

    # ---- looking

    def plan(self, *, goes_on: bool) -> Plan:
        """What there is to do.

        :param goes_on: The host lets go of the VM afterwards.
        """
        name = self.guest.name
        if not self.seen.persistent:
            raise Refused(f"VM {name} is transient: it cannot be kept.", hint="Define it first.")
        demand(SHELVE, replace(self.state, running="") if self.left else self.state, name=name)
        self._check_memory()
        self._check_guest()
        self._choose()
        self._look_at_store()
        data = self._begin_journal()
        steps = self._steps(goes_on)
        if goes_on:
            steps += Offloading(self.context, self.vm, None).steps()
        after = told(None, self.name)
        if not goes_on:
            after = {"status": status_of(shelf.VM_STATES[shelf.SHELVED]), "power_state": "SHUTDOWN", "shelf": self.name}
        return Plan(
            before=told(self.state),
            after=after,
            steps=steps,
            action=SHELVE,
            journaled=True,
            figures={"set": self.set_id, "volumes": dict(self.chosen.volumes), "left": dict(self.chosen.left)},
            warnings=self._elsewhere(data),
        )

    def _check_memory(self) -> None:
        if self.power_before == "suspended" and self.ask["memory"] is None:
            raise Refused(
                f"VM {self.guest.name} is SUSPENDED, and it was not said what becomes of its memory.",
                hint="Say memory: true to store it, or memory: false to lose it as at a power failure.",
                status=self.state.status,
            )

    def _check_guest(self) -> None:
        """See that nothing of the VM would be lost, or is just being moved."""
        name = self.guest.name
        snapshots = self.swap.snapshots()
        if snapshots:
            raise Refused(
                f"VM {name} has snapshots of libvirt's own, whose data are in its disks:"
                f" {', '.join(sorted(snapshots))}.",
                hint="Remove them with virsh snapshot-delete, or keep them as images with vm_snapshot first.",
            )
        if self.guest.xml(inactive=True).find("devices/tpm/backend[@type='emulator']") is not None:
            raise Unsupported(
                f"VM {name} has an emulated TPM, and a shelf cannot keep what is in it.",
                hint="Take the TPM out of its definition first, if the guest can do without.",
            )
        if not self.guest.active():
            return
        details = Details(self.guest)
        jobs = [job["operation"] for job in [details.job()] if job]
        jobs += [
            f"{job['operation']} of disk {disk.target}"
            for disk in read_domain(self.guest.xml()).disks
            if not disk.empty
            for job in [details.block_job(disk.target)]
            if job
        ]
        if jobs:
            raise Busy(
                f"VM {name} is busy: libvirt has a job on it ({', '.join(jobs)}).",
                hint="Run the task again when that has ended.",
            )

    def _choose(self) -> None:
        chains = Chains(self.context.host)
        disks = [disk if disk.empty else replace(disk, image=chains.resolved(disk.image)) for disk in self.domain.disks]
        instance = self.seen.instance
        own = {disk.path for disk in instance.disks}
        directory = removal.own_directory(self.guest.uuid, instance)
        self.chosen = rules.choose(disks, own, directory, name=self.guest.name)

    def _look_at_store(self) -> None:
        """Which layers of the disks the store has, and whether it has room for the rest."""
        if self.chosen.disks:
            demand_libnbd(f"the disks of VM {self.guest.name}")
        for disk in self.chosen.disks:
            layers = layers_of(self.context, disk, name=self.guest.name)
            if not layers:
                raise Unsupported(
                    f"VM {self.guest.name} cannot be shelved: disk {disk.target} is made of images that are not on the"
                    " host.",
                    hint="Make it one image first, with virsh blockpull.",
                    target=disk.target,
                )
            self.parts.append(_Part(disk.target, layers, parent_of(self.context, layers) or self._new_base(layers)))
        needed = sum(_TABLES + _allocated(layer) for part in self.parts for layer in part.own)
        needed += sum(_allocated(layer) for part in self.parts if part.upon is None for layer in part.layers[1:])
        needed += sum(base.size for base in self.bases.values())
        if self.power_before == "suspended" and self.ask["memory"]:
            needed += _allocated(Layer(self._save, "raw"))
        if self.context.store.kind == "directory":
            place = self.context.store.place
            free = self.context.storage.free(place)
            if free is not None:
                need_space(f"shelve VM {self.guest.name}", needed, free, place)

    @property
    def _save(self) -> str:
        return f"{_SAVES}/{self.guest.name}.save"

    def _new_base(self, layers: tuple[Layer, ...]) -> Upon | None:
        """The lowest layer of a disk as a base image that will be in the store; ``None`` when it cannot be one."""
        bottom = layers[-1]
        if len(layers) == 1 or bottom.kind != "file":
            return None
        known = self.context.storage.base_facts(bottom.path)
        if known:
            sha256, size, virtual_size = known.sha256, known.size, known.virtual_size
        else:
            try:
                facts = inspect_image(bottom.path, bottom.format)
            except Invalid:
                return None
            sha256, size, virtual_size = self.context.storage.digest(bottom.path), facts.size, facts.virtual_size
        upon = Upon(rules.base_id(sha256), sha256, virtual_size, len(layers) - 1)
        there = self.context.store.get(upon.image)
        if not (there and there.status == ACTIVE and there.size == size):
            launch = self.seen.instance.launch
            mine = launch if launch and launch.base == bottom.path else None
            self.bases[upon.image] = _NewBase(
                bottom.path,
                bottom.format,
                sha256,
                size,
                snapshot.inherited(mine.properties) if mine else {},
            )
        return upon

    def _begin_journal(self) -> dict[str, t.Any]:
        """What a later run would have to know, together with what an earlier one has left."""
        left, job = self.left, self._job()
        here = left.get("store", self.context.store.place) == self.context.store.place
        data = {
            "set": self.set_id,
            "store": self.context.store.place,
            "images": [*(left.get("images", []) if here else []), *self._ids()],
            "scratch": [*left.get("scratch", []), *(job.files if self.ask["compress"] else [])],
            "power_before": self.power_before,
            "autostart": self.autostart,
            "memory": self._keeps_memory,
        }
        self.vm.journal = Journal.begin(SHELVE, self.context.clock.now(), **data)
        return data

    def _elsewhere(self, data: t.Mapping[str, t.Any]) -> list[str]:
        """What cannot be removed of a run that died, as it used another image store."""
        if self.left.get("store", data["store"]) == data["store"]:
            return []
        images = ", ".join(self.left.get("images", []))
        return [f"shelving into {self.left['store']} died, and may have left images there: {images}."]

    @property
    def _keeps_memory(self) -> bool:
        return self.power_before == "suspended" and bool(self.ask["memory"])

    def _ids(self) -> list[str]:
        """All images that the shelf may have."""
        roles = [("disk", disk.target) for disk in self.chosen.disks]
        roles += [(shelf.DRIVE, disk.target) for disk in self.chosen.drives]
        roles += [(role, "") for role in (shelf.NVRAM, shelf.MEMORY, shelf.DOMAIN)]
        return [snapshot.image_id(self.set_id, role, target) for role, target in roles]

    def _job(self) -> Job:
        flavor = self.seen.instance.flavor
        files = [disk.image.source for disk in self.chosen.disks if disk.image.kind == "file"]
        return Job(
            set_id=self.set_id,
            name=self.name,
            disks=self.chosen.disks,
            layers={part.target: part.layers for part in self.parts},
            upon={part.target: part.upon for part in self.parts if part.upon},
            otherwise={},
            properties=properties_of(self.seen.instance.launch, self.guest.uuid, shelf.KIND),
            min_disk=flavor.root if flavor else 0,
            min_ram=flavor.memory if flavor else 0,
            scratch=os.path.dirname(files[0]) if files else _FILES,
        )

    # ---- the steps

    def _steps(self, goes_on: bool) -> list[Step]:
        steps = [self._step("clean_up", self.clean_up)] if self.left else []
        if self.state.condition not in ("stopped", "suspended"):
            operations = stop(self.context, self.vm)
            steps.append(self._step("stop", lambda: _in_turn(operations)))
        if self.bases:
            steps.append(self._step("put_bases", self.put_bases))
        steps.append(self._step("copy_disks", self.copy_disks))
        steps.append(self._step("copy_rest", self.copy_rest))
        steps.append(self._step("complete", self.complete))
        steps.append(replace(self._step("mark", lambda: self.mark(goes_on=goes_on)), lasting=True))
        # Taken back as a whole: it is the first step's, so it comes last whichever step fails.
        steps[0] = replace(steps[0], undo=self.take_back)
        return steps

    def clean_up(self) -> None:
        """Remove what a run that died has left."""
        if self.left.get("store") == self.context.store.place:
            drop(self.context, self.left.get("images", []), self.left.get("set", ""))
        clean_up(self.context, None, {"scratch": self.left.get("scratch", [])})

    def put_bases(self) -> dict[str, t.Any]:
        """Put the base images into the store, each once, however many VMs or hosts want to."""
        place, put = self.context.store.place, {}
        with self.context.once("putting bases", threading.Lock):
            for planned, base in self.bases.items():
                what = f"waiting for the base image {rules.base_name(base.sha256)} that somebody else puts into {place}"
                try:
                    image_id = wait_until(
                        partial(self._put, base), clock=self.context.clock, timeout=_PUT, doing=what, interval=2
                    )
                except TimedOut as exc:
                    exc.hint = f"If nobody does any more, remove the image {planned} there, with the module image."
                    raise
                put[image_id] = base.size
                self.parts = [part.upon_other(planned, image_id) for part in self.parts]
        return {"put_bases": put}

    def _put(self, base: _NewBase) -> str:
        """The identifier of a base image in the store, which it is put into if nobody else is about to; else empty."""
        store, name = self.context.store, rules.base_name(base.sha256)
        for attempt in itertools.count():
            new = NewImage(rules.base_id(base.sha256, attempt), name, base.format, base.properties)
            there = store.get(new.id)
            if there and there.status == ACTIVE:
                break
            try:
                store.put(new, FileContent(base.path))
            except Spent:
                continue
            except Busy:
                return ""
            except Invalid:
                if store.get(new.id) is None:
                    raise
                return ""
            break
        return new.id

    def copy_disks(self) -> dict[str, t.Any]:
        """Store the disks."""
        began = self.context.clock.monotonic()
        self.copier = Copier(self.context, self.guest, self._job(), self.vm.tell)
        self.copied = self.copier.still()
        self.at = self.copied.at
        return {"copy_seconds": round(self.context.clock.monotonic() - began, 3)}

    def copy_rest(self) -> None:
        """Store what else belongs to the VM, and its definition with the mark that it will have."""
        copier = self._demand_copier()
        for disk in self.chosen.drives:
            copier.beside(shelf.DRIVE, FileContent(disk.image.source), "raw", disk.target)
        if self.domain.firmware.kind == "uefi":
            path = self.swap.nvram()[1]
            if os.path.exists(path):  # it is made at the first start
                copier.beside(shelf.NVRAM, FileContent(path), "raw")
        if self._keeps_memory:
            copier.memory(self._save)
        definition = self.guest.xml(inactive=True, secure=True)
        instance = replace(self.guest.recall(), journal=None)
        put_instance(definition, instance.marked(self._mark()))
        copier.beside(shelf.DOMAIN, TextContent(ET.tostring(definition)), "xml")

    def _demand_copier(self) -> Copier:
        if self.copier is None:
            raise NotFound(f"Nothing of VM {self.guest.name} was copied.")
        return self.copier

    def _mark(self) -> Mark:
        """The mark of the VM once it is shelved. The images are all that it may have: of those that it has not nothing
        is found."""
        files = [layer.path for part in self.parts for layer in part.own if layer.kind == "file"]
        files += [disk.image.source for disk in self.chosen.drives]
        found = []
        for path in files:
            with working(f"look at {path}"):
                found.append(File.look(path, os.stat(path)))
        record = Record(
            set_id=self.set_id,
            store=self.context.store.kind,
            place=self.context.store.place,
            offload=rules.NEVER if self.ask["offload"] == rules.NEVER else rules.LATER,
            power_before=self.power_before,
            autostart=self.autostart,
            memory=self._keeps_memory,
            images=tuple(self._ids()),
            files=tuple(found),
        )
        return record.mark(self.at)

    def complete(self) -> dict[str, t.Any]:
        """See that every image is whole, and protect them. The first one gets the manifest at the end."""
        store = self.context.store
        images = whole(self.context, self.copied, f"shelf {self.name}")
        manifest = Manifest(
            set_id=self.set_id,
            name=self.name,
            vm=self.guest.name,
            vm_uuid=self.guest.uuid,
            kind=shelf.KIND,
            at=self.at,
            quiesced=False,
            state=self.power_before,
            members=tuple(self.copied.members),
            left=dict(self.chosen.left),
            shelf=self._contents().dump(),
        )
        for image in images[1:]:
            store.update(image, protected=True)
        properties = {snapshot.MANIFEST: manifest.dump(), shelf.STATE: shelf.SHELVED}
        store.update(images[0], properties=properties, protected=True)
        figures = {key: value for key, value in tell(manifest).items() if key != "quiesced"}
        return {"set": self.set_id, **figures, "volumes": dict(self.chosen.volumes)}

    def _contents(self) -> Contents:
        domain = self.domain
        cards = [(card.kind, card.source, card.mac) for card in domain.interfaces]
        return Contents(
            host=self.context.host.name,
            power=self.power_before,
            autostart=self.autostart,
            vcpus=domain.max_vcpus,
            memory=domain.memory,
            arch=domain.arch,
            machine=domain.machine,
            domain_type=domain.type,
            firmware=domain.firmware.kind,
            networks=tuple(cards),
            leases=Leases(self.context.host).of((source, mac) for kind, source, mac in cards if kind == "network"),
            volumes=dict(self.chosen.volumes),
        )

    def mark(self, *, goes_on: bool) -> None:
        """Remember that the VM is shelved. From here on nothing of that is taken back."""
        self.guest.set_autostart(False)
        self.guest.remember(self.guest.recall().marked(self._mark()))
        if not self._keeps_memory:
            self.guest.discard_save()
        if goes_on:
            self.vm.journal = Journal.begin(OFFLOAD, self.context.clock.now())

    def take_back(self) -> None:
        """After a step failed: nothing in the store, and the VM as it was."""
        if self.vm.journal is None:
            return
        take_back(self.context, self.vm, self.vm.journal.data)
        runs = "and runs" if self.guest.active() else "and everything of it is here"
        self._explain(f"VM {self.guest.name} is not shelved, {runs}.")


def _power(condition: str) -> str:
    """What a VM is, in the words of a shelf. One that goes down by itself shall be off."""
    return {"asleep": "running", "going_down": "stopped"}.get(condition, condition)


def _in_turn(operations: t.Sequence[Step]) -> dict[str, t.Any]:
    figures: dict[str, t.Any] = {}
    for operation in operations:
        figures.update(operation.do() or {})
    return figures


def _allocated(layer: Layer) -> int:
    """Bytes that a layer takes at most."""
    with working(f"look at {layer.path}"):
        if layer.kind == "file":
            return os.stat(layer.path).st_blocks * 512
        fd = os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)


def take_back(context: Context, vm: Subject, data: t.Mapping[str, t.Any]) -> None:
    """Let a VM be as if its shelving had not begun.

    :param data: Of the journal: what it was, and what may have been made.
    """
    guest = vm.made()
    if to_run(data.get("power_before", "")) and not guest.active():
        guest.start()
    if "autostart" in data:
        guest.set_autostart(bool(data["autostart"]))
    if data.get("store") == context.store.place:
        drop(context, data.get("images", []), data.get("set", ""))
    clean_up(context, None, {"scratch": data.get("scratch", [])})


def to_run(power_before: str) -> bool:
    return power_before in ("running", "paused")


def finish_mark(vm: Subject, journal: Journal) -> None:
    """What comes after the mark: memory that nobody wanted to keep goes."""
    if not journal.data.get("memory"):
        vm.made().discard_save()
