# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A limit to how fast bytes go."""

from __future__ import annotations

from .._core.clock import Clock


class TokenBucket:
    """Lets *rate* bytes go by in a second. What was not used is kept for one second at most.

    :param rate: Bytes per second, more than 0.
    """

    def __init__(self, rate: int, clock: Clock) -> None:
        self.rate = rate
        self._clock = clock
        self._tokens = 0.0
        self._at = clock.monotonic()

    def take(self, size: int) -> float:
        """Account for *size* bytes, and tell how many seconds to wait before they may go."""
        now = self._clock.monotonic()
        self._tokens = min(self._tokens + (now - self._at) * self.rate, float(self.rate)) - size
        self._at = now
        return max(0.0, -self._tokens / self.rate)
