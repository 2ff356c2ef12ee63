# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The program of a bridge (:mod:`.bridge`): an image in Glance as an NBD export, read in pieces when they are wanted.

nbdkit's Python plugin runs this file, in the Python that it was built with, long after the module that began it. So it
is one file, that needs the standard library and no more; tokens are asked for by another program in another Python.

A guest's disk is behind it, so it is patient: whatever Glance does, a read waits until Glance is well again. Only when
the image is gone, or is kept from us for good, the read fails.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import http.client
import io
import json
import os
import re
import ssl
import subprocess
import sys
import syslog
import threading
import time
import typing as t
import urllib.parse
from concurrent.futures import Future, ThreadPoolExecutor

try:
    import nbdkit
except ImportError:  # it is there inside nbdkit only
    nbdkit = None

API_VERSION = 2

# Bytes of a piece, the least that is asked for: much less would take as long. How many are kept.
CHUNK = 1 << 20
KEPT = 24
# Pieces that are fetched before they are wanted, where reads follow each other; and how many with one request.
AHEAD = 8
RUN = 4
# Bytes that were read one after the other until that is done, and of how many such readers we know.
STREAM = 512 << 10
READERS = 32
# Requests at a time: QEMU's copying and the guest's reads.
CONNECTIONS = 8
# Seconds between attempts, and of silence until an attempt is given up: the last of each holds for all that follow.
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SILENCES = (5.0, 10.0, 20.0)
# Attempts until it is believed that an image is gone, and until we tell that Glance does not answer when we begin.
GONE_AFTER = 5
BEGIN_ATTEMPTS = 3
# A token is renewed when so many seconds, or this part of its life, are left.
RENEW_BEFORE = 300.0
RENEW_PART = 0.1
# Seconds that asking for a token may take.
RENEWAL = 120.0
# Before the reason why it does not begin.
REASON = "bridge: "
# What may mean that an image is gone or not ours; 204 is an image without content.
_GONE = (204, 403, 404, 410, 416)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Headers = t.Mapping[str, str]
Buffer = t.Any  # writable, of bytes


class Failed(Exception):
    """An attempt that may work another time."""


class Gone(Failed):
    """So says Glance; when it says so several times, it is believed."""


class Refused(Failed):
    """The token is not taken.

    :param headers: Those that were sent.
    """

    def __init__(self, headers: Headers) -> None:
        super().__init__("Glance does not take the token")
        self.headers = headers


class Settings:
    """The file that :mod:`.bridge` writes, which may be written anew while we run.

    :param path: Of the file, JSON: ``url`` of the image's content, its ``size``, the ``headers`` that let us in and
        for how many seconds (``lifetime``; null: not known), ``verify`` (a file or directory of certificates; false),
        ``cert`` (files with a certificate of ours and its key; null), and ``renewal``, a command that prints new
        ``headers`` and ``lifetime``.
    """

    def __init__(self, path: str) -> None:
        with io.open(path, encoding="utf-8") as file:  # noqa: UP020  # open() is another one here
            told = json.load(file)
        self.url = str(told["url"])
        self.size = int(told["size"])
        self.headers: Headers = dict(told["headers"])
        self.lifetime: float | None = told["lifetime"]
        self.verify: str | bool = told["verify"]
        self.cert: list[str] | None = told["cert"]
        self.renewal: list[str] = list(told["renewal"])


