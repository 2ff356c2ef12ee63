# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Bringing the VMs of a dead host up on one that survives, from what the dead one wrote on shared storage.

The order is: the tombstone, so that neither the dead host nor another survivor starts the VM; the definition, with a
generation by which it is told from the stale one; disks that are made anew when that is wanted; the start. Killed
anywhere, the next run goes on; failed, all of it is taken back.
"""

from __future__ import annotations

import getpass
import os
import platform
import secrets
import typing as t
from dataclasses import replace

from .._core.clock import stamp
from .._core.errors import Busy, InUse, Invalid, LifecycleError, NotFound, Refused
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt import machine
from .._libvirt.chains import Chains
from .._libvirt.definition import Definition
from .._libvirt.files import make_directory
from .._libvirt.inventory import Inventory
from .._libvirt.records import Vault
from .._model import records
from .._model.facts import Sighting, tell_vm
from .._model.instance import Instance, Origin
from .._model.records import Finding, Loss, Record, Survivor, Tombstone
from .._model.statistics import Size
from .._task import Context, Subject
from .anew import Disks, why_imageless

Result = dict[str, t.Any]

ACTION = "evacuate"
# Seconds between attempts to start a VM whose disks are locked.
_PAUSE = 1.0
# What QEMU and libvirt say when another has a disk open, in part.
_IN_USE = ('failed to get "write" lock', 'failed to get shared "write" lock', "lockspace resource", "is locked")


class Scene:
    """What there is to evacuate, and where it goes. It is looked at once a task."""

    def __init__(self, context: Context) -> None:
        if not context.host.local:
            raise Invalid(
                f"Records are read on the KVM host itself, and {context.host.uri} is another machine.",
                hint="Run the task on the host, with the uri qemu:///system.",
            )
        self.context = context
        self.vault = Vault(context.params["records"] or "", context.params["host"])
        self.records, self.problems = self.vault.read()
        self.others = self.vault.others()
        self.tombstones = self.vault.tombstones()
        self.chains = Chains(context.host)
        self._vms = {guest.uuid: guest.name for guest in context.host.guests()}
        self._macs = context.host.macs()
        self._networks = [network for network in Inventory(context.host).networks() if network.active]
        self._links = {*machine.links(), *(network.bridge for network in self._networks if network.bridge)}

    def record(self, word: str) -> Record | None:
        """Of the VM with that name or UUID."""
        return next((record for record in self.records if word in (record.name, record.uuid)), None)

    def survivor(self, record: Record) -> Survivor:
        """This host, as it is for that VM."""
        missing, known = self.missing(record), record.instance
        # Where the storage itself is not, nothing is made in its place.
        placed = known.launch is not None and os.path.isdir(known.launch.storage)
        files = {*missing, *(disk.path for disk in known.disks if disk.role == records.CONFIG)}
        vacant = {path for path in files if placed and not os.path.lexists(path)}
        wanted = "disks" in self.context.params["lose"] and bool(vacant & missing)
        return Survivor(
            name=self.context.host.name,
            vms=self._vms,
            macs=self._macs,
            networks=[network.name for network in self._networks],
            links=self._links,
            missing=missing,
            vacant=vacant,
            imageless=why_imageless(self.context, record) if wanted else "",
            unsupported=self._unsupported(record),
        )

    def missing(self, record: Record) -> set[str]:
        """Images of disks and other files that are not seen from here. A disk counts as missing when something that it
        lies upon is. Formats are what the definition and headers declare: nothing is probed."""
        disks = record.needs.domain.disks
        gone = {
            disk.image.source
            for disk in disks
            if not disk.empty and disk.device in ("disk", "lun") and not self._seen(record, disk.target)
        }
        return gone | {path for path in records.files_of(record) if not os.path.exists(path)}

    def _seen(self, record: Record, target: str) -> bool:
        disk = record.needs.domain.disk(target)
        if disk is None or disk.image.kind not in ("file", "block", "volume"):
            return True  # whether a server has it, only QEMU can tell
        try:
            image = self.chains.resolved(disk.image)
        except LifecycleError:
            return False
        if image.kind not in ("file", "block"):
            return True
        chain = self.chains.below(image)
        return all(layer.image.path is None or os.path.exists(layer.image.path) for layer in chain.layers)

    def _unsupported(self, record: Record) -> str:
        domain = record.needs.domain

        def ask() -> str:
            try:
                self.context.host.platform(machine=domain.machine, domain_type=domain.type, arch=domain.arch)
            except LifecycleError as exc:
                return exc.message
            return ""

        return self.context.once(f"platform {domain.machine} {domain.type} {domain.arch}", ask)

    def tombstone(self, record: Record) -> Tombstone | None:
        """Of the VM's generation."""
        return self.tombstones.get((record.uuid, record.generation))

    def judge(self, record: Record) -> tuple[list[Finding], list[Loss]]:
        """All that stands in the way, and all that would be lost."""
        survivor, lose = self.survivor(record), self.context.params["lose"]
        stone, others = self.tombstone(record), self.others.get(record.uuid, [])
        return records.judge(record, others, stone, survivor, lose=lose), records.losses(record, survivor)

    def tell(self, record: Record) -> Result:
        """A VM in the shape of ``vms`` in the facts that planners have."""
        sizes: dict[tuple[str, int | None], Size] = {}
        for disk in record.needs.domain.disks:
            if disk.image.path and self._seen(record, disk.target):
                top = self.chains.below(disk.image).layers[0]
                sizes[(disk.target, None)] = Size(disk.image.path, top.capacity, top.allocation)
        sight = Sighting(record.observation(), record.tree, record.state in records.ON, record.autostart, sizes)
        told = tell_vm(sight, record.needs, {})
        findings, lost = self.judge(record)
        tombstone = self.tombstone(record)
        roles = {loss.target: loss.role for loss in lost if loss.kind == "disks"}
        anew = records.sizes_anew(record.instance) if "disks" in self.context.params["lose"] else {}
        for disk in told["disks"]:
            target, drive = disk["target"], record.needs.domain.disk(disk["target"])
            disk["here"] = target not in roles
            # What is in other drives is taken out when it is not seen.
            left_out = drive is not None and drive.device in ("cdrom", "floppy") and not disk["network"]
            again = bool(roles.get(target)) and target in anew
            disk["anew"] = again or (left_out and not os.path.exists(disk["path"]))
            disk["size"] = anew.get(target, 0) if disk["anew"] else disk["size"]
        return {
            **told,
            "state": record.state,
            "at": record.at,
            "generation": record.generation,
            "tombstone": tombstone.tell() if tombstone else None,
            "findings": [dict(vars(finding)) for finding in findings],
            "lost": [dict(vars(loss)) for loss in lost],
        }


