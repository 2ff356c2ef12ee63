# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names, addresses and texts that we give to VMs."""

from __future__ import annotations

import re
import uuid

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import (
    Nic,
    check_directory,
    check_mac,
    check_name,
    check_text,
    check_uuid,
    is_uuid,
    stable_mac,
)

SOME = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"


@pytest.mark.parametrize("name", ["a", "0", "web1", "WEB-1", "web_1.example.org", "a+b", "x" * 63, "1.2"])
def test_names_of_new_vms_are_plain(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "-rf", "_x", "+x", ".hidden", "a..b", "a/b", "../a", "/a", "a b", " a", "a ", "a\n", "\na"],
        *[
            "a\0",
            "größe",
            "\N{FULLWIDTH DIGIT ONE}",
            "a;b",
            "a$b",
            "a'b",
            'a"b',
            "a<b",
            "a&b",
            "a*",
            "a?",
            "a,b",
            "a=b",
            "a:b",
            "x" * 64,
        ],
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(Invalid, match="cannot be the name of a new VM") as caught:
        check_name(name)
    assert "1 to 63 ASCII letters" in caught.value.hint
    assert caught.value.details == {"name": name}


@pytest.mark.parametrize("name", [SOME, SOME.upper()])
def test_a_uuid_is_no_name_because_names_are_looked_up_as_uuids(name: str) -> None:
    with pytest.raises(Invalid, match="it is a UUID"):
        check_name(name)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_.+/ -]*", fullmatch=True))
def test_a_name_that_passes_is_safe_wherever_it_goes(name: str) -> None:
    try:
        check_name(name)
    except Invalid:
        return
    assert name.isascii()
    assert name.isprintable()
    assert not name.startswith("-")
    assert "/" not in name
    assert ".." not in name
    assert name == re.sub(r"[^\w.+-]", "", name)
    assert 0 < len(name) <= 63


@given(st.uuids())
def test_uuids_are_known_in_their_usual_form_alone(number: uuid.UUID) -> None:
    assert check_uuid(str(number)) == check_uuid(str(number).upper()) == str(number)
    for other in (number.hex, f"{{{number}}}", number.urn, f"{number} ", str(number)[:-1]):
        assert not is_uuid(other)
        with pytest.raises(Invalid, match="is not a UUID"):
            check_uuid(other)


def test_digits_of_other_scripts_make_no_uuid() -> None:
    assert not is_uuid(SOME.replace("4", "\N{FULLWIDTH DIGIT FOUR}"))


# ---- directories


@pytest.mark.parametrize("path", ["/srv", "/var/lib/libvirt/images", "/srv/größe", "/srv/a b", "/srv/..a", "/-"])
def test_a_storage_directory_is_an_absolute_path(path: str) -> None:
    assert check_directory(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "srv",
        "./srv",
        "~/x",
        "/srv/",
        "//srv",
        "/srv//x",
        "/srv/../x",
        "/srv/.",
        "/srv\n",
        "/s\0",
        "nbd://x",
    ],
)
def test_a_path_that_does_not_say_what_it_means_is_refused(path: str) -> None:
    with pytest.raises(Invalid, match="cannot be a storage directory"):
        check_directory(path)


# ---- MAC addresses


@given(st.uuids(), st.integers(0, 1000))
def test_a_stable_address_is_a_proper_one_in_qemus_range_and_always_the_same(number: uuid.UUID, index: int) -> None:
    mac = stable_mac(str(number), index)
    assert check_mac(mac) == mac
    assert mac.startswith("52:54:00:")
    assert mac == stable_mac(str(number).upper(), index)


def test_stable_addresses_differ_between_cards_and_vms() -> None:
    vms = [str(uuid.UUID(int=number)) for number in range(20)]
    assert len({stable_mac(vm, index) for vm in vms for index in range(10)}) == 200


def test_stable_addresses_never_change_with_a_version() -> None:
    assert [stable_mac(SOME, index) for index in range(3)] == [
        "52:54:00:fb:fa:e7",
        "52:54:00:a9:0c:b8",
        "52:54:00:bd:77:53",
    ]


@pytest.mark.parametrize("mac", ["52:54:00:12:34:56", "00:00:00:00:00:00", "fe:ff:ff:ff:ff:ff", "02:AB:cd:EF:00:01"])
def test_an_address_of_one_card_is_taken_in_lower_case(mac: str) -> None:
    assert check_mac(mac) == mac.lower()


@pytest.mark.parametrize(
    "mac",
    [
        *["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "525400123456", "52:54:0:12:34:56"],
        *["52:54:00:12:34:5g", "52:54:00:12:34:56 ", "52:54:00:12:34:56\n", "\N{FULLWIDTH DIGIT FIVE}2:54:00:12:34:56"],
        *["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "53:54:00:12:34:56"],  # groups
    ],
)
def test_what_is_no_address_of_one_card_is_refused(mac: str) -> None:
    with pytest.raises(Invalid, match="cannot be the MAC address"):
        check_mac(mac)


def test_a_card_tells_what_it_is_plugged_into() -> None:
    assert Nic("bridge", "br0", "52:54:00:00:00:01").tell() == {
        "bridge": "br0",
        "mac": "52:54:00:00:00:01",
        "model": "virtio",
    }


# ---- texts for people


@given(st.text())
def test_a_text_that_passes_comes_back_from_libvirt_as_it_was(text: str) -> None:
    try:
        check_text(text, what="description")
    except Invalid:
        return
    connection = libvirt.open("test:///default")
    try:
        domain = connection.lookupByName("test")
        config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, text or None, None, None, config)
        again = connection.defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if text:
            assert again.metadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, None, config) == text
    finally:
        connection.close()


@pytest.mark.parametrize("text", ["", "größe 𝄞", "one\nother", "\ttab", "<a>&amp;\"'", "\x7f\x85\u2028\ufffd"])
def test_any_text_in_lines_passes(text: str) -> None:
    assert check_text(text, what="reason") == text


@pytest.mark.parametrize("character", ["\0", "\x0b", "\r", "\x1f", "\ud800", "\ufffe", "\uffff"])
def test_what_libvirt_would_drop_or_change_is_refused_by_its_number(character: str) -> None:
    with pytest.raises(Invalid, match=rf"^reason cannot contain the character U\+{ord(character):04X}\. .*line feed"):
        check_text(f"a{character}b", what="reason")


def test_a_title_is_one_line() -> None:
    assert check_text("one\tline", what="title", lines=False) == "one\tline"
    with pytest.raises(Invalid, match=r"title cannot contain the character U\+000A\. It takes any text in one line"):
        check_text("two\nlines", what="title", lines=False)
