# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance with a real Keystone: their start, their faults, and a small client to look at them with.

Both run in the hub and end with it; they are found by their environment, as everything of a lab. They have one address
and one name in the lab, and speak TLS with a certificate of the lab's CA.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import subprocess
import uuid
from pathlib import Path
from typing import Any
from urllib import error, request

from . import cache, faults, hosts, util
from .glance_template import (
    ACCOUNTS,
    GLANCE_PORT,
    KEYSTONE_PORT,
    KEYSTONE_URL,
    REGION,
    credentials,
    write_glance,
    write_keystone,
)
from .lab import CLOUD, CLOUD_NAME, HERE, Lab
from .util import LabError, run, write

NAME = "glance"  # as `lab fault` calls it
SERVERS = ("keystone", "glance")
STORE_SIZE = "4G"

CLOUDS = "/etc/kvmops-lab/clouds.yaml"  # paths inside the hosts
CA_CERT = "/etc/pki/CA/cacert.pem"


# What can be put before Glance (see wsgi.py), with the requests that it can befall; the first is the default.
KINDS = {
    "fail": ("answer with an error, when --after bytes of an upload were read", ("any", "upload", "download")),
    "expire": ("answer with 401, as if the token had expired, meanwhile or before; once", ("upload", "download")),
    "reset": ("reset the connection", ("any", "upload", "download")),
    "stall": ("do nothing for a time, then go on", ("any", "upload", "download")),
    "truncate": ("end a download early, with a length in its head that agrees", ("download",)),
    "corrupt": ("change the byte after those in a download", ("download",)),
}

# In a mount namespace of its own a server finds its own name, which the machine does not know.
IN_ITS_PLACE = 'mount --make-rprivate / && mount --bind "$1" /etc/hosts && shift && exec "$@"'


# ---- files


def directory(lab: Lab) -> Path:
    """What the servers keep, but for the images."""
    return lab.dir / "glance"


def made(lab: Lab) -> bool:
    """Whether the lab was ever given a Glance."""
    return (directory(lab) / "made").exists()


def store(lab: Lab) -> Path:
    """The directory of the images, as the hub sees it; a file system of limited size."""
    return lab.dir / "mnt" / "glance"


def store_outside(lab: Lab) -> Path:
    """The same, as the machine sees it."""
    return lab.root("hub") / str(store(lab)).lstrip("/")


def address(lab: Lab) -> str:
    return f"{lab.settings().subnet}.{CLOUD}"


def urls(lab: Lab) -> dict[str, str]:
    """Of both servers, as the machine reaches them: it does not know their name."""
    host = address(lab)
    return {"keystone": f"https://{host}:{KEYSTONE_PORT}/v3", "glance": f"https://{host}:{GLANCE_PORT}"}


def passwords(lab: Lab) -> dict[str, str]:
    """By cloud."""
    return dict(json.loads((directory(lab) / "passwords.json").read_text("utf-8")))


def clouds(lab: Lab, inside: bool) -> str:
    """A clouds.yaml, for the hosts or for the machine. (JSON is YAML.)"""
    found: dict[str, Any] = {}
    for cloud, account in ACCOUNTS.items():
        auth = {
            "auth_url": KEYSTONE_URL if inside else urls(lab)["keystone"],
            "username": account.user,
            "password": passwords(lab)[cloud],
            "project_name": account.project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        }
        found[cloud] = {"auth": auth, "region_name": REGION, "interface": "public", "identity_api_version": "3"}
        found[cloud]["cacert"] = CA_CERT if inside else str(lab.pki / "cacert.pem")
        if not inside:
            found[cloud]["image_endpoint_override"] = urls(lab)["glance"]
    return json.dumps({"clouds": found}, indent=2) + "\n"


def make(lab: Lab) -> None:
    """The files as they are before the first start."""
    where = directory(lab)
    if where.exists():
        shutil.rmtree(where)
    cached = Path(lab.settings().glance)
    where.mkdir(mode=0o700)
    for name in ("keystone.db", "glance.db", "passwords.json"):
        shutil.copy(cached / "template" / name, where / name)
    for name in ("staging", "tasks"):
        (where / name).mkdir()
    hosts.make_certificate(lab, CLOUD_NAME, address(lab), where / "server-")
    write_keystone(where)
    write_glance(where, cached / "venv", passwords(lab)["admin"], store(lab), lab.pki / "cacert.pem")
    write(where / "hosts", f"127.0.0.1 localhost\n{address(lab)} {CLOUD_NAME}\n")
    write(where / "clouds.yaml", clouds(lab, inside=False), 0o600)
    write(where / "made", "")


