# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Safe inspection of disk images: what a file says it is, and nothing that it asks us to open.

``qemu-img info`` on a file of unknown format is how images steal files of the host: a qcow2 header may name any file as
its backing or data file. So the format is declared by the user, held against what ``oslo.utils`` finds in the bytes,
and QEMU is always told the format.
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass

from .._core.errors import Invalid, NotFound, Unsupported

# What a file declared as this may look like. A raw disk with a partition table is found to be "gpt" (an MBR counts
# too).
_LOOKS = {"qcow2": ("qcow2",), "raw": ("raw", "gpt", "iso")}


@dataclass(frozen=True)
class ImageFacts:
    """What was found in a file.

    :param path: Absolute path.
    :param format: ``qcow2`` or ``raw``, as declared and confirmed.
    :param virtual_size: Size of the disk in it, in bytes.
    :param size: Size of the file, in bytes.
    """

    path: str
    format: str
    virtual_size: int
    size: int


def inspect_image(path: str, declared: str, called: str = "") -> ImageFacts:
    """Look at the image file *path* that is *declared* to be ``qcow2`` or ``raw``.

    :param called: What it is called in errors; the path when it is empty.
    :raises NotFound: There is no such file.
    :raises Invalid: It is no regular file, is not what it is declared to be, or refers to another file.
    :raises Unsupported: ``oslo.utils`` is missing.
    """
    name = called or path
    try:
        from oslo_utils.imageutils import format_inspector  # a fifth of what a module takes to start
    except ImportError as exc:
        raise Unsupported(
            f"Failed to inspect image {name}: the Python library oslo.utils (7.3 or newer) is missing.",
            hint="Install it on the machine on which the module runs, together with cryptography.",
        ) from exc

    class Qcow2(format_inspector.QcowInspector):
        """Knows subclusters as well, which is incompatible feature 4 ("QCow2 Image Format"): they refer to nothing."""

        I_FEATURES_MAX_BIT = 5

    if not os.path.isabs(path):
        raise Invalid(f"Failed to inspect image {name}: the path must be absolute.")
    if not os.path.exists(path):
        raise NotFound(
            f"Failed to inspect image {name}: there is no such file on the machine on which the module runs."
        )
    if not os.path.isfile(path):
        raise Invalid(f"Failed to inspect image {name}: it is no regular file.")
    try:
        found = format_inspector.detect_file_format(path)
        kind = str(found) if found else "raw"
        if kind not in _LOOKS[declared]:
            raise Invalid(
                f"Image {name} is declared as {declared}, but it is {kind}.",
                hint="Say what it is with image_format or disk_format, or convert it:"
                f" qemu-img convert -f {kind} -O qcow2 …",
                declared=declared,
                found=kind,
            )
        if found:
            (Qcow2.from_file(path) if kind == "qcow2" else found).safety_check()
    except format_inspector.SafetyCheckFailed as exc:
        raise Invalid(
            f"Image {name} is refused: {_reasons(exc)}.",
            hint="Flatten it on a machine where you trust it: qemu-img convert -f qcow2 -O qcow2 …",
            failures=sorted(exc.failures),
        ) from exc
    except (format_inspector.ImageFormatError, OSError) as exc:
        raise Invalid(f"Failed to inspect image {name}: {exc}.") from exc
    size = os.path.getsize(path)
    virtual_size = int(found.virtual_size) if found and declared != "raw" else size
    return ImageFacts(path, declared, virtual_size, size)


def _reasons(exc: t.Any) -> str:
    return "; ".join(f"{name.replace('_', ' ')}: {failure}" for name, failure in sorted(exc.failures.items()))
