"""The browser page, used as a person would use it: a real Chromium against a running device server.

    INTERLOCK_URL=http://127.0.0.1:8000 INTERLOCK_USER=admin INTERLOCK_PASSWORD=... python3 -m unittest discover tests/browser

The server runs examples/hello.py, and the user is an administrator who may also operate it. Nothing is skipped: without
Chromium, its driver or the three variables the test fails. Pictures are written to target/browser, or to the folder that
INTERLOCK_SCREENSHOTS names.
"""

import json
import os
import sys
import unittest
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from chromium import Browser, until  # noqa: E402

# Installed before the page's own script: what the policy blocks, and what goes wrong outside of any handler.
WATCH = """
window.seen = [];
addEventListener('securitypolicyviolation', (e) => seen.push('policy: ' + e.violatedDirective + ' ' + e.blockedURI));
addEventListener('error', (e) => seen.push('error: ' + e.message));
addEventListener('unhandledrejection', (e) => seen.push('rejection: ' + e.reason));
"""
COUNT = "document.querySelectorAll('.action')[1]"
COMPARE_RULES = """
return import('/docs/app.js').then(({ compileRule }) => arguments[0].filter(({ expr, values, result, error }) => {
  let rule;
  try { rule = compileRule(expr, Object.keys(values)); } catch { return !['syntax', 'name'].includes(error); }
  try { return JSON.stringify(rule(values)) !== JSON.stringify(result); } catch { return error !== 'broken'; }
}));
"""
REFUSED_WRONGLY = """
return import('/docs/app.js').then(({ check }) => arguments[0].filter(({ schema, value }) => check(schema, value).length));
"""


def variable(name):
    """A variable that this test needs."""
    value = os.environ.get(name)
    if not value:
        raise AssertionError("set %s, see the head of %s" % (name, __file__))
    return value