def tell(lab: Lab) -> None:
    """Give the hosts that run their clouds.yaml."""
    text = clouds(lab, inside=True)
    for host in lab.hosts():
        if lab.init(host):
            write(lab.root(host) / CLOUDS.lstrip("/"), text, 0o600)


# ---- the servers


def running(lab: Lab) -> bool:
    """Whether both run, in whatever condition."""
    return made(lab) and all(lab.belongings({server}) for server in SERVERS)


def answers(lab: Lab, server: str) -> bool:
    """Whether it serves."""
    health = {"keystone": urls(lab)["keystone"], "glance": urls(lab)["glance"] + "/healthcheck"}[server]
    try:
        with request.urlopen(health, timeout=5, context=_trust(lab)) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _trust(lab: Lab) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(lab.pki / "cacert.pem"))


def _mount_store(lab: Lab) -> None:
    hub = lab.need_init("hub")
    if f" {store(lab)} " in hub.mounts():
        return
    within = ["nsenter", "--target", str(hub.pid), "--mount", "--"]
    store(lab).mkdir(parents=True, exist_ok=True)
    if lab.settings().private_size == "none":
        plain = lab.dir / "glance-store"
        plain.mkdir(exist_ok=True)
        run(*within, "mount", "--bind", plain, store(lab))
    else:
        run(*within, HERE / "host/mount-image", lab.dir / "glance-store.img", STORE_SIZE, store(lab))


def up(lab: Lab) -> bool:
    """Give a lab that is up its Glance, or what of it does not serve. True if there was something to do."""
    with lab.locked():
        settings = lab.settings()
        if not made(lab):
            settings.glance = str(cache.glance(hosts.cached()))
            lab.save(settings)
            make(lab)
        started = start(lab)
        finish(lab, started)
        tell(lab)
    return bool(started)


def start(lab: Lab) -> dict[str, subprocess.Popen[bytes]]:
    """Start what does not serve; finish() waits for it."""
    _mount_store(lab)
    lab.in_hub("ip", "addr", "replace", f"{address(lab)}/24", "dev", "sw0")
    started = {}
    for server in SERVERS:
        if not (lab.belongings({server}) and answers(lab, server)):
            lab.kill_belongings({server})
            started[server] = _spawn(lab, server)
    return started


def _spawn(lab: Lab, server: str) -> subprocess.Popen[bytes]:
    where = directory(lab)
    port = {"keystone": KEYSTONE_PORT, "glance": GLANCE_PORT}[server]
    environment = lab.environment(server)
    environment.update(
        PYTHONPATH=str(HERE),
        PYTHONDONTWRITEBYTECODE="1",
        SPT_NOENV="1",  # a server that renames itself writes over its environment, by which we find it
        OS_KEYSTONE_CONFIG_DIR=str(where),
        OS_KEYSTONE_CONFIG_FILES="keystone.conf",
        OS_GLANCE_CONFIG_DIR=str(where),
        KVMOPS_LAB_FAULT=str(where / "fault.json"),
    )
    argv: list[util.StrPath] = ["nsenter", "--target", str(lab.need_init("hub").pid), "--mount", "--net", "--pid", "--"]
    argv += ["unshare", "--mount", "--", "sh", "-c", IN_ITS_PLACE, "sh", where / "hosts"]
    argv += [Path(lab.settings().glance) / "venv/bin/python", "-m", "gunicorn", "--bind", f"{address(lab)}:{port}"]
    argv += ["--certfile", where / "server-cert.pem", "--keyfile", where / "server-key.pem"]
    argv += ["--worker-class", "gthread", "--workers", "1", "--threads", "16", "--worker-tmp-dir", where]
    # Clients reuse connections that were idle for long.
    argv += ["--timeout", "600", "--keep-alive", "3600", "--no-control-socket"]
    argv += ["--access-logfile", where / f"{server}-access.log", f"kvmlab.wsgi_{server}:application"]
    log = where / f"{server}-console.log"
    log.unlink(missing_ok=True)
    return util.spawn(argv, log, environment)


