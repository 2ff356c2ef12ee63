# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Argument specs that modules share. Each has its doc fragment of the same name in ``plugins/doc_fragments``."""

from __future__ import annotations

import typing as t

Spec = dict[str, dict[str, t.Any]]


def connection() -> Spec:
    """How libvirtd is reached."""
    return {
        "uri": {"type": "str", "default": "qemu:///system"},
        "connect_timeout": {"type": "int", "default": 30},
    }


def selection(*, required: bool = True) -> Spec:
    """Which VMs, and how many at once."""
    return {
        "name": {"type": "list", "elements": "str", "required": required, "aliases": ["names"]},
        "concurrency": {"type": "int", "default": 5},
    }


def override_lock() -> Spec:
    """To act on a locked VM all the same."""
    return {"override_lock": {"type": "bool", "default": False}}


def image_store() -> Spec:
    """Where images are kept: what :func:`.._images.open_store` takes."""
    glance: Spec = {
        "cloud": {"type": "str"},
        "clouds_file": {"type": "path"},
        "auth": {"type": "dict", "no_log": True},
        "auth_type": {"type": "str"},
        "region_name": {"type": "str"},
        "interface": {"type": "str", "choices": ["public", "internal", "admin"]},
        "ca_cert": {"type": "path"},
        "validate_certs": {"type": "bool"},
    }
    return {
        "image_store": {
            "type": "dict",
            "apply_defaults": True,
            "options": {
                "type": {"type": "str", "choices": ["directory", "glance"], "default": "directory"},
                "path": {"type": "path", "default": "/var/lib/kvmops/images"},
                **glance,
            },
            "required_if": [("type", "glance", ("cloud", "auth"), True)],
            "mutually_exclusive": [("cloud", "auth")],
        }
    }


def dead_host(losses: t.Sequence[str]) -> Spec:
    """A host whose VMs are brought up elsewhere.

    :param losses: What may be lost of them.
    """
    return {
        "records": {"type": "path"},
        "host": {"type": "str", "required": True},
        "lose": {"type": "list", "elements": "str", "choices": list(losses), "default": []},
    }


def destination() -> Spec:
    """Another host that a VM moves to, and how it is reached."""
    return {
        "dest": {"type": "str"},
        "dest_transport": {"type": "str", "choices": ["tls", "ssh"], "default": "tls"},
        "insecure_tcp": {"type": "bool", "default": False},
        "migration_network": {"type": "str", "default": ""},
    }


def placement() -> Spec:
    """Where the disks of a VM that moves go."""
    return {
        "dest_storage": {"type": "path"},
        "shared_storage": {"type": "list", "elements": "str", "default": []},
    }
