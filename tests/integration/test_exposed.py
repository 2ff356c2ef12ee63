# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that QEMU reads where they are: files, and the bridges to a real Glance with its faults."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
import zipfile
from pathlib import Path
from urllib import request

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    LifecycleError,
    NotFound,
    Unreachable,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import bridge, nbd
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Exposed, Image, Store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.glance import GlanceStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.nbd import Export
from tests.integration.harness import REPO, SCRATCH, Glance, Lab, wait_for
from tests.lab.kvmlab.glance import passwords, urls
from tests.stores import MIB, Bytes, new, noise

# Where Debian keeps libnbd's binding; .venv was made of the same Python.
SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
SIZE = 24 * MIB + 12345
DATA = noise(SIZE)


@pytest.fixture(autouse=True)
def libnbd(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, SYSTEM_PACKAGES])
        binding = importlib.import_module("nbd")
    monkeypatch.setattr(nbd, "nbd", binding)


@pytest.fixture
def directory() -> t.Iterator[str]:
    """For the files of bridges. Nothing may be left in it, and no process."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as path:
        try:
            yield path
            assert servers(path) == []
            assert os.listdir(path) == []
        finally:
            for pid in servers(path):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def store(lab: Lab, glance: Glance) -> t.Iterator[GlanceStore]:
    """The lab's Glance."""
    opened = GlanceStore(cloud="member", clouds_file=lab.vars["lab_controller_clouds"])
    yield opened
    opened.close()


@pytest.fixture
def image(store: GlanceStore) -> Image:
    """One with :data:`DATA`."""
    return store.put(new(), Bytes(DATA))