def finish(lab: Lab, started: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until what was started serves."""
    for server, child in started.items():
        util.wait_for(lambda: child.poll() is not None or answers(lab, server), 120, 0.1)  # noqa: B023
        if not answers(lab, server):
            log = directory(lab) / f"{server}-console.log"
            tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])
            raise LabError(f"{server} did not start. Its console ({log}):\n{tail}")


def report(lab: Lab) -> dict[str, str]:
    """What the servers are about; empty in a lab that was never given them."""
    if not made(lab):
        return {}
    found = {"address": address(lab), "fault": ""}
    for server in SERVERS:
        found[server] = "off" if not lab.belongings({server}) else "on" if answers(lab, server) else "silent"
    with contextlib.suppress(FileNotFoundError):
        fault = json.loads((directory(lab) / "fault.json").read_text("utf-8"))
        found["fault"] = f"{fault['kind']} on {fault['on']}"
    return found


# ---- faults


def _need(lab: Lab) -> None:
    if not made(lab) or lab.init("hub") is None:
        raise LabError(f"lab {lab.name} has no Glance that runs: lab up --glance")


def spoil(lab: Lab, kind: str, on: str, status: int, after: int, times: int, seconds: float) -> None:
    """Put a fault of :data:`KINDS` before Glance, in place of the one before. There is no restart."""
    _need(lab)
    if kind in ("fail", "expire") and after and on != "upload":
        raise LabError("the status of an answer comes first: --after goes with --on upload only")
    fault = {"kind": kind, "on": on, "status": status, "after": after, "times": times, "seconds": seconds}
    write(directory(lab) / "fault.json", json.dumps({**fault, "mark": uuid.uuid4().hex}))


def stop(lab: Lab, server: str) -> None:
    """Kill a server that runs."""
    _need(lab)
    if not lab.belongings({server}):
        raise LabError(f"{server} does not run")
    lab.kill_belongings({server})


def start_again(lab: Lab) -> None:
    """Start the servers that do not run."""
    _need(lab)
    finish(lab, start(lab))


def fill(lab: Lab, leave: int = 0) -> None:
    """Take all the room for images but some bytes. What is written then gets ENOSPC."""
    _need(lab)
    if lab.settings().private_size == "none":
        raise LabError("this machine has no loop devices, the store is not of limited size: refusing to fill its disk")
    faults.take_room(store_outside(lab), leave)


def heal(lab: Lab) -> None:
    """Mend whatever is the matter with Glance and Keystone."""
    _need(lab)
    (directory(lab) / "fault.json").unlink(missing_ok=True)
    start_again(lab)
    (store_outside(lab) / faults.FILLER).unlink(missing_ok=True)


# ---- looking


class Client:
    """Glance as the tests look at it: bare HTTP, and nothing of what is tested."""

    def __init__(self, lab: Lab, cloud: str = "admin") -> None:
        self.lab = lab
        answer = self._ask("POST", urls(lab)["keystone"] + "/auth/tokens", credentials(cloud, passwords(lab)[cloud]))
        self.token = answer.headers["X-Subject-Token"]

    def _ask(self, method: str, url: str, data: Any = None, **headers: str) -> Any:
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        asked = request.Request(url, method=method, data=body, headers={"Content-Type": "application/json", **headers})
        return request.urlopen(asked, timeout=60, context=_trust(self.lab))

    def __call__(self, method: str, path: str, data: Any = None, content_type: str = "application/json") -> bytes:
        """Ask, with the token. *path* begins with ``/v2``; errors are those of urllib."""
        headers = {"X-Auth-Token": self.token, "Content-Type": content_type}
        with self._ask(method, urls(self.lab)["glance"] + path, data, **headers) as answer:
            return bytes(answer.read())

    def images(self) -> list[dict[str, Any]]:
        """All images there are for this user, in whatever state, hidden ones too."""
        found = []
        for hidden in ("false", "true"):
            path = f"/v2/images?limit=500&sort=created_at:asc&os_hidden={hidden}"
            while path:
                page = json.loads(self("GET", path))
                found += page["images"]
                path = page.get("next", "")
        return found

    def upload(self, content: bytes, **fields: Any) -> str:
        """A new image with a content; its identifier."""
        fields = {"disk_format": "raw", "container_format": "bare", **fields}
        identifier = str(json.loads(self("POST", "/v2/images", fields))["id"])
        self("PUT", f"/v2/images/{identifier}/file", content, "application/octet-stream")
        return identifier

    def download(self, identifier: str) -> bytes:
        return self("GET", f"/v2/images/{identifier}/file")

    def remove(self, identifier: str) -> None:
        """Whether it is protected or not."""
        patch = [{"op": "replace", "path": "/protected", "value": False}]
        self("PATCH", f"/v2/images/{identifier}", patch, "application/openstack-images-v2.1-json-patch")
        with contextlib.suppress(error.HTTPError):  # gone meanwhile
            self("DELETE", f"/v2/images/{identifier}")
