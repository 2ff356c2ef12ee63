# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Bridges: nbdkit as a process of its own that lets QEMU read an image which is in Glance, as an NBD export.

QEMU's own HTTP client cannot do it: it begins with a request that Glance refuses (``HEAD``), its token would expire,
and an answer of 503 would be an I/O error of the guest. A bridge outlives the module, so what it runs
(:mod:`.served`, :mod:`.renewal`) and what it needs to know, secrets among it, lie beside its socket in files for us
alone. There is no file with its number: a bridge is whatever has that socket on its command line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import typing as t

from .._core.clock import Clock, wait_until
from .._core.errors import Invalid, LifecycleError, NotFound, TimedOut, Unreachable, Unsupported
from .._core.files import working
from . import renewal, served

# Seconds for its start, which reads the beginning of the image; for its greeting; and for its death.
_START = 60
_GREETING = 5.0
_DEATH = 10.0
# What a server sends to whoever connects ("NBD protocol": newstyle negotiation).
_MAGIC = b"NBDMAGICIHAVEOPT"
# sockaddr_un(7)
_LONGEST = 107
# Where distributions put it besides.
_MORE_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
_SELINUX = "/sys/fs/selinux/enforce"
# As which libvirt's policy lets QEMU connect.
_LABEL = "system_u:object_r:svirt_socket_t:s0"
# The C library (mallopt(3)) shall give back what is freed: there are many threads, and large pieces come and go.
_ENVIRONMENT = {
    "PATH": os.defpath,
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
_HINT = "Install nbdkit and its Python plugin on the KVM host (packages nbdkit and nbdkit-plugin-python)."


class Bridge:
    """The bridge of one image.

    :param image_id: Of the image.
    :param directory: For its files: nobody but us may write in it. The group of the directory may connect.
    :param called: The image, for errors.
    """

    def __init__(self, image_id: str, directory: str, called: str, clock: Clock | None = None) -> None:
        self._start_of_names = os.path.join(directory, image_id)
        self.socket = f"{self._start_of_names}.sock"
        self._settings, self._program, self._renewal = (
            f"{self._start_of_names}{kind}" for kind in (".json", ".py", "-token.py")
        )
        self._directory = directory
        self._what = f"read {called} in place"
        self._clock = clock or Clock()

    def open(self, settings: t.Mapping[str, t.Any]) -> None:
        """See that it runs: one that answers is told what changed, one that does not is replaced.

        :param settings: For :class:`.served.Settings` and :func:`.renewal.main`, but for ``renewal`` and ``path``.
        :raises Unsupported: nbdkit, or its Python plugin, is missing.
        :raises Unreachable: It cannot read the image.
        """
        if len(self.socket.encode()) > _LONGEST:
            raise Invalid(f"Failed to {self._what}: {self.socket} is longer than a socket's name may be.")
        told = {**settings, "renewal": [sys.executable, "-I", self._renewal, self._settings], "path": sys.path}
        with working(self._what):
            os.makedirs(self._directory, mode=0o711, exist_ok=True)
            if self._answers() and self._serves(settings):
                self._write(self._settings, json.dumps(told))
                return
            self.close()
            try:
                self._write(self._settings, json.dumps(told))
                self._write(self._program, _source(served.__name__))
                self._write(self._renewal, _source(renewal.__name__))
                self._run()
                # QEMU is another user. (nbdkit has its own umask, by which nobody else may connect before this.)
                os.chown(self.socket, -1, os.stat(self._directory).st_gid)
                os.chmod(self.socket, 0o660)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End it, and remove its files. One that is not there is fine."""
        with working(f"end the bridge to {self.socket}"):
            self._end()
            for path in (self.socket, self._program, self._renewal, self._settings):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _answers(self) -> bool:
        """Whether it runs and is well."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_GREETING)
                client.connect(self.socket)
                return client.recv(len(_MAGIC), socket.MSG_WAITALL) == _MAGIC
        except OSError:
            return False

    def _serves(self, settings: t.Mapping[str, t.Any]) -> bool:
        """Whether it serves what it should, and can be told of the rest: tokens and credentials."""
        try:
            with open(self._settings, encoding="utf-8") as file:
                told = json.load(file)
        except (FileNotFoundError, ValueError):
            return False
        return all(told.get(key) == settings[key] for key in ("url", "size", "verify", "cert"))

    def _run(self) -> None:
        command = shutil.which("nbdkit") or shutil.which("nbdkit", path=_MORE_PATHS)
        if command is None:
            raise Unsupported(f"Failed to {self._what}: nbdkit is not installed.", hint=_HINT)
        label = [f"--selinux-label={_LABEL}"] if os.path.exists(_SELINUX) else []
        arguments = ["--readonly", f"--unix={self.socket}", *label, "python", self._program]
        try:
            # It goes into the background when it has read the beginning of the image, and listens.
            done = subprocess.run(
                [command, *arguments, f"settings={self._settings}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_ENVIRONMENT,
                start_new_session=True,
                text=True,
                errors="replace",
                timeout=_START,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise TimedOut(f"Failed to {self._what}: no answer within {_START} seconds.", seconds=_START) from exc
        if done.returncode:
            raise self._failure(done.stderr)

    def _failure(self, said: str) -> LifecycleError:
        """The error for what nbdkit says when it does not start."""
        for line in said.splitlines():
            if line.startswith(served.REASON):
                return Unreachable(f"Failed to {self._what}: {line[len(served.REASON) :].rstrip('.')}.")
            if "cannot open plugin" in line:
                return Unsupported(f"Failed to {self._what}: nbdkit has no Python plugin.", hint=_HINT)
        return LifecycleError(f"Failed to {self._what}: nbdkit says: {' '.join(said.split())[-500:]}.")

    def _end(self) -> None:
        """It waits for Glance if need be, and would not end otherwise. It only reads, so nothing is lost."""
        running = self._processes()
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not running or not self._processes(),
            clock=self._clock,
            timeout=_DEATH,
            doing=f"waiting for the bridge to {self.socket} to end",
        )

    def _processes(self) -> list[int]:
        """The numbers of those that serve on the socket."""
        argument = f"--unix={self.socket}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            path = f"/proc/{name}/cmdline"
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "rb") as file:
                if argument in file.read().split(b"\0"):
                    found.append(int(name))
        return found

    def _write(self, path: str, text: str) -> None:
        """In the place of what is there, in one go, for nobody's eyes but ours."""
        part = f"{path}.part"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        fd = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR
        )
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise


def _source(module: str) -> str:
    """The text of a file of ours, which may come out of an archive that is gone when the module has ended."""
    found = importlib.util.find_spec(module)
    text = found.loader.get_source(module) if found and found.loader else None  # type: ignore[attr-defined]
    if not text:
        raise NotFound(f"Failed to find the text of {module}.")
    return str(text)
