# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images as qemu-img makes them, and as somebody makes them who wants the host's files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, NotFound, Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.formats import ImageFacts, inspect_image

MIB = 1 << 20
# A master boot record: no code, no partitions, the signature.
MBR = b"\0" * 510 + b"\x55\xaa"
PARTITION = struct.pack("<B3sB3sII", 0x80, b"\0" * 3, 0x83, b"\0" * 3, 2048, 2048)


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def made(path: Path, kind: str, size: str = "8M", *options: str | Path) -> str:
    """An image by qemu-img."""
    qemu_img("create", "-f", kind, *options, path, *([size] if size else []))
    return str(path)


def raw(path: Path, start: bytes = b"", size: int = 8 * MIB) -> str:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return str(path)


def patched(path: str, offset: int, content: bytes) -> str:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
    return path


def refused(path: str, declared: str) -> str:
    with pytest.raises(Invalid) as caught:
        inspect_image(path, declared)
    return str(caught.value)


@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10"), ("-o", "cluster_size=2M"), ("-o", "lazy_refcounts=on")])
def test_a_qcow2_tells_the_size_of_the_disk_in_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2", "3G", *options)
    assert inspect_image(path, "qcow2") == ImageFacts(path, "qcow2", 3 << 30, os.path.getsize(path))


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"not a disk at all",
        MBR[:446] + PARTITION + b"\0" * 48 + MBR[510:],
        b"\0" * 512 + b"EFI PART",
    ],
    ids=["zeros", "text", "mbr", "gpt-header-alone"],
)
def test_a_raw_disk_is_as_large_as_its_file(tmp_path: Path, start: bytes) -> None:
    path = raw(tmp_path / "i.raw", start)
    assert inspect_image(path, "raw") == ImageFacts(path, "raw", 8 * MIB, 8 * MIB)


def test_a_raw_disk_may_be_an_iso(tmp_path: Path) -> None:
    path = raw(tmp_path / "i.iso")
    patched(path, 0x8001, b"CD001")
    assert inspect_image(path, "raw").format == "raw"


def test_a_small_file_of_odd_size_is_raw(tmp_path: Path) -> None:
    assert inspect_image(raw(tmp_path / "i", b"x", 1001), "raw").virtual_size == 1001


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vpc", "vhdx", "qed"])
@pytest.mark.parametrize("declared", ["qcow2", "raw"])
def test_another_format_than_the_declared_one_is_refused(tmp_path: Path, kind: str, declared: str) -> None:
    path = made(tmp_path / "i.qcow2", kind)
    with pytest.raises(Invalid, match=f"is declared as {declared}, but it is") as caught:
        inspect_image(path, declared)
    assert caught.value.details["declared"] == declared
    assert caught.value.details["found"] not in ("qcow2", "raw")
    assert "image_format" in caught.value.hint


def test_a_raw_disk_is_no_qcow2_and_a_qcow2_is_no_raw_disk(tmp_path: Path) -> None:
    assert "declared as qcow2, but it is raw" in refused(raw(tmp_path / "i"), "qcow2")
    assert "declared as qcow2, but it is gpt" in refused(
        raw(tmp_path / "j", MBR[:446] + PARTITION + MBR[462:]), "qcow2"
    )
    # Given to a guest as raw, and found to be qcow2 by the next tool, it would open what its header names.
    assert "declared as raw, but it is qcow2" in refused(made(tmp_path / "k", "qcow2"), "raw")


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    base = made(tmp_path / "base.qcow2", "qcow2")
    path = made(tmp_path / "i.qcow2", "qcow2", "", "-b", base, "-F", "qcow2")
    with pytest.raises(Invalid, match=f"Image {path} is refused: .*backing") as caught:
        inspect_image(path, "qcow2")
    assert caught.value.details["failures"] == ["backing_file"]
    assert "Flatten it" in caught.value.hint


def test_a_backing_file_that_is_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2", "8M", "-u", "-b", "/etc/shadow", "-F", "raw")
    assert "is refused: backing file" in refused(path, "qcow2")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2", "8M", "-o", f"data_file={tmp_path / 'data.raw'}")
    assert "is refused: data file" in refused(path, "qcow2")


def test_a_feature_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2")
    patched(path, 72, struct.pack(">Q", 1 << 63))  # incompatible features
    assert "is refused: unknown features" in refused(path, "qcow2")


def test_subclusters_are_known_and_what_they_hide_is_still_seen(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2", "8M", "-o", "extended_l2=on")
    assert inspect_image(path, "qcow2").virtual_size == 8 * MIB
    over = made(tmp_path / "j.qcow2", "qcow2", "", "-o", "extended_l2=on", "-b", path, "-F", "qcow2")
    assert "is refused: backing file" in refused(over, "qcow2")
    split = made(tmp_path / "k.qcow2", "qcow2", "8M", "-o", f"extended_l2=on,data_file={tmp_path / 'data.raw'}")
    assert "is refused: data file" in refused(split, "qcow2")
    patched(path, 79, bytes([1 << 5]))  # the next incompatible feature
    assert "is refused: unknown features" in refused(path, "qcow2")


@pytest.mark.parametrize("length", [0, 3, 4, 50, 103])
def test_a_header_that_is_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    path = made(tmp_path / "i.qcow2", "qcow2")
    os.truncate(path, length)
    assert path in refused(path, "qcow2")


def test_a_size_that_no_disk_has_is_told_as_it_is(tmp_path: Path) -> None:
    """It is for the flavor to refuse it, or for qemu-img."""
    path = made(tmp_path / "i.qcow2", "qcow2")
    patched(path, 24, struct.pack(">Q", 1 << 60))
    assert inspect_image(path, "qcow2").virtual_size == 1 << 60


def test_an_image_is_called_what_its_user_calls_it(tmp_path: Path) -> None:
    path = raw(tmp_path / "i", b"x", 1001)
    with pytest.raises(Invalid, match=r"^Image debian in /images is declared as qcow2, but it is raw"):
        inspect_image(path, "qcow2", "debian in /images")


def test_there_has_to_be_a_regular_file_with_an_absolute_path(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such file on the machine on which the module runs"):
        inspect_image(str(tmp_path / "none"), "qcow2")
    assert "no regular file" in refused(str(tmp_path), "qcow2")
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in refused(str(tmp_path / "fifo"), "raw")  # and it does not hang
    assert "no regular file" in refused("/dev/null", "raw")
    for path in ("i.qcow2", "", "json:{}", "nbd://host/x"):
        assert "the path must be absolute" in refused(path, "qcow2")


def test_a_link_to_an_image_is_as_good_as_the_image(tmp_path: Path) -> None:
    made(tmp_path / "i.qcow2", "qcow2")
    (tmp_path / "link").symlink_to("i.qcow2")
    assert inspect_image(str(tmp_path / "link"), "qcow2").virtual_size == 8 * MIB


def test_without_the_inspector_nothing_is_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "oslo_utils.imageutils", None)
    with pytest.raises(Unsupported, match=r"oslo\.utils \(7\.3 or newer\) is missing"):
        inspect_image(made(tmp_path / "i.qcow2", "qcow2"), "qcow2")
