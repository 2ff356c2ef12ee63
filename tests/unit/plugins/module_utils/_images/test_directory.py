# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory store: what every store promises, and files that break, fill up, or are left by the dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
import uuid
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Busy,
    Denied,
    Invalid,
    LifecycleError,
    NoSpace,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import directory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Image, Store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent, digests_of
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from tests.stores import MIB, Bytes, StoreContract, new, noise, read, unreadable

REPO = Path(__file__).resolve().parents[5]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the store is: made with the first image, and the directory above it as well."""
    return tmp_path / "kvmops" / "images"


@pytest.fixture
def store(place: Path) -> DirectoryStore:
    """Without images."""
    return DirectoryStore(str(place))


def files(place: Path) -> set[str]:
    """All files of a store, also the hidden ones."""
    return {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}


def of(*images: Image) -> set[str]:
    """The files that images are made of."""
    return {image.id + kind for image in images for kind in (".img", ".json")}


class TestContract(StoreContract):
    """What every store promises."""

    @pytest.fixture
    def store(self, place: Path) -> Store:
        """Without images."""
        return DirectoryStore(str(place))

    def nothing_is_left(self, store: Store) -> None:
        assert files(Path(store.place)) == set()


# ---- looking


def test_the_directory_is_made_with_the_first_image_and_others_may_pass_through_it(
    store: DirectoryStore, place: Path
) -> None:
    assert store.find() == []
    assert store.get(str(uuid.uuid4())) is None
    assert store.delete(str(uuid.uuid4())) is False
    assert not place.parent.exists()
    old = os.umask(0o077)
    try:
        image = store.put(new(), Bytes(b"data"))
    finally:
        os.umask(old)
    assert [path.stat().st_mode & 0o7777 for path in (place.parent, place)] == [0o711, 0o711]
    assert [(place / name).stat().st_mode & 0o7777 for name in of(image)] == [0o600, 0o600]
    assert image.where == str(place / f"{image.id}.img")
    assert files(place) == of(image)


def test_a_path_must_be_absolute() -> None:
    with pytest.raises(Invalid, match="must be absolute"):
        DirectoryStore("images")


def test_images_come_oldest_first_within_a_second_too(store: DirectoryStore) -> None:
    images = [store.put(new(str(number)), Bytes(b"x")) for number in range(5)]
    store.update(images[0], name="changed last")
    assert [image.id for image in store.find()] == [image.id for image in images]


def test_what_is_no_image_of_ours_is_none(store: DirectoryStore, place: Path) -> None:
    image = store.put(new(), Bytes(b"data"))
    told = json.loads((place / f"{image.id}.json").read_bytes())
    foreign: list[t.Any] = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        [],
        {},
        {"schema": 1},
        {**told, "schema": 2},
        {**told, "size": "4"},
        {**told, "size": True},
        {**told, "properties": {"a": 1}},
        {**told, "digests": {"sha256": "short"}},
        {**told, "digests": {}},
        {**told, "protected": None},
        {key: value for key, value in told.items() if key != "min_ram"},
        told,  # of another image
    ]
    before = of(image)
    for each in foreign:
        name = str(uuid.uuid4())
        (place / f"{name}.img").write_bytes(b"data")
        if isinstance(each, dict) and each is not told and "id" in each:
            each = {**each, "id": name}
        (place / f"{name}.json").write_bytes(each if isinstance(each, bytes) else json.dumps(each).encode())
        assert store.get(name) is None, each
        # It may be of a newer version of ours.
        assert store.delete(name) is False
        with pytest.raises(Invalid, match="already"):
            store.put(new(id=name), Bytes(b"x"))
        before |= {f"{name}.img", f"{name}.json"}
    (place / "notes.json").write_text("{}")
    os.mkfifo(place / f"{uuid.uuid4()}.json")
    (place / f"{uuid.uuid4()}.json").symlink_to(place / f"{image.id}.json")
    (place / f"{uuid.uuid4()}.json").mkdir()
    assert store.find() == [image]
    assert before <= files(place)


def test_a_directory_that_may_not_be_read_is_told(
    store: DirectoryStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not taken for an empty one."""

    def denied(path: str) -> t.NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(Denied, match="Permission denied"):
        store.find()


