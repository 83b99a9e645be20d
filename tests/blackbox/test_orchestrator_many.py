"""Several orchestrators on one database: behind nginx while they are killed in turn, with clocks that differ, and a short chaos."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import httpx

import chaos_orchestrator
from orchestra import NAP, SCOPES, SYSTEM, Orchestrator, soon
from support import ADMIN_PASSWORD, ROOT, program, tool, wait_for


class Chaos(chaos_orchestrator.Chaos):
    """Some rounds for each check; the long run is made by hand."""


def database():
    """A fresh database on the PostgreSQL for tests; its URL."""
    url = os.environ.get("INTERLOCK_TEST_POSTGRES", "")
    if not url:
        raise AssertionError("INTERLOCK_TEST_POSTGRES must hold what `tools/postgres start DIR` prints")
    name = "orchestra_" + secrets.token_hex(8)
    subprocess.run([tool("psql"), url, "--quiet", "--command", 'CREATE DATABASE "%s"' % name], check=True, timeout=60, capture_output=True)
    base, _, options = url.partition("?")
    return base.rpartition("/")[0] + "/" + name + ("?" + options if options else "")


class Cluster(unittest.TestCase):
    """deploy/cluster/start: three servers behind nginx."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="interlock-cluster-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.port = 20000 + secrets.randbelow(10000)
        variables = {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": self.folder, "LANG": "C.UTF-8", "INTERLOCK": program(), "DATABASE_URL": database(),
                     "BOOTSTRAP_ADMIN_SECRET": ADMIN_PASSWORD, "RATE_LIMIT_ENABLED": "false", "WORKER_LEASE_SECONDS": "2"}
        self.log = open(os.path.join(self.folder, "start.log"), "wb")
        self.addCleanup(self.log.close)
        self.process = subprocess.Popen([os.path.join(ROOT, "deploy", "cluster", "start"), self.folder, str(self.port)], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, env=variables, start_new_session=True)
        self.addCleanup(self.end)
        self.url = "http://127.0.0.1:%d" % self.port
        wait_for(self.answers, "three servers behind nginx", 60, 0.2)
        with httpx.Client(base_url=self.url, trust_env=False, timeout=10) as client:
            answer = client.post("/agents/auth/token", json={"agent_id": SYSTEM, "agent_secret": ADMIN_PASSWORD})
        self.assertEqual(answer.status_code, 200, answer.text)
        self.token = answer.json()["access_token"]

    def answers(self):
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(self.url + "/health/ready", trust_env=False, timeout=5).json().get("workers")
        return False

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def ask(self, method, path, body=None, key=None):
        """Ask until the answer is no failure of a server."""
        headers = {"Authorization": "Bearer " + self.token}
        if key:
            headers["Idempotency-Key"] = key
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.request(method, self.url + path, json=body, headers=headers, trust_env=False, timeout=10)
                if answer.status_code < 500:
                    return answer
            time.sleep(0.05)
        raise AssertionError("nobody answers %s %s" % (method, path))

    def test_servers_are_killed_in_turn_and_nobody_notices(self):
        task = self.ask("POST", "/tasks", Orchestrator.body(pipeline=[dict(NAP, **{"with": {"seconds": 0.2}})]), "the-task").json()["id"]
        runs, over, failed = {}, threading.Event(), []

        def work():
            number = 0
            while not over.is_set():
                answer = self.ask("POST", "/tasks/%s/run_now" % task, {}, "run-%d" % number)
                if answer.status_code != 200:
                    failed.append(answer.text)
                    return
                runs[number] = answer.json()["details"]["run_id"]
                number += 1

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for turn in range(6):
                with open(os.path.join(self.folder, "%d.pid" % (turn % 3 + 1)), encoding="utf-8") as opened:
                    os.kill(int(opened.read()), signal.SIGKILL)
                time.sleep(1.5)
        finally:
            over.set()
            worker.join()

        self.assertEqual(failed, [])
        self.assertGreater(len(runs), 20)
        self.assertEqual(len(set(runs.values())), len(runs))
        done = lambda: self.ask("GET", "/runs?success=true&limit=1&task_id=" + task).json()["total"] == len(runs)
        wait_for(done, "every run, once", 60, 0.2)
        self.assertEqual(self.ask("GET", "/runs?limit=1&task_id=" + task).json()["total"], len(runs))


