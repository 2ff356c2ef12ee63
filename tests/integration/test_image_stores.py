# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What image stores promise, of a directory on shared storage and of a real Glance, and what comes of their faults."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from pathlib import Path

import pytest
import urllib3
import yaml

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Denied,
    Invalid,
    LifecycleError,
    NoSpace,
    NotFound,
    Unreachable,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import glance as module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.glance import GlanceStore
from tests.integration.harness import REPO, Glance, Lab
from tests.lab.kvmlab.glance import store_outside
from tests.stores import MIB, Bytes, StoreContract, new, noise, read, unreadable

SHARED = "/srv/kvmops/shared/images"
Open = t.Callable[..., GlanceStore]


@pytest.fixture
def shared(lab: Lab) -> t.Iterator[DirectoryStore]:
    """A directory that all hosts share, as kvm1 has it."""
    yield DirectoryStore(lab.outside(SHARED))
    lab.sh("kvm1", f"rm -rf {SHARED}")


@pytest.fixture
def dying(lab: Lab, glance: Glance) -> t.Iterator[None]:
    """For tests in which Glance is killed: it leaves half a file, of which it knows nothing."""
    yield
    glance.heal()
    for path in store_outside(lab.kvm).iterdir():
        path.unlink()


@pytest.fixture
def cloud(lab: Lab, glance: Glance) -> t.Iterator[Open]:
    """Opens the lab's Glance as one of its users."""
    with contextlib.ExitStack() as stack:

        def do(name: str = "member") -> GlanceStore:
            store = GlanceStore(cloud=name, clouds_file=lab.vars["lab_controller_clouds"])
            stack.callback(store.close)
            return store

        yield do


def nothing_is_left(glance: Glance) -> None:
    """No image of anybody in any state, and no file."""
    assert glance.images() == []
    assert glance.files() == []


class TestDirectory(StoreContract):
    """On shared storage."""

    @pytest.fixture
    def store(self, shared: DirectoryStore) -> Store:
        """Without images."""
        return shared


class TestGlance(StoreContract):
    """A real one, with Keystone, over TLS."""

    @pytest.fixture
    def store(self, glance: Glance, cloud: Open) -> Store:
        """Without images."""
        self.glance = glance
        return cloud()

    def nothing_is_left(self, store: Store) -> None:
        nothing_is_left(self.glance)


# ---- the directory


@pytest.mark.parametrize("storage", ["shared", "private"])
def test_a_file_system_that_is_full_is_told_and_nothing_is_left(lab: Lab, storage: str) -> None:
    path = SHARED if storage == "shared" else "/var/lib/libvirt/images/store"
    store = DirectoryStore(lab.outside(path))
    image = store.put(new(), Bytes(noise(2 * MIB)))
    lab.fault("kvm1", "fill-disk", "--storage", storage, "--leave", "10M")
    with pytest.raises(NoSpace, match="No space left"):
        store.put(new(), Bytes(noise(40 * MIB)))
    assert sorted(lab.sh("kvm1", f"find {path} -type f").split()) == sorted(
        f"{path}/{image.id}{kind}" for kind in (".img", ".json")
    )
    assert store.delete(image.id)
    lab.fault("kvm1", "empty-disk", "--storage", storage)
    image = store.put(new(), Bytes(noise(40 * MIB)))
    assert read(store, image) == noise(40 * MIB)
    lab.sh("kvm1", f"rm -rf {path}")


def test_what_one_host_stores_the_other_reads(lab: Lab, shared: DirectoryStore) -> None:
    other = DirectoryStore(lab.outside(SHARED, "kvm2"))
    image = shared.put(new(), Bytes(noise(3 * MIB), during=lambda: other.delete(new().id)))
    found = other.get(image.id)
    assert found
    assert read(other, found) == noise(3 * MIB)
    assert other.delete(image.id)
    assert shared.find() == []


# ---- Glance: who may


