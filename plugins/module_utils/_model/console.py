# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Consoles and displays: where they are, positions in a log, and what of a log is told."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlsplit

from .._core.errors import Invalid
from .domain import Graphics, read_domain

# Bytes before a position that tell whether a file is still the one in which it was taken.
FINGERPRINT = 4096
# Bytes of the log in which a pattern is looked for across what is read at different times.
WINDOW = 65536


@dataclass(frozen=True)
class Console:
    """Where a VM's console goes.

    :param log: The file on the host into which it is written; empty when there is none.
    :param begun_anew: Whether that file is emptied when the VM is started. It is, if the definition says so; when that
        says nothing, virtlogd goes on in it.
    :param terminal: Whether it can be listened to.
    """

    log: str = ""
    begun_anew: bool = False
    terminal: bool = False


def read_console(domain: ET.Element) -> Console:
    """The console in a domain's XML: the first one that is written to a file, else the first that can be listened to.

    libvirt repeats the first serial port as a console; on other architectures there are consoles without a serial port.
    """
    nodes = [*domain.iterfind("devices/console"), *domain.iterfind("devices/serial")]
    for node in nodes:
        file = node.find("source") if node.get("type") == "file" else node.find("log")
        path = "" if file is None else file.get("path", "") or file.get("file", "")
        if file is not None and path:
            return Console(log=path, begun_anew=file.get("append") == "off")
    return Console(terminal=any(node.get("type") == "pty" for node in nodes))


@dataclass(frozen=True)
class Position:
    """A place in the log of a VM's console, which is still known when the log was rotated.

    :param uuid: Of the VM.
    :param run: libvirt's number of the running VM, -1 when it was off.
    :param inode: Of the file; 0 when there was none.
    :param offset: Bytes from the beginning of that file.
    :param fingerprint: Hash of the :data:`FINGERPRINT` bytes before.
    :param written: When that file had last been written to, in nanoseconds.
    """

    uuid: str
    run: int
    inode: int = 0
    offset: int = 0
    fingerprint: str = ""
    written: int = 0

    def dump(self) -> str:
        """For results, as a word that means nothing to others."""
        return base64.urlsafe_b64encode(json.dumps(list(asdict(self).values())).encode()).decode().rstrip("=")

    @classmethod
    def load(cls, text: str) -> Position:
        """What :meth:`dump` wrote.

        :raises Invalid: It did not write this.
        """
        try:
            found = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            position: Position | None = cls(*found)
        except (ValueError, TypeError):
            position = None
        if position is None or [each.__class__ for each in asdict(position).values()] != [str, int, int, int, str, int]:
            raise Invalid(
                f"{text!r} is no position in the log of a console.",
                hint="Give in after what an earlier task with vm_console returned as position.",
            )
        return position


def position_of(uuid: str, words: t.Sequence[str], *, name: str) -> Position | None:
    """The position of VM *uuid* among those that were given, ``None`` when none were.

    :raises Invalid: Positions were given, but none of this VM, or one of them is no position.
    """
    positions = {position.uuid: position for position in map(Position.load, words)}
    if positions and uuid not in positions:
        raise Invalid(
            f"No position in after is one of VM {name}.",
            hint="Give the position that vm_console returned for each of the VMs.",
        )
    return positions.get(uuid)


# ---- text


def tell(content: bytes) -> str:
    """The log as text: each line ends with a line feed alone, and what is no UTF-8 is replaced."""
    return _plain(content.decode("utf-8", "replace"))


def _plain(text: str) -> str:
    return re.sub("\r+\n", "\n", text)


def newest(content: bytes, *, size: int, lines: int | None, whole: bool) -> tuple[bytes, bool]:
    """The newest part of the end of a log, in whole lines, and whether something was left out.

    A line that has not ended counts as one. A line that alone is longer than *size* is cut.

    :param size: Bytes at most.
    :param lines: Lines at most; ``None`` for any number.
    :param whole: Whether *content* begins where a line does.
    """
    kept = content[-size:]
    begins = whole if len(kept) == len(content) else content[-size - 1 : -size] == b"\n"
    if not begins:
        _rest, end, others = kept.partition(b"\n")
        kept = others if end and others else kept
    if lines is not None:
        *ended, last = kept.split(b"\n")
        told = [line + b"\n" for line in ended] + ([last] if last else [])
        kept = b"".join(told[-lines:] if lines else [])
    return kept, len(kept) < len(content)


