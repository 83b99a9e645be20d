"""Runs as callers see them: events, cancelling, files."""

import http.client
import json
import threading
import time
import unittest

from lab import Lab
from support import Case, Server, wait_for


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
        for path in ("/runs/run_0", "/runs/run_" + "0" * 32, "/runs/x/events", "/runs/run_%s/artifacts/a" % ("0" * 32)):
            self.assertEqual(self.server.get(path).status_code, 404, path)
        self.assertProblem(self.server.get("/runs/..%2f.."), 400, "request_blocked")

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


class Artifacts(Case):
    """Files that actions leave."""

    # Names are hostile on purpose: what stands behind the screening must hold by itself.
    VARIABLES = {"BLOCK_SUSPICIOUS_PATTERNS": "off"}
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


if __name__ == "__main__":
    unittest.main()
