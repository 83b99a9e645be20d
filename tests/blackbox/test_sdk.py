"""The Python package against the real server: second factors and fresh proofs."""

import base64
import hashlib
import hmac
import os
import struct
import sys
import time

from support import ADMIN_PASSWORD, PASSWORD, ROOT, Case
from test_directory import HELLO

sys.path.insert(0, os.path.join(ROOT, "python"))
from interlock import Client, errors  # noqa: E402


def totp(secret, step):
    """The code of RFC 6238 for a step of 30 s."""
    mac = hmac.new(base64.b32decode(secret + "=" * (-len(secret) % 8)), struct.pack(">Q", step), hashlib.sha1).digest()
    number = struct.unpack(">I", mac[mac[-1] & 15:(mac[-1] & 15) + 4])[0] & 0x7FFFFFFF
    return "%06d" % (number % 1000000)


class Factors(Case):
    """A person with an authenticator app."""

    SOURCE = HELLO
    ADD_USERS = ("ada",)

    def test_a_script_signs_in_with_a_code_goes_on_by_itself_and_proves_itself_again(self):
        with self.server.as_user() as http:
            made = http.post("/auth/factors/totp", json={"name": "phone"})
            self.assertEqual(made.status_code, 201, made.text)
            secret = made.json()["secret"]
            last = int(time.time()) // 30
            done = http.post("/auth/factors/totp/confirm", json={"code": totp(secret, last)})
            self.assertEqual(done.status_code, 200, done.text)
            codes = list(done.json()["recovery_codes"])
        credentials = {"username": "admin", "password": ADMIN_PASSWORD}
        for otp in (None, totp(secret, last)):
            with Client(self.server.url, otp=otp, **credentials) as client, self.assertRaises(errors.SecondFactorRequired):
                client.device()

        asked = []

        def ask():
            asked.append(codes.pop())
            return asked[-1]

        with Client(self.server.url, otp=ask, **credentials) as client:
            device = client.device()
            self.assertEqual(device.hello().result(), "hello")
            self.assertEqual(len(asked), 1)
            # The access token is dead, as after an hour: the session goes on without a code.
            with self.server.http() as http:
                http.post("/agents/auth/revoke", json={"token": client._session._token})
            self.assertEqual(device.hello().result(), "hello")
            self.assertEqual(len(asked), 1)
            client.step_up(codes.pop())
            self.assertEqual(device.hello().result(), "hello")
            with self.assertRaises(errors.RequestError):
                client.step_up("000000")

    def test_the_next_code_of_an_app_is_good_too(self):
        with self.server.as_user("ada") as http:
            secret = http.post("/auth/factors/totp", json={"name": "phone"}).json()["secret"]
            step = int(time.time()) // 30
            http.post("/auth/factors/totp/confirm", json={"code": totp(secret, step)}).raise_for_status()
        # One step of grace: the code of the next 30 s is taken already.
        with Client(self.server.url, username="ada", password=PASSWORD, otp=totp(secret, step + 1)) as client:
            self.assertEqual(client.device().hello().result(), "hello")
