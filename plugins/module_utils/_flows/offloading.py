# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Letting a host go of a VM that is on its shelf."""

from __future__ import annotations

import os
import typing as t

from .._core.errors import Busy, Invalid, NotFound, Refused
from .._core.files import working
from .._core.journal import Journal
from .._core.plan import Step
from .._libvirt.launcher import remove_files
from .._libvirt.leases import Leases
from .._model import removal, shelf, snapshot
from .._model import shelve as rules
from .._model.domain import read_domain
from .._model.shelf import Shelf
from .._model.shelve import File, Record
from .._model.status import status_of
from .._task import Context, Subject
from .shelves import verify

# Steps from which on the VM is not whole on its host any more.
LOSING = ("remove_disks", "undefine")


class Offloading:
    """The steps that let a host go of a VM that is shelved.

    :param begun: The journal of a run that died.
    """

    def __init__(self, context: Context, vm: Subject, begun: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.losing = begun is not None and begun.step in LOSING
        self.shelf: Shelf | None = None
        self.record: Record | None = None

    def steps(self) -> list[Step]:
        """All of them. What the first one finds, it finds before anything is gone."""
        first = Step("verify", self.verify, undo=None if self.losing else nothing, lasting=True)
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
        claim = found[0].claim
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
        let_go(self.context, self._demand()[0])


def let_go(context: Context, found: Shelf) -> None:
    """Say in the store that no host has the VM any more."""
    first = found.manifest.members[0]
    image = context.store.get(first.id)
    if image is None:
        raise NotFound(f"Image {first.id} of the shelf {found.manifest.name} is not in {context.store.place} any more.")
    context.store.update(image, properties={shelf.STATE: shelf.OFFLOADED})


def nothing() -> None:
    """What a step that only looks takes back."""
