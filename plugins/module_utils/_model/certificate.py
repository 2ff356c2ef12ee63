# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What an X.509 certificate says of itself (RFC 5280): whose it is, by whom, from when to when.

That is all that is wanted, and Python's standard library tells it of certificates of authorities only. Nothing is
verified here: whether a signature is right, TLS itself finds out.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone

from .._core.errors import Invalid

# Tags of DER (X.690)
_UTC_TIME, _GENERALIZED_TIME, _EXTENSIONS, _VERSION = 0x17, 0x18, 0xA3, 0xA0
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
# Object identifiers, as they are encoded
_COMMON_NAME, _ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x1d\x11"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")


@dataclass(frozen=True)
class Certificate:
    """A certificate.

    :param subject: The common name of its owner; empty without one.
    :param issuer: That of who signed it.
    :param names: Host names and addresses that it is for.
    :param owner_id: All of the owner's name as it is encoded, and ``issuer_id`` of the issuer's: who signed a
        certificate has the one for the other.
    """

    subject: str
    issuer: str
    begins: datetime
    ends: datetime
    names: tuple[str, ...] = ()
    owner_id: bytes = b""
    issuer_id: bytes = b""

    def valid_at(self, moment: datetime) -> bool:
        """Whether *moment* is within its time."""
        return self.begins <= moment <= self.ends


def read_certificates(text: str) -> list[Certificate]:
    """All certificates in a file in PEM.

    :raises Invalid: There is none, or one cannot be read.
    """
    found = []
    for match in _PEM.finditer(text):
        try:
            found.append(_read(base64.b64decode(match[1])))
        except (binascii.Error, IndexError, ValueError) as exc:
            raise Invalid(f"A certificate cannot be read: {exc}.") from exc
    if not found:
        raise Invalid("There is no certificate in it.")
    return found


def _next(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element: its tag, its content, and what follows.

    :raises ValueError: It is cut off.
    """
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < start + length:
        raise ValueError("it is cut off")
    return data[0], data[start : start + length], data[start + length :]


def _children(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    while data:
        tag, content, data = _next(data)
        yield tag, content


def _read(der: bytes) -> Certificate:
    _tag, certificate, _rest = _next(der)
    _tag, signed, _rest = _next(certificate)
    fields = list(_children(signed))
    if fields[0][0] == _VERSION:  # the version is left out in the oldest
        fields = fields[1:]
    _serial, _algorithm, (_t1, issuer), (_t2, validity), (_t3, subject) = fields[:5]
    begins, ends = (_moment(tag, content) for tag, content in _children(validity))
    names: tuple[str, ...] = ()
    for tag, content in fields[5:]:
        if tag == _EXTENSIONS:
            names = tuple(_names(content))
    return Certificate(_common_name(subject), _common_name(issuer), begins, ends, names, subject, issuer)


def _moment(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # years 50 to 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a time is none")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _common_name(name: bytes) -> str:
    for _tag, part in _children(name):
        for _tag2, pair in _children(part):
            (_t1, kind), (_t2, value) = _children(pair)
            if kind == _COMMON_NAME:
                return value.decode("utf-8", "replace")
    return ""


def _names(extensions: bytes) -> t.Iterator[str]:
    _tag, listed, _rest = _next(extensions)
    for _tag2, extension in _children(listed):
        parts = list(_children(extension))
        if parts[0][1] != _ALTERNATIVE_NAMES:
            continue
        _tag3, alternatives, _rest = _next(parts[-1][1])
        for kind, value in _children(alternatives):
            if kind == _DNS_NAME:
                yield value.decode("ascii", "replace")
            elif kind == _IP_ADDRESS:
                yield str(ipaddress.ip_address(value))
