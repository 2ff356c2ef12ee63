# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The program that gets a bridge (:mod:`.bridge`) new tokens: run in the Python of the module, long after that ended.

It is one file that needs keystoneauth and the standard library. What it is told comes in a file, since others may see
the arguments of a process.
"""

from __future__ import annotations

import json
import sys
import typing as t
from datetime import datetime, timezone


def entry(session: t.Any) -> dict[str, t.Any]:
    """What lets us in: the ``headers`` for requests, and how many seconds they will do (``lifetime``; ``None``: it is
    not known).

    :param session: Of keystoneauth.
    """
    headers = dict(session.get_auth_headers() or {})
    ask = getattr(session.auth, "get_access", None)
    expires = ask(session).expires if ask else None
    lifetime = (expires - datetime.now(timezone.utc)).total_seconds() if expires else None
    return {"headers": headers, "lifetime": lifetime}


def log_in(told: t.Mapping[str, t.Any]) -> t.Any:
    """A session of keystoneauth.

    :param told: ``auth_type`` and ``auth`` as keystoneauth's loaders want them, ``verify`` and ``cert``.
    """
    from keystoneauth1 import loading, session

    auth: t.Any = loading.get_plugin_loader(told["auth_type"]).load_from_options(**told["auth"])
    cert = tuple(told["cert"]) if told["cert"] else None
    return session.Session(auth=auth, verify=told["verify"], cert=cert, timeout=60)


def main(path: str) -> None:
    """Print an :func:`entry`, in JSON.

    :param path: Of the file that :mod:`.bridge` writes. ``path`` in it is where this Python looks for its libraries.
    """
    with open(path, encoding="utf-8") as file:
        told = json.load(file)
    sys.path[:] = told["path"]
    json.dump(entry(log_in(told)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
