# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The libvirt room, which alone imports libvirt. One libvirt call a method, every error translated, nothing decided."""

from __future__ import annotations

from .errors import MISSING
from .guest import Guest
from .host import Host, open_host
from .power import Patience, Power

__all__ = ["MISSING", "Guest", "Host", "Patience", "Power", "open_host"]
