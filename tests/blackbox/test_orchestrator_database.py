"""An orchestrator whose database takes no writes, is away, or answers slowly: clear errors in bounded time, and nothing lost."""

import subprocess
import threading
import time
import unittest
import urllib.parse

from chaos_orchestrator import Link
from orchestra import NAP, Orchestrator
from support import tool, wait_for
from test_orchestrator_many import database


class Troubled(unittest.TestCase):
    """One server, reached through a link that can break."""

    @classmethod
    def setUpClass(cls):
        cls.url = database()
        parts = urllib.parse.urlsplit(cls.url)
        cls.name = parts.path[1:]
        cls.link = Link(parts.port)
        cls.server = Orchestrator(variables={"DATABASE_URL": cls.url.replace(":%d/" % parts.port, ":%d/" % cls.link.port)})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def setUp(self):
        self.addCleanup(self.healthy)
        self.task = self.server.task(pipeline=[NAP, dict(NAP, save_as="later", **{"with": {"seconds": 2}})])

    def sql(self, *statements):
        commands = [word for statement in statements for word in ("--command", statement)]
        subprocess.run([tool("psql"), self.url, "--quiet", "--set", "ON_ERROR_STOP=1", *commands], check=True, timeout=60, capture_output=True)

    def writes(self, allowed):
        self.sql("ALTER DATABASE \"%s\" SET default_transaction_read_only = %s" % (self.name, "off" if allowed else "on"),
                 "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")

    def healthy(self):
        self.link.become("whole")
        subprocess.run([tool("psql"), self.url, "--quiet", "--command", "SET default_transaction_read_only = off", "--command",
                        "ALTER DATABASE \"%s\" RESET default_transaction_read_only" % self.name], check=False, timeout=60, capture_output=True)

    def refused(self):
        """A change that cannot be stored: 503, a sentence, and nothing of the database."""
        begun = time.monotonic()
        answer = self.server.ask("POST", "/tasks/%s/run_now" % self.task)
        self.assertEqual(answer.status_code, 503, answer.text)
        self.assertEqual(answer.json()["code"], "unavailable")
        self.assertNotIn("postgres", answer.text.lower())
        self.assertLess(time.monotonic() - begun, 25)

    def goes_on(self, run):
        """What was under way ends well, once; and new work is taken."""
        self.assertEqual(self.server.over(run, 40)["state"], "succeeded")
        wait_for(lambda: self.server.ask("POST", "/tasks/%s/run_now" % self.task).status_code == 200, "a run is taken", 30, 0.2)
        wait_for(lambda: {one["state"] for one in self.server.runs(self.task)} == {"succeeded"}, "all runs are over", 30)

    def test_a_database_that_takes_no_writes(self):
        run = self.server.now(self.task)
        self.server.reaches(run, ("queued", "running"))
        self.writes(False)
        self.refused()
        # It is not the primary, as far as the server can know: nothing is read from it either, and the log says why.
        wait_for(lambda: "database does not allow writes" in self.server.log(), "the reason in the log", 30)
        self.sql("SET default_transaction_read_only = off", "ALTER DATABASE \"%s\" RESET default_transaction_read_only" % self.name,
                 "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        self.goes_on(run)

    def test_a_database_that_is_away(self):
        run = self.server.now(self.task)
        self.link.become("cut")
        self.refused()
        ready = self.server.ask("GET", "/health/ready")
        self.assertEqual((ready.status_code, ready.json()["database"]), (503, False))
        self.assertEqual(self.server.ask("GET", "/health/live").status_code, 200)
        self.link.become("whole")
        self.goes_on(run)

    def test_a_database_that_is_slow_makes_one_run_of_one_request(self):
        holder = threading.Thread(target=self.sql, args=("BEGIN; LOCK TABLE queue IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT",))
        holder.start()
        time.sleep(0.5)
        begun = time.monotonic()
        answer = self.server.ask("POST", "/tasks/%s/run_now" % self.task, headers={"Idempotency-Key": "slow"})
        holder.join()
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertGreater(time.monotonic() - begun, 1)
        again = self.server.ask("POST", "/tasks/%s/run_now" % self.task, headers={"Idempotency-Key": "slow"})
        self.assertEqual(again.json()["details"]["run_id"], answer.json()["details"]["run_id"])
        self.assertEqual(self.server.over(answer.json()["details"]["run_id"])["state"], "succeeded")
        self.assertEqual(len(self.server.runs(self.task)), 1)


if __name__ == "__main__":
    unittest.main()
