# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""websockify's token plugin of the role console_proxy: a signed token opens one console, once, for a short time.

The module vm_console signs the tokens; they are JSON Web Tokens (RFC 7519) with ES256. The proxy has the public key,
and is told of no token before it is used. What it remembers is which ones were.

websockify loads this file by its name and forks for every connection, so it is one file, needs jwcrypto besides the
standard library, and keeps nothing in memory. Settings are read for every token: a change of them needs no restart.

Run as a program, it checks a file of settings: ``python3 kvmops_console.py settings.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import logging
import os
import re
import socket
import sys
import time
import typing as t
from pathlib import Path

from jwcrypto import jwk, jws
from jwcrypto.common import JWException

ISSUER = "kvmops.lifecycle"
AUDIENCE = "kvmops-console"
ALGORITHM = "ES256"
# What ES256 signs with (RFC 7518, 3.4).
CURVE = ("EC", "P-256")
# Seconds by which the clocks of who signs and of the proxy may differ.
SKEW = 10
# Header, claims and signature; what jwcrypto would take besides is another notation, with several signatures.
COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)

# websockify writes what comes to loggers below this one to its log.
log = logging.getLogger("websocket.kvmops_console")

Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class Refused(Exception):
    """The token opens nothing."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the role has written.

    :param key: The public key of who signs.
    :param networks: Where consoles may be, besides loopback.
    :param ports: The lowest and the highest port of a console.
    :param used: The directory that remembers which tokens were used.
    """

    key: jwk.JWK
    networks: tuple[Network, ...]
    ports: tuple[int, int]
    used: Path

    @classmethod
    def read(cls, path: str) -> Settings:
        """From a file.

        :raises ValueError: It says something that is none of this.
        """
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        key = jwk.JWK.from_pem(told["public_key"].encode())
        if (key.get("kty"), key.get("crv")) != CURVE:
            raise ValueError("the public key is not one on the curve P-256, which ES256 needs")
        if key.has_private:
            raise ValueError("this is a private key, and the proxy must not have it; give it the public one")
        first, last = told["ports"]
        if not 0 < first <= last < 1 << 16:
            raise ValueError(f"there are no ports from {first} to {last}")
        networks = tuple(ipaddress.ip_network(network) for network in told["networks"])
        return cls(key, networks, (first, last), Path(told["used"]))


@dataclasses.dataclass(frozen=True)
class Ticket:
    """What a token says.

    :param identifier: Unlike that of any other token.
    :param expires: When it is of no use any more, in seconds since 1970.
    """

    vm: str
    host: str
    port: int
    identifier: str
    expires: int


def verified(token: str, key: jwk.JWK) -> dict[str, t.Any]:
    """The claims of a token that was signed with *key*.

    :raises Refused: It was not, or is no token.
    """
    if not COMPACT.fullmatch(token):
        raise Refused("it is no signed token")
    signed = jws.JWS()
    signed.allowed_algs = [ALGORITHM]
    try:
        signed.deserialize(token, key)
        claims = json.loads(signed.payload)
    # jwcrypto lets errors of what it reads with through.
    except (JWException, ValueError, TypeError, KeyError) as exc:
        raise Refused("it was not signed by who may do that") from exc
    if not isinstance(claims, dict):
        raise Refused("it says nothing")
    return claims


def ticket(claims: t.Mapping[str, t.Any], ports: tuple[int, int], now: float) -> Ticket:
    """What signed *claims* say, when it is for this proxy, and now.

    :raises Refused: It is not.
    """
    if (claims.get("iss"), claims.get("aud")) != (ISSUER, AUDIENCE):
        raise Refused("it is for something else")
    vm, host, identifier = (_text(claims, name) for name in ("sub", "host", "jti"))
    port, expires = (_number(claims, name) for name in ("port", "exp"))
    if expires + SKEW <= now:
        raise Refused("it has expired")
    if any(_number(claims, name) - SKEW > now for name in ("iat", "nbf") if name in claims):
        raise Refused("its time has not come")
    if not ports[0] <= port <= ports[1]:
        raise Refused(f"port {port} is not one of a console")
    return Ticket(vm, host, port, identifier, expires)


def _text(claims: t.Mapping[str, t.Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"it has no {name}")
    return value


def _number(claims: t.Mapping[str, t.Any], name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(f"its {name} is no number")
    return value


def reachable(host: str, networks: t.Sequence[Network]) -> str:
    """The address behind *host*, when it is loopback or in one of the networks.

    It is an address that is returned, so that a name is looked up once and cannot mean something else afterwards.

    :raises Refused: It is elsewhere, or unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise Refused(f"there is no host {host!r}") from exc
    for *_kind, place in found:
        address = _plain(ipaddress.ip_address(place[0]))
        if address.is_loopback or any(address in network for network in networks):
            return str(address)
    raise Refused(f"host {host!r} is neither this one nor in a network that is allowed")


def _plain(address: Address) -> Address:
    """IPv4 also where it is written as IPv6, or one would be let in as the other."""
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address


def use(directory: Path, issued: Ticket, now: float) -> None:
    """Remember that a token was used. Of several who do that at the same time one succeeds.

    The name of the file says all, so that there is no moment in which half of it is known.

    :raises Refused: It was used before, or that cannot be known.
    """
    digest = hashlib.sha256(issued.identifier.encode("utf-8", "surrogatepass")).hexdigest()
    try:
        os.close(os.open(directory / f"{issued.expires}-{digest}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as exc:
        raise Refused("it was used before") from exc
    except OSError as exc:
        raise Refused(f"its use cannot be written down: {exc}") from exc
    prune(directory, now)


def prune(directory: Path, now: float) -> None:
    """Forget the tokens that are refused by now because they have expired."""
    for path in directory.iterdir():
        # What is not ours stays, and what cannot be removed goes another time.
        with contextlib.suppress(OSError, ValueError):
            if int(path.name.partition("-")[0]) + SKEW < now:
                path.unlink()


class Tokens:
    """What websockify asks: ``--token-plugin kvmops_console.Tokens --token-source settings.json``."""

    def __init__(self, source: str) -> None:
        self.source = source

    def lookup(self, token: str) -> tuple[str, int] | None:
        """Where the console is that the token opens; None when it opens none. The reason is in the log."""
        try:
            settings = Settings.read(self.source)
            now = time.time()
            issued = ticket(verified(token, settings.key), settings.ports, now)
            host = reachable(issued.host, settings.networks)
            use(settings.used, issued, now)
        except Refused as exc:
            log.warning("kvmops: a token was refused: %s", exc)
            return None
        except (OSError, ValueError, KeyError, TypeError, JWException) as exc:
            log.error("kvmops: a token was refused, as %s cannot be read: %s", self.source, exc)
            return None
        log.info("kvmops: %r opens the console of %r at %s port %d", issued.identifier, issued.vm, host, issued.port)
        return host, issued.port


def main(arguments: t.Sequence[str]) -> int:
    """Check settings, and say what is wrong with them."""
    try:
        Settings.read(*arguments)
    except (OSError, ValueError, KeyError, TypeError, JWException) as exc:
        sys.stderr.write(f"kvmops_console: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
