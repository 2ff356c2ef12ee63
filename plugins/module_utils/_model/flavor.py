# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Flavors: named sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .._core.errors import Invalid


@dataclass(frozen=True)
class Flavor:
    """The size of a VM, as in Nova.

    :param name: A label for people; two flavors are the same when their sizes are.
    :param vcpus: Virtual CPUs.
    :param memory: Memory in MiB.
    :param root: The root disk in GiB; 0 means as large as the image.
    :param ephemeral: Extra empty disks in GiB.
    :param swap: A swap disk in MiB; 0 means none.
    """

    vcpus: int
    memory: int
    root: int = 0
    ephemeral: tuple[int, ...] = ()
    swap: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        for label, value, least in (
            ("vcpus", self.vcpus, 1),
            ("memory", self.memory, 1),
            ("root", self.root, 0),
            ("swap", self.swap, 0),
            *(("ephemeral", size, 1) for size in self.ephemeral),
        ):
            if value < least:
                raise Invalid(f"Flavor {self.name or 'given'}: {label} is {value}, and must be at least {least}.")

    def tell(self) -> dict[str, object]:
        """For results and diffs."""
        return {
            "name": self.name,
            "vcpus": self.vcpus,
            "memory": self.memory,
            "root": self.root,
            "ephemeral": list(self.ephemeral),
            "swap": self.swap,
        }
