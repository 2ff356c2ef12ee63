# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures snapshots on a running lab, and writes docs/benchmarks_snapshots.md. See run.sh, which starts it."""

from __future__ import annotations

import json
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.bench.common import Bench, Rounds, Table, finish, median, options, ratio, row

PYTHON = "/opt/kvmops/venv/bin/python"
UNITS = {"held": "ms", "gap": "ms", "calm": "ms", "size": "MiB", "read": "MiB", "peak": "MiB"}

# How a guest's snapshot is made while it is watched.
HELD: dict[str, tuple[str, ...]] = {
    "full": ("full", "never"),
    "delta": ("delta", "never"),
    "full, quiesced": ("full", "required"),
    "nova": ("nova",),
    "load": ("load",),
}


@dataclass(frozen=True)
class Sizes:
    """Of data, in MiB: in the image of 1 GiB, in the one of 4 GiB, and above that."""

    small: int = 300
    base: int = 1536
    delta: int = 100

    def images(self) -> dict[str, t.Any]:
        """What inside_snapshots.py prepares."""
        return {
            "small": {
                "gib": 1,
                "mib": self.small,
                "clouds": False,
                "vms": {"one": {"gib": 1, "mib": 0, "heart": True}},
            },
            "base": {
                "gib": 4,
                "mib": self.base,
                "clouds": True,
                "vms": {
                    "four": {"gib": 4, "mib": self.delta, "heart": False},
                    "sixteen": {"gib": 16, "mib": 0, "heart": True},
                },
            },
        }


QUICK = Sizes(small=32, base=192, delta=10)


class Measuring(Rounds):
    """The rounds."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, UNITS)

    def round(self) -> None:
        """Everything once."""
        self.note("start-up", "startup")
        for vm in self.turn(["one", "sixteen"]):
            self.watch(vm)
        self.copies("off")
        self.deltas()
        self.uploads()
        self.bench.inside("power", "four", "on")
        self.copies("running")
        self.bench.inside("power", "four", "off")
        self.number += 1

    def watch(self, vm: str) -> None:
        """How long a guest is held; and, of the largest, the memory that snapshots into Glance take."""
        self.bench.inside("power", vm, "resume")
        for how in self.turn(list(HELD)):
            self.note(f"{vm}, {how}", "held", vm, *HELD[how])
        if vm == "sixteen":
            for form in ("full", "delta"):
                self.note(f"{vm}, {form}, glance", "take", vm, "glance", form)
        self.bench.inside("power", vm, "pause")

    def copies(self, state: str) -> None:
        """A full snapshot beside Nova's way and a bare copy."""
        ways = {"ours": ("take", "four", "directory", "full"), "nova": ("nova", "four"), "bare": ("convert", "four")}
        for way in self.turn(list(ways)):
            self.note(f"{state}, {way}", *ways[way])

    def deltas(self) -> None:
        """Deltas of a VM that is off."""
        for kind in ("directory", "glance"):
            self.note(f"delta, {kind}", "take", "four", kind, "delta")

    def uploads(self) -> None:
        """A full snapshot into Glance, beside the upload of a file that is ready."""
        ways = {"glance, ours": ("take", "four", "glance", "full"), "glance, bare": ("upload",)}
        for key in self.turn(list(ways)):
            self.note(key, *ways[key])


def nova_seconds(found: Table, state: str, *parts: str) -> float:
    """Of all rounds, the median of what these parts of Nova's way take together."""
    together = [sum(each) for each in zip(*(found[f"{state}, nova, {part}"] for part in parts))]
    return median({"": together}, "")


def held_rows(found: Table) -> t.Iterator[str]:
    """How long a guest is held."""
    for vm, size in (("one", "1 GiB"), ("sixteen", "16 GiB")):
        for how, said in (
            ("full", "full"),
            ("delta", "delta"),
            ("full, quiesced", "full, quiesced"),
            ("nova", "Nova's way"),
            ("load", "none, but its disk is read"),
        ):
            told, gap, calm, seconds = (
                median(found, f"{vm}, {how}, {name}") for name in ("held", "gap", "calm", "seconds")
            )
            yield row(size, said, told, gap, calm, seconds, "" if how in ("nova", "load") else "under 150")


def ours_seconds(found: Table, key: str) -> float:
    """How long the module says that a snapshot took; into Glance less the import of the libraries and the login."""
    return median(found, f"{key}, seconds") - (median(found, "glance, bare, login") if "glance" in key else 0)


def copy_rows(found: Table) -> t.Iterator[str]:
    """A full snapshot beside the other ways."""
    for state in ("off", "running"):
        ours = ours_seconds(found, f"{state}, ours")
        bare = median(found, f"{state}, bare, seconds")
        for said, than, wanted in (
            ("Nova's way: convert, copy, hash", nova_seconds(found, state, "convert", "copy", "hash"), "at most 0.5"),
            ("the same without hashing", nova_seconds(found, state, "convert", "copy"), ""),
            ("one `qemu-img convert` into the store", bare, "at most 1.3"),
        ):
            yield row(state, ours, median(found, f"{state}, ours, process"), said, than, ratio(ours, than), wanted)


def glance_rows(found: Table) -> t.Iterator[str]:
    """A full snapshot into Glance beside the upload."""
    ours = ours_seconds(found, "glance, ours")
    bare = median(found, "glance, bare, seconds")
    size, than = median(found, "glance, ours, size"), median(found, "glance, bare, size")
    yield row(ours, size, bare, than, ratio(ours, bare), "at most 1.2")


