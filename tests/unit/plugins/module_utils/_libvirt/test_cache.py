# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cache of base images on this machine: real files, processes, qemu-img."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, NoSpace, NotFound
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import cache as module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import local
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.bases import Base, Source
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from tests.unit.sources import STORE, bases, file_source, sha256, stored

MIB = 1 << 20

CHILD = """
import sys
from pathlib import Path
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from tests.unit.sources import file_source, stored

def hanging():
    yield b"x" * (1 << 16)
    print("half", flush=True)
    sys.stdin.readline()

print("ready", flush=True)
sys.stdin.readline()
if sys.argv[1] == "file":
    wanted = file_source(Path(sys.argv[2]))
else:
    wanted = stored(b"x" * (1 << 17), sent=hanging)
print(LocalStorage("kvm1").fetch_base(wanted, sys.argv[3]).path)
"""


@pytest.fixture
def storage() -> t.Iterator[LocalStorage]:
    made = LocalStorage("kvm1")
    yield made
    made.close()


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


@contextlib.contextmanager
def child(*arguments: str) -> t.Iterator[subprocess.Popen[str]]:
    """A process that waits for a line before it fetches."""
    [found, *_more] = (path for path in sys.path if (Path(path) / "ansible_collections/kvmops/lifecycle").is_dir())
    repository = Path(__file__).resolve().parents[5]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{found}:{repository}"},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def marker(base: Base) -> dict[str, t.Any]:
    return dict(json.loads(Path(f"{base.path}.ok").read_bytes()))


def never() -> t.Iterable[bytes]:
    raise RuntimeError("it is read")


