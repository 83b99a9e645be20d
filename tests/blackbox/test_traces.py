"""Spans arrive at a collector of ours: one trace from a task to the robot, and nothing that is private in it."""

import http.server
import json
import os
import threading
import unittest

from orchestra import SCOPES, Orchestrator
from support import Server, wait_for

SOURCE = """
    from interlock import Param, task

    @task
    def measure(well: str = "A1", password: str = Param("none", sensitive=True)) -> int:
        return len(well)
"""
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what is posted to /v1/traces."""

    daemon_threads = True

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.seen.append((self.path, dict((name.lower(), text) for name, text in self.headers.items()), body))
            self.send_response(200 if self.server.takes else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.seen, self.takes = [], True
        self.url = "http://127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def spans(self):
        """Every span so far, with the service that told it."""
        found = []
        for _, _, body in list(self.seen):
            for resource in json.loads(body)["resourceSpans"]:
                service = facts(resource["resource"])["service.name"]
                found += [dict(span, service=service, facts=facts(span)) for scope in resource["scopeSpans"] for span in scope["spans"]]
        return found

    def span(self, name, **more):
        """The one span of this name, once it is there."""
        def look():
            return [span for span in self.spans() if span["name"] == name and all(span.get(key) == value for key, value in more.items())]
        found = wait_for(look, "the span %s with %s" % (name, more), 15)
        assert len(found) == 1, found
        return found[0]


def facts(holder):
    """Attributes as a dictionary."""
    return {one["key"]: next(iter(one["value"].values())) for one in holder["attributes"]}


class Traces(unittest.TestCase):
    def setUp(self):
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=Zq-collector-key"}
        self.device = Server(SOURCE, variables={**variables, "OTEL_SERVICE_NAME": "robot"})
        self.addCleanup(self.device.close)
        self.device.start()
        self.variables = variables

    def test_one_trace_goes_from_a_task_to_the_robot(self):
        key = self.device.post("/auth/keys", {"name": "o", "scopes": ["actions:read", "devices:execute", "runs:read", "runs:cancel"], "expires_in_days": 1})
        folder = self.device.folder
        with open(os.path.join(folder, "token"), "w", encoding="utf-8") as opened:
            opened.write(key.json()["key"])
        with open(os.path.join(folder, "tools.toml"), "w", encoding="utf-8") as opened:
            opened.write('[[device]]\nname = "lab"\nurl = "%s"\ntoken_file = "%s/token"\n' % (self.device.url, folder))
        with Orchestrator(variables={**self.variables, "TOOLS_FILE": os.path.join(folder, "tools.toml"), "OTEL_SERVICE_NAME": "tasks"}) as server:
            agent = server.post("/agents", {"name": "mixer", "scopes": [*SCOPES, "devices:execute"]}).json()["id"]
            server.secrets[agent] = server.post("/agents/%s/credentials" % agent).json()["agent_secret"]
            wait_for(lambda: "device.lab.measure" in server.ask("GET", "/tools", agent=agent).json(), "the tools of the device")
            step = {"uses": "device.lab.measure", "with": {"well": "B12", "password": "Zq-sensitive-in-a-trace"}}
            run = server.over(server.now(server.task(agent, [step]), agent), agent=agent)
            self.assertEqual(run["state"], "succeeded", run)
            trace = run["id"].replace("-", "")

            task = self.collector.span("task run", traceId=trace)
            self.assertEqual((task["service"], task["facts"]["interlock.run_id"], task.get("parentSpanId")), ("tasks", run["id"], None))
            step = self.collector.span("device.lab.measure", traceId=trace, parentSpanId=task["spanId"])
            asked = self.collector.span("POST /execute/{task}", traceId=trace, parentSpanId=step["spanId"])
            self.assertEqual((asked["service"], asked["kind"], asked["facts"]["http.response.status_code"]), ("robot", 2, "202"))
            acted = self.collector.span("run measure", traceId=trace, parentSpanId=asked["spanId"])
            self.assertEqual((acted["facts"]["interlock.state"], acted["facts"]["interlock.request_id"]), ("succeeded", asked["facts"]["interlock.request_id"]))
            for span in (task, step, asked, acted):
                self.assertLessEqual(int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]))
        self.assertTrue(all(path == "/v1/traces" and headers["x-api-key"] == "Zq-collector-key" and headers["content-type"] == "application/json"
                            for path, headers, _ in self.collector.seen))
        everything = b"".join(body for _, _, body in self.collector.seen)
        for private in (b"Zq-sensitive", b"B12", b"127.0.0.1", b"httpx", agent.encode(), b"Bearer"):
            self.assertNotIn(private, everything)

    def test_a_client_s_trace_goes_on_and_the_request_id_is_everywhere(self):
        with self.device.as_user() as client:
            headers = {"traceparent": "00-%s-%s-01" % (TRACE, PARENT), "X-Request-ID": "trace-1"}
            answer = client.post("/execute/measure", json={}, headers=headers)
            self.assertEqual((answer.status_code, answer.headers["x-request-id"]), (200, "trace-1"))
            run = answer.json()["run_id"]
            client.get("/device", headers={"traceparent": "00-%s-%s-01" % ("0" * 32, PARENT), "X-Request-ID": "trace-2"})
            client.get("/runs/nothing-of-the-kind", headers={"X-Request-ID": "trace-3"})
        asked = self.collector.span("POST /execute/{task}", traceId=TRACE, parentSpanId=PARENT)
        acted = self.collector.span("run measure", traceId=TRACE, parentSpanId=asked["spanId"])
        self.assertEqual((asked["facts"]["interlock.request_id"], acted["facts"]["interlock.run_id"]), ("trace-1", run))
        other = self.collector.span("GET /device")
        self.assertNotEqual(other["traceId"], "0" * 32)
        self.assertNotIn("parentSpanId", other)
        self.collector.span("GET /runs/{run_id}")
        # The same id in the run, the audit trail and the log.
        self.assertEqual(self.device.run_of(run)["request_id"], "trace-1")
        self.assertTrue({"device.executed"} <= {row["action"] for row in self.device.audit() if row["request_id"] == "trace-1"})
        wait_for(lambda: {"trace-1", "trace-2", "trace-3"} <= {line.get("request_id") for line in self.device.log_lines()}, "the access lines")

    def test_a_collector_that_is_away_is_missed_by_nobody_but_told(self):
        self.collector.takes = False
        for _ in range(20):
            self.assertEqual(self.device.get("/device").status_code, 200)

        def lost():
            lines = self.device.get("/metrics").text.splitlines()
            return float(next(line for line in lines if line.startswith("interlock_spans_dropped_total")).split()[1])

        wait_for(lambda: lost() > 0, "spans that were lost are counted", 15, 0.3)
        said = [line for line in self.device.log_lines() if "collector of traces" in line.get("message", "")]
        self.assertEqual(len(said), 1, said)

    def test_an_address_that_cannot_be_stops_the_start(self):
        for address in ("http://otel.lab.example:4318", "otel"):
            with self.subTest(address):
                other = Server(SOURCE, variables={"OTEL_EXPORTER_OTLP_ENDPOINT": address})
                self.addCleanup(other.close)
                code, said = other.refused()
                self.assertNotEqual(code, 0)
                self.assertIn("telemetry.otlp_endpoint", said)


if __name__ == "__main__":
    unittest.main()