def delta_rows(found: Table) -> t.Iterator[str]:
    """A delta beside a full snapshot of the same VM."""
    for kind, full in (("directory", "off, ours"), ("glance", "glance, ours")):
        delta = f"delta, {kind}"
        short, long = ours_seconds(found, delta), ours_seconds(found, full)
        yield row(kind, "vm_snapshot (s)", short, long, ratio(long, short), "at least 10")
        for said, what, wanted in (
            ("size (MiB)", "size", "at least 10"),
            ("read from the device (MiB)", "read", ""),
            ("the process with its start-up (s)", "process", ""),
        ):
            short, long = median(found, f"{delta}, {what}"), median(found, f"{full}, {what}")
            yield row(kind, said, short, long, ratio(long, short), wanted)


def peak_rows(found: Table) -> t.Iterator[str]:
    """The most that any round took."""
    for size, form, directory, glance in (
        ("4 GiB, off", "full", "off, ours", "glance, ours"),
        ("4 GiB, off", "delta", "delta, directory", "delta, glance"),
        ("16 GiB, running", "full", "sixteen, full", "sixteen, full, glance"),
        ("16 GiB, running", "delta", "sixteen, delta", "sixteen, delta, glance"),
    ):
        yield row(size, form, max(found[f"{directory}, peak"]), max(found[f"{glance}, peak"]), "under 150")


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks of snapshots

Written by `tests/bench/run.sh --what snapshots` on {day}, from {rounds} rounds in one run; every round measures
everything once, one thing after the other, and begins with another one of those that are compared. Figures are medians.
The ratios are what carries over to other machines.

- {machine}
- {versions}
- ansible-core {ansible}
- load of the machine before and after, the run itself included: {load}

The KVM host is one of the lab's (`tests/lab`), without KVM; its Glance runs on the same machine. Disks, temporary files
and the directory store are on one file system. Before each measurement, what was written lies on the disk, and the page
cache holds nothing of the disks. A time ends when the image lies on the disk (fsync), but for Nova's way under *Held*.

## Held

A running guest, in milliseconds: how long `vm_snapshot` says that it was held (`held_ms`), and what is seen of it. A
shell in the guest appends a byte to a file and tells it on a virtio port, every 10 ms; *gap* is the longest time
between two beats during the snapshot, *calm* the same in as much time afterwards, when nothing else ran. A beat waits
for a frozen file system as well as for CPUs that are stopped; and for the machine's CPUs, which copying, hashing and
emulation share. How much that is, the last row of each disk tells: there `qemu-img convert` copies the disk, and the
guest is not held at all.

The data are {small} MiB in the disk of 1 GiB, and {base} MiB in the one of 16 GiB. Nova's way is what it does when it
cannot have libvirt copy the disk: pause the VM, `qemu-img convert`, resume it; that is not even hashed or stored.

| disk | snapshot | held_ms | gap | calm | seconds | wanted |
|---|---|---|---|---|---|---|
{held}

## A full snapshot into a directory

A disk of 4 GiB with {base} MiB of random data in its base and {delta} MiB above it, in seconds. *vm_snapshot* is what
the module tells (`seconds`), from its first look at the VM to the verified image; *process* is all of the module's
process on the host, of which {startup:.3g} s are start-up: the same process with `name: []`. Nova's way is to convert
into a temporary file, to copy that into the store (`cp`, fsync), and to hash it there (hashlib).

| VM | vm_snapshot | process | beside | seconds | ratio | wanted |
|---|---|---|---|---|---|---|
{copies}

## A full snapshot into Glance

The same disk, of a VM that is off, in seconds and MiB. The upload is that of a flat qcow2 file that is ready, with its
length told, through openstacksdk, without hashing or comparing. On both sides the import of the libraries and the
login are left out ({login:.3g} s).

| vm_snapshot | MiB | upload | MiB | ratio | wanted |
|---|---|---|---|---|---|
{glance}

## A delta

The {delta} MiB above the base, of a VM that is off, beside the full snapshots from above. What is read from the device,
by whomever, shows that the base is not read, and so not hashed again.

| store | | delta | full | ratio | wanted |
|---|---|---|---|---|---|
{deltas}

## Memory

The module's peak in MiB (`ru_maxrss`), the highest of all rounds.

| disk | form | directory | Glance | wanted |
|---|---|---|---|---|
{peaks}
"""


def write(bench: Bench, sizes: Sizes, found: Table) -> str:
    """The page."""
    return PAGE.format(
        **bench.about(),
        small=sizes.small,
        base=sizes.base,
        delta=sizes.delta,
        startup=median(found, "start-up, process"),
        login=median(found, "glance, bare, login"),
        held="\n".join(held_rows(found)),
        copies="\n".join(copy_rows(found)),
        glance="\n".join(glance_rows(found)),
        deltas="\n".join(delta_rows(found)),
        peaks="\n".join(peak_rows(found)),
    )


def main() -> None:
    """See above."""
    wanted = options("snapshots", rounds=5)
    sizes = QUICK if wanted.quick else Sizes()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), wanted.rounds, PYTHON, "inside_snapshots.py")
        print("preparing", flush=True)
        bench.inside("prepare", json.dumps(sizes.images()))
        bench.inside("ready", "four")
        measuring = Measuring(bench)
        for number in range(wanted.rounds):
            print(f"snapshots, round {number + 1} of {wanted.rounds}", flush=True)
            measuring.round()
        page = write(bench, sizes, measuring.found)
    finish(page, "benchmarks_snapshots.md", only_print=wanted.print or wanted.quick)


if __name__ == "__main__":
    main()
