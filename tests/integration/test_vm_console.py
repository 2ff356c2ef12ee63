# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_console on VMs that have no disk: their firmware says on the serial console that it finds none, and shows it."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from jwcrypto import jwk, jwt
from PIL import Image

from tests.integration.harness import Lab, Playbook, Result, define, task, wait_for

Task = dict[str, t.Any]

LOGS = "/var/tmp/consoles"
# What SeaBIOS says last when there is nothing to boot. It then does nothing, or begins anew after a second.
END = "No bootable device."
SERIAL = "<os><type arch='x86_64'>hvm</type><bios useserial='yes'/></os>"
AGAIN = "<os><type arch='x86_64'>hvm</type><bios useserial='yes' rebootTimeout='1000'/></os>"
SCREEN = "<video><model type='vga'/></video>"
VNC = "<graphics type='vnc' autoport='yes' listen='127.0.0.1'/>"
KEY = jwk.JWK.generate(kty="EC", crv="P-256")
PEM = KEY.export_to_pem(private_key=True, password=None).decode()


def logged(name: str) -> str:
    """A console as the module vm makes it."""
    return f"<serial type='pty'><log file='{LOGS}/{name}.log' append='on'/></serial>"


def make(lab: Lab, name: str, *, devices: str, system: str = SERIAL) -> None:
    """A VM that is off."""
    define(lab, name, devices=devices)
    lab.sh(
        "kvm1",
        f"mkdir -p {LOGS}; rm -f {LOGS}/{name}.log*; virsh dumpxml {name} >/tmp/vm.xml;"
        f' sed -i "/<os>/,/<.os>/d; s|<features>|{system}<features>|" /tmp/vm.xml; virsh -q define /tmp/vm.xml',
    )


def console(**arguments: t.Any) -> Task:
    """A task that looks at consoles."""
    return task("vm_console", **{"wait_timeout": 120, **arguments})


def shell(script: str) -> Task:
    """A task that does something on the host in between."""
    return {"ansible.builtin.shell": script}


def play_all(play: Playbook, tasks: t.Sequence[Task], **options: t.Any) -> list[Result]:
    """What the console tasks among *tasks* told of their only VM; none of them may say that anything was changed."""
    played = play(tasks, **options)
    played.ok()
    told = [each["result"] for each, one in zip(played.results, tasks) if "kvmops.lifecycle.vm_console" in one]
    assert not any(each["changed"] for each in told)
    return [each["vms"][0] for each in told]


def test_the_newest_lines_of_a_log_are_told_through_rotation(lab: Lab, play: Playbook) -> None:
    make(lab, "v", devices=logged("v"))
    log = f"{LOGS}/v.log"
    write = rf"""
        cd {LOGS}
        printf 'one\r\ntwo\r\n' >v.log.1
        printf 'three\r\nfo' >v.log.0
        printf 'ur\r\n\377\376\000broken \303\r\n\303\251\360\237\220\247\r\nlast' >v.log
    """
    one = {**console(name="v", lines=0), "register": "one"}
    rotate = f"cd {LOGS}; mv v.log.1 v.log.2; mv v.log.0 v.log.1; mv v.log v.log.0; printf ' end\\r\\nnew\\r\\n' >v.log"
    later = {"name": "v", "after": "{{ one.vms[0].position }}"}
    copy = f"cd {LOGS}; cp v.log v.log.new; : >v.log; mv v.log.new v.log.1; rm v.log.0; echo later >v.log"
    empty, whole, few, small, tiny, position, rest, copied, two = play_all(
        play,
        [
            console(name="v"),
            shell(write),
            console(name="v"),
            console(name="v", lines=2),
            console(name="v", max_size=13),
            console(name="v", max_size=3, lines=5),
            one,
            shell(rotate),
            {**console(**later), "register": "two"},
            shell(copy),
            console(name="v", after="{{ two.vms[0].position }}"),
            shell(f"rm {log}*; echo anew >{log}"),
            console(name="v", after="{{ two.vms[0].position }}"),
        ],
    )
    assert (empty["log"], empty["truncated"], empty["source"]) == ("", False, log)
    assert f"no file {log}" in empty["reason"]
    assert whole["log"] == "one\ntwo\nthree\nfour\n\ufffd\ufffd\0broken \ufffd\né🐧\nlast"
    assert (whole["truncated"], whole["reason"], whole["status"]) == (False, "", "SHUTOFF")
    assert (few["log"], few["truncated"]) == ("é🐧\nlast", True)
    assert (small["log"], small["truncated"]) == ("é🐧\nlast", True)
    assert (tiny["log"], tiny["truncated"]) == ("ast", True)  # a line that is longer alone
    assert (position["log"], position["truncated"]) == ("", True)
    assert (rest["log"], rest["truncated"]) == (" end\nnew\n", False)
    assert (copied["log"], copied["truncated"]) == ("later\n", False)
    assert (two["log"], two["truncated"]) == ("anew\n", True)  # what came before it is lost


