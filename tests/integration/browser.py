# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real browser: Chromium without a window, told what to do by the WebDriver protocol (W3C, "WebDriver")."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import typing as t
from pathlib import Path
from urllib import request

from tests.integration.harness import wait_for

# Nothing of it outlives the first process in its namespace, which ends with unshare.
COMMAND = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "chromedriver", "--port=0"]
# It is root here, for whom Chromium makes no sandbox, and /dev/shm may be small in a container.
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
# Seconds that any one request may take.
PATIENCE = 120
ESCAPE = "\ue00c"


class Browser:
    """One window. Certificates are not looked at."""

    def __init__(self, address: str) -> None:
        self.session = address
        told_of = {"goog:loggingPrefs": {"browser": "ALL"}}
        capabilities = {"acceptInsecureCerts": True, "goog:chromeOptions": {"args": ARGUMENTS}, **told_of}
        told = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"{address}/session/{told['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, t.Any] | None = None) -> t.Any:
        data = None if body is None else json.dumps(body).encode()
        asked = request.Request(self.session + path, data, {"Content-Type": "application/json"}, method=method)
        with request.build_opener(request.ProxyHandler({})).open(asked, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Load a page. An empty one comes between, so that it is loaded even if it is the one that is there."""
        for each in ("about:blank", url):
            self._ask("POST", "/url", {"url": each})

    def run(self, script: str, *arguments: object) -> t.Any:
        """What a function with this body returns; a promise is waited for."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def complaints(self) -> list[str]:
        """What has come to the console since it was asked last."""
        return [each["message"] for each in self._ask("POST", "/se/log", {"type": "browser"})]

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})


@contextlib.contextmanager
def chromium() -> t.Iterator[Browser]:
    """A browser that ends with the body, however that ends."""
    with tempfile.TemporaryDirectory(prefix="chromium") as directory:
        log = Path(directory) / "log"
        env = {**os.environ, "HOME": directory, "TMPDIR": directory}
        with (
            log.open("wb") as out,
            subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env) as process,
        ):
            try:
                yield Browser(f"http://127.0.0.1:{_port(log)}")
            finally:
                process.kill()


def _port(log: Path) -> str:
    """Where the driver listens, as soon as it says so."""
    wait_for(lambda: "started successfully on port" in log.read_text(encoding="utf-8"), PATIENCE)
    found = re.search(r"successfully on port (\d+)", log.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]
