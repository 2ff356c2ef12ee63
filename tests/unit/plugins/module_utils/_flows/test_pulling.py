# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for the data of a VM that runs on its shelf: jobs that fail, guests that stand still, stores that are
away."""

from __future__ import annotations

import time
import typing as t
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    LifecycleError,
    TimedOut,
    Unreachable,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import pulling
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.pulling import Damaged, Pulling
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import TextContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.bases import Base
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.pull import Job
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.snapshot import Member
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.unshelve import Began, Piece
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject
from tests.unit.fakes import FakeGuest, JumpingClock

FILE, OVERLAY, BASE = "/i/a.qcow2", "/i/a-pulled.qcow2", "/i/_base/b.qcow2"


class Clock(JumpingClock):
    """Lets the threads beside us run, too."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        time.sleep(0.002)


class Machine:
    """QEMU, with one disk. A job takes four looks.

    :param fails: How many jobs end too early, and whether the guest then stands still.
    :param lost: At how many looks libvirtd is away.
    :param refuses: How many jobs it does not begin.
    """

    def __init__(
        self, *, late: bool = False, fails: int = 0, stops: bool = False, lost: int = 0, refuses: int = 0
    ) -> None:
        self.disk = Disk("vda", "virtio", "disk", Image("file", OVERLAY if late else FILE, "qcow2"))
        below = ("/s/delta", "/s/base") if late else ("/s/delta", BASE)
        self.disk = replace(self.disk, backing=tuple(Image("file", each, "qcow2") for each in below), chain_known=True)
        self.fails, self.stops, self.lost, self.refuses = fails, stops, lost, refuses
        self.left = 0
        self.copying = ""
        self.log: list[str] = []
        self.guest: t.Any = None
        self.stopped = False

    def disks(self) -> dict[str, Disk]:
        if self.lost:
            self.lost -= 1
            raise Unreachable("Failed to look at VM web1: end of file while reading data.")
        return {"vda": self.disk}

    def job(self, target: str) -> Job | None:
        if not self.left:
            return None
        self.left -= 1
        if self.left:
            return Job(4 - self.left, 4, bool(self.copying) and self.left == 1, 0)
        if self.copying:
            self.left = 1  # it follows what the guest writes
            return Job(4, 4, True, 0)
        if self.fails:
            self.fails -= 1
            self.stopped = self.stops
        else:
            self.disk = replace(self.disk, backing=self.disk.backing[1:])
        return None

    def begin(self, disk: Disk, keep: int, bandwidth: int) -> None:
        self.log.append(f"begin {keep}")
        if self.refuses:
            self.refuses -= 1
            raise LifecycleError("Failed to pull the data of disk vda of VM web1: it is already in active block job.")
        self.left = 4

    def copy(self, target: str, path: str, bandwidth: int) -> None:
        self.log.append(f"copy {path}")
        self.copying, self.left = path, 4

    def pivot(self, target: str, path: str) -> None:
        self.log.append(f"pivot {path}")
        self.disk = replace(self.disk, image=replace(self.disk.image, source=path), backing=self.disk.backing[1:])
        self.copying, self.left = "", 0

    def set_speed(self, target: str, bandwidth: int) -> None:
        self.log.append(f"speed {bandwidth}")

    def stopped_by_error(self) -> bool:
        return self.stopped

    def resume(self) -> None:
        self.log.append("resume")
        self.stopped = False


