"""Metrics, alerts and dashboards against a real Prometheus that scrapes real servers at work."""

import contextlib
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

import httpx
import yaml

from orchestra import NAP, Orchestrator
from support import ROOT, Server, end_process, tool, wait_for

RULES = os.path.join(ROOT, "deploy", "prometheus", "rules.yml")
TESTS = os.path.join(ROOT, "deploy", "prometheus", "rules_test.yml")
DASHBOARDS = sorted(glob.glob(os.path.join(ROOT, "deploy", "grafana", "dashboards", "*.json")))
SOURCE = """
    from interlock import task
    @task
    def mix(r: int = 0) -> int:
        return r
    @task
    def fail() -> int:
        raise ValueError("no")
"""
LABELS = {
    "orchestrator_security_events_total": {"event_type", "severity"},
    "orchestrator_authentication_attempts_total": {"method", "result"},
    "orchestrator_jwt_tokens_issued_total": {"agent_id", "token_type"},
    "orchestrator_jwt_tokens_revoked_total": {"reason"},
    "orchestrator_rate_limit_violations_total": {"endpoint", "limit"},
    "orchestrator_blocked_requests_total": {"reason"},
    "orchestrator_http_requests_total": {"method", "endpoint", "status_code"},
    "orchestrator_http_request_duration_seconds": {"method", "endpoint"},
    "orchestrator_tasks_created_total": {"schedule_kind", "agent_id"},
    "orchestrator_runs_total": {"status"},
    "orchestrator_task_duration_seconds": {"success"},
    "orchestrator_pipeline_executions_total": {"status"},
    "orchestrator_step_duration_seconds": {"tool_addr"},
    "orchestrator_step_success_total": {"tool_addr"},
    "orchestrator_step_failure_total": {"tool_addr", "error_type"},
    "orchestrator_external_tool_calls_total": {"tool_address", "status_code"},
    "orchestrator_external_tool_duration_seconds": {"tool_address"},
    "orchestrator_scheduler_lag_seconds": set(),
    "orchestrator_scheduler_ticks_total": {"result"},
    "orchestrator_scheduler_jobs_created_total": {"schedule_kind"},
    "orchestrator_due_work_queue_depth": {"priority"},
    "orchestrator_active_workers": {"state"},
    "orchestrator_worker_heartbeat_total": set(),
    "orchestrator_lease_duration_seconds": set(),
    "device_executions_total": {"task", "status"},
    "device_execution_duration_seconds": {"task"},
}
"""The contract: names and labels. ``le`` of histograms is not one of them."""


def rules():
    """Every alert: name to rule."""
    with open(RULES, encoding="utf-8") as opened:
        return {rule["alert"]: rule for group in yaml.safe_load(opened)["groups"] for rule in group["rules"]}


def expressions(path):
    """Every expression of a dashboard with the title of its panel, as Grafana would send it."""
    with open(path, encoding="utf-8") as opened:
        board = json.load(opened)
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


def samples(text):
    """Samples of an exposition: ``(family, labels, number)``. The parts of a histogram count as its family."""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, number = line.rpartition(" ")
            name, _, labels = series.partition("{")
            yield re.sub("_(bucket|sum|count)$", "", name), dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(number)


