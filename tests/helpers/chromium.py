"""A page on the disk -> what a real Chromium makes of it, through the browser's DevTools protocol over two pipes."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 120
"""A page that takes longer has failed."""


def find_chromium() -> str | None:
    """The browser on PATH; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A headless browser with one tab; a context manager that ends the browser."""

    def __init__(self, *arguments: str):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        # The browser reads descriptor 3 and writes 4.
        command = ["bash", "-c", f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"', "bash", find_chromium(),
                   "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-extensions", "--disable-background-networking", "--window-size=1400,1000",
                   f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe", *arguments, "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser)
        os.close(from_browser)
        self._left, self._number, self._events = b"", 0, []
        tabs = self.send("Target.getTargets", in_tab=False)["targetInfos"]
        tab = next(each["targetId"] for each in tabs if each["type"] == "page")
        self._session = self.send("Target.attachToTarget", in_tab=False, targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def send(self, method: str, in_tab: bool = True, **parameters: object) -> dict:
        """Ask the browser for something and return its answer; what happens meanwhile is kept for `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if in_tab:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text):]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)
        raise TimeoutError(method)

    def _next(self) -> dict:
        while b"\0" not in self._left:
            some = os.read(self._from, 1 << 20)
            assert some, "the browser has ended"
            self._left += some
        text, _, self._left = self._left.partition(b"\0")
        return json.loads(text)

    def open(self, path: Path, fragment: str = "", before: str = "") -> None:
        """Open a page and wait until it was loaded and painted.

        Args:
            path: the page.
            fragment: what stands behind the # of its address.
            before: a script that runs before the page's own.
        """
        self._events.clear()
        self.send("Page.navigate", url="about:blank")
        asked = self.send("Page.addScriptToEvaluateOnNewDocument", source=before)["identifier"] if before else None
        self.send("Page.navigate", url=path.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.evaluate("""new Promise(done => {
            const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => done(true)));
            document.readyState === "complete" ? painted() : addEventListener("load", painted);
        })""")
        if asked:
            self.send("Page.removeScriptToEvaluateOnNewDocument", identifier=asked)

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression, or what its promise gives, as JSON knows it."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def events(self, *methods: str) -> list[dict]:
        """What has happened since the page was opened, of these kinds."""
        return [event for event in self._events if event.get("method") in methods]

    def picture(self, path: Path, **parameters: object) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **parameters)["data"]))
