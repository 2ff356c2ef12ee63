# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Moving a VM that runs to another host (Nova: live-migrate).

The VM's journal lies in its definition and travels with it. While the VM is at the source, the migration has not ended;
once it is at the destination, with the journal, only the last step is left.
"""

from __future__ import annotations

import contextlib
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

from .._core import lock
from .._core.clock import wait_until
from .._core.errors import Busy, Invalid, LifecycleError, NotFound, Refused, TimedOut, Unreachable
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._libvirt.inventory import Inventory
from .._libvirt.leases import Leases
from .._libvirt.migration import Migration, adopt_checkpoint, checkpoints_of, completed_statistics
from .._model import endpoints
from .._model import migration as model
from .._model.actions import demand
from .._model.domain import read_domain
from .._model.migration import (
    ABORT,
    ARRIVED,
    BROKEN,
    FORCE,
    POST_COPY,
    STAYED,
    UNDER_WAY,
    Course,
    Decision,
    Order,
    Seen,
    Statistics,
)
from .._model.needs import read_needs
from .._model.placing import Layout
from .._model.preflight import LIVE
from .._model.shelf import Lease
from .._model.status import PAUSED, SHUTOFF, status_of
from .._task import Context, Side, Subject
from . import cold, preflight
from .noting import Noting
from .placing import Placing

ACTION = "live_migrate"
# Seconds between looks at a migration that runs.
_INTERVAL = 0.5
# Seconds that libvirtd has to come back in the middle of a migration, and that the two ends have to agree afterwards.
_PATIENCE = 60
# Seconds that the destination has to come back when it is certain that the VM has stayed: it may have files to tidy up.
_SHORT = 15
# Seconds that a migration has to end once it is forced: the guest changes nothing more, and what is left goes over the
# network once.
_LONG = 3600


def destination(context: Context) -> Side:
    """The host that the VM shall be on.

    :raises Invalid: The task names none.
    :raises Unreachable: It does not answer.
    """
    ask = context.params
    if not ask["dest"]:
        raise Invalid(f"state: {ask['state']} needs dest, the host that the VM moves to.")
    return context.side(endpoints.connection_uri(ask["dest"], ask["dest_transport"], insecure_tcp=ask["insecure_tcp"]))


def migrate(context: Context, vm: Subject) -> Plan:
    """Move a VM to the destination, unless it is there; or finish what a run that died has begun."""
    there = destination(context)
    if there.host.name == context.host.name:
        return _at_home(context, vm)
    find(context, vm, there)
    if vm.made().host is there.host:
        return arrived(context, vm, there)
    if cold.takes(context, vm):
        return cold.move(context, vm, there)
    return _Live(context, vm, there).plan()


def find(context: Context, vm: Subject, there: Side) -> None:
    """Look for a VM that the source does not have at the destination.

    :raises NotFound: It is not there either.
    """
    if vm.guest is not None:
        return
    found = pick(there.host.guests(), [vm.name])[0]
    if not isinstance(found, Guest):
        raise NotFound(
            f"There is no VM with the name or UUID {vm.name!r} on {context.host.name} or {there.host.name}.",
            name=vm.name,
        )
    vm.name, vm.guest = found.name, found
    vm.seen = found.look(running=lock.holder(lock.key_of(context.host.name, found.name)))


def _at_home(context: Context, vm: Subject) -> Plan:
    if vm.guest is None:
        raise NotFound(f"There is no VM with the name or UUID {vm.name!r} on {context.host.name}.", name=vm.name)
    return _unchanged(vm)


def _unchanged(vm: Subject) -> Plan:
    guest, _seen, state = vm.there()
    what = {"status": state.status, "power_state": state.power_state, "host": guest.host.name}
    return Plan(before=what, after=what)


def arrived(context: Context, vm: Subject, there: Side) -> Plan:
    """The VM is at the destination. If the run that brought it has died, something may be left to be done."""
    journal = vm.instance.journal
    if journal is None or journal.action != ACTION or journal.data.get("dest") != there.uri:
        return _unchanged(vm)
    return _Live(context, vm, there).last(journal)


def abort(context: Context, vm: Subject) -> Plan:
    """Give up the migration of a VM that is under way, by whomever it was begun; the VM stays where it is.

    :raises NotFound: The VM is not here, or not any more.
    """
    if vm.guest is None:
        raise NotFound(
            f"There is no VM with the name or UUID {vm.name!r} on {context.host.name}: a migration of it has ended, or"
            " there was none.",
            name=vm.name,
        )
    journal, running = _under_way(vm)
    guest, _seen, state = vm.there()
    if journal is None and not running and not Migration(guest).running():
        return _unchanged(vm)
    demand("live_migrate_abort", state, name=guest.name)
    other = _Other(context, vm, journal)
    what = {"status": state.status, "power_state": state.power_state}
    return Plan(
        before={**what, "migration": "under way"},
        after={"status": status_of(state.vm_state), "power_state": "RUNNING", "migration": "none"},
        steps=[Step("abort", other.abort)],
        action="live_migrate_abort",
        beside=running or journal is None,
    )


def force(context: Context, vm: Subject) -> Plan:
    """Bring the migration of a VM to its end: by post-copy if it was begun so that this is possible, else by holding
    the guest until the rest is there.

    :raises Refused: None is under way.
    :raises NotFound: The VM is not here, nor at the destination that the task names.
    """
    if vm.guest is None:
        if not context.params["dest"]:
            raise NotFound(f"There is no VM with the name or UUID {vm.name!r} on {context.host.name}.", name=vm.name)
        find(context, vm, destination(context))
        return _unchanged(vm)
    journal, running = _under_way(vm)
    guest, _seen, state = vm.there()
    if not running and not Migration(guest).running():
        raise Refused(
            f"VM {guest.name} is not being migrated.",
            hint="Use state: migrated, with policy: on_timeout if it would not end by itself.",
            status=state.status,
        )
    demand("live_migrate_force_complete", state, name=guest.name)
    what = {"status": state.status, "power_state": state.power_state}
    return Plan(
        before={**what, "migration": "under way"},
        after={"status": status_of(state.vm_state), "power_state": "RUNNING", "migration": "ended"},
        steps=[Step("force", _Other(context, vm, journal).force)],
        action="live_migrate_force_complete",
        beside=True,
    )


def _under_way(vm: Subject) -> tuple[Journal | None, bool]:
    """The journal of a VM's migration, and whether a process is at it."""
    journal, seen = vm.instance.journal, vm.seen
    running = seen is not None and seen.running is not None and seen.running.get("action") == ACTION
    return (journal if journal and journal.action == ACTION else None), running


