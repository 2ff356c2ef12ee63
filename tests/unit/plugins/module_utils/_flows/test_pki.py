# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Certificates of hosts: asked for, signed, installed, renewed, refused and taken away, and tried by TLS itself."""

from __future__ import annotations

import os
import typing as t
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import pki
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import machine, openssl, trust
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.certificate import read_certificates
from ansible_collections.kvmops.lifecycle.plugins.modules import host_authority, host_certificates
from tests.unit.hypervisor import Task

NAMES = ["kvm1", "192.0.2.1"]


class Hosts:
    """An authority and hosts, whose files are below a directory of this test."""

    def __init__(self, task: Task, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.task = task
        self.place = place
        self.monkeypatch = monkeypatch
        task.base.pop("uri")
        # Who runs the tests need not be root.
        monkeypatch.setattr(pki, "_OWNER", (os.getuid(), os.getgid()))
        monkeypatch.setattr(pki, "_user", lambda name: (os.getuid(), os.getgid()))
        self.on("kvm1")

    def on(self, name: str) -> Path:
        """From now on the tasks run on another host; where its certificates are."""
        self.root = self.place / name
        places = [pki.Place(f"{self.root}{place.path}", place.what, place.qemu) for place in PLACES]
        self.monkeypatch.setattr(pki, "PLACES", tuple(places))
        self.monkeypatch.setattr(machine, "_PKI", f"{self.root}/etc/pki")
        return self.root / "etc/pki"

    def authority(self, name: str = "ca", **params: t.Any) -> dict[str, t.Any]:
        """The module, on the host that has the authority."""
        return self.task(host_authority.main, **{"directory": str(self.place / name), **params})

    def certificates(self, **params: t.Any) -> dict[str, t.Any]:
        """The module, on the present host."""
        return self.task(
            host_certificates.main, **{"directory": str(self.root / "tls"), "names": NAMES, "diff": True, **params}
        )

    def signed(self, request: str, name: str = "ca", **params: t.Any) -> str:
        """The certificate for a request."""
        asked = [{"name": "it", "request": request, "names": NAMES}]
        return str(self.authority(name, requests=asked, **params)["certificates"]["it"])

    def have(self, **params: t.Any) -> tuple[str, str]:
        """Authority and certificate, installed on the present host."""
        authority = self.authority()["authority"]
        certificate = self.signed(self.certificates(authority=authority)["request"], **params)
        assert self.certificates(authority=authority, certificate=certificate, renew_before=0)["changed"]
        return authority, certificate

    def refused(self, *names: str) -> list[dict[str, str]]:
        """What TLS makes of them."""
        return trust.refusals(machine.papers(None), names)


PLACES = pki.PLACES


@pytest.fixture
def hosts(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """Hosts without certificates."""
    return Hosts(task, tmp_path, monkeypatch)


def test_a_host_gets_a_certificate_whose_key_stays_there(hosts: Hosts) -> None:
    foreseen = hosts.authority(check=True)
    assert foreseen["changed"]
    assert foreseen["authority"] == ""
    assert not (hosts.place / "ca").exists()
    authority = hosts.authority()["authority"]
    again = hosts.authority()
    assert (again["changed"], again["authority"]) == (False, authority)

    assert hosts.certificates(authority=authority, check=True)["request"] == ""
    asked = hosts.certificates(authority=authority)
    assert (asked["changed"], asked["needed"]) == (True, "there is none")
    # Who asks twice asks for the same key.
    twice = hosts.certificates(authority=authority)
    assert not twice["changed"]
    certificate = hosts.signed(asked["request"])
    assert openssl.certified_key(hosts.signed(twice["request"])) == openssl.certified_key(certificate)

    options = {"authority": authority, "certificate": certificate}
    foreseen = hosts.certificates(**options, check=True)
    assert foreseen["changed"]
    assert not (hosts.root / "etc").exists()
    done = hosts.certificates(**options)
    assert foreseen["diff"] == done["diff"]
    assert "PRIVATE KEY" not in str([asked, twice, foreseen, done])
    for later in (hosts.certificates(**options), hosts.certificates(authority=authority)):
        assert (later["changed"], later["needed"], later["fingerprint"]) == (False, "", done["fingerprint"])
    keys = [Path(place.path) for place in pki.PLACES if place.what == "key"]
    assert [path.stat().st_mode & 0o777 for path in keys] == [0o600] * 4
    assert (hosts.place / "ca").stat().st_mode & 0o777 == 0o700
    (found,) = read_certificates(certificate)
    assert (found.subject, sorted(found.names)) == ("kvm1", sorted(NAMES))

    # A file that was changed is mended.
    keys[0].write_text("broken", encoding="utf-8")
    mended = hosts.certificates(authority=authority)
    assert (mended["changed"], mended["steps"]) == (True, ["install certificates"])
    assert hosts.refused(*NAMES) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"names": [*NAMES, "kvm1.example.com"]}, "it is not for kvm1.example.com"),
        ({"renew_before": 900}, "it is valid until 20"),
    ],
)
def test_another_certificate_is_asked_for_and_the_old_one_serves_until_it_is_there(
    hosts: Hosts, changed: dict[str, t.Any], why: str
) -> None:
    authority, certificate = hosts.have()
    asked = hosts.certificates(authority=authority, **changed)
    assert asked["needed"].startswith(why)
    assert openssl.certified_key(certificate) in openssl._openssl(
        "req", "-noout", "-pubkey", stdin=asked["request"], doing="read"
    )
    assert (hosts.root / "etc/pki/libvirt/servercert.pem").read_text(encoding="utf-8") == certificate


