# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Whether this machine takes VMs, kept in a file on it: no database, and it is there when libvirtd is not."""

from __future__ import annotations

import contextlib
import os

from .._core.files import working
from .._model.scheduling import Scheduling, dump, load, unknown
from .files import make_directory, write_whole

PATH = "/var/lib/kvmops/scheduling.json"


def read_scheduling() -> Scheduling:
    """Of this machine. Without a file it is enabled; one that cannot be read counts as disabled."""
    try:
        with open(PATH, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return Scheduling()
    except OSError as exc:
        return unknown(f"{PATH} cannot be read: {exc.strerror}.")
    return load(text, PATH)


def write_scheduling(wanted: Scheduling) -> None:
    """Keep it, on disk when this returns; an enabled machine keeps nothing.

    :raises Denied: We may not.
    :raises NoSpace: There is no room for it.
    """
    directory = os.path.dirname(PATH)
    with working(f"write {PATH}"):
        if wanted.enabled:
            with contextlib.suppress(FileNotFoundError):  # it is enabled already
                os.unlink(PATH)
            if not os.path.isdir(directory):
                return
        else:
            make_directory(directory)
            write_whole(PATH, dump(wanted).encode(), 0o644)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
