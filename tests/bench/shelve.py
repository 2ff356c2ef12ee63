# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures shelving on a running lab, and writes docs/benchmarks_shelve.md. See run.sh, which starts it."""

from __future__ import annotations

import json
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.bench.common import Bench, Rounds, Table, finish, median, options, ratio, row

PYTHON = "/opt/kvmops/venv/bin/python"
MIBS = ("size", "peak", "before", *(f"{what} {number}" for what in ("away", "back") for number in (1, 2, 3)))
CYCLES = "3"

# Which VMs are brought back from which stores. The lab's Glance has no room for the largest.
FROM = {"four": ("directory", "glance"), "sixteen": ("directory",), "changes": ("directory", "glance")}


@dataclass(frozen=True)
class Sizes:
    """Of data, in MiB: what the disk of 4 GiB has, and what is written above the same in a base. The disk of 16 GiB has
    four times as much."""

    four: int = 1536
    changes: int = 100

    def vms(self) -> dict[str, t.Any]:
        """What inside_shelve.py prepares."""
        return {
            "base": {"gib": 4, "mib": self.four},
            "vms": {
                "four": {"image": "guest", "gib": 4, "mib": self.four, "flat": True},
                "sixteen": {"image": "guest", "gib": 16, "mib": 4 * self.four, "flat": True},
                "changes": {"image": "base", "gib": 4, "mib": self.changes, "flat": False},
            },
        }


QUICK = Sizes(four=192, changes=10)


class Measuring(Rounds):
    """The rounds."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, dict.fromkeys(MIBS, "MiB"))

    def round(self) -> None:
        """Everything once."""
        self.note("start-up", "startup")
        for vm in self.turn(["four", "sixteen"]):
            for way in self.turn(["plain", *FROM[vm], "classical"]):
                if way in FROM[vm]:
                    self.away(vm, way)
                else:
                    self.note(f"{vm}, {way}", way, vm)
        self.note("changes, plain", "plain", "changes")
        self.shelving()
        self.note("cycles", "cycles", "changes", "directory", CYCLES)
        self.number += 1

    def away(self, vm: str, kind: str) -> None:
        """There and back."""
        self.note(f"{vm}, {kind}, offload", "shelve", vm, kind, "offloaded")
        if vm == "changes":
            self.bench.inside("purge")
        self.note(f"{vm}, {kind}", "unshelve", vm, kind)

    def shelving(self) -> None:
        """What differs from a base, beside Nova's way; and back, to a host that has not got that base."""
        for way in self.turn(["nova", *FROM["changes"]]):
            if way == "nova":
                self.note("changes, nova", "nova", "changes")
                self.note("changes, upload", "upload")
            else:
                self.note(f"changes, {way}, shelve", "shelve", "changes", way, "shelved")
                self.away("changes", way)


def nova_seconds(found: Table, kind: str, *, hashed: bool) -> float:
    """Of all rounds, the median of what Nova's way into that store takes."""
    keys = ["nova, convert", *(["upload, seconds"] if kind == "glance" else ["nova, copy"])]
    keys += ["nova, hash"] if hashed else []
    return median({"": [sum(each) for each in zip(*(found[f"changes, {key}"] for key in keys))]}, "")


def running(found: Table, key: str) -> float:
    """Seconds from the start of the process until the VM ran."""
    return median(found, f"{key}, running")


def start_rows(found: Table) -> t.Iterator[str]:
    """The way back beside a plain start."""
    for vm, said, kind, wanted in (
        ("four", "4 GiB, data of its own", "directory", "at most 1.5"),
        ("sixteen", "16 GiB, data of its own", "directory", "at most 1.5"),
        ("changes", "4 GiB, data in a base that the host has not got", "directory", "at most 1.5"),
        ("four", "4 GiB, data of its own", "glance", "at most 2"),
        ("changes", "4 GiB, data in a base that the host has not got", "glance", "at most 2"),
    ):
        ours, plain = running(found, f"{vm}, {kind}"), running(found, f"{vm}, plain")
        told, whole = median(found, f"{vm}, {kind}, told"), median(found, f"{vm}, {kind}, process")
        yield row(said, kind, ours, told, plain, ratio(ours, plain), wanted, whole)


def classic_rows(found: Table) -> t.Iterator[str]:
    """The way back beside the classical one."""
    for vm, said, wanted in (("four", "4 GiB", "at least 3"), ("sixteen", "16 GiB", "at least 8")):
        ours, classical = running(found, f"{vm}, directory"), running(found, f"{vm}, classical")
        download, convert = (median(found, f"{vm}, classical, {part}") for part in ("download", "convert"))
        yield row(said, ours, download, convert, classical, ratio(classical, ours), wanted)


def shelve_rows(found: Table) -> t.Iterator[str]:
    """A shelf beside Nova's image."""
    size = median(found, "changes, nova, size")
    for kind in FROM["changes"]:
        key = f"changes, {kind}, shelve"
        login = median(found, "changes, upload, login") if kind == "glance" else 0
        for said, what, left_out in (
            ("vm_shelve (s)", "seconds", login),
            ("the process with its start-up (s)", "process", 0),
        ):
            ours = median(found, f"{key}, {what}") - left_out
            ways = (nova_seconds(found, kind, hashed=True), nova_seconds(found, kind, hashed=False))
            yield row(kind, said, ours, *ways, ratio(ways[0], ours), ratio(ways[1], ours), "at least 10")
        ours = median(found, f"{key}, size")
        yield row(kind, "size (MiB)", ours, size, size, ratio(size, ours), ratio(size, ours), "at least 10")


