# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The image room: what disk images are, where they are kept, and what is written into small ones of our own."""

from __future__ import annotations

import typing as t

from .base import Content, Exposed, Image, NewImage, Store, is_identifier, resolve
from .content import FileContent, TextContent, VerifiedContent, digests_of
from .directory import DirectoryStore
from .formats import ImageFacts, inspect_image
from .nocloud import NoCloud

__all__ = [
    "Content",
    "Exposed",
    "FileContent",
    "Image",
    "ImageFacts",
    "NewImage",
    "NoCloud",
    "Store",
    "TextContent",
    "VerifiedContent",
    "digests_of",
    "inspect_image",
    "is_identifier",
    "open_store",
    "resolve",
]


def open_store(options: t.Mapping[str, t.Any]) -> Store:
    """The image store that the option ``image_store`` (:func:`.._core.spec.image_store`) means.

    :raises Invalid: The options cannot be meant.
    :raises Unsupported: A library is missing.
    :raises Unreachable: The store does not answer.
    :raises Denied: It does not know us.
    """
    if options["type"] == DirectoryStore.kind:
        return DirectoryStore(options["path"])
    from .glance import GlanceStore  # openstacksdk takes a second to import

    return GlanceStore(**{key: value for key, value in options.items() if key not in ("type", "path")})
