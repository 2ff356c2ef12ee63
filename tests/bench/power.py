# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures on a running lab, and writes docs/benchmarks.md. See run.sh, which starts it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import typing as t
from pathlib import Path

import yaml

from tests.bench import common
from tests.bench.common import HOST, PATIENCE, Table, finish, median, net, note, ratio, row
from tests.integration.harness import run

PYTHON = "/usr/bin/python3"
SITE = "/usr/local/lib/python3.{}/dist-packages"


class Bench(common.Bench):
    """The lab's host, with what the peer's modules need."""

    def __init__(self, directory: Path, host_packages: Path, rounds: int) -> None:
        super().__init__(directory, rounds, PYTHON, "inside.py")
        minor = self.lab.sh(HOST, f"{PYTHON} -c 'import sys; print(sys.version_info[1])'")
        self.send(host_packages, SITE.format(minor))

    def play(self, module: str, arguments: dict[str, t.Any], names: t.Sequence[str], *, loop: bool) -> float:
        """The wall time of a playbook with this one task, over ssh with pipelining."""
        which = {"name": "{{ item }}" if loop else "{{ names }}"} if names else {}
        task: dict[str, t.Any] = {module: {**arguments, **which}}
        if loop:
            task["loop"] = "{{ names }}"
        play = {
            "hosts": HOST,
            "gather_facts": False,
            "vars": {"names": list(names), "ansible_python_interpreter": PYTHON},
            "tasks": [task],
        }
        path = self.directory / "play.yml"
        path.write_text(yaml.safe_dump([play]), encoding="utf-8")
        playbook = Path(sys.executable).parent / "ansible-playbook"
        began = time.perf_counter()
        done = run([str(playbook), "-i", str(self.lab.inventory), str(path)], check=False, timeout=PATIENCE)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{module} failed:\n{done.stdout}{done.stderr}")
        return seconds

    def module(self, name: str, arguments: dict[str, t.Any]) -> float:
        """The wall time of the module's process in the host, its code unpacked, without Ansible around it."""
        return float(self.inside("time", "module", name, json.dumps(arguments)))

    def work(self, what: str, count: int = 0) -> float:
        """The time that the bare calls take, start of the process and connection apart."""
        return float(self.inside("work", what, str(count)))

    def running(self) -> int:
        """How many VMs are on."""
        return len(self.lab.sh(HOST, "virsh -q list --name").split())

    def expect(self, count: int) -> None:
        """See that so many VMs are on: that what was measured was done."""
        if self.running() != count:
            raise SystemExit(f"{self.running()} VMs are on, not {count}")


def measure_power(bench: Bench) -> Table:
    """vm_power beside the peer, and beside the bare calls; one round after the other, everything in each."""
    ours, peer = "kvmops.lifecycle.vm_power", "community.libvirt.virt"
    names = [f"vm{number:04}" for number in range(100)]
    some = names[:20]
    stop, start = {"state": "stopped", "force": True}, {"state": "running"}
    found: Table = {}
    bench.inside("define", "100")
    for number in range(bench.rounds):
        print(f"power, round {number + 1} of {bench.rounds}", flush=True)
        note(found, "empty play", bench.play("ansible.builtin.ping", {}, [], loop=False))
        note(found, "nothing, ours", bench.play(ours, stop, names, loop=False))
        note(found, "nothing, peer", bench.play(peer, {"state": "destroyed"}, names, loop=True))
        note(found, "start, ours", bench.play(ours, start, some, loop=False))
        bench.expect(20)
        note(found, "destroy, ours", bench.play(ours, stop, some, loop=False))
        bench.expect(0)
        note(found, "start, peer", bench.play(peer, start, some, loop=True))
        bench.expect(20)
        note(found, "destroy, peer", bench.play(peer, {"state": "destroyed"}, some, loop=True))
        bench.expect(0)
        note(found, "start-up", bench.module("vm_power", {"name": [], **stop}))
        note(found, "nothing, bare", bench.work("nothing", 100))
        note(found, "nothing, process", bench.module("vm_power", {"name": names, **stop}))
        note(found, "start, bare", bench.work("start", 20))
        bench.expect(20)
        note(found, "destroy, bare", bench.work("destroy", 20))
        bench.expect(0)
        note(found, "start, process", bench.module("vm_power", {"name": some, **start}))
        bench.expect(20)
        note(found, "destroy, process", bench.module("vm_power", {"name": some, **stop}))
        bench.expect(0)
    return found


def measure_info(bench: Bench) -> Table:
    """vm_info beside the bare calls."""
    found: Table = {}
    bench.inside("define", "1000")
    for number in range(bench.rounds):
        print(f"info, round {number + 1} of {bench.rounds}", flush=True)
        for key, seconds in (
            ("start-up", bench.module("vm_info", {"name": []})),
            ("stats, bare", bench.work("stats")),
            ("all, bare", bench.work("info")),
            ("all, process", bench.module("vm_info", {})),
            ("status, bare", bench.work("nothing", 1000)),
            ("status, process", bench.module("vm_info", {"gather": ["status"]})),
            ("all, ours", bench.play("kvmops.lifecycle.vm_info", {}, [], loop=False)),
        ):
            note(found, key, seconds)
    bench.inside("define", "0")
    return found


