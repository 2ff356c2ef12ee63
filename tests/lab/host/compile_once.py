# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets a host's Python compile what Ansible sends it once, and not with every task.

A module comes as a zip archive of sources, and Python keeps no compiled code of those. That is a third of a second for
each of the thousands of tasks of the tests. What is run is the same; only tracebacks name the archive of the task that
came first. A file ``compile_once.pth`` in the virtualenv has Python import this before anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import threading
import typing as t
import zipimport

PLACE = "/var/cache/kvmops-lab/compiled"
_INSIDE = vars(zipimport)
_compile: t.Callable[[str, bytes], t.Any] = _INSIDE["_compile_source"]


def _compile_once(name: str, source: bytes) -> t.Any:
    """The code of *source*, from an earlier time if there was one."""
    path = os.path.join(PLACE, hashlib.sha256(source).hexdigest())
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError), open(path, "rb") as file:
        return marshal.load(file)
    code = _compile(name, source)
    with contextlib.suppress(OSError):
        os.makedirs(PLACE, exist_ok=True)
        mine = f"{path}.{os.getpid()}.{threading.get_ident()}"
        with open(mine, "wb") as file:
            marshal.dump(code, file)
        os.replace(mine, path)
    return code


_INSIDE["_compile_source"] = _compile_once
