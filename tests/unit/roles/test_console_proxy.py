# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The token plugin of the role console_proxy."""

from __future__ import annotations

import base64
import json
import logging
import socket
import subprocess
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import pytest
from jwcrypto import jwk, jws

from ansible_collections.kvmops.lifecycle.plugins.module_utils._console import token as signer
from ansible_collections.kvmops.lifecycle.roles.console_proxy.files import kvmops_console
from ansible_collections.kvmops.lifecycle.roles.console_proxy.files.kvmops_console import SKEW, Tokens

NOW = 1_800_000_000
KEY = jwk.JWK.generate(kty="EC", crv="P-256")
OTHER_KEY = jwk.JWK.generate(kty="EC", crv="P-256")
PORTS = (5900, 6923)
AT = ("127.0.0.1", 5900)


def pem(key: jwk.JWK, *, private: bool = False) -> str:
    """A key as the role is given it."""
    return str(key.export_to_pem(private_key=private, password=None).decode())


def claims(**changed: t.Any) -> dict[str, t.Any]:
    """What a good token says, but for what is changed; None takes away."""
    said = {
        "iss": "kvmops.lifecycle",
        "aud": "kvmops-console",
        "sub": "web1",
        "host": AT[0],
        "port": AT[1],
        "iat": NOW,
        "exp": NOW + 600,
        "jti": str(uuid.uuid4()),
        **changed,
    }
    return {name: value for name, value in said.items() if value is not None}


def signed(said: t.Any, key: jwk.JWK = KEY, algorithm: str = "ES256") -> str:
    """A token that says so."""
    made = jws.JWS(said if isinstance(said, str) else json.dumps(said))
    made.allowed_algs = [algorithm]
    made.add_signature(key, None, json.dumps({"alg": algorithm, "typ": "JWT"}), None)
    return str(made.serialize(compact=True))


def encoded(value: t.Any) -> str:
    """A part of a token, by hand."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Proxy(t.NamedTuple):
    """The plugin with its files."""

    settings: Path
    used: Path

    def ask(self, token: str) -> tuple[str, int] | None:
        """As websockify does: a new process, and so a new plugin."""
        return Tokens(str(self.settings)).lookup(token)

    def set(self, **changed: t.Any) -> None:
        """What the role writes."""
        told = {"public_key": pem(KEY), "networks": [], "ports": PORTS, "used": str(self.used), **changed}
        self.settings.write_text(json.dumps(told), encoding="utf-8")


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Proxy:
    made = Proxy(tmp_path / "settings.json", tmp_path / "used")
    made.used.mkdir()
    made.set()
    at(monkeypatch, NOW)
    caplog.set_level(logging.INFO)
    return made


def at(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """The proxy's clock."""
    monkeypatch.setattr("time.time", lambda: now)


def test_a_good_token_opens_what_it_says(proxy: Proxy) -> None:
    assert proxy.ask(signed(claims())) == AT


def test_a_token_of_the_module_is_a_good_one(proxy: Proxy) -> None:
    ticket = signer.Ticket.of("web1", *AT, datetime.fromtimestamp(NOW, timezone.utc), 600)
    assert proxy.ask(signer.sign(ticket, pem(KEY, private=True))) == AT


def test_a_token_is_good_once_for_whichever_process_is_asked(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    token = signed(claims())
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(proxy.ask, [token] * 16))
    assert sorted(answers, key=bool) == [None] * 15 + [AT]
    assert "it was used before" in caplog.text
    assert proxy.ask(signed(claims())) == AT


