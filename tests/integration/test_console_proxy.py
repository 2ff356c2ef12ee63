# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role console_proxy: what it sets up and takes away, and what a real browser gets from it."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import typing as t
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._console.token import Ticket, sign
from tests.integration.browser import ESCAPE, Browser, chromium
from tests.integration.harness import Lab, Playbook, Result, Task, run, task, wait_for

USER = "kvmops-console"
PORT = 6080
LIBVIRTD = 16514
PLACES = (
    "/etc/kvmops-console-proxy",
    "/usr/local/lib/kvmops-console-proxy",
    "/var/lib/kvmops-console-proxy",
    "/var/log/kvmops-console-proxy.log",
    "/run/kvmops-console-proxy.pid",
)

# Its BIOS asks for a key before it looks for a disk, which it has not.
VM = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type><bootmenu enable='yes' timeout='65000'/></os>
<devices><graphics type='vnc' autoport='yes' listen='{listen}'/><video><model type='vga'/></video></devices></domain>"""

# How many pixels of the screen that noVNC shows are light, and how many are not as in the picture that is given.
LOOK = """
const screen = document.querySelector('#noVNC_container canvas');
const pixels = (what) => {
  const paper = document.createElement('canvas');
  paper.width = what.width; paper.height = what.height;
  paper.getContext('2d').drawImage(what, 0, 0);
  return paper.getContext('2d').getImageData(0, 0, what.width, what.height).data;
};
const light = (data, at) => data[at] + data[at + 1] + data[at + 2] > 200;
return (async () => {
  if (!screen || !screen.width || !screen.height) return {light: 0, other: -1};
  const seen = pixels(screen);
  let given = null, other = -1;
  if (arguments[0]) {
    const image = new Image();
    image.src = 'data:image/png;base64,' + arguments[0];
    await image.decode();
    if (image.width === screen.width && image.height === screen.height) { given = pixels(image); other = 0; }
  }
  let count = 0;
  for (let at = 0; at < seen.length; at += 4) {
    if (light(seen, at)) count++;
    if (given && light(seen, at) !== light(given, at)) other++;
  }
  return {light: count, other: other};
})();
"""
# Pixels of a few words on the screen, and of the cursor, which blinks.
WORDS = 300
CURSOR = 40


class Pair(t.NamedTuple):
    """A key and what belongs to it, as PEM."""

    key: str
    other: str


def openssl(*arguments: str) -> str:
    """What it prints."""
    return str(run(["openssl", *arguments], check=True, timeout=60).stdout)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The private key of who signs tokens, and the public one of the proxy."""
    key = tmp_path_factory.mktemp("signing") / "key.pem"
    key.write_text(openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), encoding="utf-8")
    return Pair(key.read_text(encoding="utf-8"), openssl("pkey", "-in", str(key), "-pubout"))


def certificate(directory: Path, name: str) -> Pair:
    """A key and a certificate of one's own."""
    key, cert = directory / "tls.key", directory / "tls.crt"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}")
    openssl("req", "-x509", *kind, "-addext", f"subjectAltName=IP:{name}", "-keyout", str(key), "-out", str(cert))
    return Pair(key.read_text(encoding="utf-8"), cert.read_text(encoding="utf-8"))


@pytest.fixture
def clear(lab: Lab) -> t.Iterator[None]:
    """Nothing of a proxy before and after, whatever the role did."""

    def remove() -> None:
        lab.sh("kvm1", f"pkill -KILL -u {USER}; userdel {USER}; rm -rf {' '.join(PLACES)}", check=False)

    remove()
    yield
    remove()


class Role:
    """The role, on kvm1."""

    def __init__(self, play: Playbook, **options: t.Any) -> None:
        self.play = play
        self.options = options

    def __call__(self, *rounds: dict[str, t.Any], check: bool = False) -> list[list[Result]]:
        """Run it once for each of *rounds*, one after the other; the results of the tasks of each."""
        tasks: list[Task] = []
        for options in rounds:
            said = {f"console_proxy_{name}": value for name, value in {**self.options, **options}.items()}
            include = {"ansible.builtin.include_role": {"name": "kvmops.lifecycle.console_proxy"}, "vars": said}
            failed = {"name": "It failed", "ansible.builtin.debug": {"var": "ansible_failed_result.msg"}}
            tasks.append({"block": [include], "rescue": [failed]})
            tasks.append({"name": "Round", "ansible.builtin.debug": {"msg": "ended"}})
        played = self.play(tasks, *(["--check"] if check else []), host="kvm1", timeout=600)
        played.ok()
        found: list[list[Result]] = [[]]
        for each in played.results:
            if each["result"].get("msg") == "ended":
                found.append([])
            else:
                found[-1].append(each)
        assert len(found) == len(rounds) + 1, played.output
        return found[:-1]


