# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all benchmarks have in common: a lab's host with the modules in it, and tables of what was measured."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import tarfile
import typing as t
from datetime import datetime, timezone
from pathlib import Path

import ansible

from tests.integration.harness import REPO, Lab, run

HOST = "kvm1"
INSIDE = "/opt/bench"
# Half an hour at the most for one measurement.
PATIENCE = 1800

# Measurements by name, one for each round.
Table = dict[str, list[float]]


def options(what: str, *, rounds: int) -> argparse.Namespace:
    """``rounds``, ``quick`` and ``print``, as they were told on the command line.

    :param what: What is measured.
    :param rounds: How many, when it is not told.
    """
    parser = argparse.ArgumentParser(description=f"Measure {what}.")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--print", action="store_true", help="do not write the page below docs/")
    parser.add_argument("--quick", action="store_true", help="try it with little data; nothing is written")
    return parser.parse_args()


class Bench:
    """The lab's host, with the tools for measuring in it.

    :param directory: For temporary files.
    :param python: The interpreter in the host that runs *program*.
    :param program: In the host, a file of ``tests/bench``.
    """

    def __init__(self, directory: Path, rounds: int, python: str, program: str) -> None:
        self.directory = directory
        self.rounds = rounds
        self.python = python
        self.program = program
        self.lab = Lab(directory / "inventory.yml")
        self.load = os.getloadavg()[0]
        self.send(REPO / "plugins", f"{INSIDE}/ansible_collections/kvmops/lifecycle/plugins")
        for path in (REPO / "tests/bench").glob("inside*.py"):
            self.send(path, f"{INSIDE}/{path.relative_to(REPO)}")
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
        """What the program prints in the host."""
        command = [
            *self.lab.kvm.enter(HOST),
            "env",
            f"PYTHONPATH={INSIDE}",
            self.python,
            f"{INSIDE}/tests/bench/{self.program}",
        ]
        done = run([*command, *words], check=False, timeout=PATIENCE)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed in the host:\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def about(self) -> dict[str, t.Any]:
        """What every page begins with; at the end of the measurements."""
        cpus = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        models = (line.partition(":")[2].strip() for line in cpus if line.startswith("model name"))
        script = f"libvirtd --version; qemu-system-x86_64 --version | head -n 1; {self.python} --version"
        daemon, qemu, python = self.lab.sh(HOST, script).splitlines()
        return {
            "day": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "rounds": self.rounds,
            "machine": f"{os.cpu_count()} CPUs, {next(models, platform.machine())}; Linux {platform.release()}",
            "versions": f"{daemon}; {qemu}; {python} on the host",
            "ansible": ansible.__version__,
            "load": f"{self.load:.1f} and {os.getloadavg()[0]:.1f}",
        }


class Rounds:
    """Measures the same things round after round.

    :param units: What figures are in, by name; the others are seconds.
    """

    def __init__(self, bench: Bench, units: t.Mapping[str, str]) -> None:
        self.bench = bench
        self.units = units
        self.found: Table = {}
        self.number = 0
        storage = bench.lab.kvm.dir / "hosts" / HOST / "private.img"
        self.storage = storage if storage.exists() else None

    def forget(self) -> None:
        """Nobody finds in memory what another has read: neither in the host's page cache nor, as its storage is a file
        of this machine, in that of the machine."""
        self.bench.inside("forget")
        if self.storage:
            fd = os.open(self.storage, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def note(self, key: str, *words: str) -> None:
        """Measure, and keep all that is told."""
        self.forget()
        for name, number in json.loads(self.bench.inside(*words)).items():
            note(self.found, f"{key}, {name}", float(number), self.units.get(name, "s"))

    def turn(self, keys: t.Sequence[str]) -> t.Sequence[str]:
        """In each round another one is first."""
        first = self.number % len(keys)
        return [*keys[first:], *keys[:first]]


def note(table: Table, key: str, number: float, unit: str = "s") -> None:
    """Keep a measurement, and show it."""
    table.setdefault(key, []).append(number)
    print(f"  {key}: {number:.3f} {unit}", flush=True)


def median(table: Table, key: str) -> float:
    """Of all rounds."""
    return statistics.median(table[key])


def net(table: Table, key: str) -> float:
    """What a process takes beyond its start-up: medians."""
    return median(table, f"{key}, process") - median(table, "start-up")


def row(*cells: str | float) -> str:
    """A row of a table."""
    return "| " + " | ".join(figure(cell) if isinstance(cell, float) else cell for cell in cells) + " |"


def figure(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def ratio(more: float, less: float) -> str:
    """How many times."""
    return f"{more / less:.1f}" if more / less >= 10 else f"{more / less:.2f}"


def finish(page: str, name: str, *, only_print: bool) -> None:
    """Show the page, and write it below docs/."""
    print(page)
    if not only_print:
        (REPO / "docs" / name).write_text(page, encoding="utf-8")