def test_a_reboot_is_waited_for(lab: Lab, play: Playbook) -> None:
    """One log goes on at a boot, the other is begun anew and has the same content each time."""
    anew = f"<serial type='file'><source path='{LOGS}/b.log' append='off'/></serial>"
    make(lab, "a", devices=logged("a"))
    make(lab, "b", devices=anew)
    make(lab, "c", devices=logged("c"))
    both: dict[str, t.Any] = {"name": ["a", "b"], "wait_for": r"^(No boot)able device\.$"}
    four = ["a", "b", "c", "nobody"]
    after = {"after": "{{ before.vms | map(attribute='position') }}"}
    played = play(
        [
            task("vm_power", name=["a", "b", "c"], state="running"),
            {**console(**both), "register": "before"},
            {**console(**{**both, **after, "name": four, "wait_timeout": 1}), "ignore_errors": True},
            task("vm_power", name=["a", "b"], state="rebooted", reboot="hard"),
            console(**both, **after, lines=3),
            console(**{**both, **after, "wait_for": "Booting from Floppy"}),
        ]
    )
    played.ok()
    _power, before, failed, _power, again, middle = (each["result"] for each in played.results)
    assert [(vm["matched"], vm["match"], vm["groups"]) for vm in before["vms"]] == [(True, END, ["No boot"])] * 2
    assert failed["msg"].startswith("4 of 4 VMs failed. ")
    assert [vm["code"] for vm in failed["vms"]] == ["timed_out", "timed_out", "invalid", "not_found"]
    assert [(vm["matched"], vm["log"].strip()) for vm in failed["vms"][:2]] == [(False, "")] * 2
    assert "after 1 seconds" in failed["vms"][0]["msg"]
    assert "No position in after is one of VM c" in failed["vms"][2]["msg"]
    assert [vm["log"].rstrip() for vm in again["vms"]] == [f"Boot failed: could not read the boot disk\n\n{END}"] * 2
    assert [vm["match"] for vm in middle["vms"]] == ["Booting from Floppy"] * 2
    assert len({vm["position"] for each in (before, again, middle) for vm in each["vms"]}) == 6


def test_one_vm_that_fails_spoils_no_other(lab: Lab, play: Playbook) -> None:
    make(lab, "good", devices=logged("good"))
    define(lab, "off")
    define(lab, "odd", devices="<serial type='file'><source path='/tmp/odd'/></serial>")
    lab.sh("kvm1", f"mkdir -p /tmp/odd; printf 'hello\\n' >{LOGS}/good.log")
    tasks = [
        {**console(name=["good", "off", "odd", "nobody"]), "ignore_errors": True},
        {**console(name=["good", "off"], wait_for="hello"), "ignore_errors": True},
    ]
    played = play([*tasks, console(name="off")])
    told, waited, none = (each["result"] for each in played.results)
    assert [(vm.get("log"), vm.get("code")) for vm in told["vms"]] == [
        ("hello\n", None),
        ("", None),
        ("", "failed"),
        (None, "not_found"),
    ]
    assert "no regular file" in told["vms"][2]["msg"]
    assert told["msg"].startswith("2 of 4 VMs failed. ")
    assert [vm.get("code") for vm in waited["vms"]] == [None, "unsupported"]
    assert none["vms"][0]["reason"].startswith("The VM has no serial console")
    remote = play(console(name="good", uri=lab.hosts["kvm1"]["lab_uri_tls"])).error()["result"]
    assert "can be read only there" in remote["msg"]


