# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Power: from what the guest is doing to what it shall be doing, as a short list of operations on it."""

from __future__ import annotations

from dataclasses import dataclass

from .actions import demand, demand_idle, refusal
from .status import State, status_of

# Operations, in the words of _libvirt.Guest:
#   start, start_paused   boot, or restore the managed save image
#   shut_down             ask the guest, again and again, then pull the plug
#   power_off             pull the plug
#   wait_off              the guest is going down by itself: wait, then pull the plug
#   pause, resume, save, discard_save, wake
#   prove                 wait until the guest's agent answers again, if it had one
Operations = dict[str, tuple[str, ...]]

_TO_RUNNING: Operations = {
    "running": (),
    "paused": ("resume",),
    "suspended": ("start",),
    "stopped": ("start",),
    "going_down": ("wait_off", "start"),
    "asleep": ("wake",),
    "crashed": ("power_off", "start"),
}
_TO_STOPPED: Operations = {
    "running": ("shut_down",),
    "paused": ("resume", "shut_down"),
    "suspended": ("start", "shut_down"),
    "stopped": (),
    "going_down": ("wait_off",),
    "asleep": ("wake", "shut_down"),
    "crashed": ("power_off",),
}
_TO_STOPPED_BY_FORCE: Operations = {
    "running": ("power_off",),
    "paused": ("power_off",),
    "suspended": ("discard_save",),
    "stopped": (),
    "going_down": ("power_off",),
    "asleep": ("power_off",),
    "crashed": ("power_off",),
}
_TO_PAUSED: Operations = {
    "running": ("pause",),
    "paused": (),
    "suspended": ("start_paused",),
    "stopped": ("start_paused",),
    "going_down": ("wait_off", "start_paused"),
    "asleep": ("wake", "pause"),
    "crashed": ("power_off", "start_paused"),
}
_TO_SUSPENDED: Operations = {
    "running": ("save",),
    "paused": ("save",),
    "suspended": (),
    "asleep": ("wake", "save"),
}
_SOFT_REBOOT: Operations = {
    "running": ("shut_down", "start", "prove"),
    "going_down": ("wait_off", "start", "prove"),
}
_HARD_REBOOT: Operations = {
    "running": ("power_off", "start", "prove"),
    "paused": ("power_off", "start", "prove"),
    "stopped": ("start", "prove"),
    "going_down": ("power_off", "start", "prove"),
    "asleep": ("power_off", "start", "prove"),
    "crashed": ("power_off", "start", "prove"),
}

# The action of the action table for a target state, and by what the guest is doing where that matters.
_ACTIONS = {
    "running": {"paused": "unpause", "suspended": "resume", "": "start"},
    "stopped": {"": "stop"},
    "paused": {"suspended": "resume", "": "pause"},
    "suspended": {"": "suspend"},
    "rebooted soft": {"": "reboot"},
    "rebooted hard": {"": "reboot_hard"},
}
_POWER_STATES = {
    "running": "RUNNING",
    "rebooted": "RUNNING",
    "stopped": "SHUTDOWN",
    "suspended": "SHUTDOWN",
    "paused": "PAUSED",
}
# In this state a VM may be switched off and on, and stays in it.
_KEEPS = "rescued"


@dataclass(frozen=True)
class Route:
    """What to do to reach a power state.

    :param action: The action of the action table that it amounts to.
    :param operations: Operations on the guest, in order. None: it is there already.
    :param vm_state: Where it leads.
    :param power_state: The same on that axis.
    :param clears_error: The mark ``error`` is to be taken off at the end.
    """

    action: str
    operations: tuple[str, ...]
    vm_state: str
    power_state: str
    clears_error: bool

    @property
    def status(self) -> str:
        """The status where it leads."""
        return status_of(self.vm_state)


def route(state: State, target: str, *, name: str, reboot: str = "soft", force: bool = False) -> Route:
    """How VM *name*, being in *state*, gets to *target*.

    :param target: ``running``, ``stopped``, ``paused``, ``suspended`` or ``rebooted``.
    :param reboot: ``soft`` or ``hard``, for ``rebooted``.
    :param force: Do not ask the guest; memory that is saved or running may be lost.
    :raises Refused: The action table or the guest's condition does not allow it.
    :raises Busy: Another operation is under way.
    """
    doing = state.condition
    if target == "rebooted" and reboot == "hard" and doing == "suspended":
        if not force:
            raise refusal(
                "reboot_hard",
                state,
                name=name,
                why=" because its saved memory would be lost",
                hint="Say force: true to lose it, or use state: running first.",
            )
        table: Operations = {"suspended": ("discard_save", "start", "prove")}
    elif target == "rebooted":
        table = _HARD_REBOOT if reboot == "hard" else _SOFT_REBOOT
    elif target == "stopped" and force:
        table = _TO_STOPPED_BY_FORCE
    else:
        table = {"running": _TO_RUNNING, "stopped": _TO_STOPPED, "paused": _TO_PAUSED, "suspended": _TO_SUSPENDED}[
            target
        ]

    actions = _ACTIONS[f"rebooted {reboot}" if target == "rebooted" else target]
    action = actions.get(doing, actions[""])
    demand_idle(action, state, name=name)
    keeps = state.vm_state == _KEEPS
    if state.marked:
        demand(actions[""] if keeps else action, state, name=name)
    operations = table.get(doing)
    if operations is None:
        raise refusal(action, state, name=name, hint=_hint(target, reboot, doing))
    return Route(
        action=action,
        operations=operations,
        vm_state=_KEEPS if keeps else {"rebooted": "active", "running": "active"}.get(target, target),
        power_state=_POWER_STATES[target],
        clears_error=state.marked and state.vm_state == "error",
    )


def _hint(target: str, reboot: str, doing: str) -> str:
    if target == "rebooted" and reboot == "soft" and doing != "suspended":  # whose memory a hard one would lose
        return "Say reboot: hard, or use state: running first."
    return "Use state: running first."
