# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Putting right what a live migration that died has left on two hosts.

Both are looked at, the rules of :mod:`.._model.recovery` say whose copy is the truth, and only then something is done.
Each step looks again at the copy that shall stay before it takes the other one away.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from .._core.clock import wait_until
from .._core.errors import Ambiguous, Busy, Invalid, LifecycleError, NotFound, Refused, TimedOut, Unsupported
from .._core.plan import Plan, Step
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._libvirt.migration import Migration
from .._model import endpoints, recovery
from .._model.actions import demand
from .._model.migration import Order, read_statistics
from .._model.placing import Layout
from .._model.recovery import ABSENT, ALIVE, GIVING, OFF, SOURCE, Copy, Verdict
from .._model.status import Observation
from .._task import Context, Side, Subject
from .migrate import arrived, destination
from .placing import Placing

# Since this version libvirt can go on with a post-copy migration that broke.
_RESUMES = (8, 5)
# Seconds that libvirtd needs at most to notice that the other end of a migration is gone: its keepalive, and some more.
_NOTICES = 60
# Seconds without a byte after which a post-copy migration that broke is given up.
_PATIENCE = 60
_INTERVAL = 1


@dataclass(frozen=True)
class _Half:
    """The VM on one of the two hosts, as it was found."""

    side: Side
    guest: Guest | None
    seen: Observation | None
    copy: Copy

    def made(self) -> Guest:
        """The VM.

        :raises NotFound: It is gone.
        """
        if self.guest is None:
            raise NotFound(f"The VM is gone from {self.side.host.name}.")
        return self.guest


def recover(context: Context, vm: Subject) -> Plan:
    """Look at a VM on both hosts, and put right what is left there of a migration."""
    there = destination(context)
    if there.host.name == context.host.name:
        raise Invalid(f"dest is {there.host.name}, the host itself: state: recovered is about two hosts.")
    journal = vm.instance.journal
    came_from = str(journal.data.get("dest", "")) if journal and journal.action == recovery.MIGRATION else ""
    if came_from and _short(endpoints.host_of(came_from)) == _short(context.host.name):
        # The task runs at the end of the way, and names its beginning.
        return _Recovery(context.at(there), vm, context.side(came_from)).plan()
    return _Recovery(context, vm, there).plan()


def _short(host: str) -> str:
    return host.partition(".")[0]


