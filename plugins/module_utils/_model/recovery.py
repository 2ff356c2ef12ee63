# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a move that died has left of a VM on two hosts, and what puts that right.

The rules follow from the order in which libvirt moves a guest (libvirt's page "Guest migration", and what was seen of
libvirt 9.0). The destination's copy is not let run, and has no definition, before the source's stands still. The source
undefines its own after the destination's runs. A source that never hears of that lets its guest go on, or, when it was
restarted, leaves it paused. So whose copy is the truth is told by states and their reasons, and by the journal, which
comes to the destination with the definition.

Nothing is done that a sign does not speak for. Where there is none, a human has to say which copy is the truth.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .._core.journal import Journal
from .status import PAUSED, RUNNING, SHUTOFF, Observation

ACTION = "recover"
MIGRATION = "live_migrate"
SOURCE, DESTINATION = "source", "destination"

# What a copy is.
ABSENT = "absent"
OFF = "off"
ALIVE = "alive"  # it has a guest of its own, running or not
HELD = "held"  # its guest stands still for a migration that nobody carries out any more
GIVING = "giving"  # the source of a post-copy migration that broke: the guest went on elsewhere
TAKING = "taking"  # the destination of a post-copy migration: some of its memory is still at the source
FORMS = (ABSENT, OFF, ALIVE, HELD, GIVING, TAKING)

# What is to be done: the names of steps.
RESUME_POSTCOPY = "resume_postcopy"
POWER_OFF_DESTINATION = "power_off_destination"
RESUME_DESTINATION = "resume_destination"
REMOVE_SOURCE = "remove_source"
FINISH = "finish"
REMOVE_DESTINATION = "remove_destination"
POWER_OFF_SOURCE = "power_off_source"
RESUME_SOURCE = "resume_source"
END = "end_migration"

# Reasons that virDomainGetState gives (libvirt's page "libvirt-domain").
_SHUTOFF_MIGRATED = 4
_RUNNING_MIGRATED, _RUNNING_POSTCOPY, _RUNNING_POSTCOPY_FAILED = 2, 10, 11
_PAUSED_MIGRATION, _PAUSED_POSTCOPY, _PAUSED_POSTCOPY_FAILED = 2, 12, 13


@dataclass(frozen=True)
class Copy:
    """The VM on one of the two hosts.

    :param form: One of :data:`FORMS`.
    :param moving: A migration of it is under way, and nothing is the matter with that.
    :param arrived: It runs here since a migration brought it.
    :param left: It is off because a migration took it away.
    :param saved: It is off, and its memory is in a managed save image.
    :param origin: It is the way back of a cold move or a resize that is not confirmed yet.
    :param persistent: It is defined, and does not end with its guest.
    :param journal: Of a live migration.
    """

    form: str = ABSENT
    moving: bool = False
    arrived: bool = False
    left: bool = False
    saved: bool = False
    origin: bool = False
    persistent: bool = False
    journal: Journal | None = None

    @property
    def there(self) -> bool:
        """Whether there is anything."""
        return self.form != ABSENT


@dataclass(frozen=True)
class Verdict:
    """What is to be done.

    :param truth: The side whose copy counts, or empty: nobody can tell, and nothing is done.
    :param why: A sentence: what was found, and what it means.
    :param steps: In order; none when all is as it should be.
    :param undecided: Whether a human has to say which copy is the truth.
    """

    truth: str
    why: str
    steps: tuple[str, ...] = ()
    undecided: bool = False


