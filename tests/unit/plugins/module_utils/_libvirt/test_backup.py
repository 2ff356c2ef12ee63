# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a guest is held for the point in time, and let go whatever happens. The jobs themselves need the lab."""

from __future__ import annotations

import contextlib
import typing as t
import xml.etree.ElementTree as ET

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, Unreachable
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import backup
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.backup import Backup, BackupOrder
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guard import FREEZE, PAUSE
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.host import Host
from tests.unit.fakes import FakeGuest, JumpingClock


class AgentGuest(FakeGuest):
    """A guest with an agent.

    :param freezes: How many file systems it freezes; ``None`` when it does not answer within 20 seconds.
    :param thaws_itself: Whether it gives up the freeze by itself.
    """

    def __init__(self, clock: JumpingClock, *, freezes: int | None = 2, thaws_itself: bool = False) -> None:
        super().__init__("running", clock, agent_after=0)
        self.host = Host.__new__(Host)
        self.host.uri = "test:///x"
        self.domain = None
        self.freezes = freezes
        self.thaws_itself = thaws_itself
        self.frozen = 0
        self.timeout = -2

    def set_agent_timeout(self, seconds: int) -> None:
        self.timeout = seconds

    def freeze(self) -> int:
        self._need("freeze", "running")
        self.clock.sleep(0.1 if self.freezes is not None else self.timeout)
        if self.freezes is None:
            raise Unreachable("Failed to freeze the file systems of VM web1: no answer.")
        self.frozen = self.freezes
        return self.frozen

    def thaw(self) -> int:
        self._need("thaw", "running")
        self.clock.sleep(0.1)
        thawed, self.frozen = (0 if self.thaws_itself else self.frozen), 0
        return thawed


class Debts:
    """What the guard was told.

    :ivar owed: At the end.
    :ivar told: In order.
    """

    def __init__(self, uri: str, uuid: str) -> None:
        assert uri == "test:///x"
        self.owed: set[str] = set()
        self.told: list[str] = []

    def wait(self) -> None:
        assert not self.told

    def owe(self, debt: str) -> None:
        self.owed.add(debt)
        self.told.append(f"+{debt}")

    def paid(self, debt: str) -> None:
        self.owed.discard(debt)
        self.told.append(f"-{debt}")

    def __enter__(self) -> Debts:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[Debts]:
    """Those that were begun."""
    begun: list[Debts] = []

    def begin(uri: str, uuid: str) -> Debts:
        begun.append(Debts(uri, uuid))
        return begun[-1]

    monkeypatch.setattr(backup, "Guard", begin)
    return begun


def hold(
    guest: AgentGuest, quiesce: str = "required", *, pause: bool = False, fails: bool = False, seconds: float = 0.3
) -> backup.Held:
    """Hold the guest while something takes so many seconds."""
    with Backup(guest, guest.clock).held(quiesce=quiesce, pause=pause, timeout=20) as held:
        guest.clock.sleep(seconds)
        assert bool(guest.frozen) == (quiesce != "never" and guest.freezes is not None)
        assert guest.condition == ("paused" if pause else "running")
        if fails:
            raise LifecycleError("no job")
    return held


def let_go(guest: AgentGuest) -> bool:
    return guest.frozen == 0 and guest.condition == "running" and guest.timeout > 0


def test_a_guest_is_frozen_for_the_moment_alone(clock: JumpingClock, guards: list[Debts]) -> None:
    guest = AgentGuest(clock)
    held = hold(guest)
    assert (held.quiesced, held.why, held.milliseconds) == (True, "", 500)
    assert let_go(guest)
    assert guards[0].told == ["+freeze", "-freeze"]


def test_cpus_are_stopped_within_the_freeze(clock: JumpingClock, guards: list[Debts]) -> None:
    guest = AgentGuest(clock)
    assert hold(guest, pause=True).milliseconds == 500
    assert let_go(guest)
    assert guards[0].told == ["+freeze", "+pause", "-pause", "-freeze"]
    held = hold(guest, "never", pause=True)
    assert (held.quiesced, held.milliseconds) == (False, 300)
    assert guards[1].told == ["+pause", "-pause"]


def test_a_guest_that_need_not_be_held_is_not(clock: JumpingClock, guards: list[Debts]) -> None:
    held = hold(AgentGuest(clock), "never")
    assert (held.quiesced, held.milliseconds, guards) == (False, 0, [])


@pytest.mark.parametrize("pause", [False, True])
def test_a_guest_is_let_go_when_the_job_cannot_begin(clock: JumpingClock, guards: list[Debts], pause: bool) -> None:
    guest = AgentGuest(clock)
    with pytest.raises(LifecycleError, match="no job"):
        hold(guest, pause=pause, fails=True)
    assert let_go(guest)
    assert guards[0].owed == set()


