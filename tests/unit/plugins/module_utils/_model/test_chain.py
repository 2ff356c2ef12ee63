# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains of images, read from headers that qemu-img would write."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.chain import (
    LONGEST,
    Chain,
    Layer,
    Qcow2,
    backing_of,
    follow,
    read_qcow2,
    with_backing,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Image

MIB = 1 << 20


def header(
    *, version: int = 3, backing: bytes = b"", backing_format: bytes = b"", capacity: int = MIB, extra: bytes = b""
) -> bytes:
    """The first bytes of an image, laid out as qemu-img does."""
    fixed = 72 if version == 2 else 112
    extensions = extra
    if backing_format:
        padding = b"\0" * (-len(backing_format) % 8)
        extensions += struct.pack(">II", 0xE2792ACA, len(backing_format)) + backing_format + padding
    extensions += b"\0" * 8
    place = fixed + len(extensions) if backing else 0
    start = struct.pack(">4sIQIIQ", b"QFI\xfb", version, place, len(backing), 16, capacity)
    start = start.ljust(100, b"\0") + struct.pack(">I", fixed) if version == 3 else start
    return start.ljust(fixed, b"\0") + extensions + backing


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_tells_what_it_builds_on(version: int) -> None:
    start = header(version=version, backing=b"base.raw", backing_format=b"raw", capacity=5 * MIB)
    assert read_qcow2(start) == Qcow2(5 * MIB, "base.raw", "raw")


@pytest.mark.parametrize("version", [2, 3])
def test_an_image_that_stands_alone_names_nothing(version: int) -> None:
    assert read_qcow2(header(version=version)) == Qcow2(MIB)


def test_other_extensions_are_skipped() -> None:
    names = struct.pack(">II", 0x6803F857, 3) + b"abc".ljust(8, b"\0")
    assert read_qcow2(header(backing=b"/b", backing_format=b"qcow2", extra=names)) == Qcow2(MIB, "/b", "qcow2")


def test_a_format_that_is_not_declared_is_not_guessed() -> None:
    assert read_qcow2(header(backing=b"/b")) == Qcow2(MIB, "/b", "")


@pytest.mark.parametrize(
    "start", [b"", b"QFI", b"QFI\xfb", header()[:31], b"QED\0" + header()[4:], header(version=4), b"\0" * 512]
)
def test_what_is_no_header_is_none(start: bytes) -> None:
    assert read_qcow2(start) is None


def test_a_header_that_is_cut_off_is_none() -> None:
    start = header(backing=b"base.raw", backing_format=b"raw")
    assert all(read_qcow2(start[:size]) is None for size in range(len(start)))


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail(tail: bytes) -> None:
    read_qcow2(b"QFI\xfb\0\0\0\x03" + tail)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("", None),
        ("base.raw", Image("file", "/images/base.raw", "raw")),
        ("../base.raw", Image("file", "/images/../base.raw", "raw")),
        ("/other/base.raw", Image("file", "/other/base.raw", "raw")),
        ("file:/other/base.raw", Image("file", "/other/base.raw", "raw")),
        ("nbd://store/base", Image("network", "nbd://store/base", "raw", "nbd")),
        ('json:{"file":"/etc/shadow"}', Image("network", 'json:{"file":"/etc/shadow"}', "raw", "json")),
        ("dir/with:colon", Image("file", "/images/dir/with:colon", "raw")),
    ],
)
def test_names_are_read_as_qemu_reads_them(name: str, below: Image | None) -> None:
    assert backing_of(Image("file", "/images/top.qcow2", "qcow2"), Qcow2(MIB, name, "raw")) == below


def test_a_chain_is_followed_to_its_end() -> None:
    top, base = Image("file", "/top", "qcow2"), Image("file", "/base", "raw")
    found = {top: (Layer(top, 2, 1), base), base: (Layer(base, 2, 2), None)}
    assert follow(top, found.get) == Chain((Layer(top, 2, 1), Layer(base, 2, 2)), known=True)


def test_a_chain_ends_where_nobody_can_look() -> None:
    top, base = Image("file", "/top", "qcow2"), Image("network", "vms/base", "raw", "rbd")
    assert follow(top, {top: (Layer(top), base)}.get) == Chain((Layer(top), Layer(base)), known=False)


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = Image("file", "/one", "qcow2"), Image("file", "/two", "qcow2")
    chain = follow(one, {one: (Layer(one), two), two: (Layer(two), one)}.get)
    assert [layer.image for layer in chain.layers] == [one, two, one]
    assert not chain.known


def test_a_chain_without_end_ends() -> None:
    def deeper(image: Image) -> tuple[Layer, Image]:
        return Layer(image), Image("file", f"{image.source}x", "qcow2")

    chain = follow(Image("file", "/x", "qcow2"), deeper)
    assert len(chain.layers) == LONGEST + 1
    assert not chain.known


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["b", "/a/name/that/is/longer/than/the/one/before.qcow2", "x" * 1023])
def test_a_header_takes_another_name_of_the_backing_file(version: int, name: str) -> None:
    start = header(version=version, backing=b"base.qcow2", backing_format=b"qcow2").ljust(1 << 16, b"\0")
    changed = with_backing(start + b"data", name)
    assert read_qcow2(changed) == Qcow2(MIB, name, "qcow2")
    assert len(changed) == (1 << 16) + 4
    assert changed.endswith(b"data")


def test_a_header_is_not_changed_when_the_name_does_not_fit() -> None:
    start = header(backing=b"base.qcow2")
    full = start.ljust((1 << 16) - 1, b"\0") + b"x"
    crowded = (start + b"something else").ljust(1 << 16, b"\0")
    for image, name in ((full, "x" * 1024), (crowded, "a name of more than ten"), (start, "cut short")):
        with pytest.raises(Invalid, match="header"):
            with_backing(image, name)


@pytest.mark.parametrize("start", [b"", b"raw" * 40, header().ljust(1 << 16, b"\0")])
def test_an_image_without_a_backing_file_is_not_given_one(start: bytes) -> None:
    with pytest.raises(Invalid, match="no qcow2 header that names a backing file"):
        with_backing(start, "base")
