"""Runs as callers see them: events, cancelling, files, keys, secrets, the emergency stop, audit and log."""

import contextlib
import http.client
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
import unittest

from lab import LAB
from support import ADMIN_PASSWORD, PASSWORD, Case, Server, is_running, program, together, wait_for


class Lab(Case):
    """A server whose actions note in a file that they acted."""

    SOURCE = LAB

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.SOURCE, variables=cls.VARIABLES)
        cls.acted_file = os.path.join(cls.server.folder, "acted")
        cls.server.options += ["--env", "ACTED=" + cls.acted_file]
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users(*cls.ADD_USERS)

    def acted(self):
        """Every line that an action wrote."""
        if not os.path.exists(self.acted_file):
            return []
        with open(self.acted_file, encoding="utf-8") as opened:
            return opened.read().split("\n")[:-1]

    def tearDown(self):
        self.assertHealthy()

    def rungs(self, run_id):
        """The last outcome of each rung that was tried, in order."""
        return {event["data"]["rung"]: event["data"]["outcome"] for event in self.server.run_events(run_id) if event["kind"] == "rung"}

    def running(self, run_id):
        """Wait until the action itself runs."""
        wait_for(lambda: self.server.run_of(run_id)["state"] == "running", "the run is running")


def events_of(server, run_id, last=None, stop_after=None, seconds=30):
    """Read server-sent events until the stream ends; ``(id, event, data)`` and the seconds until each came."""
    host, port = server.address
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    headers = {"Accept": "text/event-stream", "Authorization": "Bearer " + server.token()}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    connection.request("GET", "/runs/%s/events" % run_id, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.getheader("content-type") == "text/event-stream", answer.read()
    events, fields, begun = [], {}, time.monotonic()
    for line in answer:
        text = line.decode().rstrip("\n")
        if text.startswith(":"):
            continue
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.lstrip(" ")
        elif fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"]), time.monotonic() - begun))
            fields = {}
            if stop_after is not None and len(events) >= stop_after:
                break
    connection.close()
    return events


class Following(Lab):
    """202, events and progress."""

    ADD_USERS = ("vera", "olaf")

    def test_respond_async_and_server_sent_events(self):
        answer = self.server.run("steps", {"count": 10, "pause": 0.1}, headers={"Prefer": "respond-async"})
        self.assertEqual(answer.status_code, 202)
        run = answer.json()
        self.assertEqual(answer.headers["location"], "/runs/" + run["id"])
        self.assertIn(run["state"], ("queued", "running"))
        self.assertEqual(set(run), {"id", "action", "state", "simulated", "parameters", "result", "error", "executed_by", "request_id",
                                    "created_at", "started_at", "finished_at", "duration_seconds", "progress", "artifacts"})
        events = events_of(self.server, run["id"])
        self.assertEqual([number for number, *_ in events], sorted({number for number, *_ in events}))
        kinds = [kind for _, kind, _, _ in events]
        self.assertEqual((kinds.count("progress"), kinds.count("log"), kinds.count("metric")), (10, 10, 1))
        self.assertEqual((events[-1][1], events[-1][2]["data"]["state"]), ("state", "succeeded"))
        self.assertTrue(all(data["seq"] == number and data["kind"] == kind for number, kind, data, _ in events))
        arrived = [seconds for _, kind, _, seconds in events if kind == "progress"]
        self.assertGreater(arrived[-1] - arrived[0], 0.3, "events came all at once")
        ended = self.server.run_of(run["id"])
        self.assertEqual((ended["result"], ended["progress"]["current"], ended["state"]), (10, 10, "succeeded"))

    def test_a_stream_is_resumed_without_loss_or_repetition(self):
        run = self.server.begin("steps", {"count": 20, "pause": 0.05})
        first = events_of(self.server, run, stop_after=7)
        second = events_of(self.server, run, last=first[-1][0])
        whole = events_of(self.server, run)
        self.assertEqual([event[0] for event in first + second], [event[0] for event in whole])
        self.assertEqual([event[2] for event in first + second], [event[2] for event in whole])
        listed = self.server.get("/runs/%s/events?limit=5" % run).json()
        self.assertEqual((len(listed["items"]), listed["done"]), (5, False))
        rest = self.server.get("/runs/%s/events" % run, params={"after": listed["next_after"], "limit": 1000}).json()
        self.assertEqual([item["seq"] for item in listed["items"] + rest["items"]], [event[0] for event in whole])
        self.assertIs(rest["done"], True)

    def test_there_is_nothing_after_the_last_event(self):
        """A browser reconnects by itself with the last id: it must not be told of an end again and again under new ids."""
        run = self.server.begin("steps", {"count": 2})
        self.server.ended(run)
        last = events_of(self.server, run)[-1][0]
        self.assertEqual([event[0] for event in events_of(self.server, run, last=last)], [])
        self.assertEqual(self.server.get("/runs/%s/events" % run, params={"after": last}).json()["items"], [])

    def test_progress_is_seen_while_it_runs(self):
        run = self.server.begin("steps", {"count": 1000, "pause": 0.05})
        seen = wait_for(lambda: (self.server.run_of(run)["progress"] or {}).get("current", 0) > 3, "progress")
        self.assertTrue(seen)
        device = self.server.get("/device").json()
        self.assertEqual((device["state"], device["running"]), ("busy", run))
        self.server.post("/runs/%s/cancel" % run)
        self.server.ended(run)

    def test_who_may_look_and_cancel(self):
        run = self.server.begin("steps", {"count": 1000, "pause": 0.05}, "olaf")
        self.assertEqual(self.server.get("/runs/" + run, "vera").status_code, 200)
        self.assertEqual(self.server.post("/runs/%s/cancel" % run, user="vera").status_code, 403)
        answer = self.server.post("/runs/%s/cancel" % run, {"reason": "wrong plate"}, "olaf")
        self.assertEqual(answer.status_code, 202)
        self.assertEqual(self.server.ended(run)["state"], "cancelled")
        for path in ("/runs/run_0", "/runs/run_" + "0" * 32, "/runs/..%2f..", "/runs/x/events", "/runs/run_%s/artifacts/a" % ("0" * 32)):
            self.assertEqual(self.server.get(path).status_code, 404, path)

    def test_simulated_runs_say_so(self):
        answer = self.server.run("move", {"key": "sim"}, headers={"Interlock-Simulate": "true"})
        self.assertEqual(answer.status_code, 200)
        self.assertIs(self.server.run_of(answer.json()["run_id"])["simulated"], True)


class Cancelling(Lab):
    """The cancel ladder: each rung is tried, timed and recorded."""

    def cancel(self, task, parameters, seconds=20):
        run = self.server.begin(task, parameters)
        self.running(run)
        begun = time.monotonic()
        self.assertEqual(self.server.post("/runs/%s/cancel" % run, {"reason": "test"}).status_code, 202)
        ended = self.server.ended(run, seconds)
        self.assertEqual((ended["state"], ended["error"]["code"]), ("cancelled", "run_cancelled"))
        self.assertEqual(self.server.run("later").status_code, 200)
        return self.rungs(run), time.monotonic() - begun

    def test_at_a_checkpoint(self):
        rungs, seconds = self.cancel("move", {"key": "checkpoint", "seconds": 30})
        self.assertEqual((list(rungs)[0], rungs["checkpoint"]), ("checkpoint", "done"))
        self.assertFalse({"interrupt", "kill"} & set(rungs))
        self.assertIn("rest:cancelled", self.acted())
        self.assertLess(seconds, 5)

    def test_the_safe_state_after_a_checkpoint_is_on_record(self):
        """The hook runs on this way too; every rung is to be visible."""
        rungs, _ = self.cancel("move", {"key": "visible", "seconds": 30})
        self.assertEqual(rungs.get("safe_state"), "done")

    def test_by_interrupt(self):
        rungs, _ = self.cancel("spin", {"seconds": 60})
        self.assertEqual(rungs, {"checkpoint": "failed", "interrupt": "done", "safe_state": "done"})

    def test_by_kill(self):
        rungs, _ = self.cancel("stubborn", {"seconds": 60})
        self.assertEqual(rungs, {"checkpoint": "failed", "interrupt": "failed", "kill": "done", "restart": "done", "safe_state": "done"})
        events = [event["data"]["duration_ms"] for event in self.server.run_events(self.server.get("/runs?limit=2").json()["items"][1]["id"])
                  if event["kind"] == "rung" and event["data"]["outcome"] == "failed"]
        self.assertTrue(events and all(1000 < milliseconds < 10000 for milliseconds in events), events)

    def test_a_waiting_run_never_starts(self):
        first = self.server.begin("move", {"key": "first", "seconds": 30})
        self.running(first)
        second = self.server.begin("move", {"key": "never"})
        self.assertEqual(self.server.post("/runs/%s/cancel" % second).status_code, 202)
        self.assertEqual(self.server.ended(second)["state"], "cancelled")
        self.server.post("/runs/%s/cancel" % first)
        self.server.ended(first)
        self.assertNotIn("never", self.acted())
        again = self.server.post("/runs/%s/cancel" % first)
        self.assertEqual((again.status_code, again.json()["state"]), (202, "cancelled"))

    def test_a_waiting_call_is_answered_409_when_it_is_cancelled(self):
        answers = {}
        caller = threading.Thread(target=lambda: answers.update(one=self.server.run("move", {"key": "waiting", "seconds": 30})))
        caller.start()
        run = wait_for(lambda: self.server.get("/device").json()["running"], "the action runs")
        self.server.post("/runs/%s/cancel" % run)
        caller.join(20)
        self.assertProblem(answers["one"], 409, "run_cancelled")
        self.assertEqual(answers["one"].headers["interlock-run"], run)

    def test_a_hung_call_leaves_the_server_alone(self):
        run = self.server.begin("hang", {"seconds": 60})
        self.running(run)
        for path in ("/health", "/device", "/runs", "/health/ready"):
            begun = time.monotonic()
            self.assertEqual(self.server.get(path).status_code, 200)
            self.assertLess(time.monotonic() - begun, 1, path)
        begun = time.monotonic()
        stop = self.server.post("/stop", {"reason": "hung"})
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual((stop.json()["confirmed"], stop.json()["cancelled_run"]), (1, run))
        self.assertEqual(self.server.ended(run)["state"], "cancelled")
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}).status_code, 200)
        self.assertEqual(self.server.run("later").status_code, 200)


