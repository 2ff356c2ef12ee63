# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Tokens that open one console at the console proxy: JSON Web Tokens (RFC 7519), signed with ES256.

Who has the private key makes them; the proxy has the public key only, and no list that it would have to be told of.
"""

from __future__ import annotations

import typing as t
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from jwcrypto import jwk, jwt
    from jwcrypto.common import JWException
except ImportError:  # told when a token is made
    jwk = None

from .._core.errors import Invalid, Unsupported

ISSUER = "kvmops.lifecycle"
AUDIENCE = "kvmops-console"
# An EC key on the curve P-256, which is what ES256 signs with (RFC 7518, 3.4).
_CURVE = ("EC", "P-256")


@dataclass(frozen=True)
class Ticket:
    """What a token says.

    :param vm: The VM's name, for the proxy's log.
    :param host: The address at which the VM's display server listens, as the proxy reaches it.
    :param expires: When the token is of no use any more.
    """

    vm: str
    host: str
    port: int
    issued: datetime
    expires: datetime

    @classmethod
    def of(cls, vm: str, host: str, port: int, now: datetime, ttl: int) -> Ticket:
        """One that is good for *ttl* seconds."""
        return cls(vm, host, port, now, now + timedelta(seconds=ttl))

    def claims(self) -> dict[str, t.Any]:
        """In the token's words. The identifier is of this call, so that the proxy can let each token in only once."""
        return {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": self.vm,
            "host": self.host,
            "port": self.port,
            "iat": int(self.issued.timestamp()),
            "exp": int(self.expires.timestamp()),
            "jti": str(uuid.uuid4()),
        }


def sign(ticket: Ticket, key: str) -> str:
    """The token for *ticket*.

    :param key: The private key, PEM text. It is in no error.
    :raises Invalid: It is no private key for ES256.
    :raises Unsupported: jwcrypto is missing.
    """
    if jwk is None:
        raise Unsupported(
            "Failed to sign a token for the console proxy: the Python library jwcrypto is missing.",
            hint="Install it on the machine on which the module runs (package python3-jwcrypto).",
        )
    token = jwt.JWT(header={"alg": "ES256", "typ": "JWT"}, claims=ticket.claims())
    token.make_signed_token(_read(key))
    return str(token.serialize())


def _read(key: str) -> t.Any:
    try:
        found = jwk.JWK.from_pem(key.encode())
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm, JWException):  # what they say may quote the key
        found = None
    if found is None or (found.get("kty"), found.get("crv")) != _CURVE or not found.has_private:
        raise Invalid(
            "Failed to sign a token for the console proxy: proxy.key is no private key on the curve P-256, in PEM"
            " and without a password.",
            hint="Make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256.",
        )
    return found
