"""A headless Chromium, driven through WebDriver (W3C): JSON over HTTP, which needs no library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vggdist.distributed.port import free_port

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NEEDED = ("chromium", "chromedriver")

_TEXT = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (node.nodeType === Node.ELEMENT_NODE) {
    if (node.tagName === "NOSCRIPT" || getComputedStyle(node).display === "none") return "";
    if (node.tagName === "IMG") return node.naturalWidth ? `[image ${node.naturalWidth}]` : "";
  }
  const root = node.shadowRoot || node;
  const children = node.tagName === "SLOT" ? node.assignedNodes() : root.childNodes;
  return Array.from(children, text).join(" ");
}
return text(document.body).replace(/\\s+/g, " ");
"""


def what_is_missing() -> str | None:
    """Why no browser can be started here; None if one can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}, of Debian's chromium-driver" if missing else None


class Browser:
    """One window of a browser of its own, without a profile of anybody's."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 1000) -> None:
        """Starts it.

        Args:
            profile: a new empty folder.
            width: of the window, pixels.
            height: of the window, pixels.
        """
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        options = {
            "binary": shutil.which("chromium"),
            "args": [*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
        }
        always = {"browserName": "chrome", "goog:chromeOptions": options}
        try:
            wait_for(lambda: self._ask("GET", "/status")["ready"], 30)
            session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": always}})
            self._url += f"/session/{session['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._ask("DELETE", "")
        self._driver.terminate()
        self._driver.wait(timeout=30)

    def open(self, url: str) -> None:
        """Loads a page; its scripts may still be at work."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns that runs in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """All that can be read on the page, also in shadow roots; an image is `[image WIDTH]`."""
        return str(self.run(_TEXT))

    def screenshot(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise OSError(f"{method} {path}: {error.read().decode()[:500]}") from error


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether a condition came true in time; what cannot be asked yet is not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError):
            if condition():
                return True
        time.sleep(0.2)
    return False