def servers(directory: str) -> list[int]:
    """The processes that have a directory in their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if directory.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
    return found


@contextlib.contextmanager
def exposed(store: Store, image: Image, directory: str) -> t.Iterator[Exposed]:
    """An image, for as long as the body."""
    try:
        yield store.expose(image, directory)
    finally:
        store.withdraw(image, directory)


def fetch(export: Export, offset: int, count: int, seconds: float = 60) -> bytes:
    """Some bytes of an export."""
    buffer = memoryview(bytearray(count))
    number = export.start_read(buffer, offset)
    end = time.monotonic() + seconds
    while not export.is_read(number):
        assert time.monotonic() < end, "the read hangs"
        export.wait(0.2)
    return bytes(buffer)


class Reader(threading.Thread):
    """Reads some bytes in the background, as a guest does."""

    def __init__(self, socket: str, offset: int, count: int = 65536) -> None:
        super().__init__(daemon=True)
        self.socket, self.offset, self.count = socket, offset, count
        self.got: bytes | None = None
        self.error: LifecycleError | None = None
        self.start()

    def run(self) -> None:
        try:
            with Export(self.socket) as export:
                self.got = fetch(export, self.offset, self.count)
        except LifecycleError as exc:
            self.error = exc

    def is_right(self, seconds: float) -> bool:
        """Whether it got what is there, within that time."""
        self.join(seconds)
        assert self.error is None
        return self.got == DATA[self.offset : self.offset + self.count]


def compare(exposed: Exposed, content: Path) -> None:
    """What QEMU reads is *content*."""
    name = f"nbd+unix:///{exposed.export}?socket={exposed.path}"
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", name, str(content)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- a directory


def test_an_image_in_a_directory_is_its_file(tmp_path: Path, directory: str) -> None:
    store = DirectoryStore(str(tmp_path / "store"))
    image = store.put(new(), Bytes(DATA))
    with exposed(store, image, directory) as found:
        assert found == Exposed("file", image.where)
        assert store.expose(image, directory) == found
        assert os.listdir(directory) == []
        assert Path(found.path).read_bytes() == DATA
    store.withdraw(image, directory)
    assert store.find() == [image]
    os.truncate(image.where, SIZE - 1)
    with pytest.raises(Invalid, match="damaged"):
        store.expose(image, directory)
    store.delete(image.id)
    with pytest.raises(NotFound, match="gone"):
        store.expose(image, directory)
    store.withdraw(image, directory)


# ---- a bridge


def test_a_bridge_serves_what_is_in_glance_and_keeps_its_secrets(
    lab: Lab, store: GlanceStore, image: Image, directory: str, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.write_bytes(DATA)
    os.chown(directory, -1, 1234)
    os.chmod(directory, 0o710)
    with exposed(store, image, directory) as found:
        assert found.kind == "nbd"
        compare(found, content)
        with Export(found.path, found.export) as export:
            assert export.size == SIZE
            for offset, count in ((0, 1), (SIZE - 1, 1), (MIB - 1, 2), (3 * MIB - 7, 5 * MIB), (SIZE - 99, 99)):
                assert fetch(export, offset, count) == DATA[offset : offset + count]

        socket = os.stat(found.path)
        assert (stat.S_IMODE(socket.st_mode), socket.st_gid) == (0o660, 1234)
        assert all(
            stat.S_IMODE(each.stat().st_mode) == 0o600 for each in Path(directory).iterdir() if not each.is_socket()
        )
        (pid,) = servers(directory)
        assert os.getsid(pid) != os.getsid(0)
        told = [Path("/proc", str(pid), name).read_bytes() for name in ("cmdline", "environ")]
        token = json.loads(Path(directory, f"{image.id}.json").read_text("utf-8"))["headers"]["X-Auth-Token"]
        for secret in (token, passwords(lab.kvm)["member"]):
            assert not any(secret.encode() in each for each in told)
    store.withdraw(image, directory)


def test_a_bridge_that_is_well_is_kept_and_another_one_is_replaced(
    store: GlanceStore, image: Image, directory: str
) -> None:
    with exposed(store, image, directory) as found:
        first = servers(directory)
        assert store.expose(image, directory) == found
        assert servers(directory) == first

        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: servers(directory) == [])
        assert store.expose(image, directory) == found
        second = servers(directory)
        assert len(second) == 1
        assert Reader(found.path, 5 * MIB).is_right(30)

        os.kill(second[0], signal.SIGSTOP)  # it does not answer
        assert store.expose(image, directory) == found
        assert len(servers(directory)) == 1
        assert servers(directory) != second
        assert Reader(found.path, 5 * MIB).is_right(30)


def test_images_have_bridges_of_their_own(store: GlanceStore, image: Image, directory: str) -> None:
    other = store.put(new(), Bytes(DATA[::-1]))
    empty = store.put(new(), Bytes(b""))
    with exposed(store, image, directory) as one:
        with exposed(store, other, directory) as two, exposed(store, empty, directory) as three:
            with Export(one.path) as first, Export(two.path) as second, Export(three.path) as third:
                for offset in range(0, 24 * MIB, 3 * MIB):
                    assert fetch(first, offset, 999) == DATA[offset : offset + 999]
                    assert fetch(second, offset, 999) == DATA[::-1][offset : offset + 999]
                assert third.size == 0
            assert len(servers(directory)) == 3
        assert len(servers(directory)) == 1
        assert Reader(one.path, 7 * MIB).is_right(30)


@pytest.mark.parametrize(
    "fault",
    [
        ["fail", "--on", "download", "--status", "503", "--times", "3"],
        ["fail", "--on", "any", "--status", "500", "--times", "3"],
        ["expire", "--on", "download"],
        ["expire", "--on", "download", "--times", "3"],
        ["reset", "--on", "download", "--times", "3"],
        ["reset", "--on", "download", "--after", "300K", "--times", "3"],
        ["truncate", "--after", "300K", "--times", "2"],
        ["stall", "--on", "download", "--after", "300K", "--seconds", "30", "--times", "1"],
    ],
    ids=" ".join,
)
def test_faults_of_glance_delay_reads_and_do_not_fail_them(
    glance: Glance, store: GlanceStore, image: Image, directory: str, fault: list[str]
) -> None:
    with exposed(store, image, directory) as found, Export(found.path) as export:
        glance.fault(*fault)
        assert fetch(export, 0, SIZE) == DATA


def test_reads_wait_for_a_glance_that_died(glance: Glance, store: GlanceStore, image: Image, directory: str) -> None:
    with exposed(store, image, directory) as found:
        assert Reader(found.path, 0).is_right(30)
        glance.fault("kill")
        readers = [Reader(found.path, 3 * MIB * number) for number in range(1, 8)]
        time.sleep(4)
        assert all(each.is_alive() for each in readers)
        glance.fault("start")
        begun = time.monotonic()
        assert all(each.is_right(30) for each in readers)
        assert time.monotonic() - begun < 12


def test_a_bridge_ends_also_while_reads_wait(glance: Glance, store: GlanceStore, image: Image, directory: str) -> None:
    with exposed(store, image, directory) as found:
        glance.fault("kill")
        reader = Reader(found.path, 9 * MIB)
        time.sleep(1)
        begun = time.monotonic()
        store.withdraw(image, directory)
        assert time.monotonic() - begun < 5
        reader.join(10)
        assert isinstance(reader.error, Unreachable)
    glance.fault("start")


def revoked(lab: Lab, settings: Path) -> None:
    """Take the token of a bridge back, and let Glance forget that it has seen it."""
    token = json.loads(settings.read_text("utf-8"))["headers"]["X-Auth-Token"]
    client = lab.glance.client()
    asked = request.Request(
        f"{urls(lab.kvm)['keystone']}/auth/tokens",
        method="DELETE",
        headers={"X-Auth-Token": client.token, "X-Subject-Token": token},
    )
    request.urlopen(asked, timeout=60, context=glance_context(lab)).close()
    lab.glance.fault("kill")
    lab.glance.fault("start")


def glance_context(lab: Lab) -> ssl.SSLContext:
    """Trusts the lab's authority."""
    return ssl.create_default_context(cafile=str(lab.kvm.pki / "cacert.pem"))


