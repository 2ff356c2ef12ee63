# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What may be a password or a user for the guest agent, and whose password it is when nobody says."""

from __future__ import annotations

import re

from .._core.errors import Invalid

# The identifier by which the agent for Windows tells its operating system.
WINDOWS = "mswindows"

# The agent hands lines "user:password" to chpasswd, and libvirt takes strings of C, in UTF-8.
_NO_USER = re.compile("[\0-\x1f:\x7f\ud800-\udfff]")
_NO_PASSWORD = re.compile("[\0\n\r\ud800-\udfff]")
# crypt(5): printable ASCII without space and without ":;*!\". The oldest forms, without "$", look like any word.
_HASH = re.compile(r"\$[0-9a-z-]+(?:\$[^\s$:;*!\\\x00-\x20\x7f-\U0010ffff]+){2,}")


def check_user(user: str) -> str:
    """*user*, if the guest can have one of that name.

    :raises Invalid: It cannot.
    """
    if not user or _NO_USER.search(user):
        raise Invalid(
            f"{user!r} cannot be the name of a user.",
            hint="It has no colon and no control character, and is not empty.",
        )
    return user


def check_password(password: str, *, encrypted: bool) -> None:
    """See that *password* can be handed to the agent. The error says nothing of what it is.

    :param encrypted: Whether it is a hash, as crypt(3) makes it. A word that is none would lock the user out.
    :raises Invalid: It cannot.
    """
    if encrypted and not _HASH.fullmatch(password):
        raise Invalid(
            "password is no hash as crypt(3) makes it, and encrypted says that it is.",
            hint="A hash looks like $6$salt$..., as the filter password_hash makes it.",
        )
    if not password or _NO_PASSWORD.search(password):
        raise Invalid("password cannot be set.", hint="It is one line, and not empty.")


def user_of(system: str) -> str:
    """Whose password is meant when nobody says, as in Nova.

    :param system: The guest's operating system as its agent calls it; empty when unknown.
    """
    return "Administrator" if system == WINDOWS else "root"
