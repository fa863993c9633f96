"""A real browser, spoken to over its debugging pipe: no driver, no port, no further package."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # without it Chromium refuses to run as root, as in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
}
PATIENCE = 60.0

# It reads from file descriptor 3 and writes to 4: put ours there, by way of numbers above both.
_LAUNCH = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, number in zip((3, 4), ours):
    os.dup2(number, place)
    os.close(number)
os.execv(sys.argv[3], sys.argv[3:])
"""

Json = dict[str, Any]


def find_browser() -> str | None:
    """Return the browser of this machine; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A headless Chromium with one page and a profile of its own.

    Args:
        executable: its path.
        size: of the page, in pixels.
    """

    def __init__(self, executable: str, size: tuple[int, int] = (1200, 900)) -> None:
        self.events: list[Json] = []
        self._profile = tempfile.TemporaryDirectory(
            prefix="autolora-eval-browser-", ignore_cleanup_errors=True
        )
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        window = f"--window-size={size[0]},{size[1]}"
        profile = f"--user-data-dir={self._profile.name}"
        pipes = (theirs_in, theirs_out)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, pipes), executable, *FLAGS, window, profile],
            pass_fds=pipes,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read = b""
        self._last = 0
        self._session: str | None = None
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser, by force."""
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._profile.cleanup()

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Json:
        """Return the result of a command of the DevTools protocol."""
        self._last += 1
        message: Json = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while (answer := self._next()).get("id") != self._last:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self) -> Json:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            found = os.read(self._in, 1 << 20)
            assert found, "the browser has ended"
            self._read += found
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, from which on events are kept, and wait until it has loaded."""
        self.call("Page.navigate", url="about:blank")
        self.call("Runtime.evaluate", expression="0")
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Click into the middle of the first element of that selector, which must be seen."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " const hit = document.elementFromPoint(x, y);"
            " return {x, y, hit: e === hit || e.contains(hit)}; })()"
        )
        assert where["hit"], f"something lies over {selector}"
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": where["x"], "y": where["y"], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **place)
        self._let_the_page_follow()

    def press(self, key: str, times: int = 1) -> None:
        """Press and release a key."""
        event: Json = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)
        self._let_the_page_follow()

    def write(self, selector: str, text: str) -> None:
        """Click into a field and write."""
        self.click(selector)
        self.call("Input.insertText", text=text)
        self._let_the_page_follow()

    def _let_the_page_follow(self) -> None:
        """Wait for the next frame: by then the page has heard of what was done."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select element by the arrow keys."""
        element = f"document.querySelector({json.dumps(selector)})"
        options = self.run(f"[...{element}.options].map((option) => option.value)")
        self.run(f"{element}.focus()")
        step = options.index(value) - self.run(f"{element}.selectedIndex")
        self.press("ArrowDown" if step > 0 else "ArrowUp", abs(step))
        assert self.run(f"{element}.value") == value

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since `open`, data URIs left out."""
        sent = [e["params"]["request"]["url"] for e in self.events if _is(e, "requestWillBeSent")]
        return [address for address in sent if not address.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return errors, warnings and messages of the console since `open`.

        Chromium's own entries of level info are left out, such as that it set no autofocus.
        """
        kinds = ("exceptionThrown", "consoleAPICalled", "entryAdded")
        found = [e["params"] for e in self.events if any(_is(e, kind) for kind in kinds)]
        return [json.dumps(e) for e in found if e.get("entry", {}).get("level") != "info"]


def _is(event: Json, kind: str) -> bool:
    return str(event.get("method")).endswith(f".{kind}")