def peer_version() -> str:
    """Of the collection that we are held to."""
    places = [Path(place) for place in os.environ["ANSIBLE_COLLECTIONS_PATH"].split(":")]
    manifests = [place / "ansible_collections/community/libvirt/MANIFEST.json" for place in places]
    told = json.loads(next(path for path in manifests if path.exists()).read_text("utf-8"))
    return str(told["collection_info"]["version"])


def peer_rows(power: Table) -> t.Iterator[str]:
    """vm_power beside the peer."""
    for key, what, target in (
        ("nothing", "100 VMs, nothing to do", "35"),
        ("start", "20 VMs started", "4"),
        ("destroy", "20 VMs destroyed", "6"),
    ):
        ours, peer = median(power, f"{key}, ours"), median(power, f"{key}, peer")
        yield row(what, ours, peer, ratio(peer, ours), f"at least {target}")


def bare_rows(power: Table) -> t.Iterator[str]:
    """vm_power beside the bare calls."""
    for key, what in (
        ("nothing", "100 VMs, nothing to do"),
        ("start", "20 VMs started"),
        ("destroy", "20 VMs destroyed"),
    ):
        ours, bare = net(power, key), median(power, f"{key}, bare")
        yield row(what, ours, bare, ratio(ours, bare), "at most 1.3")


def info_rows(info: Table) -> t.Iterator[str]:
    """vm_info beside the bare calls."""
    for key, what, bare, against in (
        ("all", "the default: all but what the guest agent knows", "all", "the bulk calls, then XMLDesc of each VM"),
        ("all", "the same", "stats", "getAllDomainStats alone"),
        ("status", "gather: [status]", "status", "the bulk calls, and metadata of each VM, in 5 threads"),
        ("status", "the same", "stats", "getAllDomainStats alone"),
    ):
        ours, than = net(info, key), median(info, f"{bare}, bare")
        yield row(what, ours, against, than, ratio(ours, than), "under 3" if bare == "all" else "")


PAGE = """\
<!--
Copyright (c) 2026 kvmops contributors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->

# Benchmarks

Written by `tests/bench/run.sh --what power` on {day}, from {rounds} rounds in one run; every round measures
everything once, one thing after the other, so that what else the machine does meets all alike. Seconds are medians. The
ratios are what carries over to other machines.

- {machine}
- {versions}
- ansible-core {ansible}; community.libvirt {peer_version}
- load of the machine before and after, the run itself included: {load}

The KVM host is one of the lab's (`tests/lab`), without KVM; its VMs have no disks and 32 MiB of memory. Both sides use
the same ansible-core, the same Python on the host, and ssh with pipelining.

## vm_power, and community.libvirt.virt looped over the VMs

Whole runs of `ansible-playbook` with one task. A play whose only task is `ansible.builtin.ping` takes {empty:.3g} s of
each.

| | vm_power | looped | times faster | wanted |
|---|---|---|---|---|
{peer}

## vm_power, and the bare calls

The module's process on the host, less the same process with `name: []`, which is start-up: Python, its imports, the
connection ({startup:.3g} s). Beside it, in a process that is connected already, the same calls from a pool of 5 threads
of libvirt-python: list the VMs, their states, which are saved and which are defined, the metadata of each, and start or
destroy each.

| | vm_power | bare | ratio | wanted |
|---|---|---|---|---|
{bare}

## vm_info for 1000 VMs in one task

Measured in the same way (start-up {info_startup:.3g} s; the whole run of `ansible-playbook` takes {whole:.3g} s). All
VMs are off; half of them have metadata of ours. It is held to the calls that give the same information, and to the bulk
statistics alone, which hold neither definitions, devices nor metadata.

| told | vm_info | beside | bare | ratio | wanted |
|---|---|---|---|---|---|
{info}
"""


def write(bench: Bench, power: Table, info: Table) -> str:
    """The page."""
    return PAGE.format(
        **bench.about(),
        peer_version=peer_version(),
        empty=median(power, "empty play"),
        peer="\n".join(peer_rows(power)),
        startup=median(power, "start-up"),
        bare="\n".join(bare_rows(power)),
        info_startup=median(info, "start-up"),
        whole=median(info, "all, ours"),
        info="\n".join(info_rows(info)),
    )


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description="Measure the modules on the lab.")
    parser.add_argument("host_packages", type=Path, help="Python packages that the peer's modules need on the host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--print", action="store_true", help="do not write docs/benchmarks.md")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), wanted.host_packages, wanted.rounds)
        page = write(bench, measure_power(bench), measure_info(bench))
    finish(page, "benchmarks.md", only_print=wanted.print)


if __name__ == "__main__":
    main()
