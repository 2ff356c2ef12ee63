# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of VMs on this machine: real files, real qemu-img, a real full disk."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import tempfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Denied,
    LifecycleError,
    NoSpace,
    NotFound,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.launcher import remove_files
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from tests.unit.sources import bases, file_source, sha256

MIB = 1 << 20

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage("kvm1")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The storage directory."""
    return tmp_path / "storage"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An image."""
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(3 * MIB + 77))
    return path


def info(path: str | Path) -> dict[str, t.Any]:
    found = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", "--output", "json", path], check=True, capture_output=True
    )
    return dict(json.loads(found.stdout))


# ---- disks


def test_an_overlay_builds_upon_its_base_with_a_size_of_its_own(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    storage.make_overlay(f"{place}/u/root.qcow2", base, 64 * MIB)
    found = info(f"{place}/u/root.qcow2")
    assert (found["virtual-size"], found["backing-filename"], found["backing-filename-format"]) == (
        64 * MIB,
        base.path,
        "raw",
    )


def test_a_disk_is_empty_and_sparse(storage: LocalStorage, place: Path) -> None:
    storage.make_disk(f"{place}/u/swap.qcow2", 1 << 40)
    assert stat.S_IMODE(os.stat(f"{place}/u/swap.qcow2").st_mode) == 0o600
    found = info(f"{place}/u/swap.qcow2")
    assert (found["virtual-size"], found["format"], found.get("backing-filename")) == (1 << 40, "qcow2", None)
    assert found["actual-size"] < MIB


def test_a_disk_that_is_there_is_kept(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    (place / "u").mkdir()
    (place / "u" / "root.qcow2").write_bytes(b"precious")
    storage.make_overlay(f"{place}/u/root.qcow2", base, 64 * MIB)
    storage.make_disk(f"{place}/u/root.qcow2", 64 * MIB)
    assert (place / "u" / "root.qcow2").read_bytes() == b"precious"


def test_what_an_attempt_that_died_left_is_no_hindrance(storage: LocalStorage, place: Path) -> None:
    (place / "u").mkdir(parents=True)
    (place / "u" / "swap.qcow2.part").write_bytes(b"half")
    storage.make_disk(f"{place}/u/swap.qcow2", MIB)
    assert os.listdir(place / "u") == ["swap.qcow2"]


def test_a_disk_grows_and_never_shrinks(storage: LocalStorage, place: Path) -> None:
    path = f"{place}/u/root.qcow2"
    storage.make_disk(path, 8 * MIB)
    storage.grow(path, "qcow2", 16 * MIB)
    storage.grow(path, "qcow2", 16 * MIB)
    assert info(path)["virtual-size"] == 16 * MIB
    with pytest.raises(LifecycleError, match=r"Failed to run qemu-img resize: .*shrink"):
        storage.grow(path, "qcow2", 8 * MIB)
    assert info(path)["virtual-size"] == 16 * MIB


def test_without_qemu_img_it_is_said_what_to_install(
    storage: LocalStorage, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFound, match="qemu-img: it is not installed") as caught:
        storage.make_disk(f"{place}/u/x.qcow2", MIB)
    assert "qemu-utils" in caught.value.hint


def test_a_file_is_written_whole_in_the_place_of_another(storage: LocalStorage, place: Path) -> None:
    path = place / "u" / "config.iso"
    storage.write(str(path), b"one")
    path.chmod(0o666)
    storage.write(str(path), b"other")
    assert path.read_bytes() == b"other"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(place / "u") == ["config.iso"]


# ---- removing


def test_what_we_may_not_look_at_counts_as_there(
    storage: LocalStorage, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{place}/file", b"x")
    assert storage.there(f"{place}/file")
    assert not storage.there(f"{place}/none")
    assert not storage.there(f"{place}/file/none")

    def denied(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "stat", denied)
    assert storage.there(f"{place}/file")


def test_removing_says_whether_there_was_one(storage: LocalStorage, place: Path) -> None:
    storage.write(f"{place}/u/x", b"")
    assert storage.remove(f"{place}/u/x")
    assert not storage.remove(f"{place}/u/x")
    assert not storage.remove(f"{place}/none/x")


def test_a_directory_is_removed_when_it_is_empty_and_else_says_what_is_in_it(
    storage: LocalStorage, place: Path
) -> None:
    storage.write(f"{place}/u/b", b"")
    storage.write(f"{place}/u/a", b"")
    assert storage.remove_directory(f"{place}/u") == ["a", "b"]
    storage.remove(f"{place}/u/a")
    storage.remove(f"{place}/u/b")
    assert storage.remove_directory(f"{place}/u") == []
    assert not (place / "u").exists()
    assert storage.remove_directory(f"{place}/u") == []


def test_a_vms_files_go_with_its_console_log_and_its_parts_and_nothing_else(storage: LocalStorage, place: Path) -> None:
    for name in ("root.qcow2", "console.log", "console.log.0", "swap.qcow2.part", "notes.txt"):
        storage.write(f"{place}/u/{name}", b"")
    told = remove_files(storage, [f"{place}/u/root.qcow2", f"{place}/gone.qcow2"], f"{place}/u")
    assert told == {"removed_files": [f"{place}/u/root.qcow2"], "left_files": [f"{place}/u/notes.txt"]}
    assert os.listdir(place / "u") == ["notes.txt"]
    storage.remove(f"{place}/u/notes.txt")
    assert remove_files(storage, [], f"{place}/u") == {"removed_files": []}
    assert not (place / "u").exists()
    assert remove_files(storage, [], "") == {"removed_files": []}


# ---- room


def test_room_is_told_of_a_directory_that_is_yet_to_be_made(storage: LocalStorage, tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    told = storage.free(str(tmp_path / "a" / "b" / "c"))
    assert told is not None
    assert abs(told - found.f_bavail * found.f_frsize) < 1 << 30


@contextlib.contextmanager
def full_disk(size: str) -> t.Iterator[Path]:
    """A file system of that size, mounted while the body runs."""
    with tempfile.TemporaryDirectory() as point:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "kvmops-test", point], check=True)
        try:
            yield Path(point)
        finally:
            subprocess.run(["umount", point], check=True)


@only_root
def test_a_disk_that_is_full_leaves_nothing_half_done(storage: LocalStorage, source: Path) -> None:
    with full_disk("1m") as point:
        with pytest.raises(NoSpace, match="No space left on device") as caught:
            storage.fetch_base(file_source(source), str(point))
        assert "Make room" in caught.value.hint
        assert bases(point) == []
        # And with room it goes on.
        subprocess.run(["mount", "-o", "remount,size=20m", point], check=True)
        base = storage.fetch_base(file_source(source), str(point))
        assert sha256(base.path) == base.sha256
        subprocess.run(["mount", "-o", "remount,size=3200k", point], check=True)
        with pytest.raises(NoSpace):
            storage.write(f"{point}/u/config.iso", b"x" * MIB)
        assert os.listdir(point / "u") == []
        with pytest.raises(NoSpace):
            fill(storage, point)
        storage.close()


def fill(storage: LocalStorage, point: Path) -> None:
    for number in range(20):
        storage.make_disk(f"{point}/u/{number}.qcow2", 1 << 30)


@only_root
def test_a_directory_that_may_not_be_written_is_denied(storage: LocalStorage, source: Path) -> None:
    with full_disk("20m") as point:
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for attempt in (
            lambda: storage.fetch_base(file_source(source), str(point)),
            lambda: storage.write(f"{point}/u/x", b""),
            lambda: storage.make_disk(f"{point}/u/x.qcow2", MIB),
        ):
            with pytest.raises(Denied, match="Read-only file system") as caught:
                attempt()
            assert "another directory" in caught.value.hint
