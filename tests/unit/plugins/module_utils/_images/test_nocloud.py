# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""cloud-init's data, read back from the image as a guest would."""

from __future__ import annotations

import io
import json
import sys
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager

import pycdlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.nocloud import NoCloud

UUID = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"
FULL = NoCloud("#cloud-config\nusers: [größe]\n", "version: 2\n", {"public-keys": ["ssh-ed25519 AAAA"]})


@contextmanager
def opened(image: bytes) -> Iterator[t.Any]:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    try:
        yield iso
    finally:
        iso.close()


def files(image: bytes, kind: str) -> dict[str, str]:
    """All files in the root directory, by their names in Joliet or Rock Ridge."""
    found = {}
    with opened(image) as iso:
        for child in iso.list_children(**{f"{kind}_path": "/"}):
            if child.is_dir():
                continue
            name = child.rock_ridge.name().decode() if kind == "rr" else child.file_identifier().decode("utf-16_be")
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, **{f"{kind}_path": f"/{name}"})
            found[name] = content.getvalue().decode()
    return found


@pytest.mark.parametrize("kind", ["rr", "joliet"])
def test_the_guest_finds_the_files_under_both_kinds_of_names(kind: str) -> None:
    found = files(FULL.image(instance_id=UUID, hostname="web1"), kind)
    assert set(found) == {"meta-data", "user-data", "network-config"}
    assert found["user-data"] == FULL.user_data
    assert found["network-config"] == FULL.network_config
    assert json.loads(found["meta-data"]) == {
        "instance-id": UUID,
        "local-hostname": "web1",
        "public-keys": ["ssh-ed25519 AAAA"],
    }


def test_the_label_is_the_one_that_cloud_init_looks_for() -> None:
    image = FULL.image(instance_id=UUID, hostname="web1")
    assert image[0x8000:0x8006] == b"\x01CD001"
    assert image[0x8028:0x8048] == b"cidata".ljust(32)
    assert len(image) % 2048 == 0


def test_what_is_not_given_is_empty_and_a_network_is_left_to_the_guest() -> None:
    found = files(NoCloud().image(instance_id=UUID, hostname="web1"), "rr")
    assert found == {
        "user-data": "#cloud-config\n",
        "meta-data": json.dumps({"instance-id": UUID, "local-hostname": "web1"}),
    }


@settings(max_examples=15)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_reaches_the_guest_as_it_is(user_data: str, network_config: str) -> None:
    found = files(NoCloud(user_data, network_config).image(instance_id=UUID, hostname="web1"), "joliet")
    assert (found["user-data"], found["network-config"]) == (user_data, network_config)


def test_large_data_are_whole() -> None:
    script = "#!/bin/sh\n" + "x" * 100_000
    assert files(NoCloud(script).image(instance_id=UUID, hostname="web1"), "rr")["user-data"] == script


def test_the_digest_tells_whether_two_are_the_same() -> None:
    others = [
        NoCloud("#cloud-config\nusers: []\n", FULL.network_config, FULL.meta_data),
        NoCloud(FULL.user_data, "", FULL.meta_data),
        NoCloud(FULL.user_data, FULL.network_config),
        NoCloud(FULL.network_config, FULL.user_data, FULL.meta_data),
    ]
    assert len({each.digest() for each in (FULL, *others)}) == 5
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert NoCloud(meta_data=one).digest() == NoCloud(meta_data=other).digest()
    assert len(FULL.digest()) == 64


def test_without_the_library_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycdlib", None)
    with pytest.raises(Unsupported, match="pycdlib is missing"):
        NoCloud().image(instance_id=UUID, hostname="web1")