class Tokens:
    """What lets us in, and its renewal.

    :param ask: Gives new headers, and for how many seconds they will do; ``None`` if that is not known.
    """

    def __init__(
        self,
        headers: Headers,
        lifetime: float | None,
        ask: t.Callable[[], tuple[Headers, float | None]],
        monotonic: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._renewing = threading.Lock()
        self._take(headers, lifetime)

    def _take(self, headers: Headers, lifetime: float | None) -> None:
        self._headers = headers
        self._due = None
        if lifetime is not None:
            self._due = self._monotonic() + lifetime - min(RENEW_BEFORE, lifetime * RENEW_PART)

    def headers(self) -> Headers:
        """Those of now. New ones are asked for in the background when it is time."""
        if self._due is not None and self._monotonic() >= self._due and not self._renewing.locked():
            self._due = None
            threading.Thread(target=self._renew_early, args=(self._headers,), daemon=True).start()
        return self._headers

    def _renew_early(self, old: Headers) -> None:
        with contextlib.suppress(Failed):  # it is tried again when they are not taken any more
            self.renew(old)

    def renew(self, refused: Headers) -> None:
        """Get others than those that were *refused*.

        :raises Failed: There are none.
        """
        with self._renewing:
            if self._headers is refused:
                self._take(*self._ask())


class Glance:
    """The content of one image, over connections that are kept.

    :param url: Of the content.
    :param size: Of it, in bytes.
    :param context: For TLS; ``None`` without it.
    """

    def __init__(self, url: str, size: int, context: ssl.SSLContext | None) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port or (443 if context else 80)
        self._target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._size = size
        self._context = context
        self._idle: list[http.client.HTTPConnection] = []

    def fetch(self, start: int, end: int, headers: Headers, silence: float) -> bytes:
        """The bytes from *start* up to *end*, in one attempt.

        :param silence: Seconds without a byte until it is given up.
        """
        connection = self._connection(silence)
        try:
            data = self._ask(connection, start, end, headers)
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            self.forget()  # who lost one has lost them all
            raise Failed(str(exc) or type(exc).__name__) from exc
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return data

    def _connection(self, silence: float) -> http.client.HTTPConnection:
        try:
            connection = self._idle.pop()
        except IndexError:
            if self._context is None:
                return http.client.HTTPConnection(self._host, self._port, timeout=silence)
            return http.client.HTTPSConnection(self._host, self._port, timeout=silence, context=self._context)
        if connection.sock is not None:
            connection.sock.settimeout(silence)
        return connection

    def _ask(self, connection: http.client.HTTPConnection, start: int, end: int, headers: Headers) -> bytes:
        asked = {
            **headers,
            "Range": f"bytes={start}-{end - 1}",
            "Accept": "application/octet-stream",
            "Accept-Encoding": "identity",
        }
        connection.request("GET", self._target, headers=asked)
        response = connection.getresponse()
        if response.status == 401:
            raise Refused(headers)
        if response.status in _GONE:
            raise Gone(f"Glance answers {response.status}")
        found = _RANGE.fullmatch(response.getheader("Content-Range", ""))
        told = tuple(map(int, found.groups())) if found else (0, self._size - 1, self._size)
        if response.status not in (200, 206) or told != (start, end - 1, self._size):
            what = "with other bytes than were asked for" if response.status in (200, 206) else str(response.status)
            raise Failed(f"Glance answers {what}")
        data = response.read(end - start + 1)
        if len(data) != end - start:
            raise Failed(f"Glance sends {len(data)} bytes instead of {end - start}")
        response.read()  # the end of it, so that the connection can be used again
        return data

    def forget(self) -> None:
        """Let go of the connections that are kept."""
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()


class Patience:
    """Tries again until it works, and tells the system's log when that takes long.

    :param attempt: Gets *start* and *end*, headers, and how many seconds of silence to bear.
    :param say: Tells the log.
    """

    def __init__(
        self,
        attempt: t.Callable[[int, int, Headers, float], bytes],
        tokens: Tokens,
        sleep: t.Callable[[float], None] = time.sleep,
        say: t.Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._attempt = attempt
        self._tokens = tokens
        self._sleep = sleep
        self._say = say
        self._ill = False

    def fetch(self, start: int, end: int, attempts: int = 0) -> bytes:
        """The bytes from *start* up to *end*, whenever they come.

        :param attempts: After how many it is given up; 0 for never.
        :raises Gone: The image is.
        :raises Failed: It was given up.
        """
        number = gone = 0
        while True:
            try:
                data = self._attempt(start, end, self._tokens.headers(), _at(SILENCES, number))
                self._well()
                return data
            except Failed as exc:
                number += 1
                gone = gone + 1 if isinstance(exc, Gone) else 0
                if number == attempts or gone == GONE_AFTER:
                    raise
                reason: Failed = exc
            if isinstance(reason, Refused):
                try:
                    self._tokens.renew(reason.headers)
                    if number == 1:
                        continue
                except Failed as exc:
                    reason = exc
            if number > 2:
                self._worry(reason)
            self._sleep(_at(PAUSES, number - 1))

    def _worry(self, reason: Failed) -> None:
        if not self._ill:
            self._ill = True
            self._say(f"reading waits, and goes on by itself when it can: {reason}")

    def _well(self) -> None:
        if self._ill:
            self._ill = False
            self._say("reading goes on")


def _at(values: t.Sequence[float], number: int) -> float:
    return values[min(number, len(values) - 1)]


class Streams:
    """Who reads on where he left off. Several may do so at a time."""

    def __init__(self) -> None:
        self._lengths: collections.OrderedDict[int, int] = collections.OrderedDict()  # by where they are

    def seen(self, offset: int, count: int) -> int:
        """Take note of a read; how many bytes one after the other its reader has read with it."""
        length = self._lengths.pop(offset, 0) + count
        self._lengths[offset + count] = length
        if len(self._lengths) > READERS:
            self._lengths.popitem(last=False)
        return length


class Chunks:
    """The last pieces that were read. Where reads follow each other, the next pieces are fetched before they are asked
    for. Whoever wants a piece that is on its way waits for it, rather than asking again.

    :param fetch: Gives the bytes from an offset up to another.
    :param size: Of all.
    """

    def __init__(self, fetch: t.Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._chunks: collections.OrderedDict[int, Future[bytes]] = collections.OrderedDict()
        self._streams = Streams()
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(CONNECTIONS)  # begins a thread when it has something to do

    def put(self, number: int, data: bytes) -> None:
        """Keep a piece that was read already."""
        self._chunks[number] = Future()
        self._chunks[number].set_result(data)

    def read(self, buffer: Buffer, offset: int) -> None:
        """Fill *buffer* with what is at *offset*. All of it must be there."""
        view = memoryview(buffer)
        first, last = offset // CHUNK, (offset + len(view) - 1) // CHUNK
        with self._guard:
            follows = self._streams.seen(offset, len(view)) >= STREAM
            self._begin([number for number in range(first, last + 1) if not self._has(number)])
            wanted = [self._chunks[number] for number in range(first, last + 1)]
            for number in range(first, last + 1):
                self._chunks.move_to_end(number)
            if follows:
                self._look_ahead(last + 1)
            self._shrink()
        for number, future in zip(range(first, last + 1), wanted):
            data = memoryview(future.result())[max(0, offset - number * CHUNK) :][: len(view)]
            view[: len(data)] = data
            view = view[len(data) :]

    def _has(self, number: int) -> bool:
        """Whether a piece is there or on its way."""
        found = self._chunks.get(number)
        return found is not None and (not found.done() or found.exception() is None)

    def _look_ahead(self, first: int) -> None:
        end = min(first + AHEAD, -(-self._size // CHUNK))
        missing = [number for number in range(first, end) if not self._has(number)]
        if len(missing) >= RUN or (missing and missing[-1] * CHUNK + CHUNK >= self._size):
            self._begin(missing)

    def _begin(self, numbers: t.Sequence[int]) -> None:
        """Fetch pieces, those that follow each other with one request."""
        for number in numbers:
            self._chunks[number] = Future()
        run: list[int] = []
        for number in numbers:
            if run and (number != run[-1] + 1 or len(run) == RUN):
                self._submit(run)
                run = []
            run.append(number)
        if run:
            self._submit(run)

    def _submit(self, run: t.Sequence[int]) -> None:
        futures = [self._chunks[number] for number in run]
        task = self._pool.submit(self._fetch, run[0] * CHUNK, min((run[-1] + 1) * CHUNK, self._size))
        task.add_done_callback(lambda done: _deliver(done, futures))

    def _shrink(self) -> None:
        """Forget the oldest pieces; those on their way are waited for by somebody."""
        for number in [number for number, future in self._chunks.items() if future.done()]:
            if len(self._chunks) <= KEPT:
                return
            del self._chunks[number]


def _deliver(done: Future[bytes], futures: t.Sequence[Future[bytes]]) -> None:
    """Hand the pieces of what was read to whoever waits for them, or the reason why there are none."""
    problem = done.exception()
    if problem:
        for future in futures:
            future.set_exception(problem)
        return
    data = memoryview(done.result())
    for number, future in enumerate(futures):
        future.set_result(bytes(data[number * CHUNK :][:CHUNK]))


def renewed(settings: str) -> tuple[Headers, float | None]:
    """Ask for a token: run the command of the settings, as they are now.

    :raises Failed: There is none.
    """
    try:
        command = Settings(settings).renewal
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RENEWAL, check=False
        )
        if done.returncode:
            raise Failed(f"there is no new token: {(done.stderr.strip().splitlines() or ['no reason is told'])[-1]}")
        told = json.loads(done.stdout)
        return dict(told["headers"]), told["lifetime"]
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as exc:
        raise Failed(f"there is no new token: {exc}") from exc


def _context(settings: Settings) -> ssl.SSLContext | None:
    if urllib.parse.urlsplit(settings.url).scheme != "https":
        return None
    trusted = settings.verify if isinstance(settings.verify, str) else None
    is_directory = trusted is not None and os.path.isdir(trusted)
    context = ssl.create_default_context(
        cafile=None if is_directory else trusted, capath=trusted if is_directory else None
    )
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert:
        context.load_cert_chain(*settings.cert)
    return context


class Image:
    """What is served.

    :param settings: Path of the file with the :class:`Settings`.
    """

    def __init__(self, settings: str) -> None:
        told = Settings(settings)
        self.size = told.size
        self._glance = Glance(told.url, told.size, _context(told))
        tokens = Tokens(told.headers, told.lifetime, lambda: renewed(settings))
        self._patience = Patience(self._glance.fetch, tokens, say=self._say)
        self._called = f"{told.url}: "
        self.chunks = Chunks(self._patience.fetch, told.size)

    def begin(self) -> None:
        """Read the beginning, to see that it can be, and keep it.

        :raises Failed: It cannot.
        """
        if self.size:
            self.chunks.put(0, self._patience.fetch(0, min(CHUNK, self.size), attempts=BEGIN_ATTEMPTS))
        self._glance.forget()  # nbdkit goes on in another process

    def _say(self, text: str) -> None:
        syslog.syslog(syslog.LOG_WARNING, self._called + text)


# ---- what nbdkit calls

_served: list[Image] = []


def thread_model() -> t.Any:
    """Several reads at a time."""
    return nbdkit.THREAD_MODEL_PARALLEL


def config(key: str, value: str) -> None:
    """An argument of the command line; there is one."""
    if key != "settings":
        raise ValueError(f"{key} is not known")
    syslog.openlog("kvmops-bridge", syslog.LOG_PID, syslog.LOG_DAEMON)
    _served.append(Image(value))


def get_ready() -> None:
    """What fails here is told by nbdkit before it goes into the background."""
    try:
        _served[0].begin()
    except Failed as exc:
        sys.stderr.write(f"{REASON}{exc}\n")
        raise


def open(readonly: bool) -> int:  # nbdkit wants that name
    """A client has come."""
    return 1


def get_size(_handle: int) -> int:
    """All bytes."""
    return _served[0].size


def can_multi_conn(_handle: int) -> bool:
    """Nothing changes, so several connections see the same."""
    return True


def pread(_handle: int, buf: Buffer, offset: int, _flags: int) -> None:
    """Read."""
    try:
        _served[0].chunks.read(buf, offset)
    except Gone:
        nbdkit.set_error(errno.EIO)
        raise