class Files:
    """The host's storage, as far as it is wanted here."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def remove(self, path: str) -> bool:
        self.log.append(f"remove {path}")
        return False

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        self.log.append(f"make {path} {base.path}")


class HostThere:
    """A host whose libvirtd comes back."""

    def __init__(self, guest: t.Any) -> None:
        self.guest = guest

    def reconnect(self, *, timeout: float) -> None:
        """It answers."""

    def guest_of(self, _uuid: str) -> t.Any:
        return self.guest


def stored(tmp_path: Path) -> tuple[DirectoryStore, Member]:
    store = DirectoryStore(str(tmp_path))
    image = store.put(NewImage(str(uuid.uuid4()), "a", "raw"), TextContent(b"data" * 1000))
    return store, Member("disk", image.id, image.size, image.digests["sha256"], "vda")


def work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Machine, *, late: bool = False, **options: t.Any
) -> Pulling:
    clock = Clock()
    guest: t.Any = FakeGuest("running", clock)
    guest.active = lambda: True
    guest.resume = machine.resume
    machine.guest = guest
    monkeypatch.setattr(pulling, "Pull", lambda _guest: machine)
    store, member = stored(tmp_path)
    params = {"bandwidth": 0, "wait_timeout": 100, **options}
    host: t.Any = HostThere(guest)
    files: t.Any = Files(machine.log)
    context = Context(host, params, clock, files, {"store": store})
    piece = Piece("vda", "delta", ("base",), FILE, OVERLAY if late else FILE, 64, 8, "/i")
    began = Began("set", ("claim",), "directory", str(tmp_path), "instant", "running", (piece,))
    return Pulling(
        context,
        Subject("web1", guest),
        began,
        expose=lambda: machine.log.append("expose"),
        members=[member],
        fetch={"vda": lambda: Base(BASE, "qcow2", "", 1, 1)} if late else {},
    )


def test_the_data_above_the_base_are_pulled_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine()
    figures = work(monkeypatch, tmp_path, machine).finish()
    assert machine.log == ["begin 1"]
    assert (figures["pulled_bytes"], figures["read_bytes"]) == (8, 4000)


def test_what_was_begun_by_another_run_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine()
    pull = work(monkeypatch, tmp_path, machine)
    pull.begin()
    pull.begin()
    pull.finish()
    assert machine.log == ["begin 1"]


def test_a_disk_whose_base_comes_is_copied_upon_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(late=True)
    figures = work(monkeypatch, tmp_path, machine, late=True).finish()
    assert machine.log == ["begin 1", f"remove {FILE}", f"make {FILE} {BASE}", f"copy {FILE}", f"pivot {FILE}"]
    assert figures["fetched"] == {"vda": BASE}


@pytest.mark.parametrize("stops", [False, True])
def test_a_job_that_fails_is_begun_again_when_the_store_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stops: bool
) -> None:
    machine = Machine(fails=2, stops=stops)
    work(monkeypatch, tmp_path, machine).finish()
    again = ["expose", "resume", "begin 1"] if stops else ["expose", "begin 1"]
    assert machine.log == ["begin 1", *again, *again]


def test_a_guest_is_not_let_go_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(fails=1, stops=True)
    pull = work(monkeypatch, tmp_path, machine)
    away = iter([True, True, False])

    def expose() -> None:
        machine.log.append("expose")
        if next(away):
            raise Unreachable("The store is away.")

    monkeypatch.setattr(pull, "_expose", expose)
    pull.finish()
    assert machine.log == ["begin 1", "expose", "expose", "expose", "resume", "begin 1"]


def test_patience_has_an_end_that_tells_the_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(fails=1)
    pull = work(monkeypatch, tmp_path, machine)

    def expose() -> None:
        raise Unreachable("The store is away.")

    monkeypatch.setattr(pull, "_expose", expose)
    with pytest.raises(TimedOut, match=r"100 seconds. The store is away.*Run the task again.*virsh destroy"):
        pull.finish()


def test_what_qemu_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(refuses=2)
    work(monkeypatch, tmp_path, machine).finish()
    assert machine.log == ["begin 1", "expose", "begin 1", "expose", "begin 1"]


def test_what_qemu_goes_on_to_refuse_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LifecycleError, match="already in active block job"):
        work(monkeypatch, tmp_path, Machine(refuses=1000)).finish()


def test_patience_with_qemu_begins_anew_when_it_has_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(fails=1)
    pull = work(monkeypatch, tmp_path, machine)
    pull.begin()
    pull._refused_since = -1000.0
    machine.refuses = 1
    pull.finish()
    assert machine.log == ["begin 1", "begin 1", "expose", "begin 1"]


def test_it_goes_on_when_libvirtd_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(lost=3)
    work(monkeypatch, tmp_path, machine).finish()
    assert machine.log == ["begin 1"]


def test_a_vm_that_goes_off_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine()
    pull = work(monkeypatch, tmp_path, machine)
    machine.guest.active = lambda: False
    with pytest.raises(LifecycleError, match="Nothing that the guest wrote is lost"):
        pull.finish()


def test_a_limit_is_given_to_a_job_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine()
    work(monkeypatch, tmp_path, machine, bandwidth=3).finish()
    assert f"speed {3 << 20}" in machine.log


def test_damage_in_the_store_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pull = work(monkeypatch, tmp_path, Machine())
    (content,) = tmp_path.glob("*.img")
    content.write_bytes(b"dada" * 1000)
    with pytest.raises(Damaged, match=content.name):
        pull.finish()
