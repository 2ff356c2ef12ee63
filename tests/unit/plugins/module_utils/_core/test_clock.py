# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting with a deadline, and stamps."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock, parse_stamp, stamp, wait_until
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import TimedOut
from tests.unit.fakes import JumpingClock

ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=ZONES)
SECONDS = st.integers(0, 20_000).map(lambda hundredths: hundredths / 100)


class Asked:
    """A predicate that notes when it is asked, and is true from some moment on."""

    def __init__(self, clock: JumpingClock, true_at: float = float("inf"), takes: float = 0) -> None:
        self.clock = clock
        self.true_at = true_at
        self.takes = takes
        self.at: list[float] = []

    def __call__(self) -> str | None:
        self.at.append(self.clock.seconds)
        self.clock.seconds += self.takes
        return "yes" if self.at[-1] >= self.true_at else None


def test_the_answer_is_returned_and_nobody_sleeps_when_it_is_there_at_once() -> None:
    clock = JumpingClock()
    assert wait_until(Asked(clock, true_at=0), clock=clock, timeout=0, doing="waiting") == "yes"
    assert clock.slept == []


@pytest.mark.parametrize("timeout", [0, -1])
def test_without_time_it_is_asked_once(timeout: float) -> None:
    clock = JumpingClock()
    asked = Asked(clock)
    with pytest.raises(TimedOut):
        wait_until(asked, clock=clock, timeout=timeout, doing="waiting")
    assert asked.at == [0]


def test_the_error_says_what_was_waited_for_and_how_long() -> None:
    with pytest.raises(TimedOut, match=r"^Gave up waiting for VM web1 to shut off after 2\.5 seconds\.$") as caught:
        wait_until(lambda: None, clock=JumpingClock(), timeout=2.5, doing="waiting for VM web1 to shut off")
    assert caught.value.details == {"seconds": 2.5}
    assert caught.value.code == "timed_out"


@given(timeout=SECONDS)
def test_it_is_asked_at_the_beginning_and_at_the_deadline_and_never_after_it(timeout: float) -> None:
    clock = JumpingClock()
    asked = Asked(clock)
    with pytest.raises(TimedOut):
        wait_until(asked, clock=clock, timeout=timeout, doing="waiting")
    assert asked.at[0] == 0
    assert asked.at[-1] == pytest.approx(timeout)
    assert max(asked.at) <= timeout + 1e-6


@given(timeout=SECONDS, interval=st.floats(0.02, 60))
def test_the_intervals_grow_up_to_the_longest(timeout: float, interval: float) -> None:
    clock = JumpingClock()
    with pytest.raises(TimedOut):
        wait_until(lambda: None, clock=clock, timeout=timeout, interval=interval, doing="waiting")
    regular = clock.slept[:-1]  # the last is what was left
    assert regular == sorted(regular)
    assert all(pause <= interval for pause in clock.slept)
    if len(regular) > 30:
        assert regular[-1] == interval


@given(true_at=st.floats(0, 60), timeout=st.floats(0, 60))
def test_what_comes_in_time_is_noticed_and_soon(true_at: float, timeout: float) -> None:
    clock = JumpingClock()
    asked = Asked(clock, true_at)
    if true_at <= timeout:
        assert wait_until(asked, clock=clock, timeout=timeout, doing="waiting") == "yes"
        assert clock.seconds - true_at <= 0.25
        assert clock.seconds - true_at <= max(0.02, true_at)  # what is quick is noticed quickly
    elif true_at > timeout + 1e-6:
        with pytest.raises(TimedOut):
            wait_until(asked, clock=clock, timeout=timeout, doing="waiting")


def test_a_slow_question_is_not_asked_again_after_the_deadline() -> None:
    clock = JumpingClock()
    asked = Asked(clock, takes=7)
    with pytest.raises(TimedOut):
        wait_until(asked, clock=clock, timeout=5, doing="waiting")
    assert asked.at == [0]


def test_an_error_in_the_question_is_not_waited_for() -> None:
    clock = JumpingClock()

    def gone() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        wait_until(gone, clock=clock, timeout=5, doing="waiting")
    assert clock.slept == []


@given(MOMENTS)
def test_a_stamp_is_read_back_as_the_same_second(moment: datetime) -> None:
    assert parse_stamp(stamp(moment)) == moment.replace(microsecond=0)
    assert stamp(parse_stamp(stamp(moment))) == stamp(moment)


@given(MOMENTS, MOMENTS)
def test_stamps_sort_like_the_moments(one: datetime, other: datetime) -> None:
    assert (stamp(one) < stamp(other)) == (one.replace(microsecond=0) < other.replace(microsecond=0))


def test_a_stamp_is_utc() -> None:
    assert stamp(datetime(2026, 7, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == "2026-06-30T23:30:00Z"


@pytest.mark.parametrize("text", ["", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "yesterday"])
def test_what_is_no_stamp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        parse_stamp(text)


def test_the_real_clock_goes_forward_and_tells_whole_seconds_of_utc() -> None:
    clock = Clock()
    before = clock.monotonic()
    clock.sleep(0.001)
    assert clock.monotonic() > before
    now = clock.now()
    assert (now.microsecond, now.tzinfo) == (0, timezone.utc)
    assert abs(now.timestamp() - datetime.now().timestamp()) < 5
