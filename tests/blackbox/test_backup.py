"""Backups: taken while the server works, proven, put back on an empty machine, and nothing that was dead or done comes back."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
import unittest

from orchestra import Orchestrator, soon
from support import ADMIN_PASSWORD, PASSWORD, Server, is_running, program, tool, wait_for
from test_orchestrator_many import database

SOURCE = """
    import os, time
    from interlock import task
    HERE = os.path.dirname(os.path.abspath(__file__))

    @task
    def mark(word: str = "x") -> int:
        with open(os.path.join(HERE, "marks"), "a") as opened:
            opened.write(word + "\\n")
        return 1

    @task
    def slow(seconds: float = 60.0) -> int:
        mark("slow")
        time.sleep(seconds)
        return 1
"""
MARK = "Wolverine-plaintext-canary-9731"


class Backups(unittest.TestCase):
    """The commands, on folders of their own."""

    def commands(self, server, *arguments, code=0, variables=None, before=()):
        """`interlock backup …`; what it printed."""
        done = subprocess.run([*before, program(), "backup", *arguments], capture_output=True, text=True, timeout=120,
                              env={**server.variables, **(variables or {})}, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def key(self, server, name="private"):
        """A new pair: the file of the private key, and the public one."""
        path = os.path.join(server.folder, name)
        public = self.commands(server, "key", path).strip()
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        return path, public

    def take(self, server, public, name="backup", variables=None):
        """A new backup; its path and what was said of it."""
        path = os.path.join(server.folder, name)
        said = self.commands(server, "create", path, "--state", server.state, "--for", public, "-o", "json", variables=variables)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        return path, json.loads(said)

    def audit_key(self, server):
        done = subprocess.run([program(), "audit", "key", "--state", server.state], capture_output=True, text=True, timeout=60,
                              env=server.variables, check=True)
        return done.stdout.strip()

    def api_key(self, server):
        made = server.post("/auth/keys", {"name": "script", "scopes": ["runs:read"], "expires_in_days": 5})
        self.assertEqual(made.status_code, 201, made.text)
        return made.json()["key"]

    def marks(self, server):
        try:
            with open(os.path.join(server.folder, "marks"), encoding="utf-8") as opened:
                return opened.read().split()
        except FileNotFoundError:
            return []

    def gauge(self, server, name):
        with server.http() as client:
            lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1])

    def test_a_device_server_comes_back_on_an_empty_machine(self):
        with Server(SOURCE) as server:
            private, public = self.key(server)
            server.add_users("ada", "vera")
            api_key, ada = self.api_key(server), server.token("ada")
            self.assertEqual(server.run("mark", {"word": MARK}, key="first").status_code, 200)
            first = self.gauge(server, "interlock_backup_last_success_timestamp_seconds")
            open_run = server.begin("slow", key="burnt")
            wait_for(lambda: server.run_of(open_run)["state"] == "running", "the run")
            # While it is taken the server goes on working.
            stop, served = threading.Event(), []

            def work():
                with server.as_user() as client:
                    while not stop.is_set():
                        served.append(client.post("/users", json={"name": "u%d" % len(served), "password": PASSWORD, "roles": ["viewer"]}).status_code)

            worker = threading.Thread(target=work)
            worker.start()
            wait_for(lambda: len(served) > 1, "some work")
            backup, said = self.take(server, public)
            stop.set()
            worker.join(60)
            self.assertEqual(set(served), {201})
            self.assertGreater(said["rows"]["audit"], 5)
            with open(backup, "rb") as opened:
                content = opened.read()
            for secret in (MARK, ADMIN_PASSWORD, "argon2id", "ada", "BEGIN"):
                self.assertNotIn(secret.encode(), content)
            self.assertEqual(first, 0.0)
            wait_for(lambda: self.gauge(server, "interlock_backup_last_success_timestamp_seconds") > 1e9, "the metric", 30, 0.3)
            self.assertEqual(server.audit(action="backup.created")[0]["details"]["sha256"], said["sha256"])

            key = self.audit_key(server)
            proof = json.loads(self.commands(server, "verify", backup, "--private-key", private, "--key", key, "--state", server.state,
                                             "-o", "json"))
            self.assertEqual((proof["sha256"], proof["rows"]), (said["sha256"], said["rows"]))
            self.assertEqual([name for name in os.listdir(server.folder) if name.startswith("interlock-backup-")], [], "left behind")
            wait_for(lambda: self.gauge(server, "interlock_backup_last_drill_timestamp_seconds") > 1e9, "the metric", 30, 0.3)

            # Since then: something was revoked, somebody was shut out, and then everything was lost.
            with server.as_user() as client:
                self.assertEqual(client.patch("/users/vera", json={"disabled": True}).status_code, 200)
            revoked = os.path.join(server.folder, "revoked.json")
            with open(revoked, "w", encoding="utf-8") as opened:
                subprocess.run([program(), "revocations", "export", "--state", server.state], stdout=opened, timeout=60, env=server.variables, check=True)
            server.kill()
            for worker in server.workers():
                wait_for(lambda: not is_running(worker), "the end of the worker", 20)
            shutil.rmtree(server.state)

            said = json.loads(self.commands(server, "restore", backup, "--private-key", private, "--key", key, "--state", server.state,
                                            "--revocations", revoked, "-o", "json"))
            self.assertEqual((said["ended"]["runs"], said["ended"]["api_keys"]), (1, 1))
            self.assertEqual(os.stat(server.state).st_mode & 0o777, 0o700)
            server.start()

            for token in (ada, server.tokens["admin"]):
                with server.http(token) as client:
                    self.assertEqual(client.get("/auth/me").status_code, 401)
            with server.http(api_key) as client:
                self.assertEqual(client.get("/runs").status_code, 401)
            server.tokens.clear()
            with server.http() as client:
                self.assertEqual(client.post("/auth/login", data={"username": "vera", "password": PASSWORD}).status_code, 401)
            server.login("ada")
            self.assertEqual(server.run_of(open_run)["state"], "uncertain")
            self.assertEqual(server.audit(action="backup.restored")[0]["details"]["ended"]["runs"], 1)
            # The device waits for a look; then nothing that was asked before is done once more.
            self.assertEqual(server.run("mark").json()["code"], "device_needs_attention")
            cleared = server.post("/device/attention/clear", {"reason": "looked"})
            self.assertEqual(cleared.status_code, 200, cleared.text)
            before = self.marks(server)
            self.assertEqual(server.run("slow", key="burnt").json()["code"], "run_uncertain")
            self.assertEqual(server.run("mark", {"word": MARK}, key="first").status_code, 200)
            self.assertEqual(self.marks(server), before)
            self.assertEqual(server.run("mark", {"word": "new"}).status_code, 200)
            self.assertEqual(self.marks(server), [*before, "new"])
            good = subprocess.run([program(), "audit", "verify", "--state", server.state, "-o", "json"], capture_output=True, text=True,
                                  timeout=60, env=server.variables, check=False)
            self.assertEqual(good.returncode, 0, good.stdout + good.stderr)

    def test_what_is_no_good_backup_is_refused_and_leaves_nothing(self):
        with Server(SOURCE) as server:
            private, public = self.key(server)
            backup, _ = self.take(server, public)
            with open(backup, "rb") as opened:
                whole = opened.read()
            target = os.path.join(server.folder, "new")

            def refused(path, words, *more, private=private, code=1):
                said = self.commands(server, "restore", path, "--private-key", private, "--state", target, *more, code=code)
                self.assertIn(words, said)
                self.assertFalse([name for name in os.listdir(server.folder) if name.startswith(("new", ".new"))], "left behind")
                return said

            broken = os.path.join(server.folder, "broken")
            for length, words in ((0, "not a backup"), (30, "not a backup"), (len(whole) // 2, "cut off"), (len(whole) - 1, "cut off")):
                with open(broken, "wb") as opened:
                    opened.write(whole[:length])
                refused(broken, words)
            for place in (25, 40, 80, len(whole) // 2, len(whole) - 3):
                with open(broken, "wb") as opened:
                    opened.write(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
                refused(broken, "the key" if place == 25 else "damaged or was changed")
            with open(broken, "wb") as opened:
                opened.write(whole + b"x")
            refused(broken, "behind its end")
            other, _ = self.key(server, "other")
            refused(backup, "was made for the key", private=other)
            refused(backup, "no private key", private=backup.replace("backup", "device.py"))
            refused(os.path.join(server.folder, "none"), "none")
            with Server(SOURCE) as stranger:
                refused(backup, "not signed with the key of the audit log that is trusted", "--key", self.audit_key(stranger))
            self.assertIn("not empty", self.commands(server, "restore", backup, "--private-key", private, "--state", server.state, code=1))
            self.assertIn("is there already", self.commands(server, "create", backup, "--state", server.state, "--for", public, code=1))
            self.assertIn("whom the backup is for", self.commands(server, "create", broken + "2", "--state", server.state, code=2))
            self.assertIn("no public key", self.commands(server, "create", broken + "2", "--state", server.state, "--for", "x", code=2))
            # Somebody who could write the database did: the copy is whole, and what it says is not what was signed.
            wait_for(lambda: server.get("/audit/checkpoint").status_code == 200, "a checkpoint")
            server.stop()
            connection = sqlite3.connect(os.path.join(server.state, "interlock.db"))
            with connection:
                connection.execute("UPDATE audit SET actor = 'eve' WHERE seq = 2")
            connection.close()
            tampered, _ = self.take(server, public, "tampered")
            refused(tampered, "entry 2 was changed")
            said = self.commands(server, "verify", tampered, "--private-key", private, code=13)
            self.assertIn("entry 2 was changed", said)

    def test_without_space_there_is_no_file(self):
        with Server(SOURCE) as server:
            private, public = self.key(server)
            backup, _ = self.take(server, public)
            small = os.path.join(server.folder, "small")
            os.mkdir(small)
            prefix = [] if os.geteuid() == 0 else [tool("sudo"), "--non-interactive"]
            subprocess.run([*prefix, tool("mount"), "-t", "tmpfs", "-o", "size=8k,mode=0777", "tmpfs", small], check=True, timeout=10)
            try:
                said = self.commands(server, "create", os.path.join(small, "backup"), "--state", server.state, "--for", public, code=1)
                self.assertIn("space", said)
                self.assertEqual(os.listdir(small), [])
                said = self.commands(server, "restore", backup, "--private-key", private, "--state", os.path.join(small, "new"), code=1)
                self.assertRegex(said, "space|full")
                self.assertEqual(os.listdir(small), [])
                said = self.commands(server, "verify", backup, "--private-key", private, "--within", small, code=13)
                self.assertRegex(said, "space|full")
                self.assertEqual(os.listdir(small), [])
            finally:
                subprocess.run([*prefix, tool("umount"), small], check=True, timeout=10)

    def test_revocations_and_credentials_come_back_alone(self):
        with Server(SOURCE) as server:
            private, public = self.key(server)
            server.add_users("ada", "vera")
            session = server.login("vera")
            with server.http(session) as client:
                self.assertEqual(client.post("/auth/logout").status_code, 200)
            backup, _ = self.take(server, public)
            server.stop()
            # A loss of a part: a row of a user, and what was revoked.
            connection = sqlite3.connect(os.path.join(server.state, "interlock.db"))
            with connection:
                connection.execute("DELETE FROM users WHERE name = 'ada'")
                connection.execute("DELETE FROM identity WHERE kind = 'session'")
                connection.execute("DELETE FROM revocations")
            connection.close()

            back = self.commands(server, "restore", backup, "--private-key", private, "--state", server.state, "--only", "credentials", "-o", "json")
            self.assertEqual(json.loads(back)["came_back"]["users"], ["ada"])
            self.commands(server, "restore", backup, "--private-key", private, "--state", server.state, "--only", "revocations")
            server.start()
            server.tokens.clear()
            server.login("ada")
            with server.http(session) as client:
                self.assertEqual(client.get("/auth/me").status_code, 401)

    def test_an_orchestrator_on_postgresql_comes_back_and_does_nothing_twice(self):
        old, new = database(), database()
        with Orchestrator(variables={"DATABASE_URL": old}) as server:
            private, public = self.key(server)
            napping = [{"uses": "orchestrator.sleep", "with": {"seconds": 120}}]
            held = server.now(server.task(pipeline=napping))
            server.reaches(held, ("queued", "running"))  # asleep
            waiting = server.now(server.task(pipeline=[{"uses": "orchestrator.request_approval", "with": {"reason": "look"}}]))
            server.reaches(waiting, "waiting_for_approval")
            once = server.task(schedule_kind="once", schedule_expr=soon(6))
            done = server.carried_out([{"uses": "orchestrator.sleep", "with": {"seconds": 0}}])
            backup, said = self.take(server, public)
            self.assertEqual(said["rows"]["queue"], 2)
            # It falls due after the backup, and is carried out.
            wait_for(lambda: [run for run in server.runs(once) if run["state"] == "succeeded"], "the run of the due time", 30)
            server.kill()
            shutil.rmtree(server.state)
            server.variables["DATABASE_URL"] = new

            said = json.loads(self.commands(server, "restore", backup, "--private-key", private, "--state", server.state, "-o", "json"))
            self.assertEqual((said["ended"]["task_runs"], said["ended"]["due_tasks"]), (2, 1))
            self.assertIn("not empty", self.commands(server, "restore", backup, "--private-key", private, "--state", server.state + "2", code=1))
            server.tokens.clear()
            server.start()

            self.assertEqual([server.run_of(run)["state"] for run in (held, waiting, done["id"])], ["uncertain", "uncertain", "succeeded"])
            self.assertEqual(server.runs(once), [])
            self.assertEqual(server.over(server.now(once))["state"], "succeeded", "it goes on working")
            # And from there into a file.
            again, _ = self.take(server, public, "again")
            server.stop()
            shutil.rmtree(server.state)
            del server.variables["DATABASE_URL"]
            self.commands(server, "restore", again, "--private-key", private, "--state", server.state)
            server.tokens.clear()
            server.start()
            self.assertEqual(server.run_of(done["id"])["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