# ---- reading


def test_a_content_that_is_cut_off_is_seen_at_once(store: DirectoryStore, place: Path) -> None:
    image = store.put(new(), Bytes(noise(3 * MIB)))
    os.truncate(image.where, 3 * MIB - 1)
    assert store.find() == []
    damaged = store.get(image.id)
    assert damaged
    assert damaged.status == "damaged"
    with pytest.raises(Invalid, match="is damaged and cannot be read"), store.open(damaged):
        pass
    said, got = unreadable(store, image)
    assert "instead of" in said
    assert got == 0
    os.unlink(image.where)
    assert store.find() == []
    assert store.delete(image.id) is True
    assert files(place) == set()


@pytest.mark.parametrize("offset", [0, 3 * MIB, 5 * MIB])
def test_a_byte_that_changed_is_seen_before_the_last_block(store: DirectoryStore, offset: int) -> None:
    image = store.put(new(), Bytes(bytes(5 * MIB + 1)))
    with open(image.where, "r+b") as file:
        file.seek(offset)
        file.write(b"x")
    said, got = unreadable(store, image)
    assert "sha256" in said
    assert image.where in said
    assert got < image.size


def test_a_content_that_is_cut_off_while_it_is_read_is_seen(store: DirectoryStore) -> None:
    image = store.put(new(), Bytes(noise(7 * MIB)))
    with store.open(image) as content:
        blocks = iter(content)
        next(blocks)
        os.truncate(image.where, 5 * MIB)
        with pytest.raises(Invalid, match="is damaged"):
            list(blocks)


def test_what_is_done_with_the_content_fails_in_its_own_words(store: DirectoryStore) -> None:
    image = store.put(new(), Bytes(b"data"))
    with pytest.raises(OSError, match="mine"), store.open(image):
        raise OSError(errno.EIO, "mine")


