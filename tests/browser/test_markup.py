"""Markup in every text that the page shows: it is shown as text, and nothing on the page is taken over by it.

A device of its own declares, logs, answers and fails with markup. Each place has a word of its own, so that a place which is not
shown is noticed too. See test_docs.py for what a browser test needs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from chromium import Browser, until  # noqa: E402
from test_docs import WATCH  # noqa: E402

PASSWORD = "seven purple pipettes"

DEVICE = '''
from interlock import Param, PublicError, ctx, safe_state, task

def planted(place):
    """An element that acts, one that takes over what scripts ask the document for, and the place as a word."""
    return ('<img src=x data-planted=%s onerror="window.hit=1"><form id=stop name=body><input name=getElementById>'
            '</form><a id=token href="javascript:window.hit=1">%s</a><script>window.hit=1</script>' % (place, place))

@task(title=planted("title"), effects="none", duration="1 s", rules=["volume >= 0 : " + planted("rule")])
def mark(volume: float = Param(1, min=0, max=5, unit="mL", help=planted("help"), title=planted("field")),
         kind: str = Param("a", choices=["a", planted("choice")], help="kind")) -> dict:
    """See planted."""
    ctx.log(planted("log"))
    ctx.progress(1, 2, planted("progress"))
    ctx.metric("heat", 1, planted("unit"))
    ctx.artifact("report.txt", planted("artifact"), "text/plain")
    return {planted("key"): planted("value")}

mark.__doc__ = planted("doc")

@task(title="Fail", effects="none")
def fail() -> str:
    """Fail."""
    raise PublicError(planted("error"))

@safe_state
def rest(reason):
    print(planted("rest"))
'''

TAKEN_OVER = """
return [window.hit ?? null, document.querySelectorAll('[data-planted], form[name=body], a#token, script:not([src])').length,
  document.body instanceof HTMLBodyElement, document.getElementById === Document.prototype.getElementById,
  document.getElementById('stop') instanceof HTMLButtonElement, window.token instanceof Element];
"""


class Markup(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        work = tempfile.TemporaryDirectory()
        cls.addClassCleanup(work.cleanup)
        ready, device = os.path.join(work.name, "ready.json"), os.path.join(work.name, "marked.py")
        with open(device, "w", encoding="utf-8") as file:
            file.write(DEVICE)
        binary = os.environ.get("INTERLOCK_BIN") or os.path.join(ROOT, "target", "debug", "interlock")
        environment = dict(os.environ, BOOTSTRAP_ADMIN_SECRET=PASSWORD, MAX_REQUESTS_PER_MINUTE="6000", MAX_REQUESTS_PER_HOUR="100000")
        cls.log = os.path.join(work.name, "log")
        with open(cls.log, "wb") as log:
            server = subprocess.Popen([binary, "device", "serve", device, "--listen", "127.0.0.1:0", "--state",
                                       os.path.join(work.name, "state"), "--ready-file", ready], env=environment, stdout=log, stderr=log)
        cls.addClassCleanup(cls.end, server)
        until(lambda: server.poll() is None and os.path.exists(ready), "the start", 60)
        with open(ready, encoding="utf-8") as file:
            cls.url = json.load(file)["url"]
        cls.token = cls.call("POST", "/auth/login", {"username": "admin", "password": PASSWORD})["access_token"]
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)
        cls.browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        cls.browser.look(1280, 900)

    @staticmethod
    def end(server):
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()

    @classmethod
    def call(cls, method, path, body=None):
        headers = {"Content-Type": "application/json"}
        if path != "/auth/login":
            headers["Authorization"] = "Bearer " + cls.token
        request = urllib.request.Request(cls.url + path, json.dumps(body).encode() if body is not None else None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def sign_in(self, page):
        self.browser.open(self.url + page)
        self.browser.find("#username").type("admin")
        self.browser.find("#password").type(PASSWORD)
        self.browser.find("#sign-in-form button.primary").click()

    def shown(self, selector, *places):
        """Each place's word is on the page inside its markup, as text; nothing of it is an element."""
        for place in places:
            self.browser.wait_text(selector, "data-planted=%s onerror" % place)
        taken = self.browser.script(TAKEN_OVER)
        self.assertEqual(taken, [None, 0, True, True, True, False], "after %s" % (places,))
        self.assertEqual(self.browser.script("return seen"), [])

    def test_whatever_a_device_says_stays_text(self):
        browser = self.browser
        self.sign_in("/panel")
        browser.wait_text("#state", "ready")
        browser.script("document.querySelectorAll('.action, details').forEach((one) => { one.open = true })")
        self.shown("#action-list", "title", "rule", "help", "field", "choice")

        run = self.call("POST", "/execute/mark", {"volume": 1})["run_id"]
        browser.script("location.hash = '#run/' + arguments[0]", run)
        self.shown("#run", "title", "log", "progress", "unit", "key", "value")
        browser.wait_text("#run", "report.txt")
        self.call("POST", "/execute/fail", {})
        browser.script("location.hash = '#run/' + arguments[0]", self.call("GET", "/runs?action=fail")["items"][0]["id"])
        self.shown("#run", "error")

    def test_what_people_write_stays_text(self):
        browser = self.browser
        self.sign_in("/panel")
        browser.wait_text("#state", "ready")
        reason = "<img src=x data-planted=reason onerror=\"window.hit=1\"><form id=stop name=body></form>"
        self.call("POST", "/stop", {"reason": reason})
        self.addCleanup(self.call, "POST", "/stop/release", {"reason": "The test is over."})
        browser.wait_text("#state", "stopped", 30)
        self.shown("#stopped", "reason")

    def test_the_reference_and_the_page_for_codes(self):
        browser = self.browser
        self.sign_in("/docs")
        browser.wait_text("#state", "", 30)
        browser.find("#to-reference").click()
        browser.wait_text("#operations", "/execute/mark")
        browser.script("document.querySelectorAll('.operation').forEach((one) => { if (one.textContent.includes('/execute/mark')) one.open = true })")
        self.shown("#operations", "help")
        # What stands in the address is nobody's element either.
        for address in ("/docs#<img src=x onerror=window.hit=1>", "/panel#run/<img src=x onerror=window.hit=1>",
                        "/device-code?user_code=<img src=x onerror=window.hit=1>", "/device-code#<img src=x onerror=window.hit=1>"):
            browser.open(self.url + address)
            self.assertEqual(browser.script("return [window.hit ?? null, document.querySelectorAll('[onerror]').length]"), [None, 0], address)


if __name__ == "__main__":
    unittest.main()