class EmergencyStop(Lab):
    """Engaged by anyone, released by an administrator only, remembered over restarts."""

    ADD_USERS = ("olaf", "vera", "adam", "audrey")

    def test_stop_while_busy(self):
        answers = {}
        caller = threading.Thread(target=lambda: answers.update(one=self.server.run("stubborn", {"seconds": 60}, "olaf", "stop-key")))
        caller.start()
        run = wait_for(lambda: self.server.get("/device").json()["running"], "the action runs")
        self.running(run)
        worker = self.server.get("/device").json()["worker"]["pid"]
        report = self.server.post("/stop", {"reason": "smoke"}, "vera")
        self.assertEqual(report.status_code, 200)
        report = report.json()
        self.assertEqual((report["engaged"], report["confirmed"], report["of"], report["cancelled_run"], report["reason"]),
                         (True, 1, 1, run, "smoke"))
        self.assertEqual(report["devices"][0]["safe_state"], "done")
        self.assertFalse(is_running(worker), "the worker lives after the stop")
        self.assertIn("rest:emergency_stop", self.acted())
        caller.join(20)
        self.assertProblem(answers["one"], 409, "run_cancelled")
        self.assertProblem(self.server.run("later", user="olaf"), 409, "emergency_stop_engaged")
        self.assertEqual(self.server.get("/device").json()["state"], "stopped")
        for stop in (self.server.stop, self.server.kill):
            stop()
            self.server.start()
            device = self.server.get("/device").json()
            self.assertEqual((device["emergency_stop"]["engaged"], device["emergency_stop"]["by"], device["emergency_stop"]["reason"]),
                             (True, "vera", "smoke"))
            self.assertProblem(self.server.run("move", {"key": "stopped"}, "olaf", "after-stop"), 409, "emergency_stop_engaged")
        for user in ("olaf", "vera", "audrey"):
            self.assertProblem(self.server.post("/stop/release", {"reason": "please"}, user), 403, "forbidden")
        for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": 5}, {"reason": "x" * 201}, {"reason": "a\nb"}):
            self.assertProblem(self.server.post("/stop/release", body, "adam"), 422, "invalid_request")
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)
        answer = self.server.run("move", {"key": "stopped"}, "olaf", "after-stop")
        self.assertEqual(answer.status_code, 200, "a refused call keeps its key free")
        self.assertEqual(self.acted().count("stopped"), 1)
        self.assertEqual(self.server.run("stubborn", {"seconds": 60}, "olaf", "stop-key").status_code, 409)
        actions = [(row["action"], row["actor_agent_id"]) for row in self.server.audit()]
        self.assertTrue(any(actor == "vera" and "stop" in action for action, actor in actions), actions)
        self.assertTrue(any(actor == "adam" and "release" in action for action, actor in actions), actions)

    def test_every_role_may_stop_with_any_body(self):
        for user, body in (("olaf", b""), ("vera", b"{not json"), ("adam", b'{"reason": 5}'), ("audrey", b"\xff"), ("admin", b'{"reason": "' + b"x" * 5000 + b'"}')):
            with self.server.as_user(user) as client:
                answer = client.post("/stop", content=body, headers={"Content-Type": "application/json"})
            self.assertEqual(answer.status_code, 200, (user, answer.text))
            self.assertIs(answer.json()["engaged"], True)
        with self.server.http() as client:
            self.assertEqual(client.post("/stop").status_code, 401)
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)

    def test_stops_at_once_from_many(self):
        run = self.server.begin("spin", {"seconds": 60}, "olaf")
        self.running(run)
        answers = together(8, lambda number: self.server.post("/stop", user=("olaf", "vera")[number % 2]))
        self.assertEqual([answer.status_code for answer in answers], [200] * 8)
        self.assertEqual({answer.json()["confirmed"] for answer in answers}, {1})
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)


