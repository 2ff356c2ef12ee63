# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures on a running lab, and writes docs/benchmarks.md. See run.sh, which starts it."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import typing as t
from datetime import datetime, timezone
from pathlib import Path

import ansible
import yaml

from tests.integration.harness import REPO, Lab, run

HOST = "kvm1"
PYTHON = "/usr/bin/python3"
INSIDE = "/opt/bench"
SITE = "/usr/local/lib/python3.{}/dist-packages"
# Half an hour at the most for one play.
PATIENCE = 1800

Seconds = list[float]


class Bench:
    """The lab's host, with the tools for measuring in it."""

    def __init__(self, directory: Path, host_packages: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds
        self.lab = Lab(directory / "inventory.yml")
        minor = self.lab.sh(HOST, f"{PYTHON} -c 'import sys; print(sys.version_info[1])'")
        self.send(host_packages, SITE.format(minor))
        plugins = REPO / "plugins"
        self.send(plugins, f"{INSIDE}/ansible_collections/kvmops/lifecycle/plugins")
        self.send(REPO / "tests/bench/inside.py", f"{INSIDE}/inside.py")
        code = Path(ansible.__file__).parent
        for part in ("__init__.py", "release.py", "_vendor", "module_utils"):
            self.send(code / part, f"{INSIDE}/ansible/{part}")

    def send(self, source: Path, target: str) -> None:
        """Copy a file or directory into the host."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, target.lstrip("/"), filter=lambda entry: None if "__pycache__" in entry.name else entry)
        subprocess.run([*self.lab.kvm.enter(HOST), "tar", "-x", "-C", "/"], check=True, input=archive.getvalue())

    def inside(self, *words: str) -> str:
        """What inside.py prints in the host."""
        command = [*self.lab.kvm.enter(HOST), "env", f"PYTHONPATH={INSIDE}", PYTHON, f"{INSIDE}/inside.py", *words]
        return str(run(command, check=True, timeout=PATIENCE).stdout)

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


Table = dict[str, Seconds]


def note(table: Table, key: str, seconds: float) -> None:
    """Keep a measurement, and show it."""
    table.setdefault(key, []).append(seconds)
    print(f"  {key}: {seconds:.3f} s", flush=True)


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


def describe(bench: Bench) -> list[str]:
    """The machine and the versions, as lines of a list."""
    cpus = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), platform.machine())
    places = [Path(place) for place in os.environ["ANSIBLE_COLLECTIONS_PATH"].split(":")]
    manifests = [place / "ansible_collections/community/libvirt/MANIFEST.json" for place in places]
    peer = json.loads(next(path for path in manifests if path.exists()).read_text("utf-8"))["collection_info"]
    daemon, qemu, python = bench.lab.sh(
        HOST, f"libvirtd --version; qemu-system-x86_64 --version | head -n 1; {PYTHON} --version"
    ).splitlines()
    return [
        f"{os.cpu_count()} CPUs, {model}; Linux {platform.release()}",
        f"{daemon}; {qemu}; {python} on the host",
        f"ansible-core {ansible.__version__}; community.libvirt {peer['version']}",
    ]


def median(table: Table, key: str) -> float:
    """Of all rounds."""
    return statistics.median(table[key])


def net(table: Table, key: str) -> float:
    """What a process takes beyond its start-up: medians."""
    return median(table, f"{key}, process") - median(table, "start-up")


def row(*cells: str | float) -> str:
    """A row of a table; numbers are seconds."""
    return "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in cells) + " |"


def ratio(more: float, less: float) -> str:
    """How many times."""
    return f"{more / less:.1f}" if more / less >= 10 else f"{more / less:.2f}"


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

Written by `tests/bench/run.sh` on {day}, from {rounds} rounds in one run; every round measures everything once, one
thing after the other, so that what else the machine does meets all alike. Seconds are medians. The ratios are what
carries over to other machines.

{machine}
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


def write(bench: Bench, power: Table, info: Table, load: str) -> str:
    """The page."""
    return PAGE.format(
        day=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        rounds=bench.rounds,
        machine="\n".join(f"- {line}" for line in describe(bench)),
        load=load,
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
        before = os.getloadavg()[0]
        power, info = measure_power(bench), measure_info(bench)
        page = write(bench, power, info, f"{before:.1f} and {os.getloadavg()[0]:.1f}")
    print(page)
    if not wanted.print:
        (REPO / "docs/benchmarks.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