class _Other:
    """A migration that another process began, or still is at."""

    def __init__(self, context: Context, vm: Subject, journal: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.journal = journal
        self.guest, _seen, self.state = vm.there()
        self._key = lock.key_of(context.host.name, self.guest.name)
        if journal:
            vm.journal = journal

    def _holder(self) -> t.Mapping[str, t.Any] | None:
        """Who is at it."""
        told = lock.holder(self._key)
        return told if told is not None and told.get("action") == ACTION else None

    def _runs_here(self) -> bool:
        here = self.context.host.guest_of(self.guest.uuid)
        try:
            return here is not None and here.active()
        except NotFound:  # in this very moment
            return False

    def abort(self) -> None:
        """Ask until it has ended.

        :raises Refused: It has ended by itself, at the destination.
        """
        holder = self._holder()
        migration = Migration(self.guest)

        def ended() -> bool:
            if not self._runs_here():
                return True
            if migration.running():
                with contextlib.suppress(LifecycleError):  # a moment at which it cannot be heard
                    migration.abort()
                return False
            return holder is None or not lock.is_still(self._key, holder)

        wait_until(
            ended,
            clock=self.context.clock,
            timeout=_PATIENCE,
            doing=f"waiting for the migration of VM {self.guest.name} to end",
        )
        if not self._runs_here():
            raise Refused(
                f"VM {self.guest.name} has left {self.context.host.name} before its migration was given up.",
                hint="Use state: migrated to finish it.",
            )
        if holder is None and self.journal:
            there = self.context.side(self.journal.data["dest"])
            _Live(self.context, self.vm, there).give_up(self.journal)
            # Only now: nothing can be written while a VM is being migrated.
            guest = self.vm.made()
            guest.remember(replace(guest.recall(), journal=None))

    def force(self) -> dict[str, t.Any]:
        """Bring it to its end, and wait for that."""
        migration = Migration(self.guest)
        how = ""

        def ended() -> bool:
            nonlocal how
            if not self._runs_here():
                return True
            holder = self._holder()
            if not migration.running():
                return holder is None
            # Before the memory's turn there is nothing to fetch later, and no end that is near.
            if not how and model.read_statistics(migration.statistics(), 0).phase == "memory":
                later = self.journal is not None and bool(self.journal.data.get("post_copy"))
                migration.start_post_copy() if later else migration.force()
                how = "post_copy" if later else "pause"
            return False

        wait_until(
            ended,
            clock=self.context.clock,
            timeout=_LONG,
            doing=f"waiting for the migration of VM {self.guest.name} to end",
        )
        if self._runs_here():
            raise LifecycleError(
                f"The migration of VM {self.guest.name} was to be ended ({how or 'not yet begun'}), and has failed.",
                hint="The task that began it tells why.",
            )
        if self.journal:
            there = self.context.side(self.journal.data["dest"])
            self.vm.guest = there.host.guest_of(self.guest.uuid)
        return {"forced": how} if how else {}


class _Live(Noting):
    """One live migration of one VM."""

    def __init__(self, context: Context, vm: Subject, there: Side) -> None:
        self.context = context
        self.vm = vm
        self.there = there
        self.ask = context.params
        self.guest, self.seen, self.state = vm.there()
        self.source = context.host.name
        journal = vm.instance.journal
        self.left = journal if journal and journal.action == ACTION else None
        self.policy = model.read_policy(self.ask["policy"])
        self.placing = Placing(context, vm, there)
        self.layout = Layout()
        self.joins = False
        self.decisions: list[Decision] = []
        self.lost = False  # the destination, when it was waited for in vain
        self.last_seen: Statistics | None = None

    # ---- looking

    def plan(self) -> Plan:
        """What there is to do for a VM that is at the source."""
        if self.left and self.left.data.get("dest") != self.there.uri:
            raise Busy(
                f"VM {self.guest.name} is busy: it is on its way to {self.left.data.get('dest')} since"
                f" {self.left.since}.",
                hint="Wait for it, or use state: aborted.",
                running=self.left.tell(),
            )
        state = self.state
        if self.left or (self.seen.running and self.seen.running.get("action") == ACTION):
            state = replace(state, running="", task_state="")
        demand(ACTION, state, name=self.guest.name)
        if self.state.condition not in ("running", "paused"):
            raise Refused(
                f"VM {self.guest.name} is neither running nor paused ({self.state.condition}): it cannot be migrated"
                " live.",
                hint="Use vm_power with state: running first.",
                status=self.state.status,
            )
        if self.left:
            self.layout = Layout.load(self.left.data["layout"])
            warnings: list[str] = []
        else:
            self.layout = self.placing.look()
            warnings = self._examine()
        self.vm.journal = self.left or self._journal()
        ran = self.vm.journal.data["ran"]
        steps = [self._step("migrate", self.migrate), self._step("finish", self.finish)]
        steps[0] = replace(steps[0], lasting=True)
        if self._carries():
            steps.append(self._step("let_go", self.let_go))
            self.joins = self.left is not None and Migration(self.guest).running()
            if not self.joins:
                steps.insert(0, self._step("prepare", self.prepare))
        # Taken back as a whole: it is the first step's, so it comes last whichever step fails.
        steps[0] = replace(steps[0], undo=self.stay)
        # What a run that died has forced stands still.
        status = {"status": "ACTIVE" if ran else "PAUSED", "power_state": "RUNNING" if ran else "PAUSED"}
        before, after = {**status, "host": self.source}, {**status, "host": self.there.host.name}
        return self._planned(steps, before, after, warnings)

    def _examine(self) -> list[str]:
        """See that nothing stands against it; what does not, but should be known."""
        findings = preflight.examine(self.context, self.vm, self.there, method=LIVE, layout=self.layout)
        preflight.demand(findings, self.guest.name)
        model.demand_possible(self.policy, self._ends(), name=self.guest.name)
        return [finding.message for finding in findings]

    def _ends(self) -> model.Ends:
        """What the policy's feasibility depends on."""
        versions = [Inventory(side.host).versions() for side in (self.context.here, self.there)]
        libvirts, qemus = (sorted(model.numbers(told[key]) for told in versions) for key in ("libvirt", "hypervisor"))
        return model.Ends(
            libvirt=libvirts[0],
            qemu=qemus[0],
            newest_qemu=qemus[-1],
            runs=self._runs(),
            host_devices=bool(read_needs(self.guest.xml()).devices),
        )

    def _runs(self) -> bool:
        return self.state.condition == "running"

    def _journal(self) -> Journal:
        return Journal.begin(
            ACTION,
            self.context.clock.now(),
            dest=self.there.uri,
            method=LIVE,
            ran=self._runs(),
            autostart=self.seen.persistent and self.guest.autostart(),
            checkpoints=checkpoints_of(self.guest),
            leases=[[lease.network, lease.mac, lease.xml] for lease in self._leases()],
            layout=self.layout.dump(),
            post_copy=self.policy.on_timeout == POST_COPY and self._runs(),
        )

    def _leases(self) -> tuple[Lease, ...]:
        """The fixed addresses that libvirt's networks here give the VM."""
        cards = [card for card in read_domain(self.guest.xml()).interfaces if card.kind == "network"]
        return Leases(self.context.host).of((card.source, card.mac) for card in cards) if cards else ()

    def _carries(self) -> bool:
        """Whether there is more to do for the VM's files than to leave them where they are."""
        return not self.layout.shared or bool(self.layout.secrets)

    def last(self, journal: Journal) -> Plan:
        """What there is to do for a VM that has arrived."""
        self.vm.journal = journal
        self.layout = Layout.load(journal.data["layout"])
        what = {"power_state": self.state.power_state, "host": self.there.host.name}
        after = "ACTIVE" if journal.data["ran"] else "PAUSED"
        steps = [self._step("finish", self.finish)]
        if self._carries():
            steps.append(self._step("let_go", self.let_go))
        return self._planned(steps, {**what, "status": self.state.status}, {**what, "status": after})

    def give_up(self, journal: Journal) -> None:
        """Tidy up after a run that died.

        :raises LifecycleError: What has become of the VM cannot be told, so nothing was done.
        """
        self.vm.journal = journal
        self.layout = Layout.load(journal.data["layout"])
        self.stay()

    def _planned(
        self,
        steps: list[Step],
        before: dict[str, t.Any],
        after: dict[str, t.Any],
        warnings: t.Sequence[str] = (),
    ) -> Plan:
        return Plan(
            before=before,
            after=after,
            steps=steps,
            action=ACTION,
            journaled=True,
            figures={
                "method": LIVE,
                "source": self.source,
                "dest": self.there.host.name,
                "disks": self.layout.tell(),
            },
            warnings=warnings,
            tells={"dest": self.there.uri},
            waits=True,
        )

    def _data(self) -> t.Mapping[str, t.Any]:
        if self.vm.journal is None:
            raise NotFound(f"There is no migration of VM {self.vm.name}.")
        return self.vm.journal.data

    # ---- the way

    def prepare(self) -> dict[str, t.Any]:
        """Make at the destination what libvirt does not make."""
        return self.placing.prepare(self.layout)

    def migrate(self) -> dict[str, t.Any]:
        """Carry the VM over, or join the migration that a run that died has begun, and watch it."""
        migration = Migration(self.guest)
        if not migration.running():
            if self.joins:  # it has ended in this very moment
                self.prepare()
            migration.start(self._order(), timeout=self.ask["connect_timeout"])
        elif self.policy.bandwidth:
            self._try(lambda: migration.set_bandwidth(self.policy.bandwidth))
        self._watch(migration)
        # Where the connection was lost, and not the migration, it is joined.
        while self._seen(self.context.here) is not None and (again := Migration(self.guest)).running():
            self._watch(again)
        if self._become() != ARRIVED:
            raise self._reason(migration)
        guest = self.there.host.guest_of(self.guest.uuid)
        if guest is None:
            raise NotFound(f"VM {self.guest.name} has arrived on {self.there.host.name} and is gone from there.")
        self.vm.guest = guest
        monitor = [decision.tell() for decision in self.decisions]
        return {**model.completed(completed_statistics(guest), self.last_seen), "monitor": monitor}

    def _order(self) -> Order:
        network = endpoints.migration_address(self.there.uri, self.ask["migration_network"])
        policy, runs = self.policy, self._runs()
        auto_converge, post_copy, said = model.begin(policy, runs=runs)
        self.decisions += said
        return Order(
            uri=self.there.uri,
            tls=not self.ask["insecure_tcp"],
            tls_name=endpoints.host_of(self.there.uri) if network else "",
            live=runs,
            persist=self.seen.persistent,
            undefine=self.seen.persistent,
            address=endpoints.migrate_uri(network) if network else "",
            disks=tuple(self.layout.copied),
            definition=self._definition(inactive=False),
            persistent=self._definition(inactive=True) if self.seen.persistent else "",
            bandwidth=policy.bandwidth,
            connections=policy.connections,
            compression=policy.compression,
            auto_converge=auto_converge,
            throttle=policy.throttle if auto_converge else (0, 0),
            post_copy=post_copy,
        )

    def _definition(self, *, inactive: bool) -> str:
        """The VM's definition as the destination needs it; empty when nothing differs."""
        if not self._carries():
            return ""
        domain = self.guest.xml(inactive=inactive, secure=True, migratable=True)
        made = ET.tostring(self.placing.definition(self.layout, domain, mirror=not inactive), encoding="unicode")
        return "" if made == ET.tostring(domain, encoding="unicode") else made

    def _limit(self) -> float | None:
        memory = read_domain(self.guest.xml()).memory * model.MIB
        copied = [disk.size for disk in self.layout.disks if disk.target in self.layout.copied]
        return self.policy.seconds(memory, copied)

    def _watch(self, migration: Migration) -> None:
        """See it through to its end, however that is, and see to it that it ends."""
        clock = self.context.clock
        began, limit, course = clock.monotonic(), self._limit(), Course()
        try:
            while not migration.wait(_INTERVAL):
                raw = migration.statistics()
                if not raw:
                    continue
                now = model.read_statistics(raw, clock.monotonic() - began)
                self.last_seen, course = now, course.seen(now)
                decision = model.decide(self.policy, course, now, limit)
                if decision:
                    course = course.done(self._carry_out(migration, decision))
                elif course.over == ABORT:  # one that came at a bad moment is not heard
                    self._try(migration.abort)
                self.vm.tell({**now.tell(), **({"why": self.decisions[-1].why} if decision else {})})
        except Unreachable:  # the connection, not the migration
            return

    def _carry_out(self, migration: Migration, decision: Decision) -> Decision:
        """Do it; what was done."""
        if decision.what in (ABORT, FORCE, POST_COPY) and self._held():
            done = replace(decision, what=FORCE, why="somebody else holds the guest, so that it ends")
            self.decisions.append(done)
            return done
        acts: dict[str, t.Callable[[], None]] = {
            "downtime": lambda: migration.set_downtime(decision.value or 0),
            ABORT: migration.abort,
            FORCE: migration.force,
            POST_COPY: migration.start_post_copy,
        }
        refused = self._try(acts[decision.what])
        if refused and decision.what in (FORCE, POST_COPY):
            decision = replace(decision, what=ABORT, why=f"{decision.why}; {decision.what} is not possible: {refused}")
            refused = self._try(migration.abort)
        elif refused:
            decision = replace(decision, why=f"{decision.why}; that was refused: {refused}")
        self.decisions.append(decision)
        return decision

    @staticmethod
    def _try(act: t.Callable[[], None]) -> str:
        """What libvirt says against it; empty when it is done. A migration may end at any moment."""
        try:
            act()
        except Unreachable:
            raise
        except LifecycleError as exc:
            return exc.message
        return ""

    def _held(self) -> bool:
        """Whether a guest that ran stands still, or runs at the destination already."""
        state = self._seen(self.context.here)
        return bool(self._data()["ran"]) and state is not None and state[0] == PAUSED

    def _reason(self, migration: Migration) -> LifecycleError:
        """Why it has not arrived."""
        given_up = next((decision for decision in self.decisions if decision.what == ABORT), None)
        if given_up:
            return TimedOut(
                f"Gave up migrating VM {self.guest.name} to {self.there.host.name}: {given_up.why}.",
                hint="With policy, give it more time, downtime or bandwidth, or say what shall be done on_timeout.",
                monitor=[decision.tell() for decision in self.decisions],
            )
        if migration.error and not isinstance(migration.error, Unreachable):
            return migration.error
        told = migration.failure() if self._seen(self.context.here) is not None else ""
        return migration.error or LifecycleError(
            f"Failed to migrate VM {self.guest.name} to {self.there.uri}: {told or 'libvirt does not say why'}."
        )

    # ---- what has become of it

    def _become(self) -> str:
        """What both ends say, when they agree."""
        try:
            return wait_until(
                self._settled,
                clock=self.context.clock,
                timeout=_PATIENCE,
                doing=f"waiting for both hosts to agree on VM {self.guest.name}",
            )
        except TimedOut:
            return BROKEN

    def _settled(self) -> str:
        here = self._seen(self.context.here)
        stayed = model.never_stopped(here) and not Migration(self.guest).running()
        try:
            found = model.outcome(here, self._seen(self.there, 0 if self.lost else _SHORT if stayed else _PATIENCE))
        except Unreachable:
            if not stayed:
                raise
            self.lost = True
            return STAYED
        return "" if found == UNDER_WAY else found

    def _seen(self, side: Side, patience: float = _PATIENCE) -> Seen:
        """The VM's state there, asked over a new connection if libvirtd was restarted."""
        clock = self.context.clock
        end = clock.monotonic() + patience
        while True:
            try:
                found = side.host.guest_of(self.guest.uuid)
                if found and side.host is self.context.host:
                    self.guest = found
                return found.state() if found else None
            except NotFound:
                return None
            except Unreachable:
                if clock.monotonic() >= end:
                    raise
                self._reconnect(side)

    def _reconnect(self, side: Side) -> None:
        try:
            side.host.reconnect(timeout=self.ask["connect_timeout"])
        except Unreachable:
            self.context.clock.sleep(_INTERVAL)

    def stay(self) -> None:
        """It failed: see that the VM goes on at the source, and that nothing is left at the destination.

        A destination that is dead keeps what it has; the next migration to it removes that.

        :raises LifecycleError: That cannot be told, so nothing was done.
        """
        found = self._become()
        if found != STAYED:
            raise LifecycleError(
                f"VM {self.guest.name} was left as it is, on {self.source} and {self.there.host.name}.",
                hint="Use state: recovered.",
            )
        guest = self.context.host.guest_of(self.guest.uuid)
        if guest is None:
            raise NotFound(f"VM {self.guest.name} is gone from {self.source}.")
        self.vm.guest = guest
        state = self._seen(self.context.here)
        if self._data()["ran"] and state is not None and state[0] == PAUSED:
            there = self._seen(self.there)
            if there is None or there[0] == SHUTOFF:
                guest.resume()
        if self._carries() and not self.lost:
            self.placing.discard(self.layout)

    # ---- afterwards

    def finish(self) -> dict[str, t.Any]:
        """Give the VM at the destination what did not come along."""
        guest = self.vm.made()
        data = self._data()
        if data["ran"] and guest.state()[0] == PAUSED:
            guest.resume()
        if data["autostart"]:
            guest.set_autostart(True)
        lost = [xml for xml in data["checkpoints"] if not adopt_checkpoint(guest, xml)]
        figures: dict[str, t.Any] = self._bring_leases([Lease(*each) for each in data["leases"]])
        if lost:
            figures["lost_checkpoints"] = [ET.fromstring(xml).findtext("name", "") for xml in lost]
        return figures

    def _bring_leases(self, leases: t.Iterable[Lease]) -> dict[str, t.Any]:
        """Let the networks of the destination give the VM its fixed addresses, and those of the source not any more."""
        lost = {}
        for lease in leases:
            try:
                Leases(self.there.host).add(lease)
            except Unreachable:
                raise
            except LifecycleError as exc:  # the network there has other addresses, or another VM has this one
                lost[lease.mac] = exc.message
            Leases(self.context.host).remove(lease)
        return {"lost_leases": lost} if lost else {}

    def let_go(self) -> dict[str, t.Any]:
        """Remove at the source what lives at the destination now."""
        return self.placing.let_go(self.layout)
