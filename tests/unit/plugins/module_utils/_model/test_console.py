# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Consoles and displays in XML, positions, and what of a log is told."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.console import (
    Console,
    Position,
    check_proxy,
    compile_pattern,
    displays,
    has_screen,
    is_anywhere,
    newest,
    page_of,
    position_of,
    read_console,
    search,
    tell,
    url_of,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Graphics

UUID = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"
OTHER = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f12"


def domain(devices: str) -> ET.Element:
    """A domain with these devices."""
    return ET.fromstring(f"<domain><devices>{devices}</devices></domain>")


@pytest.mark.parametrize(
    ("devices", "wanted"),
    [
        ("", Console()),
        ("<serial type='pty'/>", Console(terminal=True)),
        ("<serial type='pty'><log file='/l' append='on'/></serial>", Console("/l")),
        ("<serial type='tcp'><source mode='bind'/><log file='/l'/></serial>", Console("/l")),
        ("<serial type='unix'><source path='/s'/></serial>", Console()),
        ("<serial type='file'><source path='/f' append='off'/></serial>", Console("/f", begun_anew=True)),
        ("<serial type='pty'/><serial type='file'><source path='/f'/></serial>", Console("/f")),
        (
            "<serial type='file'><source path='/s'/></serial><console type='file'><source path='/c'/></console>",
            Console("/c"),
        ),
    ],
)
def test_the_console_is_the_first_that_is_logged(devices: str, wanted: Console) -> None:
    assert read_console(domain(devices)) == wanted


@given(st.builds(Position, st.text(), *[st.integers()] * 3, st.text(), st.integers()))
def test_a_position_comes_back_as_it_was(position: Position) -> None:
    word = position.dump()
    assert Position.load(word) == position
    assert not set(word) & set(", \n={}\"'")


@pytest.mark.parametrize(
    "word",
    ["", "xyz", "é", "WyJhIiwxLDIsMywiYiIsNCw1XQ", "WyJhIiwiMSIsMiwzLCJiIiw0XQ", "WyJhIiwxLDIsMywyLDRd", "MQ"],
)
def test_another_word_is_no_position(word: str) -> None:
    with pytest.raises(Invalid, match="no position"):
        Position.load(word)


def test_each_vm_finds_its_own_position() -> None:
    mine, others = Position(UUID, 1, 2, 3, "x"), Position(OTHER, 1, 2, 4, "y")
    words = [others.dump(), mine.dump()]
    assert position_of(UUID, words, name="web1") == mine
    assert position_of(UUID, [], name="web1") is None
    with pytest.raises(Invalid, match="VM web1"):
        position_of(UUID, words[:1], name="web1")


@pytest.mark.parametrize(
    ("content", "size", "lines", "whole", "wanted"),
    [
        (b"one\ntwo\n", 8, None, True, b"one\ntwo\n"),
        (b"one\ntwo\n", 7, None, True, b"two\n"),
        (b"one\ntwo\n", 4, None, True, b"two\n"),
        (b"one\ntwo\n", 3, None, True, b"wo\n"),
        (b"one\ntwo", 4, None, True, b"two"),
        (b"one\ntwo", 8, None, False, b"two"),
        (b"onetwo", 3, None, True, b"two"),
        (b"one\n\n\n", 6, 2, True, b"\n\n"),
        (b"one\r\ntwo\r\nthree", 99, 2, True, b"two\r\nthree"),
        (b"one\n", 9, 0, True, b""),
        (b"", 9, 5, True, b""),
    ],
)
def test_the_newest_lines_are_kept(content: bytes, size: int, lines: int | None, whole: bool, wanted: bytes) -> None:
    assert newest(content, size=size, lines=lines, whole=whole) == (wanted, wanted != content)


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\xff", b"long line"])), st.integers(1, 40), st.integers(0, 5))
def test_what_is_kept_is_the_end_and_within_the_limits(parts: list[bytes], size: int, lines: int) -> None:
    content = b"".join(parts)
    kept, cut = newest(content, size=size, lines=lines, whole=True)
    assert content.endswith(kept)
    assert len(kept) <= size
    assert kept.count(b"\n") + (kept[-1:] not in (b"", b"\n")) <= lines
    assert cut == (kept != content)