@dataclass(frozen=True)
class Match:
    """What a pattern matched.

    :param end: Bytes from the beginning of what was searched to the end of the match.
    """

    text: str
    groups: tuple[str | None, ...]
    end: int


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """*pattern*, for which ``^`` and ``$`` are the ends of lines.

    :raises Invalid: It is no regular expression.
    """
    try:
        return re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as exc:
        raise Invalid(f"wait_for is no regular expression: {exc}.") from exc


def search(pattern: re.Pattern[str], content: bytes) -> Match | None:
    """The first match in *content*, as :func:`tell` tells that."""
    # What is no UTF-8 is kept in a way that leads back to the bytes.
    text = content.decode("utf-8", "surrogateescape")
    plain = _plain(text)
    found = pattern.search(plain)
    if found is None:
        return None
    before = plain[: found.end()]
    column = len(before) - (before.rfind("\n") + 1)
    begin = 0
    for _line in range(before.count("\n")):
        begin = text.index("\n", begin) + 1
    end = len(text[: begin + column].encode("utf-8", "surrogateescape"))
    return Match(_clean(found[0]), tuple(each if each is None else _clean(each) for each in found.groups()), end)


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- displays


def displays(domain: ET.Element) -> list[Graphics]:
    """The display servers in a running domain's XML that can be reached: VNC and SPICE, at a port or a socket."""
    return [
        each
        for each in read_domain(domain).graphics
        if each.type in ("vnc", "spice") and (each.port or each.tls_port or each.listen.startswith("/"))
    ]


def has_screen(domain: ET.Element) -> bool:
    """Whether a domain has something that draws a picture."""
    return any(model.get("type") != "none" for model in domain.iterfind("devices/video/model"))


def is_anywhere(address: str) -> bool:
    """Whether a server that listens at *address* listens at all of the host's."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return not address


def url_of(display: Graphics, *, host: str) -> str:
    """The URL as virt-viewer and other viewers take it.

    :param host: The host's name, for a display that listens at all addresses.
    """
    if display.listen.startswith("/"):
        return f"{display.type}+unix://{quote(display.listen)}"
    address = host if is_anywhere(display.listen) else display.listen
    place = f"[{address}]" if ":" in address else address
    if display.port:
        place = f"{place}:{display.port}"
    return f"{display.type}://{place}" + (f"?tls-port={display.tls_port}" if display.tls_port else "")


def check_proxy(url: str, ttl: int) -> str:
    """The proxy's address as it is put before a path.

    :param ttl: Seconds that a token is good for.
    :raises Invalid: It is no address of a web server, or the time makes no sense.
    """
    found = _origin(url)
    if not found:
        raise Invalid(
            f"proxy.url {url!r} is not the address of a console proxy.",
            hint="It is like https://proxy.example.com:6080, without a path.",
        )
    if not 1 <= ttl <= 86400:
        raise Invalid(f"proxy.ttl is {ttl}, but a token is good for 1 to 86400 seconds.")
    return found


def _origin(url: str) -> str:
    """A web server's address without anything behind it; empty when *url* is not that."""
    try:
        parts = urlsplit(url)
        place = parts.hostname and parts.port != 0  # a port that is none raises
    except ValueError:
        return ""
    more = parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment
    return "" if parts.scheme not in ("http", "https") or not place or more else f"{parts.scheme}://{parts.netloc}"


def page_of(proxy: str, token: str) -> str:
    """The page of noVNC that shows the display which *token* opens."""
    path = quote(f"websockify?token={token}", safe="")
    return f"{proxy}/vnc.html?autoconnect=true&resize=scale&path={path}"
