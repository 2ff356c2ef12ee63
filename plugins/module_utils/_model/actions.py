# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What may be done to a VM in which state: Nova's table of actions as data.

The rows are those of Nova's API guards, with these differences:

* An action whose result is there already is a no-op here and a conflict in Nova, and a refusal names the way out.
* A launch that died is finished by launching again.
* A rescued VM may be stopped, started and rebooted; it stays rescued.
* A paused or suspended VM may be stopped: it is resumed for that, so that its guest can shut down.
* A VM that is off may be paused: it is started with its CPUs stopped. A paused VM may be suspended.
* An unshelved VM has the power state back that it had, so it need not be active to count as unshelved.
* A migration can be aborted only where one can run. What one has left may be put right in every state.
* What is noted about a VM for the maintenance of hosts may be noted in every state, and of a locked VM too.
* Addresses and security groups need a VM that was launched to its end; a console needs one that is on a host as well.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .._core.errors import Busy, Refused
from .status import State

ANY = frozenset(
    (
        "active",
        "building",
        "error",
        "paused",
        "rescued",
        "resized",
        "shelved",
        "shelved_offloaded",
        "soft-delete",
        "stopped",
        "suspended",
    )
)
LAUNCHED = ANY - {"building"}
# The states that hide no other: an error or a soft deletion may lie on top of, say, a rescue.
_OPEN = LAUNCHED - {"error", "soft-delete"}


@dataclass(frozen=True)
class Action:
    """A row of the table.

    :param allowed: vm_states in which it may begin.
    :param noop: vm_states in which there is nothing to do.
    :param idle: Whether no other transition may be under way.
    :param during: Transitions (task_states) that may be under way all the same.
    :param lock: Whether a locked VM refuses it.
    :param result: The vm_state afterwards; empty when it stays.
    """

    allowed: frozenset[str]
    noop: frozenset[str] = frozenset()
    idle: bool = True
    during: frozenset[str] = frozenset()
    lock: bool = True
    result: str = ""


def _set(words: str | frozenset[str]) -> frozenset[str]:
    return words if isinstance(words, frozenset) else frozenset(words.split())


def _row(
    allowed: str | frozenset[str],
    noop: str | frozenset[str] = "",
    *,
    idle: bool = True,
    during: str = "",
    lock: bool = True,
    result: str = "",
) -> Action:
    return Action(_set(allowed), _set(noop), idle, _set(during), lock, result)


ACTIONS: dict[str, Action] = {
    "launch": _row("building", "active stopped paused suspended", result="active"),
    "delete": _row(ANY, idle=False, result="deleted"),
    "soft_delete": _row(LAUNCHED - {"soft-delete"}, "soft-delete", idle=False, result="soft-delete"),
    "restore": _row("soft-delete", _OPEN, result="active"),
    "force_delete": _row(ANY, idle=False, result="deleted"),
    "start": _row("stopped rescued", "active", result="active"),
    "stop": _row("active error paused suspended rescued", "stopped", result="stopped"),
    "reboot": _row("active rescued", result="active"),
    "reboot_hard": _row(
        "active stopped paused suspended error rescued",
        during="rebooting reboot_pending reboot_started rebooting_hard resuming pausing unpausing suspending",
        result="active",
    ),
    "pause": _row("active stopped", "paused", result="paused"),
    "unpause": _row("paused", "active", result="active"),
    "suspend": _row("active paused", "suspended", result="suspended"),
    "resume": _row("suspended", "active", result="active"),
    "rescue": _row("active stopped error", "rescued", result="rescued"),
    "unrescue": _row("rescued", _OPEN - {"rescued"}, result="active"),
    "snapshot": _row("active stopped paused suspended", lock=False),
    "backup": _row("active stopped paused suspended", lock=False),
    "rebuild": _row("active stopped error"),
    "shelve": _row("active stopped paused suspended", "shelved shelved_offloaded", result="shelved"),
    "shelve_offload": _row("shelved", "shelved_offloaded", result="shelved_offloaded"),
    "unshelve": _row("shelved shelved_offloaded", "active stopped paused suspended", result="active"),
    "migrate": _row("active stopped", result="resized"),
    "resize": _row("active stopped", result="resized"),
    "confirm_resize": _row("resized", _OPEN - {"resized"}, result="active"),
    "revert_resize": _row("resized", _OPEN - {"resized"}, result="active"),
    "live_migrate": _row("active paused"),
    "live_migrate_force_complete": _row("active", during="migrating"),
    "live_migrate_abort": _row("active paused", during="migrating"),
    "recover": _row(ANY, idle=False),
    "evacuate": _row("active stopped error", idle=False, lock=False),
    "lock": _row(ANY, idle=False, lock=False),
    "unlock": _row(ANY, idle=False, lock=False),
    "reset_state": _row(ANY, idle=False, lock=False),
    "set_password": _row("active"),
    "console": _row(LAUNCHED - {"shelved_offloaded"}, idle=False, lock=False),
    "inject_network_info": _row(LAUNCHED, idle=False),
    "fixed_address": _row(LAUNCHED, idle=False),
    "security_group": _row(LAUNCHED, idle=False, lock=False),
    "attach_interface": _row("active paused stopped"),
    "attach_volume": _row("active paused stopped resized soft-delete shelved shelved_offloaded"),
    "crash_dump": _row("active paused rescued resized error"),
    "metadata": _row("active paused suspended stopped", idle=False),
    "set_policy": _row(ANY, idle=False),
    "note_origin": _row(ANY, idle=False, lock=False),
    "forget_origin": _row(ANY, idle=False, lock=False),
}

