# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The image store that a task names."""

from __future__ import annotations

import typing as t

from .base import Store


def open_store(options: t.Mapping[str, t.Any]) -> Store:
    """The image store that the option ``image_store`` (:func:`.._core.spec.image_store`) means.

    :raises Invalid: The options cannot be meant.
    :raises Unsupported: A library is missing.
    :raises Unreachable: The store does not answer.
    :raises Denied: It does not know us.
    """
    # Either takes a time to import that is worth saving; openstacksdk a second.
    if options["type"] == "directory":
        from .directory import DirectoryStore

        return DirectoryStore(options["path"])
    from .glance import GlanceStore

    return GlanceStore(**{key: value for key, value in options.items() if key not in ("type", "path")})
