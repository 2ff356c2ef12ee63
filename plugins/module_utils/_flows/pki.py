# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The certificates of KVM hosts: an authority that signs, and hosts that have keys, which never leave them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import tempfile
import typing as t
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from .._core.clock import stamp
from .._core.errors import Denied, Invalid, LifecycleError
from .._core.plan import Plan, Step
from .._libvirt import openssl
from .._model.certificate import Certificate, read_certificates

Params = t.Mapping[str, t.Any]

# libvirt's page "TLS certificates", and qemu.conf
PKI = "/etc/pki"
_KEPT = ".before-kvmops"
# User and group of what is for root only.
_OWNER = (0, 0)


@dataclass(frozen=True)
class Place:
    """A file that libvirt or QEMU reads.

    :param what: ``authority``, ``certificate`` or ``key``.
    :param qemu: QEMU's user has to be able to read it.
    """

    path: str
    what: str
    qemu: bool = False

    @property
    def mode(self) -> int:
        """Keys are their owner's only."""
        return 0o600 if self.what == "key" else 0o644


PLACES = (
    Place(f"{PKI}/CA/cacert.pem", "authority"),
    Place(f"{PKI}/libvirt/private/serverkey.pem", "key"),
    Place(f"{PKI}/libvirt/private/clientkey.pem", "key"),
    Place(f"{PKI}/libvirt/servercert.pem", "certificate"),
    Place(f"{PKI}/libvirt/clientcert.pem", "certificate"),
    Place(f"{PKI}/qemu/ca-cert.pem", "authority"),
    Place(f"{PKI}/qemu/server-key.pem", "key", qemu=True),
    Place(f"{PKI}/qemu/client-key.pem", "key", qemu=True),
    Place(f"{PKI}/qemu/server-cert.pem", "certificate"),
    Place(f"{PKI}/qemu/client-cert.pem", "certificate"),
)


def _read(path: str) -> str:
    """A file's text; empty when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise Denied(f"Failed to read {path}: {exc.strerror}.", hint="Run the task as root.") from exc


def _write(path: str, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """A file as a whole, in the place of one that is there."""
    directory = os.path.dirname(path)
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o755)
            if directory.endswith("/private"):
                os.chmod(directory, 0o700)
        handle, new = tempfile.mkstemp(prefix=".kvmops-", dir=directory)
        with open(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), *(owner or _OWNER))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as exc:
        raise Denied(f"Failed to write {path}: {exc.strerror}.", hint="Run the task as root.") from exc


def _first(text: str) -> Certificate | None:
    try:
        return read_certificates(text)[0]
    except Invalid:
        return None


def _lasts(certificate: Certificate, days: int) -> bool:
    now = datetime.now(timezone.utc)
    return certificate.begins <= now and certificate.ends - now > timedelta(days=days)


# ---- the authority


def decide_authority(params: Params) -> Plan:
    """Have an authority, and have requests signed by it.

    :raises Invalid: What was given is no authority.
    """
    given = bool(params["certificate"])
    directory = params["directory"]
    at = {name: os.path.join(directory, f"{name}.pem") for name in ("key", "certificate")}
    key = params["key"] if given else _read(at["key"])
    text = params["certificate"] if given else _read(at["certificate"])
    old = _first(text)
    if given and (old is None or openssl.public_key(key) != openssl.certified_key(text)):
        raise Invalid("The certificate of the authority that was given and its key do not belong together.")
    told: dict[str, t.Any] = {"authority": text, "certificates": {}}
    makes = not given and (old is None or not key or not _lasts(old, params["renew_before"]))
    steps: list[Step] = []

    def make() -> None:
        # The key first: a certificate never stands beside the key of another.
        fresh = key or openssl.make_key()
        _private(directory)
        _write(at["key"], fresh, 0o600)
        told["authority"] = openssl.make_authority(fresh, params["name"], params["days"])
        _write(at["certificate"], told["authority"], 0o644)

    def sign() -> None:
        signer = params["key"] if given else _read(at["key"])
        for each in params["requests"]:
            told["certificates"][each["name"]] = openssl.sign(
                each["request"], each["names"], told["authority"], signer, params["certificate_days"]
            )

    if makes:
        told["authority"] = ""
        steps.append(Step("make a certificate authority", make))
    if params["requests"]:
        steps.append(Step("sign certificates", sign))
    before = {"authority": _told(old)}
    after = dict(before)
    if makes:
        after["authority"] = f"{params['name']}, for {params['days']} days"
    if params["requests"]:
        after["signed"] = ", ".join(sorted(each["name"] for each in params["requests"]))
    return Plan(before, after, steps, figures=told)


def _told(certificate: Certificate | None) -> str:
    return f"{certificate.subject}, until {stamp(certificate.ends)}" if certificate else ""


def _private(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)
    except OSError as exc:
        raise Denied(f"Failed to make {directory}: {exc.strerror}.", hint="Run the task as root.") from exc


# ---- a host


class _Own:
    """What a host has of its own, from which what libvirt and QEMU read is copied."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.directory = str(params["directory"])
        self.key = params["key"] or _read(self.at("key.pem"))
        self.authority = params["authority"] or _read(self.at("authority.pem"))
        self.certificate = params["certificate"] or _read(self.at("certificate.pem"))

    def at(self, name: str) -> str:
        """A file of them."""
        return os.path.join(self.directory, name)

    @property
    def installed(self) -> bool:
        """Whether what was there before has been kept."""
        return os.path.exists(self.at("installed"))

    def wanting(self) -> str:
        """Why another certificate is needed; empty when the one that is there will do."""
        found = _first(self.certificate)
        if not self.key or found is None:
            return "there is none"
        if not _lasts(found, self.params["renew_before"]):
            return f"it is valid until {stamp(found.ends)}"
        lacking = [name for name in self.params["names"] if name not in found.names]
        if lacking:
            return f"it is not for {', '.join(lacking)}"
        try:
            if openssl.certified_key(self.certificate) != openssl.public_key(self.key):
                return "it is for another key"
        except Invalid as exc:
            return exc.message
        if not openssl.issued_by(self.certificate, self.authority):
            return "it is of another authority"
        return ""

    def contents(self) -> dict[str, str]:
        """By what a place is for, what has to be in it."""
        return {"authority": self.authority, "certificate": self.certificate, "key": self.key}