def read(seen: Observation | None, *, job: bool, source: bool) -> Copy:
    """What a look at one side means.

    :param seen: ``None`` when the VM is not there.
    :param job: Whether libvirt has a job of a migration for it.
    :param source: Whether this is the side that the VM was to leave: in post-copy both sides may look alike.
    """
    if seen is None:
        return Copy()
    journal = seen.instance.journal
    state = (seen.state, seen.reason)
    postcopy = state in (
        (PAUSED, _PAUSED_POSTCOPY),
        (PAUSED, _PAUSED_POSTCOPY_FAILED),
        (RUNNING, _RUNNING_POSTCOPY),
        (RUNNING, _RUNNING_POSTCOPY_FAILED),
    )
    broken = seen.reason in (_PAUSED_POSTCOPY_FAILED, _RUNNING_POSTCOPY_FAILED)
    if seen.state == SHUTOFF:
        form = OFF
    elif postcopy:
        form = GIVING if source else TAKING
    elif state == (PAUSED, _PAUSED_MIGRATION):
        form = HELD
    else:
        form = ALIVE
    mark = seen.instance.mark
    return Copy(
        form=form,
        moving=job and not (postcopy and broken),
        arrived=state == (RUNNING, _RUNNING_MIGRATED),
        left=state == (SHUTOFF, _SHUTOFF_MIGRATED),
        saved=seen.managed_save,
        origin=form == OFF and mark is not None and mark.state == "resized",
        persistent=seen.persistent,
        journal=journal if journal and journal.action == MIGRATION else None,
    )


def judge(here: Copy, there: Copy, *, shared: bool, resumable: bool, truth: str = "") -> Verdict:
    """What is to be done about a VM of which no migration is under way.

    :param here: At the source.
    :param there: At the destination.
    :param shared: Whether both have the same disks.
    :param resumable: Whether libvirt can go on with a post-copy migration that broke (8.5 or newer on both sides).
    :param truth: What a human says: ``source``, ``destination`` or nothing.
    """
    found = _judge(here, there, shared=shared, resumable=resumable)
    chosen = here if truth == SOURCE else there
    if not truth or (found.truth == truth and RESUME_POSTCOPY not in found.steps):
        return found
    if not chosen.there:
        return Verdict("", f"There is no copy at the {truth}. {found.why}", undecided=True)
    if found.truth and RESUME_POSTCOPY not in found.steps:
        return Verdict("", f"The truth is at the {found.truth}. {found.why}", undecided=True)
    why = f"It was said that the truth is at the {truth}. {found.why}"
    return Verdict(truth, why, _keep_source(here, there) if truth == SOURCE else _keep_destination(here, there))


def _keep_source(here: Copy, there: Copy) -> tuple[str, ...]:
    """The steps after which the source's copy is the only one. One whose guest went on elsewhere is switched off: its
    memory is older than its disks may be."""
    steps = [REMOVE_DESTINATION] if there.there else []
    if here.form == GIVING:
        steps.append(POWER_OFF_SOURCE)
    elif here.form == HELD:
        steps.append(RESUME_SOURCE)
    return (*steps, END) if here.journal or there.journal else tuple(steps)


def _keep_destination(here: Copy, there: Copy) -> tuple[str, ...]:
    """The steps after which the destination's copy is the only one. One whose memory has not come in full is switched
    off, and one that was never let run is let run."""
    steps = []
    if there.form == TAKING:
        steps.append(POWER_OFF_DESTINATION)
    elif there.form == HELD:
        steps.append(RESUME_DESTINATION)
    if here.there:
        steps.append(REMOVE_SOURCE)
    return (*steps, FINISH) if here.journal or there.journal else tuple(steps)


def _judge(here: Copy, there: Copy, *, shared: bool, resumable: bool) -> Verdict:
    def source(why: str) -> Verdict:
        return Verdict(SOURCE, why, _keep_source(here, there))

    def destination(why: str) -> Verdict:
        return Verdict(DESTINATION, why, _keep_destination(here, there))

    def unclear(why: str) -> Verdict:
        return Verdict("", why, undecided=True)

    if not there.there:
        return _alone_here(here, source, unclear)
    if not here.there:
        return _alone_there(there, destination, unclear)
    if here.form == OFF and there.form == OFF:
        return _both_off(here, there, source, destination, unclear)
    if here.form == OFF:
        return _off_here(here, there, destination, unclear)
    if there.form == OFF:
        return _off_there(here, there, shared, source, unclear)
    return _both_on(here, there, resumable, source, destination, unclear)


_Say = t.Callable[[str], Verdict]


