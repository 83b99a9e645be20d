"""Servers, workers and the database are killed and frozen at random; no run may be lost, doubled or repeated, no due time missed.

Three servers share one PostgreSQL of this test's own, each through a TCP proxy of its own. Each round something breaks: a server dies by
SIGKILL, is frozen for longer than others wait and then goes on, drains; the database dies by SIGKILL; the link of a server to the database
is cut, stalls, or lets questions through and no answers. Servers that come again do so with a clock that is wrong by up to 14 s. Meanwhile
due times come each second, runs are asked for under idempotency keys until each is acknowledged, and events are published. Every run publishes an
event of its own between two steps; at the end the tables are compared with what was acknowledged.

``ROUNDS`` and ``SEED`` set the length and the dice: ``ROUNDS=300 SEED=7 python chaos_orchestrator.py``.
"""

import asyncio
import contextlib
import datetime
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

import httpx

from orchestra import NAP, SCOPES, Orchestrator
from support import ROOT, is_running, tool, wait_for
from test_evidence import clock

SERVERS = 3
# Seconds by which a clock is wrong at most: tokens of one server must be good at the next, which allows 30.
SKEW = int(os.environ.get("SKEW", "14"))
DUE_TASKS = 3


class Database:
    """A PostgreSQL that may be killed."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="interlock-chaos-pg-")
        os.chmod(self.folder, 0o755)
        self.url = self.start()

    def start(self):
        done = subprocess.run([os.path.join(ROOT, "tools", "postgres"), "start", self.folder], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def kill(self):
        """SIGKILL to the postmaster and, as when a machine dies, to everything it has started. It can come again as it was."""
        with open(os.path.join(self.folder, "data", "postmaster.pid"), encoding="utf-8") as opened:
            master = int(opened.readline())
        with open("/proc/%d/cmdline" % master, "rb") as opened:
            self.command = opened.read().decode().split("\0")[:-1]
        # Stopped, it starts no more processes that would outlive it.
        os.kill(master, signal.SIGSTOP)
        children = subprocess.run([tool("ps"), "--ppid", str(master), "-o", "pid="], capture_output=True, check=False, text=True).stdout.split()
        for pid in [*map(int, children), master]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(is_running(pid) for pid in [master, *map(int, children)]), "the end of the database")
        # The process may be left as a zombie where nobody reaps it, and would pass for alive.
        os.unlink(os.path.join(self.folder, "data", "postmaster.pid"))
        for name in os.listdir(os.path.join(self.folder, "socket")):
            os.unlink(os.path.join(self.folder, "socket", name))

    def come_again(self):
        """The same server on the same port; returns when it has recovered."""
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"] if os.geteuid() == 0 else []
        with open(os.path.join(self.folder, "again.log"), "ab") as log:
            self.process = subprocess.Popen([*user, *self.command], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        answers = lambda: subprocess.run([tool("psql"), self.url, "--command", "SELECT 1"], capture_output=True, timeout=60, check=False).returncode == 0
        try:
            wait_for(answers, "the database has recovered", 60, 0.1)
        except AssertionError as late:
            with open(os.path.join(self.folder, "again.log"), encoding="utf-8", errors="replace") as opened:
                raise AssertionError("%s:\n%s" % (late, opened.read()[-2000:])) from None

    def rows(self, query):
        """The rows of a query, as texts."""
        done = subprocess.run([tool("psql"), self.url, "--tuples-only", "--no-align", "--command", query], capture_output=True, timeout=120,
                              check=False, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split("|") for line in done.stdout.splitlines() if line]

    def close(self):
        subprocess.run([os.path.join(ROOT, "tools", "postgres"), "stop", self.folder], capture_output=True, timeout=120, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Link:
    """The way of one server to the database: a TCP proxy that can be cut, stall, or lose answers."""

    loop = None

    def __init__(self, port):
        if Link.loop is None:
            Link.loop = asyncio.new_event_loop()
            threading.Thread(target=Link.loop.run_forever, daemon=True).start()
        self.target, self.pairs, self.is_cut = port, set(), False
        self.port = self.call(self.open())

    @staticmethod
    def call(work):
        return asyncio.run_coroutine_threadsafe(work, Link.loop).result(30)

    async def open(self):
        # There, and back.
        self.gates = [asyncio.Event(), asyncio.Event()]
        for gate in self.gates:
            gate.set()
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def accept(self, reader, writer):
        try:
            if self.is_cut:
                return
            onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return
        else:
            pair = (writer, onward[1])
            self.pairs.add(pair)
            await asyncio.wait([asyncio.ensure_future(self.pump(*way)) for way in ((0, reader, onward[1]), (1, onward[0], writer))],
                               return_when=asyncio.FIRST_COMPLETED)
            self.pairs.discard(pair)
            onward[1].transport.abort()
        finally:
            writer.transport.abort()

    async def pump(self, way, reader, writer):
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                await self.gates[way].wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()

    async def change(self, kind):
        """To ``cut``, ``stall``, ``half`` or ``whole``."""
        self.is_cut = kind == "cut"
        for way, gate in enumerate(self.gates):
            if kind == "stall" or (kind == "half" and way == 1):
                gate.clear()
            else:
                gate.set()
        for pair in list(self.pairs) if self.is_cut else []:
            for writer in pair:
                writer.transport.abort()

    def become(self, kind):
        self.call(self.change(kind))


class Chaos(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.rounds = int(os.environ.get("ROUNDS", "15"))
        cls.seed = int(os.environ.get("SEED", "1"))
        cls.database = Database()
        cls.addClassCleanup(cls.database.close)
        cls.servers = []
        cls.links = {}
        for _ in range(SERVERS):
            port = urllib.parse.urlsplit(cls.database.url).port
            link = Link(port)
            server = Orchestrator(variables={"DATABASE_URL": cls.database.url.replace(":%d/" % port, ":%d/" % link.port), "SCHEDULER_MISFIRE_GRACE_TIME": "86400",
                                             "JWT_SECRET_KEY": "chaos-0123456789-abcdefghijklmnopqrstuvwxyz"})
            cls.addClassCleanup(server.close)
            cls.links[server] = link
            cls.servers.append(server.start())

    def setUp(self):
        self.dice = random.Random(self.seed)
        self.over = threading.Event()
        self.acknowledged = {}
        self.events = {}
        self.failed = []

    # load

    def client(self, server):
        return httpx.Client(base_url=server.url, timeout=5, trust_env=False, headers={"Authorization": "Bearer " + self.token})

    def until_acknowledged(self, method, path, body, key=None):
        """Ask one server after the other until one has said yes."""
        headers = {"Idempotency-Key": key} if key else {}
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for server in list(self.servers):
                with contextlib.suppress(httpx.HTTPError):
                    with self.client(server) as client:
                        answer = client.request(method, path, json=body, headers=headers)
                    if answer.status_code < 300:
                        return answer.json()
                    if answer.status_code < 500:
                        raise AssertionError((answer.status_code, answer.text))
                time.sleep(0.02)
        raise AssertionError("nobody has acknowledged %s %s within a minute" % (method, path))

    def guarded(self, work):
        def run():
            number = 0
            while not self.over.is_set():
                try:
                    work(number)
                except Exception as problem:  # noqa: BLE001 - told at the end, by the test
                    self.failed.append(repr(problem))
                    return
                number += 1
                time.sleep(0.03)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def ask_for_runs(self, number):
        key = "run-%d" % number
        answer = self.until_acknowledged("POST", "/tasks/%s/run_now" % self.manual, {}, key)
        self.acknowledged[key] = answer["details"]["run_id"]

    def publish(self, number):
        # An event has no key: one that was not acknowledged may be there, once. Only what was acknowledged is counted on.
        for server in self.servers:
            with contextlib.suppress(httpx.HTTPError):
                with self.client(server) as client:
                    answer = client.post("/events", json={"topic": "chaos", "payload": {"n": number}, "source_agent_id": self.agent})
                if answer.status_code == 202:
                    self.events[number] = answer.json()["details"]
                    return

    # harm

    def harm(self):
        kinds = {"kill": 30, "freeze": 12, "drain": 12, "database": 10, "kill two": 8, "cut": 10, "stall": 9, "half": 9}
        kind = self.dice.choices(tuple(kinds), tuple(kinds.values()))[0]
        server = self.dice.choice(self.servers)
        pause = self.dice.uniform(0.1, 0.8)
        server.variables.update(clock("%+d" % self.dice.randint(-SKEW, SKEW)))
        if kind in ("cut", "stall", "half"):
            self.links[server].become(kind)
            time.sleep(self.dice.uniform(0.5, 4.5))
            self.links[server].become("whole")
        elif kind == "kill":
            server.kill()
            time.sleep(pause)
            server.start()
        elif kind == "kill two":
            other = self.dice.choice([one for one in self.servers if one is not server])
            server.kill()
            other.kill()
            time.sleep(pause)
            server.start()
            other.start()
        elif kind == "freeze":
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(self.dice.uniform(0.5, 4.5))
            server.process.send_signal(signal.SIGCONT)
        elif kind == "drain":
            server.stop()
            time.sleep(pause)
            server.start()
        else:
            self.database.kill()
            time.sleep(pause)
            self.database.come_again()
        time.sleep(self.dice.uniform(0.1, 0.6))
        return kind

    def prepare(self):
        server = self.servers[0]
        self.agent = server.new_agent("chaos", SCOPES)
        with server.agent(self.agent):
            self.token = server.tokens[self.agent]
        tell = {"uses": "event.publish", "with": {"topic": "told", "payload": {}}, "save_as": "told"}
        pipeline = [dict(NAP, **{"with": {"seconds": 0.1}}), tell, dict(NAP, save_as="last", **{"with": {"seconds": 0.1}})]
        make = lambda **members: server.task(self.agent, pipeline, **members)
        self.manual = make(concurrency_key=None)
        self.listening = make(schedule_kind="event", schedule_expr="chaos")
        self.due = [make(schedule_kind="rrule", schedule_expr="FREQ=SECONDLY;INTERVAL=%d" % (number + 1), misfire_policy="run_all",
                         concurrency_key="due-%d" % number if number == 1 else None) for number in range(DUE_TASKS)]

    def test_nothing_is_lost_doubled_or_repeated(self):
        self.prepare()
        threads = [self.guarded(self.ask_for_runs), self.guarded(self.publish)]
        harms = {}
        begun = time.monotonic()
        try:
            for _ in range(self.rounds):
                kind = self.harm()
                harms[kind] = harms.get(kind, 0) + 1
                if self.failed:
                    break
        finally:
            self.over.set()
            for thread in threads:
                thread.join()
        self.assertEqual(self.failed, [])
        lasted = time.monotonic() - begun
        # A sleep that began by one clock ends by another: while they differ, each run behind a key can take half a minute.
        for server in self.servers:
            server.variables.update(clock("+0"))
            server.restart()
        for task in self.due:
            self.until_acknowledged("POST", "/tasks/%s/pause" % task, {})
            self.until_acknowledged("PUT", "/tasks/" + task, {"title": "paused"})
        # What was held by the pause goes on as soon as the task may; its schedule is made to be over.
        for task in self.due:
            self.until_acknowledged("PUT", "/tasks/" + task, {"schedule_kind": "manual", "schedule_expr": None, "status": "active"})
        left = "SELECT to_jsonb(queue) FROM queue LIMIT 20"
        try:
            wait_for(lambda: self.database.rows("SELECT count(*) FROM queue") == [["0"]], "the end of every run", 90, 0.2)
        except AssertionError as late:
            workers = self.database.rows("SELECT id, beat FROM workers")
            raise AssertionError("%s; seed %d, %s; left: %s; workers: %s" % (late, self.seed, harms, self.database.rows(left), workers)) from None
        self.judge(harms, lasted)

    # judgement

    def judge(self, harms, lasted):
        rows = self.database.rows("SELECT encode(id, 'hex'), encode(lineage, 'hex'), encode(task, 'hex'), state, attempt, scheduled_for FROM task_runs")
        states = {}
        for _, _, _, state, _, _ in rows:
            states[state] = states.get(state, 0) + 1
        by_lineage = {}
        for run, lineage, task, state, attempt, scheduled in rows:
            by_lineage.setdefault(lineage, []).append((int(attempt), state, task, scheduled, run))
        plain = lambda text: text.replace("-", "")
        doubled = [lineage for lineage, runs in by_lineage.items() if sum(state == "succeeded" for _, state, *_ in runs) > 1]
        lost = [lineage for lineage, runs in by_lineage.items() if not any(state == "succeeded" for _, state, *_ in runs)]
        told = lambda lineage: self.database.rows("SELECT to_jsonb(task_runs) FROM task_runs WHERE lineage = '\\x%s'" % lineage)
        self.assertEqual((doubled, lost), ([], []), "%s; seed %d, %s: %s" % (states, self.seed, harms, [told(lineage) for lineage in (doubled + lost)[:3]]))

        # Each acknowledged request is one run, and there are no others.
        manual = {lineage for lineage, runs in by_lineage.items() if runs[0][2] == plain(self.manual)}
        self.assertEqual(manual, {plain(run) for run in self.acknowledged.values()})
        self.assertEqual(len(set(self.acknowledged.values())), len(self.acknowledged))

        # Each stored event made one run; each acknowledged one is stored.
        stored = {int(number): event for event, number in self.database.rows(
            "SELECT encode(id, 'hex'), payload::json->>'n' FROM events WHERE topic = 'chaos'")}
        self.assertLessEqual(set(self.events), set(stored))
        heard = [lineage for lineage, runs in by_lineage.items() if runs[0][2] == plain(self.listening)]
        self.assertEqual(len(heard), int(self.database.rows("SELECT count(*) FROM events WHERE topic = 'chaos'")[0][0]))

        # Due times: without a gap and without a double, for each task.
        served = 0
        for number, task in enumerate(self.due):
            times = sorted(int(runs[0][3]) for runs in by_lineage.values() if runs[0][2] == plain(task))
            served += len(times)
            gaps = {(later - earlier) // 1_000_000 for earlier, later in zip(times, times[1:])}
            self.assertEqual(gaps, {number + 1}, "task %d: %s" % (number, times[:5]))

        # The step in the middle of each run was carried out once.
        told = int(self.database.rows("SELECT count(*) FROM events WHERE topic = 'told'")[0][0])
        self.assertEqual(told, len(by_lineage))

        attempts = max(int(attempt) for _, _, _, _, attempt, _ in rows)
        rescues = self.database.rows("SELECT count(*) FROM audit WHERE action = 'worker.lost'")[0][0]
        at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        print("\n%s seed %d: %d rounds in %.0f s %s; %d runs (%d asked for, %d by events, %d due times), %s; at most %d attempts; %s workers "
              "declared dead" % (at, self.seed, sum(harms.values()), lasted, harms, len(by_lineage), len(manual), len(heard), served, states,
                                 attempts, rescues))


if __name__ == "__main__":
    unittest.main()
