"""Orchestrators in bad company: a disk that is full, a database that a newer program has changed, clocks that are minutes apart."""

import contextlib
import datetime
import os
import subprocess
import time
import unittest

from orchestra import NAP, Orchestrator, soon
from support import faked_time, fill, small_disk, tool, wait_for
from test_orchestrator_many import database

# As much as a request may hold, nearly: what is stored of it finds no place between other rows.
LARGE = "x" * 400_000


def sql(url, *statements):
    """The answer of the last of these statements."""
    commands = [word for statement in statements for word in ("--command", statement)]
    done = subprocess.run([tool("psql"), url, "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", *commands], check=True,
                          timeout=60, capture_output=True, text=True)
    return done.stdout.strip()


class FullDisk(unittest.TestCase):
    """No space for the database: 503 in words, nothing lost that was acknowledged, and all goes on by itself when there is space."""

    def full_and_not(self, server, disk):
        sleeping = server.task(pipeline=[dict(NAP, **{"with": {"seconds": 3}}), NAP])
        due = server.task(schedule_kind="once", schedule_expr=soon(4))
        run = server.now(sleeping)
        wait_for(lambda: server.run_of(run)["started_at"], "the run has begun")
        filler = fill(disk)

        made, refused = [], None
        for _ in range(60):
            begun = time.monotonic()
            answer = server.ask("POST", "/tasks", server.body(payload={"params": {"text": LARGE}, "pipeline": [NAP]}))
            self.assertLess(time.monotonic() - begun, 25)
            if answer.status_code != 201:
                refused = answer
                break
            made.append(answer.json()["id"])
        self.assertEqual((refused.status_code, refused.json()["code"]), (503, "unavailable"), refused.text)
        self.assertNotIn(disk, refused.text)
        self.assertEqual(server.ask("GET", "/health/live").status_code, 200)
        self.assertEqual(server.ask("GET", "/tasks/" + sleeping).status_code, 200)
        wait_for(lambda: "full" in server.log() or "No space" in server.log(), "the reason in the log")
        # Past the due time.
        time.sleep(3)

        os.unlink(filler)
        wait_for(lambda: server.ask("POST", "/tasks/%s/run_now" % sleeping).status_code == 200, "a run is taken", 30, 0.2)
        self.assertEqual(server.over(run, 40)["state"], "succeeded")
        runs = wait_for(lambda: server.runs(due), "the due time that came meanwhile", 30)
        self.assertEqual((len(runs), server.over(runs[0]["id"], 30)["state"]), (1, "succeeded"))
        for task in made:
            self.assertEqual(server.ask("GET", "/tasks/" + task).json()["payload"]["params"]["text"], LARGE)
        self.assertNotIn("panic", server.log())

    def test_the_disk_of_a_file(self):
        with small_disk(16) as disk, Orchestrator(state=os.path.join(disk, "state"), variables={"SCHEDULER_MISFIRE_GRACE_TIME": "3600"}) as server:
            self.full_and_not(server, disk)

    def test_the_disk_of_a_database_server(self):
        # Its tables only: without space for its log PostgreSQL ends, as when it is killed.
        with small_disk(48) as disk:
            os.chmod(disk, 0o755)
            place = os.path.join(disk, "tables")
            os.mkdir(place, 0o700)
            url = database()
            owner = sql(url, "SELECT current_setting('data_directory')")
            about = os.stat(owner)
            os.chown(place, about.st_uid, about.st_gid)
            name = url.partition("?")[0].rpartition("/")[2]
            admin = url.replace("/" + name, "/postgres")
            sql(admin, "CREATE TABLESPACE small_%s LOCATION '%s'" % (name, place))
            sql(admin, 'ALTER DATABASE "%s" SET TABLESPACE small_%s' % (name, name))
            try:
                with Orchestrator(variables={"DATABASE_URL": url, "SCHEDULER_MISFIRE_GRACE_TIME": "3600"}) as server:
                    self.full_and_not(server, disk)
            finally:
                sql(admin, 'DROP DATABASE "%s" WITH (FORCE)' % name, "DROP TABLESPACE small_%s" % name)


