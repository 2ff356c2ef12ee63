# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logs that are rotated, copied, emptied and lost while they are read; and a console that is listened to."""

from __future__ import annotations

import os
import threading
import typing as t
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Busy,
    LifecycleError,
    NoSpace,
    NotFound,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import consoles
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.consoles import Log, Terminal, screenshot
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.console import FINGERPRINT, Position
from tests.unit.hypervisor import Hypervisor


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a log is, with two files that were rotated away."""
    for hour, (name, content) in enumerate((("log.1", b"one\n"), ("log.0", b"two\n"), ("log", b"three\n"))):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (0, 3600 * hour))
    return tmp_path / "log"


def mark(log: Path, place: int) -> Position:
    """The position of that place."""
    with Log(str(log)) as opened:
        return opened.position(place, uuid="u", run=1)


def rest(log: Path, position: Position, *, anew: bool = False, complete: bool = True) -> bytes:
    """What comes after a position."""
    with Log(str(log)) as opened:
        place, same = opened.find(position, anew=anew)
        assert same == complete
        return opened.read(place, opened.size)


def rotate(log: Path, content: bytes) -> None:
    """As virtlogd does it, which keeps three."""
    for number in (1, 0):
        os.replace(f"{log}.{number}", f"{log}.{number + 1}")
    os.replace(log, f"{log}.0")
    log.write_bytes(content)


def test_all_files_are_one_log(log: Path) -> None:
    with Log(str(log)) as opened:
        assert (opened.there, opened.size) == (True, 14)
        assert opened.read(0, 14) == b"one\ntwo\nthree\n"
        assert opened.read(2, 9) == b"e\ntwo\nt"
        assert opened.read(14, 20) == b""


def test_logrotate_begins_with_one(tmp_path: Path) -> None:
    (tmp_path / "log.2").write_bytes(b"one\n")
    (tmp_path / "log.1").write_bytes(b"two\n")
    (tmp_path / "log.4").write_bytes(b"of something else")
    with Log(str(tmp_path / "log")) as opened:
        assert opened.read(0, opened.size) == b"one\ntwo\n"


def test_there_may_be_no_file(tmp_path: Path) -> None:
    with Log(str(tmp_path / "log")) as opened:
        assert (opened.there, opened.size, opened.read(0, 9)) == (False, 0, b"")
        position = opened.position(0, uuid="u", run=-1)
        assert (position, opened.find(position)) == (Position("u", -1), (0, True))


@pytest.mark.parametrize("place", range(15))
def test_every_place_is_found_again_after_a_rotation(log: Path, place: int) -> None:
    position = mark(log, place)
    assert rest(log, position) == b"one\ntwo\nthree\n"[place:]
    rotate(log, b"four\n")
    assert rest(log, position) == b"one\ntwo\nthree\nfour\n"[place:]


def test_a_file_that_is_gone_gives_its_number_to_another(log: Path) -> None:
    position = mark(log, 1)
    inode = os.stat(f"{log}.1").st_ino
    rotate(log, b"four\n")
    rotate(log, b"five\n")
    assert rest(log, replace(position, inode=os.stat(log).st_ino), complete=False) == b"two\nthree\nfour\nfive\n"
    assert position.inode == inode


def test_a_file_that_was_copied_and_emptied_is_found_by_what_stood_in_it(log: Path) -> None:
    position = mark(log, 10)
    copy = log.read_bytes()
    rotate(log, b"")
    os.replace(f"{log}.0", log)
    Path(f"{log}.0").write_bytes(copy)
    log.write_bytes(b"four\n")
    assert rest(log, position) == b"ree\nfour\n"


def test_a_file_that_was_emptied_is_read_from_its_beginning(log: Path) -> None:
    position = mark(log, 14)
    log.write_bytes(b"new\n")
    assert rest(log, position, complete=False) == b"new\n"
    log.write_bytes(b"other\nand more\n")
    assert rest(log, position, complete=False) == b"other\nand more\n"
    log.write_bytes(b"three\n")
    assert rest(log, position) == b""  # nothing tells
    assert rest(log, position, anew=True, complete=False) == b"three\n"
    rotate(log, b"four\n")
    assert rest(log, position, anew=True, complete=False) == b"three\nfour\n"


def test_what_was_written_into_an_empty_file_comes_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    os.utime(path, (0, 0))
    position = mark(path, 0)
    assert rest(path, position) == b""
    path.write_bytes(b"one\n")
    assert rest(path, position) == b"one\n"


def test_what_stood_long_before_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" + bytes(FINGERPRINT + 1))
    position = mark(path, FINGERPRINT + 2)
    with path.open("r+b") as file:
        file.write(b"b")
    assert rest(path, position) == b""
    with path.open("r+b") as file:
        file.seek(2)
        file.write(b"b")
    assert rest(path, position, complete=False) == path.read_bytes()


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LifecycleError, match="no regular file"):
        Log(str(tmp_path))
    os.mkfifo(tmp_path / "log.0")
    (tmp_path / "log").touch()
    with pytest.raises(LifecycleError, match="no regular file"):
        Log(str(tmp_path / "log"))
    assert len(os.listdir("/proc/self/fd")) == before


class Stream:
    """What libvirt gives of a console, piece by piece, until it is aborted."""

    def __init__(self, pieces: list[bytes], error: str = "") -> None:
        self.pieces = pieces
        self.error = error
        self.aborted = threading.Event()

    def newStream(self, flags: int) -> Stream:  # noqa: N802 - as libvirt calls it
        assert flags == 0  # a recv() that does not wait would need a quick event loop
        return self

    def openConsole(self, name: None, stream: Stream, flags: int) -> None:  # noqa: N802
        assert (name, stream, flags) == (None, self, 0)
        if self.error:
            raise libvirt.libvirtError(self.error)

    def recv(self, _size: int) -> bytes:
        if not self.pieces:
            self.aborted.wait(60)
            raise libvirt.libvirtError("stream is closed")
        return self.pieces.pop(0)

    def abort(self) -> None:
        self.aborted.set()


def guest_of(kvm: Hypervisor, stream: Stream) -> t.Any:
    """A VM with that console."""
    kvm.define("web1")
    guest = kvm.guest()
    guest.host.connection, guest.domain = t.cast("t.Any", stream), stream
    return guest


def heard(terminal: Terminal) -> t.Iterator[bytes | None]:
    """What is read of it until it is closed."""
    while (said := terminal.read()) != b"":
        yield said


def test_a_console_is_read_until_it_is_closed(kvm: Hypervisor) -> None:
    with Terminal(guest_of(kvm, Stream([b"boot", b"ing", b"", b"more"]))) as terminal:
        assert b"".join(said or b"" for said in heard(terminal)) == b"booting"


def test_a_console_that_is_silent_has_nothing_yet(kvm: Hypervisor) -> None:
    stream = Stream([])
    with Terminal(guest_of(kvm, stream)) as terminal:
        assert terminal.read() is None
    assert stream.aborted.is_set()
    assert set(heard(terminal)) <= {None}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Active console session exists for this domain", Busy),
        ("operation failed: PTY device is not yet assigned", NotFound),
        ("no console", LifecycleError),
    ],
)
def test_why_a_console_cannot_be_opened_is_told_apart(kvm: Hypervisor, said: str, kind: type[LifecycleError]) -> None:
    with pytest.raises(kind) as caught:
        Terminal(guest_of(kvm, Stream([], error=said)))
    assert caught.type is kind


def test_a_picture_comes_whole_or_not_at_all(kvm: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm.define("web1")
    picture = screenshot(kvm.guest())
    assert picture.startswith(b"\x89PNG")
    monkeypatch.setattr(consoles, "MAX_PICTURE", len(picture) - 1)
    with pytest.raises(NoSpace, match="web1"):
        screenshot(kvm.guest())