def rewritten(path: Path, content: bytes) -> None:
    """The file *path* with other content of the same length, as if nobody had touched it."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- from files


def test_a_base_image_is_a_copy_named_by_its_hash(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    digest, size = sha256(source), source.stat().st_size
    assert base == Base(f"{place}/_base/{digest}.raw", "raw", digest, size, size, {"sha256": digest})
    assert sha256(base.path) == digest
    assert bases(place) == [f"{digest}.raw", f"{digest}.raw.ok"]
    assert marker(base) == {
        "size": size,
        "sha256": digest,
        "virtual_size": size,
        "digests": {"sha256": digest},
        "images": {},
        "parent": "",
        "length": size,
        "source": str(source),
        "hosts": ["kvm1"],
    }
    assert storage.base_facts(base.path) == base


def test_a_source_that_is_known_is_not_read_again(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    rewritten(source, bytes(source.stat().st_size))
    assert storage.fetch_base(file_source(source), str(place)) == base
    (source.parent / "link").symlink_to(source)
    assert storage.fetch_base(file_source(source.parent / "link"), str(place)) == base


@pytest.mark.parametrize("how", ["newer", "longer", "another"])
def test_a_source_that_has_changed_is_another_image(storage: LocalStorage, place: Path, source: Path, how: str) -> None:
    before = storage.fetch_base(file_source(source), str(place))
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
    after = storage.fetch_base(file_source(source), str(place))
    assert after.sha256 == sha256(source) == sha256(after.path) != before.sha256
    assert len(bases(place)) == 4


def test_two_sources_with_the_same_content_share_a_base(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    inode = os.stat(base.path).st_ino
    other = source.with_name("other.raw")
    other.write_bytes(source.read_bytes())
    assert storage.fetch_base(file_source(other), str(place)) == base
    assert os.stat(base.path).st_ino == inode
    assert len(bases(place)) == 2


def test_what_is_raw_and_what_is_qcow2_are_two_bases(storage: LocalStorage, place: Path, source: Path) -> None:
    one = storage.fetch_base(file_source(source), str(place))
    other = storage.fetch_base(file_source(source, "qcow2"), str(place))
    assert (one.sha256, one.format, other.format) == (other.sha256, "raw", "qcow2")
    assert one.path != other.path


def test_a_base_without_its_marker_does_not_count(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    Path(f"{base.path}.ok").unlink()
    Path(base.path).write_bytes(b"half")
    assert storage.fetch_base(file_source(source), str(place)) == base
    assert sha256(base.path) == base.sha256
    assert bases(place) == [f"{base.sha256}.raw", f"{base.sha256}.raw.ok"]


@pytest.mark.parametrize("marker", [b"", b"{", b"{}", b"[]", b'{"size": 1}'])
def test_a_marker_that_says_something_else_does_not_count(
    storage: LocalStorage, place: Path, source: Path, marker: bytes
) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    Path(f"{base.path}.ok").write_bytes(marker)
    assert storage.fetch_base(file_source(source), str(place)) == base
    assert json.loads(Path(f"{base.path}.ok").read_bytes())["size"] == source.stat().st_size


def test_a_base_that_was_cut_off_is_copied_anew(storage: LocalStorage, place: Path, source: Path) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    os.truncate(base.path, 100)
    assert storage.fetch_base(file_source(source), str(place)) == base
    assert sha256(base.path) == base.sha256


@pytest.mark.parametrize("memo", [b"", b"{", b"[]", b'{"a": 1}', b"null", b'{"SOURCE": 1}', b'{"SOURCE": {}}'])
def test_a_memo_that_cannot_be_read_costs_only_time(
    storage: LocalStorage, place: Path, source: Path, memo: bytes
) -> None:
    base = storage.fetch_base(file_source(source), str(place))
    (place / "_base" / "hashes.json").write_bytes(memo.replace(b"SOURCE", str(source.resolve()).encode()))
    assert storage.fetch_base(file_source(source), str(place)) == base
    assert str(source.resolve()) in json.loads((place / "_base" / "hashes.json").read_bytes())


def test_the_memo_forgets_sources_that_are_gone(storage: LocalStorage, place: Path, source: Path) -> None:
    storage.fetch_base(file_source(source), str(place))
    other = source.with_name("other.raw")
    other.write_bytes(b"other")
    source.unlink()
    storage.fetch_base(file_source(other), str(place))
    assert list(json.loads((place / "_base" / "hashes.json").read_bytes())) == [str(other.resolve())]


def test_what_a_copy_that_died_left_is_swept(storage: LocalStorage, place: Path, source: Path) -> None:
    (place / "_base").mkdir(parents=True)
    (place / "_base" / "tmpabc.part").write_bytes(b"half")
    (place / "_base" / "mine").write_bytes(b"not a part")
    base = storage.fetch_base(file_source(source), str(place))
    assert bases(place) == sorted([os.path.basename(base.path), f"{os.path.basename(base.path)}.ok", "mine"])


def test_a_source_that_changes_while_it_is_copied_is_refused(
    storage: LocalStorage, place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in = module.take_in

    def interrupted(*arguments: t.Any) -> Base:
        base = take_in(*arguments)
        with source.open("ab") as file:
            file.write(b"more")
        return base

    monkeypatch.setattr(module, "take_in", interrupted)
    with pytest.raises(Invalid, match=f"Image {source} changed while it was copied"):
        storage.fetch_base(file_source(source), str(place))
    monkeypatch.undo()
    # What was copied is not taken for the source.
    assert storage.fetch_base(file_source(source), str(place)).sha256 == sha256(source)


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
    base = storage.fetch_base(file_source(source), str(place))
    assert sha256(base.path) == base.sha256 == sha256(source)
    assert os.stat(base.path).st_size == length
    assert os.stat(base.path).st_blocks * 512 <= 3 * MIB


def test_everyone_may_read_a_base_and_pass_through_the_directories_whatever_the_umask(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    """QEMU runs as another user."""
    before = os.umask(0o077)
    try:
        base = storage.fetch_base(file_source(source), str(place / "deep"))
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
        found = set(pool.map(lambda _number: storage.fetch_base(file_source(source), str(place)), range(6)))
    assert len(found) == 1
    assert bases(place) == [f"{sha256(source)}.raw", f"{sha256(source)}.raw.ok"]


def test_processes_that_want_one_image_make_one_base(place: Path, source: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child("file", str(source), str(place))) for _process in range(3)]
        told = {process.communicate("go\n", timeout=30)[0] for process in processes}
    assert told == {f"{place}/_base/{sha256(source)}.raw\n"}
    assert len(bases(place)) == 2


def test_an_image_that_is_gone_is_not_found(storage: LocalStorage, place: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"Failed to copy image {tmp_path}/none to {place}/_base: No such file"):
        storage.fetch_base(file_source(tmp_path / "none"), str(place))


# ---- from a store


def test_an_image_of_a_store_becomes_a_base_that_knows_where_it_came_from(storage: LocalStorage, place: Path) -> None:
    content = os.urandom(200_000)
    base = storage.fetch_base(stored(content, algorithms=["sha512", "sha256"]), str(place))
    assert Path(base.path).read_bytes() == content
    assert base.images == {STORE: "1"}
    assert base.digests == {name: hashlib.new(name, content).hexdigest() for name in ("sha256", "sha512")}
    assert storage.base_facts(base.path) == base
    assert stat.S_IMODE(os.stat(base.path).st_mode) == 0o644


@pytest.mark.parametrize("algorithms", [["sha256"], ["sha512"], ["md5", "sha512"]])
def test_a_base_that_is_there_is_used_without_reading_the_image(
    storage: LocalStorage, place: Path, algorithms: list[str]
) -> None:
    content = os.urandom(200_000)
    base = storage.fetch_base(stored(content, algorithms=["sha256", "sha512"]), str(place))
    again = storage.fetch_base(stored(content, algorithms=algorithms, sent=never), str(place))
    assert again.path == base.path
    assert len(bases(place)) == 2


def test_the_same_content_in_two_stores_is_one_base_that_both_know(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    content = source.read_bytes()
    base = storage.fetch_base(file_source(source), str(place))
    storage.fetch_base(stored(content, images={"one": "1"}, sent=never), str(place))
    # This store tells no hash that is known: it is read once, and known from then on.
    told = storage.fetch_base(stored(content, image="2", algorithms=["sha512"], images={"two": "2"}), str(place))
    storage.fetch_base(stored(content, image="3", algorithms=["sha512"], images={"two": "3"}, sent=never), str(place))
    assert told.path == base.path
    assert set(told.digests) == {"sha256", "sha512"}
    facts = storage.base_facts(base.path)
    assert facts
    assert facts.images == {"one": "1", "two": "3"}
    assert len(bases(place)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sent": lambda: [b"y" * 1000]}, "is damaged: it has 1000 bytes with the sha256"),
        ({"sent": lambda: [b"x" * 999]}, "is damaged: it has 999 bytes"),
        ({"sent": list}, "is damaged: it has 0 bytes"),
        ({"sent": lambda: [b"x" * 999], "algorithms": ["sha512"]}, "and should have 1000 bytes"),
    ],
)
def test_what_is_not_what_the_store_tells_is_refused_and_leaves_nothing(
    storage: LocalStorage, place: Path, changes: dict[str, t.Any], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        storage.fetch_base(stored(b"x" * 1000, **changes), str(place))
    assert bases(place) == []


def test_what_the_inspector_refuses_leaves_nothing(storage: LocalStorage, place: Path) -> None:
    def inspect(path: str) -> int:
        assert Path(path).read_bytes() == b"x" * 1000
        raise Invalid("It has a backing file.")

    with pytest.raises(Invalid, match="It has a backing file"):
        storage.fetch_base(stored(b"x" * 1000, inspect=inspect), str(place))
    assert bases(place) == []


def test_a_store_that_fails_half_way_leaves_nothing(storage: LocalStorage, place: Path) -> None:
    def sent() -> t.Iterator[bytes]:
        yield b"x" * 500
        raise NotFound("The image is gone.")

    with pytest.raises(NotFound, match="The image is gone"):
        storage.fetch_base(stored(b"x" * 1000, sent=sent), str(place))
    assert bases(place) == []
    storage.fetch_base(stored(b"x" * 1000), str(place))


def test_what_does_not_fit_is_not_begun(
    storage: LocalStorage, place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda _directory: 2 * MIB)
    with pytest.raises(NoSpace, match=r"5\.0 MiB are needed and 2\.0 MiB are free") as caught:
        storage.fetch_base(stored(bytes(5 * MIB), sent=never), str(place))
    assert caught.value.details == {"needed": 5 * MIB, "free": 2 * MIB}
    # Of a file with holes only what is in it counts.
    with source.open("wb") as file:
        file.truncate(64 * MIB)
    storage.fetch_base(file_source(source), str(place))


def test_two_images_are_fetched_side_by_side_and_one_only_once(storage: LocalStorage, place: Path) -> None:
    begun = {name: threading.Event() for name in "ab"}
    times: list[str] = []

    def sent(name: str, other: str) -> t.Iterator[bytes]:
        times.append(name)
        begun[name].set()
        assert begun[other].wait(20)
        yield name.encode() * 1000

    def wanted(name: str, other: str) -> Source:
        return stored(name.encode() * 1000, image=name, sent=lambda: sent(name, other))

    with ThreadPoolExecutor(6) as pool:
        orders = [("a", "b"), ("b", "a")] * 3
        found = list(pool.map(lambda order: storage.fetch_base(wanted(*order), str(place)).path, orders))
    assert sorted(times) == ["a", "b"]
    assert len(set(found)) == 2
    assert len(bases(place)) == 4


def test_a_fetch_that_is_killed_leaves_nothing_that_counts_and_any_other_one_cleans_up(
    storage: LocalStorage, place: Path, source: Path
) -> None:
    with child("store", "", str(place)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "half\n"
        # While it lives its part is left alone.
        storage.fetch_base(file_source(source), str(place))
        left = set(bases(place)) - {f"{sha256(source)}.raw", f"{sha256(source)}.raw.ok"}
        assert sorted(name.rpartition(".")[2] for name in left) == ["lock", "part"]
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    storage.fetch_base(stored(b"other", image="other"), str(place))
    assert len(bases(place)) == 4
    assert all(name.endswith((".raw", ".ok")) for name in bases(place))
    assert Path(storage.fetch_base(stored(b"x" * (1 << 17)), str(place)).path).read_bytes() == b"x" * (1 << 17)


def test_another_host_is_noted_in_the_marker(storage: LocalStorage, place: Path) -> None:
    base = storage.fetch_base(stored(b"x"), str(place))
    before = os.stat(f"{base.path}.ok")
    os.utime(f"{base.path}.ok", (1, 1))
    storage.fetch_base(stored(b"x", sent=never), str(place))
    after = os.stat(f"{base.path}.ok")
    assert (after.st_ino, after.st_mtime > 1) == (before.st_ino, True)  # used now, and nothing new to write
    other = LocalStorage("kvm2")
    other.fetch_base(stored(b"x", sent=never), str(place))
    other.close()
    assert marker(base)["hosts"] == ["kvm1", "kvm2"]


# ---- deltas


def qcow2(path: Path, size: int, *writes: str) -> bytes:
    """A qcow2 image without a backing file."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    for write in writes:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, str(path)], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


