# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may be a password, a hash or a user."""

from __future__ import annotations

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.password import (
    check_password,
    check_user,
    user_of,
)

HASHES = [
    "$6$abc$JkG.h/x",
    "$6$rounds=5000$salt$JkG.h/x",
    "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0.WiB9W.zEaKlOBL35rC",
    "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
]


@pytest.mark.parametrize("password", ["x", "with: colon", "tab\tand space ", "größe 👍", *HASHES])
def test_any_line_is_a_password(password: str) -> None:
    check_password(password, encrypted=False)


@pytest.mark.parametrize("password", ["", "two\nlines", "secret\0", "secret\r", "\udc00secret"])
def test_what_the_agent_would_take_for_something_else_is_no_password(password: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_password(password, encrypted=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", HASHES)
def test_a_hash_of_crypt_is_one(text: str) -> None:
    check_password(text, encrypted=True)


@pytest.mark.parametrize(
    "text",
    ["", "secret", "Password12345", "!", "*", "$6$", "$6$salt", "$6$s:alt$x", "$6$salt$x\n", "$6$salt$ä", "!$6$s$x"],
)
def test_a_word_that_is_no_hash_would_lock_the_user_out(text: str) -> None:
    with pytest.raises(Invalid, match="no hash") as caught:
        check_password(text, encrypted=True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("user", ["root", "ada lovelace", "größe", "DOMAIN\\ada", "a.b-c_d$"])
def test_a_user_has_any_name_in_one_field(user: str) -> None:
    assert check_user(user) == user


@pytest.mark.parametrize("user", ["", "ada:x", "ada\nroot", "ada\0", "\x7f"])
def test_a_user_with_a_colon_or_a_control_character_is_none(user: str) -> None:
    with pytest.raises(Invalid, match="name of a user"):
        check_user(user)


@pytest.mark.parametrize(("system", "user"), [("debian", "root"), ("", "root"), ("mswindows", "Administrator")])
def test_whose_password_is_meant_follows_from_the_system(system: str, user: str) -> None:
    assert user_of(system) == user