class Versions(unittest.TestCase):
    """What a server does whose database was changed by a newer one."""

    def test_a_server_that_has_become_too_old_begins_nothing_and_loses_nothing(self):
        url = database()
        with Orchestrator(variables={"DATABASE_URL": url}) as server:
            task = server.task(pipeline=[dict(NAP, **{"with": {"seconds": 2}}), dict(NAP, save_as="end")])
            begun = server.now(task)
            wait_for(lambda: server.run_of(begun)["started_at"], "the run has begun")
            sql(url, "INSERT INTO migrations VALUES (1000, 'future', '\\x00')")

            waiting = server.now(task)
            wait_for(lambda: "newer version" in server.log(), "the reason in the log", 20)
            # What was begun ends; one that slept goes on only where it is understood.
            wait_for(lambda: server.run_of(begun)["state"] in ("queued", "succeeded"), "the end of what was begun", 30)
            time.sleep(1)
            self.assertEqual(server.run_of(waiting)["state"], "queued")
            another = Orchestrator(variables={"DATABASE_URL": url})
            self.addCleanup(another.close)
            code, said = another.refused()
            self.assertNotEqual(code, 0)
            self.assertIn("newer version", said)

            sql(url, "DELETE FROM migrations WHERE number = 1000")
            for run in (begun, waiting):
                self.assertEqual(server.over(run, 30)["state"], "succeeded")


class Clocks(unittest.TestCase):
    """Three servers whose clocks are five minutes behind, right, and five minutes ahead."""

    def test_due_times_and_sleeps_go_by_one_clock(self):
        url = database()
        with contextlib.ExitStack() as stack:
            servers = []
            for shift in ("-300", "+0", "+300"):
                server = Orchestrator(variables=dict(faked_time(), FAKETIME=shift, DATABASE_URL=url))
                stack.enter_context(server)
                servers.append(server)
            at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=6)
            due = [server.task(schedule_kind="once", schedule_expr=at.isoformat()) for server in servers for _ in range(10)]
            nap = [dict(NAP, **{"with": {"seconds": 1}}), dict(NAP, save_as="b", **{"with": {"seconds": 1}})]
            naps = [(server, server.now(server.task(pipeline=nap))) for server in servers for _ in range(3)]

            for server, run in naps:
                self.assertEqual(server.over(run, 20)["state"], "succeeded")
            middle = servers[1]
            wait_for(lambda: sql(url, "SELECT count(*) FROM task_runs WHERE cause = 'schedule'") == "30", "every due time", 20)
            late = sql(url, "SELECT min(started_at - scheduled_for), max(started_at - scheduled_for) FROM task_runs WHERE cause = 'schedule'")
            first, last = (int(micros) / 1e6 for micros in late.split("|"))
            self.assertGreater(first, -0.6, "a run began before it was due")
            self.assertLess(last, 10)
            self.assertEqual([len(middle.runs(task)) for task in due], [1] * 30)
            for server in (servers[0], servers[2]):
                self.assertIn("tasks go by the database's", server.log())


class NamesOfLibraries(unittest.TestCase):
    """Names that mean something to a library of JSON inside the program are names like any other."""

    RAW, NUMBER = "$serde_json::private::RawValue", "$serde_json::private::Number"

    def test_what_was_sent_is_what_is_kept_and_what_tools_get(self):
        with Orchestrator() as server:
            # Texts that are JSON with twice the same name, deeper than a request may be, and no JSON at all.
            for text in ('{"a": 1, "a": 2}', "[" * 100 + "]" * 100, "no JSON"):
                for value in ({self.RAW: text}, {self.NUMBER: text}, {self.RAW: text, "z": [{self.RAW: text}]}):
                    with self.subTest(value=value):
                        task = server.task(payload={"params": value, "pipeline": [NAP]})
                        self.assertEqual(server.ask("GET", "/tasks/" + task).json()["payload"]["params"], value)
                        run = server.over(server.now(task))
                        self.assertEqual((run["state"], run["output"]["params"]), ("succeeded", value))
                        server.publish("names.x", value)
            self.assertEqual(server.ask("GET", "/tasks").status_code, 200)
            self.assertNotIn("panic", server.log())


if __name__ == "__main__":
    unittest.main()
