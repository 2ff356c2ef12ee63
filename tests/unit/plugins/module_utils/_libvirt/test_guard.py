# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guard: a real process, with a libvirt of our own in place of libvirt's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import guard
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guard import FREEZE, PAUSE, Guard

UUID = "11111111-1111-4111-8111-111111111111"
SOCKET = "/run/domain-1/kvmops-mine"

# What it does is told by files beside it: `calls` is written, `fails` has a line "CALL CODE" for each call that fails,
# once; `job` is the socket of the job that runs, `state` the state and reason.
LIBVIRT = """
import io, os
VIR_ERR_OPERATION_INVALID, VIR_ERR_NO_DOMAIN, VIR_ERR_NO_DOMAIN_BACKUP, UNRESPONSIVE = 55, 42, 104, 86
VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_USER, VIR_DOMAIN_PAUSED_UNKNOWN, VIR_DOMAIN_PAUSED_IOERROR = 3, 1, 0, 5
HERE = os.path.dirname(__file__)

class libvirtError(Exception):
    def get_error_code(self):
        return self.args[0]

def told(name):
    try:
        with io.open(os.path.join(HERE, name)) as file:
            return file.read()
    except FileNotFoundError:
        return ""

def call(name, *about):
    with io.open(os.path.join(HERE, "calls"), "a") as file:
        file.write(" ".join([name, *map(str, about)]) + "\\n")
    lines = told("fails").splitlines()
    for line in lines:
        if line.split()[0] == name:
            lines.remove(line)
            with io.open(os.path.join(HERE, "fails"), "w") as file:
                file.write("\\n".join(lines))
            raise libvirtError(int(line.split()[1]))

class Domain:
    def state(self):
        return [int(word) for word in (told("state") or "1 1").split()]
    def backupGetXMLDesc(self):
        if not told("job"):
            raise libvirtError(VIR_ERR_NO_DOMAIN_BACKUP)
        return "<domainbackup><server socket='" + told("job") + "'/></domainbackup>"
    def abortJob(self):
        call("abort")
    def resume(self):
        call("resume")
    def fsThaw(self):
        call("thaw")
    def agentSetResponseTimeout(self, seconds):
        call("timeout", seconds)

class Connection:
    def lookupByUUIDString(self, uuid):
        call("lookup", uuid)
        return Domain()
    def close(self):
        pass

def open(uri):
    call("open", uri)
    return Connection()

def registerErrorHandler(function, context):
    pass
"""


class World:
    """The files that tell the libvirt of our own what to do."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.set("libvirt.py", LIBVIRT)

    def set(self, name: str, text: str) -> None:
        (self.place / name).write_text(text)

    def calls(self) -> list[str]:
        """What was called, without how it was got at."""
        told = self.place / "calls"
        lines = told.read_text().splitlines() if told.exists() else []
        return [line for line in lines if line.split()[0] not in ("open", "lookup", "timeout")]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return World(tmp_path)


def ended(guard_: Guard, seconds: float = 20) -> int:
    """Its exit code."""
    return guard_._process.wait(seconds)


def test_what_is_owed_is_paid_at_the_end_and_what_was_paid_is_not(world: World) -> None:
    world.set("state", "3 1")
    with Guard("test:///x", UUID) as paid:
        paid.owe(FREEZE)
        paid.owe(PAUSE)
        paid.paid(FREEZE)
        paid.paid(PAUSE)
    assert ended(paid) == 0
    assert not (world.place / "calls").exists()
    with Guard("test:///x", UUID) as owing:
        owing.owe(FREEZE)
        owing.owe(PAUSE)
    assert ended(owing) == 0
    assert world.calls() == ["resume", "thaw"]
    told = (world.place / "calls").read_text().splitlines()
    assert told[:2] == ["open test:///x", f"lookup {UUID}"]
    # The agent is not left with the little time that it has for this.
    assert [line for line in told if line.startswith("timeout")] == ["timeout 5", "timeout 600"]


def test_a_file_of_no_use_is_removed_and_one_that_was_used_up_is_not(world: World, tmp_path: Path) -> None:
    world.set("fails", "lookup 42")  # the VM is gone, too
    with Guard("test:///x", UUID) as owing:
        for name in ("useless", "used", "never"):
            if name != "never":
                (tmp_path / name).touch()
            owing.owe(guard.file(str(tmp_path / name)))
        owing.paid(guard.file(str(tmp_path / "used")))
        owing.owe(PAUSE)
    assert ended(owing) == 0
    assert [(tmp_path / name).exists() for name in ("useless", "used", "never")] == [False, True, False]


def test_only_our_own_job_is_ended(world: World) -> None:
    for job, calls in (("", []), ("/run/domain-1/theirs", []), (SOCKET, ["abort"])):
        world.set("job", job)
        with Guard("test:///x", UUID) as owing:
            owing.owe(guard.job(SOCKET))
        assert ended(owing) == 0
        assert world.calls() == calls


@pytest.mark.parametrize(("state", "calls"), [("3 5", ["abort", "resume"]), ("3 1", ["abort"]), ("1 1", ["abort"])])
def test_a_guest_that_waits_for_room_in_a_scratch_file_goes_on(world: World, state: str, calls: list[str]) -> None:
    world.set("state", state)
    world.set("job", SOCKET)
    with Guard("test:///x", UUID) as owing:
        owing.owe(guard.job(SOCKET))
    assert ended(owing) == 0
    assert world.calls() == calls


def test_a_guest_that_runs_by_now_is_not_resumed(world: World) -> None:
    with Guard("test:///x", UUID) as owing:
        owing.owe(PAUSE)
    assert ended(owing) == 0
    assert world.calls() == []


def test_it_is_tried_again_until_it_works(world: World) -> None:
    world.set("fails", "open 38\nthaw 86\nlookup 1")
    with Guard("test:///x", UUID) as owing:
        owing.owe(FREEZE)
    assert ended(owing) == 0
    assert world.calls() == ["thaw", "thaw"]


@pytest.mark.parametrize("failure", ["lookup 42", "thaw 55"])
def test_a_vm_that_is_off_or_gone_owes_nothing(world: World, failure: str) -> None:
    world.set("fails", failure)
    with Guard("test:///x", UUID) as owing:
        owing.owe(FREEZE)
    assert ended(owing) == 0
    assert len(world.calls()) <= 1


def test_it_outlives_the_process_that_is_killed_and_its_group(world: World) -> None:
    program = (
        "import os, sys, time\n"
        "from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guard import Guard\n"
        f"guard = Guard('test:///x', '{UUID}')\n"
        "guard.owe('freeze')\n"
        "print(guard._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    path = os.pathsep.join([str(world.place), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert int(process.stdout.readline())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    end = time.monotonic() + 20
    while world.calls() != ["thaw"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_owes_does_not_wait_for_it_and_who_owes_nothing_finds_it_ended(world: World) -> None:
    world.set("fails", "thaw 86\n" * 3)
    began = time.monotonic()
    with Guard("test:///x", UUID) as owing:
        owing.owe(FREEZE)
    assert owing._process.poll() is None
    assert time.monotonic() - began < 5
    assert ended(owing) == 0
    with Guard("test:///x", UUID) as paid:
        pass
    assert paid._process.poll() == 0
