# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules image and image_info, on a directory: from files and from a web server that is not always good."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import threading
import typing as t
import uuid
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils import _module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import glance
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.modules import image, image_info
from tests.stores import MIB, Bytes, new, read
from tests.unit.hypervisor import Task

Result = dict[str, t.Any]


class Images:
    """Runs the modules on a store."""

    def __init__(self, task: Task, place: Path) -> None:
        self.task = task
        task.base.pop("uri")
        self.store = DirectoryStore(str(place))
        self.options: Result = {"path": str(place)}

    def __call__(self, name: str = "web", check: bool = False, **params: t.Any) -> Result:
        """The module image."""
        return self.task(image.main, name=name, image_store=self.options, check=check, diff=True, **params)

    def info(self, **params: t.Any) -> list[Result]:
        """The module image_info."""
        told = self.task(image_info.main, image_store=self.options, **params)
        assert not told["changed"]
        return t.cast("list[Result]", told["images"])

    def quartet(self, **params: t.Any) -> Result:
        """Check mode, run, run again, check mode again: the first foresees the second, and the others do nothing."""
        checked, done, again, checked_again = (self(check=check, **params) for check in (True, False, False, True))
        assert [told["changed"] for told in (checked, done, again, checked_again)] == [True, True, False, False]
        assert checked["diff"] == done["diff"] != []
        assert checked["steps"] == done["steps"] != []
        assert again["diff"] == checked_again["diff"] == again["steps"] == checked_again["steps"] == []
        assert again["images"] == checked_again["images"] == done["images"]
        foreseen = [{**told, "size": 0, "digests": {}} for told in checked["images"]]
        for told, reached in zip(foreseen, done["images"]):
            for key in ("name", "disk_format", "properties", "protected", "min_disk", "min_ram", "status", "store"):
                assert told[key] == reached[key], key
        return done


@pytest.fixture
def images(task: Task, tmp_path: Path) -> Images:
    """A store without images."""
    return Images(task, tmp_path / "images")


