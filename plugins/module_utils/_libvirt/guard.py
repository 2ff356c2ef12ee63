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

FREEZE = "freeze"
PAUSE = "pause"
JOB = "job"

# Lines "+DEBT" and "-DEBT" come in; at the end of the input, which is there at the latest when the writer is dead, what
# is still owed is paid. An agent that did not answer may still freeze the guest, once it is able to: so thawing is
# tried for as long as five minutes.
_PROGRAM = """
import signal, sys, time
import libvirt

uri, uuid = sys.argv[1:3]
signal.alarm(600)
owed = set()
for line in sys.stdin:
    (owed.add if line[0] == "+" else owed.discard)(line[1:].strip())
if owed:
    libvirt.registerErrorHandler(lambda *_: None, None)
    domain = libvirt.open(uri).lookupByUUIDString(uuid)
    def attempt(call):
        try:
            call()
            return True
        except libvirt.libvirtError as error:
            return error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
    if "job" in owed:
        try:
            backup = domain.jobStats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
        except libvirt.libvirtError:
            backup = False
        if backup:
            attempt(domain.abortJob)
    if "pause" in owed:
        attempt(domain.resume)
    if "freeze" in owed:
        end = time.monotonic() + 300
        try:
            domain.agentSetResponseTimeout(5, 0)
        except libvirt.libvirtError:
            pass
        while not attempt(domain.fsThaw) and time.monotonic() < end:
            time.sleep(1)
        try:
            domain.agentSetResponseTimeout(-2, 0)
        except libvirt.libvirtError:
            pass
"""


class Guard:
    """The process, for one VM. It is begun before anything is owed, in a session of its own, so that what kills us does
    not kill it.

    :param uri: How it reaches libvirtd.
    :param uuid: Of the VM.
    """

    def __init__(self, uri: str, uuid: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, uri, uuid],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def owe(self, debt: str) -> None:
        """Remember a debt, before it is made."""
        self._say(f"+{debt}")

    def paid(self, debt: str) -> None:
        """Forget it."""
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
        # What it pays after a failure may take minutes; it is not ours to wait for then.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5 if kind is None else 1)
