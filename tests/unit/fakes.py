# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stand-ins with a state of their own: a clock that jumps, and one guest. There are no others."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock


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