def test_an_agent_that_is_not_there_is_told_and_owes_nothing(clock: JumpingClock, guards: list[Debts]) -> None:
    guest = AgentGuest(clock, freezes=None)
    guest.agent_after = None
    held = hold(guest, "preferred")
    assert (held.quiesced, held.milliseconds) == (False, 0)
    assert "has no guest agent" in held.why
    assert guards[0].told == []
    with pytest.raises(Unreachable, match="has no guest agent"):
        hold(guest)


def test_an_agent_that_does_not_answer_in_time_may_freeze_later_and_is_left_to_the_guard(
    clock: JumpingClock, guards: list[Debts]
) -> None:
    guest = AgentGuest(clock, freezes=None)
    held = hold(guest, "preferred")
    assert (held.quiesced, held.milliseconds) == (False, 0)
    assert "no answer" in held.why
    assert guards[0].owed == {FREEZE}
    with pytest.raises(Unreachable, match="no answer"):
        hold(guest)
    assert guards[1].owed == {FREEZE}
    assert clock.seconds > 40
    assert guest.timeout > 0


@pytest.mark.parametrize("quiesce", ["preferred", "required"])
def test_a_guest_that_thawed_by_itself_was_not_quiesced(clock: JumpingClock, guards: list[Debts], quiesce: str) -> None:
    guest = AgentGuest(clock, thaws_itself=True)
    with pytest.raises(Unreachable) if quiesce == "required" else contextlib.nullcontext():
        held = hold(guest, quiesce)
        assert not held.quiesced
        assert held.why == "of 2 file systems that were frozen only 0 still were afterwards."
        assert held.milliseconds == 500
    assert guards[0].owed == set()


@pytest.mark.parametrize("what", ["thaw", "resume"])
def test_what_we_cannot_let_go_is_left_to_the_guard(clock: JumpingClock, guards: list[Debts], what: str) -> None:
    guest = AgentGuest(clock)
    guest.refuses = {what: "libvirtd is down"}
    with pytest.raises(LifecycleError):
        hold(guest, pause=True)
    assert guards[0].owed >= {FREEZE if what == "thaw" else PAUSE}


def test_a_thaw_to_be_sure_minds_no_agent_that_hangs(clock: JumpingClock) -> None:
    guest = AgentGuest(clock)
    guest.frozen = 2
    Backup(guest, clock).thaw()
    assert guest.frozen == 0
    guest.condition = "paused"
    with pytest.raises(LifecycleError, match="is paused"):
        Backup(guest, clock).thaw()


# ---- the job


class Domain:
    """What libvirt tells of a job."""

    def __init__(self, told: t.Any) -> None:
        self.told = told

    def backupGetXMLDesc(self) -> str:  # noqa: N802 - libvirt's name
        if isinstance(self.told, int):
            exc = libvirt.libvirtError("it went wrong")
            exc.err = (self.told, 10, "it went wrong", libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
            raise exc
        return str(self.told)


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("<domainbackup mode='pull'><server transport='unix' socket='/run/x/kvmops-1'/></domainbackup>", True),
        ("<domainbackup mode='pull'><server transport='unix' socket='/run/kvmops-1/theirs'/></domainbackup>", False),
        ("<domainbackup mode='pull'><server name='localhost' port='10809'/></domainbackup>", False),
        ("<domainbackup mode='push'/>", False),
        (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, False),
        (libvirt.VIR_ERR_OPERATION_INVALID, False),
        (libvirt.VIR_ERR_NO_DOMAIN, False),
    ],
)
def test_a_job_of_others_is_none_of_ours(clock: JumpingClock, told: t.Any, ours: bool) -> None:
    guest = AgentGuest(clock)
    job = Backup(guest, clock)
    job.domain = Domain(told)
    assert job.running() == ours
    if not ours:
        job.end()  # which Domain could not


def test_a_job_that_cannot_be_asked_about_is_an_error(clock: JumpingClock) -> None:
    job = Backup(AgentGuest(clock), clock)
    job.domain = Domain(libvirt.VIR_ERR_RPC)
    with pytest.raises(Unreachable, match="look at the backup job of VM web1"):
        job.running()


def test_the_order_names_every_disk_that_is_copied_and_no_other() -> None:
    order = BackupOrder("run", {"vda": "/s/<a>&.scratch", "vdb": "/s/b"}, since="before", checkpoint="now")
    root = ET.fromstring(Backup._xml(order, "/run/kvmops-run"))
    assert root.get("mode") == "pull"
    assert root.findtext("incremental") == "before"
    server = root.find("server")
    assert server is not None
    assert server.attrib == {"transport": "unix", "socket": "/run/kvmops-run"}
    disks = {disk.get("name"): disk for disk in root.iterfind("disks/disk")}
    assert list(disks) == ["vda", "vdb"]
    scratch = disks["vda"].find("scratch")
    assert scratch is not None
    assert scratch.get("file") == "/s/<a>&.scratch"
    assert ET.fromstring(Backup._xml(BackupOrder("run", {}), "/s")).find("incremental") is None
