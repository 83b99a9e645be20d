"""The master key is exchanged, also when that is interrupted, and no stored secret is lost."""

import os
import subprocess
import time
import unittest

from support import ADMIN_PASSWORD, PASSWORD, Server, program
from test_directory import HELLO
from test_sdk import totp


class Exchange(unittest.TestCase):
    """People with authenticator apps go on signing in."""

    def setUp(self):
        self.steps = {}

    def enrol(self, server, user):
        """Gives somebody an app; its secret."""
        with server.as_user(user) as http:
            made = http.post("/auth/factors/totp", json={"name": "phone"})
            self.assertEqual(made.status_code, 201, made.text)
            secret = made.json()["secret"]
            self.steps[user] = int(time.time()) // 30 - 1
            done = http.post("/auth/factors/totp/confirm", json={"code": totp(secret, self.steps[user])})
            self.assertEqual(done.status_code, 200, done.text)
        return secret, list(done.json()["recovery_codes"])

    def opens(self, server, user, secret):
        """Whether the stored secret opens: a wrong code is told from a secret that can not be read. Costs no code."""
        with server.http() as http:
            password = ADMIN_PASSWORD if user == "admin" else PASSWORD
            answer = http.post("/auth/login", json={"username": user, "password": password, "otp": "000000"})
        self.assertIn(answer.status_code, (401, 503), answer.text)
        return answer.status_code != 503

    def sign_in(self, server, user, secret):
        """Signs in with a code of the app that was not used yet."""
        self.steps[user] = max(self.steps[user] + 1, int(time.time()) // 30 - 1)
        self.assertLessEqual(self.steps[user], int(time.time()) // 30 + 1, "out of codes")
        password = ADMIN_PASSWORD if user == "admin" else PASSWORD
        with server.http() as http:
            return http.post("/auth/login", json={"username": user, "password": password, "otp": totp(secret, self.steps[user])})

    def rotate(self, server, seconds=None, variables=None):
        """Runs the command; with a time it is killed then. Returns the exit code and what it said."""
        command = [program(), "keys", "rotate-master", "--state", server.state, "-o", "json"]
        process = subprocess.Popen(command, env={**server.variables, **(variables or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, error = process.communicate(timeout=seconds if seconds is not None else 60)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        return process.returncode, out + error

    def files(self, server):
        return sorted(name for name in os.listdir(os.path.join(server.state, "keys")) if name.startswith("master"))

    def test_it_is_exchanged_while_the_server_runs(self):
        with Server(HELLO) as server:
            secret, _ = self.enrol(server, "admin")
            path = os.path.join(server.state, "keys", "master.key")
            with open(path, "rb") as file:
                before = file.read()

            code, said = self.rotate(server)

            self.assertEqual(code, 0, said)
            self.assertIn('"resealed":1', said.replace(" ", ""))
            with open(path, "rb") as file:
                self.assertNotEqual(file.read(), before)
            self.assertEqual((os.stat(path).st_mode & 0o777, self.files(server)), (0o600, ["master.key"]))
            self.assertEqual(self.sign_in(server, "admin", secret).status_code, 200)
            server.restart()
            self.assertEqual(self.sign_in(server, "admin", secret).status_code, 200)
            # The old key opens nothing any more.
            server.stop()
            with open(path, "wb") as file:
                file.write(before)
            server.start()
            self.assertFalse(self.opens(server, "admin", secret))

    def test_killed_at_any_moment_it_loses_nothing_and_goes_on(self):
        with Server(HELLO) as server:
            server.add_users()
            people = {user: self.enrol(server, user)[0] for user in ("ada", "olaf", "vera", "adam")}
            for moment in (0.0, 0.02, 0.05, 0.1, 1.0, 2.0, 2.05, 2.1, 2.15, 2.2, 2.3):
                self.rotate(server, moment)
                for user, secret in people.items():
                    self.assertTrue(self.opens(server, user, secret), (moment, user, server.log()[-2000:]))
                    with server.http(server.token()) as http:
                        self.assertEqual(http.delete("/security/lockouts/" + user).status_code, 200)
            server.restart()
            code, said = self.rotate(server)
            self.assertEqual(code, 0, said)
            code, said = self.rotate(server)
            self.assertEqual((code, self.files(server)), (0, ["master.key"]), said)
            for user, secret in people.items():
                self.assertEqual(self.sign_in(server, user, secret).status_code, 200, user)
            with server.http(server.token()) as http:
                self.assertEqual(http.post("/auth/factors/totp", json={"name": "another"}).status_code, 201, "the new key seals")

    def test_a_configured_key_is_exchanged_by_its_owner(self):
        old, new = "07" * 32, "3f" * 32
        with Server(HELLO, variables={"MASTER_KEY": old}) as server:
            secret, _ = self.enrol(server, "admin")
            code, said = self.rotate(server)
            self.assertNotEqual(code, 0)
            self.assertIn("MASTER_KEY_PREVIOUS", said)
            code, said = self.rotate(server, variables={"MASTER_KEY": new, "MASTER_KEY_PREVIOUS": "44" * 32})
            self.assertNotEqual(code, 0)
            self.assertIn("do not open", said)
            code, said = self.rotate(server, variables={"MASTER_KEY": ""})
            self.assertNotEqual(code, 0)
            self.assertIn("MASTER_KEY", said)

            server.variables.update(MASTER_KEY=new, MASTER_KEY_PREVIOUS=old)
            server.restart()
            self.assertEqual(self.sign_in(server, "admin", secret).status_code, 200)
            code, said = self.rotate(server)
            self.assertEqual(code, 0, said)
            del server.variables["MASTER_KEY_PREVIOUS"]
            server.restart()
            self.assertEqual(self.sign_in(server, "admin", secret).status_code, 200)

    def test_a_key_that_is_none_stops_the_start(self):
        for name in ("MASTER_KEY_PREVIOUS", "MASTER_KEY"):
            server = Server(HELLO, variables={"MASTER_KEY": "07" * 32, name: "07" * 31})
            try:
                code, said = server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn(name, said)
            finally:
                server.close()


if __name__ == "__main__":
    unittest.main()
