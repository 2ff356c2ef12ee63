# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Removing a VM, at once or with time to think again (Nova: delete, soft delete, restore, reclaim)."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from datetime import timedelta

from .._core.clock import parse_stamp, stamp
from .._core.errors import Busy, Invalid, Refused
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt.launcher import remove_files
from .._model import removal
from .._model.actions import demand
from .._model.domain import Domain, read_domain
from .._model.instance import Instance, Mark
from .._model.rescue import RESCUED, Record, rescued_mark
from .._model.resize import PLACE, RESIZED, resized_mark
from .._model.resize import Record as ResizeRecord
from .._model.shelf import SHELVED
from .._model.shelve import Record as ShelfRecord
from .._model.shelve import shelved_mark
from .._model.status import status_of
from .._model.unshelve import Began
from .._task import Context, Subject
from .inplace import give_back as give_size_back
from .rescue import give_back
from .shelves import UNSHELVE, claim_of, demand_store, drop, ids_of, shelf_of, withdraw
from .stopping import stop

SOFT_DELETED = "soft-delete"


def delete(context: Context, vm: Subject) -> Plan:
    """Remove a VM. The definition goes last: with the journal in it, it tells a later run what was begun."""
    guest, seen, state = vm.there()
    demand("delete", state, name=guest.name)
    owners = context.disk_owners
    others = {
        path: next(uuid_ for uuid_ in uuids if uuid_ != guest.uuid)
        for path, uuids in owners.items()
        if any(uuid_ != guest.uuid for uuid_ in uuids)
    }
    _demand_one_side(vm)
    before = _definition_before(seen.instance)  # which has all of its disks
    chosen = removal.choose(
        before or read_domain(guest.xml(inactive=seen.persistent)),
        seen.instance,
        context.params["remove_disks"],
        others,
        name=guest.name,
    )
    directory = removal.own_directory(guest.uuid, seen.instance)
    images, set_id, began = _on_shelf(context, vm)

    def drop_shelf() -> dict[str, t.Any]:
        if began:
            withdraw(context, guest.uuid, began)
            remove_files(context.storage, began.made, began.directory)
        return drop(context, images, set_id)

    def undefine() -> None:
        if seen.persistent:
            guest.undefine()
        vm.guest = vm.seen = None

    steps = [
        *stop(context, vm),
        *give_back(context, vm),  # what undefining removes with it is that VM's own then
        *give_size_back(context, vm),
        Step("remove_disks", lambda: remove_files(context.storage, chosen.remove, directory)),
        *([Step("drop_shelf", drop_shelf)] if images else []),
        Step("undefine", undefine),
    ]
    return Plan(
        before={"status": state.status, "power_state": state.power_state, "disks": sorted(chosen.remove)},
        after={"status": "ABSENT", "power_state": "NOSTATE", "disks": []},
        steps=steps,
        action="delete",
        journaled=seen.persistent,
        figures={"kept_disks": dict(chosen.keep)},
    )


def _definition_before(instance: Instance) -> Domain | None:
    """The definition of a VM before a rescue or a resize."""
    rescued, resized = rescued_mark(instance.marks), resized_mark(instance.marks)
    if rescued:
        return Record.load(rescued).domain
    return ResizeRecord.load(resized).domain if resized else None


def _demand_one_side(vm: Subject) -> None:
    """See that the VM is on one host only.

    :raises Refused: It moved, and what is on the other host is the way back.
    """
    mark = resized_mark(vm.instance.marks)
    record = ResizeRecord.load(mark) if mark else None
    if record and record.side != PLACE:
        raise Refused(
            f"VM {vm.name} has moved and waits for that to be confirmed or reverted: it is on {record.host} as well.",
            hint="Use vm_migrate with state: confirmed or state: reverted first.",
            host=record.host,
        )


def _on_shelf(context: Context, vm: Subject) -> tuple[list[str], str, Began | None]:
    """The images of the shelf of a VM that goes, its identifier, and what an unshelving has begun that has not ended;
    nothing of one that has no shelf.

    :raises Busy: Another host brings it back.
    """
    guest, seen, _state = vm.there()
    journal, mark = seen.instance.journal, shelved_mark(seen.instance.marks)
    if journal and journal.action == UNSHELVE and "disks" in journal.data:
        began = Began.load(journal.data)
        demand_store(context, began.store, began.place, name=guest.name)
        return list(began.images), began.set_id, began
    if mark is None:
        return [], "", None
    record = ShelfRecord.load(mark)
    demand_store(context, record.store, record.place, name=guest.name)
    _see_claim(context, record.set_id, guest.name)
    return list(record.images), record.set_id, None


def _see_claim(context: Context, set_id: str, name: str) -> None:
    claim = claim_of(context, set_id)
    if claim and claim.host != context.host.name:
        raise Busy(
            f"VM {name} is just brought back from its shelf on {claim.host}, since {claim.since}.",
            hint="Remove it there when that has ended.",
            host=claim.host,
            since=claim.since,
        )


