# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The libvirt room, which alone imports libvirt. One libvirt call a method, every error translated, nothing decided.

Nothing is imported here: a task sends to the host, and reads there, what it needs and no more.
"""
