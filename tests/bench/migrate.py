# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures migration on a running lab, and writes docs/benchmarks_migrate.md. See run.sh, which starts it."""

from __future__ import annotations

import json
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.bench.common import Bench, Rounds, Table, finish, median, net, note, options, ratio, row
from tests.bench.inside_migrate import BANDWIDTH, DIRTY, RATE

PYTHON = "/opt/kvmops/venv/bin/python"
UNITS = {"downtime": "ms", "sent": "MiB", "disk": "MiB", "ended": ""}
# How often a round moves one VM: short migrations differ by half among themselves.
ONES = 3
LIMIT = 4
LIMITS = json.dumps({"limits": {"per_source": LIMIT, "per_destination": LIMIT}, "concurrency": LIMIT})
# A guest that does not converge is slowed down; or it is held, after a time.
POLICIES = {"slowed down": {}, "held": {"auto_converge": "never", "progress_timeout": 10, "on_timeout": "force"}}


@dataclass(frozen=True)
class Sizes:
    """How much: VMs that move at once, seconds for a migration that does not end, and MiB of data of the base and of
    what is above it."""

    many: int = 10
    seconds: int = 120
    base: int = 1536
    changes: int = 100

    @property
    def names(self) -> list[str]:
        """Of the VMs that move at once."""
        return [f"many{number}" for number in range(self.many)]

    def vms(self) -> dict[str, t.Any]:
        """What inside_migrate.py prepares."""
        sizes = {"small": (256, 128), "large": (1024, 512), "busy": (128, 0)}
        return {
            "vms": {name: {"memory": memory, "fill": fill} for name, (memory, fill) in sizes.items()},
            "diskless": self.names,
            "base": {"gib": 4, "mib": self.base},
            "changes": self.changes,
        }


QUICK = Sizes(many=3, seconds=20, base=64, changes=10)


class Measuring(Rounds):
    """The rounds."""

    def __init__(self, bench: Bench, sizes: Sizes) -> None:
        super().__init__(bench, UNITS)
        self.sizes = sizes

    def note(self, key: str, *words: str) -> None:
        """Without emptying the page cache: what is measured is memory and the network."""
        for name, number in json.loads(self.bench.inside(*words)).items():
            note(self.found, f"{key}, {name}", float(number), self.units.get(name, "s"))

    def only(self, *vms: str) -> None:
        """Let these VMs run, and no others."""
        self.bench.inside("only", *vms)

    def round(self) -> None:
        """Everything once; one VM several times."""
        self.only()
        note(self.found, "start-up", json.loads(self.bench.inside("startup"))["process"])
        for vm in self.turn(["small", "large"] * ONES):
            self.only(vm)
            for way in self.turn(["ours", "bare"]):
                self.note(f"{vm}, {way}", way, *(["{}"] if way == "ours" else []), vm)
        self.only(*self.sizes.names)
        for way in self.turn(["ours", "bare"]):
            self.note(f"many, {way}", way, *([LIMITS] if way == "ours" else []), *self.sizes.names)
        self.only("busy")
        self.note("busy, virsh", "endless", str(self.sizes.seconds), "busy")
        for name, policy in POLICIES.items():
            self.note(f"busy, {name}", "converge", json.dumps(policy), "busy")
        self.only("changed")
        self.note("changed", "changed", "changed")
        self.number += 1


def one_rows(found: Table) -> t.Iterator[str]:
    """One VM, beside virsh."""
    for vm, said in (("small", "256 MiB, 128 of them random"), ("large", "1 GiB, 512 MiB of it random")):
        ours, bare = net(found, f"{vm}, ours"), median(found, f"{vm}, bare, process")
        downtime = median(found, f"{vm}, ours, downtime")
        total = median(found, f"{vm}, ours, total")
        yield row(said, ours, total, bare, ratio(ours, bare), "at most 1.1", downtime)


def busy_rows(found: Table, seconds: int) -> t.Iterator[str]:
    """A guest that writes faster than is carried."""
    ended = sum(found["busy, virsh, ended"])
    took = f"{median(found, 'busy, virsh, process'):.3g}" if ended else f"not within {seconds}"
    yield row("virsh migrate --live", took, "")
    for name in POLICIES:
        yield row(
            f"vm_migrate, {name}", median(found, f"busy, {name}, process"), median(found, f"busy, {name}, downtime")
        )


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks of migration

Written by `tests/bench/run.sh --what migrate` on {day}; rounds in one run: {rounds}. A round moves one VM of each size
{often} times either way and measures the rest once, one thing after the other. Figures are medians. The ratios are what
carries over to other machines.

- {machine}
- {versions}
- ansible-core {ansible}
- load of the machine before and after, the run itself included: {load}

The KVM hosts are two of the lab's (`tests/lab`), without KVM and on the same CPUs: the guests, both ends of the
migration and its encryption share them. Everything goes over TLS. Guests run while they move, and move back by virsh
after each measurement; those that are not measured are paused meanwhile.

## One VM

Seconds over shared storage: of the module's process, without the {startup:.3g} s that an empty one takes; what libvirt
says of the migration in it; and of `virsh migrate {flags}`, which is what the module asks libvirt for.

| memory | vm_migrate | libvirt | virsh | ratio | wanted | downtime (ms) |
|---|---|---|---|---|---|---|
{ones}

## {many} VMs

Of 96 MiB each, without disks; they wait in their firmware, since ten emulated systems would take the CPUs from what is
measured. vm_migrate moves {limit} at the same time, virsh one after the other.

| vm_migrate (s) | virsh (s) | ratio | wanted |
|---|---|---|---|
{manies}

## A guest that writes faster than is carried

It rewrites {dirty} MiB of its memory at {rate} MiB/s, and {bandwidth} MiB/s may be carried. *Slowed down* is the
default policy, *held* is `on_timeout: force` after ten seconds without progress.

| | seconds | downtime (ms) |
|---|---|---|
{busies}

## With its disk

A running VM with {changes} MiB of its own above {base} MiB in a base that the destination has.

| seconds | disk, as libvirt tells (MiB) | all that the host sent (MiB) |
|---|---|---|
{disks}
"""


def write(bench: Bench, sizes: Sizes, found: Table) -> str:
    """The page."""
    many, bare = net(found, "many, ours"), median(found, "many, bare, process")
    changed = [median(found, f"changed, {name}") for name in ("process", "disk", "sent")]
    return PAGE.format(
        **bench.about(),
        startup=median(found, "start-up"),
        flags="--live --p2p --tls --persistent --undefinesource --auto-converge",
        ones="\n".join(one_rows(found)),
        often=ONES,
        many=sizes.many,
        limit=LIMIT,
        manies=row(many, bare, ratio(bare, many), "at least 1.8"),
        dirty=DIRTY,
        rate=RATE,
        bandwidth=BANDWIDTH,
        busies="\n".join(busy_rows(found, sizes.seconds)),
        changes=sizes.changes,
        base=sizes.base,
        disks=row(*changed),
    )


def main() -> None:
    """See above."""
    wanted = options("migration", rounds=3)
    sizes = QUICK if wanted.quick else Sizes()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), wanted.rounds, PYTHON, "inside_migrate.py")
        print("preparing", flush=True)
        bench.inside("prepare", json.dumps(sizes.vms()))
        measuring = Measuring(bench, sizes)
        for number in range(wanted.rounds):
            print(f"migration, round {number + 1} of {wanted.rounds}", flush=True)
            measuring.round()
        page = write(bench, sizes, measuring.found)
    finish(page, "benchmarks_migrate.md", only_print=wanted.print or wanted.quick)


if __name__ == "__main__":
    main()
