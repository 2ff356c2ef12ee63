# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of VMs on this machine: real files, real qemu-img, a real full disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Denied,
    Invalid,
    LifecycleError,
    NoSpace,
    NotFound,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import storage as module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.launcher import remove_files
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.storage import Base, LocalStorage

MIB = 1 << 20

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

FETCH = """
import sys
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.storage import LocalStorage
print("ready", flush=True)
sys.stdin.readline()
print(LocalStorage().fetch_base(sys.argv[1], "raw", sys.argv[2]).path)
"""


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


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


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def bases(place: Path) -> list[str]:
    """What is in the cache, but for the memo and the lock."""
    return sorted(name for name in os.listdir(place / "_base") if name not in (".lock", "hashes.json"))


def info(path: str | Path) -> dict[str, t.Any]:
    found = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", "--output", "json", path], check=True, capture_output=True
    )
    return dict(json.loads(found.stdout))


def rewritten(path: Path, content: bytes) -> None:
    """The file *path* with other content of the same length, as if nobody had touched it."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- base images


def test_a_base_image_is_a_copy_named_by_its_hash(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    digest = sha256(source)
    assert base == Base(f"{place}/_base/{digest}.raw", "raw", digest)
    assert sha256(base.path) == digest
    assert bases(place) == [f"{digest}.raw", f"{digest}.raw.ok"]
    assert json.loads(Path(f"{base.path}.ok").read_bytes()) == {
        "size": source.stat().st_size,
        "sha256": digest,
        "source": str(source),
    }


def test_a_source_that_is_known_is_not_read_again(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    rewritten(source, bytes(source.stat().st_size))
    assert storage.fetch_base(str(source), "raw", str(place)) == base
    (source.parent / "link").symlink_to(source)
    assert storage.fetch_base(str(source.parent / "link"), "raw", str(place)) == base


@pytest.mark.parametrize("how", ["newer", "longer", "another"])
def test_a_source_that_has_changed_is_another_image(storage: LocalStorage, place: Path, source: Path, how: str) -> None:
    before = storage.fetch_base(str(source), "raw", str(place))
    found = source.stat()
    other = b"other".ljust(found.st_size)
    if how == "newer":
        source.write_bytes(other)
        os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    elif how == "longer":
        source.write_bytes(other + b"!")
        os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns))
    else:  # another file under the same name
        (source.parent / "new").write_bytes(other)
        os.utime(source.parent / "new", ns=(found.st_atime_ns, found.st_mtime_ns))
        (source.parent / "new").rename(source)
    after = storage.fetch_base(str(source), "raw", str(place))
    assert after.sha256 == sha256(source) == sha256(after.path) != before.sha256
    assert len(bases(place)) == 4


def test_two_sources_with_the_same_content_share_a_base(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    inode = os.stat(base.path).st_ino
    other = source.with_name("other.raw")
    other.write_bytes(source.read_bytes())
    assert storage.fetch_base(str(other), "raw", str(place)) == base
    assert os.stat(base.path).st_ino == inode
    assert len(bases(place)) == 2


def test_what_is_raw_and_what_is_qcow2_are_two_bases(storage: LocalStorage, place: Path, source: Path) -> None:
    one = storage.fetch_base(str(source), "raw", str(place))
    other = storage.fetch_base(str(source), "qcow2", str(place))
    assert (one.sha256, one.format, other.format) == (other.sha256, "raw", "qcow2")
    assert one.path != other.path


def test_a_base_without_its_marker_does_not_count(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    Path(f"{base.path}.ok").unlink()
    Path(base.path).write_bytes(b"half")
    assert storage.fetch_base(str(source), "raw", str(place)) == base
    assert sha256(base.path) == base.sha256
    assert bases(place) == [f"{base.sha256}.raw", f"{base.sha256}.raw.ok"]


@pytest.mark.parametrize("marker", [b"", b"{", b"{}", b"[]", b'{"size": 1}'])
def test_a_marker_that_says_something_else_does_not_count(
    storage: LocalStorage, place: Path, source: Path, marker: bytes
) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    Path(f"{base.path}.ok").write_bytes(marker)
    assert storage.fetch_base(str(source), "raw", str(place)) == base
    assert json.loads(Path(f"{base.path}.ok").read_bytes())["size"] == source.stat().st_size


def test_a_base_that_was_cut_off_is_copied_anew(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    os.truncate(base.path, 100)
    assert storage.fetch_base(str(source), "raw", str(place)) == base
    assert sha256(base.path) == base.sha256


@pytest.mark.parametrize("memo", [b"", b"{", b"[]", b'{"a": 1}', b"null", b'{"SOURCE": 1}', b'{"SOURCE": {}}'])
def test_a_memo_that_cannot_be_read_costs_only_time(
    storage: LocalStorage, place: Path, source: Path, memo: bytes
) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
    (place / "_base" / "hashes.json").write_bytes(memo.replace(b"SOURCE", str(source.resolve()).encode()))
    assert storage.fetch_base(str(source), "raw", str(place)) == base
    assert str(source.resolve()) in json.loads((place / "_base" / "hashes.json").read_bytes())


def test_the_memo_forgets_sources_that_are_gone(storage: LocalStorage, place: Path, source: Path) -> None:
    storage.fetch_base(str(source), "raw", str(place))
    other = source.with_name("other.raw")
    other.write_bytes(b"other")
    source.unlink()
    storage.fetch_base(str(other), "raw", str(place))
    assert list(json.loads((place / "_base" / "hashes.json").read_bytes())) == [str(other.resolve())]


def test_what_a_copy_that_died_left_is_swept(storage: LocalStorage, place: Path, source: Path) -> None:
    (place / "_base").mkdir(parents=True)
    (place / "_base" / "tmpabc.part").write_bytes(b"half")
    (place / "_base" / "mine").write_bytes(b"not a part")
    base = storage.fetch_base(str(source), "raw", str(place))
    assert bases(place) == sorted([os.path.basename(base.path), f"{os.path.basename(base.path)}.ok", "mine"])


def test_a_source_that_changes_while_it_is_copied_is_refused(
    storage: LocalStorage, place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = module._copy

    def interrupted(path: str, target: t.IO[bytes]) -> str:
        digest = copy(path, target)
        with source.open("ab") as file:
            file.write(b"more")
        return digest

    monkeypatch.setattr(module, "_copy", interrupted)
    with pytest.raises(Invalid, match=f"Image {source} changed while it was copied"):
        storage.fetch_base(str(source), "raw", str(place))
    monkeypatch.undo()
    # What was copied is not taken for the source.
    assert storage.fetch_base(str(source), "raw", str(place)).sha256 == sha256(source)


@pytest.mark.parametrize("layout", ["hole at the end", "hole in the middle", "nothing but a hole", "odd end", "empty"])
def test_holes_stay_holes_and_the_size_is_kept(storage: LocalStorage, place: Path, source: Path, layout: str) -> None:
    data, length = {
        "hole at the end": ({0: b"x" * MIB}, 24 * MIB),
        "hole in the middle": ({0: b"x", 23 * MIB: b"y"}, 24 * MIB),
        "nothing but a hole": ({}, 24 * MIB),
        "odd end": ({5 * MIB: b"y"}, 24 * MIB + 13),
        "empty": ({}, 0),
    }[layout]
    with source.open("wb") as file:
        file.truncate(length)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    base = storage.fetch_base(str(source), "raw", str(place))
    assert sha256(base.path) == base.sha256 == sha256(source)
    assert os.stat(base.path).st_size == length
    assert os.stat(base.path).st_blocks * 512 <= 3 * MIB


def test_everyone_may_read_a_base_and_pass_through_the_directories_whatever_the_umask(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    """QEMU runs as another user."""
    before = os.umask(0o077)
    try:
        base = storage.fetch_base(str(source), "raw", str(place / "deep"))
        storage.make_overlay(f"{place}/deep/u/root.qcow2", base, 8 * MIB)
        storage.write(f"{place}/deep/v/config.iso", b"secret")
    finally:
        os.umask(before)
    mode = {path: stat.S_IMODE(os.stat(path).st_mode) for path in map(str, [place, *place.rglob("*")])}
    assert mode[base.path] == 0o644
    assert {mode[f"{place}{below}"] for below in ("", "/deep", "/deep/_base", "/deep/u", "/deep/v")} == {0o711}
    # Disks are for libvirt to hand over, and cloud-init data may hold passwords.
    assert mode[f"{place}/deep/u/root.qcow2"] == mode[f"{place}/deep/v/config.iso"] == 0o600


def test_threads_that_want_one_image_make_one_base(storage: LocalStorage, place: Path, source: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _number: storage.fetch_base(str(source), "raw", str(place)), range(6)))
    assert len(found) == 1
    assert bases(place) == [f"{sha256(source)}.raw", f"{sha256(source)}.raw.ok"]


def test_processes_that_want_one_image_make_one_base(place: Path, source: Path) -> None:
    found = next(path for path in sys.path if (Path(path) / "ansible_collections/kvmops/lifecycle").is_dir())
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", FETCH, str(source), str(place)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": found},
                    text=True,
                )
            )
            for _thread in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        told = {process.communicate("go\n", timeout=30)[0] for process in processes}
    assert told == {f"{place}/_base/{sha256(source)}.raw\n"}
    assert len(bases(place)) == 2


def test_an_image_that_is_gone_is_not_found(storage: LocalStorage, place: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"Failed to copy image {tmp_path}/none to {place}/_base: No such file"):
        storage.fetch_base(str(tmp_path / "none"), "raw", str(place))


# ---- disks


def test_an_overlay_builds_upon_its_base_with_a_size_of_its_own(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    base = storage.fetch_base(str(source), "raw", str(place))
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
    base = storage.fetch_base(str(source), "raw", str(place))
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
            storage.fetch_base(str(source), "raw", str(point))
        assert "Make room" in caught.value.hint
        assert bases(point) == []
        # And with room it goes on.
        subprocess.run(["mount", "-o", "remount,size=20m", point], check=True)
        base = storage.fetch_base(str(source), "raw", str(point))
        assert sha256(base.path) == base.sha256
        subprocess.run(["mount", "-o", "remount,size=3200k", point], check=True)
        with pytest.raises(NoSpace):
            storage.write(f"{point}/u/config.iso", b"x" * MIB)
        assert os.listdir(point / "u") == []
        with pytest.raises(NoSpace):
            fill(storage, point)


def fill(storage: LocalStorage, point: Path) -> None:
    for number in range(20):
        storage.make_disk(f"{point}/u/{number}.qcow2", 1 << 30)


@only_root
def test_a_directory_that_may_not_be_written_is_denied(storage: LocalStorage, source: Path) -> None:
    with full_disk("20m") as point:
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for attempt in (
            lambda: storage.fetch_base(str(source), "raw", str(point)),
            lambda: storage.write(f"{point}/u/x", b""),
            lambda: storage.make_disk(f"{point}/u/x.qcow2", MIB),
        ):
            with pytest.raises(Denied, match="Read-only file system") as caught:
                attempt()
            assert "another storage directory" in caught.value.hint