class Two(unittest.TestCase):
    """Two servers of one database."""

    @classmethod
    def setUpClass(cls):
        url = database()
        cls.servers = []
        for _ in range(2):
            server = Orchestrator(variables={"DATABASE_URL": url})
            cls.addClassCleanup(server.close)
            cls.servers.append(server.start())

    def test_what_one_makes_the_other_changes_and_sees(self):
        one, two = self.servers
        agent = one.new_agent("both", SCOPES)
        two.secrets.update(one.secrets)
        task = one.task(agent)
        wait_for(lambda: two.agent(agent) is not None, "the agent is known")
        self.assertEqual(two.ask("POST", "/tasks/%s/pause" % task, agent=agent).status_code, 200)
        self.assertEqual(one.ask("GET", "/tasks/" + task, agent=agent).json()["status"], "paused")
        self.assertEqual(one.ask("POST", "/tasks/%s/resume" % task, agent=agent).status_code, 200)
        self.assertEqual(two.over(two.now(task, agent), agent=agent)["state"], "succeeded")

    def test_due_times_are_served_once_by_either(self):
        tasks = [self.servers[0].task(schedule_kind="once", schedule_expr=soon(1.5)) for _ in range(30)]

        wait_for(lambda: all(self.servers[1].runs(task) for task in tasks[-3:]), "the last runs", 10)
        time.sleep(0.5)
        self.assertEqual([len(self.servers[0].runs(task)) for task in tasks], [1] * 30)

    def test_a_run_on_the_other_server_is_cancelled_at_once(self):
        one, two = self.servers
        task = one.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 2}}])
        runs = [one.now(task) for _ in range(4)]
        for run in runs:
            two.reaches(run, ("running", "leased"))
            self.assertEqual(two.ask("POST", "/runs/%s/cancel" % run).status_code, 202)
        self.assertEqual({one.over(run, 1.8)["state"] for run in runs}, {"cancelled"})

    def test_both_workers_are_seen(self):
        checks = {check["name"]: check["details"] for check in self.servers[0].ask("GET", "/health").json()["checks"]}
        self.assertEqual(checks["workers"]["workers"], 2)


