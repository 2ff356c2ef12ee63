# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The migrations that run on a host, of all its VMs at once."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_query() tells the user
    libvirt = None

from .._core.errors import LifecycleError
from .._core.workers import within
from .._model.capacity import Raw
from .errors import code_of, doing
from .guest import Guest

# Seconds that a VM may take to answer; one that is busy with another request is passed over.
_ANSWER = 1.0

IN, OUT = "in", "out"


@dataclass(frozen=True)
class Moving:
    """A migration of a VM.

    :param direction: ``out``, at its source, or ``in``, at its destination.
    :param raw: virDomainGetJobStats; at the destination there is nothing.
    """

    guest: Guest
    direction: str
    raw: Raw


def moving(guests: t.Sequence[Guest]) -> tuple[list[Moving], list[Guest]]:
    """Of VMs that are on, those that migrate, and those that did not answer in time."""
    found = within(_look, guests, seconds=_ANSWER)
    silent = [guest for guest, answer in zip(guests, found) if answer is None]
    return [answer for answer in found if isinstance(answer, Moving)], silent


def _look(guest: Guest) -> Moving | LifecycleError | bool:
    """The migration of one VM; ``False`` when there is none."""
    try:
        with doing(f"look at the migration of VM {guest.name}"):
            try:
                raw = guest.domain.jobStats()
            except libvirt.libvirtError as exc:
                # "migration statistics are available only on the source host"
                if code_of(exc) == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                    return Moving(guest, IN, {})
                raise
    except LifecycleError as exc:
        return exc
    # Between its phases libvirt tells no operation.
    migrates = raw.get("operation", 0) in (0, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
    running = raw.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE
    return Moving(guest, OUT, raw) if migrates and running else False
