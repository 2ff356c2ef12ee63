# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures the planner on clusters that are facts only, beside a naive one, and writes docs/benchmarks_plan.md."""

from __future__ import annotations

import os
import platform
import random
import time
import typing as t
from datetime import datetime, timezone

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement import Order, plan
from tests.bench.common import Table, finish, median, note, options, ratio, row
from tests.unit.clusters import Facts, host, vm

HOSTS = 1000
VMS = 20_000
GIB = 1024


def guests(chance: random.Random, name: str, number: int) -> list[Facts]:
    """VMs of different sizes, most of them on shared storage."""
    return [
        vm(
            f"{name}-{index}",
            chance.choice((1, 2, 4, 8)) * GIB,
            vcpus=chance.choice((1, 2, 4)),
            disk="/srv/shared" if chance.random() < 0.8 else "/var/lib/vms",
            networks=chance.choice(([], ["lab"])),
        )
        for index in range(number)
    ]


def hosts(chance: random.Random, number: int) -> dict[str, Facts]:
    """Hosts of two sizes, each with so many VMs."""
    storage = [
        {"path": "/", "shared": "", "capacity": 2**44, "available": 2**43},
        {"path": "/srv/shared", "shared": "nfs store:/vms", "capacity": 2**44, "available": 2**43},
    ]
    return {
        name: {
            **host(name, *guests(chance, name, number), memory=chance.choice((192, 256)) * GIB, storage=storage),
            "cpus": {"total": 64, "running": 2 * number},
        }
        for name in (f"host{index}" for index in range(HOSTS))
    }


def naive(cluster: t.Mapping[str, Facts], vms: t.Sequence[Facts]) -> int:
    """Best fit: the largest first, each to the fullest host that still has memory and CPUs for it; returns how many
    found a place. It knows of nothing else."""
    left = [
        [one["memory"]["total"] - 512 - one["memory"]["running"], 4 * one["cpus"]["total"] - one["cpus"]["running"]]
        for one in cluster.values()
    ]
    placed = 0
    for one in sorted(vms, key=lambda each: -int(each["memory"])):
        memory, vcpus = one["memory"], one["vcpus"]
        best = None
        for room in left:
            if room[0] >= memory and room[1] >= vcpus and (best is None or room[0] < best[0]):
                best = room
        if best is not None:
            best[0] -= memory
            best[1] -= vcpus
            placed += 1
    return placed


def measure(rounds: int) -> Table:
    """The planner and the naive one in turn."""
    found: Table = {}
    chance = random.Random(7)
    full = hosts(chance, VMS // HOSTS)
    empty = hosts(chance, 0)
    many = guests(chance, "vm", VMS)
    crowd = {**empty, "source": host("source", *many, memory=2**30)}
    away = {name: one for name, one in full.items() if name != "host0"}
    orders = {
        "one": (Order("drain", "host0", full), away, full["host0"]["vms"]),
        "all": (Order("drain", "source", crowd), empty, many),
    }
    for number in range(rounds):
        print(f"plan, round {number + 1} of {rounds}", flush=True)
        for key, (order, others, vms) in orders.items():
            began = time.perf_counter()
            told = plan(order)
            note(found, key, time.perf_counter() - began)
            began = time.perf_counter()
            placed = naive(others, vms)
            note(found, f"{key}, naive", time.perf_counter() - began)
            if not told["complete"] or len(told["moves"]) != len(vms) or placed != len(vms):
                raise SystemExit(f"{key}: of {len(vms)} VMs {len(told['moves'])} and {placed} found a place")
    return found


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks of planning

Written by `tests/bench/run.sh --what plan` on {day}, from {rounds} rounds in one run. Seconds are medians.

- {machine}
- Python {python}
- load of the machine before and after: {load}

The planner of `drain_plan` on clusters of {hosts} hosts that exist as facts only, from facts to the plan with its table
and its fingerprint; a fifth of the disks has to be carried. Beside it a loop in plain Python that knows of memory and
CPUs alone, and looks at each host for each VM: best fit, the largest first.

| | planner | naive | ratio | wanted |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """See above."""
    wanted = options("the planner", rounds=5)
    before = os.getloadavg()[0]
    rounds = 1 if wanted.quick else wanted.rounds
    found = measure(rounds)
    rows = [
        row(
            what,
            median(found, key),
            median(found, f"{key}, naive"),
            ratio(median(found, key), median(found, f"{key}, naive")),
            limit,
        )
        for key, what, limit in (
            ("one", f"a host with {VMS // HOSTS} VMs is emptied, {VMS} VMs in all", "under 3 s"),
            ("all", f"{VMS} VMs find a host", "under 3 s"),
        )
    ]
    page = PAGE.format(
        day=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        rounds=rounds,
        machine=f"{os.cpu_count()} CPUs, {platform.machine()}; Linux {platform.release()}",
        python=platform.python_version(),
        load=f"{before:.1f} and {os.getloadavg()[0]:.1f}",
        hosts=HOSTS,
        rows="\n".join(rows),
    )
    finish(page, "benchmarks_plan.md", only_print=wanted.print or wanted.quick)


if __name__ == "__main__":
    main()
