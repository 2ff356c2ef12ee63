# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures the drain of a host on a running lab, and writes docs/benchmarks_drain.md. See run.sh, which starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.common import HOST, PATIENCE, Bench, Rounds, Table, finish, median, note, options, ratio, row
from tests.integration.harness import Result

PYTHON = "/opt/kvmops/venv/bin/python"
OTHERS = ("kvm2", "kvm3")
MEMORY = 96
# MiB of it that are not zeros, and the MiB/s that each migration has: unbound, all of them would wait for two CPUs.
FILL = 32
BANDWIDTH = 8
# Fewer, for migrations that take as long as those of real guests do.
LESS = 2
LIMIT = 4
MIGRATE = "kvmops.lifecycle.vm_migrate"


class Measuring(Rounds):
    """The rounds."""

    def __init__(self, bench: Bench, guests: int) -> None:
        super().__init__(bench, {})
        self.guests = guests

    def role(self, bandwidth: int) -> tuple[float, list[Result]]:
        """The playbook: seconds from its start to its end, and the migrations of VMs in it."""
        taken = self.bench.directory / f"taken{len(list(self.bench.directory.iterdir()))}"
        taken.touch()
        limits = {"per_source": LIMIT, "per_destination": LIMIT}
        told = {
            "host_drain_host": HOST,
            "host_drain_reason": "benchmark",
            "host_drain_limits": limits,
            "host_drain_policy": {"bandwidth": bandwidth},
        }
        settings = {
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "taken",
            "KVMOPS_TAKEN": str(taken),
        }
        playbook = [str(Path(sys.executable).parent / "ansible-playbook"), "kvmops.lifecycle.drain"]
        began = time.perf_counter()
        done = subprocess.run(
            [*playbook, "-i", str(self.bench.lab.inventory), "-e", json.dumps(told)],
            env={**os.environ, **settings},
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"The drain failed:\n{done.stdout}{done.stderr}")
        lines = [json.loads(line) for line in taken.read_text(encoding="utf-8").splitlines()]
        return seconds, [line for line in lines if line["action"] == MIGRATE and migrations(line)]

    def round(self) -> None:
        """Everything once."""
        for way in self.turn(["role", "long", "virsh"]):
            if way == "virsh":
                told = json.loads(self.bench.inside("bare", str(self.guests), str(BANDWIDTH), *OTHERS))
                note(self.found, way, told["process"])
            else:
                seconds, moves = self.role(BANDWIDTH if way == "role" else LESS)
                own = [total for line in moves for total in migrations(line)]
                if len(own) != self.guests or self.bench.lab.domains(HOST):
                    raise SystemExit(f"{len(own)} of {self.guests} guests have moved.")
                note(self.found, way, seconds)
                note(self.found, f"{way}, vm_migrate", sum(line["seconds"] for line in moves))
                note(self.found, f"{way}, migrations", sum(own))
            if way == "role":
                note(self.found, "empty", self.role(BANDWIDTH)[0])
            self.bench.inside("home", *OTHERS)
        self.number += 1


def migrations(line: Result) -> list[float]:
    """The seconds of each migration in what vm_migrate has told, as libvirt says them."""
    figures = [vm.get("figures", {}) for vm in line["result"].get("vms", [])]
    return [float(each["total_seconds"]) for each in figures if "total_seconds" in each]


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks of the drain

Written by `tests/bench/run.sh --what drain` on {day}, from {rounds} rounds in one run; every round measures everything
once, one thing after the other. Figures are medians, in seconds. The ratios are what carries over to other machines.

- {machine}
- {versions}
- ansible-core {ansible}
- load of the machine before and after, the run itself included: {load}

The KVM hosts are three of the lab's (`tests/lab`), without KVM and on the same CPUs, which guests, both ends of every
migration, its encryption and Ansible share. {guests} guests of {memory} MiB run on one host, in their firmware: they
have booted nothing, and take no CPU; {fill} MiB of their memory are random. All of them go to the other two hosts, over
TLS, and each migration has {bandwidth} MiB/s, either way: without that it would be the two CPUs that decide, not how
many go at a time.

## {guests} guests over three hosts

The playbook `drain` with {limit} migrations at a time, from the start of `ansible-playbook` to its end; the same on the
host when it is empty, which is what Ansible, looking and planning take anyhow; and virsh for one guest after the other,
on the host itself, with `migrate {flags}`.

| drain | of an empty host | virsh | virsh to drain | to drain without what an empty one takes | wanted |
|---|---|---|---|---|---|
{whole}

## What the migrations themselves take

The sum of all migrations of the drain, as libvirt tells them, divided by {limit}, is what no drain with this limit can
be faster than. What comes on top does not grow with the memory, so it is measured with {less} MiB/s as well: such
migrations take as long as those of guests with some GiB of memory on a real network.

| MiB/s | one takes | drain without what an empty one takes | of it vm_migrate | migrations / {limit} | ratio | wanted |
|---|---|---|---|---|---|---|
{bound}
{long}

## What the role takes for each VM

The drain without what an empty one takes and without the tasks in which VMs move, for each VM: asking both hosts
whether it can move, writing down where it was, looking again.

| seconds a VM | wanted |
|---|---|
{overhead}
"""


def write(bench: Bench, guests: int, found: Table) -> str:
    """The page."""
    role, empty, virsh = (median(found, key) for key in ("role", "empty", "virsh"))
    each = (role - empty - median(found, "role, vm_migrate")) / guests

    def bound(way: str, bandwidth: int) -> str:
        whole, inside = median(found, way) - empty, median(found, f"{way}, vm_migrate")
        least = median(found, f"{way}, migrations") / LIMIT
        return row(str(bandwidth), least * LIMIT / guests, whole, inside, least, ratio(whole, least), "at most 1.25")

    return PAGE.format(
        **bench.about(),
        guests=guests,
        memory=MEMORY,
        fill=FILL,
        bandwidth=BANDWIDTH,
        less=LESS,
        limit=LIMIT,
        flags=f"--live --p2p --tls --persistent --undefinesource --auto-converge --bandwidth {BANDWIDTH}",
        whole=row(role, empty, virsh, ratio(virsh, role), ratio(virsh, role - empty), "at least 1.7"),
        bound=bound("role", BANDWIDTH),
        long=bound("long", LESS),
        overhead=row(each, "under 0.7"),
    )


def main() -> None:
    """See above."""
    wanted = options("the drain of a host", rounds=3)
    guests, rounds = (4, 1) if wanted.quick else (12, wanted.rounds)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), rounds, PYTHON, "inside_drain.py")
        print("preparing", flush=True)
        bench.inside("prepare", str(guests), str(MEMORY), str(FILL))
        measuring = Measuring(bench, guests)
        for number in range(rounds):
            print(f"drain, round {number + 1} of {rounds}", flush=True)
            measuring.round()
        page = write(bench, guests, measuring.found)
    finish(page, "benchmarks_drain.md", only_print=wanted.print or wanted.quick)


if __name__ == "__main__":
    main()
