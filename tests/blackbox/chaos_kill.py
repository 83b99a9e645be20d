"""Kill worker, server or both at random moments while keyed calls move a counter; then compare every answer with the file.

    INTERLOCK_BIN=… INTERLOCK_CHAOS_ROUNDS=40 INTERLOCK_CHAOS_SEED=7 python -m unittest discover -s tests/blackbox -p 'chaos_*.py'

The action's effect is a line in a file, flushed to the disk: it stands for what a robot did. Each line names the key and
the run, so that a run's state can be judged by what really happened.
"""

import collections
import contextlib
import os
import random
import secrets
import signal
import subprocess
import threading
import time
import unittest

import httpx

from support import Server, program, wait_for

ROUNDS = int(os.environ.get("INTERLOCK_CHAOS_ROUNDS", "40"))
SEED = int(os.environ.get("INTERLOCK_CHAOS_SEED", "0")) or secrets.randbits(32)
CLIENTS = 6
KEY_SECONDS = 90
FINAL = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")
AGAIN = {"run_not_started", "device_busy", "device_unavailable", "unavailable"}
"""Codes after which nothing has been done: the caller comes again with the same key."""
CRASHED = {"worker_crashed", "run_uncertain"}
"""Codes after which nobody knows whether it was done; the key stays used."""

SOURCE = '''
    import os, random, time
    from interlock import ctx, safe_state, task

    @task(effects="moves")
    def count(key: str) -> str:
        time.sleep(random.random() * 0.02)
        descriptor = os.open(os.environ["ACTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, ("%s %s\\n" % (key, ctx.run_id)).encode())
        os.fsync(descriptor)
        os.close(descriptor)
        time.sleep(random.random() * 0.02)
        return key

    @safe_state
    def rest(reason):
        pass
'''


class Clients:
    """Threads that send keyed calls and come again until each key has a definite answer."""

    def __init__(self, server):
        self.server = server
        self.token = server.token()
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.answers = {}
        self.seen = collections.Counter()
        self.problems = []
        self.threads = [threading.Thread(target=self.work, args=(number,), daemon=True) for number in range(CLIENTS)]

    def work(self, number):
        try:
            count = 0
            while not self.over.is_set():
                self.settle("c%d-%d" % (number, count))
                count += 1
        except BaseException as problem:
            self.problems.append(problem)

    def settle(self, key):
        """Send until there is a definite answer; remember every code on the way."""
        end, codes = time.monotonic() + KEY_SECONDS, []
        headers = {"Authorization": "Bearer " + self.token, "Idempotency-Key": key}
        while True:
            if time.monotonic() > end:
                raise AssertionError("no definite answer for %s within %d s: %s" % (key, KEY_SECONDS, codes[-10:]))
            try:
                answer = httpx.post(self.server.url + "/execute/count", json={"key": key}, headers=headers, timeout=20, trust_env=False, verify=False)
                code = "ok" if answer.status_code == 200 else answer.json()["code"]
                if code == "ok" and answer.json()["result"] != key:
                    raise AssertionError("%s got the answer of %s" % (key, answer.json()["result"]))
            except (httpx.HTTPError, ConnectionError):
                code = "no answer"
            codes.append(code)
            with self.lock:
                self.seen[code] += 1
            if code == "ok" or code in CRASHED:
                with self.lock:
                    self.answers[key] = codes
                return
            if code != "no answer" and code not in AGAIN:
                raise AssertionError("%s: unexpected answer %s %s" % (key, answer.status_code, answer.text))
            time.sleep(0.03)