def changed(results: list[Result]) -> bool:
    """Whether a round changed anything; it must not have failed."""
    assert [each["result"] for each in results if each["outcome"] == "failed"] == []
    return any(each["result"].get("changed") for each in results)


def reason(results: list[Result]) -> str:
    """Why a round failed, as its last task says."""
    return str(next(each["result"]["msg"] for each in reversed(results) if each["outcome"] == "failed"))


def process(lab: Lab) -> str:
    """The number of the proxy's process, when it runs."""
    return lab.sh("kvm1", f"pgrep -F /run/kvmops-console-proxy.pid -u {USER}", check=False)


def shown(host: str, port: int = PORT, trusted: str | None = None) -> str:
    """The certificate that the proxy shows; it must be good for *host* if *trusted* is."""
    context = ssl.create_default_context(cadata=trusted)
    if trusted is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return ssl.DER_cert_to_PEM_cert(found)


@pytest.mark.usefixtures("clear")
def test_the_role_sets_up_a_proxy_and_takes_it_away(lab: Lab, play: Playbook, signing: Pair, tmp_path: Path) -> None:
    address = lab.hosts["kvm1"]["ansible_host"]
    role = Role(play, public_key=signing.other)

    # Foreseen, and done. That it is not done again is seen to by molecule, which costs less.
    (foreseen,) = role({}, check=True)
    assert changed(foreseen)
    assert lab.sh("kvm1", f"ls -d {' '.join(PLACES)} 2>/dev/null; id -u {USER} 2>/dev/null", check=False) == ""
    assert changed(role({})[0])

    # It serves noVNC, by TLS with a certificate that is good for its address, and by nothing else.
    shown_first = shown(address)
    assert shown(address, trusted=shown_first) == shown_first
    with chromium() as browser:
        browser.open(f"https://{address}:{PORT}/vnc.html")
        assert browser.run("return document.title") == "noVNC"
    with socket.create_connection((address, PORT), timeout=60) as plain:
        plain.sendall(b"GET /vnc.html HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1) == b""
    assert lab.sh("kvm1", f"ps -o user= -p {process(lab)}").startswith(USER[:7])

    # What is wrong is told, and what is there goes on.
    number = process(lab)
    settings = lab.sh("kvm1", "cat /etc/kvmops-console-proxy/settings.json")
    pair = certificate(tmp_path, address)
    taken, private, network, alone, unlike = role(
        {"port": LIBVIRTD},
        {"public_key": signing.key},
        {"allowed_networks": ["192.0.2.1/24"]},
        {"tls_certificate": pair.other},
        {"tls_certificate": pair.other, "tls_key": signing.key},
    )
    assert f"Something else listens at port {LIBVIRTD}" in reason(taken)
    assert "console_proxy_public_key is no public key" in reason(private)
    assert "192.0.2.1/24 has host bits set" in reason(network)
    assert "only one is given" in reason(alone)
    assert "key values mismatch" in reason(unlike)
    assert (process(lab), shown(address)) == (number, shown_first)
    assert lab.sh("kvm1", "cat /etc/kvmops-console-proxy/settings.json") == settings

    # One that died is started again; another port and a certificate of one's own.
    lab.sh("kvm1", f"kill -KILL {number}")
    own = {"port": 7000, "tls_certificate": pair.other, "tls_key": pair.key}
    assert changed(role(own)[0])
    assert process(lab) not in ("", number)
    assert shown(address, 7000, trusted=pair.other).strip() == pair.other.strip()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, PORT), timeout=60)

    # Foreseen, gone, gone for good.
    (foreseen,) = role({"state": "absent"}, check=True)
    assert changed(foreseen)
    assert process(lab)
    gone, again = role({"state": "absent"}, {"state": "absent"})
    assert changed(gone)
    assert not changed(again)
    assert lab.sh("kvm1", f"ls -d {' '.join(PLACES)} 2>/dev/null; id -u {USER} 2>/dev/null", check=False) == ""
    assert lab.sh("kvm1", "ss -Hltn 'sport = :7000'") == ""


