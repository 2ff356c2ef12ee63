# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stand-ins with a state of their own: a clock that jumps, and one guest. There are no others."""

from __future__ import annotations

import typing as t
from datetime import datetime, timedelta, timezone

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, NotFound, Unreachable
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import (
    CONDITIONS,
    CRASHED,
    PAUSED,
    PMSUSPENDED,
    RUNNING,
    SHUTDOWN,
    SHUTOFF,
    SHUTOFF_SHUTDOWN,
    Observation,
)

SHUTOFF_DESTROYED, SHUTOFF_SAVED = 2, 5


class JumpingClock(Clock):
    """Sleeping takes no time, and yet the time goes by.

    :param slept: How long each sleep was.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=int(self.seconds))


class FakeGuest(Guest):
    """One VM as QEMU and libvirt keep it: what is not possible in a condition fails, and time goes by on *clock*.

    :param condition: What the guest is doing, one of :data:`CONDITIONS`.
    :param goes_down_after: Seconds from the first request to shut down that is heard until it is off; ``None`` ignores
        all.
    :param deaf_for: Seconds after a boot in which requests are not heard.
    :param agent_after: Seconds from boot until its agent opens the channel; ``None`` without an agent.
    :param agent_hangs: Whether its agent holds the channel open and answers nothing.
    :param agent_system: The operating system that its agent tells.
    :param agent_ends: Whether its agent ends with the first request to shut down that is heard, whatever comes of it.
    :param saved_as: What the guest in the managed save image was doing.
    :param image: What the guest was doing that is in the managed save image; empty without one.
    :param persistent: Whether its definition outlives its QEMU process.
    :param refuses: Methods that fail, with what they say.
    :param asked: When it was asked to shut down since it booted.
    :param times_set: How often its clock was set.
    :param passwords: Those that were set, by user, and whether each is a hash.
    """

    def __init__(
        self,
        condition: str,
        clock: JumpingClock,
        *,
        goes_down_after: float | None = 3,
        deaf_for: float = 0,
        agent_after: float | None = None,
        agent_ends: bool = False,
        agent_hangs: bool = False,
        agent_system: str = "debian",
        saved_as: str = "running",
        persistent: bool = True,
        refuses: t.Mapping[str, str] | None = None,
    ) -> None:
        self.name = "web1"
        self.uuid = "11111111-1111-4111-8111-111111111111"
        self.clock = clock
        self.condition = "stopped" if condition == "suspended" else condition
        self.image = saved_as if condition == "suspended" else ""
        self.goes_down_after = goes_down_after
        self.deaf_for = deaf_for
        self.agent_after = agent_after
        self.agent_ends = agent_ends
        self.agent_hangs = agent_hangs
        self.agent_system = agent_system
        self.persistent = persistent
        self.refuses = dict(refuses or {})
        self.memory = Instance()
        self.reason = SHUTOFF_SHUTDOWN
        self.booted_at = -1000.0
        self.off_at = clock.seconds + (goes_down_after or 0) if condition == "going_down" and goes_down_after else None
        self.boots = 0
        self.asked: list[float] = []
        self.ways: list[str] = []
        self.times_set = 0
        self.passwords: dict[str, tuple[str, bool]] = {}

    # ---- looking

    def state(self) -> tuple[int, int]:
        self._let_time_pass()
        if self.condition == "stopped" and not self.persistent:
            raise NotFound(f"Failed to look at VM {self.name}: Domain not found.")
        return {
            "running": (RUNNING, 1),
            "paused": (PAUSED, 1),
            "stopped": (SHUTOFF, self.reason),
            "going_down": (SHUTDOWN, 1),
            "asleep": (PMSUSPENDED, 0),
            "crashed": (CRASHED, 1),
        }[self.condition]

    def look(self, *, running: t.Mapping[str, t.Any] | None = None) -> Observation:
        state, reason = self.state()
        saved, memory = bool(self.image), self.memory
        return Observation(self.name, self.uuid, state, reason, saved, self.persistent, memory, running)

    def active(self) -> bool:
        return self.state()[0] != SHUTOFF

    def agent_connected(self) -> bool | None:
        self._let_time_pass()
        if self.agent_after is None:
            return None
        ended = self.agent_ends and any(at >= self.booted_at + self.deaf_for for at in self.asked)
        return self.condition == "running" and not ended and self.clock.seconds >= self.booted_at + self.agent_after

    def agent_answers(self) -> bool:
        if self.agent_hangs:
            self.clock.sleep(5)
        return not self.agent_hangs

    def recall(self, *, persistent: bool = True) -> Instance:
        return self.memory

    def remember(self, instance: Instance) -> None:
        self.memory = instance

    # ---- power

    def start(self, *, paused: bool = False) -> None:
        self._need("start", "stopped")
        if self.image:
            self.condition, self.image = self.image, ""
        else:
            self.condition = "running"
            self.boots += 1
            self.booted_at = self.clock.seconds
            self.asked = []
        if paused:
            self.condition = "paused"

    def ask_to_shut_down(self, mode: str) -> None:
        self._need("ask_to_shut_down", "running", "paused", "going_down")
        self.asked.append(self.clock.seconds)
        self.ways.append(mode)
        heard = self.condition == "running" and self.clock.seconds >= self.booted_at + self.deaf_for
        if heard and self.goes_down_after is not None:
            self.condition = "going_down"
            self.off_at = self.clock.seconds + self.goes_down_after

    def power_off(self) -> None:
        self._need("power_off", *CONDITIONS)
        if self.condition != "stopped":
            self._end(SHUTOFF_DESTROYED)

    def pause(self) -> None:
        self._need("pause", "running")
        self.condition = "paused"

    def resume(self) -> None:
        self._need("resume", "paused")
        self.condition = "running"

    def save(self) -> None:
        self._need("save", "running", "paused")
        self.image = self.condition
        self._end(SHUTOFF_SAVED)

    def saved(self) -> bool:
        return bool(self.image)

    def discard_save(self) -> None:
        self._need("discard_save", "stopped")
        self.image = ""

    def wake(self) -> None:
        self._need("wake", "asleep")
        self.condition = "running"

    def set_time(self) -> bool:
        self._need("set_time", "running")
        self.times_set += 1
        return True

    # ---- the guest agent

    def system(self, *, patience: int) -> str:
        if self.agent_hangs:
            self.clock.sleep(patience)
            raise Unreachable("Failed to ask the agent: it does not answer.")
        return self.agent_system

    def set_password(self, user: str, password: str, *, encrypted: bool, patience: int) -> None:
        self._need("set_password", "running")
        if self.agent_hangs:
            self.clock.sleep(patience)
            raise Unreachable("Failed to set the password: it does not answer.")
        self.passwords[user] = (password, encrypted)

    # ----

    def _need(self, doing: str, *conditions: str) -> None:
        self._let_time_pass()
        if doing in self.refuses:
            raise LifecycleError(self.refuses[doing])
        if self.condition not in conditions:
            raise LifecycleError(f"Failed to {doing}: VM {self.name} is {self.condition}.")

    def _let_time_pass(self) -> None:
        if self.condition == "going_down" and self.off_at is not None and self.clock.seconds >= self.off_at:
            self._end(SHUTOFF_SHUTDOWN)

    def _end(self, reason: int) -> None:
        self.condition, self.reason, self.off_at = "stopped", reason, None