def virtual_size(_path: str) -> int:
    return 4 * MIB


def content_of(path: str) -> bytes:
    """The disk in a qcow2 file, with what it builds upon."""
    flat = f"{path}.flat"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, flat], check=True)
    content = Path(flat).read_bytes()
    os.unlink(flat)
    return content


def chain(tmp_path: Path) -> tuple[Source, Source, Source]:
    """A whole image, a delta upon it, and one upon that."""
    whole = qcow2(tmp_path / "0", 4 * MIB, "write -P 1 0 64k", "write -P 1 1M 64k", "write -P 1 2M 64k")
    one = qcow2(tmp_path / "1", 4 * MIB, "write -P 2 1M 64k", "write -P 2 2M 64k")
    two = qcow2(tmp_path / "2", 4 * MIB, "write -P 3 2M 64k")
    lowest = stored(whole, image="0", image_format="qcow2", inspect=virtual_size)
    middle = stored(one, image="1", image_format="qcow2", inspect=virtual_size, parent=lowest)
    return lowest, middle, stored(two, image="2", image_format="qcow2", inspect=virtual_size, parent=middle)


def test_a_delta_is_composed_with_what_it_lies_upon(storage: LocalStorage, place: Path, tmp_path: Path) -> None:
    lowest, middle, top = chain(tmp_path)
    base = storage.fetch_base(top, str(place))
    content = content_of(base.path)
    assert [content[offset] for offset in (0, 1 * MIB, 2 * MIB, 3 * MIB)] == [1, 2, 3, 0]
    parent = storage.base_facts(base.parent)
    assert parent
    assert (base.sha256, parent.sha256) == (top.digests["sha256"], middle.digests["sha256"])
    root = storage.base_facts(parent.parent)
    assert root
    assert (root.sha256, root.parent) == (lowest.digests["sha256"], "")
    assert len(bases(place)) == 6
    # Names in headers are relative, and formats are told.
    told = json.loads(
        subprocess.run(
            ["qemu-img", "info", "-f", "qcow2", "--output", "json", base.path], check=True, capture_output=True
        ).stdout
    )
    assert told["backing-filename"] == os.path.basename(parent.path)
    assert told["backing-filename-format"] == "qcow2"


