# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One operation at a time on one VM, between threads, processes and users."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Busy, Denied
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.lock import hold, holder, key_of

NOBODY = 65534
WHAT = {"action": "delete", "since": "2026-01-01T00:00:00Z", "pid": 4711}
TOLD = {"name": "web1", **WHAT}

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

HOLDER = """
import sys, time
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import lock
lock.DIRECTORY = sys.argv[1]
with lock.hold("a", {"action": "delete", "since": "2026-01-01T00:00:00Z", "pid": 4711}, name="web1"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process(directory: Path) -> t.Iterator[subprocess.Popen[str]]:
    """A process that holds the lock "a" until it is killed."""
    above = Path(lock.__file__).resolve().parents[3]
    (found, *_rest) = (path for path in sys.path if (Path(path) / "ansible_collections/kvmops/lifecycle").is_dir())
    assert (Path(found) / "ansible_collections/kvmops/lifecycle").resolve() == above
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": found},
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def as_nobody() -> t.Iterator[None]:
    """The body as a user that may do nothing in particular."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Path]:
    """A directory for locks that every user reaches."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        directory = Path(place) / "locks"
        monkeypatch.setattr(lock, "DIRECTORY", str(directory))
        yield directory


def take(key: str = "a") -> str:
    """Try for the lock."""
    try:
        with hold(key, {"action": "start"}, name="web1"):
            return "held"
    except Busy:
        return "busy"


def test_who_holds_it_is_told_while_it_is_held_and_not_after() -> None:
    assert holder("a") is None
    with hold("a", WHAT, name="web1"):
        assert holder("a") == TOLD
        assert holder("b") is None
    assert holder("a") is None


def test_who_gets_on_with_it_is_still_the_same() -> None:
    with hold("a", WHAT, name="web1") as tell:
        seen = holder("a")
        assert seen is not None
        tell({"percent": 50})
        assert holder("a") != seen
        assert lock.is_still("a", seen)
        assert not lock.is_still("b", seen)
    assert not lock.is_still("a", seen)
    with hold("a", {**WHAT, "pid": 4712}, name="web1"):
        assert not lock.is_still("a", seen)


def test_another_thread_is_refused_and_told_who_holds_it() -> None:
    with hold("a", WHAT, name="web1"), ThreadPoolExecutor(1) as pool, pytest.raises(Busy) as caught:
        pool.submit(take_or_raise).result()
    error = caught.value
    assert error.code == "busy"
    assert error.details == {"running": TOLD}
    assert str(error) == (
        "VM web1 is busy: delete has been running since 2026-01-01T00:00:00Z (process 4711)."
        " Run the task again when it has ended."
    )


def take_or_raise() -> None:
    with hold("a", {"action": "start"}, name="web1"):
        raise AssertionError("both hold it")


def test_another_process_is_refused_and_one_that_is_killed_lets_go(lock_directory: Path) -> None:
    with another_process(lock_directory) as process:
        assert take() == "busy"
        assert holder("a") == TOLD
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert holder("a") is None
        assert take() == "held"


def test_the_lock_of_one_vm_is_not_that_of_another() -> None:
    with hold("a", WHAT, name="web1"):
        assert take("b") == "held"


def test_of_many_threads_one_at_a_time_is_inside() -> None:
    inside, most, guard = 0, 0, threading.Lock()

    def attempt(_number: int) -> None:
        nonlocal inside, most
        with contextlib.suppress(Busy), hold("a", {"action": "start"}, name="web1"):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(400)))
    assert most == 1


def test_it_is_freed_when_the_work_fails() -> None:
    def work() -> None:
        with hold("a", WHAT, name="web1"):
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert take() == "held"


def test_asking_who_holds_it_never_takes_it() -> None:
    assert take() == "held"  # so that there is a file
    stop = threading.Event()
    refused = []

    def ask() -> None:
        while not stop.is_set():
            holder("a")

    asking = [threading.Thread(target=ask) for _thread in range(4)]
    for thread in asking:
        thread.start()
    try:
        refused = [answer for answer in (take() for _attempt in range(300)) if answer != "held"]
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert refused == []


def test_what_a_holder_leaves_behind_is_not_told_of_the_next(lock_directory: Path) -> None:
    with hold("a", {**WHAT, "action": "a very long name of an action"}, name="web1"):
        pass
    with hold("a", {"action": "start"}, name="web1"):
        assert holder("a") == {"name": "web1", "action": "start"}
    assert (lock_directory / "a.lock").read_bytes() == b""


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 4096])
def test_a_holder_that_says_garbage_is_a_holder_all_the_same(lock_directory: Path, garbage: bytes) -> None:
    with hold("a", WHAT, name="web1"):
        (lock_directory / "a.lock").write_bytes(garbage)
        assert holder("a") == {}
        with pytest.raises(Busy, match="another operation has been running since an unknown time"):
            take_or_raise()


def test_everyone_may_use_the_directory_and_its_files_whatever_the_umask(lock_directory: Path) -> None:
    before = os.umask(0o077)
    try:
        assert take() == "held"
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock_directory.stat().st_mode) == 0o1777
    assert stat.S_IMODE((lock_directory / "a.lock").stat().st_mode) == 0o666


@only_root
def test_the_file_of_another_user_serves_as_well(common: Path) -> None:
    with as_nobody(), contextlib.suppress(Denied):
        take()  # may not make the directory
    assert take("b") == "held"
    with as_nobody():
        assert take("a") == "held"
        assert take("b") == "held"
    assert (common / "a.lock").stat().st_uid == NOBODY
    assert (common / "b.lock").stat().st_uid == 0
    assert take("a") == "held"
    with hold("a", WHAT, name="web1"), as_nobody():
        assert holder("a") == TOLD
        assert take("a") == "busy"


@only_root
def test_a_directory_that_may_not_be_written_is_denied(common: Path) -> None:
    common.mkdir(mode=0o755)
    with as_nobody(), pytest.raises(Denied, match=r"Failed to open the lock file .*/a\.lock: Permission denied\."):
        take_or_raise()


def test_a_directory_that_cannot_be_made_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(lock, "DIRECTORY", str(tmp_path / "file" / "locks"))
    with pytest.raises(Denied, match="Not a directory"):
        take_or_raise()
    assert holder("a") is None


def test_a_symbolic_link_is_not_followed(lock_directory: Path, tmp_path: Path) -> None:
    lock_directory.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (lock_directory / "a.lock").symlink_to(victim)
    with pytest.raises(Denied, match="symbolic links"):
        take_or_raise()
    assert holder("a") is None
    (lock_directory / "b.lock").symlink_to(tmp_path / "new")
    with pytest.raises(Denied):
        take("b")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()


def test_keys_are_safe_as_names_of_files_and_tell_hosts_and_vms_apart() -> None:
    names = ["web1", "web2", "../../etc/passwd", "a/b", "", "x" * 5000, "größe"]
    keys = {key_of(host, name) for host in ("kvm1", "kvm2") for name in names}
    assert len(keys) == 2 * len(names)
    assert all(key.isalnum() and len(key) == 32 for key in keys)
    assert key_of("kvm1", "web1") == key_of("kvm1", "web1")


def test_a_holder_tells_the_task_that_it_works_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lock.TASK, "4f1d")
    with hold("a", WHAT, name="web1") as tell:
        tell({"percent": 3})
        assert holder("a") == {**TOLD, "task": "4f1d", "progress": {"percent": 3}}
