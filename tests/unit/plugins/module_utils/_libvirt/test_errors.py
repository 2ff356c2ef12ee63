# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's errors as ours."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import errors
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.errors import code_of, doing, translate

CODES = {name[1:]: value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}


def error(code: int, text: str = "it went wrong") -> libvirt.libvirtError:
    """What libvirt raises."""
    libvirt.virResetLastError()
    exc = libvirt.libvirtError(text)
    exc.err = (code, 10, text, libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
    return exc


@pytest.fixture
def connection() -> Iterator[t.Any]:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def test_our_numbers_are_those_of_libvirt() -> None:
    assert len(CODES) > 15
    assert {name: getattr(libvirt, f"VIR_ERR_{name}") for name in CODES} == CODES


KINDS = {
    "not_found": "NO_DOMAIN NO_STORAGE_POOL NO_STORAGE_VOL NO_NETWORK",
    "denied": "OPERATION_DENIED ACCESS_DENIED AUTH_FAILED AUTH_CANCELLED AUTH_UNAVAILABLE",
    "timed_out": "OPERATION_TIMEOUT",
    "unsupported": "NO_SUPPORT OPERATION_UNSUPPORTED CONFIG_UNSUPPORTED",
    "unreachable": "AGENT_UNRESPONSIVE AGENT_UNSYNCED NO_CONNECT INVALID_CONN RPC",
    "busy": "RESOURCE_BUSY",
    "failed": "INTERNAL_ERROR OPERATION_INVALID OPERATION_FAILED SYSTEM_ERROR XML_ERROR",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names.split()])
def test_a_code_of_libvirt_is_a_kind_of_ours(kind: str, name: str) -> None:
    code = getattr(libvirt, f"VIR_ERR_{name}")
    found = translate(error(code), "start VM web1")
    assert found.code == kind
    assert found.message == "Failed to start VM web1: it went wrong."
    assert found.details == {"libvirt_code": code}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("denied", "Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied"),
        ("denied", "authentication unavailable: no polkit agent available to authenticate action"),
        ("unreachable", "Failed to connect socket to '/run/libvirt/libvirt-sock': No such file or directory"),
        ("unreachable", "unable to connect to server at 'kvm1:16509': Connection refused"),
        ("unreachable", "unable to resolve address 'kvm1' service '16509': Name or service not known"),
        ("unreachable", "Cannot recv data: Connection reset by peer"),
        ("unreachable", "Cannot send data: Broken pipe"),
        ("unreachable", "Cannot write data: Broken pipe"),
        ("unreachable", "End of file while reading data: Input/output error"),
        ("unreachable", "internal error: client socket is closed"),
        ("unreachable", "internal error: connection closed due to keepalive timeout"),
        ("no_space", "Unable to write to file: No space left on device"),
        ("no_space", "internal error: process exited: cannot set up guest memory 'pc.ram': Cannot allocate memory"),
        ("failed", "internal error: process exited while connecting to monitor"),
    ],
)
def test_where_the_code_is_a_general_one_the_text_tells(kind: str, text: str) -> None:
    for code in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR):
        found = translate(error(code, text), "talk to kvm1")
        assert found.code == kind
        assert found.message == f"Failed to talk to kvm1: {text}."
        assert bool(found.hint) == (kind != "failed")


def test_an_agent_that_does_not_answer_is_told_from_a_lost_connection() -> None:
    assert "guest agent" in translate(error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE), "x").hint
    assert "libvirtd" in translate(error(libvirt.VIR_ERR_NO_CONNECT), "x").hint


def test_a_sentence_has_one_full_stop() -> None:
    assert translate(error(1, "it went wrong."), "x").message == "Failed to x: it went wrong."


def test_an_error_without_a_number_or_a_text_is_told_all_the_same() -> None:
    libvirt.virResetLastError()
    exc = libvirt.libvirtError("no connection")
    assert code_of(exc) == 0
    assert translate(exc, "x").message == "Failed to x: no connection."
    assert translate(OSError("odd"), "x").message == "Failed to x: odd."
    assert code_of(OSError("odd")) == 0


def look_up(connection: t.Any) -> None:
    with doing("look up VM none"):
        connection.lookupByName("none")


def test_a_real_error_is_translated_where_it_is_met_and_keeps_its_cause(connection: t.Any) -> None:
    with pytest.raises(LifecycleError, match=r"^Failed to look up VM none: Domain not found") as caught:
        look_up(connection)
    assert caught.value.code == "not_found"
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)


def test_other_errors_are_let_pass() -> None:
    with pytest.raises(KeyError), doing("x"):
        raise KeyError
