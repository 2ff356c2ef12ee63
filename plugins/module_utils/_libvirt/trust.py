# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Whether this machine's certificates are good, found out by TLS itself: it talks to itself with them."""

from __future__ import annotations

import hashlib
import ssl
import typing as t

from .._model.preflight import Paper

# A handshake takes two turns of each side; more is no handshake.
_TURNS = 8

Refusal = tuple[str, str]


def authorities(path: str) -> list[str]:
    """The sha256 of each certificate in a file of authorities; none when it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read()
        parts = [part for part in text.split("-----BEGIN CERTIFICATE-----")[1:] if "-----END CERTIFICATE-----" in part]
        return [
            hashlib.sha256(
                ssl.PEM_cert_to_DER_cert(
                    f"-----BEGIN CERTIFICATE-----{part.split('-----END')[0]}-----END CERTIFICATE-----"
                )
            ).hexdigest()
            for part in parts
        ]
    except (OSError, ValueError):
        return []


def refusals(papers: t.Sequence[Paper], names: t.Sequence[str]) -> list[dict[str, str]]:
    """Which of the certificates that are there TLS refuses, and why; by purpose and role.

    :param papers: Of this machine. Those of a purpose that are not complete are left out: that is told elsewhere.
    :param names: Under which other hosts reach this one.
    """
    found = []
    for purpose in ("libvirt", "qemu"):
        mine = {paper.role: paper for paper in papers if paper.purpose == purpose and paper.certificate is not None}
        if len(mine) < 3 or any(paper.missing for paper in mine.values()):
            continue
        for name in names or [""]:
            refused = _refused(mine, name)
            if refused is not None:
                found.append({"purpose": purpose, "role": refused[0], "problem": refused[1]})
                break
    return found


def _refused(papers: t.Mapping[str, Paper], name: str) -> Refusal | None:
    """A handshake in memory of this machine with itself: who is refused, and why.

    :param name: For which the server's certificate has to be; empty for any.
    """
    role = "authority"
    try:
        sides = {}
        for role, kind in (("server", ssl.PROTOCOL_TLS_SERVER), ("client", ssl.PROTOCOL_TLS_CLIENT)):
            context = ssl.SSLContext(kind)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(papers["authority"].path)
            context.load_cert_chain(papers[role].path, papers[role].key)
            sides[role] = context
    except (OSError, ssl.SSLError) as exc:
        return role, _reason(exc)
    sides["client"].check_hostname = bool(name)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = sides["client"].wrap_bio(down, up, server_hostname=name or None)
    server = sides["server"].wrap_bio(up, down, server_side=True)
    for _turn in range(_TURNS):
        # Who looks at a certificate refuses the other's.
        for looks, other in ((client, "server"), (server, "client")):
            try:
                looks.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as exc:
                return other, _reason(exc)
    return None


def _reason(exc: OSError) -> str:
    return str(getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or exc.strerror or exc)
