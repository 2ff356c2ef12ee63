# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks at rest, read by real QEMU tools and libnbd, and written as images. No lab is needed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock, wait_until
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Busy,
    Invalid,
    LifecycleError,
    NoSpace,
    NotFound,
    TimedOut,
    Unreachable,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import nbd
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.extents import (
    CLUSTER,
    DATA,
    above,
    allocation,
    changed,
    dirty,
    full,
    to_clusters,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.nbd import (
    ALLOCATION,
    Export,
    Qcow2Content,
    dirty_bitmap,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.qcow2 import Layout
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.rest import (
    Layer,
    at_rest,
    chain,
    compressed,
    depths,
    exported,
)
from tests.integration.harness import SCRATCH
from tests.unit.fakes import JumpingClock

MIB = 1 << 20
# Where Debian keeps libnbd's binding; .venv was made of the same Python.
SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"

Layers = list[Layer]


@pytest.fixture(autouse=True)
def clean() -> None:
    """No lab is cleaned here, as none is used."""


@pytest.fixture(autouse=True)
def libnbd(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, SYSTEM_PACKAGES])
        binding = importlib.import_module("nbd")
    monkeypatch.setattr(nbd, "nbd", binding)


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Path]:
    """A directory for temporary files, short enough for a socket; nothing may be left in it, and no process."""
    tmp_path_factory.getbasetemp()  # not in here
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)
        assert os.listdir(directory) == []
        assert servers(directory) == []


def servers(directory: str) -> list[int]:
    """The processes that have a directory in their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if directory.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def qemu_img(*words: str | Path) -> str:
    return run("qemu-img", *words)


def io(path: str | Path, disk_format: str, *commands: str) -> None:
    """qemu-io's commands on an image."""
    run("qemu-io", "-f", disk_format, *(word for command in commands for word in ("-c", command)), path)