def test_a_terminal_without_a_log_is_listened_to(lab: Lab, play: Playbook) -> None:
    make(lab, "v", devices="<serial type='pty'/>", system=AGAIN)
    played = play(
        [
            console(name="v"),
            {**console(name="v", wait_for=r"^No bootable device\."), "async": 120, "poll": 0, "register": "job"},
            shell("virsh -q start v"),
            {
                "ansible.builtin.async_status": {"jid": "{{ job.ansible_job_id }}"},
                "register": "done",
                "until": "done is finished",
                "retries": 120,
                "delay": 1,
            },
            console(name="v", wait_for=r"SeaBIOS[\s\S]*^No bootable (dev)ice\.", lines=1),
            console(name="v", listen=1),
            {**console(name="v", wait_for="never", wait_timeout=1), "ignore_errors": True},
            {**console(name="v", wait_for=END, uri=lab.hosts["kvm1"]["lab_uri"]), "delegate_to": "localhost"},
        ]
    )
    played.ok()
    off, _job, _start, waited, again, heard, never, remote = (each["result"] for each in played.results)
    assert off["vms"][0]["reason"] == "The VM is off, and its console is not logged."
    assert waited["vms"][0]["match"] == END
    assert again["vms"][0]["groups"] == ["dev"]
    assert again["vms"][0]["log"].startswith(END)
    assert bool(heard["vms"][0]["log"]) != bool(heard["vms"][0]["reason"])
    assert never["vms"][0]["code"] == "timed_out"
    assert remote["vms"][0]["match"] == END


def test_displays_and_links(lab: Lab, play: Playbook) -> None:
    spice = "<graphics type='spice' autoport='yes' listen='0.0.0.0'/>"
    define(lab, "vnc", devices=f"{VNC}{SCREEN}")
    define(lab, "both", devices=f"{spice}<graphics type='vnc' port='5999' listen='0.0.0.0'/>{SCREEN}")
    define(lab, "spice", devices=f"{spice}{SCREEN}")
    define(lab, "blind")
    everyone = ["vnc", "both", "spice", "blind"]
    proxy = {"url": "https://kvm1:6080/", "key": PEM, "ttl": 60}
    public = KEY.export_to_pem().decode()
    link = {"type": "url", "proxy": proxy}
    tasks = [
        console(name=everyone, type="url"),
        shell("for vm in vnc both spice blind; do virsh -q start $vm; done; false"),
        console(name=everyone, type="url"),
        console(name=everyone, **link),
        console(name="vnc", type="url", proxy={**proxy, "key": public}),
        console(name=["vnc", "both"], type="url", proxy={**proxy, "host": "192.0.2.1"}),
    ]
    played = play([{**each, "ignore_errors": True} for each in tasks], "-vvv")
    assert not any(line in played.output for line in PEM.splitlines()[1:-1])
    off, _start, plain, linked, wrong, elsewhere = (each["result"].get("vms") for each in played.results)
    assert [vm["code"] for vm in off] == ["refused"] * 4
    assert "it has no display then. Use vm_power with state: running" in off[0]["msg"]

    port = int(lab.sh("kvm1", "virsh vncdisplay vnc").rpartition(":")[2]) + 5900
    spice_port = lab.sh("kvm1", "virsh domdisplay spice").rpartition(":")[2]
    assert [vm.get("url") for vm in plain[::2]] == [f"vnc://127.0.0.1:{port}", f"spice://kvm1:{spice_port}"]
    assert [each["url"] for each in plain[1]["displays"]] == [plain[1]["url"], "vnc://kvm1:5999"]
    assert plain[3]["code"] == "unsupported"

    assert [vm.get("code") for vm in linked] == [None, "invalid", "unsupported", "unsupported"]
    assert "proxy.host" in linked[1]["msg"]
    assert wrong[0]["code"] == "invalid"
    assert "P-256" in wrong[0]["msg"]
    claims, first, second = (claims_of(vm["url"]) for vm in (linked[0], *elsewhere))
    assert (claims["sub"], claims["host"], claims["port"]) == ("vnc", "127.0.0.1", port)
    assert (first["host"], second["sub"], second["host"], second["port"]) == ("192.0.2.1", "both", "192.0.2.1", 5999)
    assert claims["exp"] - claims["iat"] == 60
    assert len({each["jti"] for each in (claims, first, second)}) == 3