def scene(context: Context) -> Scene:
    """Looked at once a task."""
    return context.once("evacuation", lambda: Scene(context))


def tell_records(context: Context) -> Result:
    """What a host wrote of its VMs."""
    now = scene(context)
    return {
        "host": now.vault.host,
        "directory": now.vault.directory,
        "vms": [now.tell(record) for record in now.records],
        "problems": now.problems,
    }


def all_left(context: Context) -> list[str]:
    """The names of VMs that are evacuated when a task names none: all but those that another host has evacuated, and
    those that are here already."""
    now, me = scene(context), context.host.name
    here = {guest.uuid for guest in context.host.guests()}
    stones = ((record, now.tombstone(record)) for record in now.records if record.uuid not in here)
    return [record.name for record, stone in stones if stone is None or (stone.to == me and not stone.settled)]


def is_left(vm: Subject) -> bool:
    """Whether a VM that is here already was left half evacuated."""
    journal = vm.instance.journal
    return journal is not None and journal.action == ACTION


def evacuate(context: Context, vm: Subject) -> Plan:
    """Bring one VM up here."""
    now = scene(context)
    # A VM here that has only the name is another one.
    record = (now.record(vm.guest.uuid) if vm.guest else None) or now.record(vm.name)
    if record is None:
        return _without_record(context, vm)
    vm.name = record.name
    stone = now.vault.tombstone(record)
    here = context.host.guest_of(record.uuid)
    mine = stone is not None and stone.to == context.host.name
    instance = here.recall() if here else Instance()
    done = mine and stone is not None and here is not None and instance.generation == stone.token
    went = mine and stone is not None and stone.settled and here is None
    if stone and (went or (done and not (instance.journal and instance.journal.action == ACTION))):
        same = {"host": context.host.name}
        return Plan(before=same, after=same, action=ACTION, figures=_figures(record, stone))
    if not context.params["evidence"].strip():
        raise Invalid("evidence is empty.", hint="Say what proves that the host is dead.")
    lost = [] if done else _demand_nothing_in_the_way(context, now, record)
    work = _Work(context, vm, now.vault, record, stone if mine else None, lost)
    return work.plan(defined=done)


def _without_record(context: Context, vm: Subject) -> Plan:
    instance = vm.instance
    if vm.guest and instance.generation and not is_left(vm):
        same = {"host": context.host.name}
        return Plan(before=same, after=same, action=ACTION)
    raise NotFound(
        f"{context.params['host']} has written no record of VM {vm.name}.",
        hint="Look at what there is with vm_records_info.",
        name=vm.name,
    )


def _figures(record: Record, stone: Tombstone) -> Result:
    return {"token": stone.token, "record_at": record.at, "lost": [dict(vars(loss)) for loss in stone.lost]}


def _demand_nothing_in_the_way(context: Context, now: Scene, record: Record) -> list[Loss]:
    """What will be lost, and may be."""
    findings, lost = now.judge(record)
    if findings:
        raise Refused(
            f"VM {record.name} of {record.host} cannot be brought up on {context.host.name}: "
            + " ".join(finding.message for finding in findings),
            hint=" ".join(finding.way_out for finding in findings),
            findings=[dict(vars(finding)) for finding in findings],
            lost=[dict(vars(loss)) for loss in lost],
        )
    return lost


