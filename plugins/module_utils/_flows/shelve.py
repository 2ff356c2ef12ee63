# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Shelving VMs, letting go of those that are shelved, and bringing back those whose host still has them (Nova: shelve,
shelve_offload, unshelve)."""

from __future__ import annotations

import os
import threading
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from .._core.clock import parse_stamp, stamp, wait_until
from .._core.errors import Busy, Invalid, LifecycleError, NotFound, Refused, Unsupported
from .._core.files import working
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images import FileContent, NewImage, TextContent, inspect_image
from .._images.base import ACTIVE
from .._images.rest import Layer
from .._libvirt import Chains, Leases, Swap, put_instance, remove_files
from .._libvirt.details import Details
from .._libvirt.files import need_space
from .._model import removal, shelf, snapshot
from .._model import shelve as rules
from .._model.actions import demand
from .._model.domain import Domain, read_domain
from .._model.instance import Instance, Mark
from .._model.shelf import Contents, Shelf
from .._model.shelve import File, Record
from .._model.snapshot import Manifest
from .._model.status import State, status_of
from .._model.unshelve import power_after
from .._task import Context, Subject
from .copying import Copied, Copier, Job, Upon, clean_up
from .deltas import layers_of, parent_of, properties_of
from .remove import stop
from .shelves import claim_of, demand_store, drop, shelf_of, verify
from .snapshot import tell

SHELVE, OFFLOAD, UNSHELVE = "shelve", "shelve_offload", "unshelve"
# Steps of an offload from which on the VM is not whole on its host any more.
_LOSING = ("remove_disks", "undefine")
# Where libvirt keeps the managed save images of qemu:///system, and makes files of VMs without a directory.
_SAVES = "/var/lib/libvirt/qemu/save"
_FILES = "/var/lib/libvirt/images"
# Bytes that an image takes beside its data, and seconds until somebody else must have put a base into the store.
_TABLES = 1 << 20
_PUT = 3600


def check(ask: t.Mapping[str, t.Any]) -> None:
    """See that the options go together."""
    if ask["older_than"] is not None and ask["state"] != "offloaded":
        raise Invalid("The option older_than is about state: offloaded.")
    for option, least in (("older_than", 0), ("bandwidth", 0), ("wait_timeout", 1)):
        if ask[option] is not None and ask[option] < least:
            raise Invalid(f"The option {option} is {ask[option]}, and must be at least {least}.")


def is_here(vm: Subject) -> bool:
    """Whether libvirt has a VM that is not just being brought back from its shelf."""
    return vm.guest is not None and rules.offloaded_mark(vm.instance.marks) is None


def is_due(vm: Subject) -> bool:
    """Whether an offload without names is about this VM: it was shelved to be offloaded later, or that was begun."""
    mark = rules.shelved_mark(vm.instance.marks)
    dead = _dead(vm)
    return mark is not None and (mark.data.get("offload") == rules.LATER or bool(dead and dead.action == OFFLOAD))


def offloading(context: Context) -> list[str]:
    """The UUIDs of VMs that were shelved here and are not here any more, without their shelves saying so."""
    if context.params["state"] != "offloaded":
        return []
    found = shelf.shelves(context.store.find(properties={"image_type": shelf.KIND}))
    return [
        each.manifest.vm_uuid
        for each in found
        if each.state == shelf.SHELVED and each.contents.host == context.host.name and not claim_of(context, each.key)
    ]


def _dead(vm: Subject) -> Journal | None:
    """The journal of a process that died while it worked on this VM."""
    journal = vm.instance.journal
    if vm.seen is None or vm.seen.running is not None or journal is None or not journal.ours:
        return None
    return journal if journal.action in (SHELVE, OFFLOAD, UNSHELVE) else None


def _told(state: State | None, name: str = "") -> dict[str, t.Any]:
    """A VM, for the diff.

    :param name: Of its shelf; empty without.
    """
    if state is None:
        return {"status": status_of(shelf.VM_STATES[shelf.OFFLOADED]), "power_state": "NOSTATE", "shelf": name}
    return {"status": state.status, "power_state": state.power_state, "shelf": name}


def _demand_local(context: Context, name: str) -> None:
    if not context.host.local:
        raise Unsupported(
            f"VM {name} is shelved on its host itself, not through {context.host.uri}.",
            hint="Run the task on the KVM host, with the default uri.",
        )


# ---- the plans


def shelve(context: Context, vm: Subject) -> Plan:
    """Put a VM on its shelf, unless it is there."""
    if vm.guest is None:
        return _gone(context, vm)
    _demand_local(context, vm.name)
    guest, _seen, state = vm.there()
    dead, mark = _dead(vm), rules.shelved_mark(vm.instance.marks)
    if dead and dead.action == OFFLOAD:
        return offload(context, vm)
    if mark is None:
        return _Shelving(context, vm, dead).plan(goes_on=False)
    demand(SHELVE, replace(state, running="") if dead and dead.action == SHELVE else state, name=guest.name)
    record = Record.load(mark)
    before = _told(state, rules.set_name(guest.name))
    if dead is None:
        return Plan(before=before, after=before, figures={"set": record.set_id})
    vm.journal = dead
    return Plan(
        before=before,
        after=_told(replace(state, status=status_of(mark.state)), rules.set_name(guest.name)),
        steps=[Step("finish", lambda: _finish_mark(vm, dead))],
        action=SHELVE,
        journaled=True,
        figures={"set": record.set_id},
    )


def _finish_mark(vm: Subject, journal: Journal) -> None:
    """What comes after the mark: memory that nobody wanted to keep goes."""
    if not journal.data.get("memory"):
        vm.made().discard_save()


def offload(context: Context, vm: Subject) -> Plan:
    """Let the host go of a VM that is shelved, or of one that is not yet."""
    if vm.guest is None:
        return _gone(context, vm)
    _demand_local(context, vm.name)
    guest, _seen, state = vm.there()
    dead, mark = _dead(vm), rules.shelved_mark(vm.instance.marks)
    older_than = context.params["older_than"]
    if mark is None:
        if older_than is not None:
            before = _told(state)
            return Plan(before=before, after=before)
        return _Shelving(context, vm, dead).plan(goes_on=True)
    demand(OFFLOAD, replace(state, running="") if dead and dead.action != UNSHELVE else state, name=guest.name)
    record = Record.load(mark)
    name = rules.set_name(guest.name)
    before = _told(state, name)
    begun = dead if dead and dead.action == OFFLOAD else None
    if older_than is not None and not begun:
        due = parse_stamp(mark.since) + timedelta(seconds=older_than)
        if due > context.clock.now():
            return Plan(before=before, after=before, figures={"set": record.set_id, "offload_at": stamp(due)})
    demand_store(context, record, name=guest.name)
    if state.condition not in ("stopped", "suspended"):
        raise Refused(
            f"VM {guest.name} is shelved, and somebody started it all the same: what it wrote since is not in the"
            " shelf.",
            hint="Use vm_shelve with state: unshelved, and shelve it again.",
        )
    work = _Offloading(context, vm, begun)
    steps = work.steps()
    if dead and dead.action == SHELVE:
        steps.insert(0, Step("finish", lambda: _finish_mark(vm, dead)))
    vm.journal = Journal.begin(OFFLOAD, context.clock.now()) if begun is None else begun
    return Plan(
        before=before,
        after=_told(None, name),
        steps=steps,
        action=OFFLOAD,
        journaled=True,
        figures={"set": record.set_id},
    )


def _gone(context: Context, vm: Subject) -> Plan:
    """Of a VM that is not here: its shelf tells whether it is as it should be."""
    found = shelf_of(context, vm)
    if found is None:
        raise NotFound(
            f"There is no VM with the name or UUID {vm.name!r} here, and no shelf of one in {context.store.place}.",
            name=vm.name,
        )
    before = _told(None, found.manifest.name)
    figures = {"set": found.key}
    if found.state == shelf.OFFLOADED or claim_of(context, found.key):
        return Plan(before=before, after=before, figures=figures)
    if found.contents.host != context.host.name:
        raise Refused(
            f"VM {found.manifest.vm} is shelved on {found.contents.host}, and this is {context.host.name}.",
            hint=f"Run the task on {found.contents.host}.",
            host=found.contents.host,
        )
    before["status"] = status_of(shelf.VM_STATES[shelf.SHELVED])
    return Plan(
        before=before,
        after=_told(None, found.manifest.name),
        steps=[Step("finish", lambda: _let_go(context, found))],
        action=OFFLOAD,
        figures=figures,
    )


def _let_go(context: Context, found: Shelf) -> None:
    """Say in the store that no host has the VM any more."""
    first = found.manifest.members[0]
    image = context.store.get(first.id)
    if image is None:
        raise NotFound(f"Image {first.id} of the shelf {found.manifest.name} is not in {context.store.place} any more.")
    context.store.update(image, properties={shelf.STATE: shelf.OFFLOADED})


def bring_back(context: Context, vm: Subject) -> Plan:
    """Make a VM what it was before it was shelved, while its host still has it."""
    guest, _seen, state = vm.there()
    dead, mark = _dead(vm), rules.shelved_mark(vm.instance.marks)
    if mark is not None:
        return _Returning(context, vm, mark, dead).plan()
    if dead is None or dead.action == OFFLOAD:
        demand(UNSHELVE, state, name=guest.name)
        before = _told(state)
        return Plan(before=before, after=before)
    vm.journal = dead
    ran = dead.action == SHELVE and _runs(dead.data.get("power_before", ""))
    after = {**_told(state), "status": status_of("active"), "power_state": "RUNNING"} if ran else _told(state)
    if dead.action == SHELVE:
        steps = [Step("take_back", lambda: _take_back(context, vm, dead.data))]
    else:
        images = dead.data.get("images", [])
        steps = [Step("drop_shelf", lambda: drop(context, images))]
    return Plan(
        before=_told(state, rules.set_name(guest.name)),
        after={**after, "shelf": ""},
        steps=steps,
        action=UNSHELVE,
        journaled=True,
    )


def _runs(power_before: str) -> bool:
    return power_before in ("running", "paused")


def _take_back(context: Context, vm: Subject, data: t.Mapping[str, t.Any]) -> None:
    """Let a VM be as if its shelving had not begun.

    :param data: Of the journal: what it was, and what may have been made.
    """
    guest = vm.made()
    if _runs(data.get("power_before", "")) and not guest.active():
        guest.start()
    if "autostart" in data:
        guest.set_autostart(bool(data["autostart"]))
    if data.get("store") == context.store.place:
        drop(context, data.get("images", []))
    clean_up(context, None, {"scratch": data.get("scratch", [])})


# ---- shelving


@dataclass(frozen=True)
class _NewBase:
    """A base image that the store does not have."""

    id: str
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


class _Shelving:
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
        self.failure: LifecycleError | None = None

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
            steps += _Offloading(self.context, self.vm, None).steps()
        after = _told(None, self.name)
        if not goes_on:
            after = {"status": status_of(shelf.VM_STATES[shelf.SHELVED]), "power_state": "SHUTDOWN", "shelf": self.name}
        return Plan(
            before=_told(self.state),
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
                upon.image,
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

    def _step(self, name: str, do: t.Callable[[], t.Mapping[str, t.Any] | None]) -> Step:
        def noted() -> t.Mapping[str, t.Any] | None:
            try:
                return do()
            except LifecycleError as exc:
                self.failure = exc
                raise

        return Step(name, noted)

    def clean_up(self) -> None:
        """Remove what a run that died has left."""
        if self.left.get("store") == self.context.store.place:
            drop(self.context, self.left.get("images", []))
        clean_up(self.context, None, {"scratch": self.left.get("scratch", [])})

    def put_bases(self) -> dict[str, t.Any]:
        """Put the base images into the store, each once, however many VMs or hosts want to."""
        with self.context.once("putting bases", threading.Lock):
            for base in self.bases.values():
                wait_until(
                    partial(self._is_put, base),
                    clock=self.context.clock,
                    timeout=_PUT,
                    doing=f"waiting for the base image {rules.base_name(base.sha256)} that somebody else puts into"
                    f" {self.context.store.place}",
                    interval=2,
                )
        return {"put_bases": {base.id: base.size for base in self.bases.values()}}

    def _is_put(self, base: _NewBase) -> bool:
        store = self.context.store
        there = store.get(base.id)
        if there:
            return there.status == ACTIVE
        new = NewImage(base.id, rules.base_name(base.sha256), base.format, base.properties)
        try:
            store.put(new, FileContent(base.path))
        except Busy:
            return False
        except Invalid:
            if store.get(base.id) is None:
                raise
            return False
        return True

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
        images = []
        for member in self.copied.members:
            image = store.get(member.id)
            if image is None or image.status != ACTIVE or image.size != member.size:
                raise NotFound(f"Image {member.id} of the shelf {self.name} is not in {store.place} any more.")
            images.append(image)
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
        told = {key: value for key, value in tell(manifest).items() if key != "quiesced"}
        return {"set": self.set_id, **told, "volumes": dict(self.chosen.volumes)}

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
        _take_back(self.context, self.vm, self.vm.journal.data)
        if self.failure:
            again = (
                ", and it was started again" if _runs(self.power_before) and self.state.condition != "stopped" else ""
            )
            self.failure.hint = f"{self.failure.hint} VM {self.guest.name} is not shelved{again}.".lstrip()


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


# ---- letting go of the host


class _Offloading:
    """The steps that let a host go of a VM that is shelved.

    :param begun: The journal of a run that died.
    """

    def __init__(self, context: Context, vm: Subject, begun: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.losing = begun is not None and begun.step in _LOSING
        self.shelf: Shelf | None = None
        self.record: Record | None = None

    def steps(self) -> list[Step]:
        """All of them. What the first one finds, it finds before anything is gone."""
        first = Step("verify", self.verify, undo=None if self.losing else _nothing, lasting=True)
        return [
            first,
            Step("remove_leases", self.remove_leases),
            Step("remove_disks", self.remove_disks),
            Step("undefine", self.undefine),
            Step("finish", self.finish),
        ]

    def verify(self) -> dict[str, t.Any]:
        """See that the shelf has what the host is about to lose."""
        guest, clock = self.vm.made(), self.context.clock
        began = clock.monotonic()
        mark = rules.shelved_mark(guest.recall().marks)
        if mark is None:
            raise Refused(f"VM {guest.name} is not shelved any more.")
        self.record = Record.load(mark)
        try:
            self._see_files(self.record)
            self.shelf = self._find(self.record)
            read = verify(self.context, self.shelf.manifest, thoroughly=self.context.params["verify"] == "full")
        except (Invalid, NotFound, Refused) as exc:
            if not self.losing:
                exc.hint = (
                    f"VM {guest.name} still has everything. Use vm_shelve with state: unshelved, and shelve it again."
                )
            raise
        return {"read_bytes": read, "verify_seconds": round(clock.monotonic() - began, 3)}

    def _find(self, record: Record) -> Shelf:
        """The shelf, which is whole and which nobody else takes down."""
        found = [
            each
            for each in shelf.shelves(self.context.store.find(properties={snapshot.SET: record.set_id}))
            if each.key == record.set_id
        ]
        if not found:
            raise NotFound(f"The shelf of VM {self.vm.name} in {self.context.store.place} is not whole any more.")
        claim = claim_of(self.context, record.set_id)
        if claim:
            raise Busy(f"VM {self.vm.name} is just brought back on {claim.host}, since {claim.since}.")
        return found[0]

    def _see_files(self, record: Record) -> None:
        """See that nobody wrote to the VM's files since they were stored."""
        for file in record.files:
            try:
                with working(f"look at {file.path}"):
                    found = File.look(file.path, os.stat(file.path))
            except NotFound:
                if self.losing:
                    continue
                raise
            if found != file:
                raise Refused(
                    f"{file.path} of VM {self.vm.name} was written to since it was shelved: that is not in the shelf.",
                    path=file.path,
                )

    def _demand(self) -> tuple[Shelf, Record]:
        if self.shelf is None or self.record is None:
            raise NotFound(f"The shelf of VM {self.vm.name} was not looked at.")
        return self.shelf, self.record

    def remove_leases(self) -> dict[str, t.Any]:
        """Take the VM's fixed addresses from the networks."""
        leases = Leases(self.context.host)
        removed = [lease for lease in self._demand()[0].contents.leases if leases.remove(lease)]
        return {"removed_leases": [{"network": each.network, "mac": each.mac} for each in removed]}

    def remove_disks(self) -> dict[str, t.Any]:
        """Remove the files that the shelf has, with the VM's own directory."""
        found, record = self._demand()
        guest, storage = self.vm.made(), self.context.storage
        instance = guest.recall()
        domain = read_domain(guest.xml(inactive=True))
        stored = {file.path for file in record.files}
        ours = {disk.path for disk in instance.disks}
        remove: list[str] = []
        keep: dict[str, str] = {}
        for path in sorted(stored | ours):
            others = self._users(path)
            if others:
                keep[path] = f"VM {others[0]} uses it too"
            elif storage.base_facts(path) is not None:
                keep[path] = "it is a base image"
            else:
                remove.append(path)
        for disk in domain.disks:
            if disk.image.kind == "block" and disk.target not in found.manifest.left:
                keep[disk.image.source] = "it is a block device; the shelf has what is in it"
        for target, what in {**found.contents.volumes, **found.manifest.left}.items():
            disk_there = domain.disk(target)
            if disk_there:
                keep[disk_there.image.source] = what
        directory = removal.own_directory(guest.uuid, instance)
        return {**remove_files(storage, remove, directory), "kept_disks": keep}

    def _users(self, path: str) -> list[str]:
        """Other VMs that use a file."""
        owners = self.context.disk_owners
        return [
            owner
            for each in dict.fromkeys((path, os.path.realpath(path)))
            for owner in owners.get(each, [])
            if owner != self.vm.made().uuid
        ]

    def undefine(self) -> None:
        """Forget the VM, with all that libvirt keeps of it."""
        self.vm.made().undefine()
        self.vm.guest = self.vm.seen = None
        self.vm.absent = status_of(shelf.VM_STATES[shelf.OFFLOADED])

    def finish(self) -> None:
        """Say in the store that the VM can be brought back anywhere."""
        _let_go(self.context, self._demand()[0])