class Prometheus:
    """A Prometheus that scrapes these addresses each second."""

    def __init__(self, targets):
        self.folder = tempfile.mkdtemp(prefix="interlock-prometheus-")
        with open(os.path.join(ROOT, "deploy", "prometheus", "prometheus.yml"), encoding="utf-8") as opened:
            config = yaml.safe_load(opened)
        # The file that ships, with other times and places.
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [RULES]
        job = config["scrape_configs"][0]
        del job["authorization"]
        job["static_configs"] = [{"targets": targets}]
        with open(os.path.join(self.folder, "prometheus.yml"), "w", encoding="utf-8") as opened:
            yaml.safe_dump(config, opened)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % free.getsockname()[1]
        self.url = "http://" + address
        self.log = open(os.path.join(self.folder, "log"), "wb")
        self.process = subprocess.Popen(
            [tool("prometheus"), "--config.file", os.path.join(self.folder, "prometheus.yml"), "--storage.tsdb.path",
             os.path.join(self.folder, "data"), "--web.listen-address", address], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def close(self):
        end_process(self.process)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def query(self, expression):
        """The result of an expression now."""
        answer = httpx.get(self.url + "/api/v1/query", params={"query": expression}, trust_env=False, timeout=20)
        assert answer.status_code == 200, (expression, answer.text)
        return answer.json()["data"]["result"]

    def has(self, expression):
        """Whether there is a result, also before it listens and answers."""
        with contextlib.suppress(httpx.TransportError, AssertionError):
            return self.query(expression)
        return []


class Files(unittest.TestCase):
    """What ships, with the tool that will read it."""

    def test_rules_and_their_tests_pass(self):
        for arguments in (["check", "rules", RULES], ["test", "rules", TESTS]):
            done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_test_that_fires_and_one_that_does_not_and_a_runbook(self):
        with open(TESTS, encoding="utf-8") as opened:
            tested = [(case["alertname"], bool(case["exp_alerts"])) for test in yaml.safe_load(opened)["tests"] for case in test["alert_rule_test"]]
        self.assertEqual(sorted(tested), sorted((name, fires) for name in rules() for fires in (False, True)))
        for name, rule in rules().items():
            self.assertIn(rule["labels"]["severity"], ("info", "warning", "critical"), name)
            self.assertTrue(rule["annotations"]["summary"], name)
            self.assertTrue(os.path.exists(os.path.join(ROOT, rule["annotations"]["runbook"])), rule["annotations"])

    def test_the_two_alerts_of_the_source_document_are_there_word_for_word(self):
        self.assertEqual(rules()["HighAuthenticationFailures"]["expr"], 'rate(orchestrator_authentication_attempts_total{result="failed"}[5m]) > 10')
        self.assertEqual(rules()["SuspiciousActivity"]["expr"], 'rate(orchestrator_security_events_total{severity="high"}[1m]) > 1')


class Contract(unittest.TestCase):
    """The series of the contract, from the start, with their labels and no others."""

    def check(self, text, names):
        done = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False)
        self.assertIn(done.returncode, (0, 3), done.stdout + done.stderr)
        self.assertNotIn("error while linting", done.stderr)
        found = {}
        for name, labels, _ in samples(text):
            found.setdefault(name, set()).add(frozenset(labels) - {"le"})
        for name in names:
            self.assertEqual(found.get(name), {frozenset(LABELS[name])}, name)

    def test_everything_is_there_from_the_start_and_stays_bounded(self):
        here = [name for name in LABELS if not name.startswith("device_")]
        with Orchestrator() as server, server.http() as http:
            http.get("/health")
            self.check(http.get("/metrics").text, here)
            before = len(list(samples(http.get("/metrics").text)))
            for number in range(300):
                http.get("/nowhere/%d" % number, headers={"User-Agent": "agent-%d" % number})
                if number % 10 == 0:
                    http.post("/agents/auth/token", json={"agent_id": "018f6b1e-2c3d-7a4b-8c9d-%012d" % number, "agent_secret": "x" * 40})
            text = http.get("/metrics").text
            self.check(text, here)
            self.assertNotIn("nowhere", text)
            self.assertNotIn("127.0.0.1", text)
            # Some routes and results were new; none of the 300 names is a label.
            self.assertLess(len(list(samples(text))) - before, 120)
        with Server(SOURCE) as server, server.http() as http:
            names = [name for name in LABELS if name.startswith("device_")]
            self.check(http.get("/metrics").text, names)
            zero = [number for name, labels, number in samples(http.get("/metrics").text) if name == "device_executions_total"]
            self.assertEqual(set(zero), {0.0})


class Watching(unittest.TestCase):
    """Prometheus, two servers at work, and somebody who guesses."""

    def test_every_expression_finds_its_series_and_an_attack_is_noticed(self):
        with Orchestrator() as server, Server(SOURCE, options=["--tls", "internal"]) as device:
            # Scraped without TLS: its listener for probes.
            device.stop()
            device.variables["INTERNAL_LISTEN"] = "127.0.0.1:0"
            device.tokens.clear()
            device.start()
            inside = re.search(r"http://(127\.0\.0\.1:\d+)/metrics", device.output()).group(1)
            prometheus = Prometheus(["%s:%d" % server.address, inside])
            self.addCleanup(prometheus.close)
            wait_for(lambda: len(prometheus.has("up == 1")) == 2, "two servers that are scraped", 30, 0.2)
            task = server.task(pipeline=[NAP])
            wrong = server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": "${params.x}"}}])
            end = time.monotonic() + 6
            while time.monotonic() < end:
                server.now(task)
                server.now(wrong)
                device.run("mix", {"r": 1})
                device.run("fail")
            with server.http() as http:
                for number in range(14):
                    answer = http.post("/agents/auth/token", json={"agent_id": "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d", "agent_secret": "x" * 40})
                    self.assertIn(answer.status_code, (401, 429), answer.text)

            for alert in ("AuthenticationFailures", "BackupTooOld"):
                firing = 'ALERTS{alertname="%s"}' % alert
                wait_for(lambda expression=firing: prometheus.query(expression), "the alert " + alert, 30, 0.3)
            firing = prometheus.query('ALERTS{alertname="AuthenticationFailures",alertstate="firing"}')
            self.assertEqual([found["metric"]["instance"] for found in firing], ["%s:%d" % server.address])
            self.assertEqual(prometheus.query('ALERTS{alertname="RequestsBlocked"}'), [])

            empty = []
            for path in DASHBOARDS:
                for title, expression in expressions(path):
                    if not prometheus.query(expression):
                        empty.append((os.path.basename(path), title, expression))
            for name, rule in rules().items():
                for selector in re.findall(r"[a-z_]+(?:\{[^}]*\})?(?=\[|\s|\)|$)", rule["expr"]):
                    metric = selector.partition("{")[0]
                    if metric.startswith(("orchestrator_", "audit_", "device_", "interlock_", "up")) and not prometheus.query(re.sub(r'status_code=~"5.."', 'status_code=~"..."', selector)):
                        empty.append((name, selector))
            self.assertEqual(empty, [])


if __name__ == "__main__":
    unittest.main()