class Eyes:
    """What the browser sees of a console."""

    def __init__(self, browser: Browser, play: Playbook, directory: Path) -> None:
        self.browser = browser
        self.play = play
        self.directory = directory

    def light(self) -> int:
        """How many pixels of the screen are light."""
        return int(self.browser.run(LOOK, None)["light"])

    def taken(self, host: str, name: str) -> str:
        """The module's screenshot, in base64."""
        file = self.directory / f"{name}.png"
        self.play(task("vm_console", name=name, type="screenshot", dest=str(file)), host=host).ok()
        return base64.b64encode(file.read_bytes()).decode()

    def sees(self, picture: str) -> bool:
        """Whether that is what it shows: words, and the same ones."""
        found = self.browser.run(LOOK, picture)
        return found["light"] > WORDS and 0 <= found["other"] <= CURSOR

    def connect(self, url: str) -> None:
        """Open a console that can be opened."""
        self.browser.open(url)
        wait_for(lambda: self.browser.run(_HAS, "html.noVNC_connected"), 120)

    def refused(self, url: str) -> None:
        """Open one that cannot."""
        self.browser.open(url)
        wait_for(lambda: self.browser.run(_HAS, "#noVNC_status.noVNC_status_error"), 120)
        assert self.browser.run("return document.getElementById('noVNC_status').textContent") == (
            "Failed to connect to server"
        )
        assert self.light() == 0
        assert not self.browser.run(_HAS, "html.noVNC_connected")


_HAS = "return document.querySelector(arguments[0]) !== null"


@pytest.mark.usefixtures("clear")
def test_a_browser_sees_the_screens_that_it_has_tokens_for(
    lab: Lab, play: Playbook, signing: Pair, tmp_path: Path
) -> None:
    places = {"kvm1": "127.0.0.1", "kvm2": lab.hosts["kvm2"]["ansible_host"]}
    for host, listen in places.items():
        xml = VM.format(name=f"on-{host}", listen=listen)
        lab.sh(host, f"cat > /tmp/vm.xml <<'XML'\n{xml}\nXML\nvirsh -q define /tmp/vm.xml")
        lab.sh(host, f"virsh -q start --paused on-{host}")
    role = Role(play, public_key=signing.other)
    assert changed(role({})[0])
    proxy = f"https://{lab.hosts['kvm1']['ansible_host']}:{PORT}"

    def url(host: str) -> str:
        options = {"url": proxy, "key": signing.key}
        done = play(task("vm_console", name=f"on-{host}", type="url", proxy=options), host=host).ok()
        return str(done["result"]["vms"][0]["url"])

    def with_token(token: str) -> str:
        return f"{proxy}/vnc.html?autoconnect=true&resize=scale&path=websockify%3Ftoken%3D{token}"

    def token(key: str = signing.key, age: int = 0) -> str:
        issued = datetime.now(timezone.utc) - timedelta(seconds=age)
        return sign(Ticket.of("on-kvm1", "127.0.0.1", 5900, issued, 600), key)

    with chromium() as browser:
        eyes = Eyes(browser, play, tmp_path)

        # The guest is seen, and hears what is typed.
        link = url("kvm1")
        eyes.connect(link)
        before = eyes.light()
        lab.sh("kvm1", "virsh -q resume on-kvm1")
        wait_for(lambda: eyes.light() not in range(before - CURSOR, before + CURSOR), 120)
        asked = _settled(eyes)
        browser.press(ESCAPE)
        wait_for(lambda: abs(eyes.light() - asked) > CURSOR, 120)
        wait_for(lambda: eyes.sees(eyes.taken("kvm1", "on-kvm1")), 300)
        first = eyes.taken("kvm1", "on-kvm1")
        assert eyes.sees(first)

        # A token is good once, for a time, and for what it says.
        eyes.refused(link)
        eyes.refused(with_token(token(age=3600)))
        eyes.refused(with_token(token(key=certificate(tmp_path, "127.0.0.1").key)))
        _header, claims, _signature = token().split(".")
        header, _claims, signature = token().split(".")
        eyes.refused(with_token(f"{header}.{claims}.{signature}"))
        eyes.refused(f"{proxy}/vnc.html?autoconnect=true&path=websockify")
        eyes.refused(url("kvm2"))
        eyes.connect(with_token(token()))
        wait_for(lambda: eyes.sees(first), 120)

        # Another network is allowed while somebody looks, who goes on looking.
        number = process(lab)
        assert changed(role({"allowed_networks": [lab.vars["lab_subnet"]]})[0])
        assert process(lab) == number
        assert eyes.sees(first)
        lab.sh("kvm2", "virsh -q resume on-kvm2")
        eyes.connect(url("kvm2"))
        wait_for(lambda: eyes.sees(eyes.taken("kvm2", "on-kvm2")), 300)
        assert not eyes.sees(first)

    log = lab.sh("kvm1", "cat /var/log/kvmops-console-proxy.log")
    for word in ("used before", "has expired", "not signed by who may", "nor in a network that is allowed"):
        assert word in log


def _settled(eyes: Eyes) -> int:
    """How many pixels are light when that has stayed so for some time."""
    seen: list[int] = []

    def same() -> bool:
        seen.append(eyes.light())
        last = seen[-30:]
        return len(last) == 30 and max(last) - min(last) <= CURSOR and min(last) > WORDS

    wait_for(same, 120)
    return seen[-1]
