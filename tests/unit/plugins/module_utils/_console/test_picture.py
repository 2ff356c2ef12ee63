# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pictures as QEMU gives them, as PNG."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ansible_collections.kvmops.lifecycle.plugins.module_utils._console import as_png, picture
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, Unsupported

PIXELS = bytes(range(18))
PPM = b"P6\n3 2\n255\n" + PIXELS


def test_a_ppm_becomes_a_png_with_the_same_pixels() -> None:
    content = as_png(PPM, called="VM web1")
    with Image.open(io.BytesIO(content)) as shown:
        assert (shown.format, shown.size, shown.tobytes()) == ("PNG", (3, 2), PIXELS)
    assert as_png(PPM, called="VM web1") == content
    assert as_png(content, called="VM web1") is content


@pytest.mark.parametrize("content", [b"", b"P6\n3 2\n255\n" + PIXELS[:4], b"P6\n3 x\n", b"GIF89a" + bytes(20)])
def test_what_is_no_picture_is_an_error(content: bytes) -> None:
    with pytest.raises(LifecycleError, match="VM web1"):
        as_png(content, called="VM web1")


def test_pillow_is_needed_for_what_is_no_png_only(monkeypatch: pytest.MonkeyPatch) -> None:
    content = as_png(PPM, called="VM web1")
    monkeypatch.setattr(picture, "Image", None)
    assert as_png(content, called="VM web1") == content
    with pytest.raises(Unsupported, match="python3-pil"):
        as_png(PPM, called="VM web1")