def test_a_delta_that_is_there_is_not_read_again_and_not_taken_for_a_whole_image(
    storage: LocalStorage, place: Path, tmp_path: Path
) -> None:
    lowest, middle, top = chain(tmp_path)
    base = storage.fetch_base(top, str(place))
    unread = stored(b"", sent=never).read
    lowest = replace(lowest, read=unread)
    middle = replace(middle, read=unread, parent=lowest)
    assert storage.fetch_base(replace(top, read=unread, parent=middle), str(place)) == base
    alone = storage.fetch_base(
        stored((tmp_path / "2").read_bytes(), image="2", image_format="qcow2", inspect=virtual_size), str(place)
    )
    assert alone.path != base.path
    assert (alone.parent, alone.sha256) == ("", base.sha256)


# ---- hashes of other files


def test_the_hash_of_a_file_in_no_cache_is_remembered_by_its_identity(
    storage: LocalStorage, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MEMO", f"{tmp_path}/c/memo")
    assert storage.digest(str(source)) == sha256(source)
    assert storage.base_facts(str(source)) is None
    known = sha256(source)
    rewritten(source, bytes(source.stat().st_size))
    assert storage.digest(str(source)) == known
    source.write_bytes(b"other")
    assert storage.digest(str(source)) == sha256(source)
    with pytest.raises(NotFound):
        storage.digest(str(tmp_path / "none"))


def test_a_hash_that_may_not_be_written_down_is_told_all_the_same(
    storage: LocalStorage, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(local, "make_directory", denied)
    assert storage.digest(str(source)) == sha256(source)