def test_text_is_told_whatever_the_bytes_are() -> None:
    assert tell(b"a\r\n\r\r\nb\rc\n\xff\xc3\n\xc3\xa9\0") == "a\n\nb\rc\n\ufffd\ufffd\n\u00e9\0"


@pytest.mark.parametrize(
    ("pattern", "content", "text", "groups", "end"),
    [
        ("login: $", b"boot\r\nweb1 login: ", "login: ", (), 18),
        ("^b(o+)t$", b"\xffx\r\n\r\nboot\r\nmore", "boot", ("oo",), 10),
        ("two\nthr", b"one\r\ntwo\r\nthree", "two\nthr", (), 13),
        ("\u00e9", b"\xc3\xa9\xc3\xa9", "\u00e9", (), 2),
        ("x(y)?", b"\xf0\x9f\x90\xa7x", "x", (None,), 5),
        (r"(.)$", b"\xff", "\ufffd", ("\ufffd",), 1),
    ],
)
def test_a_match_tells_how_many_bytes_it_took(
    pattern: str, content: bytes, text: str, groups: tuple[str | None, ...], end: int
) -> None:
    found = search(compile_pattern(pattern), content)
    assert found
    assert (found.text, found.groups, found.end) == (text, groups, end)
    assert search(compile_pattern("nothing like it"), content) is None


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(Invalid, match="wait_for is no regular expression"):
        compile_pattern("(")


def test_displays_are_those_that_can_be_reached() -> None:
    found = displays(
        domain(
            "<graphics type='vnc' port='-1' autoport='yes'/>"
            "<graphics type='sdl' port='5900'/>"
            "<graphics type='spice'><listen type='none'/></graphics>"
            "<graphics type='spice' tlsPort='5901'><listen type='address' address='::1'/></graphics>"
            "<graphics type='vnc' socket='/run/v.sock'><listen type='socket' socket='/run/v.sock'/></graphics>"
        )
    )
    assert [url_of(each, host="kvm1") for each in found] == ["spice://[::1]?tls-port=5901", "vnc+unix:///run/v.sock"]


@pytest.mark.parametrize(
    ("display", "url"),
    [
        (Graphics("vnc", "127.0.0.1", 5900), "vnc://127.0.0.1:5900"),
        (Graphics("vnc", "0.0.0.0", 5900), "vnc://kvm1:5900"),
        (Graphics("spice", "::", 5900, 5901), "spice://kvm1:5900?tls-port=5901"),
    ],
)
def test_a_display_has_the_url_that_viewers_take(display: Graphics, url: str) -> None:
    assert url_of(display, host="kvm1") == url


@pytest.mark.parametrize(
    ("address", "anywhere"), [("", True), ("::", True), ("0.0.0.0", True), ("::1", False), ("kvm1", False)]
)
def test_some_addresses_mean_all(address: str, anywhere: bool) -> None:
    assert is_anywhere(address) == anywhere


@pytest.mark.parametrize(
    ("devices", "screen"),
    [("", False), ("<video><model type='none'/></video>", False), ("<video><model type='vga'/></video>", True)],
)
def test_a_video_device_makes_a_screen(devices: str, screen: bool) -> None:
    assert has_screen(domain(devices)) == screen


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://kvm1.example.com:6080", "https://kvm1.example.com:6080"),
        ("http://[::1]:6080/", "http://[::1]:6080"),
        ("https://proxy", "https://proxy"),
    ],
)
def test_a_link_leads_to_the_page_of_the_proxy(url: str, origin: str) -> None:
    assert page_of(check_proxy(url, 600), "a.b-c.d_e") == (
        f"{origin}/vnc.html?autoconnect=true&resize=scale&path=websockify%3Ftoken%3Da.b-c.d_e"
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy:6080",
        "ftp://proxy",
        "https://",
        "https://proxy/novnc",
        "https://proxy?a",
        "https://proxy#a",
        "https://u@proxy",
        "https://p:x",
        "https://[p",
        "https://p:0",
    ],
)
def test_what_is_no_address_of_a_proxy_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"proxy\.url"):
        check_proxy(url, 600)


@pytest.mark.parametrize("ttl", [-1, 0, 86401])
def test_a_token_lives_for_a_second_to_a_day(ttl: int) -> None:
    with pytest.raises(Invalid, match=r"proxy\.ttl"):
        check_proxy("https://proxy", ttl)