def _nothing() -> None:
    """What a step that only looks takes back."""


# ---- bringing back


class _Returning:
    """The steps that make a shelved VM what it was, on its host."""

    def __init__(self, context: Context, vm: Subject, mark: Mark, dead: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.guest, _seen, self.state = vm.there()
        self.record = Record.load(mark)
        self.images = [shelf.claim_id(self.record.set_id), *self.record.images]
        self.dead = dead

    def plan(self) -> Plan:
        """What there is to do."""
        guest, dead, record = self.guest, self.dead, self.record
        if dead and dead.action == OFFLOAD and dead.step in _LOSING:
            raise Busy(
                f"VM {guest.name} is busy: its host was letting go of it, and that died ({dead.step}).",
                hint="Run the task with state: offloaded to finish it, and this one afterwards.",
            )
        demand(UNSHELVE, replace(self.state, running="") if dead else self.state, name=guest.name)
        demand_store(self.context, record, name=guest.name)
        found = shelf_of(self.context, self.vm)
        self._check_claim()
        name = rules.set_name(guest.name)
        steps = []
        if dead and dead.action == OFFLOAD and found and found.contents.leases:
            leases = found.contents.leases
            steps.append(Step("restore_leases", lambda: self._restore(leases)))
        off = self.state.condition in ("stopped", "suspended")
        power = power_after(
            self.ask["power"], record.power_before, memory=record.memory, force=self.ask["force"], name=guest.name
        )
        if power == "stopped" and self.state.condition == "suspended":
            steps.append(Step("discard_save", guest.discard_save))
        if power == "running" and off:
            steps.append(Step("start", self.start, undo=_nothing, lasting=True))
        steps += [Step("unmark", self.unmark), Step("drop_shelf", self.drop)]
        vm_state = "active" if power == "running" or not off else power
        self.vm.journal = Journal.begin(
            UNSHELVE, self.context.clock.now(), set=record.set_id, images=self.images, store=record.place
        )
        running = {"active": "RUNNING"}.get(vm_state, "SHUTDOWN")
        return Plan(
            before=_told(self.state, name),
            after={"status": status_of(vm_state), "power_state": running, "shelf": ""},
            steps=steps,
            action=UNSHELVE,
            journaled=True,
            figures={"set": record.set_id, "image": name},
            warnings=[] if found else [f"its shelf in {record.place} is not whole; what is left of it is removed."],
        )

    def _check_claim(self) -> None:
        claim = claim_of(self.context, self.record.set_id)
        if claim and claim.host != self.context.host.name and not self.ask["override_claim"]:
            raise Refused(
                f"VM {self.guest.name} was taken over by {claim.host}, since {claim.since}, and may run there.",
                hint="See that it does not, and say override_claim: true.",
                host=claim.host,
                since=claim.since,
            )

    def _restore(self, leases: t.Iterable[shelf.Lease]) -> None:
        for lease in leases:
            Leases(self.context.host).add(lease)

    def start(self) -> None:
        """Boot, or go on with the memory that was saved."""
        if not self.guest.active():
            self.guest.start()

    def unmark(self) -> None:
        """It is a VM like others from here on."""
        self.guest.set_autostart(self.record.autostart)
        instance: Instance = self.guest.recall()
        self.guest.remember(instance.unmarked(shelf.VM_STATES[shelf.SHELVED]))

    def drop(self) -> dict[str, t.Any]:
        """Remove the shelf."""
        return drop(self.context, self.images)