def test_another_authority_wants_another_certificate(hosts: Hosts) -> None:
    hosts.have()
    other = hosts.authority("other")["authority"]
    assert hosts.certificates(authority=other)["needed"] == "it is of another authority"


def test_an_authority_of_ones_own_signs_and_leaves_nothing(hosts: Hosts) -> None:
    key = openssl.make_key()
    own = {"certificate": openssl.make_authority(key, "mine", 10), "key": key}
    request = openssl.request(openssl.make_key(), "kvm1")
    certificate = hosts.signed(request, **own)
    assert openssl.issued_by(certificate, own["certificate"])
    assert not (hosts.place / "ca").exists()
    unlike = hosts.authority(certificate=own["certificate"], key=openssl.make_key())
    assert unlike["code"] == "invalid"
    assert "do not belong together" in unlike["msg"]


def test_what_is_given_and_does_not_belong_together_is_refused(hosts: Hosts) -> None:
    authority, certificate = hosts.have()
    before = (hosts.root / "etc/pki/libvirt/private/serverkey.pem").read_text(encoding="utf-8")
    told = hosts.certificates(authority=authority, certificate=certificate, key=openssl.make_key())
    assert told["code"] == "invalid"
    assert "it is for another key" in told["msg"]
    assert (hosts.root / "etc/pki/libvirt/private/serverkey.pem").read_text(encoding="utf-8") == before


def test_an_authority_that_expires_is_made_again_with_its_key(hosts: Hosts) -> None:
    first = hosts.authority(days=100)["authority"]
    second = hosts.authority()
    assert second["changed"]
    assert second["authority"] != first
    assert openssl.certified_key(second["authority"]) == openssl.certified_key(first)
    assert read_certificates(second["authority"])[0].ends > datetime.now(timezone.utc) + timedelta(days=3000)


def test_what_was_there_before_comes_back(hosts: Hosts) -> None:
    theirs = hosts.root / "etc/pki/libvirt/servercert.pem"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs", encoding="utf-8")
    theirs.chmod(0o640)
    hosts.have()
    assert theirs.read_text(encoding="utf-8") != "theirs"
    # One that an admin has changed since is the admin's.
    changed = hosts.root / "etc/pki/qemu/ca-cert.pem"
    changed.write_text("changed", encoding="utf-8")
    rounds = [hosts.certificates(state="absent", check=check) for check in (True, False, False, True)]
    assert [told["changed"] for told in rounds] == [True, True, False, False]
    assert rounds[0]["diff"] == rounds[1]["diff"]
    assert theirs.read_text(encoding="utf-8") == "theirs"
    assert theirs.stat().st_mode & 0o777 == 0o640
    left = sorted(path.name for path in (hosts.root / "etc").rglob("*") if path.is_file())
    assert left == ["ca-cert.pem", "servercert.pem"]


def test_tls_refuses_what_is_expired_for_another_name_or_of_another_authority(hosts: Hosts) -> None:
    hosts.have()
    assert hosts.refused("kvm1", "192.0.2.1") == []
    assert [each["role"] for each in hosts.refused("kvm9")] == ["server", "server"]
    assert "kvm9" in hosts.refused("kvm9")[0]["problem"]

    place = hosts.root / "etc/pki/qemu/ca-cert.pem"
    place.write_text(hosts.authority("other")["authority"], encoding="utf-8")
    assert {(each["purpose"], each["role"]) for each in hosts.refused("kvm1")} == {("qemu", "server")}
    (mine,) = trust.authorities(f"{hosts.root}/etc/pki/CA/cacert.pem")
    assert trust.authorities(str(place)) != [mine]
    assert trust.authorities(str(hosts.root / "none")) == []

    # The key of another certificate.
    (hosts.root / "etc/pki/libvirt/private/clientkey.pem").write_text(openssl.make_key(), encoding="utf-8")
    refused = {each["purpose"]: each for each in hosts.refused("kvm1")}
    assert refused["libvirt"]["role"] == "client"
    assert "MISMATCH" in refused["libvirt"]["problem"].upper()
