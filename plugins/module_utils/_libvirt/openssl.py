# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Keys and certificates, made by the program openssl: each function is one call of it. Keys go through files that only
root can read, or through a pipe."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import typing as t
import uuid

from .._core.errors import Invalid, LifecycleError, Unsupported

_SECONDS = 60
_CURVE = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
_ADDRESS = re.compile(r"[0-9.]+|.*:.*")


def _openssl(*words: str, doing: str, stdin: str = "", wrong: type[LifecycleError] = LifecycleError) -> str:
    try:
        done = subprocess.run(
            ["openssl", *words],
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as exc:
        raise Unsupported(f"Failed to {doing}: there is no program openssl.", hint="Install openssl there.") from exc
    except subprocess.TimeoutExpired as exc:
        raise LifecycleError(f"Failed to {doing}: openssl did not end within {_SECONDS} seconds.") from exc
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise wrong(f"Failed to {doing}: {lines[-1] if lines else f'openssl ended with {done.returncode}'}.")
    return str(done.stdout)


@contextlib.contextmanager
def _files(**contents: str) -> t.Iterator[dict[str, str]]:
    """Files that only root can read, for as long as the body lasts."""
    with tempfile.TemporaryDirectory(prefix="kvmops-") as directory:
        paths = {}
        for name, content in contents.items():
            paths[name] = os.path.join(directory, name)
            with open(os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(content)
        yield paths


def make_key() -> str:
    """A new private key, as PEM."""
    return _openssl("genpkey", *_CURVE, doing="make a key")


def public_key(key: str) -> str:
    """The public half of a private key.

    :raises Invalid: It is no key.
    """
    return _openssl("pkey", "-pubout", stdin=key, doing="read a key", wrong=Invalid)


def certified_key(certificate: str) -> str:
    """The public key that a certificate is for.

    :raises Invalid: It is no certificate.
    """
    return _openssl("x509", "-noout", "-pubkey", stdin=certificate, doing="read a certificate", wrong=Invalid)


def request(key: str, name: str) -> str:
    """A request for a certificate, signed with *key*."""
    with _files(key=key) as paths:
        return _openssl("req", "-new", "-key", paths["key"], "-subj", _subject(name), doing="ask for a certificate")


def make_authority(key: str, name: str, days: int) -> str:
    """The certificate of an authority, signed by itself."""
    extensions = ("keyUsage=critical,keyCertSign,cRLSign", "basicConstraints=critical,CA:TRUE,pathlen:0")
    with _files(key=key) as paths:
        words = ["req", "-x509", "-new", "-key", paths["key"], "-subj", _subject(name), "-days", str(days), "-sha256"]
        # openssl.cnf has the same extensions, and would have them twice.
        words += ["-config", os.devnull]
        for extension in (*extensions, "subjectKeyIdentifier=hash"):
            words += ["-addext", extension]
        return _openssl(*words, doing="make a certificate authority")


def sign(asked: str, names: t.Sequence[str], authority: str, key: str, days: int) -> str:
    """A certificate for a server and client. What it is for is said here, and not by who asks.

    :param asked: The request.
    :param names: Host names and addresses, the first is its owner's name.
    :raises Invalid: The request, the authority or its key is none, or they do not belong together.
    """
    alternatives = ",".join(f"{'IP' if _ADDRESS.fullmatch(name) else 'DNS'}:{name}" for name in names)
    extensions = (
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
        "extendedKeyUsage=serverAuth,clientAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        f"subjectAltName={alternatives}\n"
    )
    with _files(request=asked, authority=authority, extensions=extensions) as paths:
        return _openssl(
            *("x509", "-req", "-in", paths["request"], "-CA", paths["authority"], "-CAkey", "/dev/stdin", "-sha256"),
            *("-set_serial", f"0x{uuid.uuid4().hex}", "-days", str(days), "-extfile", paths["extensions"]),
            stdin=key,
            doing=f"sign the certificate of {names[0]}",
            wrong=Invalid,
        )


def issued_by(certificate: str, authority: str) -> bool:
    """Whether a certificate has the signature of an authority, whatever the time."""
    with _files(certificate=certificate, authority=authority) as paths:
        try:
            words = ("verify", "-no_check_time", "-partial_chain", "-CAfile", paths["authority"], paths["certificate"])
            _openssl(*words, doing="verify a certificate", wrong=Invalid)
        except Invalid:
            return False
    return True


def _subject(name: str) -> str:
    # A common name has 64 characters at most (RFC 5280); / and + would begin another part of it.
    return "/O=kvmops/CN=" + re.sub(r"[^A-Za-z0-9._: -]", "_", name)[:64]
