# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Asking about the migrations that run on a host."""

from __future__ import annotations

import typing as t

from .._core.errors import LifecycleError
from .._libvirt.bulk import Bulk
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._libvirt.migrations import OUT, Moving, moving
from .._model.migration import read_statistics
from .._model.status import PAUSED, RUNNING, SHUTOFF
from .._task import Context

Result = dict[str, t.Any]

# States and reasons (virDomainRunningReason, virDomainPausedReason) at the destination and at the source.
_POST_COPY = ((RUNNING, 10), (PAUSED, 12))
_FIGURES = ("phase", "percent", "seconds", "remaining", "rate", "dirty_rate", "iteration", "expected_downtime_ms")


def tell_migrations(context: Context, names: t.Sequence[str] | None) -> Result:
    """The migrations of VMs, or of all.

    :returns: ``migrations``; ``missing``, the names that no VM has; ``silent``, VMs that did not answer.
    """
    guests = context.host.guests()
    wanted = guests if names is None else pick(guests, names)
    here = [guest for guest in wanted if isinstance(guest, Guest)]
    missing = [error.details["name"] for error in wanted if isinstance(error, LifecycleError)]
    bulk = Bulk(context.host)
    states, persistent = bulk.states(here), bulk.flagged("persistent")["persistent"]
    found, silent = moving([guest for guest in here if states.get(guest.uuid, (SHUTOFF, 0))[0] != SHUTOFF])
    return {
        "migrations": [_tell(context, each, states[each.guest.uuid], persistent) for each in found],
        "missing": missing,
        "silent": [guest.name for guest in silent],
    }


def _tell(context: Context, each: Moving, state: tuple[int, int], persistent: t.Container[str]) -> Result:
    guest = each.guest
    told: Result = {"name": guest.name, "uuid": guest.uuid, "host": context.host.name, "direction": each.direction}
    told.update(dict.fromkeys((*_FIGURES, "throttle")))
    if each.raw:
        statistics = read_statistics(each.raw, each.raw.get("time_elapsed", 0) / 1000)
        told.update({key: value for key, value in statistics.tell().items() if key in _FIGURES})
        told["throttle"] = statistics.throttle
    if state in _POST_COPY:
        told["phase"] = "post_copy"
    try:
        journal = guest.recall(persistent=guest.uuid in persistent and each.direction == OUT).journal
    except LifecycleError:  # it has ended meanwhile
        journal = None
    ours = journal if journal and "dest" in journal.data else None
    told["dest"] = str(ours.data["dest"]) if ours else ""
    told["since"] = ours.since if ours else ""
    told["by"] = {"action": ours.action, "node": ours.node, "pid": ours.pid} if ours else None
    told["operation"] = guest.running_operation()
    return told