class _Work:
    """The steps for one VM.

    :param stone: The tombstone that a run which was killed has set.
    :param lost: What is lost, beside what that run has found to be.
    """

    def __init__(
        self,
        context: Context,
        vm: Subject,
        vault: Vault,
        record: Record,
        stone: Tombstone | None,
        lost: t.Sequence[Loss],
    ) -> None:
        self.context = context
        self.vm = vm
        self.vault = vault
        self.record = record
        self.buried = stone is not None
        known = stone or Tombstone(
            to=context.host.name,
            at=stamp(context.clock.now()),
            token=secrets.token_hex(8),
            by=f"{getpass.getuser()}@{platform.node()}",
            evidence=context.params["evidence"].strip(),
        )
        self.stone = replace(known, lost=tuple(dict.fromkeys((*known.lost, *lost))))
        self.disks = Disks(context, record, self.stone.lost)
        self.wanted = records.wanted_state(record, context.params["start"])

    def plan(self, *, defined: bool) -> Plan:
        """What is to be done.

        :param defined: A run that was killed has defined the VM.
        """
        steps = [] if self.buried else [Step("bury", self.bury, self.unbury)]
        steps.append(Step("define", self.define, self.undefine))
        if self.disks.disks:
            steps.append(Step("make_disks", self.make_disks, self.remove_disks))
        if self.wanted != "off":
            steps.append(Step("start", self.start, self.stop))
        instance = self.record.instance
        half = instance.journal
        warnings = [f"{self.record.host} died during {half.action} of the VM, since {half.since}."] if half else []
        status = {"running": "ACTIVE", "paused": "PAUSED", "off": "SHUTOFF"}[self.wanted]
        power = {"running": "RUNNING", "paused": "PAUSED", "off": "SHUTDOWN"}[self.wanted]
        return Plan(
            before={"host": self.record.host},
            after={"host": self.context.host.name, "status": status, "power_state": power},
            steps=steps,
            action=ACTION,
            journaled=True,
            figures=_figures(self.record, self.stone),
            warnings=warnings if not defined else [],
        )

    def bury(self) -> None:
        """Set the tombstone: from now on the VM is this host's."""
        self.vault.bury(self.record, self.stone)

    def unbury(self) -> None:
        """Take it away again."""
        self.vault.unbury(self.record, self.stone)

    def define(self) -> Result:
        """Define the VM, with its new generation and where it comes from."""
        definition = Definition(self.record.xml)
        known = definition.instance
        origin = known.origin or Origin(
            self.record.node, self.stone.at, _condition(self.record.state), f"evacuated: {self.stone.evidence}"
        )
        journal = self.vm.journal or Journal.begin(ACTION, self.context.clock.now())
        definition.remember(replace(known, generation=self.stone.token, origin=origin, journal=journal))
        for loss in self.disks.disks:
            definition.place(loss.target, loss.path)
        ejected = definition.eject_missing(self.disks.config())
        for output in self.record.needs.outputs:
            make_directory(os.path.dirname(output))
        guest = self.context.host.define(definition.text)
        self.vm.guest = guest
        self.vault.settle(self.record, self.stone)
        guest.set_autostart(self.record.autostart)
        return {"ejected": ejected} if ejected else {}

    def undefine(self) -> None:
        """Forget it again, unless a run that was killed has started it. Files on the shared storage stay."""
        guest = self.context.host.guest_of(self.record.uuid)
        if guest and guest.active():
            return
        if guest and guest.recall().generation == self.stone.token:
            guest.undefine(keep_nvram=True)
        self.vm.guest = None
        if self.buried:
            self.unbury()

    def make_disks(self) -> Result:
        """Make disks anew that were lost."""
        return self.disks.make(self.vm.made())

    def remove_disks(self) -> None:
        """Remove them again, unless a run that was killed has started the VM."""
        guest = self.context.host.guest_of(self.record.uuid)
        if guest is None or not guest.active():
            self.disks.remove()

    def start(self) -> Result:
        """Start it. Locks of a dead host may be let go of late by a cluster's file system.

        :raises InUse: They are not: the host is alive.
        """
        guest, clock = self.vm.made(), self.context.clock
        deadline = clock.monotonic() + self.context.params["lock_timeout"]
        attempts = 0
        while not guest.active():
            attempts += 1
            try:
                guest.start(paused=self.wanted == "paused")
            except LifecycleError as exc:
                if not _says_in_use(exc):
                    raise
                if clock.monotonic() >= deadline:
                    raise InUse(
                        f"VM {guest.name} was not brought up: another host has its disks open. {exc.message}",
                        hint=f"{self.record.host} is alive, whatever was said of it. Nothing was left behind here.",
                    ) from exc
                clock.sleep(_PAUSE)
        return {"attempts": attempts} if attempts else {}

    def stop(self) -> None:
        """Take it back."""
        guest = self.vm.guest
        if guest and guest.active():
            guest.power_off()


def _condition(state: str) -> str:
    return state if state in ("running", "paused", "suspended") else "off"


def _says_in_use(exc: LifecycleError) -> bool:
    low = exc.message.lower()
    return isinstance(exc, Busy) or any(part in low for part in _IN_USE)
