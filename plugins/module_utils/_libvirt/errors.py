# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""libvirt's errors, translated into ours: every message says what was being done."""

from __future__ import annotations

import contextlib
import traceback
import typing as t

try:
    import libvirt
except ImportError:
    libvirt = None
    MISSING: str | None = traceback.format_exc()
else:
    MISSING = None

from .._core import errors

# virErrorNumber, by name in the libvirt API page "virterror"
_NO_CONNECT = 5
_NO_SUPPORT = 3
_OPERATION_DENIED = 29
_SYSTEM_ERROR = 38
_RPC = 39
_NO_DOMAIN = 42
_AUTH_FAILED = 45
_NO_STORAGE_POOL = 49
_NO_STORAGE_VOL = 50
_OPERATION_TIMEOUT = 68
_CONFIG_UNSUPPORTED = 67
_INVALID_CONN = 6
_AUTH_CANCELLED = 79
_NO_DOMAIN_METADATA = 80
_OPERATION_UNSUPPORTED = 84
_AGENT_UNRESPONSIVE = 86
_RESOURCE_BUSY = 87
_ACCESS_DENIED = 88
_AUTH_UNAVAILABLE = 94
_AGENT_UNSYNCED = 97
_NO_NETWORK = 43

_KINDS: dict[int, type[errors.LifecycleError]] = {
    _NO_DOMAIN: errors.NotFound,
    _NO_STORAGE_POOL: errors.NotFound,
    _NO_STORAGE_VOL: errors.NotFound,
    _NO_NETWORK: errors.NotFound,
    _OPERATION_DENIED: errors.Denied,
    _ACCESS_DENIED: errors.Denied,
    _AUTH_FAILED: errors.Denied,
    _AUTH_CANCELLED: errors.Denied,
    _AUTH_UNAVAILABLE: errors.Denied,
    _OPERATION_TIMEOUT: errors.TimedOut,
    _NO_SUPPORT: errors.Unsupported,
    _OPERATION_UNSUPPORTED: errors.Unsupported,
    _CONFIG_UNSUPPORTED: errors.Unsupported,
    _AGENT_UNRESPONSIVE: errors.Unreachable,
    _AGENT_UNSYNCED: errors.Unreachable,
    _NO_CONNECT: errors.Unreachable,
    _INVALID_CONN: errors.Unreachable,
    _RPC: errors.Unreachable,
    _RESOURCE_BUSY: errors.Busy,
}
# What libvirt says, in part, when the connection is lost or cannot be made: there the code is a general one.
_LOST = (
    "client socket is closed",
    "connection closed due to keepalive timeout",
    "end of file while reading data",
    "cannot recv data",
    "cannot send data",
    "cannot write data",
    "unable to connect to server",
    "failed to connect socket",
    "unable to resolve address",
)
_HINTS = {
    errors.Unreachable: "See that libvirtd (or virtqemud) runs there and that the uri is right.",
    errors.Denied: "Run the task with become, as a member of the group libvirt, or with credentials libvirtd accepts.",
    errors.TimedOut: (
        "See what holds it on the host: virsh domjobinfo. Where nothing does, a libvirtd may have been killed while it"
        ' started this VM: see "Busy VMs, and operations that died" in the guide of states.'
    ),
    errors.NoSpace: "Make room on the host and run the task again.",
}


def code_of(exc: Exception) -> int:
    """libvirt's error number, 0 when there is none."""
    return int(exc.get_error_code() or 0) if isinstance(exc, libvirt.libvirtError) else 0


def translate(exc: Exception, what: str) -> errors.LifecycleError:
    """Our error for libvirt's *exc*, met in doing *what* ("start VM web1")."""
    text = (exc.get_error_message() or str(exc)) if isinstance(exc, libvirt.libvirtError) else str(exc)
    code, low = code_of(exc), text.lower()
    if "permission denied" in low or "authentication" in low:
        kind: type[errors.LifecycleError] = errors.Denied
    elif any(part in low for part in _LOST):
        kind = errors.Unreachable
    elif "no space left on device" in low or "cannot allocate memory" in low:
        kind = errors.NoSpace
    else:
        kind = _KINDS.get(code, errors.LifecycleError)
    agent = code in (_AGENT_UNRESPONSIVE, _AGENT_UNSYNCED)
    hint = "See that the QEMU guest agent runs in the guest." if agent else _HINTS.get(kind, "")
    return kind(f"Failed to {what}: {text.rstrip('.')}.", hint=hint, libvirt_code=code)


@contextlib.contextmanager
def doing(what: str) -> t.Iterator[None]:
    """Translate libvirt's errors in the body.

    :param what: What is being done, in the infinitive: "start VM web1".
    """
    try:
        yield
    except libvirt.libvirtError as exc:
        raise translate(exc, what) from exc
