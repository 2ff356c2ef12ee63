# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The image room: what disk images are, and what is written into small ones of our own."""

from __future__ import annotations

from .formats import ImageFacts, inspect_image
from .nocloud import NoCloud

__all__ = ["ImageFacts", "NoCloud", "inspect_image"]
