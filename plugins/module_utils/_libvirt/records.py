# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The records directory on shared storage: what hosts wrote of their VMs, and tombstones of VMs that were evacuated."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace

from .._core.errors import Invalid, LifecycleError, NotFound, Refused
from .._core.files import working
from .._model import records
from .._model.records import Record, Tombstone
from .files import PART, read_json, write_whole

SETTINGS = "/etc/kvmops/records.json"
# The role host_prepare installs it.
PROGRAM = "/usr/local/sbin/kvmops-records"
# Seconds that a shared storage has which may hang.
PATIENCE = 30


def settings() -> tuple[str, str]:
    """The directory of the records and this host's name in it; empty where the host keeps none."""
    told = read_json(SETTINGS)
    return str(told.get("directory", "")), str(told.get("host", ""))


def update() -> str:
    """Let this host's records catch up with what was changed.

    :returns: Why that did not work; empty when it did, or when the host keeps no records.
    """
    if not os.path.exists(SETTINGS) or not os.access(PROGRAM, os.X_OK):
        return ""
    try:
        done = subprocess.run([PROGRAM, "update"], check=False, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"The records of this host were not brought up to date: {exc}."
    return f"The records of this host were not brought up to date: {done.stderr.strip()}" if done.returncode else ""


class Vault:
    """What one host wrote.

    :param directory: Of the records; empty for the one that this host has too.
    :param host: The host's name in it.
    :raises NotFound: There is nothing of that host.
    :raises Refused: It is this host.
    """

    def __init__(self, directory: str, host: str) -> None:
        here, me = settings()
        self.root = directory or here
        self.host = host
        self.directory = os.path.join(self.root, host)
        if not self.root:
            raise Invalid(
                "Where the records are is not known: this host keeps none.",
                hint="Say records, or prepare the hosts with the role host_prepare.",
            )
        if not host or "/" in host or host in (".", ".."):
            raise Invalid(f"{host!r} is no name of a host.")
        if host == me:
            raise Refused(f"{host} is this host.", hint="Run the task on a host that survives.")
        if not os.path.isdir(self.directory):
            raise NotFound(
                f"There are no records of {host}: {self.directory} is not there.",
                hint="See that the storage is mounted here, and that host is the name that it was prepared with.",
            )

    def read(self) -> tuple[list[Record], list[str]]:
        """All records by name, and sentences about those that cannot be read."""
        with working(f"look into {self.directory}"):
            names = sorted(name for name in os.listdir(self.directory) if records.uuid_of(name))
        found, problems = [], []
        for name in names:
            path = os.path.join(self.directory, name)
            try:
                found.append(records.read_record(read_json(path)))
            except LifecycleError as exc:
                problems.append(f"{path}: {exc}")
        return sorted(found, key=lambda record: record.name), problems

    def others(self) -> dict[str, list[Record]]:
        """What other hosts wrote, by the VMs' UUIDs."""
        found: dict[str, list[Record]] = {}
        with working(f"look into {self.root}"):
            hosts = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name != self.host)
        for host in hosts:
            directory = os.path.join(self.root, host)
            with working(f"look into {directory}"):
                names = [name for name in os.listdir(directory) if records.uuid_of(name)]
            for name in names:
                try:
                    record = records.read_record(read_json(os.path.join(directory, name)))
                except LifecycleError:  # of no use to tell where a VM is
                    continue
                found.setdefault(record.uuid, []).append(record)
        return found

    def tombstones(self) -> dict[tuple[str, str], Tombstone]:
        """By UUID and generation."""
        with working(f"look into {self.directory}"):
            names = os.listdir(self.directory)
        keys = {name: key for name in names if (key := records.tombstone_of(name))}
        return {
            key: records.read_tombstone(read_json(os.path.join(self.directory, name))) for name, key in keys.items()
        }

    def tombstone(self, record: Record) -> Tombstone | None:
        """Of the VM's generation, if there is one."""
        path = self._tombstone(record)
        return records.read_tombstone(read_json(path)) if os.path.exists(path) else None

    def bury(self, record: Record, tombstone: Tombstone) -> None:
        """Set the tombstone. It is whole from the moment on that it is there, and one alone can set it: a hard link
        fails where there is a file already.

        :raises Refused: Somebody else was faster.
        """
        path = self._tombstone(record)
        with working(f"write {path}"):
            with tempfile.NamedTemporaryFile(dir=self.directory, suffix=PART) as part:
                part.write(json.dumps(tombstone.tell(), sort_keys=True).encode())
                part.flush()
                os.fsync(part.fileno())
                try:
                    os.link(part.name, path)
                except FileExistsError:
                    there = records.read_tombstone(read_json(path))
                    raise Refused(
                        f"VM {record.name} is being evacuated to {there.to or 'another host'}, since {there.at}.",
                        hint="Look there.",
                        to=there.to,
                    ) from None
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def settle(self, record: Record, tombstone: Tombstone) -> None:
        """Write to the tombstone, which is ours, that the VM is defined where it says."""
        path = self._tombstone(record)
        told = replace(tombstone, settled=True).tell()
        with working(f"write {path}"):
            write_whole(path, json.dumps(told, sort_keys=True).encode(), 0o600)

    def unbury(self, record: Record, tombstone: Tombstone) -> None:
        """Take the tombstone away again, if it is that one."""
        path = self._tombstone(record)
        with working(f"remove {path}"):
            if os.path.exists(path) and records.read_tombstone(read_json(path)).token == tombstone.token:
                os.unlink(path)

    def _tombstone(self, record: Record) -> str:
        return os.path.join(self.directory, records.tombstone_name(record.uuid, record.generation))
