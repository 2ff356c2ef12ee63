# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Errors of the operating system in the words of :mod:`.errors`."""

from __future__ import annotations

import contextlib
import errno
import typing as t

from .errors import Denied, LifecycleError, NoSpace, NotFound


@contextlib.contextmanager
def working(what: str) -> t.Iterator[None]:
    """Translate the operating system's errors in the body.

    :param what: What is being done with files, after "Failed to".
    :raises NoSpace: The file system or the quota is full.
    :raises Denied: We may not.
    :raises NotFound: There is no such file.
    """
    try:
        yield
    except OSError as exc:
        reason = f"Failed to {what}: {exc.strerror or exc}."
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(reason, hint="Make room there and run the task again.") from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(reason, hint="Run the task with become, or choose another directory.") from exc
        if exc.errno == errno.ENOENT:
            raise NotFound(reason) from exc
        raise LifecycleError(reason) from exc
