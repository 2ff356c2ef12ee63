# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all labs of a repository share: the guest images, the hosts' Python, and Glance; each built once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from . import util
from .lab import CACHE, HERE, VENV
from .util import LabError, run

GUEST = HERE / "guest"
GUEST_PACKAGES = ["busybox-static", "qemu-guest-agent", "syslinux", "syslinux-common", "systemd-boot-efi"]
REQUIREMENTS = HERE / "requirements-host.txt"
COMPILE_ONCE = HERE / "host/compile_once.py"
REQUIREMENTS_GLANCE = HERE / "requirements-glance.txt"
KEEP = 2  # the newest of each kind; older ones are removed when a new one is built and no lab uses them

# The virtualenv has to be built at the path where it is used. Over /opt there is an overlay in a mount namespace of
# the builder's own, so that the path can be made and nothing of it is seen outside.
BUILD_VENV = """
set -eu
mkdir -p /opt "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=/opt,upperdir=$1/upper,workdir=$1/work" /opt
mkdir -p "$2"
mount --bind "$1/venv" "$2"
/usr/bin/python3 -m venv --system-site-packages "$2"
PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 "$2/bin/python" -m pip install -q -r "$3" >&2
packages=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$4" "$packages/"
echo 'import compile_once' >"$packages/compile_once.pth"
"$2/bin/python" -c 'import libvirt, nbd, openstack, oslo_utils.imageutils.format_inspector' >&2
"""


# Relocatable, as its programs are only started as modules. The template is made by the servers' own programs.
BUILD_GLANCE = """
set -eu
/usr/bin/python3 -m venv "$1/venv"
PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \\
  "$1/venv/bin/python" -m pip install -q --no-deps -r "$2" >&2
mkdir -m 700 "$1/template"
PYTHONPATH=$3 PYTHONDONTWRITEBYTECODE=1 "$1/venv/bin/python" -m kvmlab.glance_template "$1/template" >&2
"""


def packages_wanted() -> list[str]:
    """packages.txt, without its comments."""
    lines = (line.partition("#")[0].strip() for line in (HERE / "packages.txt").read_text("utf-8").splitlines())
    return [line for line in lines if line]


def packages_missing() -> list[str]:
    if not shutil.which("dpkg-query"):
        raise LabError("the lab needs Debian (or a child of it): no dpkg-query here")
    wanted = packages_wanted()
    done = run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *wanted, check=False)
    there = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("installed ")}
    return [name for name in wanted if name not in there]


def install_packages(names: Iterable[str]) -> None:
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run("apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=600", "install", "--no-install-recommends", *names, env=env)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _guest_key() -> str:
    parts = [run("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *GUEST_PACKAGES).stdout]
    for path in sorted(GUEST.rglob("*")):
        if path.is_file():
            parts += [str(path.relative_to(GUEST)), path.read_text("utf-8")]
    return _digest(parts)


def _venv_key() -> str:
    parts = [path.read_text("utf-8") for path in (REQUIREMENTS, COMPILE_ONCE)]
    return _digest([*parts, BUILD_VENV, os.path.realpath("/usr/bin/python3"), os.uname().machine])


def _glance_key() -> str:
    parts = [path.read_text("utf-8") for path in (REQUIREMENTS_GLANCE, HERE / "kvmlab/glance_template.py")]
    return _digest([*parts, BUILD_GLANCE, os.path.realpath("/usr/bin/python3"), os.uname().machine])


def _in_cell(*argv: str) -> None:
    """Run a builder so that nothing of it outlives us, however we end."""
    run("unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child", *argv)


def clean_temporary() -> None:
    """Remove what killed builders left: nobody builds while we have the lock."""
    for path in CACHE.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _retire(kind: str, in_use: Iterable[str]) -> None:
    paths = sorted(CACHE.glob(kind + "-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths[KEEP:]:
        if str(path) not in in_use:
            shutil.rmtree(path, ignore_errors=True)


def _build(kind: str, key: str, what: str, in_use: Iterable[str]) -> Path:
    final = CACHE / (f"{kind}-{key}")
    if final.is_dir():
        return final
    with util.lock(CACHE / "lock", waiting="another lab is building: waiting for it"):
        if final.is_dir():
            return final
        clean_temporary()
        util.say(f"building {what} (once)")
        temporary = CACHE / (f".tmp-{kind}-{key}")
        temporary.mkdir()
        if kind == "images":
            _in_cell("bash", str(GUEST / "build.sh"), str(temporary))
            os.rename(temporary, final)
        elif kind == "glance":
            _in_cell("sh", "-c", BUILD_GLANCE, "sh", str(temporary), str(REQUIREMENTS_GLANCE), str(HERE))
            os.rename(temporary, final)
        else:
            (temporary / "venv").mkdir()
            _in_cell("sh", "-c", BUILD_VENV, "sh", str(temporary), VENV, str(REQUIREMENTS), str(COMPILE_ONCE))
            os.rename(temporary / "venv", final)
            shutil.rmtree(temporary, ignore_errors=True)
        _retire(kind, in_use)
    return final


def images(in_use: Iterable[str]) -> Path:
    """The directory with the guest images."""
    return _build("images", _guest_key(), "the guest images", in_use)


def venv(in_use: Iterable[str]) -> Path:
    """The hosts' virtualenv. Only good when mounted at VENV."""
    return _build("venv", _venv_key(), "the hosts' virtualenv", in_use)


def glance(in_use: Iterable[str]) -> Path:
    """The directory with the virtualenv of Keystone and Glance, and what they start with."""
    return _build("glance", _glance_key(), "Keystone and Glance", in_use)