class DocsPage(unittest.TestCase):
    """One browser for all: the server allows 60 requests a minute, and every page that is opened costs some."""

    @classmethod
    def setUpClass(cls):
        cls.url = variable("INTERLOCK_URL").rstrip("/")
        cls.user, cls.password = variable("INTERLOCK_USER"), variable("INTERLOCK_PASSWORD")
        cls.folder = os.environ.get("INTERLOCK_SCREENSHOTS") or os.path.join(ROOT, "target", "browser")
        os.makedirs(cls.folder, exist_ok=True)
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)
        cls.browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        cls.browser.look(1280, 900)
        cls.browser.open(cls.url + "/docs")

    def picture(self, name, whole=False):
        """Keep a picture for people."""
        self.browser.screenshot(os.path.join(self.folder, name + ".png"), whole)

    def field(self, label):
        """The control of the action "count" with this label."""
        identity = self.browser.script(
            "return [...%s.querySelectorAll('label')].find((one) => one.textContent.startsWith(arguments[0])).htmlFor" % COUNT,
            label)
        return self.browser.find("#" + identity)

    def press(self, text):
        """Press a button of the action "count"."""
        self.browser.script(
            "[...%s.querySelectorAll('button')].find((one) => one.textContent === arguments[0]).click()" % COUNT, text)

    def wait_for_form(self, text):
        """Wait for a text in the action "count"."""
        return self.browser.wait_text(".action:nth-child(2)", text)

    def test_1_rules_and_limits_are_those_of_the_server(self):
        with open(os.path.join(ROOT, "tests", "rules.json"), encoding="utf-8") as opened:
            rules = json.load(opened)
        with open(os.path.join(ROOT, "tests", "schema_vectors.json"), encoding="utf-8") as opened:
            allowed = [one for one in json.load(opened) if one.get("ok")]

        self.assertEqual(self.browser.script(COMPARE_RULES, rules), [])
        self.assertEqual(self.browser.script(REFUSED_WRONGLY, allowed), [])

    def test_2_a_person_signs_in_runs_stops_and_releases(self):
        browser = self.browser
        try:
            self.sign_in()
            self.see_mistakes_while_typing()
            self.run_and_see_the_result()
            self.stop_a_run_and_release()
            self.read_the_reference()
            self.look_on_a_small_screen()
            self.sign_out()
        except BaseException:
            self.picture("failed")
            print("\nseen by the page: %s\nconsole: %s" % (browser.script("return seen"), browser.log("browser")))
            raise
        self.assertEqual(browser.script("return seen"), [])
        self.assertEqual([one for one in browser.log("browser") if one["level"] in ("SEVERE", "WARNING")], [])
        self.assertEqual(self.other_hosts(), set())

    def sign_in(self):
        browser = self.browser
        self.picture("sign-in")
        # With the keyboard alone.
        browser.find("#username").type(self.user)
        browser.press("tab")
        self.assertEqual(browser.focused(), "password")
        browser.press(*self.password, "enter")
        browser.wait_text("#state", "ready")
        browser.wait_text("#action-list", "Count")
        kept = "return [localStorage.length, sessionStorage.length, document.cookie, document.getElementById('password').value]"
        self.assertEqual(browser.script(kept), [0, 0, "", ""])

    def see_mistakes_while_typing(self):
        browser = self.browser
        browser.script(COUNT + ".open = true")
        for label, text, message in [("steps", "0", "must be at least 1"), ("steps", "1.5", "must be a whole number"),
                                     ("pause", "11", "must be at most 10 s"), ("pause", "0,2", "decimal point"),
                                     ("pause", "a while", "must be a number")]:
            field = self.field(label)
            field.type(text)
            self.wait_for_form(message)
            self.assertEqual(field.send("GET", "/attribute/aria-invalid"), "true")
        self.picture("mistakes")
        self.field("steps").type("400")
        self.field("pause").type("0.2")
        self.wait_for_form("at most one minute in all: does not hold")
        self.press("Run")
        self.wait_for_form("A rule does not hold")
        self.field("steps").type("15")
        self.wait_for_form("at most one minute in all: holds")
        # A unit of the same kind is converted by the server.
        self.field("pause").type("100 ms")
        self.press("Check")
        self.wait_for_form('"pause": 0.1')

    def run_and_see_the_result(self):
        browser = self.browser
        self.press("Run")
        browser.wait_text("#run", "of 15")
        self.assertTrue(browser.script("return location.hash").startswith("#run/run_"))
        self.assertEqual(browser.script("return document.querySelector('progress').max"), 15)
        self.picture("running")
        browser.wait_text("#run", '"counted": 15')
        browser.wait_text("#run .pill", "succeeded")
        browser.wait_text("#run-list", "succeeded")
        self.picture("succeeded")
        # Enter in a field checks; it moves nothing.
        before = browser.script("return location.hash")
        self.field("pause").send("POST", "/value", {"text": "\ue007"})
        self.wait_for_form("Accepted; nothing was run")
        self.assertEqual(browser.script("return location.hash"), before)

    def stop_a_run_and_release(self):
        browser = self.browser
        before = browser.script("return location.hash")
        self.field("steps").type("500")
        self.press("Run")
        until(lambda: browser.script("return location.hash") != before, "the second run")
        browser.wait_text("#run", "of 500")
        browser.find("#stop").click()
        browser.wait_text("#stop-line", "STOPPED: 1 of 1 confirmed")
        browser.wait_text("#run .pill", "cancelled")
        browser.wait_text("#state", "stopped")
        self.assertTrue(browser.script("return document.title").startswith("\u25a0 STOPPED"))
        self.assertIn("safe state: done", browser.text("#stop-facts"))
        self.picture("stopped")
        browser.find("#release button").click()
        browser.wait_text("#release-error", "Give a reason")
        browser.find("#release-reason").type("looked at it")
        browser.find("#release button").click()
        until(lambda: browser.script("return document.getElementById('stopped').hidden"), "the banner to go")
        browser.wait_text("#state", "ready")
        self.assertNotIn("STOPPED", browser.script("return document.title"))

    def read_the_reference(self):
        browser = self.browser
        browser.find("#to-reference").click()
        browser.wait_text("#operations", "/execute/count")
        browser.script("[...document.querySelectorAll('.operation')].find((one) => one.textContent.includes('/execute/count')).open = true")
        text = browser.wait_text("#operations", "role operator")
        for wanted in ("how far to count", "1 to 1000", "at most one minute in all", "Idempotency-Key", "Copy"):
            self.assertIn(wanted, text)
        browser.script("[...document.querySelectorAll('.operation[open] button')].find((one) => one.textContent === 'CLI').click()")
        self.assertIn("steps=10", browser.wait_text(".operation[open] pre", "interlock run hello count "))
        self.picture("reference")

    def look_on_a_small_screen(self):
        browser = self.browser
        browser.find("#to-control").click()
        browser.look(1280, 900, dark=True)
        self.picture("dark")
        for dark in (False, True):
            browser.look(360, 740, dark)
            self.picture("small-dark" if dark else "small")
        self.assertLessEqual(browser.script("return document.documentElement.scrollWidth"), 360)
        place = "return JSON.stringify(document.getElementById('stop').getBoundingClientRect())"
        before = browser.script(place)
        browser.script("scrollTo(0, 500)")
        self.assertEqual(browser.script(place), before)
        small = browser.script(
            "return [...document.querySelectorAll('button, input, select, textarea, summary, nav a')].filter((one) => "
            "one.checkVisibility() && one.getBoundingClientRect().height < 44).map((one) => one.outerHTML)")
        self.assertEqual(small, [])
        browser.look(1280, 900)

    def sign_out(self):
        browser = self.browser
        browser.find("#sign-out").click()
        browser.wait_text("#sign-in-why", "signed out")
        self.assertEqual(browser.script("return document.getElementById('action-list').textContent"), "")
        # Nothing of what was seen is left, and nothing was put anywhere where the next person could find it.
        left = "return ['device', 'action-list', 'run-list', 'operations'].map((id) => document.getElementById(id).textContent).join('')"
        self.assertEqual(browser.script(left), "")
        hidden = "return ['top', 'control', 'reference', 'run'].every((id) => document.getElementById(id).hidden)"
        self.assertTrue(browser.script(hidden))
        self.assertEqual(browser.script("return [localStorage.length, sessionStorage.length, document.cookie]"), [0, 0, ""])

    def other_hosts(self):
        """Hosts other than the server's that the browser was asked to connect to."""
        found = set()
        for entry in self.browser.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = urllib.parse.urlsplit(message["params"]["request"]["url"])
                if address.scheme in ("http", "https", "ws", "wss"):
                    found.add(address.netloc)
        self.assertIn(urllib.parse.urlsplit(self.url).netloc, found)
        return found - {urllib.parse.urlsplit(self.url).netloc}


if __name__ == "__main__":
    unittest.main()
