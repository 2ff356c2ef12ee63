# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose turn it is to move."""

from __future__ import annotations

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.queueing import (
    Limits,
    Mover,
    arriving,
    interleaved,
    obstacle,
)

TWO = Limits(2, 2)


def movers(*lines: str) -> list[Mover]:
    """Each as ``a>b``, with a ``!`` when it moves; numbered from 1."""
    found = []
    for number, line in enumerate(lines, 1):
        source, dest = line.rstrip("!").split(">")
        found.append(Mover(number, source, dest, line.endswith("!")))
    return found


def going(limits: Limits, *lines: str) -> list[int]:
    """The numbers of those that wait and need not."""
    all_of_them = movers(*lines)
    return [each.number for each in all_of_them if not each.moving and not obstacle(all_of_them, each.number, limits)]


@pytest.mark.parametrize(
    ("lines", "go"),
    [
        (["a>b"], [1]),
        (["a>b", "a>b", "a>b"], [1, 2]),
        (["a>b!", "a>b!", "a>c"], []),
        (["a>b!", "a>b", "a>b"], [2]),
        (["a>x!", "b>x!", "c>x"], []),
        (["a>x!", "b>x!", "c>x", "c>y"], [4]),
        (["a>x!", "b>x!", "c>x", "c>y", "c>y", "c>y"], [4, 5]),
        (["a>x!", "a>y!", "a>z", "b>z", "b>z", "b>z"], [4, 5]),
    ],
)
def test_those_who_came_first_go_first_and_hold_up_nobody_else(lines: list[str], go: list[int]) -> None:
    assert going(TWO, *lines) == go


def test_nothing_is_a_limit_that_is_zero() -> None:
    assert going(Limits(0, 0), *["a>b!"] * 5, "a>b", "a>b") == [6, 7]
    assert going(Limits(0, 1), "a>b!", "a>b", "a>c", "a>d") == [3, 4]
    assert going(Limits(1, 0), "a>b!", "a>c", "b>c", "c>c") == [3, 4]


def test_what_is_in_the_way_is_told() -> None:
    assert obstacle(movers("a>b!", "a>c!", "a>d"), 3, TWO) == "2 leave a already"
    assert obstacle(movers("a>c!", "b>c!", "d>c"), 3, TWO) == "2 go to c already"


def test_vms_from_elsewhere_count_as_the_destination_tells() -> None:
    line = movers("a>b!", "a>b")
    assert obstacle(line, 2, TWO, arriving=1) == ""  # that is the one we know of
    assert obstacle(line, 2, TWO, arriving=2) == "2 go to b already"


def test_one_that_is_not_in_line_any_more_does_not_wait() -> None:
    assert obstacle(movers("a>b!"), 7, Limits(1, 1)) == ""


def test_a_vm_arrives_while_it_is_paused_for_its_migration() -> None:
    assert [arriving(state) for state in ((3, 2), (3, 1), (1, 2), (5, 2))] == [True, False, False, False]


def test_hosts_take_turns() -> None:
    assert interleaved(["x", "x", "x", "y", "z", "z"]) == [0, 3, 4, 1, 5, 2]
    assert interleaved([]) == []
