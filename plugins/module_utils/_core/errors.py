# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Every failure that a user can meet, as a typed exception.

An error says what was being done, what went wrong and, where there is one, the way out. ``code`` is stable: playbooks
may test it (``vms[0].code == 'locked'``); the sentence may change.
"""

from __future__ import annotations

import typing as t


class LifecycleError(Exception):
    """Base of all errors of the collection.

    :param message: What was being done and what went wrong, one sentence.
    :param hint: The option or step that would allow it, one sentence; empty when there is none.
    :param details: Plain values for the module's result (JSON types only).
    """

    code: t.ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str = "", **details: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class Invalid(LifecycleError):
    """The user's input cannot be meant: a bad name, flavor, image or combination of options."""

    code = "invalid"


class NotFound(LifecycleError):
    """The VM, image, host or object that was named is not there."""

    code = "not_found"


class Ambiguous(LifecycleError):
    """What was named means more than one thing."""

    code = "ambiguous"


class Refused(LifecycleError):
    """The action is not allowed in the present status."""

    code = "refused"


class Cancelled(LifecycleError):
    """It was called off before it had begun."""

    code = "cancelled"


class Locked(Refused):
    """The VM is locked by :ansplugin:`kvmops.lifecycle.vm_lock#module`."""

    code = "locked"


class Busy(LifecycleError):
    """Another operation on the same VM is running."""

    code = "busy"


class InUse(Busy):
    """A disk is open elsewhere: whoever was said to be dead is not."""

    code = "in_use"


class TimedOut(LifecycleError):
    """Something did not come about in the time given."""

    code = "timed_out"


class Unreachable(LifecycleError):
    """libvirtd did not answer, or the connection to it was lost."""

    code = "unreachable"


class Denied(LifecycleError):
    """libvirtd or the operating system said that we may not."""

    code = "denied"


class NoSpace(LifecycleError):
    """There is no room: disk, memory or another quantity."""

    code = "no_space"


class Unsupported(LifecycleError):
    """The hypervisor, libvirt or guest cannot do it at all."""

    code = "unsupported"
