# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Disks at rest: QEMU's tools on files and block devices whose layers are told, all of them.

Nothing is probed, and no name in a header is followed: a qcow2 without a layer below it has none, whatever it says. The
layers are given as QEMU's ``json:`` names, in which a path is a string like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
import typing as t

from .._core.clock import Clock, wait_until
from .._core.errors import Busy, Denied, Invalid, LifecycleError, NoSpace, NotFound, TimedOut, Unsupported
from .._core.files import working
from .extents import Mapped

# Seconds until a tool must have opened an image.
_OPENED = 60
# Seconds, at most, until somebody who waits looks around.
_LOOK = 0.2
# How many may be connected at a time.
_CLIENTS = 8
_DRIVERS = {"file": "file", "block": "host_device"}
_COMPRESSIONS = ("zlib", "zstd")
# "QCow2 Image Format": where the incompatible features are, and the one of an external data file.
_FEATURES = struct.Struct(">4sI64xQ")
_DATA_FILE = 4
_DIRECTORY = re.compile(r"kvmops-nbd-(\d+)-")
# What the tools say, and what it is. The first that fits counts.
_REASONS: tuple[tuple[str, type[LifecycleError]], ...] = (
    ("No space left on device", NoSpace),
    ("Disk quota exceeded", NoSpace),
    ("Permission denied", Denied),
    ("No such file or directory", NotFound),
    (" lock", Busy),
    ("not found", NotFound),  # a bitmap
)

Node = t.Mapping[str, t.Any]


class Layer(t.NamedTuple):
    """One image of a chain.

    :param path: Absolute path on this machine.
    :param format: ``qcow2`` or ``raw``.
    :param kind: ``file`` or ``block``.
    """

    path: str
    format: str
    kind: str = "file"


def chain(layers: t.Sequence[Layer]) -> Node:
    """The disk in *layers*, which go from the top down, in QEMU's words (``BlockdevOptions``).

    :raises Invalid: They are no chain, or one has its data in another file.
    :raises Unsupported: Another format.
    """
    node: Node | None = None
    for layer in reversed(layers):
        node = _node(layer, node)
    if node is None:
        raise Invalid("Failed to open a disk: it has no layers.")
    return node


def _node(layer: Layer, below: Node | None) -> Node:
    path, disk_format, kind = layer
    if not os.path.isabs(path):
        raise Invalid(f"Failed to open disk {path}: the path must be absolute.")
    try:
        path.encode()
    except UnicodeEncodeError as exc:
        raise Invalid(f"Failed to open disk {path!r}: the path is no UTF-8, which QEMU wants.") from exc
    _check_kind(path, kind)
    protocol: dict[str, t.Any] = {"driver": _DRIVERS[kind], "filename": path}
    if _takes_direct_io(path):
        protocol.update(cache={"direct": True}, aio="native")
    if disk_format == "qcow2":
        _check_data_file(path)
        return {"driver": "qcow2", "file": protocol, "backing": below}
    if disk_format != "raw":
        raise Unsupported(
            f"Failed to open disk {path}: its format is {disk_format}.", hint="Only qcow2 and raw can be read."
        )
    if below is not None:
        raise Invalid(f"Failed to open disk {path}: it is raw, and cannot have a layer below it.")
    return {"driver": "raw", "file": protocol}


def _check_kind(path: str, kind: str) -> None:
    """Opening a pipe, for one, would wait for somebody to write into it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # told by who opens it
    if not (stat.S_ISBLK(mode) if kind == "block" else stat.S_ISREG(mode)):
        raise Invalid(f"Failed to open disk {path}: it is no {'block device' if kind == 'block' else 'regular file'}.")


def _takes_direct_io(path: str) -> bool:
    """Whether the page cache can be passed by. What else is the matter with a file is told by who opens it."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _check_data_file(path: str) -> None:
    """QEMU would follow the name of a data file, with no way to forbid it."""
    try:
        with open(path, "rb") as file:
            start = file.read(_FEATURES.size)
    except OSError:
        return  # told by who opens it
    if len(start) == _FEATURES.size:
        _magic, version, features = _FEATURES.unpack(start)
        if version >= 3 and features & _DATA_FILE:
            raise Invalid(
                f"Failed to open disk {path}: it keeps its data in another file.",
                hint="Put them together on a machine where you trust it: qemu-img convert -f qcow2 -O qcow2 …",
            )


def exported(socket: str, name: str = "") -> Node:
    """The disk that an NBD export is, for :func:`compressed`."""
    return {"driver": "nbd", "server": {"type": "unix", "path": socket}, "export": name}


def _told(node: Node) -> str:
    return f"json:{json.dumps(node)}"


def _failure(doing: str, node: Node, said: str) -> LifecycleError:
    """The error for what a tool *said* when it failed."""
    reason = " ".join(said.replace(f"'{_told(node)}'", "it").split()).rstrip(".")
    kind = next((kind for words, kind in _REASONS if words in reason), LifecycleError)
    hint = "Install the package qemu-utils or qemu-img." if reason.startswith("setpriv: ") else ""
    return kind(f"Failed to {doing}: {reason or 'no reason was given'}.", hint=hint)


