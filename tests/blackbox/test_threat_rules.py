"""Rules that a running server is given from a file: `THREAT_RULES_FILE`."""

import os
import subprocess
import unittest

from lab import LAB
from support import Server, program, wait_for

FIRST = """version = "2026-11-24.1"
scanners = ["acmescan"]

[[rule]]
id = "acme-console"
family = "traversal"
places = ["path", "query", "header"]
literals = ["/acme/console", "acmectl="]
"""
SECOND = """version = "2026-11-24.2"

[[rule]]
id = "beacon"
family = "shell"
places = ["query", "label", "free_text"]
literals = ["beacon://"]
"""


class ThreatRules(unittest.TestCase):
    def setUp(self):
        self.server = Server(LAB)
        self.addCleanup(self.server.close)
        self.path = os.path.join(self.server.folder, "rules.toml")
        self.server.variables["THREAT_RULES_FILE"] = self.path

    def write(self, text):
        """Puts another file in the place of the one before, as an administrator should."""
        with open(self.path + ".new", "w", encoding="utf-8") as opened:
            opened.write(text)
        os.replace(self.path + ".new", self.path)

    def get(self, path, **options):
        with self.server.http(self.server.token()) as client:
            return client.get(path, **options)

    def cli(self, *words):
        done = subprocess.run([program(), *words], env=self.server.variables, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def metrics(self):
        return self.get("/metrics").text

    def hits(self, event):
        return [(line["details"]["rule"], line["details"]["place"]) for line in self.server.events(event)]

    def test_a_running_server_takes_new_rules_and_keeps_the_old_ones_when_a_file_is_bad(self):
        self.write(FIRST)
        self.assertEqual(self.cli("config", "check")[0], 0)
        self.server.start()
        self.assertIn('interlock_screening_rules_info{program="', self.metrics())
        self.assertRegex(self.metrics(), r'interlock_screening_rules_info\{[^}]*added="2026-11-24\.1"[^}]*\} 1')
        self.assertIn("interlock_added_rules 2", self.metrics())

        # Encodings do not hide it, and what the rule says nothing about is served.
        for path, options in (("/runs?action=ACMECTL%3d1", {}), ("/ACME/%63onsole", {}), ("/runs", {"headers": {"X-Note": "acmectl=1"}})):
            answer = self.get(path, **options)
            self.assertEqual((answer.status_code, answer.json()["code"]), (400, "request_blocked"), path)
            self.assertNotIn("acme", answer.text.lower())
        self.assertEqual(self.get("/runs?action=beacon://x").status_code, 200)
        self.assertEqual(self.get("/runs", headers={"User-Agent": "AcmeScan/1.0"}).status_code, 200)
        wait_for(lambda: len(self.hits("request_blocked")) == 3, "the events")
        self.assertEqual({rule for rule, _ in self.hits("request_blocked")}, {"added.acme-console"})
        self.assertEqual(self.hits("pattern_observed"), [("added.acmescan", "header")])

        # However often, nobody is banned for it.
        for _ in range(12):
            self.assertEqual(self.get("/runs?action=acmectl=1").status_code, 400)
        self.assertEqual(self.get("/runs").status_code, 200)
        self.assertEqual(self.server.events("ip_blocked"), [])

        # Bad files: told, and what was in force stays.
        for bad, reason in (("version = 1", "line 1"), (SECOND.replace('"shell"', '"magic"'), "family is one of"), (SECOND.replace("beacon://", "abc"), "4 to 128"),
                            ("x" * 70000, "65536")):
            self.write(bad)
            wait_for(lambda: any("those in force stay" in line.get("message", "") and reason in line.get("error", "") for line in self.server.log_lines()),
                     reason, 15)
            self.assertEqual(self.get("/runs?action=acmectl=1").status_code, 400)
            code, said = self.cli("config", "check")
            self.assertNotEqual(code, 0)
            self.assertIn(reason, said)
            said = self.cli("doctor", "--state", self.server.state)[1]
            self.assertIn(reason, said)
        self.assertRegex(self.metrics(), r'interlock_added_rules_reloads_total\{result="failed"\} 4')

        self.write(SECOND)
        wait_for(lambda: self.get("/runs?action=beacon://x").status_code == 400, "the new rules", 15)
        self.assertEqual(self.get("/runs?action=acmectl=1").status_code, 200, "the rules before are gone")
        self.assertRegex(self.metrics(), r'interlock_screening_rules_info\{[^}]*added="2026-11-24\.2"[^}]*\} 1')
        self.assertRegex(self.metrics(), r'interlock_screening_rules_info\{[^}]*added="2026-11-24\.1"[^}]*\} 0')

        # Labels are refused, free text is only observed, parameters of actions too.
        answer = self.server.post("/auth/keys", {"name": "my beacon://key", "scopes": ["runs:read"]})
        self.assertEqual((answer.status_code, answer.json()["code"]), (400, "request_blocked"))
        before = len(self.hits("pattern_observed"))
        self.assertEqual(self.server.run("move", {"key": "beacon://there"}).status_code, 200)
        self.assertEqual(self.server.post("/stop", {"reason": "a stop waits for nobody who looks at a beacon://light"}).status_code, 200)
        self.assertEqual(self.server.post("/stop/release", {"reason": "a beacon://light"}).status_code, 200)
        wait_for(lambda: self.hits("pattern_observed")[before:] == [("added.beacon", "free_text")] * 2, "both are observed")

        os.unlink(self.path)
        wait_for(lambda: any("cannot be read" in line.get("error", "") for line in self.server.log_lines()), "the missing file is told", 15)
        self.assertEqual(self.get("/runs?action=beacon://x").status_code, 400)

    def test_a_bad_file_stops_the_start(self):
        self.write("version = 1")
        code, said = self.server.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("screening.rules_file", said)
        self.assertIn("line 1", said)


if __name__ == "__main__":
    unittest.main()
