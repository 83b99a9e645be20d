"""A server of an earlier version beside one of this version, on one PostgreSQL, while due times come each second.

``INTERLOCK_OLD_BIN`` names the earlier program; it is built by hand, so this is no part of ``./check``. The old server begins alone; the
new one changes the tables under its work; later the old one is killed, refuses to start again, and a second new one takes its place. What
the chaos of one version promises is asked here too: no run lost, doubled or repeated, no due time missed.

``INTERLOCK_OLD_BIN=/path/to/interlock python upgrade_beside.py``, once for each version that is still in use.
"""

import json
import os
import subprocess
import time
import unittest

import httpx

import chaos_orchestrator
from orchestra import Orchestrator
from support import wait_for

SECRET = "chaos-0123456789-abcdefghijklmnopqrstuvwxyz"


class Old(Orchestrator):
    """``interlock server`` of the earlier version."""

    def command(self):
        return [os.environ["INTERLOCK_OLD_BIN"], *super().command()[1:]]


class Upgrade(chaos_orchestrator.Chaos):
    @classmethod
    def setUpClass(cls):
        cls.rounds, cls.seed = 0, 1
        cls.database = chaos_orchestrator.Database()
        cls.addClassCleanup(cls.database.close)
        cls.servers = []

    def server(self, kind):
        server = kind(variables={"DATABASE_URL": self.database.url, "SCHEDULER_MISFIRE_GRACE_TIME": "86400", "JWT_SECRET_KEY": SECRET})
        self.addCleanup(server.close)
        return server

    def migrations(self):
        return [int(row[0]) for row in self.database.rows("SELECT number FROM migrations ORDER BY number")]

    def ends(self):
        """Runs that each worker has ended, by the worker."""
        return dict(self.database.rows("SELECT worker, count(*) FROM task_runs WHERE worker IS NOT NULL GROUP BY worker"))

    @staticmethod
    def tells(line):
        """That the tables are another version's: versions before 0006 meet a column that is not there any more."""
        return "newer version" in json.dumps(line) or "does not exist" in json.dumps(line)

    def harm(self):
        """The whole upgrade is the one round."""
        time.sleep(4)
        before, first = self.migrations(), self.ends()
        new = self.server(Orchestrator).start()
        self.servers.append(new)
        changed = time.monotonic()
        wait_for(lambda: [line for line in self.old.log_lines() if self.tells(line)], "the old server's reason in its log", 30)
        self.noticed = time.monotonic() - changed
        # What of the old one was under way is ended or taken over, and from then on it ends nothing more.
        time.sleep(5)
        worker = set(first)
        middle = self.ends()
        time.sleep(5)
        last = self.ends()
        self.seen = {"migrations": (before[-1], self.migrations()[-1]), "ended by the old one before": sum(map(int, first.values())),
                     "meanwhile": sum(int(middle[one]) - int(first[one]) for one in worker), "afterwards": sum(int(last[one]) - int(middle[one]) for one in worker),
                     "ended by the new one": sum(int(count) for one, count in last.items() if one not in worker), "answers of the old one": {}}
        for method, path, body in (("GET", "/health/ready", None), ("GET", "/tasks", None), ("GET", "/runs", None), ("POST", "/tasks/%s/run_now" % self.manual, {})):
            with httpx.Client(base_url=self.old.url, timeout=15, trust_env=False, headers={"Authorization": "Bearer " + self.token}) as client:
                # Under a key that an asker repeats elsewhere: what it makes is counted once.
                answer = client.request(method, path, json=body, headers={"Idempotency-Key": "run-0"})
            self.seen["answers of the old one"][method + " " + path.replace(self.manual, "…")] = answer.status_code
        self.said = [line for line in self.old.log_lines() if self.tells(line)][0]
        self.old.kill()
        again = self.server(Old)
        code, words = again.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("newer version", words)
        self.servers.remove(self.old)
        self.servers.append(self.server(Orchestrator).start())
        time.sleep(3)
        return "upgrade"

    def test_nothing_is_lost_doubled_or_repeated(self):
        self.old = self.server(Old).start()
        self.servers.append(self.old)
        self.rounds = 1
        super().test_nothing_is_lost_doubled_or_repeated()
        version = subprocess.run([os.environ["INTERLOCK_OLD_BIN"], "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        print("%s; noticed after %.1f s; %s; it said: %s" % (version, self.noticed, json.dumps(self.seen, ensure_ascii=False), json.dumps(self.said)))
        self.assertEqual(self.seen["afterwards"], 0, "the old server went on ending runs")


del chaos_orchestrator.Chaos

if __name__ == "__main__":
    unittest.main()
