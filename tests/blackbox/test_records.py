"""Secrets that must be nowhere; audit rows and log lines that must be there."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import unittest

from lab import LAB, Lab
from support import ADMIN_PASSWORD, PASSWORD, Server, is_running, program, wait_for


class Secrets(Lab):
    """Sensitive parameters, passwords and tokens appear nowhere."""

    def test_sensitive_values_are_nowhere(self):
        mark, number = "Zq7-unmistakable-secret-value", 918273645
        parameters = {"password": mark, "count": number, "label": "seen"}
        answers = [self.server.run("secret", parameters, key="secret-1"), self.server.run("secret", parameters, key="secret-1"),
                   self.server.post("/check/secret", parameters), self.server.run("secret", dict(parameters, count="x")),
                   self.server.run("secret", {"password": 5, "count": number}), self.server.run("secret", dict(parameters, extra=mark))]
        self.assertEqual([answer.status_code for answer in answers], [200, 200, 200, 400, 400, 400])
        shown = answers[0].json()["parameters"]
        self.assertEqual((shown["label"], answers[0].json()["result"]), ("seen", len(mark) + number))
        self.assertNotIn(shown["count"], (number, None) if shown["count"] is None else (number,))
        run = answers[0].json()["run_id"]
        texts = [answer.text for answer in answers[1:]] + [json.dumps(shown), self.server.get("/runs/" + run).text,
                 self.server.get("/runs/%s/events" % run).text, self.server.get("/audit?limit=200").text, self.server.get("/metrics").text]
        self.server.stop()
        texts.append(self.server.log() + self.server.output())
        for text in texts:
            self.assertNotIn(mark, text)
            self.assertNotIn(str(number), text.replace(str(answers[0].json()["result"]), ""))
        tokens = [token for token in self.server.tokens.values()]
        for folder, _, names in os.walk(self.server.state):
            for name in names:
                with open(os.path.join(folder, name), "rb") as opened:
                    content = opened.read()
                for secret in [mark, ADMIN_PASSWORD, PASSWORD, *tokens]:
                    self.assertNotIn(secret.encode(), content, name)
                self.assertNotIn(str(number).encode() + b",", content, name)
        for secret in [ADMIN_PASSWORD, PASSWORD, *tokens]:
            self.assertNotIn(secret, texts[-1])
        self.server.start()

    def test_a_sensitive_value_inside_an_error_is_not_logged(self):
        """int("…") and many libraries put the value into the message of the exception."""
        source = """
            from interlock import Param, task
            @task
            def connect(password: str = Param(sensitive=True)):
                int(password)
        """
        mark = "Zq8-unmistakable-in-an-error"
        with Server(source) as server:
            answer = server.run("connect", {"password": mark})
            self.assertProblem(answer, 500, "task_failed")
            server.stop()
            self.assertNotIn(mark, answer.text)
            self.assertNotIn(mark, server.log())


class Crashes(unittest.TestCase):
    """What is left behind when a process of ours dies in the middle of an action with sensitive parameters."""

    SOURCE = """
        import ctypes, os
        from interlock import Param, ctx, task
        @task
        def die(how: str, password: str = Param(sensitive=True)):
            kept = [password] * 10
            if how == "segfault":
                ctypes.string_at(0)
            elif how == "abort":
                os.abort()
            elif how == "exit":
                os._exit(3)
            elif how == "leave":
                raise SystemExit(password)
            elif how == "raise":
                raise ValueError(kept)
            elif how == "say":
                ctx.log("using " + password)
                ctx.progress(1, 2, password)
                print("with", password, flush=True)
                os.write(2, password.encode() + b"\\n")
            else:
                import time
                time.sleep(60)
    """

    def test_neither_core_files_nor_logs_hold_a_sensitive_value(self):
        mark = "Zq9-unmistakable-at-a-crash"
        server = Server(self.SOURCE)
        self.addCleanup(server.close)
        server.variables["PYTHONFAULTHANDLER"] = "1"
        with self.unlimited_core_files():
            server.start()
        logs = []
        for how in ("segfault", "abort", "exit", "leave", "raise"):
            answer = server.run("die", {"how": how, "password": mark})
            self.assertGreaterEqual(answer.status_code, 500, how)
            self.assertNotIn(mark, answer.text, how)
        said = server.run("die", {"how": "say", "password": mark})
        self.assertEqual(said.status_code, 200, said.text)
        events = json.dumps(server.run_events(said.json()["run_id"]))
        self.assertNotIn(mark, events)
        self.assertGreaterEqual(events.count("***"), 4, events)
        # And the server itself, while such an action runs.
        run = server.begin("die", {"how": "wait", "password": mark})
        wait_for(lambda: server.run_of(run)["state"] == "running", "the action runs")
        for pid in (server.process.pid, *server.workers()):
            with open("/proc/%d/limits" % pid, encoding="utf-8") as opened:
                line = next(line for line in opened if line.startswith("Max core file size"))
            self.assertEqual(line.split()[4:6], ["0", "0"], line)
        # The limits say nothing to a program that the kernel pipes core files into. What may not be dumped says it to all: the
        # kernel writes the memory nowhere, and tells so in the status with which the process ends.
        server.process.send_signal(signal.SIGABRT)
        _, status = os.waitpid(server.process.pid, 0)
        server.process.returncode = -os.WTERMSIG(status)
        self.assertEqual((os.WTERMSIG(status), os.WCOREDUMP(status)), (signal.SIGABRT, False))
        logs.append(server.log() + server.output())
        server.start()
        server.stop()
        logs.append(server.log() + server.output())
        for text in logs:
            self.assertNotIn(mark, text)
        for folder, _, names in os.walk(server.folder):
            for name in names:
                self.assertFalse(name.startswith("core"), name)
                with open(os.path.join(folder, name), "rb") as opened:
                    self.assertNotIn(mark.encode(), opened.read(), name)

    @staticmethod
    @contextlib.contextmanager
    def unlimited_core_files():
        """As a machine of somebody who collects core files."""
        before = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, before)


class Records(unittest.TestCase):
    """Audit rows for everything that matters; one access line for each request."""

    def test_audit_and_access_log(self):
        with Server(LAB) as server:
            server.add_users("vera", "olaf")
            with server.http() as client:
                client.post("/auth/login", data={"username": "vera", "password": "Wrong-wrong-wrong-1"})
                client.post("/auth/login", data={"username": "stranger", "password": "Wrong-wrong-wrong-1"})
            server.run("later", user="vera")
            server.run("fail", user="olaf")
            server.run("later", user="olaf")
            server.raw(b"BROKEN\r\n\r\n", 3)

            def rows(action, **query):
                return [(row["actor_agent_id"], row["details"].get("result") or row["details"].get("status")) for row in server.audit(action=action, **query)]

            wait_for(lambda: ("vera", "failed") in rows("device.login"), "the failed sign-in", 5)
            logins = rows("device.login")
            self.assertEqual((logins.count(("vera", "failed")), logins.count((None, "failed")), logins.count(("vera", "success"))), (1, 1, 1))
            self.assertIn(("olaf", "failed"), rows("device.executed"))
            self.assertIn(("olaf", "succeeded"), rows("device.executed"))
            denied = wait_for(lambda: [row for row in server.audit(actor="vera") if row["details"].get("status") == 403 or "denied" in json.dumps(row)], "the denial", 5)
            self.assertTrue(denied)
            ids = [row["id"] for row in server.audit()]
            self.assertEqual(ids, sorted(ids))
            chain = server.audit()
            for earlier, later in zip(chain, chain[1:]):
                self.assertEqual((later["prev_hash"], later["id"]), (earlier["hash"], earlier["id"] + 1))
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                with server.as_user() as client:
                    self.assertEqual(client.request(method, "/audit").status_code, 405)
            self.assertEqual(server.get("/audit", "vera").status_code, 403)
            self.assertEqual(len(server.events("authorization_denied")), 2)

            sent = []
            with server.as_user() as client:
                for number in range(40):
                    path, method = (("/health", "GET"), ("/tasks", "GET"), ("/nowhere", "GET"), ("/auth/me", "DELETE"), ("/execute/none", "POST"))[number % 5]
                    sent.append(client.request(method, path, headers={"X-Request-ID": "count-%d" % number}).headers["x-request-id"])
            server.stop()
            access = [line for line in server.log_lines() if line.get("target") == "access"]
            # Access lines wait some milliseconds for each other, so those of earlier requests may come among the first.
            self.assertEqual([line["request_id"] for line in access if line["request_id"].startswith("count-")], sent)
            self.assertEqual([line["request_id"] for line in access][-40:], sent)
            for line in access:
                self.assertLessEqual({"timestamp", "level", "method", "endpoint", "status", "client_ip", "user_agent", "request_id", "duration_ms"}, set(line))
            for line in server.log_lines():
                self.assertLessEqual({"timestamp", "level"}, set(line))
                if line.get("target") == "security":
                    self.assertLessEqual({"event_type", "agent_id", "client_ip", "user_agent", "request_id", "details"}, set(line))

    def stopped_with_a_trail(self):
        """A stopped server, and a function that verifies its trail."""
        server = Server(LAB)
        self.addCleanup(server.close)
        server.start()
        for _ in range(5):
            server.run("move")
        server.stop()

        def verified(*more):
            return subprocess.run([program(), "audit", "verify", "--state", server.state, *more], capture_output=True, text=True,
                                  timeout=60, env=server.variables, check=False)

        whole = verified()
        self.assertEqual(whole.returncode, 0, whole.stderr)
        return os.path.join(server.state, "interlock.db"), verified, re.search(r"\d+:[0-9a-f]{64}", whole.stdout).group(0)

    def test_a_changed_audit_trail_is_found(self):
        database, verified, _ = self.stopped_with_a_trail()
        untouched = database + ".whole"
        shutil.copy(database, untouched)
        one = "seq = (SELECT min(seq) FROM audit WHERE details LIKE '%move%')"
        for change in ("UPDATE audit SET details = replace(details, 'move', 'wipe') WHERE " + one, "DELETE FROM audit WHERE " + one,
                       "UPDATE audit SET actor = 'mallory' WHERE " + one, "UPDATE audit SET at = at + 1 WHERE " + one,
                       "UPDATE audit SET seq = 1000 WHERE " + one):
            shutil.copy(untouched, database)
            with contextlib.closing(sqlite3.connect(database)) as opened:
                for (trigger,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                    opened.execute("DROP TRIGGER " + trigger)
                self.assertGreater(opened.execute(change).rowcount, 0, change)
                opened.commit()
            self.assertNotIn(verified().returncode, (0, 2), change)
        shutil.copy(untouched, database)
        self.assertEqual(verified().returncode, 0)

    def test_a_trail_whose_end_was_cut_off_is_found(self):
        database, verified, noted = self.stopped_with_a_trail()
        told = verified("--noted", noted)
        self.assertEqual(told.returncode, 0, told.stderr)
        with contextlib.closing(sqlite3.connect(database)) as opened:
            self.assertGreater(opened.execute("DELETE FROM audit WHERE seq > 6").rowcount, 0)
            opened.commit()
        self.assertNotIn(verified("--noted", noted).returncode, (0, 2))

    def test_log_lines_can_not_be_forged(self):
        with Server(LAB) as server:
            with server.as_user() as client:
                client.headers["User-Agent"] = 'x"} {"level":"ERROR","message":"forged'
                client.get("/health", headers={"X-Request-ID": 'a"b'})
                client.post("/auth/login", json={"username": 'x\n{"level":"ERROR","message":"forged"}', "password": "y"})
                client.post("/execute/fail", json={"text": 'a\n{"level":"ERROR","message":"forged"}\n'})
                client.post("/stop", json={"reason": 'r{"level":"ERROR"}'})
            server.stop()
            self.assertFalse([line for line in server.log_lines() if line.get("message") == "forged"])

    def test_the_device_comes_to_rest_when_the_server_is_killed(self):
        server = Server(LAB)
        self.addCleanup(server.close)
        acted = os.path.join(server.folder, "acted")
        server.options = ["--env", "ACTED=" + acted]
        server.start()
        run = server.begin("stubborn", {"seconds": 60}, key="orphan")
        wait_for(lambda: server.run_of(run)["state"] == "running", "the run is running")
        workers = server.workers()
        server.kill()
        wait_for(lambda: not any(map(is_running, workers)), "the workers end without their server", 15)
        with open(acted, encoding="utf-8") as opened:
            self.assertIn("rest:host_lost", opened.read())
        server.start()
        self.assertEqual(server.run_of(run)["state"], "uncertain")
        again = server.run("stubborn", {"seconds": 60}, key="orphan")
        self.assertEqual((again.status_code, again.json()["code"]), (409, "run_uncertain"))
        self.assertIsNotNone(server.get("/device").json()["attention"])


if __name__ == "__main__":
    unittest.main()
