"""Passkeys on the page: Chromium's own authenticator against a running server, see test_docs.py for what it needs."""

import os
import sys
import unittest
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from chromium import Browser, until  # noqa: E402
from test_docs import WATCH, variable  # noqa: E402

AUTHENTICATOR = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
                 "isUserVerified": True, "automaticPresenceSimulation": True}


class Passkeys(unittest.TestCase):
    def setUp(self):
        url = urllib.parse.urlsplit(variable("INTERLOCK_URL"))
        self.browser = Browser()
        self.addCleanup(self.browser.close)
        self.browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        self.browser.look(1280, 900)
        self.browser.devtools("WebAuthn.enable")
        self.device = self.browser.devtools("WebAuthn.addVirtualAuthenticator", options=AUTHENTICATOR)["authenticatorId"]
        # A passkey belongs to a name; the address of numbers has none.
        self.page = "http://localhost:%d/docs" % url.port

    def sign_out(self):
        self.browser.find("#sign-out").click()
        self.browser.wait_text("#sign-in-why", "signed out")
        self.browser.open(self.page)

    def test_the_password_is_masked_can_be_pasted_and_signing_out_is_in_sight(self):
        browser = self.browser
        browser.open(self.page)
        kind, manager = browser.script("const one = document.getElementById('password'); return [one.type, one.autocomplete]")
        self.assertEqual((kind, manager), ("password", "current-password"))
        browser.find("#password").click()
        browser.devtools("Input.insertText", text=variable("INTERLOCK_PASSWORD"))
        pasted = browser.script("""const one = document.getElementById('password');
            const event = new ClipboardEvent('paste', { bubbles: true, cancelable: true, clipboardData: new DataTransfer() });
            return [one.dispatchEvent(event), one.value]""")
        self.assertEqual(pasted, [True, variable("INTERLOCK_PASSWORD")], "pasting is not prevented")
        browser.find("#username").type(variable("INTERLOCK_USER"))
        browser.find("#sign-in-form button.primary").click()
        self.assertEqual(browser.text("#sign-out"), "Sign out")
        box = browser.script("const b = document.getElementById('sign-out').getBoundingClientRect(); return [b.top, b.bottom, innerHeight]")
        self.assertTrue(0 <= box[0] < box[1] <= box[2], "it is in sight without scrolling: %s" % box)
        self.sign_out()

    def test_a_person_adds_a_passkey_and_signs_in_with_it(self):
        browser = self.browser
        browser.open(self.page)
        browser.find("#username").type(variable("INTERLOCK_USER"))
        browser.find("#password").type(variable("INTERLOCK_PASSWORD"))
        browser.find("#sign-in-form button.primary").click()
        browser.find("#add-passkey").click()
        browser.wait_text("#new-passkey-line", "The passkey is yours")
        codes = browser.script("return [...document.querySelectorAll('#recovery-codes li')].map((one) => one.textContent)")
        self.assertEqual(len(set(codes)), 10)
        held = browser.devtools("WebAuthn.getCredentials", authenticatorId=self.device)["credentials"]
        self.assertEqual([(one["rpId"], one["isResidentCredential"]) for one in held], [("localhost", True)])
        browser.find("#new-passkey-seen").click()
        self.assertEqual(browser.script("return document.getElementById('recovery-codes').children.length"), 0)
        browser.find("#add-passkey").click()
        browser.wait_text("#new-passkey-line", "prove anew who you are")
        self.sign_out()

        # The password alone is not enough any more.
        browser.find("#username").type(variable("INTERLOCK_USER"))
        browser.find("#password").type(variable("INTERLOCK_PASSWORD"))
        browser.find("#sign-in-form button.primary").click()
        browser.wait_text("#sign-in-error", "second factor")

        browser.find("#passkey").click()
        browser.wait_text("#user", variable("INTERLOCK_USER"))
        # What happened to the account is told, until it was seen.
        browser.wait_text("#notice-list", "A second factor was added")
        browser.find("#notices-seen").click()
        until(lambda: browser.script("return document.getElementById('notices').hidden"), "the notices are put away")
        browser.find("#add-passkey").click()
        browser.wait_text("#new-passkey-line", "holds a passkey of yours already")
        self.sign_out()

        # Somebody who can not show that the device is theirs.
        browser.devtools("WebAuthn.setUserVerified", authenticatorId=self.device, isUserVerified=False)
        browser.find("#passkey").click()
        browser.wait_text("#sign-in-error", "No passkey was used")
        browser.devtools("WebAuthn.setUserVerified", authenticatorId=self.device, isUserVerified=True)
        # A copy of the device, whose counter stands still.
        copied = dict(browser.devtools("WebAuthn.getCredentials", authenticatorId=self.device)["credentials"][0], signCount=0)
        browser.devtools("WebAuthn.clearCredentials", authenticatorId=self.device)
        browser.devtools("WebAuthn.addCredential", authenticatorId=self.device, credential=copied)
        browser.find("#passkey").click()
        browser.wait_text("#sign-in-error", "not known here")

        self.assertEqual(browser.script("return window.seen"), [])
        self.put_back(codes)

    def put_back(self, codes):
        """Removes the passkey, for the tests that come after."""
        browser = self.browser
        done = browser.script("""
            const send = async (method, path, token, body) => (await fetch(path, { method, body: body && JSON.stringify(body),
                headers: { 'Content-Type': 'application/json', ...(token && { Authorization: 'Bearer ' + token }) } })).json();
            const [username, password, otp] = arguments;
            return send('POST', '/auth/login', null, { username, password, otp }).then(async ({ access_token: token }) => {
                const { factors } = await send('GET', '/auth/factors', token);
                for (const { id } of factors) await send('DELETE', '/auth/factors/' + id, token);
                return (await send('GET', '/auth/factors', token)).factors.length;
            });""", variable("INTERLOCK_USER"), variable("INTERLOCK_PASSWORD"), codes[0])
        self.assertEqual(done, 0)


if __name__ == "__main__":
    unittest.main()