class Chaos(unittest.TestCase):
    def test_nothing_is_done_twice_and_the_record_is_true(self):
        print("\nINTERLOCK_CHAOS_SEED=%d INTERLOCK_CHAOS_ROUNDS=%d" % (SEED, ROUNDS), flush=True)
        dice = random.Random(SEED)
        server = Server(SOURCE)
        self.addCleanup(server.close)
        acted_file = os.path.join(server.folder, "acted")
        server.options = ["--env", "ACTED=" + acted_file]
        server.start()
        clients = Clients(server)
        kills = collections.Counter()
        for thread in clients.threads:
            thread.start()
        try:
            for _ in range(ROUNDS):
                time.sleep(dice.uniform(0.02, 0.6))
                self.assertEqual(clients.problems, [])
                kind = dice.choice(("worker", "server", "both"))
                kills[kind] += 1
                self.strike(server, kind, dice)
        finally:
            clients.over.set()
            for thread in clients.threads:
                thread.join(KEY_SECONDS + 30)
        self.assertEqual(clients.problems, [])
        self.assertFalse(any(thread.is_alive() for thread in clients.threads), "a client hangs")
        self.judge(server, clients, acted_file, kills)

    def strike(self, server, kind, dice):
        """One kill; what was killed comes back."""
        if kind in ("worker", "both"):
            worker = self.worker_of(server)
            if kind == "worker" or dice.random() < 0.5:
                with contextlib.suppress(OSError):
                    os.kill(worker, signal.SIGKILL)
                worker = None
        if kind in ("server", "both"):
            server.process.send_signal(signal.SIGKILL)
            if kind == "both" and worker is not None:
                with contextlib.suppress(OSError):
                    os.kill(worker, signal.SIGKILL)
            server.process.wait(10)
            time.sleep(dice.choice((0, 0, 0.05, 0.3)))
            server.start()

    def worker_of(self, server):
        """The worker's process id, once there is one."""
        def look():
            with contextlib.suppress(httpx.HTTPError, KeyError):
                return server.get("/device").json()["worker"]["pid"]
            return None
        return wait_for(look, "a worker", 20)

    def judge(self, server, clients, acted_file, kills):
        with open(acted_file, encoding="utf-8") as opened:
            lines = [line.split() for line in opened]
        by_key = collections.Counter(key for key, _ in lines)
        by_run = collections.Counter(run for _, run in lines)
        runs, offset = [], 0
        while True:
            page = server.get("/runs", params={"limit": 200, "offset": offset}).json()
            runs += page["items"]
            offset += 200
            if not page["has_more"]:
                break
        states = collections.Counter(run["state"] for run in runs)
        codes = collections.Counter(run["error"]["code"] for run in runs if run["error"])
        answers = {key: seen[-1] for key, seen in clients.answers.items()}
        duplicates = sorted(key for key, count in by_key.items() if count > 1)
        code = server.stop()
        left = server.workers()
        verified = self.verify(server)
        print("rounds        %d   seed %d" % (ROUNDS, SEED))
        print("kills         " + "   ".join("%s %d" % item for item in sorted(kills.items())))
        print("keys          %d   answers %s" % (len(answers), dict(collections.Counter(answers.values()))))
        print("on the way    %s" % dict(clients.seen))
        print("runs          %d   %s   %s" % (len(runs), dict(states), dict(codes)))
        print("acted         %d   by %d keys" % (len(lines), len(by_key)))
        print("duplicates    %d" % len(duplicates))
        print("uncertain     %d runs" % states["uncertain"])
        print("audit verify  %s" % verified, flush=True)

        self.assertGreater(answers and list(answers.values()).count("ok"), ROUNDS, "too little happened to mean anything")
        self.assertEqual(duplicates, [], "acted twice")
        self.assertEqual(set(by_key) - set(answers), set(), "acted for a key that nobody sent to its end")
        for key, answer in answers.items():
            if answer == "ok":
                self.assertEqual(by_key[key], 1, "%s was answered 200: %s" % (key, clients.answers[key]))
        listed = {run["id"]: run for run in runs}
        self.assertEqual(len(listed), len(runs), "a run is listed twice")
        self.assertEqual(set(by_run) - set(listed), set(), "acted without a run on record")
        for run in runs:
            self.assertIn(run["state"], FINAL, run)
            if run["state"] == "succeeded":
                self.assertEqual(by_run[run["id"]], 1, run)
            elif run["state"] == "cancelled":
                self.assertIn(run["error"]["code"], AGAIN, run)
                self.assertEqual(by_run[run["id"]], 0, "a run that is said not to have started has acted: %s" % run)
            else:
                self.assertIn(run["error"]["code"], CRASHED, run)
        # The device does one thing at a time, so a kill can leave one run in doubt and no more.
        self.assertLessEqual(states["uncertain"], kills["server"] + kills["both"])
        self.assertLessEqual(states["uncertain"] + states["failed"], sum(kills.values()))
        self.assertEqual(code, 0)
        self.assertEqual(left, [], "processes were left behind")
        self.assertNotIn("FAILED", verified)

    def verify(self, server):
        """``interlock audit verify`` on the stopped server's state, where that command exists."""
        if subprocess.run([program(), "audit", "verify", "--help"], capture_output=True, timeout=30, check=False).returncode != 0:
            return "(no such command)"
        done = subprocess.run([program(), "audit", "verify", "--state", server.state], capture_output=True, text=True, timeout=120,
                              env=server.variables, check=False)
        return "ok" if done.returncode == 0 else "FAILED: " + done.stdout + done.stderr


if __name__ == "__main__":
    unittest.main()
