# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The image room: what disk images are, where they are kept, and what is written into small ones of our own.

Nothing is imported here: a task sends to the host, and reads there, what it needs and no more.
"""
