# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tokens, read back with the public key alone."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from jwcrypto import jwk, jwt

from ansible_collections.kvmops.lifecycle.plugins.module_utils._console import Ticket, sign, token
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Unsupported

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
TICKET = Ticket.of("web1", "127.0.0.1", 5900, NOW, 600)


def pem(key: jwk.JWK, *, private: bool = True, password: bytes | None = None) -> str:
    """The key as text."""
    return str(key.export_to_pem(private_key=private, password=password).decode())


def test_the_public_key_proves_what_a_token_says() -> None:
    key = jwk.JWK.generate(kty="EC", crv="P-256")
    public = jwk.JWK.from_pem(pem(key, private=False).encode())
    found = jwt.JWT(algs=["ES256"], check_claims={"aud": "kvmops-console"})
    found.leeway = 10**10  # it expired long ago
    found.deserialize(sign(TICKET, pem(key)), public)
    claims = json.loads(found.claims)
    assert len(claims.pop("jti")) == 36
    assert claims == {
        "iss": "kvmops.lifecycle",
        "aud": "kvmops-console",
        "sub": "web1",
        "host": "127.0.0.1",
        "port": 5900,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 600,
    }
    assert json.loads(found.header) == {"alg": "ES256", "typ": "JWT"}
    with pytest.raises(jwt.JWTExpired):
        jwt.JWT(jwt=sign(TICKET, pem(key)), key=public, algs=["ES256"])


def test_no_two_tokens_are_the_same() -> None:
    assert TICKET.claims()["jti"] != TICKET.claims()["jti"]


EC = jwk.JWK.generate(kty="EC", crv="P-256")
KEYS = {
    "public": pem(EC, private=False),
    "with a password": pem(EC, password=b"secret"),
    "of another curve": pem(jwk.JWK.generate(kty="EC", crv="P-384")),
    "of another kind": pem(jwk.JWK.generate(kty="OKP", crv="Ed25519")),
    "cut": pem(EC)[:80],
    "no key": "SECRETLINE",
    "empty": "",
    "no text": "\udcff",
}


@pytest.mark.parametrize("what", KEYS)
def test_another_key_is_refused_and_not_quoted(what: str) -> None:
    with pytest.raises(Invalid, match="P-256") as caught:
        sign(TICKET, KEYS[what])
    lines = [line for line in KEYS[what].splitlines() if line and not line.startswith("-----")]
    assert not any(line in str(caught.value) for line in lines)


def test_who_has_no_jwcrypto_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token, "jwk", None)
    with pytest.raises(Unsupported, match="python3-jwcrypto"):
        sign(TICKET, KEYS["public"])
