# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Shelving VMs, letting go of those that are shelved, and bringing back those whose host still has them (Nova: shelve,
shelve_offload, unshelve)."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from datetime import timedelta

from .._core.clock import parse_stamp, stamp
from .._core.errors import Busy, Invalid, NotFound, Refused, Unsupported
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt.leases import Leases
from .._model import shelf
from .._model import shelve as rules
from .._model.actions import demand
from .._model.instance import Mark
from .._model.shelve import Record
from .._model.status import status_of
from .._model.unshelve import power_after
from .._task import Context, Subject
from .offloading import LOSING, Offloading, let_go, nothing
from .shelves import OFFLOAD, SHELVE, UNSHELVE, claim_of, dead_run, demand_same, demand_store, drop, shelf_of, told
from .shelving import Shelving, finish_mark, take_back, to_run


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
    dead = dead_run(vm)
    return mark is not None and (mark.data.get("offload") == rules.LATER or bool(dead and dead.action == OFFLOAD))


def offloading(context: Context) -> list[str]:
    """The UUIDs of VMs that were shelved here and are not here any more, without their shelves saying so."""
    if context.params["state"] != "offloaded":
        return []
    found = shelf.shelves(context.store.find(properties={"image_type": shelf.KIND}))
    return [
        each.manifest.vm_uuid
        for each in found
        if each.state == shelf.SHELVED and each.contents.host == context.host.name and not each.claim
    ]


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
    dead, mark = dead_run(vm), rules.shelved_mark(vm.instance.marks)
    if dead and dead.action == OFFLOAD:
        return offload(context, vm)
    if mark is None:
        return Shelving(context, vm, dead).plan(goes_on=False)
    demand(SHELVE, replace(state, running="") if dead and dead.action == SHELVE else state, name=guest.name)
    record = Record.load(mark)
    before = told(state, rules.set_name(guest.name))
    if dead is None:
        return Plan(before=before, after=before, figures={"set": record.set_id})
    vm.journal = dead
    return Plan(
        before=before,
        after=told(replace(state, status=status_of(mark.state)), rules.set_name(guest.name)),
        steps=[Step("finish", lambda: finish_mark(vm, dead))],
        action=SHELVE,
        journaled=True,
        figures={"set": record.set_id},
    )


def offload(context: Context, vm: Subject) -> Plan:
    """Let the host go of a VM that is shelved, or of one that is not yet."""
    if vm.guest is None:
        return _gone(context, vm)
    _demand_local(context, vm.name)
    guest, _seen, state = vm.there()
    dead, mark = dead_run(vm), rules.shelved_mark(vm.instance.marks)
    older_than = context.params["older_than"]
    if mark is None:
        if older_than is not None:
            before = told(state)
            return Plan(before=before, after=before)
        return Shelving(context, vm, dead).plan(goes_on=True)
    demand(OFFLOAD, replace(state, running="") if dead and dead.action != UNSHELVE else state, name=guest.name)
    record = Record.load(mark)
    name = rules.set_name(guest.name)
    before = told(state, name)
    begun = dead if dead and dead.action == OFFLOAD else None
    if older_than is not None and not begun:
        due = parse_stamp(mark.since) + timedelta(seconds=older_than)
        if due > context.clock.now():
            return Plan(before=before, after=before, figures={"set": record.set_id, "offload_at": stamp(due)})
    if context.params["name"] is None and record.place != context.store.place:  # another task's
        return Plan(before=before, after=before, figures={"set": record.set_id, "image_store": record.place})
    demand_store(context, record.store, record.place, name=guest.name)
    if state.condition not in ("stopped", "suspended"):
        raise Refused(
            f"VM {guest.name} is shelved, and somebody started it all the same: what it wrote since is not in the"
            " shelf.",
            hint="Use vm_shelve with state: unshelved, and shelve it again.",
        )
    work = Offloading(context, vm, begun)
    steps = work.steps()
    if dead and dead.action == SHELVE:
        steps.insert(0, Step("finish", lambda: finish_mark(vm, dead)))
    vm.journal = Journal.begin(OFFLOAD, context.clock.now()) if begun is None else begun
    return Plan(
        before=before,
        after=told(None, name),
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
    before = told(None, found.manifest.name)
    figures = {"set": found.key}
    if found.state == shelf.OFFLOADED or found.claim:
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
        after=told(None, found.manifest.name),
        steps=[Step("finish", lambda: let_go(context, found))],
        action=OFFLOAD,
        figures=figures,
    )


def bring_back(context: Context, vm: Subject) -> Plan:
    """Make a VM what it was before it was shelved, while its host still has it."""
    guest, _seen, state = vm.there()
    dead, mark = dead_run(vm), rules.shelved_mark(vm.instance.marks)
    if mark is not None:
        return _Returning(context, vm, mark, dead).plan()
    if dead is None or dead.action == OFFLOAD:
        demand(UNSHELVE, state, name=guest.name)
        demand_same(context, guest)
        before = told(state)
        return Plan(before=before, after=before)
    vm.journal = dead
    ran = dead.action == SHELVE and to_run(dead.data.get("power_before", ""))
    after = {**told(state), "status": status_of("active"), "power_state": "RUNNING"} if ran else told(state)
    if dead.action == SHELVE:
        steps = [Step("take_back", lambda: take_back(context, vm, dead.data))]
    else:
        images = dead.data.get("images", [])
        demand_store(context, dead.data.get("store", ""), dead.data.get("place", ""), name=guest.name)
        steps = [Step("drop_shelf", lambda: drop(context, images, dead.data.get("set") or dead.data.get("set_id", "")))]
    return Plan(
        before=told(state, rules.set_name(guest.name)),
        after={**after, "shelf": ""},
        steps=steps,
        action=UNSHELVE,
        journaled=True,
    )


# ---- bringing back


class _Returning:
    """The steps that make a shelved VM what it was, on its host."""

    def __init__(self, context: Context, vm: Subject, mark: Mark, dead: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.guest, _seen, self.state = vm.there()
        self.record = Record.load(mark)
        self.dead = dead

    def plan(self) -> Plan:
        """What there is to do."""
        guest, dead, record = self.guest, self.dead, self.record
        if dead and dead.action == OFFLOAD and dead.step in LOSING:
            raise Busy(
                f"VM {guest.name} is busy: its host was letting go of it, and that died ({dead.step}).",
                hint="Run the task with state: offloaded to finish it, and this one afterwards.",
            )
        demand(UNSHELVE, replace(self.state, running="") if dead else self.state, name=guest.name)
        demand_store(self.context, record.store, record.place, name=guest.name)
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
            steps.append(Step("start", self.start, undo=nothing, lasting=True))
        steps += [Step("unmark", self.unmark), Step("drop_shelf", self.drop)]
        vm_state = "active" if power == "running" or not off else power
        self.vm.journal = Journal.begin(
            UNSHELVE,
            self.context.clock.now(),
            set=record.set_id,
            images=list(record.images),
            store=record.store,
            place=record.place,
        )
        running = {"active": "RUNNING"}.get(vm_state, "SHUTDOWN")
        return Plan(
            before=told(self.state, name),
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
        self.guest.remember(self.guest.recall().unmarked(shelf.VM_STATES[shelf.SHELVED]))

    def drop(self) -> dict[str, t.Any]:
        """Remove the shelf."""
        return drop(self.context, self.record.images, self.record.set_id)