class Keys(Lab):
    """Idempotency keys: one act, one answer."""

    ADD_USERS = ("ada",)

    def test_thirty_calls_with_one_key_act_once(self):
        self.server.token()
        answers = together(30, lambda number: self.server.run("move", {"key": "thirty", "seconds": 0.3}, key="thirty"))
        self.assertEqual({answer.status_code for answer in answers}, {200})
        self.assertEqual(len({answer.text for answer in answers}), 1)
        self.assertEqual(sum("idempotency-replayed" not in answer.headers for answer in answers), 1)
        self.assertEqual(self.acted().count("thirty"), 1)

    def test_a_key_belongs_to_its_body_and_its_owner(self):
        first = self.server.run("move", {"key": "mine"}, key="body")
        self.assertEqual(first.status_code, 200)
        for task, parameters, headers in (("move", {"key": "other"}, {}), ("later", {}, {}), ("move", {"key": "mine"}, {"Interlock-Simulate": "true"})):
            self.assertProblem(self.server.run(task, parameters, key="body", headers=headers), 422, "idempotency_key_reused")
        self.assertEqual(self.server.run("move", {"key": "mine", "seconds": 0}, key="body").json(), first.json(), "defaults are the same body")
        other = self.server.run("move", {"key": "hers"}, "ada", "body")
        self.assertEqual((other.status_code, other.json()["result"]["acted"]), (200, "hers"))
        self.assertEqual((self.acted().count("mine"), self.acted().count("other")), (1, 0))

    def test_a_failure_is_the_answer_too(self):
        first = self.server.run("fail", {"text": "once"}, key="failing")
        second = self.server.run("fail", {"text": "once"}, key="failing")
        self.assertEqual((first.status_code, second.status_code), (500, 500))
        self.assertEqual(first.headers["interlock-run"], second.headers["interlock-run"])

    def test_a_client_that_hangs_up_finds_its_result(self):
        with self.assertRaises(Exception):
            self.server.run("move", {"key": "hung-up", "seconds": 1}, key="hung-up", timeout=0.3)
        answer = self.server.run("move", {"key": "hung-up", "seconds": 1}, key="hung-up")
        self.assertEqual((answer.status_code, answer.headers["idempotency-replayed"]), (200, "true"))
        self.assertEqual(self.acted().count("hung-up"), 1)

    def test_a_key_survives_restarts(self):
        first = self.server.run("move", {"key": "long"}, key="long")
        for stop in (self.server.stop, self.server.kill):
            stop()
            self.server.start()
            again = self.server.run("move", {"key": "long"}, key="long")
            self.assertEqual((again.status_code, again.json()), (200, first.json()))
        self.assertEqual(self.acted().count("long"), 1)