def claims_of(url: str) -> Result:
    """What the token in a link says, if its signature is right."""
    page = urlsplit(url)
    assert (page.scheme, page.netloc, page.path) == ("https", "kvm1:6080", "/vnc.html")
    path, _mark, query = parse_qs(page.query)["path"][0].partition("?")
    assert path == "websockify"
    token = jwt.JWT(jwt=parse_qs(query)["token"][0], key=KEY, algs=["ES256"])
    return t.cast("Result", json.loads(token.claims))


def test_screens_are_pictured(lab: Lab, play: Playbook, tmp_path: Path) -> None:
    for name in ("a", "b"):
        define(lab, name, devices=f"{VNC}{SCREEN}")
        lab.sh("kvm1", f"virsh -q start {name}")
    define(lab, "blind")
    lab.sh("kvm1", "virsh -q start blind")
    shown = Image.new("RGB", (1, 1))

    def shows() -> bool:
        lab.sh("kvm1", "virsh -q screenshot a /tmp/a.ppm")
        with Image.open(lab.outside("/tmp/a.ppm")) as picture:
            shown.paste(picture.copy().resize((1, 1)))
            return bool(max(high for _low, high in t.cast("list[tuple[int, int]]", picture.getextrema())))

    wait_for(shows)
    lab.sh("kvm1", "virsh -q suspend a; virsh -q suspend b; virsh -q screenshot a /tmp/a.ppm")  # no cursor blinks
    one = tmp_path / "new/a.png"
    many = tmp_path / "screens"
    shot = console(name="a", type="screenshot", dest=str(one))
    check = {**shot, "check_mode": True}
    uri = lab.hosts["kvm1"]["lab_uri"]
    remote = console(name="a", type="screenshot", dest=str(one), uri=uri)
    played = play(
        [
            check,
            shot,
            shot,
            check,
            {**shot, "become": True, "become_method": "ansible.builtin.su"},
            {**remote, "delegate_to": "localhost"},
            console(name=["a", "b"], type="screenshot", dest=f"{many}"),
            {**console(name=["a", "blind"], type="screenshot", dest=f"{many}/some/"), "ignore_errors": True},
        ]
    )
    played.ok()
    first, second, third, fourth, become, far, two, some = (each["result"] for each in played.results)
    assert [each["changed"] for each in (first, second, third, fourth, become, far)] == [True, True, *[False] * 4]
    for told in (first, second, third, fourth, become, far):
        (vm,) = told["vms"]
        assert "png" not in vm
        assert vm["dest"] == str(one)
        assert vm["checksum"] == hashlib.sha256(one.read_bytes()).hexdigest()
    with Image.open(one) as picture, Image.open(lab.outside("/tmp/a.ppm")) as wanted:
        assert picture.format == "PNG"
        assert picture.size == wanted.size == (vm["width"], vm["height"])
        assert picture.tobytes() == wanted.tobytes()
    assert one.stat().st_mode & 0o777 == 0o600
    assert [vm["dest"] for vm in two["vms"]] == [f"{many}/a.png", f"{many}/b.png"]
    assert (many / "a.png").read_bytes() == one.read_bytes()
    assert [vm.get("code") for vm in some["vms"]] == [None, "unsupported"]
    assert (some["changed"], (many / "some/a.png").read_bytes()) == (True, one.read_bytes())

    delegated = {"delegate_to": "kvm1"}
    directory = console(name="a", type="screenshot", dest=str(many))
    played = play(
        [{**directory, **delegated}, {**shell("virsh destroy a"), **delegated}, {**shot, **delegated}], host="kvm2"
    )
    assert played.error()["result"]["vms"][0]["code"] == "refused"
    assert (played.results[0]["result"]["changed"], played.results[0]["outcome"]) == (False, "ok")
    assert one.exists()
