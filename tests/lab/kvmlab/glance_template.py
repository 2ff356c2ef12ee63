# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Keystone and Glance of a lab start with: configuration, and databases with users, projects and the catalogue.

The databases are made once, in the servers' virtualenv: ``python -m kvmlab.glance_template DIRECTORY``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from .lab import CLOUD_NAME
from .util import write

REGION = "RegionOne"
KEYSTONE_PORT = 5000
GLANCE_PORT = 9292
KEYSTONE_URL = f"https://{CLOUD_NAME}:{KEYSTONE_PORT}/v3"
GLANCE_URL = f"https://{CLOUD_NAME}:{GLANCE_PORT}"


@dataclasses.dataclass(frozen=True)
class Account:
    """A user with one role in one project."""

    user: str
    project: str
    role: str


ACCOUNTS = {  # by the name of the cloud in clouds.yaml
    "admin": Account("admin", "admin", "admin"),
    "member": Account("alice", "demo", "member"),
    "reader": Account("rita", "demo", "reader"),
    "other": Account("bob", "other", "member"),
}

KEYSTONE_CONF = """\
[DEFAULT]
log_file = {directory}/keystone.log
[database]
connection = sqlite:///{directory}/keystone.db
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = {directory}/keys
[fernet_receipts]
key_repository = {directory}/keys
[credential]
key_repository = {directory}/keys
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
"""

GLANCE_CONF = """\
[DEFAULT]
log_file = {directory}/glance.log
enabled_backends = local:file
worker_self_reference_url = {url}
[database]
connection = sqlite:///{directory}/glance.db
[glance_store]
default_backend = local
[local]
filesystem_store_datadir = {store}
filesystem_thin_provisioning = true
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[paste_deploy]
config_file = {paste}
flavor = keystone
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
[oslo_concurrency]
lock_path = {directory}
[keystone_authtoken]
auth_url = {auth_url}
www_authenticate_uri = {auth_url}
cafile = {ca}
auth_type = password
username = admin
password = {password}
project_name = admin
user_domain_id = default
project_domain_id = default
service_token_roles_required = true
"""


def write_keystone(where: Path) -> None:
    """Keystone's configuration and keys."""
    write(where / "keystone.conf", KEYSTONE_CONF.format(directory=where), 0o600)
    for name in ("0", "1"):  # a Fernet key is 32 random bytes in URL-safe base64
        write(where / "keys" / name, base64.urlsafe_b64encode(os.urandom(32)).decode(), 0o600)
    (where / "keys").chmod(0o700)


def write_glance(where: Path, venv: Path, password: str, images: Path, ca: Path | str) -> None:
    """Glance's configuration."""
    text = GLANCE_CONF.format(
        directory=where,
        url=GLANCE_URL,
        auth_url=KEYSTONE_URL,
        store=images,
        paste=venv / "etc/glance/glance-api-paste.ini",
        ca=ca,
        password=password,
    )
    write(where / "glance-api.conf", text, 0o600)


def credentials(cloud: str, password: str) -> dict[str, Any]:
    """What Keystone is asked for a token with."""
    account, domain = ACCOUNTS[cloud], {"id": "default"}
    user = {"name": account.user, "domain": domain, "password": password}
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": {"name": account.project, "domain": domain}}}}


def _manage(program: str, *words: str, **environment: str) -> None:
    command = [str(Path(sys.executable).with_name(program)), *words]
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def _populate(passwords: dict[str, str]) -> None:
    """Ask Keystone itself, in this process, for what belongs into it."""
    from keystone.wsgi.api import application
    from werkzeug.test import Client

    client = Client(application)
    token = ""

    def call(method: str, path: str, data: Any = None) -> Any:
        nonlocal token
        answer = client.open(path, method=method, json=data, headers={"X-Auth-Token": token} if token else {})
        if answer.status_code >= 300:
            raise SystemExit(f"{method} {path}: {answer.status}: {answer.text}")
        token = answer.headers.get("X-Subject-Token", token)
        return answer.get_json(silent=True)

    call("POST", "/v3/auth/tokens", credentials("admin", passwords["admin"]))
    service = call("POST", "/v3/services", {"service": {"name": "glance", "type": "image"}})["service"]["id"]
    for interface in ("public", "internal", "admin"):
        endpoint = {"service_id": service, "interface": interface, "url": GLANCE_URL, "region_id": REGION}
        call("POST", "/v3/endpoints", {"endpoint": endpoint})
    roles = {role["name"]: role["id"] for role in call("GET", "/v3/roles")["roles"]}
    projects: dict[str, str] = {}
    for cloud, account in ACCOUNTS.items():
        if cloud == "admin":
            continue
        if account.project not in projects:
            project = {"name": account.project, "domain_id": "default"}
            projects[account.project] = call("POST", "/v3/projects", {"project": project})["project"]["id"]
        user = {"name": account.user, "domain_id": "default", "password": passwords[cloud]}
        identity = call("POST", "/v3/users", {"user": user})["user"]["id"]
        call("PUT", f"/v3/projects/{projects[account.project]}/users/{identity}/roles/{roles[account.role]}")


def main(directory: Path) -> None:
    passwords = {cloud: secrets.token_hex(12) for cloud in ACCOUNTS}
    write_keystone(directory)
    write_glance(directory, Path(), "", directory / "unused", "")
    keystone_conf = ["--config-file", str(directory / "keystone.conf")]
    _manage("keystone-manage", *keystone_conf, "db_sync")
    words = ["bootstrap", "--bootstrap-region-id", REGION]
    for interface in ("public", "internal", "admin"):
        words += [f"--bootstrap-{interface}-url", KEYSTONE_URL]
    _manage("keystone-manage", *keystone_conf, *words, OS_BOOTSTRAP_PASSWORD=passwords["admin"])
    _manage("glance-manage", "--config-file", str(directory / "glance-api.conf"), "db_sync")
    os.environ["OS_KEYSTONE_CONFIG_DIR"] = str(directory)
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = "keystone.conf"
    _populate(passwords)
    write(directory / "passwords.json", json.dumps(passwords), 0o600)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    del sys.argv[1:]
    main(target)