def test_another_signature_under_the_same_claims_is_the_same_token(proxy: Proxy) -> None:
    said = claims()
    first, second = signed(said), signed(said)
    assert first != second
    assert (proxy.ask(first), proxy.ask(second)) == (AT, None)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": NOW - SKEW}, "expired"),
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": None}, "exp is no number"),
        ({"exp": "2100000000"}, "exp is no number"),
        ({"exp": True}, "exp is no number"),
        ({"iat": NOW + SKEW + 1}, "its time has not come"),
        ({"nbf": NOW + SKEW + 1}, "its time has not come"),
        ({"nbf": "now"}, "nbf is no number"),
        ({"iss": None}, "for something else"),
        ({"iss": "other"}, "for something else"),
        ({"aud": None}, "for something else"),
        ({"aud": "other"}, "for something else"),
        ({"aud": ["kvmops-console"]}, "for something else"),
        ({"jti": None}, "has no jti"),
        ({"jti": ""}, "has no jti"),
        ({"jti": 7}, "has no jti"),
        ({"sub": None}, "has no sub"),
        ({"host": None}, "has no host"),
        ({"port": None}, "port is no number"),
        ({"port": "5900"}, "port is no number"),
        ({"port": 22}, "port 22 is not one of a console"),
        ({"port": 5899}, "port 5899 is not one of a console"),
        ({"port": 6924}, "port 6924 is not one of a console"),
        ({"host": "192.0.2.1"}, "neither this one nor in a network that is allowed"),
        ({"host": "::ffff:192.0.2.1"}, "neither this one nor in a network that is allowed"),
        ({"host": "0.0.0.0"}, "neither this one nor in a network that is allowed"),
        ({"host": "no such host"}, "there is no host 'no such host'"),
        ({"host": "x" * 70 + ".example"}, "there is no host"),
    ],
)
def test_a_token_that_says_something_else_opens_nothing(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, changed: dict[str, t.Any], reason: str
) -> None:
    said = claims(**changed)
    assert proxy.ask(signed(said)) is None
    assert reason in caplog.text
    assert list(proxy.used.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": NOW - SKEW + 1},
        {"iat": NOW + SKEW},
        {"nbf": NOW},
        {"iat": None},
        {"port": PORTS[0]},
        {"port": PORTS[1]},
        {"jti": "../../etc/\ud800"},
        {"more": [1]},
    ],
)
def test_what_is_just_right_or_does_not_matter_is_let_pass(proxy: Proxy, changed: dict[str, t.Any]) -> None:
    said = claims(**changed)
    assert proxy.ask(signed(said)) == (AT[0], said["port"])
    assert [path.parent for path in proxy.used.iterdir()] == [proxy.used]


def forged() -> dict[str, str]:
    """Tokens that nobody signed who may."""
    header, said, signature = signed(claims()).split(".")
    shared = jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(pem(KEY).encode()).rstrip(b"=").decode())
    unsigned = encoded({"alg": "none"})
    whole = jws.JWS(json.dumps(claims()))
    whole.add_signature(KEY, None, json.dumps({"alg": "ES256"}), None)
    return {
        "by another key": signed(claims(), OTHER_KEY),
        "with other claims": f"{header}.{encoded(claims(port=5901))}.{signature}",
        "without a signature": f"{header}.{said}.",
        "with one of another length": f"{header}.{said}.{signature[:-4]}",
        "by nobody": f"{unsigned}.{said}.",
        "by nobody, with a signature": f"{unsigned}.{said}.{signature}",
        "with the public key as a secret": signed(claims(), shared, "HS256"),
        "in another notation": str(whole.serialize(compact=False)),
        "without claims": signed("[]"),
        "of something else": signed("console"),
        "without a header": f".{said}.{signature}",
        "with half a header": f"{header[:-2]}.{said}.{signature}",
        "with one that is a list": f"{encoded([])}.{said}.{signature}",
        "that is empty": "",
        "that is a word": "console",
        "that is a path": "../../../etc/passwd",
        "with a line more": signed(claims()) + "\n",
        "of five parts": f"{header}.{said}.{signature}.{said}.{signature}",
    }


@pytest.mark.parametrize("kind", list(forged()))
def test_a_forged_token_opens_nothing(proxy: Proxy, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    assert proxy.ask(forged()[kind]) is None
    assert "a token was refused" in caplog.text
    assert list(proxy.used.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("192.0.2.77", "192.0.2.77"),
        ("::ffff:192.0.2.77", "192.0.2.77"),
        ("2001:db8:1::7", "2001:db8:1::7"),
        ("localhost", "127.0.0.1"),
        ("192.0.3.1", None),
        ("2001:db8:2::7", None),
    ],
)
def test_loopback_and_the_networks_that_are_allowed_are_reachable(proxy: Proxy, host: str, address: str | None) -> None:
    proxy.set(networks=["192.0.2.0/24", "2001:db8:1::/48"])
    found = proxy.ask(signed(claims(host=host)))
    if host == "localhost":
        assert found is not None
        assert found[0] in ("127.0.0.1", "::1")
    else:
        assert found == (address and (address, AT[1]))