class Artifacts(Case):
    """Files that actions leave."""

    SOURCE = '''
        from interlock import ctx, task
        NAMES = ["plate.csv", "page.html", "picture.svg", "weird; name\\u00e9.txt", 'quo"te.txt', "-rf", "%2e%2e%2fx", "con", "a" * 200, "crlf%0d%0a.txt"]
        BAD = ["../up.txt", "/etc/passwd", "..", ".", "", "a/b", "a\\\\b", "nul\\0", "line\\nbreak", "x" * 201]

        @task
        def files() -> list:
            refused = []
            for name in BAD:
                try:
                    ctx.artifact(name, b"bad")
                except ValueError:
                    refused.append(name)
            for name in NAMES:
                ctx.artifact(name, ("content of " + name).encode())
            ctx.artifact("page.html2", "<script>alert(1)</script>")
            return [len(refused), len(BAD)]
    '''

    def test_no_artifact_disappears(self):
        """What ctx.artifact takes without an error is there afterwards."""
        source = """
            from interlock import ctx, task
            @task
            def keep() -> list:
                kept = []
                for name in (".hidden", "..hidden", "a.", " space", "tab\\u00a0", "\\u202egpj.exe", "same.txt", "same.txt", "Same.txt", "~"):
                    try:
                        ctx.artifact(name, b"x")
                        kept.append(name)
                    except ValueError:
                        pass
                return kept
        """
        with Server(source) as server:
            answer = server.run("keep").json()
            names = [artifact["name"] for artifact in server.run_of(answer["run_id"])["artifacts"]]
            self.assertEqual(sorted(set(names)), sorted(set(answer["result"])))

    def test_downloads(self):
        answer = self.server.run("files")
        refused, bad = answer.json()["result"]
        self.assertEqual(refused, bad, "a bad name was taken")
        run = self.server.run_of(answer.json()["run_id"])
        names = [artifact["name"] for artifact in run["artifacts"]]
        self.assertEqual(len(names), 11)
        with self.server.as_user() as client:
            for artifact in run["artifacts"]:
                name = artifact["name"]
                quoted = "".join("%%%02X" % byte for byte in name.encode())
                download = client.get("/runs/%s/artifacts/%s" % (run["id"], quoted))
                self.assertEqual(download.status_code, 200, name)
                self.assertEqual(len(download.content), artifact["bytes"])
                if name != "page.html2":
                    self.assertEqual(download.content, ("content of " + name).encode())
                disposition = download.headers["content-disposition"]
                self.assertTrue(disposition.startswith("attachment"), disposition)
                self.assertNotRegex(disposition, r"[\r\n]|\.\./")
                self.assertEqual(disposition.count('"') % 2, 0)
                self.assertEqual(download.headers["x-content-type-options"], "nosniff")
                self.assertNotIn("html", download.headers["content-type"])
                self.assertIn("sandbox", download.headers["content-security-policy"])
            for name in ("..%2f..%2f..%2finterlock.db", "%2e%2e%2f", "nothing.txt", "plate.csv%00", "%2Fetc%2Fpasswd", "plate.csv%2f", "PLATE.CSV"):
                self.assertIn(client.get("/runs/%s/artifacts/%s" % (run["id"], name)).status_code, (400, 404, 405), name)
        with self.server.http() as client:
            self.assertEqual(client.get("/runs/%s/artifacts/plate.csv" % run["id"]).status_code, 401)


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

            before = sum(line.get("target") == "access" for line in server.log_lines())
            sent = []
            with server.as_user() as client:
                for number in range(40):
                    path, method = (("/health", "GET"), ("/tasks", "GET"), ("/nowhere", "GET"), ("/auth/me", "DELETE"), ("/execute/none", "POST"))[number % 5]
                    sent.append(client.request(method, path, headers={"X-Request-ID": "count-%d" % number}).headers["x-request-id"])
            server.stop()
            access = [line for line in server.log_lines() if line.get("target") == "access"]
            self.assertEqual(len(access) - before, 40)
            self.assertEqual([line["request_id"] for line in access[before:]], sent)
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
        for change in ("UPDATE audit SET details = replace(details, 'move', 'wipe') WHERE seq = 4", "DELETE FROM audit WHERE seq = 4",
                       "UPDATE audit SET actor = 'mallory' WHERE seq = 4", "UPDATE audit SET at = at + 1 WHERE seq = 4",
                       "UPDATE audit SET seq = 1000 WHERE seq = 4"):
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