# ---- writing


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_store_is_told_and_nothing_is_left(
    store: DirectoryStore, place: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    other: Image | None = store.put(new(), Bytes(b"data"))
    really, calls = getattr(os, call), []

    def full(*arguments: t.Any) -> t.Any:
        calls.append(arguments)
        if len(calls) > 1 or call != "pwrite":
            raise OSError(number, os.strerror(number))
        return really(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(LifecycleError, match=os.strerror(number)) as caught:
            store.put(new(), Bytes(noise(30 * MIB)))
        if other and call in ("pwrite", "ftruncate"):
            assert store.delete(other.id)  # which is the way out
            other = None
    assert isinstance(caught.value, NoSpace) == (number != errno.EIO)
    assert str(place) in str(caught.value)
    assert calls
    assert files(place) == (of(other) if other else set())
    assert read(store, store.put(new(), Bytes(noise(MIB)))) == noise(MIB)


@pytest.mark.parametrize("refused", ["open", "pwrite"])
def test_a_file_system_without_direct_io_does(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    really_open, really_write, seen = os.open, os.pwrite, []

    def open_it(path: str, flags: int, *arguments: t.Any) -> int:
        if flags & os.O_DIRECT:
            seen.append(path)
            if refused == "open":
                os.close(really_open(path, flags & ~os.O_DIRECT, *arguments))  # some make the file before they refuse
                raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, *arguments)

    def write(fd: int, data: bytes, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_write(fd, data, offset)

    monkeypatch.setattr(os, "open", open_it)
    if refused == "pwrite":
        monkeypatch.setattr(os, "pwrite", write)
    image = store.put(new(), Bytes(noise(5 * MIB + 7)))
    assert seen
    assert read(store, image) == noise(5 * MIB + 7)


def test_writes_that_come_up_short_are_finished(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: really(fd, data[:4096], offset))
    assert read(store, store.put(new(), Bytes(noise(MIB + 5)))) == noise(MIB + 5)


def test_zeros_take_no_room(store: DirectoryStore) -> None:
    data = b"x" + bytes(50 * MIB) + b"y"
    image = store.put(new(), Bytes(data))
    assert os.stat(image.where).st_blocks * 512 <= 4 * MIB
    assert read(store, image) == data


CHILD = """
import resource, sys
sys.path[:0] = [{build!r}, {repo!r}]
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from tests.stores import Bytes, new, noise, MIB
store = DirectoryStore({place!r})
"""


def child(place: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* with the store in a process of its own."""
    start = CHILD.format(build=str(REPO / ".build"), repo=str(REPO), place=str(place))
    command = [sys.executable, "-c", start + textwrap.dedent(script)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_memory_does_not_grow_with_the_image(place: Path) -> None:
    done = child(
        place,
        """
        class Long:
            def __len__(self): return 150 * MIB
            def __iter__(self):
                block = b"x" * MIB
                for _number in range(150): yield block
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = store.put(new(), Long())
        with store.open(image) as content:
            assert sum(len(block) for block in content) == 150 * MIB
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40


# ---- who dies


def deaths(act: t.Callable[[], object]) -> t.Iterator[int]:
    """Do *act* in processes that are killed before their first, second … call of the operating system, until one is
    not."""
    for at in range(1, 100):
        pid = os.fork()
        if not pid:
            try:
                die_at(at)
                act()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if status == 0:
            assert at > 5
            return
        assert os.WIFSIGNALED(status)
        yield at
    pytest.fail("it never came to its end")


def die_at(call: int) -> None:
    """Let this process be killed before that call of the main thread."""
    count = 0

    def deadly(really: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def do(*arguments: t.Any, **options: t.Any) -> t.Any:
            nonlocal count
            count += threading.current_thread() is threading.main_thread()
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*arguments, **options)

        return do

    for name in ("open", "rename", "unlink", "fsync", "pwrite", "ftruncate", "close"):
        setattr(os, name, deadly(getattr(os, name)))


def test_a_writer_may_die_at_any_moment(store: DirectoryStore, place: Path) -> None:
    there = store.put(new(), Bytes(b"there"))
    image_id = str(uuid.uuid4())
    outcomes = set()
    for _at in deaths(lambda: store.put(new(id=image_id), Bytes(noise(3 * MIB)))):
        found = store.get(image_id)
        outcomes.add(found is not None)
        if found:
            assert read(store, found) == noise(3 * MIB)
            assert store.delete(image_id)
        else:
            assert store.find() == [there]
            # Who comes next, whatever for, cleans up.
            store.delete(str(uuid.uuid4()))
        assert files(place) == of(there)
    assert outcomes == {True, False}
    found = store.get(image_id)
    assert found
    assert files(place) == of(there, found)


def test_the_same_image_can_be_written_again_by_who_comes_next(store: DirectoryStore, place: Path) -> None:
    image_id = str(uuid.uuid4())
    for _at in deaths(lambda: store.put(new(id=image_id), Bytes(noise(3 * MIB)))):
        if store.get(image_id) is None:
            assert read(store, store.put(new(id=image_id), Bytes(b"again"))) == b"again"
        assert store.delete(image_id)
        assert files(place) == set()


@pytest.mark.parametrize("act", ["delete", "update"])
def test_who_deletes_or_changes_may_die_at_any_moment(store: DirectoryStore, place: Path, act: str) -> None:
    image = store.put(new("web"), Bytes(noise(MIB)))

    def do() -> object:
        return store.delete(image.id) if act == "delete" else store.update(image, name="changed")

    for _at in deaths(do):
        found = store.get(image.id)
        store.delete(str(uuid.uuid4()))
        assert files(place) == (of(image) if found else set())
        if found is None:
            store.put(new("web", id=image.id), Bytes(noise(MIB)))
            continue
        assert found.name in ("web", "changed")
        assert read(store, found) == noise(MIB)
        store.update(found, name="web")


def test_what_a_living_writer_has_done_so_far_stays(store: DirectoryStore, place: Path) -> None:
    other = DirectoryStore(str(place))
    wanted = new()
    seen = []

    def during() -> None:
        seen.append(files(place))
        assert store.find() == other.find()
        other.put(new(), Bytes(b"x"))
        assert other.delete(other.find()[0].id)
        with pytest.raises(Busy, match=f"process {os.getpid()} of the machine {platform.node()}"):
            other.put(new(id=wanted.id), Bytes(b"x"))
        with pytest.raises(Busy):
            other.delete(wanted.id)

    image = store.put(wanted, Bytes(noise(3 * MIB), during=during))
    assert seen[0] == {f".staging/{image.id}.img", f".staging/{image.id}.lock"}
    assert read(store, image) == noise(3 * MIB)
    assert files(place) == of(image)


@pytest.mark.parametrize("hours", [0, 2])
def test_what_another_machine_has_begun_is_left_alone_for_an_hour(
    store: DirectoryStore, place: Path, hours: int
) -> None:
    """Not every shared file system carries the locks of others to us."""
    theirs = new()
    staging = place / ".staging"
    store.put(new("first"), Bytes(b"x"))
    for kind, data in ((".lock", json.dumps({"node": "elsewhere", "pid": 7})), (".img", "half"), (".json", "{")):
        path = staging / f"{theirs.id}{kind}"
        path.write_text(data)
        since = time.time() - hours * 3600
        os.utime(path, (since, since))
    store.put(new("second"), Bytes(b"y"))
    if hours:
        assert not list(staging.iterdir())
        assert store.put(theirs, Bytes(b"x"))
    else:
        assert len(list(staging.iterdir())) == 3
        with pytest.raises(Busy, match="process 7 of the machine elsewhere"):
            store.put(theirs, Bytes(b"x"))


def test_a_writer_who_was_taken_for_dead_does_not_put_half_an_image_there(store: DirectoryStore, place: Path) -> None:
    wanted = new()
    staging = place / ".staging"

    def during() -> None:
        for path in list(staging.iterdir()):
            path.unlink()

    with pytest.raises(Busy, match="took it for left behind"):
        store.put(wanted, Bytes(noise(2 * MIB), during=during))
    assert files(place) == set()


def test_a_content_without_a_sidecar_goes_when_it_is_old(
    store: DirectoryStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copies a store file by file is not disturbed."""
    image = store.put(new(), Bytes(b"x"))
    orphan = place / f"{uuid.uuid4()}.img"
    orphan.write_bytes(b"half")
    (place / "other.img").write_bytes(b"not ours")
    store.delete(str(uuid.uuid4()))
    assert orphan.exists()
    monkeypatch.setattr(directory, "_LEFT_AFTER", -1)
    store.delete(str(uuid.uuid4()))
    assert files(place) == {*of(image), "other.img"}


# ---- contents of files


def test_a_file_is_read_in_blocks_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(noise(5 * MIB + 1))
    content = FileContent(str(path))
    assert len(content) == 5 * MIB + 1
    for _time in range(2):
        assert b"".join(bytes(block) for block in content) == noise(5 * MIB + 1)
    assert set(digests_of(content, ["sha256", "sha512"])) == {"sha256", "sha512"}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(noise(5 * MIB))
    content = FileContent(str(path), called="the file")
    blocks = iter(content)
    next(blocks)
    path.write_bytes(noise(5 * MIB, 2))
    with pytest.raises(Invalid, match="the file was changed"):
        list(blocks)
    with pytest.raises(Invalid, match="the file was changed"):
        list(content)
