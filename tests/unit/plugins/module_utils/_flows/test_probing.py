# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a machine answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, NotFound
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import probing


def ask(*ports: int, address: str = "127.0.0.1", timeout: float = 5.0) -> dict[str, t.Any]:
    """What the probe tells."""
    return probing.probe({"address": [address], "ports": list(ports), "timeout": timeout})


def test_a_connection_counts_and_so_does_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_ping", lambda *_words: "silent")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert ask(port)["answered"] == [{"address": "127.0.0.1", "by": f"tcp {port}", "how": "accepted"}]
    assert ask(port)["answered"] == [{"address": "127.0.0.1", "by": f"tcp {port}", "how": "refused"}]


def test_an_echo_counts() -> None:
    told = ask()
    assert told["tried"][0]["how"] in ("answered", "not tried")
    assert told["answers"] == (told["tried"][0]["how"] == "answered")


def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: socket.socket, address: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(probing, "_ping", lambda *_words: "not tried")
    monkeypatch.setattr(probing.socket.socket, "connect", silent)
    assert ask(22) == {
        "answers": False,
        "answered": [],
        "tried": [
            {"address": "127.0.0.1", "by": "ping", "how": "not tried"},
            {"address": "127.0.0.1", "by": "tcp 22", "how": "silent"},
        ],
    }


def test_a_name_that_is_not_known_proves_nothing() -> None:
    with pytest.raises(NotFound, match=r"no-such-host\.invalid is not known here"):
        ask(address="no-such-host.invalid")
    with pytest.raises(Invalid, match=r"timeout is 0"):
        ask(timeout=0)


def test_the_checksum_is_that_of_the_internet() -> None:
    packet = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    whole = struct.pack("!BBHHH", 8, 0, probing._checksum(packet), 1, 1)
    assert probing._checksum(whole) == 0
