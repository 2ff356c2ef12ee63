# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import types
import typing as t
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    Unreachable,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import bridge, renewal, served
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.bridge import Bridge
from tests.unit.fakes import JumpingClock

ID = "8f2c6b52-4b05-4e0d-a6d2-5c1b8e0d7a11"
SETTINGS: dict[str, t.Any] = {
    "url": "https://cloud:9292/v2/images/ID/file",
    "size": 5,
    "headers": {"X-Auth-Token": "secret"},
    "lifetime": 3600.0,
    "verify": "/ca.pem",
    "cert": None,
    "auth_type": "password",
    "auth": {"password": "secret"},
}

# Stands for nbdkit: listens and greets, or says why not. Like nbdkit it goes into the background when it is ready.
NBDKIT = """#!{python}
import os, socket, sys
unix = sys.argv[2].partition("=")[2]
assert sys.argv[1] == "--readonly" and sys.argv[-1].startswith("settings=")
said = {said!r}
if said:
    sys.exit(said)
server = socket.socket(socket.AF_UNIX)
server.bind(unix)
server.listen()
if os.fork():
    os._exit(0)
for fd in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
while True:
    client, _address = server.accept()
    client.send(b"NBDMAGICIHAVEOPT")
"""


@pytest.fixture
def place() -> t.Iterator[Path]:
    """A directory with a short name: a socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def nbdkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str], None]:
    """Puts a stand-in for it in its place, that says so when it is begun."""
    program = tmp_path / "nbdkit"

    def install(said: str = "") -> None:
        program.write_text(NBDKIT.format(python=sys.executable, said=said), "utf-8")
        program.chmod(0o755)

    install()
    monkeypatch.setattr(bridge.shutil, "which", lambda _name, path=None: str(program))
    return install


@pytest.fixture
def opened(place: Path, nbdkit: t.Callable[[str], None]) -> t.Iterator[Bridge]:
    one = Bridge(ID, str(place / "b"), "image web", JumpingClock())
    one.open(SETTINGS)
    yield one
    one.close()
    assert os.listdir(place / "b") == []


def told(one: Bridge) -> dict[str, t.Any]:
    """What stands in its settings."""
    return dict(json.loads(Path(one.socket).with_suffix(".json").read_text("utf-8")))


def test_a_bridge_that_answers_is_told_what_is_new(opened: Bridge) -> None:
    before = opened._processes()
    assert len(before) == 1
    opened.open({**SETTINGS, "auth": {"password": "other"}, "headers": {"X-Auth-Token": "other"}})
    assert opened._processes() == before
    assert told(opened)["auth"] == {"password": "other"}
    assert told(opened)["headers"] == {"X-Auth-Token": "other"}
    assert told(opened)["renewal"][0] == sys.executable
    assert told(opened)["path"] == sys.path


@pytest.mark.parametrize(
    "change", [{"url": "https://other/file"}, {"size": 6}, {"verify": False}, {"cert": ["/c", "/k"]}]
)
def test_a_bridge_to_something_else_is_replaced(opened: Bridge, change: dict[str, t.Any]) -> None:
    before = opened._processes()
    opened.open({**SETTINGS, **change})
    after = opened._processes()
    assert len(after) == 1
    assert after != before


def test_a_bridge_whose_files_are_damaged_is_replaced(opened: Bridge) -> None:
    before = opened._processes()
    Path(opened.socket).with_suffix(".json").write_text("{", "utf-8")
    opened.open(SETTINGS)
    assert opened._processes() != before
    os.unlink(opened.socket)
    opened.open(SETTINGS)
    assert len(opened._processes()) == 1


def test_a_process_that_only_knows_the_socket_is_not_ended(opened: Bridge) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)", opened.socket, f"x--unix={opened.socket}"]
    with subprocess.Popen(command) as client:
        try:
            opened.close()
            assert opened._processes() == []
            assert client.poll() is None
        finally:
            client.kill()


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (f"nbdkit: x\n{served.REASON}Glance answers 503\nnbdkit: y", Unreachable, "in place: Glance answers 503."),
        ("nbdkit: error: cannot open plugin 'python': /usr/lib: cannot open", Unsupported, "nbdkit-plugin-python"),
        ("nbdkit: error: something\nelse", LifecycleError, "nbdkit says: nbdkit: error: something else."),
    ],
)
def test_what_does_not_begin_is_told_and_leaves_nothing(
    place: Path, nbdkit: t.Callable[[str], None], said: str, kind: type[LifecycleError], message: str
) -> None:
    nbdkit(said)
    with pytest.raises(kind) as caught:
        Bridge(ID, str(place / "b"), "image web").open(SETTINGS)
    assert caught.type is kind
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert os.listdir(place / "b") == []


def test_a_socket_whose_name_is_too_long_is_told(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 60)
    with pytest.raises(Invalid, match="longer than a socket's name may be"):
        Bridge(ID, str(directory), "image web").open(SETTINGS)
    assert not directory.exists()


def test_ending_what_is_not_there_is_fine(tmp_path: Path) -> None:
    Bridge(ID, str(tmp_path / "b"), "image web").close()
    assert not (tmp_path / "b").exists()


def test_programs_come_out_of_an_archive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ansible sends modules."""
    with zipfile.ZipFile(tmp_path / "payload.zip", "w") as file:
        file.writestr("payload/__init__.py", "")
        file.write(served.__file__, "payload/served.py")
    monkeypatch.syspath_prepend(str(tmp_path / "payload.zip"))
    module = importlib.import_module("payload.served")
    assert bridge._source(module.__name__) == Path(served.__file__).read_text("utf-8")


