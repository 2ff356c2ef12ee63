# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside the servers of the lab's Glance and Keystone: what SQLite needs, and faults on demand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy.engine
import sqlalchemy.event

Environ = dict[str, Any]
Start = Callable[..., Any]
Application = Callable[[Environ, Start], Iterable[bytes]]

REASONS = {401: "Unauthorized", 500: "Internal Server Error", 503: "Service Unavailable"}


def prepare() -> None:
    """To be called before the server's own code is imported.

    Keystone reads ``sys.argv`` at import, where the WSGI server's arguments are. SQLite refuses a transaction that
    began with reading and then writes while another one does, whatever the timeout: so each takes the lock at its
    beginning, and waits for it.
    """
    del sys.argv[1:]
    engine = sqlalchemy.engine.Engine

    def connected(connection: Any, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "busy_timeout=30000"):
            connection.execute("PRAGMA " + pragma)

    def executed(_connection: object, _cursor: object, statement: str, parameters: Any, *_more: object) -> Any:
        return ("BEGIN IMMEDIATE" if statement == "BEGIN" else statement), parameters

    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "before_cursor_execute", executed, retval=True)


class Broken(OSError):
    """Raised below the server, as if the client had gone."""


class Faults:
    """Stands before Glance and does what the control file says: see glance.py, which writes it.

    The file is read at each request. It holds ``kind`` (see there), ``on`` (upload, download, any), ``status``,
    ``after`` (bytes of the body that pass before), ``times`` (0: until healed), ``seconds``, and ``mark``, another one
    for each fault.
    """

    def __init__(self, application: Application, control: Path) -> None:
        self.application = application
        self.control = control
        self.lock = threading.Lock()
        self.mark = ""
        self.fired = 0

    def read(self) -> dict[str, Any]:
        """The fault of now; empty without one."""
        try:
            return dict(json.loads(self.control.read_text("utf-8")))
        except FileNotFoundError:
            return {}

    def spent(self, fault: dict[str, Any], fire: bool) -> bool:
        """Whether the fault has happened as often as it should. If not, *fire* counts it."""
        with self.lock:
            if self.mark != fault["mark"]:
                self.mark, self.fired = fault["mark"], 0
            if fault["times"] and self.fired >= fault["times"]:
                return True
            self.fired += fire
            return False

    def stall(self, fault: dict[str, Any]) -> None:
        """Do nothing for the seconds, or until the fault is mended."""
        end = time.monotonic() + fault["seconds"]
        while time.monotonic() < end and self.read().get("mark") == fault["mark"]:
            time.sleep(0.1)

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        is_file = re.fullmatch(r"/v2/images/[^/]+/file", environ["PATH_INFO"])
        which = {"PUT": "upload", "GET": "download"}.get(environ["REQUEST_METHOD"], "") if is_file else ""
        fault = self.read() if environ["PATH_INFO"] != "/healthcheck" else {}
        if fault and (fault["on"] not in ("any", which) or self.spent(fault, fire=False)):
            fault = {}
        if which == "upload":
            return self._upload(fault, environ, start_response)
        if which == "download" and fault and fault["kind"] not in ("fail", "expire"):
            return self._download(fault, environ, start_response)
        if not fault or self.spent(fault, fire=True):
            return self.application(environ, start_response)
        if fault["kind"] in ("fail", "expire"):
            drain(environ["wsgi.input"])
            return _error(fault["status"], start_response)
        if fault["kind"] == "reset":
            cut(environ)
        self.stall(fault)
        return self.application(environ, start_response)

    def _upload(self, fault: dict[str, Any], environ: Environ, start_response: Start) -> Iterable[bytes]:
        """An answer that comes before the end of the body waits for it, as with the proxies before a real Glance.

        Else the connection would be closed while the client is sending, and over TLS Python's says so (an SSL error),
        and does not look for the answer.
        """
        stream = environ["wsgi.input"]
        body = _Upload(self, fault, environ) if fault else None
        if body:
            environ["wsgi.input"] = body
        head: list[Any] = []
        blocks: list[bytes] = []
        with contextlib.suppress(Broken):
            blocks = list(self.application(environ, lambda *words: head.extend(words)))
        drain(stream)
        if body and body.broken:
            return _error(fault["status"], start_response)
        start_response(*head)
        return blocks

    def _download(self, fault: dict[str, Any], environ: Environ, start_response: Start) -> Iterable[bytes]:
        good = False

        def started(status: str, headers: list[tuple[str, str]], *more: object) -> Any:
            nonlocal good
            good = status[:3] in ("200", "206")
            if good and fault["kind"] == "truncate" and not self.spent(fault, fire=False):
                # The answer is whole by HTTP's rules: who trusts them does not notice.
                headers = [
                    (key, str(min(int(value), fault["after"])) if key.lower() == "content-length" else value)
                    for key, value in headers
                ]
            return start_response(status, headers, *more)

        blocks = self.application(environ, started)
        return self._spoilt(fault, environ, blocks) if good else blocks

    def _spoilt(self, fault: dict[str, Any], environ: Environ, blocks: Iterable[bytes]) -> Iterator[bytes]:
        left = fault["after"]
        with contextlib.ExitStack() as stack:
            if hasattr(blocks, "close"):
                stack.callback(blocks.close)
            for block in blocks:
                if left is None or len(block) <= left:
                    left = left if left is None else left - len(block)
                    yield block
                    continue
                if left:
                    yield block[:left]
                rest, left = block[left:], None
                if not self.spent(fault, fire=True):
                    if fault["kind"] == "truncate":
                        return
                    if fault["kind"] == "reset":
                        cut(environ)
                    elif fault["kind"] == "corrupt":
                        rest = bytes([rest[0] ^ 0xFF]) + rest[1:]
                    else:
                        self.stall(fault)
                yield rest


class _Upload:
    """The body of an upload, up to the byte at which something happens."""

    def __init__(self, faults: Faults, fault: dict[str, Any], environ: Environ) -> None:
        self.faults = faults
        self.fault = fault
        self.environ = environ
        self.stream = environ["wsgi.input"]
        self.left: int | None = fault["after"]
        self.broken = False

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        if self.left == 0:
            self.left = None
            if not self.faults.spent(self.fault, fire=True):
                self._happen()
        if self.left is not None:
            size = self.left if size < 0 else min(size, self.left)
        block: bytes = self.stream.read(size)
        if self.left is not None:
            self.left -= len(block)
        return block

    def _happen(self) -> None:
        if self.fault["kind"] == "stall":
            self.faults.stall(self.fault)
        elif self.fault["kind"] == "reset":
            cut(self.environ)
        else:
            self.broken = True
            raise Broken


def drain(stream: Any) -> None:
    """Read what is left of a request's body, and forget it."""
    while stream.read(1 << 16):
        pass


def cut(environ: Environ) -> None:
    """Reset the connection under the server.

    OpenSSL keeps the number of the file and writes to it once more, so it stays taken: the next file opened with that
    number would be a database.
    """
    connection = environ["gunicorn.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, connection.fileno(), inheritable=False)
    os.close(nothing)
    raise Broken


def _error(status: int, start_response: Start) -> Iterable[bytes]:
    body = json.dumps({"code": status, "title": REASONS[status], "message": "a fault of the lab"}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {REASONS[status]}", headers)
    return [body]