def discard(context: Context, vm: Subject) -> Plan:
    """Remove the shelf of a VM that no host has."""
    found = shelf_of(context, vm)
    if found is None:
        return Plan(before={"status": "ABSENT"}, after={"status": "ABSENT"})
    name = found.manifest.vm
    if context.params["reclaim_after"]:
        raise Refused(
            f"VM {name} is {vm.absent}: it has no definition that could remember until when it can be restored.",
            hint="Unshelve it first, or remove it at once, with reclaim_after: 0.",
            status=vm.absent,
        )
    if found.state == SHELVED and found.contents.host != context.host.name:
        raise Refused(
            f"VM {name} is shelved, and {found.contents.host} still has it.",
            hint=f"Run the task on {found.contents.host}.",
            host=found.contents.host,
        )
    _see_claim(context, found.key, name)

    def drop_shelf() -> dict[str, t.Any]:
        figures = drop(context, ids_of(found.manifest), found.key)
        vm.absent = "ABSENT"
        return figures

    return Plan(
        before={"status": vm.absent, "power_state": "NOSTATE", "shelf": found.manifest.name},
        after={"status": "ABSENT", "power_state": "NOSTATE", "shelf": ""},
        steps=[Step("drop_shelf", drop_shelf)],
        action="delete",
        figures={"kept_disks": dict(found.contents.volumes)},
    )


def soft_delete(context: Context, vm: Subject) -> Plan:
    """Stop a VM and mark it as deleted."""
    guest, seen, state = vm.there()
    before = {"status": state.status, "power_state": state.power_state}
    if not demand("soft_delete", state, name=guest.name):
        return Plan(before=before, after=before)
    _demand_one_side(vm)
    if not seen.persistent:
        raise Refused(
            f"VM {guest.name} is transient: it cannot be kept.", hint="Remove it at once, with reclaim_after: 0."
        )
    now = context.clock.now()
    reclaim_at = stamp(now + timedelta(seconds=context.params["reclaim_after"]))
    journal = seen.instance.journal
    # A run that died after it stopped the VM wrote down what was before.
    was = dict(journal.data) if journal and journal.action == "soft_delete" else {}
    data = {
        "reclaim_at": reclaim_at,
        "power_before": was.get("power_before", state.condition),
        "autostart": was.get("autostart", str(guest.autostart()).lower()),
    }

    def mark() -> dict[str, str]:
        guest.set_autostart(False)
        guest.remember(guest.recall().marked(Mark(SOFT_DELETED, stamp(now), data)))
        return {"reclaim_at": reclaim_at}

    vm.journal = replace(journal, data=data) if was and journal else Journal.begin("soft_delete", now, **data)
    return Plan(
        before=before,
        after={"status": "SOFT_DELETED", "power_state": "SHUTDOWN"},
        steps=[*stop(context, vm), Step("mark", mark)],
        action="soft_delete",
        journaled=True,
    )


def restore(context: Context, vm: Subject) -> Plan:
    """Bring a soft-deleted VM back as it was."""
    guest, seen, state = vm.there()
    before = {"status": state.status, "power_state": state.power_state}
    if not demand("restore", state, name=guest.name):
        return Plan(before=before, after=before)
    mark = next(mark for mark in seen.instance.marks if mark.state == SOFT_DELETED)
    starts = mark.data.get("power_before") in ("running", "asleep") and state.condition == "stopped"

    def unmark() -> None:
        guest.set_autostart(mark.data.get("autostart") == "true")
        guest.remember(guest.recall().unmarked(SOFT_DELETED))

    steps = [Step("start", guest.start)] if starts else []
    status = {"stopped": "SHUTOFF", "suspended": "SUSPENDED"}.get(state.condition, "ACTIVE")
    power = state.power_state
    if starts:
        status, power = "ACTIVE", "RUNNING"
    if rescued_mark(seen.instance.marks):
        status = status_of(RESCUED)
    if resized_mark(seen.instance.marks):
        status = status_of(RESIZED)
    return Plan(
        before=before,
        after={"status": status, "power_state": power},
        steps=[*steps, Step("unmark", unmark)],
        action="restore",
    )


def purge(context: Context, vm: Subject) -> Plan:
    """Remove a VM that was soft-deleted long enough ago."""
    _guest, seen, state = vm.there()
    mark = next((mark for mark in seen.instance.marks if mark.state == SOFT_DELETED), None)
    before = {"status": state.status, "power_state": state.power_state}
    if mark is None:
        return Plan(before=before, after=before)
    try:
        due = parse_stamp(mark.data["reclaim_at"])
    except (KeyError, ValueError) as exc:
        raise Invalid(
            f"When VM {vm.name} is due to be purged cannot be read from its metadata.",
            hint="Remove it with state: absent, or bring it back with state: restored.",
        ) from exc
    if due > context.clock.now():
        return Plan(before=before, after=before, figures={"reclaim_at": mark.data["reclaim_at"]})
    return delete(context, vm)


def is_soft_deleted(vm: Subject) -> bool:
    """Whether a purge without names is about this VM."""
    return any(mark.state == SOFT_DELETED for mark in vm.instance.marks)
