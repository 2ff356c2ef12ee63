# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Whether a machine answers in any way. One that refuses a connection lives."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import typing as t

from .._core.errors import Invalid, NotFound
from .._core.workers import spread

Result = dict[str, t.Any]

# Seconds between two echo requests.
_AGAIN = 0.5
_ECHO = {socket.AF_INET: (8, 0, socket.IPPROTO_ICMP), socket.AF_INET6: (128, 129, socket.IPPROTO_ICMPV6)}


def probe(params: t.Mapping[str, t.Any]) -> Result:
    """Try everything at once.

    :raises NotFound: An address is unknown: silence would prove nothing.
    """
    if params["timeout"] <= 0:
        raise Invalid(f"timeout is {params['timeout']:g} seconds.", hint="Say a positive number.")
    addresses = [found for word in params["address"] for found in _resolve(word)]
    tries = [(kind, address, port) for kind, address in addresses for port in (None, *params["ports"])]
    told = spread(lambda each: _try(*each, params["timeout"]), tries, workers=len(tries))
    answers = [answer for answer in told if answer["how"] not in ("silent", "not tried")]
    return {"answers": bool(answers), "answered": answers, "tried": told}


def _resolve(word: str) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(word, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise NotFound(
            f"The address of {word} is not known here: {exc}.", hint="Say the address in place of the name."
        ) from exc
    return sorted({(int(kind), str(address[0])) for kind, _type, _protocol, _name, address in found})


def _try(kind: int, address: str, port: int | None, timeout: float) -> Result:
    how = _ping(kind, address, timeout) if port is None else _connect(kind, address, port, timeout)
    return {"address": address, "by": "ping" if port is None else f"tcp {port}", "how": how}


def _connect(kind: int, address: str, port: int, timeout: float) -> str:
    with socket.socket(kind, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"
        except OSError:  # nobody answered, or a router says that nobody does
            return "silent"
    return "accepted"


def _ping(kind: int, address: str, timeout: float) -> str:
    """Echo requests (RFC 792, RFC 4443). Who may not send any, has not tried."""
    request, reply, protocol = _ECHO[socket.AddressFamily(kind)]
    try:
        sender = socket.socket(kind, socket.SOCK_DGRAM, protocol)
    except OSError:
        try:
            sender = socket.socket(kind, socket.SOCK_RAW, protocol)
        except OSError:
            return "not tried"
    mark = os.urandom(16)
    deadline = time.monotonic() + timeout
    with sender:
        number = 0
        while (left := deadline - time.monotonic()) > 0:
            number += 1
            body = struct.pack("!HH", os.getpid() & 0xFFFF, number) + mark
            packet = struct.pack("!BBH", request, 0, _checksum(struct.pack("!BBH", request, 0, 0) + body)) + body
            with contextlib.suppress(OSError):  # no route is no answer
                sender.sendto(packet, (address, 0))
            sender.settimeout(min(_AGAIN, left))
            if _answered(sender, mark, reply):
                return "answered"
    return "silent"


def _answered(sender: socket.socket, mark: bytes, reply: int) -> bool:
    """Whether the answer comes before the next request is due. The kernel shows a raw socket the IP header, and what
    we sent to ourselves."""
    end = time.monotonic() + (sender.gettimeout() or 0)
    while (left := end - time.monotonic()) > 0:
        sender.settimeout(left)
        try:
            packet = sender.recv(2048)
        except OSError:
            time.sleep(max(0.0, min(end - time.monotonic(), 0.05)))
            continue
        header = (packet[0] & 0x0F) * 4 if packet and packet[0] >> 4 == 4 and packet[0] != reply else 0
        if mark in packet and packet[header] == reply:
            return True
    return False


def _checksum(packet: bytes) -> int:
    """Of the internet (RFC 1071)."""
    words = struct.unpack(f"!{len(packet) // 2}H", packet)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
