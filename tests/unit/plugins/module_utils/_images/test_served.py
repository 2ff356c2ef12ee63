# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ast
import errno
import http.server
import json
import ssl
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import renewal, served
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.served import (
    AHEAD,
    CHUNK,
    CONNECTIONS,
    GONE_AFTER,
    KEPT,
    PAUSES,
    RUN,
    SILENCES,
    STREAM,
    Chunks,
    Failed,
    Glance,
    Gone,
    Patience,
    Refused,
    Streams,
    Tokens,
)
from tests.unit.fakes import JumpingClock

Headers = t.Mapping[str, str]


def content(start: int, end: int) -> bytes:
    """What an image has there: every piece is of another byte."""
    return b"".join(
        bytes([number % 251]) * (min(end, (number + 1) * CHUNK) - max(start, number * CHUNK))
        for number in range(start // CHUNK, -(-end // CHUNK))
    )


# ---- what is kept, and what is fetched early


class Store:
    """Gives :func:`content`.

    :param asked: From where to where, in pieces, in the order of the requests.
    """

    def __init__(self, size: int) -> None:
        self.asked: list[tuple[int, int]] = []
        self.problem: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.chunks = Chunks(self.fetch, size)

    def fetch(self, start: int, end: int) -> bytes:
        assert start % CHUNK == 0
        self.asked.append((start // CHUNK, -(-end // CHUNK)))
        assert self.open.wait(10)
        if self.problem:
            raise self.problem
        return content(start, end)

    def read(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.chunks.read(buffer, offset)
        return bytes(buffer)

    def settle(self) -> None:
        """Wait for what is fetched early."""
        for future in list(self.chunks._chunks.values()):
            future.exception(10)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 1), (CHUNK - 1, 2), (3 * CHUNK - 7, 5 * CHUNK), (0, 9 * CHUNK + 5), (9 * CHUNK, 5), (9 * CHUNK + 4, 1)],
)
def test_any_bytes_can_be_read(offset: int, count: int) -> None:
    assert Store(9 * CHUNK + 5).read(offset, count) == content(offset, offset + count)


def test_what_was_read_is_not_asked_for_again() -> None:
    store = Store(100 * CHUNK)
    store.chunks.put(0, content(0, CHUNK))
    for number in (0, 50, 3):
        for offset in (7, 9999):
            assert store.read(number * CHUNK + offset, 5) == content(number * CHUNK, number * CHUNK + 5)
    assert store.asked == [(50, 51), (3, 4)]


def test_only_the_last_pieces_are_kept() -> None:
    store = Store(1000 * CHUNK)
    numbers = [10 * number for number in range(KEPT)]
    for number in (*numbers, 0, 999):  # so 10 is the oldest
        store.read(number * CHUNK, 1)
    assert len(store.chunks._chunks) == KEPT
    assert len(store.asked) == KEPT + 1
    for number in (0, 999, 20, 10):
        store.read(number * CHUNK, 1)
    assert store.asked[KEPT + 1 :] == [(10, 11)]


def test_reads_here_and_there_fetch_nothing_early() -> None:
    store = Store(100 * CHUNK)
    for number in (5, 6, 7, 4):
        store.read(number * CHUNK + 4096, 4096)
        store.read(number * CHUNK + 65536, STREAM // 2)
    store.settle()
    assert store.asked == [(5, 6), (6, 7), (7, 8), (4, 5)]


def test_who_reads_on_has_the_next_pieces_fetched_early_and_several_at_once() -> None:
    store = Store(100 * CHUNK)
    step = STREAM // 4
    for offset in range(0, 2 * CHUNK, step):
        assert store.read(10 * CHUNK + offset, step) == content(10 * CHUNK + offset, 10 * CHUNK + offset + step)
    store.settle()
    assert sorted(store.asked) == [(10, 11), (11, 11 + RUN), (11 + RUN, 11 + AHEAD)]
    for offset in range(2 * CHUNK, 20 * CHUNK, step):
        store.read(10 * CHUNK + offset, step)
    store.settle()
    assert {end - start for start, end in store.asked[1:]} == {RUN}
    fetched = [number for start, end in store.asked for number in range(start, end)]
    assert sorted(fetched) == list(range(10, max(fetched) + 1))  # each once


def test_nothing_is_fetched_behind_the_end() -> None:
    store = Store(5 * CHUNK + 1)
    for number in range(5):
        store.read(number * CHUNK, CHUNK)
    assert store.read(5 * CHUNK, 1) == content(5 * CHUNK, 5 * CHUNK + 1)
    store.settle()
    assert max(end for _start, end in store.asked) == 6
    assert len(store.chunks._chunks) == 6


def test_who_wants_what_is_on_its_way_waits_for_it() -> None:
    store = Store(100 * CHUNK)
    store.open.clear()
    got: list[bytes] = []
    readers = [threading.Thread(target=lambda: got.append(store.read(5 * CHUNK, 9))) for _number in range(4)]
    for each in readers:
        each.start()
    time.sleep(0.05)
    assert got == []
    store.open.set()
    for each in readers:
        each.join(10)
    assert got == [content(5 * CHUNK, 5 * CHUNK + 9)] * 4
    assert store.asked == [(5, 6)]


def test_no_more_than_some_requests_are_on_their_way() -> None:
    store = Store(1000 * CHUNK)
    store.open.clear()
    readers = [threading.Thread(target=store.read, args=(10 * number * CHUNK, 1)) for number in range(2 * CONNECTIONS)]
    for each in readers:
        each.start()
    time.sleep(0.1)
    assert len(store.asked) == CONNECTIONS
    store.open.set()
    for each in readers:
        each.join(10)
    assert len(store.asked) == 2 * CONNECTIONS


def test_what_could_not_be_read_is_asked_for_again() -> None:
    store = Store(100 * CHUNK)
    store.problem = Gone("gone")
    for _time in range(2):
        with pytest.raises(Gone):
            store.read(3 * CHUNK - 1, 2)
    store.problem = None
    assert store.read(3 * CHUNK - 1, 2) == content(3 * CHUNK - 1, 3 * CHUNK + 1)


def test_several_readers_are_known_by_where_they_are() -> None:
    streams = Streams()
    assert [streams.seen(*each) for each in ((0, 10), (100, 5), (10, 10), (105, 5), (50, 1), (20, 1))] == [
        10,
        5,
        20,
        10,
        1,
        21,
    ]
    for number in range(served.READERS):
        streams.seen(1000 + 10 * number, 1)
    assert streams.seen(21, 1) == 1  # forgotten


# ---- patience


class Bed:
    """What a patient needs: attempts that end as they are told, tokens, a clock, and the log."""

    def __init__(self, *ends: Failed | None) -> None:
        self.ends = list(ends)
        self.silences: list[float] = []
        self.sent: list[Headers] = []
        self.said: list[str] = []
        self.clock = JumpingClock()
        self.tokens = Tokens({"token": "0"}, None, self.ask, self.clock.monotonic)
        self.answers: list[Failed | str] = []
        self.patience = Patience(self.attempt, self.tokens, self.clock.sleep, self.said.append)

    def attempt(self, _start: int, _end: int, headers: Headers, silence: float) -> bytes:
        self.silences.append(silence)
        self.sent.append(headers)
        if not self.ends:
            return b"data"
        end = self.ends.pop(0)
        if isinstance(end, Refused):
            raise Refused(headers)
        if end:
            raise end
        return b"data"

    def ask(self) -> tuple[Headers, float | None]:
        answer = self.answers.pop(0)
        if isinstance(answer, Failed):
            raise answer
        return {"token": answer}, None


def test_a_read_waits_for_ever_with_pauses_that_grow() -> None:
    bed = Bed(*[Failed("503")] * 1000)
    assert bed.patience.fetch(0, 4) == b"data"
    assert bed.clock.slept == [*PAUSES, *[PAUSES[-1]] * (1000 - len(PAUSES))]
    assert bed.silences[: len(SILENCES) + 2] == [*SILENCES, SILENCES[-1], SILENCES[-1]]
    assert bed.said == ["reading waits, and goes on by itself when it can: 503", "reading goes on"]


def test_a_connection_that_was_lost_is_nothing_to_talk_about() -> None:
    bed = Bed(Failed("reset"), Failed("reset"))
    assert bed.patience.fetch(0, 4) == b"data"
    assert bed.said == []
    assert bed.clock.seconds < 0.5


def test_that_an_image_is_gone_is_believed_when_it_is_said_several_times() -> None:
    bed = Bed(*[Gone("404")] * (GONE_AFTER - 1), Failed("reset"), *[Gone("404")] * (GONE_AFTER - 1))
    assert bed.patience.fetch(0, 4) == b"data"
    bed = Bed(*[Gone("404")] * GONE_AFTER)
    with pytest.raises(Gone, match="404"):
        bed.patience.fetch(0, 4)
    assert bed.clock.seconds < 5


def test_who_begins_is_told_soon() -> None:
    bed = Bed(*[Failed("503")] * 3)
    with pytest.raises(Failed, match="503"):
        bed.patience.fetch(0, 4, attempts=3)
    assert len(bed.silences) == 3


def test_a_token_that_is_refused_is_renewed_at_once() -> None:
    bed = Bed(Refused({}))
    bed.answers = ["1"]
    assert bed.patience.fetch(0, 4) == b"data"
    assert bed.sent == [{"token": "0"}, {"token": "1"}]
    assert bed.clock.slept == []


def test_without_a_token_a_read_waits() -> None:
    bed = Bed(*[Refused({})] * 6)
    bed.answers = [Failed("Keystone is away"), Failed("Keystone is away"), Failed("Keystone is away"), "1", "2", "3"]
    assert bed.patience.fetch(0, 4) == b"data"
    assert [headers["token"] for headers in bed.sent] == ["0", "0", "0", "0", "1", "2", "3"]
    assert len(bed.clock.slept) == 6
    assert "Keystone is away" in bed.said[0]


def test_a_token_is_renewed_once_for_all_who_were_refused() -> None:
    bed = Bed()
    bed.answers = ["1"]
    old = bed.tokens.headers()
    for _time in range(3):
        bed.tokens.renew(old)
    assert bed.tokens.headers() == {"token": "1"}
    assert bed.answers == []


def settled(predicate: t.Callable[[], bool]) -> None:
    """Wait for what is done in the background."""
    end = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(("lifetime", "due"), [(3600.0, 3300.0), (100.0, 90.0)])
def test_a_token_is_renewed_before_it_expires(lifetime: float, due: float) -> None:
    clock = JumpingClock()
    asked: list[float] = []

    def ask() -> tuple[Headers, float | None]:
        asked.append(clock.seconds)
        return {"token": "1"}, lifetime

    tokens = Tokens({"token": "0"}, lifetime, ask, clock.monotonic)
    clock.seconds = due - 1
    assert tokens.headers() == {"token": "0"}
    clock.seconds = due
    tokens.headers()  # that is what begins it
    settled(lambda: tokens.headers() == {"token": "1"})
    clock.seconds = due + due - 1
    tokens.headers()
    assert asked == [due]


def test_an_early_renewal_that_fails_is_not_repeated_until_the_token_is_refused() -> None:
    asked: list[int] = []

    def ask() -> tuple[Headers, float | None]:
        asked.append(1)
        raise Failed("Keystone is away")

    tokens = Tokens({"token": "0"}, 0.0, ask)
    for _time in range(20):
        assert tokens.headers() == {"token": "0"}
        time.sleep(0.002)
    assert asked == [1]
    with pytest.raises(Failed):
        tokens.renew(tokens.headers())


# ---- Glance, over HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as Glance does, or as it is told."""

    protocol_version = "HTTP/1.1"
    content = b"0123456789" * 100
    answers: t.ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    seen: t.ClassVar[list[tuple[t.Any, dict[str, str]]]] = []

    def log_message(self, *_words: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """What http.server calls."""
        self.seen.append((self.client_address, dict(self.headers)))
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        found = self.content[start : end + 1]
        status, headers, body = 206, {"Content-Range": f"bytes {start}-{end}/{len(self.content)}"}, found
        if self.answers:
            status, headers, body = self.answers.pop(0)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "Close" in headers


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that go early."""

    daemon_threads = True

    def handle_error(self, *_words: object) -> None:
        """What socketserver calls."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[str]:
    monkeypatch.setattr(Handler, "answers", [])
    monkeypatch.setattr(Handler, "seen", [])
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v2/images/ID/file"
        running.shutdown()


def test_ranges_come_over_one_connection(server: str) -> None:
    glance = Glance(server, 1000, None)
    for start, end in ((0, 1), (15, 25), (999, 1000), (0, 1000)):
        assert glance.fetch(start, end, {"X-Auth-Token": "x"}, 5) == Handler.content[start:end]
    assert len({address for address, _headers in Handler.seen}) == 1
    assert all(headers["X-Auth-Token"] == "x" for _address, headers in Handler.seen)


@pytest.mark.parametrize(
    ("url", "tls", "where"),
    [
        ("https://cloud/v2/x", True, ("cloud", 443)),
        ("http://cloud/v2/x", False, ("cloud", 80)),
        ("https://[fd00::1]/v2/x", True, ("fd00::1", 443)),
        ("https://[fd00::1]:9292/v2/x", True, ("fd00::1", 9292)),
    ],
)
def test_addresses_may_leave_things_out(url: str, tls: bool, where: tuple[str, int]) -> None:
    connection = Glance(url, 5, ssl.create_default_context() if tls else None)._connection(5)
    assert (connection.host, connection.port) == where


RANGE = "bytes 10-19/1000"


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (206, {"Content-Range": "bytes 10-18/1000"}, b"012345678", "other bytes"),
        (206, {"Content-Range": "bytes 10-19/1001"}, b"0123456789", "other bytes"),
        (206, {}, b"0123456789", "other bytes"),
        (200, {}, b"0123456789" * 100, "other bytes"),
        (206, {"Content-Range": RANGE}, b"012345678", "sends 9 bytes instead of 10"),
        (206, {"Content-Range": RANGE}, b"01234567890", "sends 11 bytes instead of 10"),
        (206, {"Content-Range": RANGE, "Content-Length": "10", "Close": "1"}, b"0123", "4 bytes|IncompleteRead"),
        (503, {}, b"away", "answers 503"),
        (301, {"Location": "/elsewhere"}, b"", "answers 301"),
        (0, {}, b"", "closed connection"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_a_failed_attempt(
    server: str, status: int, headers: dict[str, str], body: bytes, said: str
) -> None:
    glance = Glance(server, 1000, None)
    Handler.answers.append((status, headers, body))
    with pytest.raises(Failed, match=said) as caught:
        glance.fetch(10, 20, {}, 5)
    assert caught.type is Failed
    assert glance.fetch(10, 20, {}, 5) == b"0123456789"


def test_who_ignores_ranges_may_send_all_when_all_is_asked_for(server: str) -> None:
    Handler.answers.append((200, {}, Handler.content))
    assert Glance(server, 1000, None).fetch(0, 1000, {}, 5) == Handler.content


@pytest.mark.parametrize("status", [403, 404, 410, 416])
def test_an_image_that_is_gone_is_told_apart(server: str, status: int) -> None:
    Handler.answers.append((status, {}, b"no"))
    with pytest.raises(Gone, match=str(status)):
        Glance(server, 1000, None).fetch(0, 10, {}, 5)


def test_a_token_that_is_refused_is_told_apart(server: str) -> None:
    Handler.answers.append((401, {}, b"who?"))
    sent = {"X-Auth-Token": "old"}
    with pytest.raises(Refused) as caught:
        Glance(server, 1000, None).fetch(0, 10, sent, 5)
    assert caught.value.headers is sent


def test_nobody_there_is_a_failed_attempt() -> None:
    with pytest.raises(Failed, match="refused"):
        Glance("http://127.0.0.1:1/v2/images/ID/file", 1000, None).fetch(0, 10, {}, 5)


# ---- the whole, as nbdkit calls it


class FakeNbdkit:
    """What nbdkit gives to its plugins."""

    THREAD_MODEL_PARALLEL = 3

    def __init__(self) -> None:
        self.errors: list[int] = []

    def set_error(self, number: int) -> None:
        self.errors.append(number)


@pytest.fixture
def settings(server: str, tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    told = {
        "url": server,
        "size": 1000,
        "headers": {"X-Auth-Token": "0"},
        "lifetime": None,
        "verify": True,
        "cert": None,
        "renewal": [sys.executable, "-c", 'print(\'{"headers": {"X-Auth-Token": "1"}, "lifetime": 3600}\')'],
    }
    path.write_text(json.dumps(told), "utf-8")
    return path


def test_nbdkit_gets_the_image(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbdkit = FakeNbdkit()
    monkeypatch.setattr(served, "nbdkit", nbdkit)
    monkeypatch.setattr(served, "_served", [])
    served.config("settings", str(settings))
    served.get_ready()
    handle = served.open(True)
    assert served.get_size(handle) == 1000
    assert served.can_multi_conn(handle)
    assert served.thread_model() == 3
    buffer = bytearray(10)
    served.pread(handle, buffer, 500, 0)
    assert buffer == Handler.content[500:510]
    assert len(Handler.seen) == 1  # it was read already

    served._served[0].chunks = Chunks(served._served[0]._patience.fetch, 1000)
    Handler.answers.append((401, {}, b"expired"))
    served.pread(handle, buffer, 0, 0)
    assert [headers["X-Auth-Token"] for _address, headers in Handler.seen] == ["0", "0", "1"]

    served._served[0].chunks = Chunks(served._served[0]._patience.fetch, 1000)
    Handler.answers.extend([(404, {}, b"gone")] * GONE_AFTER)
    with pytest.raises(Gone):
        served.pread(handle, buffer, 0, 0)
    assert nbdkit.errors == [errno.EIO]
    with pytest.raises(ValueError, match="other is not known"):
        served.config("other", "x")


def test_what_fails_at_the_beginning_is_told_for_the_bridge_to_read(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "_served", [])
    served.config("settings", str(settings))
    Handler.answers.extend([(503, {}, b"away")] * 3)
    with pytest.raises(Failed):
        served.get_ready()
    assert capsys.readouterr().err == f"{served.REASON}Glance answers 503\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('line\\nKeystone is away')", "Keystone is away"),
        ("raise SystemExit(3)", "no reason"),
        ("print('no JSON')", "Expecting value"),
        ("print('{}')", "headers"),
    ],
)
def test_a_renewal_that_fails_is_an_attempt_that_failed(settings: Path, program: str, said: str) -> None:
    told = json.loads(settings.read_text("utf-8"))
    told["renewal"] = [sys.executable, "-c", program]
    settings.write_text(json.dumps(told), "utf-8")
    with pytest.raises(Failed, match=said):
        served.renewed(str(settings))
    settings.unlink()
    with pytest.raises(Failed, match="No such file"):
        served.renewed(str(settings))


# ---- programs of their own


@pytest.mark.parametrize("module", [served, renewal])
def test_what_outlives_the_module_needs_nothing_of_it(module: t.Any) -> None:
    """They run in other Pythons, the oldest of which is 3.9, without the collection."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside <= {"nbdkit", "keystoneauth1"}
