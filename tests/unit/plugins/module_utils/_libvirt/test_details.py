# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What guests tell through their agents, however much of it an agent can or may tell."""

from __future__ import annotations

import typing as t

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, TimedOut, Unreachable
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.details import Details
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import AGENT_USUAL, Guest

ANSWERS: dict[int, dict[str, t.Any]] = {
    libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME: {"hostname": "web1"},
    libvirt.VIR_DOMAIN_GUEST_INFO_OS: {"os.id": "debian"},
    libvirt.VIR_DOMAIN_GUEST_INFO_INTERFACES: {"if.count": 0},
    libvirt.VIR_DOMAIN_GUEST_INFO_FILESYSTEM: {"fs.count": 0},
}


def error(code: int) -> libvirt.libvirtError:
    """What libvirt raises."""
    exc = libvirt.libvirtError("no")
    exc.err = (code, 10, "the agent says no", libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
    return exc


class Agent:
    """A domain with an agent, as libvirt's binding shows it.

    :param pings: libvirt's error code when it is asked for the time.
    :param refuses: What it does not tell, with libvirt's error code for that.
    """

    def __init__(self, *, pings: int = libvirt.VIR_ERR_OK, **refuses: int) -> None:
        self.pings = pings
        self.refuses = {getattr(libvirt, f"VIR_DOMAIN_GUEST_INFO_{kind}"): code for kind, code in refuses.items()}
        self.seconds: list[int] = []
        self.limits: list[int] = []

    def name(self) -> str:
        return "web1"

    def UUIDString(self) -> str:  # noqa: N802
        return "11111111-1111-4111-8111-111111111111"

    def agentSetResponseTimeout(self, seconds: int, _flags: int) -> None:  # noqa: N802
        self.seconds.append(seconds)

    def getTime(self) -> dict[str, int]:  # noqa: N802
        self.limits.append(self.seconds[-1])
        if self.pings != libvirt.VIR_ERR_OK:
            raise error(self.pings)
        return {"seconds": 1}

    def guestInfo(self, kinds: int, _flags: int) -> dict[str, t.Any]:  # noqa: N802
        self.limits.append(self.seconds[-1])
        told: dict[str, t.Any] = {}
        for kind, answer in ANSWERS.items():
            if kinds & kind and kind in self.refuses:
                raise error(self.refuses[kind])
            if kinds & kind:
                told.update(answer)
        return told


def guest(agent: Agent) -> Guest:
    """The guest with that agent."""
    return Guest(t.cast("t.Any", None), agent)


def test_an_agent_tells_all_in_one_go() -> None:
    agent = Agent()
    assert Details(guest(agent)).agent(patience=7) == ({k: v for a in ANSWERS.values() for k, v in a.items()}, [])
    assert agent.limits == [7, 7]
    assert agent.seconds == [7, AGENT_USUAL]


def test_an_old_agent_tells_what_it_can() -> None:
    agent = Agent(OS=libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
    told, refused = Details(guest(agent)).agent(patience=7)
    assert told == {"hostname": "web1", "if.count": 0, "fs.count": 0}
    assert refused == []


def test_what_an_agent_may_not_tell_is_a_problem_of_that_alone() -> None:
    agent = Agent(FILESYSTEM=libvirt.VIR_ERR_INTERNAL_ERROR)
    told, refused = Details(guest(agent)).agent(patience=7)
    assert told == {"hostname": "web1", "os.id": "debian", "if.count": 0}
    assert refused == ["Failed to ask the guest agent of VM web1: the agent says no."]
    assert agent.seconds == [7, AGENT_USUAL]


@pytest.mark.parametrize(
    ("code", "kind"),
    [("AGENT_UNRESPONSIVE", "unreachable"), ("AGENT_UNSYNCED", "unreachable"), ("OPERATION_TIMEOUT", "timed_out")],
)
def test_an_agent_that_does_not_answer_is_asked_once_and_libvirt_does_not_wait_for_ever(code: str, kind: str) -> None:
    agent = Agent(pings=getattr(libvirt, f"VIR_ERR_{code}"))
    for ask in (lambda: Details(guest(agent)).agent(patience=0), lambda: guest(agent).system(patience=0)):
        agent.limits.clear()
        with pytest.raises(LifecycleError) as caught:
            ask()
        assert caught.value.code == kind
        assert agent.limits == [1]
        assert agent.seconds[-1] == AGENT_USUAL
    assert not guest(agent).agent_answers()


@pytest.mark.parametrize("code", ["AGENT_UNRESPONSIVE", "OPERATION_TIMEOUT"])
def test_an_agent_that_stops_answering_in_the_middle_is_not_taken_for_one_that_refuses(code: str) -> None:
    agent = Agent(OS=getattr(libvirt, f"VIR_ERR_{code}"))
    for ask in (lambda: Details(guest(agent)).agent(patience=7), lambda: guest(agent).system(patience=7)):
        with pytest.raises((Unreachable, TimedOut)):
            ask()


def test_an_agent_that_refuses_to_tell_the_time_answers() -> None:
    agent = Agent(pings=libvirt.VIR_ERR_INTERNAL_ERROR)
    assert guest(agent).agent_answers()
    assert guest(agent).system(patience=7) == "debian"


def test_the_system_is_known_by_its_identifier_or_not_at_all() -> None:
    assert guest(Agent()).system(patience=7) == "debian"
    assert guest(Agent(OS=libvirt.VIR_ERR_INTERNAL_ERROR)).system(patience=7) == ""
