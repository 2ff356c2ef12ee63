# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules image and image_info in hosts: on shared storage, and on a real Glance with its users."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from tests.integration.harness import Glance, Lab, Playbook, Result, task

SHARED = "/srv/kvmops/shared/images"
OTHER = "/tmp/other.qcow2"


@pytest.fixture(params=["directory", "glance"])
def store(request: pytest.FixtureRequest, lab: Lab) -> t.Iterator[Result]:
    """The option image_store, of either kind, for stores without images."""
    if request.param == "glance":
        request.getfixturevalue("glance")
        yield {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
    else:
        yield {"path": SHARED}
        lab.sh("kvm1", f"rm -rf {SHARED}")


@pytest.fixture
def other(lab: Lab) -> t.Iterator[str]:
    """An image file in kvm1 that is not the guest's."""
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {OTHER} 9M")
    yield OTHER
    lab.sh("kvm1", f"rm -f {OTHER}")


def quartet(play: Playbook, **arguments: t.Any) -> Result:
    """Check mode, run, again, again in check mode, of the module image. Returns the second."""
    each = {**task("image", **arguments), "diff": True}
    played = play([{**each, "check_mode": True}, each, each, {**each, "check_mode": True}])
    assert played.returncode == 0, played.output
    check, done, again, again_check = (result["result"] for result in played.results)
    assert [told["changed"] for told in (check, done, again, again_check)] == [True, True, False, False], played.output
    assert check["diff"] == done["diff"], played.output
    assert check["steps"] == done["steps"], played.output
    assert again["diff"] == again_check["diff"] == [], played.output
    assert again["images"] == again_check["images"] == done["images"], played.output
    return t.cast("Result", done)


def test_an_image_comes_changes_is_replaced_and_goes(lab: Lab, play: Playbook, store: Result, other: str) -> None:
    guest = lab.vars["lab_guest_image"]
    [first] = quartet(
        play, name="debian", src=guest, properties={"os_type": "linux", "a b/c": "ä"}, min_disk=1, image_store=store
    )["images"]
    assert first["digests"]["sha256"] == lab.sh("kvm1", f"sha256sum {guest}").split()[0]
    assert first["properties"] == {"os_type": "linux", "a b/c": "ä"}
    [changed] = quartet(
        play, name="debian", properties={"a b/c": None, "x": 1}, protected=True, min_ram=64, image_store=store
    )["images"]
    assert changed == {**first, "properties": {"os_type": "linux", "x": "1"}, "protected": True, "min_ram": 64}
    errors = play.errors(
        [
            task("image", name="debian", state="absent", image_store=store),
            task("image", name="debian", src=other, image_store=store),
            task("image", name="debian", src=other, replace=True, image_store=store),
            task("image", name="debian", src=other, disk_format="raw", image_store=store),
            task("image", name="other", src=guest, checksum=f"sha256:{'0' * 64}", image_store=store),
        ]
    )
    assert [error["code"] for error in errors] == ["refused", "refused", "refused", "refused", "invalid"]
    found = play(task("image_info", image_store=store), host="kvm2").ok()["result"]["images"]
    assert found == [changed]
    play(task("image", name=first["id"], protected=False, image_store=store)).ok()
    [second] = quartet(play, name="debian", src=other, replace=True, image_store=store)["images"]
    assert second["id"] != first["id"]
    found = play(task("image_info", properties={"os_type": "linux"}, image_store=store)).ok()["result"]["images"]
    assert found == []
    quartet(play, name="debian", state="absent", image_store=store)
    assert play(task("image_info", image_store=store)).ok()["result"]["images"] == []


def test_who_may_not_is_told_so_and_passwords_are_told_to_nobody(lab: Lab, play: Playbook, glance: Glance) -> None:
    clouds = yaml.safe_load(Path(lab.outside(lab.vars["lab_clouds"])).read_text(encoding="utf-8"))["clouds"]
    auth = clouds["member"]["auth"]
    by_auth = {"type": "glance", "auth": auth, "ca_cert": lab.vars["lab_ca_cert"]}
    src = lab.vars["lab_guest_image"]
    played = play(task("image", name="debian", src=src, image_store=by_auth), "-vvv")
    assert played.ok()["result"]["changed"]
    assert auth["password"] not in played.output
    named = {"type": "glance", "clouds_file": lab.vars["lab_clouds"]}
    errors = play.errors(
        [
            task("image", name="other", src=src, image_store={**named, "cloud": "reader"}),
            task("image", name="debian", state="absent", image_store={**named, "cloud": "reader"}),
            task("image_info", image_store={"type": "glance", "auth": auth}),
            task("image_info", image_store={**by_auth, "auth": {**auth, "password": "wrong"}}),
            task("image_info", image_store={**named, "cloud": "nobody"}),
        ]
    )
    assert [error["code"] for error in errors] == ["denied", "denied", "unreachable", "denied", "invalid"]
    assert "ca_cert" in errors[2]["msg"]
    assert play(task("image_info", image_store={**named, "cloud": "other"})).ok()["result"]["images"] == []
    assert not play(task("image", name="debian", state="absent", image_store={**named, "cloud": "other"})).ok()[
        "result"
    ]["changed"]
    assert [image["name"] for image in glance.images()] == ["debian"]


def test_a_failed_upload_leaves_nothing_and_is_done_again(lab: Lab, play: Playbook, glance: Glance) -> None:
    store = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
    wanted = task("image", name="debian", src=lab.vars["lab_guest_image"], image_store=store)
    for fault, code in (
        (("fail", "--on", "upload", "--status", "503", "--after", "1M"), "unreachable"),
        (("expire", "--after", "1M"), "denied"),
        (("fill", "--leave", "1M"), "no_space"),
    ):
        glance.fault(*fault)
        error = play(wanted).error()["result"]
        assert (error["code"], error["changed"]) == (code, False), error
        glance.heal()
        assert glance.images() == []
        assert glance.files() == []
    assert play(wanted).ok()["result"]["changed"]
