"""The command line against a real server over TLS: the steps of the README, and what goes wrong."""

import json
import os
import signal
import stat
import subprocess
import tempfile
import threading
import unittest

from lab import LAB
from support import ADMIN_PASSWORD, Server, program, wait_for


class CommandLine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(LAB, options=["--tls", "internal"])
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def setUp(self):
        self.home = os.path.join(self.server.folder, self.id().rpartition(".")[2])
        os.mkdir(self.home)

    def cli(self, *words, stdin="", code=0):
        """Run the command line; ``code`` None accepts any failure. Returns what it printed."""
        variables = {"PATH": os.environ["PATH"], "HOME": self.home, "LANG": "C.UTF-8"}
        done = subprocess.run([program(), "--no-input", *words], input=stdin, capture_output=True, text=True, timeout=60, env=variables, check=False)
        if code is None:
            self.assertGreater(done.returncode, 0, done.stdout + done.stderr)
        else:
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("panicked", done.stderr)
        return done.stdout if code == 0 else done.stderr

    def login(self):
        self.cli("login", "--url", self.server.url, "--ca-file", self.server.ready["ca_file"], "--user", "admin", "--password-stdin",
                 stdin=ADMIN_PASSWORD + "\n")

    def audit_tail(self, variables, *words):
        """`interlock audit tail`, which a hung test cannot outlive: reading it ends after 30 s."""
        tail = subprocess.Popen([program(), "-o", "jsonl", "audit", "tail", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env=variables)
        self.addCleanup(tail.stderr.close)
        self.addCleanup(tail.stdout.close)
        self.addCleanup(tail.wait, 10)
        self.addCleanup(tail.kill)
        given_up = threading.Timer(30, tail.kill)
        given_up.start()
        self.addCleanup(given_up.cancel)
        return tail

    def test_the_trail_is_watched_while_it_grows(self):
        self.login()
        self.cli("run", "later")
        variables = {"PATH": os.environ["PATH"], "HOME": self.home, "LANG": "C.UTF-8"}
        tail = self.audit_tail(variables, "-n", "3", "--every", "1")
        first = json.loads(tail.stdout.readline())
        self.cli("run", "mix", "volume=7")
        seen = [first["id"]]
        while True:
            entry = json.loads(tail.stdout.readline())
            seen.append(entry["id"])
            self.assertNotEqual(entry["action"], "audit.read")
            if entry["action"] == "device.executed" and entry["subject_id"] == "mix" and entry["details"].get("status") == "succeeded":
                break
        self.assertEqual(seen, sorted(set(seen)))
        tail.send_signal(signal.SIGINT)
        self.assertEqual(tail.wait(10), 0, tail.stderr.read())

    def test_a_program_beside_the_server_watches_with_a_key_of_its_own(self):
        """As the container security-monitor does: the address in ORCHESTRATOR_API, a key for the audit log in a file, nobody signed in."""
        self.login()
        key = json.loads(self.cli("-o", "json", "key", "create", "monitor", "--scope", "audit:read", "--days", "30"))["key"]
        with self.server.http() as http:
            self.assertEqual(http.get("/health", params={"q": "' UNION SELECT password FROM users--"}).status_code, 400)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(key + "\n")
            file.flush()
            variables = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "ORCHESTRATOR_API": self.server.url,
                         "INTERLOCK_CA_FILE": self.server.ready["ca_file"], "INTERLOCK_TOKEN_FILE": file.name}
            tail = self.audit_tail(variables, "--action", "request.blocked")
            entry = json.loads(tail.stdout.readline())
        self.assertEqual((entry["action"], entry["client_ip"]), ("request.blocked", "127.0.0.1"))

    def test_the_steps_of_the_readme(self):
        self.login()
        self.assertIn("admin", self.cli("whoami"))
        self.assertIn("mix", self.cli("action", "list"))
        self.assertEqual(json.loads(self.cli("-o", "json", "run", "mix", "volume=0.1mL", "wells=2"))["result"]["volume"], 100.0)
        self.assertIn("volume", self.cli("run", "mix", "volume=301", code=None))
        self.assertIn("volume", self.cli("run", "mix", code=None))
        self.cli("run", "fail", code=None)
        self.assertIn("ready", self.cli("status"))

        run = self.cli("run", "move", "seconds=30", "--detach").strip().splitlines()[-1].split()[-1]
        self.assertTrue(run.startswith("run_"), run)
        self.cli("cancel", run)
        self.assertEqual(self.server.ended(run)["state"], "cancelled")
        self.assertIn(run, self.cli("runs", "list"))

        for _ in range(2):
            self.cli("run", "move", "key=cli", "--idempotency-key", "cli-1")
        self.assertEqual(len([item for item in self.server.get("/runs?limit=200").json()["items"] if item["parameters"].get("key") == "cli"]), 1)

        self.cli("stop", "--reason", "trying the stop")
        self.assertIs(self.server.get("/device").json()["emergency_stop"]["engaged"], True)
        self.assertIn("top", self.cli("run", "move", code=None))
        self.cli("release", "--yes", "--reason", "looked")
        self.cli("run", "move", "key=after")
        self.assertIn("device.executed", self.cli("audit", "list"))
        self.cli("logout")
        self.cli("whoami", code=None)

    def test_what_is_kept_is_private_and_holds_no_password(self):
        self.login()
        files = [os.path.join(folder, name) for folder, _, names in os.walk(self.home) for name in names]
        self.assertTrue(files)
        for path in files:
            with open(path, "rb") as opened:
                content = opened.read()
            self.assertNotIn(ADMIN_PASSWORD.encode(), content)
            if b"eyJ" in content:
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode) & 0o077, 0, path)

    def test_refusals_say_what_to_do(self):
        wrong = self.cli("login", "--url", self.server.url, "--ca-file", self.server.ready["ca_file"], "--user", "admin", "--password-stdin",
                         stdin="Wrong-wrong-wrong-11\n", code=None)
        self.assertNotIn("Wrong-wrong-wrong-11", wrong)
        self.assertIn("ca-file", self.cli("login", "--url", self.server.url, "--user", "admin", "--password-stdin", stdin=ADMIN_PASSWORD + "\n", code=None))
        self.cli("login", "--url", "https://127.0.0.1:1", "--user", "admin", "--password-stdin", stdin="x\n", code=None)
        self.assertIn("login", self.cli("run", "mix", "volume=1", code=None))
        self.cli("frobnicate", code=2)

    def test_ending_the_command_line_does_not_end_the_run(self):
        self.login()
        variables = {"PATH": os.environ["PATH"], "HOME": self.home}
        process = subprocess.Popen([program(), "--no-input", "run", "move", "key=watched", "seconds=2"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables)
        run = wait_for(lambda: self.server.get("/device").json()["running"], "the run")
        process.kill()
        process.wait(10)
        self.assertEqual(self.server.ended(run)["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
