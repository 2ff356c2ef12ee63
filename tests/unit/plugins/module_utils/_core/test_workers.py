# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same call for many things at once."""

from __future__ import annotations

import threading
import time

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.workers import spread, within


@pytest.mark.parametrize("count", [0, 1, 2, 5, 23])
@pytest.mark.parametrize("workers", [1, 3, 5])
def test_results_come_in_the_order_of_the_items(count: int, workers: int) -> None:
    wanted = [number * number for number in range(count)]
    assert spread(lambda number: number * number, range(count), workers=workers) == wanted
    assert within(lambda number: number * number, range(count), seconds=30, workers=workers) == wanted


def test_several_run_at_once() -> None:
    meet = threading.Barrier(4)
    assert len(set(spread(lambda _item: meet.wait(30), range(4), workers=4))) == 4
    meet.reset()
    assert None not in within(lambda _item: meet.wait(30), range(4), seconds=30, workers=4)


def test_an_exception_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        spread(lambda number: 1 // number, [1, 2, 0, 3, 4, 5])


def test_those_that_hang_hold_up_nobody() -> None:
    end = threading.Event()

    def work(number: int) -> int:
        if number % 2:
            end.wait(60)
        return number

    began = time.monotonic()
    results = within(work, range(10), seconds=0.2, workers=2)
    assert time.monotonic() - began < 30
    end.set()
    assert results == [0, None, 2, None, 4, None, 6, None, 8, None]


def test_a_late_result_is_not_taken() -> None:
    end = threading.Event()
    results = within(lambda _item: end.wait(60), [1], seconds=0.05)
    end.set()
    time.sleep(0.05)
    assert results == [None]


def test_an_index_error_is_an_error_like_any_other() -> None:
    with pytest.raises(IndexError):
        spread(lambda number: [1][number], [0, 0, 0, 1, 0, 0])


def test_after_an_error_nothing_more_is_begun() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 0:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spread(work, range(1000), workers=2)
    assert len(begun) < 100


def test_a_slow_item_does_not_hold_up_those_behind_it() -> None:
    others = threading.Event()

    def work(number: int) -> bool:
        if number == 9:
            others.set()
        return others.wait(30) if number == 0 else False

    assert spread(work, range(10), workers=2)[0]