def test_a_reader_looks_and_another_project_sees_nothing(cloud: Open, glance: Glance) -> None:
    image = cloud().put(new(), Bytes(b"data"))
    reader, other = cloud("reader"), cloud("other")
    assert reader.find() == [image]
    with pytest.raises(Denied, match="403"), reader.open(image):  # a private image is for members
        pass
    for refused in (
        lambda: reader.put(new(), Bytes(b"x")),
        lambda: reader.update(image, name="other"),
        lambda: reader.delete(image.id),
    ):
        with pytest.raises(Denied, match="403"):
            refused()
    assert other.find() == []
    assert other.get(image.id) is None
    assert other.delete(image.id) is False
    with pytest.raises(NotFound), other.open(image):
        pass
    assert cloud().find() == [image]
    assert len(glance.images()) == 1


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"cloud": "nobody's"}, Invalid, "nobody's"),
        ({"cloud": "member", "region_name": "nowhere"}, LifecycleError, "nowhere"),
        ({"cloud": "member", "clouds_file": "/nonexistent/clouds.yaml"}, NotFound, "/nonexistent/clouds.yaml"),
        ({"cloud": "member", "ca_cert": "/nonexistent/ca.pem"}, NotFound, "/nonexistent/ca.pem"),
        ({"cloud": "member", "ca_cert": "/etc/ssl/certs/ca-certificates.crt"}, Unreachable, "ca_cert"),
        ({"cloud": "member", "auth": {"password": "hunter2hunter2"}}, Denied, "credentials"),
        ({"cloud": "member", "auth": {"project_name": "nobody's"}}, Denied, "credentials"),
        ({"cloud": "member", "auth_type": "nonsense"}, Invalid, "nonsense"),
        ({"cloud": "member", "auth_type": "token"}, Invalid, "Token"),
    ],
)
def test_options_that_do_not_lead_to_a_store_are_told(
    lab: Lab, glance: Glance, options: dict[str, t.Any], kind: type[LifecycleError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        GlanceStore(**{"clouds_file": lab.vars["lab_controller_clouds"], **options})
    clouds = yaml.safe_load(Path(lab.vars["lab_controller_clouds"]).read_text(encoding="utf-8"))["clouds"]
    assert clouds["member"]["auth"]["password"] not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_images_come_in_pages(cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cloud()
    images = {store.put(new(str(number), properties={"n": str(number % 2)}), Bytes(b"x")).id for number in range(7)}
    for page in (1, 3, 7):
        monkeypatch.setattr(module, "_PAGE", page)
        assert {image.id for image in store.find()} == images
        assert len(store.find(properties={"n": "1"})) == 3


def test_images_of_others_are_read_too(cloud: Open, glance: Glance) -> None:
    """They have no sha256, and may be of any format. Those that have no content are none."""
    identifier = glance.client("member").upload(b"data", name="theirs", disk_format="ami", container_format="ami")
    glance.client("member")("POST", "/v2/images", b'{"name": "queued"}')
    store = cloud()
    [image] = store.find()
    assert (image.id, image.name, image.disk_format, set(image.digests)) == (identifier, "theirs", "ami", {"sha512"})
    assert read(store, image) == b"data"


# ---- Glance: uploads that fail


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (["fail", "--on", "upload", "--status", "500", "--after", "1M"], Unreachable, "500"),
        (["fail", "--on", "upload", "--status", "503", "--after", "1M"], Unreachable, "503"),
        (["fail", "--on", "upload", "--status", "503", "--after", "1M", "--times", "1"], Unreachable, "503"),
        (["reset", "--on", "upload", "--after", "1M"], Unreachable, "onnection"),
        (["stall", "--on", "upload", "--after", "1M", "--seconds", "20"], Unreachable, "timed out"),
        (["expire", "--after", "1M"], Denied, "token"),
        (["expire", "--after", "0"], Denied, "token"),
        (["fill", "--leave", "1M"], NoSpace, "413"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_upload_that_fails_leaves_nothing_and_can_be_done_again(
    cloud: Open,
    glance: Glance,
    monkeypatch: pytest.MonkeyPatch,
    fault: list[str],
    kind: type[LifecycleError],
    said: str,
) -> None:
    monkeypatch.setattr(module, "_UPLOAD_TIMEOUT", (5, 5))
    store = cloud()
    wanted = new(protected=True)
    content = Bytes(noise(16 * MIB))
    glance.fault(*fault)
    began = time.monotonic()
    with pytest.raises(kind, match=said) as caught:
        store.put(wanted, content)
    assert time.monotonic() - began < 30
    assert content.times_read == 1
    assert "left" not in caught.value.details
    glance.heal()
    nothing_is_left(glance)
    image = cloud().put(new(), Bytes(noise(16 * MIB)))
    assert read(cloud(), image) == noise(16 * MIB)


@pytest.mark.usefixtures("dying")
def test_a_glance_that_dies_in_an_upload_and_comes_back_keeps_no_image(cloud: Open, glance: Glance) -> None:
    store = cloud()
    back = threading.Timer(2, lambda: glance.fault("start"))
    killed: list[bool] = []

    def during() -> None:
        if not killed:
            glance.fault("kill")
            killed.append(True)
            back.start()

    with pytest.raises(Unreachable):
        store.put(new(), Bytes(noise(16 * MIB), during=during))
    back.join()
    assert glance.images() == []
    assert read(store, store.put(new(), Bytes(b"data"))) == b"data"


@pytest.mark.usefixtures("dying")
def test_what_a_glance_that_stays_dead_may_keep_is_told(
    cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TAKE_BACK", (0, 0.1))
    store = cloud()
    wanted = new()
    killed: list[bool] = []

    def during() -> None:
        if not killed:
            glance.fault("kill")
            killed.append(True)

    with pytest.raises(Unreachable, match=f"{wanted.id} may be left in {store.place.partition(' ')[0]}") as caught:
        store.put(wanted, Bytes(noise(16 * MIB), during=during))
    assert caught.value.details["left"] == wanted.id
    with pytest.raises(Unreachable):
        store.find()
    glance.fault("start")
    assert store.find() == []
    left = store.get(wanted.id)
    assert left
    assert left.status != "active"
    with pytest.raises(Invalid, match=f"already, which is {left.status}"):
        store.put(wanted, Bytes(b"x"))
    assert store.delete(wanted.id)
    assert glance.images() == []


def test_an_image_that_is_deleted_during_its_upload_is_an_error(cloud: Open, glance: Glance) -> None:
    wanted = new()
    client = glance.client()
    gone: list[bool] = []

    def during() -> None:
        if not gone:
            client.remove(wanted.id)
            gone.append(True)

    with pytest.raises(NotFound):
        cloud().put(wanted, Bytes(noise(4 * MIB), during=during))
    nothing_is_left(glance)


def test_what_a_killed_process_left_goes_with_the_next_upload(lab: Lab, cloud: Open, glance: Glance) -> None:
    script = f"""
        import os, signal, sys
        sys.path[:0] = [{str(REPO / ".build")!r}, {str(REPO)!r}]
        from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.glance import GlanceStore
        from tests.stores import Bytes, new, noise, MIB
        store = GlanceStore(cloud="member", clouds_file={lab.vars["lab_controller_clouds"]!r})
        store.put(new("left"), Bytes(noise(4 * MIB), during=lambda: os.kill(os.getpid(), signal.SIGKILL)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    store = cloud()
    assert [image["name"] for image in glance.images()] == ["left"]
    assert store.find() == []
    # One of a process that lives is left alone.
    wanted = new("mine")
    other = cloud()
    seen = []

    def during() -> None:
        other.put(new("other"), Bytes(b"x"))
        seen.append(sorted(image["name"] for image in glance.images()))

    store.put(wanted, Bytes(noise(2 * MIB), during=during))
    assert seen == [["mine", "other"]]
    assert sorted(image.name for image in store.find()) == ["mine", "other"]
    assert all("kvmops_unverified" not in image and not image["tags"] for image in glance.images())


def test_an_upload_whose_end_glance_never_saw_does_not_count(
    cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the upload and its verification: Glance calls it active, we do not."""
    store = cloud()
    wanted = new("half")

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GlanceStore, "_compare", die)
    monkeypatch.setattr(GlanceStore, "_take_back", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        store.put(wanted, Bytes(b"data"))
    assert [image["status"] for image in glance.images()] == ["active"]
    assert store.find() == []
    found = store.get(wanted.id)
    assert found
    assert found.status == "unverified"
    with pytest.raises(Invalid, match="is unverified"), store.open(found):
        pass


# ---- Glance: downloads that fail


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (["truncate", "--after", "3M"], Invalid),
        (["corrupt", "--after", "0"], Invalid),
        (["corrupt", "--after", "8M"], Invalid),
        (["fail", "--on", "download", "--status", "500"], Unreachable),
        (["fail", "--on", "download", "--status", "503"], Unreachable),
        (["reset", "--on", "download", "--after", "3M"], Unreachable),
        (["stall", "--on", "download", "--after", "3M", "--seconds", "20"], Unreachable),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_download_that_fails_is_seen_before_its_last_block(
    cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch, fault: list[str], kind: type[LifecycleError]
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", (5, 5))
    store = cloud()
    image = store.put(new(), Bytes(noise(9 * MIB)))
    glance.fault(*fault)
    if kind is Invalid:
        said, got = unreadable(store, image)
        assert "is damaged" in said
        assert got < image.size
    else:
        got = 0
        with pytest.raises(kind), store.open(image) as content:  # noqa: PT012 (either may fail)
            for block in content:
                got += len(block)
        assert got < image.size
    glance.heal()
    assert read(store, image) == noise(9 * MIB)


def test_a_lost_connection_is_no_damage(cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch) -> None:
    # urllib3 1.26, which Debian 12 has, does not compare what comes with what HTTP announced.
    lenient = property(lambda _response: False, lambda _response, _value: None)
    monkeypatch.setattr(urllib3.response.HTTPResponse, "enforce_content_length", lenient, raising=False)
    store = cloud()
    image = store.put(new(), Bytes(noise(9 * MIB)))
    glance.fault("reset", "--on", "download", "--after", "3M")
    with pytest.raises(Unreachable), store.open(image) as content:
        list(content)


def test_a_store_that_does_not_answer_is_not_waited_for(
    cloud: Open, glance: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cloud()
    monkeypatch.setattr(module, "_TIMEOUT", (1, 2))
    glance.fault("stall", "--on", "any", "--seconds", "30")
    for ask in (store.find, lambda: store.get(new().id), lambda: store.delete(new().id)):
        began = time.monotonic()
        with pytest.raises(Unreachable, match="timed out"):
            ask()
        assert time.monotonic() - began < 10


def test_without_keystone_nobody_is_let_in(cloud: Open, glance: Glance) -> None:
    glance.fault("stop-keystone")
    with pytest.raises(Unreachable):
        cloud()
    glance.fault("start")
    assert cloud().find() == []