# ---- the program that asks for tokens


class Session:
    """Of keystoneauth.

    :param options: That it was made with.
    """

    def __init__(self, **options: t.Any) -> None:
        self.options = options
        self.auth = options["auth"]

    def get_auth_headers(self) -> dict[str, str] | None:
        return {"X-Auth-Token": self.auth.options["password"]} if self.auth else None


class Plugin:
    """An authentication plugin."""

    def __init__(self, expires: datetime | None, **options: t.Any) -> None:
        self.expires = expires
        self.options = options

    def get_access(self, _session: Session) -> t.Any:
        return types.SimpleNamespace(expires=self.expires)


def test_a_token_is_told_with_its_life() -> None:
    found = renewal.entry(Session(auth=Plugin(datetime.now(timezone.utc) + timedelta(hours=1), password="x")))
    assert found["headers"] == {"X-Auth-Token": "x"}
    assert 3590 < found["lifetime"] <= 3600
    assert renewal.entry(Session(auth=Plugin(None, password="x")))["lifetime"] is None
    assert renewal.entry(Session(auth=None)) == {"headers": {}, "lifetime": None}


def test_the_program_logs_in_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions: list[Session] = []

    def make(**options: t.Any) -> Session:
        sessions.append(Session(**options))
        return sessions[-1]

    class Loader:
        """Of keystoneauth, for one type."""

        def load_from_options(self, **options: t.Any) -> Plugin:
            return Plugin(None, **options)

    loading = types.SimpleNamespace(get_plugin_loader={"password": Loader()}.__getitem__)
    library = types.SimpleNamespace(loading=loading, session=types.SimpleNamespace(Session=make))
    monkeypatch.setitem(sys.modules, "keystoneauth1", library)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**SETTINGS, "cert": ["/c", "/k"], "path": ["/a", "/b"]}), "utf-8")
    renewal.main(str(path))
    assert json.loads(capsys.readouterr().out) == {"headers": {"X-Auth-Token": "secret"}, "lifetime": None}
    assert sys.path == ["/a", "/b"]
    (made,) = sessions
    assert (made.options["verify"], made.options["cert"]) == ("/ca.pem", ("/c", "/k"))