class _Recovery:
    """One VM on two hosts."""

    def __init__(self, context: Context, vm: Subject, there: Side) -> None:
        self.context = context
        self.vm = vm
        self.there = there
        self.ask = context.params
        self.name = vm.name
        self.uuid = vm.guest.uuid if vm.guest else ""
        self._layout: Layout | None = None

    # ---- looking

    def plan(self) -> Plan:
        """What there is to do."""
        seen = self.vm.seen
        if seen is not None and seen.running is not None:
            raise self._busy(f"{seen.running.get('action', 'another operation')} is under way")
        here, there = self._settled()
        verdict = self._judge(here, there)
        kept = here if verdict.truth == SOURCE else there
        self.vm.guest, self.vm.seen = kept.guest, kept.seen
        figures = {"truth": verdict.truth, "why": verdict.why, "source": _word(here), "dest": _word(there)}
        before = {here.side.host.name: _word(here), there.side.host.name: _word(there)}
        warnings = [warning for half in (here, there) for warning in _other_work(half)]
        if not verdict.steps:
            return Plan(before=before, after=before, figures=figures, warnings=warnings)
        _guest, _seen, state = self.vm.there()
        demand(recovery.ACTION, state, name=self.name)
        gone = {here.side.host.name: ABSENT} if recovery.REMOVE_SOURCE in verdict.steps else {}
        if recovery.REMOVE_DESTINATION in verdict.steps:
            gone[there.side.host.name] = ABSENT
        return Plan(
            before=before,
            after={**before, **gone, "recovered": True},
            steps=[Step(name, getattr(self, name)) for name in verdict.steps],
            action=recovery.ACTION,
            figures=figures,
            warnings=warnings,
        )

    def _settled(self) -> tuple[_Half, _Half]:
        """Both halves, when no migration is under way any more.

        :raises Busy: One is.
        """
        halves = self._look()

        def told() -> bool:
            nonlocal halves
            halves = self._look()
            return not halves[1].copy.moving

        if halves[0].copy.moving:
            raise self._busy("its migration is under way")
        # What comes from a source that is gone is noticed by its silence.
        if halves[1].copy.moving and halves[0].copy.form != GIVING:
            wait_until(
                told,
                clock=self.context.clock,
                timeout=_NOTICES,
                doing=f"waiting for {self.there.host.name} to notice that VM {self.name} comes from nowhere",
            )
        return halves

    def _busy(self, why: str) -> Busy:
        return Busy(
            f"VM {self.name} is busy: {why}.", hint="Use state: migrated to see a migration through, or state: aborted."
        )

    def _look(self) -> tuple[_Half, _Half]:
        """Both halves of one VM: the same name on the other host is another VM when it has another UUID.

        :raises NotFound: Neither has it.
        """
        here, there = self._find(self.context.here), self._find(self.there)
        found = here or there
        if found is None:
            raise NotFound(
                f"There is no VM with the name or UUID {self.name!r} on {self.context.host.name} or"
                f" {self.there.host.name}.",
                name=self.name,
            )
        self.name, self.uuid = found.name, found.uuid
        if there is not None and there.uuid != self.uuid:
            there = self.there.host.guest_of(self.uuid)
        return self._half(self.context.here, here), self._half(self.there, there)

    def _find(self, side: Side) -> Guest | None:
        if self.uuid:
            return side.host.guest_of(self.uuid)
        found = pick(side.host.guests(), [self.name])[0]
        if isinstance(found, Ambiguous):
            raise found
        return found if isinstance(found, Guest) else None

    def _half(self, side: Side, guest: Guest | None) -> _Half:
        source = side.host is self.context.host
        if guest is not None:
            try:
                seen = guest.look()
                return _Half(side, guest, seen, recovery.read(seen, job=_job(guest), source=source))
            except NotFound:  # this very moment
                pass
        return _Half(side, None, None, Copy())

    def _judge(self, here: _Half, there: _Half) -> Verdict:
        """What is to be done.

        :raises Refused: Nobody can tell which copy is the truth.
        """
        verdict = recovery.judge(
            here.copy,
            there.copy,
            shared=self._shared(here, there),
            resumable=min(here.side.host.version, there.side.host.version) >= _RESUMES,
            truth=self.ask["truth"] or "",
        )
        if verdict.undecided:
            raise Refused(
                f"VM {self.name} is {_word(here)} on {here.side.host.name} and {_word(there)} on"
                f" {there.side.host.name}. {verdict.why} Nothing was done.",
                hint="Look at both, then say with truth: source or truth: destination which one shall stay.",
                source=_word(here),
                dest=_word(there),
            )
        return verdict

    def _shared(self, here: _Half, there: _Half) -> bool:
        """Whether both have the same disks, as far as a journal tells."""
        journal = here.copy.journal or there.copy.journal
        if journal is None:
            return False
        told = journal.data.get("layout")
        self._layout = Layout.load(told) if told else None
        return self._layout is None or self._layout.shared

    # ---- the steps, named as in the model

    def resume_postcopy(self) -> dict[str, t.Any]:
        """Go on with a post-copy migration that broke. When the link was away for less than TCP bears, QEMU goes on by
        itself, and libvirt only has to see it (libvirt 9.0, QEMU 7.2); else libvirt makes new connections.

        :raises TimedOut: Nothing moves.
        """
        clock = self.context.clock
        end, least, said = clock.monotonic() + _PATIENCE, -1, ""
        attempt: Migration | None = None
        while True:
            here, there = self._look()
            if here.copy.form in (ABSENT, OFF) and there.copy.form == ALIVE:
                return {"resumed": True}
            if attempt is not None and attempt.wait(0):
                said, attempt = str(attempt.error or ""), None
            raw = Migration(here.made()).statistics() if here.guest else {}
            left = read_statistics(raw, 0).memory_remaining if raw else -1
            if raw and (left < least or least < 0):
                end, least = clock.monotonic() + _PATIENCE, left
            elif clock.monotonic() > end:
                # A call that hangs is left behind: a QEMU that waits for a page does not answer its libvirtd.
                raise TimedOut(
                    f"Gave up resuming the post-copy migration of VM {self.name}: nothing came within {_PATIENCE}"
                    f" seconds. {said}".rstrip(),
                    hint="Its memory is in two parts. If the link cannot be mended, say with truth: destination that"
                    " the VM shall be off there, with the disks as they are.",
                )
            elif here.guest is not None and attempt is None:
                attempt = self._resume(here.guest)
            clock.sleep(_INTERVAL)

    def _resume(self, guest: Guest) -> Migration:
        """Ask libvirt to go on: a call that lasts until all is there."""
        migration = Migration(guest)
        persistent = guest.look().persistent
        order = Order(
            uri=self.there.uri,
            tls=not self.ask["insecure_tcp"],
            persist=persistent,
            undefine=persistent,
            post_copy=True,
            resume=True,
        )
        migration.start(order, timeout=self.ask["connect_timeout"])
        return migration

    def power_off_destination(self) -> None:
        """End a guest whose memory has not come in full, and keep the VM."""
        self._power_off(self._look()[1])

    def power_off_source(self) -> None:
        """End a guest that went on elsewhere, and keep the VM."""
        self._power_off(self._look()[0])

    @staticmethod
    def _power_off(half: _Half) -> None:
        guest = half.made()
        if not half.copy.persistent:  # else it would be gone with its guest
            half.side.host.define(guest.text(inactive=True, secure=True))
        guest.power_off()

    def resume_destination(self) -> None:
        """Let a guest run that has come and was never let run."""
        self._look()[1].made().resume()

    def resume_source(self) -> None:
        """Let a guest go on that was held for a migration."""
        self._look()[0].made().resume()

    def remove_source(self) -> None:
        """Take the copy at the source away: what it has is at the destination."""
        here, there = self._look()
        self._demand_kept(there)
        self._remove(here)
        self.vm.guest = there.guest

    def remove_destination(self) -> None:
        """Take the copy at the destination away: what it has is at the source."""
        here, there = self._look()
        self._demand_kept(here)
        self._remove(there)

    def _demand_kept(self, half: _Half) -> None:
        """See that the copy is there which shall stay."""
        if half.copy.form == ABSENT:
            raise LifecycleError(
                f"VM {self.name} is gone from {half.side.host.name}: the other copy is left alone.",
                hint="Run the task again.",
            )

    @staticmethod
    def _remove(half: _Half) -> None:
        if half.guest is None:
            return
        half.guest.power_off()
        left = half.side.host.guest_of(half.guest.uuid)
        if left is not None:  # the other copy may have its variables of UEFI in the same file
            left.undefine(keep_nvram=True)

    def finish(self) -> dict[str, t.Any]:
        """Do what a migration does at its end, at the destination."""
        there = self._look()[1]
        self.vm.guest, self.vm.seen = there.made(), there.seen
        figures: dict[str, t.Any] = {}
        journal = self.vm.instance.journal
        # It may be named in another way today.
        uri = str(journal.data.get("dest", "")) if journal else ""
        for step in arrived(self.context, self.vm, replace(self.there, uri=uri or self.there.uri)).steps:
            figures.update(step.do() or {})
        self._forget(there.made())
        return figures

    def end_migration(self) -> None:
        """Take away at the destination what was prepared there, and let the VM at the source be free."""
        here = self._look()[0]
        self.vm.guest, self.vm.seen = here.made(), here.seen
        if self._layout is not None:
            Placing(self.context, self.vm, self.there).discard(self._layout)
        self._forget(here.made())

    @staticmethod
    def _forget(guest: Guest) -> None:
        guest.remember(replace(guest.recall(), journal=None))


def _job(guest: Guest) -> bool:
    """Whether libvirt has a migration for it. Of one that comes in it says that it cannot say anything."""
    try:
        return Migration(guest).running()
    except Unsupported:
        return True


def _other_work(half: _Half) -> t.Iterator[str]:
    """What to say of an operation that died and was no live migration."""
    journal = half.seen.instance.journal if half.seen else None
    if journal is not None and half.copy.journal is None:
        yield (
            f"On {half.side.host.name}, {journal.action} was begun at {journal.since} and has not ended: run that task"
            " again to finish it."
        )


def _word(half: _Half) -> str:
    """A copy in a word, for people."""
    return half.copy.form