def test_a_token_that_was_revoked_is_renewed(lab: Lab, store: GlanceStore, image: Image, directory: str) -> None:
    with exposed(store, image, directory) as found:
        revoked(lab, Path(directory, f"{image.id}.json"))
        assert all(Reader(found.path, MIB * number).is_right(30) for number in range(20))


def test_new_credentials_reach_a_bridge_that_waits_for_them(
    lab: Lab, store: GlanceStore, image: Image, directory: str
) -> None:
    with exposed(store, image, directory) as found:
        settings = Path(directory, f"{image.id}.json")
        told = json.loads(settings.read_text("utf-8"))
        told["auth"]["password"] = "changed meanwhile"
        settings.write_text(json.dumps(told), "utf-8")
        revoked(lab, settings)
        before = servers(directory)
        reader = Reader(found.path, 9 * MIB)
        time.sleep(4)
        assert reader.is_alive()
        store._connection.authorize()
        assert store.expose(image, directory) == found
        assert reader.is_right(30)
        assert servers(directory) == before


def test_an_image_that_was_deleted_fails_reads(
    glance: Glance, store: GlanceStore, image: Image, directory: str
) -> None:
    with exposed(store, image, directory) as found:
        store.delete(image.id)
        begun = time.monotonic()
        reader = Reader(found.path, 9 * MIB)
        reader.join(30)
        assert "Input/output error" in str(reader.error)
        assert time.monotonic() - begun < 10
        with pytest.raises(NotFound, match="gone"):
            store.expose(image, directory)