def test_a_name_is_looked_up_once_and_the_address_that_is_allowed_is_taken(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(host: str, *_arguments: object, **_options: object) -> list[t.Any]:
        asked.append(host)
        return [(socket.AF_INET, 1, 6, "", (address, 0)) for address in ("198.51.100.1", "192.0.2.77")]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    proxy.set(networks=["192.0.2.0/24"])
    assert proxy.ask(signed(claims(host="kvm1"))) == ("192.0.2.77", AT[1])
    assert asked == ["kvm1"]


def test_what_has_expired_is_forgotten_and_nothing_else(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = signed(claims(exp=NOW + 1)), signed(claims(exp=NOW + 600))
    assert proxy.ask(short)
    assert proxy.ask(long)
    (proxy.used / "a file of somebody's").touch()
    for later, left in ((NOW + 1 + SKEW, 4), (NOW + 2 + SKEW, 4)):
        at(monkeypatch, later)
        assert proxy.ask(signed(claims(exp=NOW + 600)))
        assert len(list(proxy.used.iterdir())) == left
        assert proxy.ask(short) is None
        assert proxy.ask(long) is None


def test_a_token_whose_use_cannot_be_written_down_opens_nothing(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.used.rmdir()
    assert proxy.ask(signed(claims())) is None
    assert "its use cannot be written down" in caplog.text


def test_settings_count_from_the_next_token_on(proxy: Proxy) -> None:
    plugin = Tokens(str(proxy.settings))
    assert plugin.lookup(signed(claims(), OTHER_KEY)) is None
    proxy.set(public_key=pem(OTHER_KEY))
    assert plugin.lookup(signed(claims(), OTHER_KEY)) == AT
    assert plugin.lookup(signed(claims())) is None


WRONG: dict[str, tuple[t.Any, str]] = {
    "a private key": ({"public_key": pem(KEY, private=True)}, "the proxy must not have it"),
    "a key on another curve": ({"public_key": pem(jwk.JWK.generate(kty="EC", crv="P-384"))}, "curve P-256"),
    "a key of another kind": ({"public_key": pem(jwk.JWK.generate(kty="RSA", size=2048))}, "curve P-256"),
    "no key": ({"public_key": "none"}, "kvmops_console: "),
    "no network": ({"networks": ["192.0.2.1/24"]}, "has host bits set"),
    "ports the wrong way": ({"ports": [6000, 5900]}, "no ports from 6000 to 5900"),
    "a port too high": ({"ports": [5900, 65536]}, "no ports from 5900 to 65536"),
    "one port": ({"ports": [5900]}, "kvmops_console: "),
    "ports in words": ({"ports": ["5900", "5901"]}, "kvmops_console: "),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_wrong_settings_are_told_and_open_nothing(
    proxy: Proxy, kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    changed, reason = WRONG[kind]
    assert kvmops_console.main([str(proxy.settings)]) == 0
    proxy.set(**changed)
    assert kvmops_console.main([str(proxy.settings)]) == 1
    told = capsys.readouterr().err
    assert reason in told
    assert "PRIVATE KEY" not in told
    assert proxy.ask(signed(claims())) is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_settings_that_are_none_open_nothing(proxy: Proxy, text: str) -> None:
    proxy.settings.write_text(text, encoding="utf-8")
    assert kvmops_console.main([str(proxy.settings)]) == 1
    assert proxy.ask(signed(claims())) is None


def test_the_log_names_the_vm_and_not_the_token(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    good = signed(claims(jti="one"))
    assert proxy.ask(good)
    assert proxy.ask(good) is None
    assert "'one' opens the console of 'web1' at 127.0.0.1 port 5900" in caplog.text
    assert good not in caplog.text


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    template = Path(kvmops_console.__file__).parents[1] / "templates/unit.j2"
    unit = tmp_path / "kvmops-console-proxy.service"
    for port in (443, 6080):
        text = jinja2.Template(template.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined).render(
            ansible_managed="Ansible managed",
            console_proxy_port=port,
            console_proxy__user="kvmops-console",
            console_proxy__library="/usr/local/lib/kvmops-console-proxy",
            console_proxy__used="/var/lib/kvmops-console-proxy",
            console_proxy__command=["/usr/bin/python3", "-X", "kvmops-console-proxy=0", "/bin/true", f"[::]:{port}"],
        )
        unit.write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert ("AmbientCapabilities=CAP_NET_BIND_SERVICE" in text) is (port < 1024)
