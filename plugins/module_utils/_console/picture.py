# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Pictures of screens, as PNG whatever QEMU gave: it gives PPM before version 7.1."""

from __future__ import annotations

import io

try:
    from PIL import Image
except ImportError:  # told when a picture is converted
    Image = None  # type: ignore[assignment]

from .._core.errors import LifecycleError, Unsupported

PNG = b"\x89PNG\r\n\x1a\n"


def as_png(picture: bytes, *, called: str) -> bytes:
    """*picture* as PNG.

    :param called: Whose screen it is, for errors: "VM web1".
    :raises Unsupported: Pillow is missing.
    :raises LifecycleError: It is no picture.
    """
    if picture.startswith(PNG):
        return picture
    if Image is None:
        raise Unsupported(
            f"Failed to convert the picture of the screen of {called} to PNG: the Python library Pillow is missing.",
            hint="Install it on the machine on which the module runs (package python3-pil).",
        )
    found = io.BytesIO()
    try:
        with Image.open(io.BytesIO(picture), formats=["PPM"]) as opened:
            opened.save(found, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise LifecycleError(
            f"Failed to convert the picture of the screen of {called} to PNG: {str(exc).rstrip('.') or 'it is broken'}."
        ) from exc
    return found.getvalue()
