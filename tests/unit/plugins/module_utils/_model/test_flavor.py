# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Flavors: named sizes."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor

SMALLEST: dict[str, t.Any] = {"vcpus": 1, "memory": 1, "root": 0, "swap": 0}


def test_the_smallest_flavor_has_a_cpu_and_a_mebibyte() -> None:
    assert Flavor(**SMALLEST) == Flavor(1, 1)


@pytest.mark.parametrize("label", SMALLEST)
def test_a_size_below_the_least_is_refused_by_name(label: str) -> None:
    least = SMALLEST[label]
    with pytest.raises(Invalid, match=f"Flavor m1: {label} is {least - 1}, and must be at least {least}"):
        Flavor(**{**SMALLEST, label: least - 1}, name="m1")


def test_an_ephemeral_disk_has_at_least_a_gibibyte() -> None:
    with pytest.raises(Invalid, match="Flavor given: ephemeral is 0, and must be at least 1"):
        Flavor(1, 1, ephemeral=(1, 0))


def test_a_flavor_tells_all_its_sizes_as_plain_values() -> None:
    assert Flavor(2, 4096, 20, (10, 5), 512, "m1").tell() == {
        "name": "m1",
        "vcpus": 2,
        "memory": 4096,
        "root": 20,
        "ephemeral": [10, 5],
        "swap": 512,
    }
