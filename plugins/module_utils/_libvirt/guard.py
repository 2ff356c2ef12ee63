# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A process that pays what we owe a guest, if we die: thaws its file systems, lets its CPUs run, ends its backup job.

A frozen guest stands still for its users, and nobody may be there to run the task again.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types

from .._core.errors import LifecycleError
from .._core.files import working

FREEZE = "freeze"
PAUSE = "pause"


def job(socket: str) -> str:
    """The debt of a backup job whose export is at that socket: nobody else's job is ended."""
    return f"job {socket}"


def file(path: str) -> str:
    """The debt of a file that is of no use any more."""
    return f"file {path}"


# Lines "+DEBT" and "-DEBT" come in; at the end of the input, which is there at the latest when the writer is dead, what
# is still owed is paid. libvirtd may be down, which is why we died; and an agent that did not answer may still freeze
# the guest, once it is able to. So it is tried again, ever more seldom, for an hour. What cannot be owed any more, as
# the VM is off or the job is gone, counts as paid.
_PROGRAM = """
import os, sys, time
import libvirt

uri, uuid = sys.argv[1:3]
GONE = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_BACKUP)

def stands_still(domain, *reasons):
    state, reason = domain.state()
    return state == libvirt.VIR_DOMAIN_PAUSED and reason in reasons

def end_job(domain, socket):
    if socket not in domain.backupGetXMLDesc():
        return
    domain.abortJob()
    if stands_still(domain, libvirt.VIR_DOMAIN_PAUSED_IOERROR):  # a scratch file found no room
        domain.resume()

def resume(domain):
    if stands_still(domain, libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN):
        domain.resume()

def thaw(domain):
    domain.agentSetResponseTimeout(5)
    try:
        domain.fsThaw()
    finally:
        domain.agentSetResponseTimeout(600)  # see backup.py

def pay(domain, debt):
    what, _space, about = debt.partition(" ")
    if what == "job":
        end_job(domain, about)
    elif what == "pause":
        resume(domain)
    else:
        thaw(domain)

def attempt(owed):
    connection = libvirt.open(uri)
    try:
        domain = connection.lookupByUUIDString(uuid)
        for debt in sorted(owed, key="freeze".__eq__):  # that last: it may take its time
            try:
                pay(domain, debt)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in GONE:
                    continue
            owed.discard(debt)
    finally:
        connection.close()

try:
    os.write(1, b"ready\\n")
except OSError:  # who began us is dead already
    pass
owed = set()
for line in sys.stdin:
    (owed.add if line[0] == "+" else owed.discard)(line[1:].strip())
for debt in [debt for debt in owed if debt.startswith("file ")]:  # for that nobody needs libvirt
    try:
        os.unlink(debt[5:])
    except OSError:  # it is not there; what else may be the matter, the next run tells
        pass
    owed.discard(debt)
libvirt.registerErrorHandler(lambda *_: None, None)
end, interval = time.monotonic() + 3600, 0.5
while owed:
    try:
        attempt(owed)
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            break
    if owed and time.monotonic() > end:
        sys.exit("gave up: " + ", ".join(sorted(owed)))
    if owed:
        time.sleep(interval)
        interval = min(interval * 1.5, 20)
"""


class Guard:
    """The process, for one VM. It is begun before anything is owed, in a session of its own, so that what kills us does
    not kill it. At the end of a ``with`` what is owed is paid at once.

    :param uri: How it reaches libvirtd.
    :param uuid: Of the VM.
    """

    def __init__(self, uri: str, uuid: str) -> None:
        self._owed: set[str] = set()
        with working(f"start a guard for the VM with UUID {uuid}"):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, uri, uuid],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )

    def wait(self) -> None:
        """Wait until it has started, which takes CPU time that the guest should have while it is held.

        :raises LifecycleError: It does not start.
        """
        pipe = self._process.stdout
        if pipe is None or pipe.readline() != "ready\n":
            raise LifecycleError("Failed to start a process that lets the guest go if this one dies: it ended at once.")

    def owe(self, debt: str) -> None:
        """Remember a debt, before it is made."""
        self._owed.add(debt)
        self._say(f"+{debt}")

    def paid(self, debt: str) -> None:
        """Forget it."""
        self._owed.discard(debt)
        self._say(f"-{debt}")

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # it cannot help; the work need not fail for that
                pipe.write(f"{line}\n")
                pipe.flush()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Let it pay what is owed, in the background, and end."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if not self._owed:  # else it may take minutes, which is not ours to wait for
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
