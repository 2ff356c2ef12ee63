# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How fast bytes may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.bandwidth import TokenBucket
from tests.unit.fakes import JumpingClock


@given(st.integers(1, 1 << 30), st.lists(st.integers(1, 1 << 22), min_size=1))
def test_who_waits_as_told_goes_exactly_as_fast_as_allowed(rate: int, sizes: list[int]) -> None:
    clock = JumpingClock()
    bucket = TokenBucket(rate, clock)
    for size in sizes:
        clock.sleep(bucket.take(size))
    assert abs(clock.seconds - sum(sizes) / rate) < 1e-6 * max(1, clock.seconds)


def test_who_is_slower_does_not_wait() -> None:
    clock = JumpingClock()
    bucket = TokenBucket(100, clock)
    for _time in range(5):
        clock.seconds += 1
        assert bucket.take(100) == 0


def test_what_was_not_used_is_kept_for_one_second() -> None:
    clock = JumpingClock()
    bucket = TokenBucket(100, clock)
    clock.seconds += 60
    assert bucket.take(100) == 0
    assert bucket.take(50) == 0.5