# How to leave a state that refuses an action.
_WAYS_OUT = {
    "building": "Finish the launch with the module vm and state: present, or remove it with state: absent.",
    "error": "Look at the VM, then use vm_power with state: rebooted, reboot: hard, or vm_status with state: active.",
    "paused": "Use vm_power with state: running first.",
    "suspended": "Use vm_power with state: running first.",
    "stopped": "Use vm_power with state: running first.",
    "active": "Use vm_power with state: stopped first.",
    "rescued": "Use vm_rescue with state: unrescued first.",
    "resized": "Use vm_resize with state: confirmed or state: reverted first.",
    "shelved": "Use vm_shelve with state: unshelved first.",
    "shelved_offloaded": "Use vm_shelve with state: unshelved first.",
    "soft-delete": "Use the module vm with state: restored first.",
}
# What has to be done first, where leaving the state is not enough.
_FIRST = {"shelve_offload": "Use vm_shelve with state: shelved first."}
_PLAIN = frozenset(("active", "paused", "stopped", "suspended"))


class Verdict(enum.Enum):
    """What the table says of an action in a state."""

    ALLOWED = "allowed"
    NOOP = "noop"
    REFUSED = "refused"


def judge(action: str, vm_state: str) -> Verdict:
    """What the table says of *action* on a VM in *vm_state*."""
    row = ACTIONS[action]
    if vm_state in row.noop:
        return Verdict.NOOP
    return Verdict.ALLOWED if vm_state in row.allowed else Verdict.REFUSED


def demand(action: str, state: State, *, name: str) -> bool:
    """Whether *action* is to be done on VM *name* in *state*: ``False`` when there is nothing to do.

    :raises Refused: The table does not allow it; the error names the way out.
    :raises Busy: Another transition is under way, and the action wants none.
    """
    verdict = judge(action, state.vm_state)
    if verdict is Verdict.REFUSED:
        raise refusal(action, state, name=name)
    if verdict is Verdict.NOOP:
        return False
    demand_idle(action, state, name=name)
    return True


def demand_idle(action: str, state: State, *, name: str) -> None:
    """See that nothing else is under way on VM *name*, if *action* wants that.

    :raises Busy: Something is.
    """
    row = ACTIONS[action]
    if state.running and row.idle and state.task_state not in row.during:
        raise Busy(
            f"VM {name} is busy: {state.running}, and {action} wants no other task.",
            hint="Run the task again when it has ended; if nothing runs any more, run the earlier task again to finish"
            " it, or clear it with vm_status.",
        )


def refusal(action: str, state: State, *, name: str, why: str = "", hint: str = "") -> Refused:
    """The error for *action* on VM *name* in *state*."""
    way_out = _FIRST.get(action) if state.vm_state in _PLAIN else None
    return Refused(
        f"VM {name} is {state.status}: {action} is not allowed{why or ' in that status'}.",
        hint=hint or way_out or _WAYS_OUT.get(state.vm_state, ""),
        status=state.status,
        action=action,
    )
