# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What certificates say, as another library wrote them."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.certificate import read_certificates

BEGINS = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
LATE = datetime(2061, 1, 2, 3, 4, 5, tzinfo=timezone.utc)  # is written in another way than years before 2050
KEY = ec.generate_private_key(ec.SECP256R1())


def pem(subject: str = "kvm1", *, ends: datetime = LATE, names: bool = True, country: bool = False) -> str:
    """A certificate."""
    parts = [x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")] if country else []
    owner = x509.Name([*parts, *([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(owner)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Zertifizierungsstelle Köln")]))
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGINS)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        alternatives = [
            x509.DNSName("kvm1.example.com"),
            x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
            x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
            x509.RFC822Name("root@example.com"),
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    signed = builder.sign(KEY, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def test_owner_issuer_time_and_names_are_read() -> None:
    (found,) = read_certificates(pem(country=True))
    assert (found.subject, found.issuer) == ("kvm1", "Zertifizierungsstelle Köln")
    assert (found.begins, found.ends) == (BEGINS, LATE)
    assert found.names == ("kvm1.example.com", "192.0.2.1", "2001:db8::1")
    assert found.owner_id != found.issuer_id


def test_a_certificate_is_valid_from_its_first_to_its_last_second() -> None:
    ends = datetime(2026, 2, 1, tzinfo=timezone.utc)
    (found,) = read_certificates(pem(ends=ends))
    assert [found.valid_at(moment) for moment in (BEGINS, ends)] == [True, True]
    assert not found.valid_at(BEGINS.replace(year=2025))
    assert not found.valid_at(ends.replace(month=3))


def test_who_signed_a_certificate_is_known_by_all_of_the_name() -> None:
    first, second = read_certificates("text before\n" + pem("a") + pem("", names=False))
    assert first.issuer_id == second.issuer_id
    assert (second.subject, second.names) == ("", ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_is_said_to_be_none(text: str) -> None:
    with pytest.raises(Invalid, match=r"certificate"):
        read_certificates(text)


def test_a_certificate_that_is_cut_off_anywhere_is_said_to_be_none() -> None:
    whole = pem()
    body = whole.splitlines()[1:-1]
    for lines in range(len(body)):
        cut = "\n".join(["-----BEGIN CERTIFICATE-----", *body[:lines], "-----END CERTIFICATE-----", ""])
        with pytest.raises(Invalid, match=r"certificate"):
            read_certificates(cut)