def offload_rows(found: Table) -> t.Iterator[str]:
    """How long the rest takes."""
    for vm, kinds in FROM.items():
        for kind in kinds:
            key = f"{vm}, {kind}, offload"
            what = "only offloaded" if vm == "changes" else "shelved and offloaded"
            yield row(vm, kind, what, median(found, f"{key}, seconds"), median(found, f"{key}, size"))


def room_rows(found: Table) -> t.Iterator[str]:
    """What the VM takes on the host."""
    for said, key in (
        ("before", "before"),
        *(
            (f"{words} the {order} time", f"{what} {number}")
            for number, order in ((1, "first"), (2, "second"), (3, "third"))
            for what, words in (("away", "offloaded"), ("back", "unshelved"))
        ),
    ):
        yield row(said, median(found, f"cycles, {key}"))


def peak_rows(found: Table) -> t.Iterator[str]:
    """The most that any round took."""
    for vm, kinds in FROM.items():
        for kind in kinds:
            there, back = max(found[f"{vm}, {kind}, offload, peak"]), max(found[f"{vm}, {kind}, peak"])
            yield row(vm, kind, there, back, max(found[f"{vm}, plain, peak"]), "under 150")


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks of shelving

Written by `tests/bench/run.sh --what shelve` on {day}, from {rounds} rounds in one run; every round measures everything
once, one thing after the other, and begins with another one of those that are compared. Figures are medians. The ratios
are what carries over to other machines.

- {machine}
- {versions}
- ansible-core {ansible}
- load of the machine before and after, the run itself included: {load}

The KVM host is one of the lab's (`tests/lab`), without KVM; its Glance runs on the same machine. Disks and the
directory store are on one file system. Before each measurement, what was written lies on the disk, and the page cache
holds nothing of the disks.

## Back, beside a plain start

Seconds from the start of the module's process on the host until libvirt says that the VM runs, as another process sees
it. *told* is what the module says itself (`running_seconds`), *plain* is the start of the same VM, stopped, by
`vm_power`. *whole* is all of the module's process, which waits until everything was pulled and verified and the shelf
is gone. An empty process of the module takes {startup:.3g} s. The disk of 4 GiB has {four} MiB of random data, the one
of 16 GiB four times as much.

| disk | store | vm_shelve | told | plain | ratio | wanted | whole |
|---|---|---|---|---|---|---|---|
{starts}

With 16 GiB it takes {larger} times as long as with 4 GiB; wanted is at most 1.20.

## Back, beside the classical way

The same seconds. The classical way is to copy the flat image out of the store, to convert it to a raw disk, and to
start a VM with it; there is no start of Python in that, and nothing is hashed, nor waited for to lie on the disk.

| disk | vm_shelve | download | convert | classical | ratio | wanted |
|---|---|---|---|---|---|---|
{classics}

## Shelving

A stopped VM whose disk of 4 GiB has {changes} MiB of its own above {four} MiB in a base that is in the store. Nova's
way is to convert the disk into one flat image in a temporary file, and to copy that into the store, with fsync, or to
upload it; *hashed* is the same with hashing it (sha256). *vm_shelve* is what the module tells (`seconds`), *process*
all of its process on the host. Where it is not the process, the import of openstacksdk and the login are left out, on
both sides ({login:.3g} s).

| store | | shelf | Nova's, hashed | Nova's | ratio | ratio | wanted |
|---|---|---|---|---|---|---|---|
{shelves}

Offloading reads the shelf back and compares it (`verify: full`). Without a limit of bandwidth, in seconds and MiB:

| VM | store | | seconds | MiB |
|---|---|---|---|---|
{offloads}

## Room on the host

MiB that are allocated for the files of that VM and for all bases of the host, while it is shelved, offloaded and
unshelved {cycles} times. It is stopped when it goes, and boots when it comes; what its guest writes meanwhile is in the
figures. With Nova's way a flat image of {flat:.0f} MiB would be added the first time, as a base of its own.

| | MiB |
|---|---|
{rooms}

## Memory

The module's peak in MiB (`ru_maxrss`), the highest of all rounds.

| VM | store | away | back | vm_power | wanted |
|---|---|---|---|---|---|
{peaks}
"""


def write(bench: Bench, sizes: Sizes, found: Table) -> str:
    """The page."""
    return PAGE.format(
        **bench.about(),
        four=sizes.four,
        changes=sizes.changes,
        cycles=CYCLES,
        startup=median(found, "start-up, process"),
        larger=ratio(running(found, "sixteen, directory"), running(found, "four, directory")),
        flat=median(found, "changes, nova, size"),
        login=median(found, "changes, upload, login"),
        starts="\n".join(start_rows(found)),
        classics="\n".join(classic_rows(found)),
        shelves="\n".join(shelve_rows(found)),
        offloads="\n".join(offload_rows(found)),
        rooms="\n".join(room_rows(found)),
        peaks="\n".join(peak_rows(found)),
    )


def main() -> None:
    """See above."""
    wanted = options("shelving", rounds=3)
    sizes = QUICK if wanted.quick else Sizes()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), wanted.rounds, PYTHON, "inside_shelve.py")
        print("preparing", flush=True)
        bench.inside("prepare", json.dumps(sizes.vms()))
        measuring = Measuring(bench)
        for number in range(wanted.rounds):
            print(f"shelving, round {number + 1} of {wanted.rounds}", flush=True)
            measuring.round()
        page = write(bench, sizes, measuring.found)
    finish(page, "benchmarks_shelve.md", only_print=wanted.print or wanted.quick)


if __name__ == "__main__":
    main()