def _alone_here(here: Copy, source: _Say, unclear: _Say) -> Verdict:
    if here.form == HELD:
        return source("The guest stands still for a migration, and nothing of it is at the destination.")
    if here.form in (GIVING, TAKING):
        return unclear(
            "The guest went on at the destination, in post-copy, and is not there any more. Its memory here is older"
            " than its disks may be."
        )
    return source("The VM is at the source only.")


def _alone_there(there: Copy, destination: _Say, unclear: _Say) -> Verdict:
    if there.form in (TAKING, GIVING):
        return unclear("The guest runs at the destination, and some of its memory was at the source, where it is lost.")
    if there.form == HELD:
        return unclear("The guest came to the destination and was never let run there; the source has none.")
    return destination("The VM is at the destination only.")


def _same(here: Copy, there: Copy) -> bool:
    """Whether what is at the destination was brought by the migration that the source's journal tells of."""
    mine, other = here.journal, there.journal
    return bool(mine and other) and _who(mine) == _who(other)


def _who(journal: Journal | None) -> tuple[t.Any, ...]:
    return (journal.since, journal.node, journal.pid) if journal else ()


def _both_off(here: Copy, there: Copy, source: _Say, destination: _Say, unclear: _Say) -> Verdict:
    if here.origin or there.origin:
        side = DESTINATION if here.origin else SOURCE
        return Verdict(side, "A cold move is not confirmed yet: the other definition is its way back.")
    if not here.saved and not there.left and (here.left or _same(here, there)):
        return destination("The source's is off since a migration took it away, or has a migration's journal.")
    if there.left and not here.left and not there.saved:
        return source("The destination's is off since a migration took it away.")
    return unclear("The VM is defined and off on both hosts, and nothing tells which one it was used on last.")


def _off_here(here: Copy, there: Copy, destination: _Say, unclear: _Say) -> Verdict:
    if there.form == ALIVE:
        if here.origin:
            return Verdict(DESTINATION, "The definition at the source is the way back of a cold move.")
        if not here.saved and (here.left or there.arrived or _same(here, there)):
            return destination("The guest came to the destination by a migration, and runs there.")
        return unclear("The VM runs at the destination, and nothing tells that it came from the definition here.")
    if there.form == HELD:
        return unclear("The VM is off at the source, and its guest stands still at the destination.")
    return unclear("The source lost its guest in post-copy, and what the destination has of its memory is not whole.")


def _off_there(here: Copy, there: Copy, shared: bool, source: _Say, unclear: _Say) -> Verdict:
    if here.form == ALIVE:
        if there.origin:
            return Verdict(SOURCE, "The definition at the destination is the way back of a cold move.")
        if there.saved:
            return unclear("The VM runs at the source, and the destination has saved memory of it.")
        if there.left or here.arrived or (shared and _same(here, there)):
            return source("The guest runs at the source; the definition at the destination is left from a migration.")
        if _same(here, there):
            return unclear("The guest runs at the source; it may have run at the destination, on disks of its own.")
        return unclear("The VM runs at the source, and nothing tells what its definition at the destination is.")
    if here.form == HELD:
        return unclear("The guest stands still at the source; it may have run at the destination, where it is off.")
    return unclear("The guest went on at the destination, in post-copy, and is off there.")


def _both_on(here: Copy, there: Copy, resumable: bool, source: _Say, destination: _Say, unclear: _Say) -> Verdict:
    if there.form == HELD and here.form in (ALIVE, HELD):
        return source("The guest was never let run at the destination.")
    if there.form == ALIVE and here.form in (HELD, GIVING):
        return destination("The guest runs at the destination, and was not let go on at the source.")
    if here.form == GIVING and there.form == TAKING:
        if resumable:
            steps = (RESUME_POSTCOPY, *_keep_destination(here, there)[1:])
            return Verdict(DESTINATION, "A post-copy migration broke, and can go on.", steps)
        return unclear("A post-copy migration broke, and libvirt is older than 8.5 and cannot go on with it.")
    if here.form == there.form == ALIVE:
        return unclear("The VM runs on both hosts, and each may have written what the other does not have.")
    return unclear(f"The guest is {here.form} at the source and {there.form} at the destination.")
