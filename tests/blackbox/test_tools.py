"""Tools that are real: HTTP services, devices, MCP servers, as pipelines use them."""

import contextlib
import http.server
import json
import os
import socket
import sys
import textwrap
import threading
import unittest

from orchestra import NAP, SCOPES, SYSTEM, Orchestrator, soon
from support import Case, Server, wait_for

MIXER = """
    import json, time
    from interlock import task, ctx

    DONE = "%s"

    @task(effects="doses")
    def mix_color(red: float, blue: float = 0.0, seconds: float = 0.0) -> dict:
        '''Mixes two colours.'''
        with open(DONE, "a") as file:
            file.write(json.dumps([red, blue]) + "\\n")
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            ctx.checkpoint()
            time.sleep(0.02)
        return {"colour": [red, blue]}

    @task(effects="reads", idempotent=True)
    def ph() -> float:
        '''Reads the pH.'''
        return 7.25
"""

SEARCH = """
    import json, sys

    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
        elif method == "tools/list":
            result = {"tools": [{"name": "find", "description": "Finds papers", "inputSchema": {"type": "object"}}]}
        elif method == "tools/call":
            result = {"content": [{"type": "text", "text": "found " + message["params"]["arguments"]["words"]}]}
        else:
            continue
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


class Service(http.server.ThreadingHTTPServer):
    """A service of the laboratory: the weather, a place for messages, and bad manners."""

    daemon_threads = True

    def handle_error(self, *_):
        """Whoever does not want an answer that is too large hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status, body, **headers):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.server.seen.append(("GET", self.path, None, dict(self.headers)))
            if self.path.startswith("/weather/"):
                self.reply(200, {"city": self.path.rsplit("/", 1)[1], "temp": 31.5, "sky": "clear"})
            elif self.path == "/inner":
                self.reply(302, {}, Location="http://169.254.169.254/latest/meta-data/")
            elif self.path == "/large":
                self.reply(200, "x" * 5_000_000)
            elif self.path == "/flaky":
                ready = sum(seen[1] == "/flaky" for seen in self.server.seen) > 2
                self.reply(200 if ready else 503, {"tries": len(self.server.seen)})
            else:
                self.reply(404, {})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.seen.append(("POST", self.path, json.loads(body), dict(self.headers)))
            if self.path == "/dead":
                # It has taken the request; nobody will hear of it.
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.reply(201, {"number": len(self.server.seen)})

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.seen = []
        self.url = "http://127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class Tools(Case):
    @classmethod
    def setUpClass(cls):
        cls.service = Service()
        cls.addClassCleanup(cls.service.close)
        cls.device = Server()
        cls.addClassCleanup(cls.device.close)
        cls.mixed = os.path.join(cls.device.folder, "mixed")
        cls.device.write(MIXER % cls.mixed)
        cls.device.start()
        cls.device.add_users("ada")
        cls.server = Orchestrator(variables={"HTTP_TOOL_HOSTS": cls.service.url + ",example.org", "HTTP_TOOL_NETWORKS": "127.0.0.1",
                                             "TOOL_RATES": "mcp.papers.*=6000"})
        cls.addClassCleanup(cls.server.close)
        folder = cls.server.folder
        with open(os.path.join(folder, "token"), "w", encoding="utf-8") as file:
            file.write(cls.device.token("ada"))
        with open(os.path.join(folder, "search.py"), "w", encoding="utf-8") as file:
            file.write(textwrap.dedent(SEARCH))
        with open(os.path.join(folder, "tools.toml"), "w", encoding="utf-8") as file:
            file.write(textwrap.dedent("""
                [[device]]
                name = "ot2"
                url = "%s"
                token_file = "%s/token"

                [[mcp]]
                name = "papers"
                command = ["%s", "%s/search.py"]
                read_only = ["find"]
            """ % (cls.device.url, folder, sys.executable, folder)))
        cls.server.variables["TOOLS_FILE"] = os.path.join(folder, "tools.toml")
        cls.server.start()
        # Only a person who may execute can let an agent execute.
        made = cls.server.post("/agents", {"name": "chemist", "scopes": SCOPES + ["devices:execute"]})
        assert made.status_code == 201, made.text
        cls.agent = made.json()["id"]
        cls.server.secrets[cls.agent] = cls.server.post("/agents/%s/credentials" % cls.agent).json()["agent_secret"]
        wait_for(lambda: {"device.ot2.ph", "mcp.papers.find"} <= set(cls.tools()), "the lists of tools")

    @classmethod
    def tools(cls, agent=None):
        return cls.server.ask("GET", "/tools", agent=agent or cls.agent).json()

    def carried_out(self, pipeline, agent=None, **members):
        return self.server.carried_out(pipeline, agent=agent or self.agent, **members)

    def doses(self):
        with contextlib.suppress(FileNotFoundError), open(self.mixed, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
        return []

    def refused(self, step, agent=None):
        answer = self.server.ask("POST", "/tasks", self.server.body(agent or self.agent, [step]), agent or self.agent)
        self.assertProblem(answer, 422, "invalid_request")
        return answer.json()["errors"][0]

    def test_the_morning_briefing(self):
        """Asks a service, decides, sends a message, and follows up with an event."""
        url = self.service.url
        briefing = [
            {"id": "weather", "uses": "http.request", "with": {"url": url + "/weather/${params.city}"}, "save_as": "weather"},
            {"uses": "mcp.papers.find", "with": {"words": "heat ${steps.weather.body.temp}"}, "save_as": "papers"},
            {"uses": "http.request", "if": "steps.weather.body.temp > params.limit", "save_as": "sent",
             "with": {"url": url + "/messages", "method": "POST",
                      "json": {"text": "${steps.weather.body.temp} in ${steps.weather.body.city}, until ${now+24h}",
                               "exact": {"$expr": "steps.weather.body.temp"}, "papers": "${steps.papers.text}"}}},
            {"uses": "http.request", "if": "steps.weather.body.temp < `0`", "with": {"url": url + "/never"}},
            {"uses": "event.publish", "with": {"topic": "briefed", "payload": {"message": {"$expr": "steps.sent.body.number"}}}},
        ]
        follow_up = [{"uses": "http.request", "with": {"url": url + "/follow-up", "method": "POST", "json": {"$expr": "event.payload"}}}]
        follower = self.server.task(self.agent, follow_up, schedule_kind="event", schedule_expr="briefed")
        task = self.server.body(self.agent, briefing)
        task["payload"]["params"] = {"city": "Bern", "limit": 30}
        made = self.server.ask("POST", "/tasks", task, self.agent)
        self.assertEqual(made.status_code, 201, made.text)

        run = self.server.over(self.server.now(made.json()["id"], self.agent), agent=self.agent)

        self.assertEqual(run["state"], "succeeded", run)
        self.assertEqual(run["output"]["_execution_summary"]["skipped_steps"], 1)
        message = next(seen for seen in self.service.seen if seen[1] == "/messages")
        self.assertRegex(message[2]["text"], r"^31\.5 in Bern, until \d{4}-\d\d-\d\dT[\d:.]+Z$")
        self.assertEqual((message[2]["exact"], message[2]["papers"]), (31.5, "found heat 31.5"))
        self.assertRegex(message[3]["idempotency-key"], r"^[0-9a-f-]{36}-2$")
        wait_for(lambda: [run["state"] for run in self.server.runs(follower, self.agent)] == ["succeeded"], "the follow-up")
        followed = next(seen for seen in self.service.seen if seen[1] == "/follow-up")
        self.assertEqual(followed[2], {"message": run["output"]["steps"]["sent"]["body"]["number"]})

    def test_a_device_mixes_on_a_schedule_once_a_person_has_approved(self):
        self.server.add_users("olaf")
        before = len(self.doses())
        pipeline = [
            {"uses": "device.ot2.ph", "save_as": "ph"},
            {"uses": "orchestrator.request_approval", "with": {"reason": "Mix at pH ${steps.ph.result}?"}, "save_as": "ok"},
            {"uses": "device.ot2.mix_color", "with": {"red": {"$expr": "steps.ph.result"}, "blue": 2}, "save_as": "mixed"},
        ]
        task = self.server.task(self.agent, pipeline, schedule_kind="once", schedule_expr=soon(1))
        run = wait_for(lambda: next(iter(self.server.runs(task, self.agent)), None), "the due time")["id"]
        self.server.reaches(run, "waiting_for_approval", agent=self.agent)
        asked = [row for row in self.server.get("/approvals", "olaf").json()["items"] if row["run_id"] == run][0]
        self.assertEqual(asked["reason"], "Mix at pH 7.25?")
        self.assertEqual(asked["parameters"]["next_steps"], [{"id": None, "uses": "device.ot2.mix_color", "with": {"red": 7.25, "blue": 2}}])
        self.assertEqual(len(self.doses()), before)

        answer = self.server.post("/approvals/%s/decide" % asked["id"], {"decision": "approve", "parameters_sha256": asked["parameters_sha256"]}, "olaf")

        self.assertEqual(answer.status_code, 200, answer.text)
        over = self.server.over(run, agent=self.agent)
        self.assertEqual((over["state"], over["output"]["steps"]["mixed"]["result"]), ("succeeded", {"colour": [7.25, 2]}), over)
        self.assertEqual(self.doses()[before:], [[7.25, 2]])
        device_run = self.device.run_of(over["output"]["steps"]["mixed"]["run_id"])
        self.assertEqual((device_run["state"], device_run["executed_by"]), ("succeeded", "ada"))

    def test_a_server_that_is_killed_while_a_device_moves_learns_how_it_ended(self):
        before = len(self.doses())
        run = self.server.now(self.server.task(self.agent, [{"uses": "device.ot2.mix_color", "with": {"red": 1, "seconds": 2}, "save_as": "m"}]), self.agent)
        wait_for(lambda: len(self.doses()) == before + 1, "the device moves")
        self.server.kill()
        self.server.start()

        over = self.server.over(run, 30, agent=self.agent)

        # The attempt was taken up again by its key, or by a later attempt of the same run.
        last = self.server.runs(over["task_id"], self.agent)[-1]
        last = self.server.over(last["id"], 30, agent=self.agent)
        self.assertEqual(last["state"], "succeeded", last)
        self.assertEqual(last["output"]["steps"]["m"]["result"], {"colour": [1, 0]})
        self.assertEqual(len(self.doses()), before + 1, "it was done once")

    def test_a_cancelled_run_stops_the_device(self):
        run = self.server.now(self.server.task(self.agent, [{"uses": "device.ot2.mix_color", "with": {"red": 9, "seconds": 60}, "timeout_seconds": 100}]), self.agent)
        wait_for(lambda: [9, 0] in self.doses(), "the device moves")

        answer = self.server.ask("POST", "/runs/%s/cancel" % run, {}, self.agent)

        self.assertIn(answer.status_code, (200, 202), answer.text)
        self.assertEqual(self.server.over(run, agent=self.agent)["state"], "cancelled")
        latest = self.device.get("/runs").json()["items"][0]
        self.assertEqual(self.device.ended(latest["id"])["state"], "cancelled")

    def test_what_may_have_been_sent_is_uncertain_and_not_sent_again(self):
        run = self.carried_out([{"uses": "http.request", "with": {"url": self.service.url + "/dead", "method": "POST", "json": {}}}])

        self.assertEqual(run["state"], "uncertain", run)
        self.assertIsNone(run["success"])
        self.assertEqual(sum(seen[1] == "/dead" for seen in self.service.seen), 1)

    def test_what_may_be_repeated_is_tried_again(self):
        run = self.carried_out([{"uses": "http.request", "with": {"url": self.service.url + "/flaky"}, "max_retries": 3, "backoff_strategy": "fixed"}])

        self.assertEqual(run["state"], "succeeded", run)
        self.assertEqual(sum(seen[1] == "/flaky" for seen in self.service.seen), 3)

    def test_inner_addresses_and_unlisted_hosts_are_refused(self):
        for url, part in [("https://evil.example/", "HTTP_TOOL_HOSTS"), ("http://169.254.169.254/", "HTTP_TOOL_HOSTS"),
                          ("http://127.0.0.1:1/", "HTTP_TOOL_HOSTS"), ("file:///etc/passwd", "https://"), ("http://[::1]/", "HTTP_TOOL_HOSTS")]:
            with self.subTest(url=url):
                error = self.refused({"uses": "http.request", "with": {"url": url}})
                self.assertEqual(error["loc"], ["body", "payload", "pipeline", 0, "with", "url"])
                self.assertIn(part, error["msg"])
        for path in ("/inner", "/large"):
            run = self.carried_out([{"uses": "http.request", "with": {"url": self.service.url + path}}], max_retries=0)
            self.assertEqual(run["state"], "failed", path)
            self.assertNotIn("169.254.169.254/", run["error"])
        late = self.server.body(self.agent, [{"uses": "http.request", "with": {"url": "${params.url}"}}])
        late["payload"]["params"] = {"url": "http://169.254.169.254/"}
        made = self.server.ask("POST", "/tasks", late, self.agent)
        run = self.server.over(self.server.now(made.json()["id"], self.agent), agent=self.agent)
        self.assertEqual((run["state"], run["attempt"]), ("failed", 1), run)

    def test_pipelines_and_templates_that_explode_harm_nobody(self):
        body = self.server.body(self.agent, [NAP] * 10_000)
        answer = self.server.ask("POST", "/tasks", body, self.agent)
        self.assertProblem(answer, 422)
        self.assertIn("this one has 10000", answer.text)
        doubling = "|".join(["[@,@][]"] * 100)
        for text in ("(" * 1000, "!" * 1000 + "a", "a." * 5000 + "a"):
            self.assertIn("expression", self.refused({"uses": "http.request", "with": {"url": "${%s}" % text}})["msg"])
        for value in ("${`[1]`|%s}" % doubling, {"$expr": "`[1]`|" + doubling}):
            step = {"uses": "http.request", "with": {"url": self.service.url + "/weather/x", "query": {"q": value}}}
            run = self.carried_out([step], max_retries=0)
            self.assertEqual(run["state"], "failed", run)
            self.assertIn("than it may", run["error"])
        answer = self.server.ask("POST", "/tasks", self.server.body(self.agent, schedule_kind="condition", schedule_expr="event|" + doubling), self.agent)
        self.assertEqual(answer.status_code, 201, answer.text)
        self.assertEqual(self.server.publish("anything", agent=self.agent)["triggered_tasks"], [])

    def test_tools_are_for_those_who_may_use_them(self):
        self.assertLessEqual({"http.request", "device.ot2.ph", "device.ot2.mix_color", "mcp.papers.find", "event.publish", "orchestrator.sleep",
                              "orchestrator.request_approval"}, set(self.tools()))
        self.assertEqual(self.tools()["device.ot2.mix_color"], {"description": "Mixes two colours. (on the device ot2)"})
        # An administrator who may not execute does not execute by way of a task.
        self.assertNotIn("device.ot2.mix_color", self.tools(SYSTEM))
        error = self.refused({"uses": "device.ot2.mix_color", "with": {"red": 1}}, SYSTEM)
        self.assertEqual(error["loc"][-1], "uses")
        narrow = self.server.new_agent("narrow", ["tasks:create", "tasks:update", "tasks:read", "runs:read", "tool:mcp.*"])
        self.assertEqual({name for name in self.tools(narrow) if not name.startswith("orchestrator.")}, {"mcp.papers.find"})
        self.refused({"uses": "http.request", "with": {"url": self.service.url}}, narrow)

    def test_bad_input_of_a_device_is_told_when_the_task_is_made(self):
        error = self.refused({"uses": "device.ot2.mix_color", "with": {"crimson": 1}})
        self.assertEqual(error["loc"][-1], "crimson")
        self.assertEqual(self.refused({"uses": "device.ot2.mix_color", "with": {"red": 1}, "max_retries": 2})["loc"][-1], "max_retries")
        self.refused({"uses": "device.ot3.ph"})


class Simulated(unittest.TestCase):
    def test_nothing_is_done_and_every_result_says_so(self):
        with contextlib.closing(Service()) as service:
            variables = {"TOOL_MODE": "simulate", "HTTP_TOOL_HOSTS": service.url, "HTTP_TOOL_NETWORKS": "127.0.0.1"}
            with Orchestrator(variables=variables) as server:
                step = {"uses": "http.request", "with": {"url": service.url + "/weather/Bern"}, "save_as": "w"}
                run = server.carried_out([step, NAP])

                self.assertEqual(run["state"], "succeeded", run)
                result = run["output"]["steps"]["w"]
                self.assertEqual((result["status"], result["tool_address"], result["input_args"]), ("simulated", "http.request", step["with"]))
                self.assertEqual(set(result), {"status", "tool_address", "input_args", "timestamp", "message"})
                self.assertEqual(service.seen, [])


class Settings(unittest.TestCase):
    def test_settings_that_cannot_be_are_named(self):
        for variables, part in [({"HTTP_TOOL_HOSTS": "http://*"}, "HTTP_TOOL_HOSTS"), ({"TOOL_RATES": "http.request=often"}, "TOOL_RATES"),
                                ({"TOOLS_FILE": "/nonexistent.toml"}, "/nonexistent.toml"), ({"HTTP_TOOL_NETWORKS": "10.0.0.0/40"}, "10.0.0.0/40")]:
            with self.subTest(variables=variables):
                server = Orchestrator(variables=variables)
                self.addCleanup(server.close)
                code, said = server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn(part, said)


if __name__ == "__main__":
    unittest.main()
