"""Debian's Chromium, driven over plain WebDriver (https://www.w3.org/TR/webdriver2/) with nothing but the standard library."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# The browser is not to talk to anyone but the page's server.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
SECONDS = 20
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "tab": "\ue004", "space": "\ue00d"}


class Missing(Exception):
    """Chromium or its driver is not installed."""


class Browser:
    """One tab of a new, headless browser. Use it as a context manager."""

    def __init__(self):
        for command in ("chromium", "chromedriver"):
            if not shutil.which(command):
                raise Missing("%s is missing: apt-get install chromium chromium-driver" % command)
        self.folder = tempfile.mkdtemp(prefix="interlock-browser-")
        self.output = open(os.path.join(self.folder, "driver.log"), "w+", encoding="utf-8")
        # In a process group of its own, so that closing it leaves no browser behind.
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=self.output, stderr=subprocess.STDOUT,
                                       start_new_session=True)
        try:
            self._base = "http://127.0.0.1:%d/session" % self._port()
            options = {"binary": shutil.which("chromium"),
                       "args": FLAGS + ["--user-data-dir=" + os.path.join(self.folder, "profile")]}
            answer = self._send("POST", "", {"capabilities": {"alwaysMatch": {
                "browserName": "chrome", "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}}})
            self._base += "/" + answer["sessionId"]
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End browser and driver and remove their files."""
        if self.driver.poll() is None:
            try:
                if "/session/" in getattr(self, "_base", ""):
                    self._send("DELETE", "")
            except (OSError, RuntimeError):
                pass
            try:
                os.killpg(self.driver.pid, 15)
                self.driver.wait(SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                self.driver.kill()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _port(self):
        def find():
            with open(self.output.name, encoding="utf-8") as log:
                found = log.read().partition("successfully on port ")[2]
            return int(found.split(".")[0]) if "." in found else None

        return until(find, "chromedriver to start")

    def _send(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as refused:
            raise RuntimeError("WebDriver: %s" % json.load(refused)["value"]["message"]) from None

    def open(self, url):
        """Load a page and wait for it."""
        self._send("POST", "/url", {"url": url})

    def script(self, text, *arguments):
        """The value of a function body; a promise is waited for."""
        return self._send("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def devtools(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def find(self, selector):
        """The first visible element, waited for."""
        def visible():
            for one in self._send("POST", "/elements", {"using": "css selector", "value": selector}):
                element = Element(self, one[_ELEMENT])
                if element.send("GET", "/displayed"):
                    return element
            return None

        return until(visible, selector)

    def text(self, selector):
        """The visible text of an element."""
        return self.find(selector).send("GET", "/text")

    def wait_text(self, selector, wanted, seconds=SECONDS):
        """Wait until the text of an element holds ``wanted``; returns the text."""
        def holds():
            found = self.script("const one = document.querySelector(arguments[0]); return one && one.textContent", selector)
            return found if found and wanted in found else None

        return until(holds, "%r in %s" % (wanted, selector), seconds)

    def focused(self):
        """A word for the element that has the keyboard: its id, or its text."""
        return self.script("const one = document.activeElement; return one.id || one.textContent.trim().slice(0, 40)")

    def press(self, *keys):
        """Press keys, one after the other, wherever the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def log(self, kind):
        """New entries of the log ``browser`` or ``performance``."""
        return self._send("POST", "/se/log", {"type": kind})

    def look(self, width, height, dark=False):
        """Set the size of the screen and the preferred colours."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.devtools("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self, path, whole=False):
        """Write a PNG of the screen, or of the whole page."""
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        with open(path, "wb") as picture:
            picture.write(base64.b64decode(taken["data"]))


class Element:
    """An element of the page."""

    def __init__(self, browser, identity):
        self.browser = browser
        self.identity = identity

    def send(self, method, path, body=None):
        """A WebDriver command for this element."""
        return self.browser._send(method, "/element/%s%s" % (self.identity, path), body)

    def click(self):
        """Click it as a mouse would: fails if something lies over it."""
        self.send("POST", "/click")

    def type(self, text):
        """Replace its text."""
        self.send("POST", "/clear")
        self.send("POST", "/value", {"text": text})


def until(found, what, seconds=SECONDS):
    """Wait until ``found()`` is true and return it. Raises ``AssertionError`` after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %d s for %s" % (seconds, what))
        time.sleep(0.05)