def _started(command: list[str], **streams: t.Any) -> subprocess.Popen[str]:
    """Run a tool that dies with us: with the thread that called this, to be exact. (It is the kernel that sees to it,
    also when we are killed. ``preexec_fn`` is no way to ask for it where there are threads.)"""
    try:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command], stdin=subprocess.DEVNULL, text=True, **streams
        )
    except FileNotFoundError as exc:
        raise NotFound("Failed to run setpriv: it is not installed.", hint="Install the package util-linux.") from exc


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> t.Iterator[None]:
    """At the end of the body, the process has ended, whatever it was doing."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def at_rest(layers: t.Sequence[Layer], *, bitmap: str = "", clock: Clock | None = None) -> t.Iterator[str]:
    """An NBD export, with an empty name, of the disk in *layers*, which go from the top down; for as long as the body.

    It is read only, and no lock is taken that a VM on the same layers would mind.

    :param bitmap: A persistent dirty bitmap of the topmost layer, to be exported as a context.
    :yields: Path of its socket, which only we can reach.
    :raises Busy: A VM writes into one of the layers.
    :raises NotFound: One of them is not there, or has no such bitmap.
    """
    _sweep()
    node = chain(layers)
    doing = f"export disk {layers[0].path}"
    with tempfile.TemporaryDirectory(prefix=f"kvmops-nbd-{os.getpid()}-") as directory:
        socket, ready, log = (os.path.join(directory, name) for name in ("socket", "pid", "log"))
        options = ["--read-only", "--persistent", f"--shared={_CLIENTS}", f"--socket={socket}", f"--pid-file={ready}"]
        if bitmap:
            options.append(f"--bitmap={bitmap}")
        with open(log, "w", encoding="utf-8") as errors:
            process = _started(["qemu-nbd", *options, "--", _told(node)], stdout=subprocess.DEVNULL, stderr=errors)
        with _ended(process):
            # It writes the file with its number when it has opened everything.
            wait_until(
                lambda: process.poll() is not None or os.path.exists(ready),
                clock=clock or Clock(),
                timeout=_OPENED,
                doing=f"waiting for qemu-nbd to {doing}",
                first_interval=0.002,
            )
            if process.poll() is not None:
                with open(log, encoding="utf-8", errors="replace") as errors:
                    raise _failure(doing, node, errors.read())
            yield socket


def _sweep() -> None:
    """Remove the directories of processes that were killed."""
    temporary = tempfile.gettempdir()
    for name in os.listdir(temporary):
        found = _DIRECTORY.match(name)
        path = os.path.join(temporary, name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                if os.lstat(path).st_uid == os.geteuid():
                    shutil.rmtree(path, ignore_errors=True)


def depths(layers: t.Sequence[Layer], *, timeout: float = 600) -> t.Iterator[Mapped]:
    """From which of the *layers*, which go from the top down, each byte of the disk is read.

    A running VM may have them open. What it wrote is told for sure only when QEMU has written its tables, as it does
    when the guest flushes or the VM is paused; what comes later may be told or not.

    :param timeout: Seconds for all of it.
    """
    node = chain(layers)
    doing = f"map disk {layers[0].path}"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        command = ["qemu-img", "map", "--force-share", "--output=json", "--", _told(node)]
        process = _started(command, stdout=subprocess.PIPE, stderr=errors)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(timeout, give_up)
        alarm.daemon = True
        alarm.start()
        try:
            with process, _ended(process):
                if process.stdout:
                    yield from _mapped(process.stdout)
                code = process.wait()
        finally:
            alarm.cancel()
        if late.is_set():
            raise TimedOut(f"Gave up to {doing} after {timeout:g} seconds.", seconds=timeout)
        if code:
            errors.seek(0)
            raise _failure(doing, node, errors.read())


def _mapped(lines: t.Iterable[str]) -> t.Iterator[Mapped]:
    """What ``qemu-img map`` prints: a list in JSON, with a line for each of its objects."""
    for line in lines:
        text = line.strip().strip("[],")
        if text and line.endswith("\n"):  # else it was killed
            entry = json.loads(text)
            yield Mapped(entry["start"], entry["length"], entry["depth"])


def compressed(
    source: Node,
    target: str,
    *,
    compression: str = "zlib",
    bandwidth: int = 0,
    check: t.Callable[[], None] | None = None,
) -> str:
    """Write a compressed qcow2 image of a whole disk to the file *target*, which is overwritten; and return its name.
    Without success, there is no such file.

    :param source: Of :func:`chain` or :func:`exported`.
    :param compression: ``zlib`` or ``zstd``.
    :param bandwidth: Bytes of the disk per second at most; 0 for no limit.
    :param check: Is called several times a second; what it raises ends it.
    :raises Unsupported: QEMU cannot compress in this way.
    """
    if compression not in _COMPRESSIONS:
        raise Unsupported(
            f"Failed to write {target}: compression {compression!r} is not known.", hint="Use zlib or zstd."
        )
    doing = f"write {target}"
    limit = ["-r", str(bandwidth)] if bandwidth else []
    form = ["-c", "-O", "qcow2", "-o", f"compression_type={compression}"]
    with working(doing):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            command = ["qemu-img", "convert", *form, *limit, "--", _told(source), target]
            process = _started(command, stdout=subprocess.DEVNULL, stderr=errors)
            with _ended(process):
                while not _has_ended(process):
                    if check:
                        check()
            if process.returncode:
                errors.seek(0)
                raise _failure(doing, source, errors.read())
    except BaseException:
        os.unlink(target)
        raise
    return target


def _has_ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_LOOK)
    except subprocess.TimeoutExpired:
        return False
    return True


def remove_bitmap(path: str, name: str) -> None:
    """Take a dirty bitmap out of a qcow2 file that nobody has open; one that is not there is fine."""
    layer = Layer(path, "qcow2")
    process = subprocess.run(
        ["qemu-img", "bitmap", "--remove", "-f", "qcow2", "--", path, name], check=False, capture_output=True, text=True
    )
    failure = _failure(f"remove the bitmap {name} from {path}", _node(layer, None), process.stderr)
    if process.returncode and not isinstance(failure, NotFound):
        raise failure
