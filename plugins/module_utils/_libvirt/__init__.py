# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The libvirt room, which alone imports libvirt. One libvirt call a method, every error translated, nothing decided."""

from __future__ import annotations

from .backup import Backup, BackupOrder, CheckpointLost, Held
from .bases import Base, Source
from .bulk import Bulk
from .cache import BaseCache
from .chains import Chains
from .consoles import Log, Terminal, screenshot
from .definition import Below, Definition
from .details import Details
from .errors import MISSING
from .guard import Guard
from .guest import Guest
from .host import Host, Platform, open_host, pick
from .launcher import Adjuster, Launcher, remove_files
from .leases import Leases
from .power import Patience, Power
from .pull import Pull
from .restore import Restorer
from .storage import Storage, storage_of
from .swap import Swap, on_file, on_variables
from .xml import put_instance

__all__ = [
    "MISSING",
    "Adjuster",
    "Backup",
    "BackupOrder",
    "Base",
    "BaseCache",
    "Below",
    "Bulk",
    "Chains",
    "CheckpointLost",
    "Definition",
    "Details",
    "Guard",
    "Guest",
    "Held",
    "Host",
    "Launcher",
    "Leases",
    "Log",
    "Patience",
    "Platform",
    "Power",
    "Pull",
    "Restorer",
    "Source",
    "Storage",
    "Swap",
    "Terminal",
    "on_file",
    "on_variables",
    "open_host",
    "pick",
    "put_instance",
    "remove_files",
    "screenshot",
    "storage_of",
]