def writes(seed: int, size: int, count: int = 12, longest: int = 300_000) -> list[str]:
    """Commands that write data, zeros and nothing here and there, from a seed."""
    chance = random.Random(seed)
    found = []
    for index in range(count):
        start = chance.randrange(0, size // 512) * 512
        length = min(size - start, chance.randrange(1, longest // 512) * 512)
        what = chance.choice([f"write -P {index + 1}", f"write -P {index + 1}", "write -z", "write -P 0", "discard"])
        found.append(f"{what} {start} {length}")
    return found


def image(path: Path, size: int, *options: str | Path) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", *options, path, str(size))
    return path


def layers(*paths: Path, lowest: str = "qcow2") -> Layers:
    return [Layer(str(path), "qcow2" if path is not paths[-1] else lowest) for path in paths]


def a_chain(where: Path, sizes: t.Sequence[int], seed: int = 1) -> Layers:
    """Images with clusters of 4 KiB, 64 KiB and 2 MiB over each other, the lowest first in *sizes*."""
    below: list[str | Path] = []
    found: list[Path] = []
    for index, (size, cluster) in enumerate(zip(sizes, ("64k", "4k", "2M"))):
        path = image(where / f"{index}.qcow2", size, *below, "-o", f"cluster_size={cluster}")
        io(path, "qcow2", *writes(seed * 10 + index, size))
        below = ["-b", path, "-F", "qcow2"]
        found.insert(0, path)
    return layers(*found)


def raw(where: Path, size: int = 9 * MIB) -> Layers:
    path = where / "disk.raw"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(3 * MIB + 100)
        file.write(b"x" * 200_000)
        file.truncate(size)
    return layers(path, lowest="raw")


def with_odd_size(where: Path) -> Layers:
    return raw(where, 5 * MIB + 1001)


def smaller_than_a_cluster(where: Path) -> Layers:
    path = image(where / "i.qcow2", 1024)
    io(path, "qcow2", "write -P 5 512 512")
    return layers(path)


def with_a_disk_that_ends_within_a_cluster(where: Path) -> Layers:
    return a_chain(where, [5 * MIB + 512, 6 * MIB + 1536, 7 * MIB + 512])


def with_layers_that_grow(where: Path) -> Layers:
    return a_chain(where, [3 * MIB, 6 * MIB, 12 * MIB])


def with_a_short_layer_between(where: Path) -> Layers:
    return a_chain(where, [12 * MIB, 3 * MIB, 12 * MIB])


def with_compressed_clusters(where: Path) -> Layers:
    io(image(where / "source", 9 * MIB), "qcow2", *writes(7, 9 * MIB))
    qemu_img("convert", "-c", "-O", "qcow2", where / "source", where / "i.qcow2")
    return layers(where / "i.qcow2")


def with_a_snapshot_inside(where: Path) -> Layers:
    path = image(where / "i.qcow2", 9 * MIB)
    io(path, "qcow2", "write -P 1 0 4M")
    qemu_img("snapshot", "-c", "before", path)
    io(path, "qcow2", "write -P 2 1M 2M", "write -z 5M 100k")
    return layers(path)


def empty(where: Path) -> Layers:
    return layers(image(where / "i.qcow2", 9 * MIB))


def in_many_pieces(where: Path) -> Layers:
    path = image(where / "i.qcow2", 64 * MIB)
    io(path, "qcow2", *(f"write -P {1 + index % 250} {index * 2 * CLUSTER} {CLUSTER}" for index in range(512)))
    return layers(path)


def full_of_data(where: Path) -> Layers:
    path = where / "disk.raw"
    path.write_bytes(random.Random(3).randbytes(40 * MIB + 512))
    return layers(path, lowest="raw")


SOURCES: list[t.Callable[[Path], Layers]] = [
    raw,
    with_odd_size,
    smaller_than_a_cluster,
    with_a_disk_that_ends_within_a_cluster,
    with_layers_that_grow,
    with_a_short_layer_between,
    with_compressed_clusters,
    with_a_snapshot_inside,
    empty,
    in_many_pieces,
    full_of_data,
]


def stored(content: Qcow2Content, path: Path) -> Path:
    """What a store does, with all that it may expect of the blocks."""
    lengths = []
    with content, path.open("wb") as file:
        for block in content:
            lengths.append(len(block))
            file.write(block)
    assert sum(lengths) == len(content)
    assert all(0 < length <= 4 * MIB for length in lengths)
    assert all(length % CLUSTER == 0 for length in lengths)
    return path


def sound(path: Path) -> None:
    qemu_img("check", "-q", "-f", "qcow2", path)


def virtual_size(path: Path | str, disk_format: str) -> int:
    told = json.loads(qemu_img("info", "-f", disk_format, "--output=json", path))
    return int(told["virtual-size"])


def same(one: Path | str, one_format: str, other: Path | str, other_format: str = "qcow2") -> None:
    """What is read from both is the same; behind the end of one it is zeros."""
    qemu_img("compare", "-q", "-f", one_format, "-F", other_format, one, other)


def whole(export: Export) -> Layout:
    return Layout(export.size, to_clusters(full(allocation(export.extents(ALLOCATION))), export.size))


def full_image(source: Layers, path: Path) -> Path:
    with at_rest(source) as socket, Export(socket) as export:
        return stored(Qcow2Content(export, whole(export)), path)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_disk_and_its_image_are_the_same(tmp_path: Path, source: t.Callable[[Path], Layers]) -> None:
    disk = source(tmp_path)
    found = full_image(disk, tmp_path / "stored")
    sound(found)
    same(disk[0].path, disk[0].format, found)
    assert virtual_size(found, "qcow2") == virtual_size(disk[0].path, disk[0].format)


def test_an_image_depends_on_nothing_but_the_disk(tmp_path: Path) -> None:
    disk = a_chain(tmp_path, [9 * MIB] * 3)
    one, two = full_image(disk, tmp_path / "one"), full_image(disk, tmp_path / "two")
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()


def test_what_lies_behind_the_end_of_the_disk_is_zeros(tmp_path: Path) -> None:
    found = full_image(full_of_data(tmp_path), tmp_path / "stored").read_bytes()
    assert found[-CLUSTER : -CLUSTER + 512].count(0) < 100
    assert found[-CLUSTER + 512 :] == bytes(CLUSTER - 512)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("parent", [1, 2])
@pytest.mark.parametrize("sizes", [(9, 9, 9), (4, 9, 9), (9, 4, 9), (9, 4, 6), (4, 6, 9), (9, 9, 5)])
def test_a_delta_over_its_parent_is_the_disk(tmp_path: Path, sizes: tuple[int, ...], parent: int, seed: int) -> None:
    disk = a_chain(tmp_path, [size * MIB + 512 * seed for size in sizes], seed)
    below = disk[parent:]
    with at_rest(below) as socket, Export(socket) as export:
        parent_size = export.size
        base = stored(Qcow2Content(export, whole(export)), tmp_path / "base")
    with at_rest(disk) as socket, Export(socket) as export:
        extents = allocation(export.extents(ALLOCATION))
        presences = above(depths(disk), parent)
        layout = Layout(export.size, to_clusters(changed(presences, extents, parent_size=parent_size), export.size))
        delta = stored(Qcow2Content(export, layout), tmp_path / "delta")
    sound(delta)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", delta)
    same(disk[0].path, "qcow2", delta)


def test_a_delta_is_as_small_as_what_differs(tmp_path: Path) -> None:
    base = image(tmp_path / "base", 64 * MIB)
    io(base, "qcow2", "write -P 1 0 40M")
    top = image(tmp_path / "top", 20 << 30, "-b", base, "-F", "qcow2")
    io(top, "qcow2", "write -P 2 1M 64k", "write -z 2M 1M")
    disk = layers(top, base)
    with at_rest(disk) as socket, Export(socket) as export:
        extents = changed(above(depths(disk), 1), allocation(export.extents(ALLOCATION)), parent_size=64 * MIB)
        layout = Layout(export.size, to_clusters(extents, export.size))
    assert layout.clusters.data == 1
    assert layout.length == 6 * CLUSTER  # header, two for references, L1, one L2, data


def test_an_increment_over_the_backup_before_is_the_disk(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", 9 * MIB + 512)
    io(path, "qcow2", *writes(20, 9 * MIB))
    disk = layers(path)
    newest, size = full_image(disk, tmp_path / "0"), 9 * MIB + 512
    for number in (1, 2, 3):
        qemu_img("bitmap", "--add", "-f", "qcow2", path, f"b{number}")
        io(path, "qcow2", *writes(20 + number, 9 * MIB, count=4))
        context = dirty_bitmap(f"b{number}")
        with at_rest(disk, bitmap=f"b{number}") as socket, Export(socket, contexts=[ALLOCATION, context]) as export:
            extents = changed(dirty(export.extents(context)), allocation(export.extents(ALLOCATION)), parent_size=size)
            layout = Layout(export.size, to_clusters(extents, export.size))
            assert layout.clusters.data < 9 * MIB // CLUSTER
            increment = stored(Qcow2Content(export, layout), tmp_path / str(number))
        sound(increment)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", newest, "-F", "qcow2", increment)
        same(path, "qcow2", increment)
        newest = increment


def test_a_block_device_is_read(tmp_path: Path) -> None:
    path = tmp_path / "device"
    io(image(path, 9 * MIB), "qcow2", *writes(30, 9 * MIB))
    device = run("losetup", "--find", "--show", path).strip()
    try:
        found = full_image([Layer(device, "qcow2", "block")], tmp_path / "stored")
    finally:
        run("losetup", "--detach", device)
    same(path, "qcow2", found)


NAMES = ["a,b", 'a"b', "a'b", "a:b", "json:{}", "a\\b", "-f", "a b\nc", "ä\N{PILE OF POO}", "a=b,backing=c", "nbd:a:1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    base, top = directory / f"base{name}", directory / name
    io(image(tmp_path / "base", 4 * MIB), "qcow2", "write -P 1 0 1M")
    io(image(tmp_path / "top", 4 * MIB, "-b", tmp_path / "base", "-F", "qcow2"), "qcow2", "write -P 2 2M 1M")
    qemu_img("convert", "-O", "raw", tmp_path / "top", tmp_path / "flat")
    (tmp_path / "base").rename(base)
    (tmp_path / "top").rename(top)
    disk = layers(top, base)
    same(tmp_path / "flat", "raw", full_image(disk, tmp_path / "stored"))
    assert {entry.depth for entry in depths(disk)} == {0, 1}
    same(tmp_path / "flat", "raw", compressed(chain(disk), str(tmp_path / f"c{name}")))


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(Invalid, match="is no UTF-8"):
        chain([Layer("/a\udcff", "raw")])


def test_what_a_header_names_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    path = image(tmp_path / "i.qcow2", MIB, "-b", tmp_path / "secret", "-F", "raw")
    found = full_image(layers(path), tmp_path / "stored")
    assert b"secret" not in found.read_bytes()
    assert [entry.depth for entry in depths(layers(path))] == [0]


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "i.qcow2", MIB, "-o", f"data_file={tmp_path / 'secret'},data_file_raw=on")
    with pytest.raises(Invalid, match=f"disk {path}: it keeps its data in another file"):
        chain(layers(path))


@pytest.mark.parametrize(
    ("disk", "kind", "message"),
    [
        ([], Invalid, "it has no layers"),
        ([Layer("a.qcow2", "qcow2")], Invalid, "the path must be absolute"),
        ([Layer("/a", "raw"), Layer("/b", "raw")], Invalid, "disk /a: it is raw, and cannot have a layer below it"),
        ([Layer("/dev/null", "raw")], Invalid, "disk /dev/null: it is no regular file"),
        ([Layer("/etc/passwd", "raw", "block")], Invalid, "disk /etc/passwd: it is no block device"),
        ([Layer("/a", "vmdk")], Unsupported, "disk /a: its format is vmdk"),
    ],
)
def test_what_is_no_chain_is_refused(disk: Layers, kind: type[LifecycleError], message: str) -> None:
    with pytest.raises(kind, match=message):
        chain(disk)


def test_errors_say_what_qemu_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"Failed to export disk /nowhere: .*No such file or directory") as caught:
        enter(at_rest([Layer("/nowhere", "qcow2")]))
    assert "json" not in str(caught.value)
    with pytest.raises(NotFound, match=r"Failed to map disk /nowhere: .*No such file or directory"):
        list(depths([Layer("/nowhere", "raw")]))
    (tmp_path / "text").write_text("no image at all", encoding="utf-8")
    with pytest.raises(LifecycleError, match="not in qcow2 format"):
        enter(at_rest(layers(tmp_path / "text")))
    with pytest.raises(LifecycleError, match="not in qcow2 format"):
        list(depths(layers(tmp_path / "text")))
    with pytest.raises(NotFound, match="Bitmap 'b' is not found"):
        enter(at_rest(empty(tmp_path), bitmap="b"))


def enter(manager: contextlib.AbstractContextManager[t.Any]) -> None:
    with manager:
        raise AssertionError("it opened")


def test_a_missing_program_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(NotFound, match=r"setpriv.*util-linux"):
        enter(at_rest([Layer("/nowhere", "raw")]))
    (tmp_path / "bin/setpriv").symlink_to("/usr/bin/setpriv")
    with pytest.raises(NotFound, match=r"qemu-nbd.*qemu-utils"):
        enter(at_rest([Layer("/nowhere", "raw")]))


@contextlib.contextmanager
def in_use(path: Path) -> t.Iterator[None]:
    """Somebody has the image open for writing, as a VM has."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(b"write -P 9 0 64k\nflush\n")
        process.stdin.flush()
        while b"wrote" not in process.stdout.readline():
            pass
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_base_that_a_vm_builds_upon_is_read_and_its_overlay_mapped_but_not_read(tmp_path: Path) -> None:
    base = image(tmp_path / "base", 4 * MIB)
    io(base, "qcow2", "write -P 1 0 1M")
    top = image(tmp_path / "top", 4 * MIB, "-b", base, "-F", "qcow2")
    with in_use(top):
        same(base, "qcow2", full_image(layers(base), tmp_path / "stored"))
        assert [entry.length for entry in depths(layers(top, base)) if entry.depth == 0] == [CLUSTER]
        with pytest.raises(Busy, match="lock"):
            enter(at_rest(layers(top, base)))
    with at_rest(layers(top, base)), in_use(image(tmp_path / "other", 4 * MIB, "-b", base, "-F", "qcow2")):
        pass  # a VM may be started meanwhile


HOLDER = """
import sys, threading
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.rest import Layer, at_rest
with at_rest([Layer(sys.argv[1], "qcow2")]) as socket:
    print(socket, flush=True)
    threading.Event().wait()
"""


def test_a_server_dies_with_us_and_the_next_one_clears_up(tmp_path: Path, temporary: Path) -> None:
    disk = empty(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, disk[0].path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    socket = holder.stdout.readline().strip()
    assert len(servers(socket)) == 1
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    wait_until(lambda: not servers(socket), clock=Clock(), timeout=10, doing="waiting for qemu-nbd to end")
    assert os.path.exists(socket)
    with at_rest(disk):
        assert not os.path.exists(socket)


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"Failed to open NBD export 'x' at /nowhere: .*No such file"):
        Export("/nowhere", "x")
    with at_rest(empty(tmp_path)) as socket:
        with pytest.raises(NotFound, match="no export named 'x'"):
            Export(socket, "x")
        with pytest.raises(NotFound, match="it has no qemu:dirty-bitmap:b"):
            Export(socket, contexts=[ALLOCATION, dirty_bitmap("b")])
    monkeypatch.setattr(nbd, "nbd", None)
    with pytest.raises(Unsupported, match="python3-libnbd"):
        Export("/nowhere")


def test_a_server_that_dies_ends_the_reading(tmp_path: Path) -> None:
    with at_rest(full_of_data(tmp_path)) as socket, Export(socket) as export:
        with Qcow2Content(export, whole(export)) as content:
            blocks = iter(content)
            next(blocks)
            (server,) = servers(socket)
            os.kill(server, signal.SIGKILL)
            with pytest.raises(Unreachable, match="Failed to read NBD export '' at"):
                list(blocks)
        with pytest.raises(Unreachable, match="Failed to ask for base:allocation"):
            list(export.extents(ALLOCATION))
        with pytest.raises(Unreachable, match=r"Connection (refused|reset)"):
            Export(socket)


def test_who_waits_for_a_server_that_hangs_may_give_up(tmp_path: Path) -> None:
    asked = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) == 8:
            raise NoSpace("full")

    with at_rest(full_of_data(tmp_path)) as socket, Export(socket) as export:
        layout = whole(export)
        (server,) = servers(socket)
        os.kill(server, signal.SIGSTOP)
        with Qcow2Content(export, layout, check=check) as content, pytest.raises(NoSpace, match="full"):
            list(content)


def test_blocks_are_aligned_and_their_buffers_used_again(tmp_path: Path) -> None:
    places = set()
    blocks = 0
    with (
        at_rest(full_of_data(tmp_path)) as socket,
        Export(socket) as export,
        Qcow2Content(export, whole(export)) as content,
    ):
        for block in content:
            places.add(ctypes.addressof(ctypes.c_char.from_buffer(block)))
            blocks += 1
    assert all(place % mmap.PAGESIZE == 0 for place in places)
    assert len(places) <= 8 < blocks


def test_the_reading_ends_with_the_reader(tmp_path: Path) -> None:
    with at_rest(full_of_data(tmp_path)) as socket:
        for blocks in (0, 1, 3):
            with Export(socket) as export, Qcow2Content(export, whole(export)) as content:
                for _block, _number in zip(content, range(blocks)):
                    pass
            assert list(content) == []


def test_how_far_it_is_is_told_and_how_fast_it_goes_is_limited(tmp_path: Path) -> None:
    clock = JumpingClock()
    told: list[tuple[int, int]] = []
    with at_rest(full_of_data(tmp_path)) as socket, Export(socket) as export:
        content = Qcow2Content(
            export,
            whole(export),
            progress=lambda done, total: told.append((done, total)),
            bandwidth=MIB,
            clock=clock,
        )
        stored(content, tmp_path / "stored")
    assert told[-1] == (len(content), len(content))
    assert [done for done, _total in told] == sorted(done for done, _total in told)
    assert clock.seconds == pytest.approx(len(content) / MIB)
    assert max(clock.slept) <= 0.2


def test_a_disk_of_many_pages_is_mapped(tmp_path: Path) -> None:
    path = image(tmp_path / "i.qcow2", (5 << 30) + 512)
    io(path, "qcow2", "write -P 1 1073741312 1024", "write -P 2 4G 512", "write -P 3 5G 512")
    with at_rest(layers(path)) as socket, Export(socket) as export:
        layout = whole(export)
        found = stored(Qcow2Content(export, layout), tmp_path / "stored")
    assert [run.start * CLUSTER for run in layout.clusters if run.kind == DATA] == [
        (1 << 30) - CLUSTER,
        4 << 30,
        5 << 30,
    ]
    same(path, "qcow2", found)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_an_image_is_compressed_when_asked(tmp_path: Path, compression: str) -> None:
    disk = a_chain(tmp_path, [9 * MIB] * 3)
    found = compressed(chain(disk), str(tmp_path / "found"), compression=compression)
    assert os.stat(found).st_mode & 0o777 == 0o600
    sound(Path(found))
    same(disk[0].path, "qcow2", found)
    assert f"compression type: {compression}" in qemu_img("info", "-f", "qcow2", found)
    with at_rest(disk) as socket:
        compressed(exported(socket), found, compression=compression)
    same(disk[0].path, "qcow2", found)
    assert os.path.getsize(found) < os.path.getsize(full_image(disk, tmp_path / "stored"))


def test_a_compression_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = str(tmp_path / "found")
    with pytest.raises(NotFound, match=f"Failed to write {target}: .*No such file"):
        compressed(chain([Layer("/nowhere", "raw")]), target)
    with pytest.raises(Unsupported, match="compression 'lzma' is not known"):
        compressed(chain([Layer("/nowhere", "raw")]), target, compression="lzma")
    assert not os.path.exists(target)
    with pytest.raises(NotFound, match="No such file"):
        compressed(chain(empty(tmp_path)), "/nowhere/found")

    def check() -> None:
        raise NoSpace("full")

    with pytest.raises(NoSpace, match="full"):
        compressed(chain(full_of_data(tmp_path)), target, bandwidth=MIB, check=check)
    assert not os.path.exists(target)
    assert servers(target) == []


def test_a_map_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "bin/qemu-img"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    hanging.chmod(0o700)
    disk = empty(tmp_path)
    monkeypatch.setenv("PATH", str(hanging.parent), prepend=os.pathsep)
    with pytest.raises(TimedOut, match=r"Gave up to map disk .* after 0\.2 seconds"):
        list(depths(disk, timeout=0.2))


def test_a_map_that_nobody_reads_to_its_end_leaves_no_process(tmp_path: Path) -> None:
    disk = in_many_pieces(tmp_path)
    entries = depths(disk)
    assert next(iter(entries)).depth == 0
    assert len(servers(disk[0].path)) <= 1
    del entries
    assert servers(disk[0].path) == []
