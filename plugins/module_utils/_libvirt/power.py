# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Operations on a guest's power that take their time: asking, waiting, and the plug at the end."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .._core.clock import Clock, wait_until
from .._core.errors import LifecycleError, NotFound, TimedOut, Unreachable
from .._model.status import PAUSED, RUNNING, SHUTOFF, SHUTOFF_SHUTDOWN
from .guest import Guest

Figures = dict[str, t.Any]


@dataclass(frozen=True)
class Patience:
    """How a guest is asked to shut down.

    :param mode: ``auto``, ``acpi`` or ``agent``.
    :param timeout: Seconds until the plug is pulled.
    :param retry_interval: Seconds after which it is asked again; guests ignore the power button while they boot.
    :param answer: Seconds that the agent has to answer after a reboot.
    """

    mode: str = "auto"
    timeout: float = 60
    retry_interval: float = 10
    answer: float = 120


class Power:
    """The operations that :mod:`.._model.power` names, on one guest."""

    def __init__(self, guest: Guest, patience: Patience, clock: Clock) -> None:
        self.guest = guest
        self.patience = patience
        self.clock = clock
        self._had_agent = False

    def operate(self, operation: str) -> Figures:
        """Do *operation* and return figures about it.

        :raises LifecycleError: It failed.
        """
        figures = getattr(self, operation)()
        return figures or {}

    def start(self) -> Figures:
        """Boot, or restore the managed save image, and wait until QEMU runs."""
        return self._start(paused=False)

    def start_paused(self) -> Figures:
        """The same, with the virtual CPUs stopped."""
        return self._start(paused=True)

    def _start(self, *, paused: bool) -> Figures:
        restored = self.guest.saved()
        self.guest.start(paused=paused)
        if restored:
            # The running domain has the metadata of the time of the save; the definition has what came since.
            self.guest.remember(self.guest.recall())
        if restored and not paused:
            if self.guest.state()[0] == PAUSED:  # as it was when it was saved
                self.guest.resume()
            self._set_time()
        return {"restored_memory": restored}

    def resume(self) -> None:
        """Let the virtual CPUs run, and set the guest's clock."""
        self.guest.resume()
        self._set_time()

    def pause(self) -> None:
        """Stop the virtual CPUs."""
        self.guest.pause()

    def wake(self) -> None:
        """Wake the guest, and wait until it is awake."""
        self.guest.wake()
        self._wait_for(lambda state, _reason: state == RUNNING, "wake up")

    def save(self) -> None:
        """Write memory to disk and end QEMU."""
        self.guest.save()

    def discard_save(self) -> None:
        """Remove the saved memory."""
        self.guest.discard_save()

    def power_off(self) -> Figures:
        """Pull the plug."""
        self._note_agent()
        self.guest.power_off()
        self._wait_for(lambda state, _reason: state == SHUTOFF, "power off")
        return {"shutdown": "forced"}

    def wait_off(self) -> Figures:
        """The guest is going down already: wait, then pull the plug."""
        return self._go_down(ask=False)

    def shut_down(self) -> Figures:
        """Ask the guest to shut down, again every ``retry_interval``, and pull the plug after ``timeout``."""
        self._note_agent()
        return self._go_down(ask=True)

    def prove(self) -> Figures:
        """See that the guest is up again after a reboot: its agent, if it had one, opens its channel anew.

        :raises TimedOut: It does not.
        """
        if not self._had_agent:
            return {"guest_answered": False}
        wait_until(
            self.guest.agent_connected,
            clock=self.clock,
            timeout=self.patience.answer,
            doing=f"waiting for the guest agent of VM {self.guest.name} after the reboot",
        )
        return {"guest_answered": True}

    # ----

    def _note_agent(self) -> None:
        # A guest that was asked to shut down and hangs in it may have ended its agent first.
        self._had_agent = self._had_agent or bool(self.guest.agent_connected())

    def _ask(self) -> None:
        """Ask the guest to shut down. libvirt waits a minute for an agent that hangs, whatever our patience: so it is
        asked something quick first.

        :raises Unreachable: Only the agent may ask it, and it does not answer.
        """
        mode = self.patience.mode
        if mode != "acpi" and self.guest.agent_connected() and not self.guest.agent_answers():
            if mode == "agent":
                raise Unreachable(f"The agent of VM {self.guest.name} does not answer.")
            mode = "acpi"
        self.guest.ask_to_shut_down(mode)

    def _set_time(self) -> None:
        if self.guest.agent_connected():
            self.guest.set_time()

    def _wait_for(self, reached: t.Callable[[int, int], bool], what: str) -> None:
        def is_there() -> bool:
            try:
                return reached(*self.guest.state())
            except NotFound:  # a transient domain ends with its guest
                return True

        wait_until(
            is_there,
            clock=self.clock,
            timeout=self.patience.answer,
            doing=f"waiting for VM {self.guest.name} to {what}",
        )

    def _go_down(self, *, ask: bool) -> Figures:
        began = self.clock.monotonic()
        asked_at = began - self.patience.retry_interval
        asked = 0
        refused: list[str] = []

        def is_off() -> str | None:
            nonlocal asked_at, asked
            try:
                state, reason = self.guest.state()
            except NotFound:
                return "guest"
            if state == SHUTOFF:
                return "guest" if reason == SHUTOFF_SHUTDOWN else "forced"
            if ask and self.clock.monotonic() - asked_at >= self.patience.retry_interval:
                asked_at = self.clock.monotonic()
                asked += 1
                try:
                    self._ask()
                except LifecycleError as exc:  # no agent, or it went down this very moment: the plug is there
                    refused.append(str(exc))
            return None

        try:
            how = wait_until(
                is_off,
                clock=self.clock,
                timeout=self.patience.timeout,
                doing=f"waiting for VM {self.guest.name} to shut down",
            )
        except TimedOut:
            self.power_off()
            how = "forced"
        figures: Figures = {
            "shutdown": how,
            "shutdown_seconds": round(self.clock.monotonic() - began, 3),
            "shutdown_requests": asked,
        }
        if refused and how == "forced":
            figures["shutdown_refusals"] = sorted(set(refused))
        return figures