def test_what_cannot_begin_is_told_and_leaves_nothing(
    glance: Glance, store: GlanceStore, image: Image, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    glance.fault("fail", "--on", "download", "--status", "503")
    with pytest.raises(
        Unreachable, match=rf"Failed to read image web \(.*{image.id}\) in place: Glance answers 503\.$"
    ):
        store.expose(image, directory)
    glance.fault("truncate", "--after", "300K")
    with pytest.raises(Unreachable, match="sends 307200 bytes instead of 1048576"):
        store.expose(image, directory)
    glance.heal()
    glance.fault("kill")
    with pytest.raises(Unreachable):
        store.expose(image, directory)
    glance.fault("start")
    assert os.listdir(directory) == []

    queued = new()
    glance.client("member")("POST", "/v2/images", {"id": queued.id, "name": "q", "disk_format": "raw"})
    found = store.get(queued.id)
    assert found is not None
    with pytest.raises(Invalid, match="queued"):
        store.expose(found, directory)
    with pytest.raises(Invalid, match="longer than a socket's name"):
        store.expose(image, f"{directory}/{'x' * 60}")
    with monkeypatch.context() as patch:
        patch.setattr(bridge.shutil, "which", lambda *_words, **_more: None)
        with pytest.raises(Unsupported, match=r"nbdkit is not installed.*nbdkit-plugin-python"):
            store.expose(image, directory)
    assert os.listdir(directory) == []
    assert servers(directory) == []


# ---- on a host, as a module does it

COLLECTION = "ansible_collections/kvmops/lifecycle"
MODULE = """
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.glance import GlanceStore
store = GlanceStore(cloud="member", clouds_file=sys.argv[3])
image = store.get(sys.argv[4])
if sys.argv[2] == "expose":
    print(store.expose(image, "/run/kvmops-test").path)
else:
    store.withdraw(image, "/run/kvmops-test")
"""


def pack(archive: Path) -> None:
    """What Ansible makes of the collection for a module: an archive of its files."""
    with zipfile.ZipFile(archive, "w") as file:
        for package in (
            "",
            *itertools.accumulate(f"{name}/" for name in f"{COLLECTION}/plugins/module_utils".split("/")),
        ):
            file.writestr(f"{package}__init__.py", "")
        for source in (REPO / "plugins/module_utils").rglob("*.py"):
            file.write(source, f"{COLLECTION}/{source.relative_to(REPO)}")


def test_a_bridge_outlives_the_module_its_session_and_its_archive(lab: Lab, store: GlanceStore, image: Image) -> None:
    archive = "/tmp/payload.zip"
    pack(Path(lab.outside(archive)))
    python = lab.vars["ansible_python_interpreter"]
    clouds = lab.vars["lab_clouds"]

    def module(what: str) -> str:
        script = f"cat > /tmp/module.py && exec {python} /tmp/module.py {archive} {what} {clouds} {image.id}"
        done = subprocess.run(
            [str(REPO / "tests/lab/lab"), "ssh", "kvm1", script],
            input=MODULE,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    socket = module("expose")
    lab.sh("kvm1", f"rm {archive} /tmp/module.py")
    revoked(lab, Path(lab.outside(f"/run/kvmops-test/{image.id}.json")))
    lab.sh("kvm1", f"qemu-img convert -f raw -O raw 'nbd+unix:///?socket={socket}' /tmp/copy")
    # QEMU goes by whole sectors.
    assert image.digests["sha256"] in lab.sh("kvm1", f"head -c {SIZE} /tmp/copy | sha256sum")

    lab.fault("kvm1", "power-off")
    lab.fault("kvm1", "boot")
    assert lab.sh("kvm1", "ls /run/kvmops-test; pgrep nbdkit", check=False) == ""
    pack(Path(lab.outside(archive)))
    assert module("expose") == socket
    assert f"{SIZE // 512 * 512 + 512}" in lab.sh("kvm1", f"qemu-img info -f raw 'nbd+unix:///?socket={socket}'")
    module("withdraw")
    assert lab.sh("kvm1", "ls /run/kvmops-test; pgrep nbdkit", check=False) == ""
    lab.sh("kvm1", f"rm -r {archive} /tmp/module.py /run/kvmops-test")
