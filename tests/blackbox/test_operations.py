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


if __name__ == "__main__":
    unittest.main()
