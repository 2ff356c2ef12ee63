# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What is made for who looks at a console from elsewhere: tokens and pictures. Alone imports jwcrypto and Pillow."""

from __future__ import annotations

from .picture import as_png
from .token import Ticket, sign

__all__ = ["Ticket", "as_png", "sign"]