def decide_certificates(params: Params) -> Plan:
    """Have the host's certificates where libvirt and QEMU look for them, or what was there before.

    :raises Invalid: What was given does not belong together.
    """
    return _present(params) if params["state"] == "present" else _absent(params)


def _present(params: Params) -> Plan:
    own = _Own(params)
    why = own.wanting()
    told: dict[str, t.Any] = {"needed": why, "request": "", "fingerprint": ""}
    if why and params["certificate"]:
        raise Invalid(
            f"The certificate that was given cannot be used: {why}.",
            hint="Look at the certificate, the key, the authority and the names that were given.",
        )
    if why:
        return _asking(own, why, told)
    contents = own.contents()
    owner = _user(params["qemu_user"])
    told["fingerprint"] = hashlib.sha256("".join(contents.values()).encode()).hexdigest()
    kept = [(own.at(f"{what}.pem"), text, 0o600 if what == "key" else 0o644) for what, text in contents.items()]
    wrong = [place for place in PLACES if not _is_so(place.path, contents[place.what], place.mode, _of(place, owner))]
    steps = []
    if any(not _is_so(path, text, mode, _OWNER) for path, text, mode in kept):
        steps.append(Step("keep key and certificate", lambda: _keep(own, kept)))
    if not own.installed:
        steps.append(Step("keep what was there before", lambda: _put_aside(own)))
    if wrong:
        steps.append(Step("install certificates", lambda: _install(wrong, contents, owner)))
    found = _first(own.certificate)
    after = {"certificate": _told(found), "wrong": []}
    before = {"certificate": _told(_first(_read(PLACES[3].path))), "wrong": [place.path for place in wrong]}
    return Plan(before if steps else after, after, steps, figures=told)


def _asking(own: _Own, why: str, told: dict[str, t.Any]) -> Plan:
    """A key, if there is none, and a request."""
    steps = []

    def make() -> None:
        key = openssl.make_key()
        _private(own.directory)
        _write(own.at("key.pem"), key, 0o600)
        told["request"] = openssl.request(key, own.params["names"][0])

    if own.key:
        told["request"] = openssl.request(own.key, own.params["names"][0])
    else:
        steps.append(Step("make a key", make))
    if not steps:
        return Plan({}, {}, figures=told)
    return Plan({"certificate": ""}, {"certificate": f"another one: {why}"}, steps, figures=told)


def _user(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError as exc:
        raise Invalid(
            f"There is no user {name}, as whom QEMU shall run.", hint="Say in qemu_user who it is on this host."
        ) from exc
    return found.pw_uid, found.pw_gid


def _of(place: Place, qemu: tuple[int, int]) -> tuple[int, int]:
    return qemu if place.qemu else _OWNER


def _is_so(path: str, text: str, mode: int, owner: tuple[int, int]) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    same = (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (mode, *owner)
    return same and _read(path) == text


def _keep(own: _Own, kept: t.Sequence[tuple[str, str, int]]) -> None:
    _private(own.directory)
    for path, text, mode in kept:
        _write(path, text, mode)


def _put_aside(own: _Own) -> None:
    """What was there before the first of ours; a run that was killed meanwhile has done some of it."""
    for place in PLACES:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(place.path)
            if not os.path.exists(place.path + _KEPT):
                mode = found.st_mode & 0o7777
                _write(place.path + _KEPT, _read(place.path), mode, (found.st_uid, found.st_gid))
    _write(own.at("installed"), "", 0o600)


def _install(places: t.Sequence[Place], contents: t.Mapping[str, str], owner: tuple[int, int]) -> None:
    for place in places:
        _write(place.path, contents[place.what], place.mode, _of(place, owner))


def _absent(params: Params) -> Plan:
    own = _Own(params)
    if not os.path.isdir(own.directory):
        return Plan({}, {}, figures={"needed": "", "request": "", "fingerprint": ""})
    contents = own.contents()

    def remove() -> None:
        for place in PLACES if own.installed else ():
            if os.path.exists(place.path + _KEPT):
                os.replace(place.path + _KEPT, place.path)
            elif _read(place.path) == contents[place.what]:
                os.unlink(place.path)
        # That they are put back is what is forgotten last.
        for name in ("certificate.pem", "authority.pem", "key.pem", "installed"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(own.at(name))
        try:
            os.rmdir(own.directory)
        except OSError as exc:
            raise LifecycleError(f"Failed to remove {own.directory}: {exc.strerror}.") from exc

    before = {"certificate": _told(_first(own.certificate))}
    figures = {"needed": "", "request": "", "fingerprint": ""}
    return Plan(before, {"certificate": ""}, [Step("remove certificates", remove)], figures=figures)