def qcow2(path: Path, size: str = "8M", *options: str) -> str:
    """An image file."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    return str(path)


def raw(path: Path, text: str = "data") -> str:
    """A raw one."""
    path.write_bytes(text.encode() * 1000)
    return str(path)


def sha256(path: str | Path) -> str:
    """As the option checksum wants it."""
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    """Serves files.

    :param asked: Paths of the requests.
    :param claimed: Bytes that it says are there, and are not.
    :param encoding: What it says of the content.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.asked: list[str] = []
        self.claimed = 0
        self.encoding = ""

    @property
    def url(self) -> str:
        """Of the root."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(403 if "secret" in self.path else 404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + self.server.claimed))
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: t.Any) -> None:
        """Quietly."""


@pytest.fixture
def server(tmp_path: Path) -> t.Iterator[Server]:
    """Serves the directory of the test."""
    made = Server(tmp_path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_an_image_comes_changes_and_goes(images: Images, tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a")
    properties = {"os_type": "linux", "number": 3, "yes": True}
    done = images.quartet(src=path, properties=properties, min_disk=1, min_ram=2, protected=True)
    [told] = done["images"]
    assert told["properties"] == {"os_type": "linux", "number": "3", "yes": "true"}
    assert (told["size"], told["digests"]) == (os.path.getsize(path), {"sha256": sha256(path)[7:]})
    assert (told["disk_format"], told["min_disk"], told["min_ram"], told["protected"]) == ("qcow2", 1, 2, True)
    assert told["where"] == f"{images.store.place}/{told['id']}.img"
    [stored] = images.store.find()
    assert read(images.store, stored) == Path(path).read_bytes()
    done = images.quartet(src=path, properties={"number": None, "yes": False}, min_disk=5)
    assert done["images"][0]["properties"] == {"os_type": "linux", "yes": "false"}
    assert (done["images"][0]["min_disk"], done["images"][0]["min_ram"]) == (5, 2)
    assert done["steps"] == ["change image"]
    # Without a content it is about what is told only.
    images.quartet(protected=False)
    images.quartet(state="absent")
    assert images.store.find() == []


def test_an_image_is_known_by_its_identifier_as_well(images: Images, tmp_path: Path) -> None:
    first = images.store.put(new("web"), Bytes(b"1"))
    images.store.put(new("web"), Bytes(b"2"))
    told = images(state="absent")
    assert told["code"] == "ambiguous"
    assert len(told["details"]["images"]) == 2
    assert images(protected=True)["code"] == "ambiguous"
    images.quartet(name=first.id, properties={"a": "b"})
    images.quartet(name=first.id, state="absent")
    images.quartet(name="web", state="absent")
    told = images(name=str(uuid.uuid4()), src=qcow2(tmp_path / "a"))
    assert (told["code"], images.store.find()) == ("not_found", [])


def test_other_content_is_refused_or_takes_the_place(images: Images, tmp_path: Path) -> None:
    old = images(src=qcow2(tmp_path / "a", "8M"), properties={"a": "b"}, protected=True)["images"][0]
    assert images(src=qcow2(tmp_path / "same", "8M"))["changed"] is False
    other = qcow2(tmp_path / "other", "9M")
    for check in (True, False):
        told = images(src=other, check=check)
        assert (told["code"], told["details"]) == ("refused", {"images": [old["id"]]})
        assert "replace: true" in told["msg"]
        told = images(src=other, replace=True, check=check)
        assert (told["code"], "protected: false" in told["msg"]) == ("refused", True)
        assert images(state="absent", check=check)["code"] == "refused"
    images(protected=False)
    done = images.quartet(src=other, replace=True)
    assert done["steps"] == ["store image", "delete other image"]
    assert done["images"][0]["id"] != old["id"]
    [stored] = images.store.find()
    assert read(images.store, stored) == Path(other).read_bytes()
    assert stored.properties == {}


def test_an_image_that_deltas_lie_upon_stays(images: Images, tmp_path: Path) -> None:
    base = images(src=qcow2(tmp_path / "a", "8M"))["images"][0]
    properties = {"kvmops_form": "delta", "kvmops_parent": base["id"]}
    delta = images("monday", src=raw(tmp_path / "delta"), disk_format="raw", properties=properties)["images"][0]
    for check in (True, False):
        for params in ({"state": "absent"}, {"src": qcow2(tmp_path / "b", "9M"), "replace": True}):
            told = images(check=check, **params)
            assert (told["code"], told["details"]) == ("refused", {"images": [delta["id"]]})
            assert "monday lies upon it" in told["msg"]
    images("monday", state="absent")
    images.quartet(state="absent")


def test_a_replacement_that_died_half_way_is_finished(images: Images, tmp_path: Path) -> None:
    path = raw(tmp_path / "a")
    images.store.put(new("web"), Bytes(b"old"))
    images.store.put(new("web"), Bytes(Path(path).read_bytes()))
    assert images(src=path)["changed"] is False
    images.quartet(src=path, replace=True)
    [stored] = images.store.find()
    assert read(images.store, stored) == Path(path).read_bytes()


def test_the_format_belongs_to_the_content(images: Images, tmp_path: Path) -> None:
    path = raw(tmp_path / "a")
    told = images(src=path)
    assert (told["code"], "declared as qcow2, but it is raw" in told["msg"]) == ("invalid", True)
    images.quartet(src=path, disk_format="raw")
    assert images(src=path)["changed"] is False
    assert images(disk_format="qcow2")["code"] == "invalid"
    assert images(src=path, disk_format="qcow2")["code"] == "refused"


def test_what_is_not_safe_is_refused_in_check_mode_too(images: Images, tmp_path: Path) -> None:
    qcow2(tmp_path / "base")
    over = qcow2(tmp_path / "over", "8M", "-b", str(tmp_path / "base"), "-F", "qcow2")
    for check in (True, False):
        assert "backing file" in images(src=over, check=check)["msg"]
        assert images(src=str(tmp_path / "none"), check=check)["code"] == "not_found"
        assert images(src="relative", check=check)["code"] == "invalid"
        assert images(src="ftp://host/a", check=check)["code"] == "invalid"
        assert images(src="file://host/a", check=check)["code"] == "invalid"
        assert images(src=over, checksum="sha256:12", check=check)["code"] == "invalid"
        assert images(src=over, properties={"a": [1]}, check=check)["code"] == "invalid"
        assert images(check=check)["code"] == "not_found"
    assert not Path(images.store.place).exists()


def test_a_checksum_must_be_right_and_saves_the_reading(images: Images, tmp_path: Path, server: Server) -> None:
    path = qcow2(tmp_path / "a")
    told = images(src=path, checksum="sha256:" + "0" * 64)
    assert (told["code"], told["changed"], images.store.find()) == ("invalid", False, [])
    sha512 = f"sha512:{hashlib.sha512(Path(path).read_bytes()).hexdigest()}"
    assert images(src=path, checksum=sha512[:-1] + ("0" if sha512[-1] != "0" else "1"))["code"] == "invalid"
    assert images.store.find() == []
    assert images(src=path, checksum=sha512.upper())["changed"]
    assert images(src=path, checksum=sha512)["changed"] is False
    assert images(src=f"{server.url}/a", checksum=sha256(path))["changed"] is False
    assert images(src=f"{server.url}/a", checksum="sha256:" + "0" * 64)["code"] == "refused"
    assert server.asked == []


def test_an_image_is_downloaded_once_and_not_to_foresee_it(images: Images, tmp_path: Path, server: Server) -> None:
    path = qcow2(tmp_path / "a b")
    assert images(src=f"{server.url}/a", check=True)["changed"]
    assert server.asked == []
    os.rename(path, tmp_path / "a")
    images.quartet(src=f"{server.url}/a")
    assert server.asked == ["/a"] * 3  # stored once; then compared twice
    [stored] = images.store.find()
    assert read(images.store, stored) == (tmp_path / "a").read_bytes()
    assert images(src=f"file://{tmp_path}/%61")["changed"] is False
    qcow2(tmp_path / "a", "1M")
    images.quartet(src=f"{server.url}/a", replace=True)
    assert sorted(os.listdir(images.store.place)) == sorted(
        [".staging", *(f"{each.id}{kind}" for each in images.store.find() for kind in (".img", ".json"))]
    )


def test_a_download_that_goes_wrong_leaves_nothing(images: Images, tmp_path: Path, server: Server) -> None:
    qcow2(tmp_path / "a")
    raw(tmp_path / "b")
    for path, code, said in (
        ("none", "not_found", "404"),
        ("secret", "denied", "403"),
        ("b", "invalid", "declared as qcow2, but it is raw"),
    ):
        told = images(src=f"{server.url.replace('//', '//user:hunter2@')}/{path}")
        assert (told["code"], said in told["msg"]) == (code, True), told
        assert "hunter2" not in told["msg"]
    server.claimed = 10
    told = images(src=f"{server.url}/a")
    assert told["code"] == "unreachable", told
    server.claimed, server.encoding = 0, "gzip"
    assert images(src=f"{server.url}/a")["code"] == "unsupported"
    assert images(src="http://127.0.0.1:1/a")["code"] == "unreachable"
    assert not Path(images.store.place).exists()


def test_a_store_that_is_full_says_so(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    told = images(src=qcow2(tmp_path / "a"))
    assert (told["code"], told["changed"], told["steps"]) == ("no_space", False, [])
    assert images.store.find() == []


def test_images_are_told_by_name_identifier_and_properties(images: Images) -> None:
    assert images.info() == []
    first = images.store.put(new("a", properties={"x": "1", "y": "2"}), Bytes(b"1" * MIB))
    second = images.store.put(new("a", properties={"x": "1"}), Bytes(b"2"))

    def found(**params: t.Any) -> list[str]:
        return [told["id"] for told in images.info(**params)]

    assert found() == found(name="a") == found(properties={"x": 1}) == [first.id, second.id]
    assert found(properties={"x": "1", "y": "2"}) == found(id=first.id, name="a", properties={"y": 2}) == [first.id]
    assert found(name="b") == found(id=first.id, name="b") == found(id=second.id, properties={"y": "2"}) == []
    assert found(id="nonsense") == found(id=str(uuid.uuid4())) == []
    os.truncate(first.where, 5)
    assert found() == [second.id]
    assert images.info(id=first.id)[0]["status"] == "damaged"
    told = images(name=first.id, properties={"a": "b"})
    assert (told["code"], "is damaged" in told["msg"], "state: absent" in told["msg"]) == ("invalid", True, True)
    images.quartet(name=first.id, state="absent")


def test_no_libvirt_is_needed(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module, "MISSING", "Traceback …")
    assert images(src=qcow2(tmp_path / "a"))["changed"]
    assert len(images.info()) == 1


def test_glance_needs_openstacksdk_and_to_know_which(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    images.options = {"type": "glance"}
    assert "any of the following are missing: cloud, auth" in images()["msg"]
    images.options = {"type": "glance", "cloud": "a", "auth": {"auth_url": "b"}}
    assert "mutually exclusive" in images()["msg"]
    monkeypatch.setattr(glance, "openstack", None)
    images.options = {"type": "glance", "cloud": "a"}
    told = images()
    assert (told["code"], "python3-openstacksdk" in told["msg"]) == ("unsupported", True)
    told = images.task(image_info.main, image_store=images.options)
    assert told["code"] == "unsupported"
