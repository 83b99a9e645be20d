"""Every command in docs/operations is executed as it stands there."""

import glob
import os
import re
import subprocess
import unittest

from orchestra import Orchestrator
from support import ADMIN_PASSWORD, PASSWORD, ROOT, program

PAGES = sorted(glob.glob(os.path.join(ROOT, "docs", "operations", "*.md")))


def blocks(path):
    """Shell blocks of a page: the line they begin at, and their text."""
    with open(path, encoding="utf-8") as opened:
        text = opened.read()
    for found in re.finditer(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        yield text[:found.start()].count("\n") + 2, found.group(1)


class Operations(unittest.TestCase):
    """One server for all pages, in their order."""

    def test_every_command_works_as_it_stands(self):
        with Orchestrator() as server:
            folder = server.folder
            with server.http(server.token()) as client:
                made = client.post("/users", json={"name": "ada", "password": PASSWORD, "roles": ["operator"]})
                self.assertEqual(made.status_code, 201, made.text)
            agent = server.new_agent("arm")
            with server.http() as client:
                for _ in range(6):
                    self.assertIn(client.post("/auth/login", data={"username": "ada", "password": "wrong-" + PASSWORD}).status_code, (401, 429))
            environment = {**server.variables, "PATH": os.path.dirname(program()) + ":" + os.environ["PATH"], "STATE": server.state,
                           "ADDRESS": "192.0.2.7", "PERSON": "ada", "AGENT": agent, "INTERLOCK_URL": server.url, "XDG_CONFIG_HOME": os.path.join(folder, "config"),
                           "PASSWORD_FILE": os.path.join(folder, "password")}
            with open(environment["PASSWORD_FILE"], "w", encoding="utf-8") as opened:
                opened.write(ADMIN_PASSWORD + "\n")

            def shell(text):
                return subprocess.run(["sh", "-e", "-u"], input=text, capture_output=True, text=True, timeout=180, env=environment, cwd=folder, check=False)

            public = shell("interlock backup key private.key").stdout.strip()
            environment.update(BACKUP_KEY=public, PRIVATE_KEY=os.path.join(folder, "private.key"), BACKUP=os.path.join(folder, "backup"))
            for text in ('interlock backup create "$BACKUP" --state "$STATE"', 'interlock login --user admin --password-stdin < "$PASSWORD_FILE"'):
                done = shell(text)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            tried = 0
            for path in PAGES:
                for line, text in blocks(path):
                    with self.subTest(page=os.path.basename(path), line=line):
                        done = shell(text)
                        self.assertEqual(done.returncode, 0, text + done.stdout + done.stderr)
                        tried += 1
            self.assertGreater(tried, 20)


class Doctor(unittest.TestCase):
    """`interlock doctor` in production: what is missing fails, with what to do."""

    GOOD = {"ENVIRONMENT": "production", "TRUSTED_PROXIES": "127.0.0.1", "REQUIRE_MFA_FOR_ADMINS": "true", "METRICS_TOKEN": "m" * 20 + "7fQz",
            "AUDIT_ANCHOR_FILE": "/mnt/anchors", "SECURITY_CONTACT": "mailto:a@example.org", "BACKUP_KEY": "x"}

    def look(self, variables, *arguments):
        done = subprocess.run([program(), "doctor", *arguments], capture_output=True, text=True, timeout=60, check=False,
                              env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **variables})
        lines = done.stdout.splitlines()
        marked = {line[6:]: (line[:4], lines[number + 1].strip() if lines[number + 1:] and lines[number + 1].startswith("      ") else "")
                  for number, line in enumerate(lines) if not line.startswith("      ")}
        return done.returncode, marked

    def test_doctor_names_what_is_missing_and_how_to_mend_it(self):
        code, found = self.look(self.GOOD)
        self.assertEqual((code, [what for what, (mark, _) in found.items() if mark != "pass"]), (0, []))
        for variable, value, remedy in (
                ("TRUSTED_PROXIES", "", "TLS_CERT_FILE"), ("RATE_LIMIT_ENABLED", "false", "RATE_LIMIT_ENABLED=true"),
                ("BLOCK_SUSPICIOUS_PATTERNS", "false", "BLOCK_SUSPICIOUS_PATTERNS=true"), ("ACCESS_TOKEN_EXPIRE_HOURS", "12", "ACCESS_TOKEN_EXPIRE_HOURS=1"),
                ("REQUIRE_MFA_FOR_ADMINS", "", "REQUIRE_MFA_FOR_ADMINS"), ("METRICS_TOKEN", "", "METRICS_TOKEN_FILE"),
                ("AUDIT_RETENTION_DAYS", "10", "AUDIT_RETENTION_DAYS=90"), ("AUDIT_ANCHOR_FILE", "", "AUDIT_ANCHOR_FILE"), ("BACKUP_KEY", "", "BACKUP_KEY"),
                ("SECURITY_CONTACT", "", "SECURITY_CONTACT"), ("DATABASE_URL", "postgres://a@db.example/x?sslmode=disable", "sslmode=verify-full")):
            variables = dict(self.GOOD, **{variable: value})
            if not value:
                del variables[variable]
            code, found = self.look(variables)
            failed = [remedy for mark, remedy in found.values() if mark == "FAIL"]
            self.assertEqual(code, 1, (variable, found))
            self.assertTrue(any(remedy in said for said in failed), (variable, failed))
            # While nothing is in production the same is a note.
            _, found = self.look(dict(variables, ENVIRONMENT="development"))
            self.assertTrue(any(remedy in said for mark, said in found.values() if mark == "note"), (variable, found))


if __name__ == "__main__":
    unittest.main()