class CommandLine(unittest.TestCase):
    """interlock task, event and approval."""

    @classmethod
    def setUpClass(cls):
        cls.server = Orchestrator()
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("olaf")

    def command(self, *arguments, stdin="", code=0):
        variables = dict(self.server.variables, INTERLOCK_URL=self.server.url, INTERLOCK_TOKEN=self.server.token("olaf"))
        done = subprocess.run([program(), *arguments], input=stdin, capture_output=True, text=True, timeout=60, env=variables, check=False,
                              cwd=self.server.folder)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout

    def test_a_task_is_made_run_and_looked_at(self):
        import json

        body = {"title": "By hand", "description": "d", "schedule_kind": "manual", "payload": {"pipeline": [NAP]}}
        task = json.loads(self.command("task", "create", "-", "--output", "json", stdin=json.dumps(body)))
        self.assertEqual(task["created_by"], "olaf")
        run = json.loads(self.command("task", "run", task["id"], "--wait", "--output", "json"))
        self.assertEqual(run["state"], "succeeded")
        self.assertIn("By hand", self.command("task", "list"))
        self.assertIn(run["id"], self.command("task", "runs", task["id"]))
        self.assertIn("paused", self.command("task", "pause", task["id"]))
        self.command("task", "run", task["id"], code=7)
        self.command("task", "cancel", task["id"])
        self.assertIn("T", self.command("task", "preview", "cron", "0 9 * * 1", "--zone", "Europe/Berlin", "--count", "3"))
        self.command("task", "preview", "cron", "nonsense", code=7)
        self.command("task", "show", "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d", code=3)
        self.command("task", "next", task["id"], code=6)

    def test_runs_of_tasks_are_runs(self):
        import json

        weekly = self.server.task(schedule_kind="cron", schedule_expr="0 9 * * 1")
        self.assertEqual(len(self.command("task", "next", weekly, "--count", "3", "-o", "name").split()), 3)
        times = self.command("task", "next", weekly, "--count", "3", "-o", "name").split()
        self.assertIn(times[1], self.command("task", "skip", weekly, "--reason", "holiday"))
        self.assertEqual(self.command("task", "next", weekly, "--count", "2", "-o", "name").split(), times[1:])
        self.command("task", "skip", self.server.task(), code=6)
        task = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 100}}])
        run = self.server.now(task)
        self.server.reaches(run, ("queued", "running"))
        self.assertEqual(self.command("runs", "list", "--task", task, "-o", "name").split(), [run])
        self.assertIn(run, self.command("runs", "list", "--limit", "250"))
        self.command("runs", "list", "--action", "mix", code=2)
        self.command("runs", "list", "--limit", "0", code=2)
        self.command("runs", "show", "run_nonsense", code=2)
        self.command("runs", "show", "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d", code=3)
        self.command("wait", run, "--timeout", "1s", code=124)
        self.command("cancel", run, "--reason", "enough")
        self.assertEqual(json.loads(self.command("wait", run, "-o", "json", code=11))["state"], "cancelled")
        self.assertIn("enough", self.command("runs", "show", run))
        failed = self.server.now(self.server.task(pipeline=[{"uses": "event.publish", "with": {"topic": {"$expr": "params.none"}}}], max_retries=0))
        self.command("wait", failed, code=10)
        self.assertIn("scheduler", self.command("status"))
        tools = self.command("tool", "list", "-o", "name").split()
        self.assertIn("orchestrator.sleep", tools)
        self.command("tool", "show", "orchestrator.sleep")
        self.command("tool", "show", "orchestrator.snooze", code=3)

    def test_lists_are_yaml_and_csv_too(self):
        import csv
        import io
        import json

        task = self.server.task(title='=cmd, "quoted"', schedule_kind="cron", schedule_expr="0 9 * * 1", payload={"pipeline": [NAP], "params": {"no": "yes", "n": -1}})
        said = json.loads(self.command("task", "show", task, "-o", "json"))

        listed = self.command("task", "list", "-o", "yaml", "--limit", "200")
        self.assertIn("\n  id: \"%s\"\n" % task, "\n" + listed.replace("- backoff", "  backoff"))
        shown = self.command("task", "show", task, "-o", "yaml")
        self.assertEqual(self.read_yaml(shown), said)
        rows = list(csv.DictReader(io.StringIO(self.command("task", "list", "-o", "csv", "--limit", "200"), newline="")))
        row = next(row for row in rows if row["id"] == task)
        self.assertEqual((list(row)[0], row["title"], row["priority"], row["dedupe_key"]), ("id", "'" + said["title"], "5", ""))
        self.assertEqual(json.loads(row["payload"]), said["payload"])
        refused = self.command("task", "show", "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d", "-o", "yaml", code=3)
        self.assertEqual(json.loads(refused)["code"], "task_not_found")
        self.assertEqual(self.command("task", "runs", task, "-o", "yaml"), "[]\n")

    @staticmethod
    def read_yaml(text):
        """What the part of YAML means that the command line writes, read by indents alone."""
        import json

        def read(lines, depth):
            if len(lines) == 1 and not lines[0].startswith("- ") and ": " not in lines[0].split('"')[0] and not lines[0].endswith(":"):
                return json.loads(lines[0])
            starts = [at for at, line in enumerate(lines) if not line.startswith(" ")] + [len(lines)]
            parts = [lines[one:two] for one, two in zip(starts, starts[1:])]
            if lines[0].startswith("- "):
                return [read([part[0][2:]] + [line[2:] for line in part[1:]], depth + 1) for part in parts]
            whole = {}
            for part in parts:
                name, _, rest = part[0].partition(":")
                name = json.loads(name) if name.startswith('"') else name
                whole[name] = json.loads(rest) if rest else read([line[2:] for line in part[1:]], depth + 1)
            return whole

        return read(text.splitlines(), 0)

    def test_events_and_approvals(self):
        import json

        self.command("event", "publish", "plate.read", '{"plate": "P1"}')
        self.assertIn("plate.read", self.command("event", "list"))
        self.command("event", "publish", "plate.read", "{", code=2)
        run = self.server.now(self.server.task(pipeline=[{"uses": "orchestrator.request_approval", "with": {"reason": "look"}}]))
        self.server.reaches(run, "waiting_for_approval")
        found = json.loads(self.command("approval", "list", "--output", "json"))
        self.command("approval", "approve", found[0]["id"], "--note", "seen")
        self.assertEqual(self.server.over(run)["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
