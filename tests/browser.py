"""A real browser for tests of pages, over Chromium's debugging pipe: nothing to install beside Chromium itself."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

# Chromium reads from descriptor 3 and writes to 4; moved beyond them first, the two cannot tread on each other.
AS_3_AND_4 = (
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 9) for end in sys.argv[1:3]]; "
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find_browser():
    """The path of a Chromium; skips the test that asks where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None or os.name != "posix":
        pytest.skip("no Chromium on the path; on Debian: apt-get install chromium")
    return program


class Browser:
    """One page of a headless Chromium, spoken to in the DevTools protocol: NUL-terminated JSON both ways."""

    def __init__(self, program, profile):
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
        self.process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(to_read), str(from_write), program, *flags.split(),
             "--disable-component-update", "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        self.pipe, self.buffer, self.events, self.numbers = (to_write, from_read), b"", [], itertools.count(1)
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        os.write(
            self.pipe[0], json.dumps({"id": number, "method": method, "params": params} | session).encode() + b"\0"
        )
        while (message := self.read()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def read(self):
        while b"\0" not in self.buffer:
            assert select.select([self.pipe[1]], [], [], 30)[0], "the browser does not answer"
            chunk = os.read(self.pipe[1], 1 << 16)
            assert chunk, "the browser is gone"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        self.events.clear()
        self("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def trouble(self):
        """Exceptions, whatever was written to the console, violations of the policy."""
        return self.seen("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def requests(self):
        return [seen["request"]["url"] for seen in self.seen("Network.requestWillBeSent")]

    def saved(self, folder, name):
        """The bytes of a download, once it is whole."""
        for _ in range(200):
            if (folder / name).exists():
                return (folder / name).read_bytes()
            time.sleep(0.05)
        raise AssertionError(f"{name} was not saved")

    def until(self, expression):
        """Waits until an expression of the page is true."""
        for _ in range(600):
            if self.js(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    def seen(self, *methods):
        return [event["params"] for event in self.events if event.get("method") in methods]

    def js(self, expression):
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def middle(self, element):
        """Scrolls an element into sight and gives the point in its middle."""
        self.js(f"({element}).scrollIntoView({{ block: 'nearest', inline: 'nearest', behavior: 'instant' }})")
        return self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(({element}).getBoundingClientRect())")

    def mouse(self, point, *kinds):
        for kind in ("mouseMoved", *kinds):
            button = {"button": "left", "clickCount": 1} if kinds and kind != "mouseMoved" else {}
            self("Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], **button)

    def click(self, element):
        self.mouse(self.middle(element), "mousePressed", "mouseReleased")

    def tap(self, element):
        x, y = self.middle(element)
        self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name):
        text = {"text": "\r"} if name == "Enter" else {"text": name} if len(name) == 1 else {}
        code = {"Enter": 13, "Tab": 9}.get(name, 0)  # without it neither presses a button nor moves the focus
        self("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=name)

    def close(self):
        self.session = None
        os.write(self.pipe[0], json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        self.process.wait(20)
        for end in self.pipe:
            os.close(end)
